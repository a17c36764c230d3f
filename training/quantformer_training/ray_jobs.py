"""Jobs on a Ray cluster: the one that is there, or one started on this machine for the occasion.

The cluster's machines need quantformer installed and see the same files under the same paths.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from quantformer.errors import MissingExtraError, UnavailableError
from quantformer_training.jobs import Job, Outcome, attempt, cores, message

#: How often a run is started anew because its machine or process was lost. Errors of the run itself are final.
RETRIES = 2
#: Seconds in which a cluster's machine must accept a connection.
REACH_S = 10.0
#: Nothing is sent to Ray's makers, and several processes may share a core or a GPU without a warning about it.
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_task_oom_retries": str(RETRIES)}


def run_on_ray(
    jobs: Sequence[Job], *, processes: int, report: Callable[[Outcome], None]
) -> dict[str, Outcome]:
    """Outcomes by name; ``processes`` runs at once share the cluster's cores, and its GPUs where it has any.

    Raises:
        MissingExtraError: Ray is not installed.
        UnavailableError: ``RAY_ADDRESS`` names a cluster that cannot be reached, or Ray does not start.
    """
    ray = _ray()
    found: dict[str, Outcome] = {}
    with _cluster(ray, processes=processes):
        total: dict[str, float] = ray.cluster_resources()
        options: dict[str, Any] = {"max_retries": RETRIES, "retry_exceptions": False}
        options["num_cpus"] = max(1, int(total.get("CPU", 1.0)) // processes)
        if total.get("GPU", 0.0) > 0:
            # A task that asks for no GPU sees none.
            options["num_gpus"] = min(1.0, int(1000 * total["GPU"] / processes) / 1000)
        task = ray.remote(attempt)
        running: dict[Any, str] = {}
        try:
            for job in jobs:
                try:
                    running[task.options(name=job.name, **options).remote(job)] = job.name
                except Exception as error:
                    hint = "a job is a top-level function with arguments that can be pickled"
                    found[job.name] = Outcome(name=job.name, failure=f"{hint}: {message(error)}")
                    report(found[job.name])
            while running:
                ended, _ = ray.wait(list(running), num_returns=1)
                for reference in ended:
                    name = running.pop(reference)
                    found[name] = _outcome(ray, reference, name=name)
                    report(found[name])
        finally:
            for reference in running:
                ray.cancel(reference, force=True)
    return found


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise MissingExtraError(package="ray", extra="ray", purpose="running jobs on Ray") from None
    return ray


def _outcome(ray: Any, reference: Any, *, name: str) -> Outcome:
    """What became of a run; a lost process or machine is a failure like others."""
    try:
        outcome = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        # Errors of the run are in its outcome: this one came before it, such as a module that the machine lacks.
        last = str(error).strip().splitlines()[-1].strip()
        return Outcome(name=name, failure=f"the job cannot be read on its machine: {last}", trace=str(error))
    except Exception as error:
        # Ray's message goes on for a page; the first sentence says it.
        text = message(error).partition(". ")[0]
        return Outcome(name=name, failure=f"its process or machine was lost, {RETRIES} new starts included: {text}")
    assert isinstance(outcome, Outcome)
    return outcome


@contextmanager
def _cluster(ray: Any, *, processes: int) -> Iterator[None]:
    """Connected inside; what was started here is stopped, what was there before stays."""
    if ray.is_initialized():
        yield
        return
    before = {name: os.environ.get(name) for name in _QUIET}
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if in_main else None
    os.environ.update(_QUIET)
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": False}
    try:
        _connect(ray, quiet, processes=processes)
        if in_main:
            # Ray takes SIGTERM for itself.
            signal.signal(signal.SIGTERM, handler)
        yield
    finally:
        with contextlib.suppress(Exception):
            ray.shutdown()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _connect(ray: Any, quiet: dict[str, Any], *, processes: int) -> None:
    address = os.environ.get("RAY_ADDRESS", "")
    if address and address != "local":
        try:
            # Ray itself would wait for minutes.
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=REACH_S).close()
            ray.init(address=address, **quiet)
        except Exception as error:
            raise UnavailableError(
                f"no Ray cluster answers at RAY_ADDRESS={address} ({message(error)}); start it, set RAY_AUTH_MODE=token if "
                "it asks for one, or unset RAY_ADDRESS to use this machine"
            ) from None
        return
    if not address:
        with contextlib.suppress(ConnectionError):
            ray.init(address="auto", **quiet)
            return
    try:
        ray.init(address="local", num_cpus=max(cores(), processes), include_dashboard=False, **quiet)
    except Exception as error:
        raise UnavailableError(f"Ray does not start on this machine ({message(error)}); use --jobs local") from None
