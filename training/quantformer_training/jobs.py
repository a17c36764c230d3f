"""Independent runs side by side: in this process, in local processes, or on a Ray cluster (`ray_jobs`).

A run that fails, or whose process dies, is reported by name and the others go on. Whatever ends `run_all`, Ctrl-C
included, no process is left behind; nor when this process is killed outright.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Literal

from quantformer.errors import DataError, QuantformerError, UsageError
from quantformer_training.freed_memory import keep_freed

Workers = Literal["local", "ray"]
#: Read by the libraries that compute with threads when they are loaded, so set before a process starts.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
#: Seconds that a process gets to end before it is killed.
GRACE_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run: ``function(**arguments)``. The function is a top-level one and everything can be pickled."""

    name: str
    function: Callable[..., Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended: its ``value``, or a ``failure`` of one line with the ``trace`` where there is one.

    ``seconds`` is the wall-clock time of the run itself.
    """

    name: str
    value: Any = None
    failure: str = ""
    trace: str = ""
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether there is no value."""
        return bool(self.failure)


def run_all(
    jobs: Sequence[Job], *, workers: Workers = "local", processes: int = 1, report: Callable[[Outcome], None]
) -> list[Outcome]:
    """Run every job, ``processes`` at once, and return their outcomes in the order of ``jobs``.

    ``report`` is called in this process with each outcome as it comes: what it stores survives whatever happens next.
    One local process means this very one. Otherwise the machine's cores are shared out evenly as threads.

    Raises:
        UsageError: ``processes`` is not positive.
        DataError: two jobs have the same name.
        UnavailableError: Ray was asked for and is not installed, or its cluster cannot be reached.
    """
    names = [job.name for job in jobs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"two jobs are called {twice[0]!r}; results are kept by name, so each needs its own")
    if processes < 1:
        raise UsageError(f"{processes} processes were asked for; at least one is needed")
    if not jobs:
        return []
    if workers == "ray":
        from quantformer_training.ray_jobs import run_on_ray

        found = run_on_ray(jobs, processes=processes, report=report)
    elif processes == 1:
        found = {}
        for job in jobs:
            found[job.name] = attempt(job)
            report(found[job.name])
    else:
        found = _run_locally(jobs, processes=min(processes, len(jobs)), report=report)
    return [found[name] for name in names]


def attempt(job: Job) -> Outcome:
    """Run a job here; whatever it raises, short of Ctrl-C, becomes its outcome."""
    started = time.monotonic()
    try:
        value = job.function(**job.arguments)
    except (Exception, SystemExit) as error:
        return Outcome(
            name=job.name, failure=message(error), trace=traceback.format_exc(), seconds=time.monotonic() - started
        )
    return Outcome(name=job.name, value=value, seconds=time.monotonic() - started)


def message(error: BaseException) -> str:
    """An error in one line, which is never empty; our own errors speak for themselves."""
    text = " ".join(str(error).split())
    if isinstance(error, QuantformerError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Worker:
    """A process that runs one job after another, and the pipe to it."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_serve, args=(theirs,))
        self.job: Job | None = None
        self.since = 0.0
        self.process.start()
        theirs.close()

    def take(self, job: Job) -> Outcome | None:
        """Start a job; its outcome at once where it cannot be sent."""
        try:
            content = pickle.dumps(job)
        except Exception as error:
            hint = "a job is a top-level function with arguments that can be pickled"
            return Outcome(name=job.name, failure=f"{hint}: {message(error)}")
        self.job, self.since = job, time.monotonic()
        try:
            self.pipe.send_bytes(content)
        except OSError:
            return self._died(job)
        return None

    def result(self) -> Outcome:
        """The outcome of the job that it was given; a process that died has one too."""
        job = self.job
        assert job is not None
        self.job = None
        try:
            outcome = pickle.loads(self.pipe.recv_bytes())  # noqa: S301 - from our own process, never from outside
        except (EOFError, OSError):
            return self._died(job)
        except Exception as error:
            outcome = Outcome(name="", failure=f"the result cannot be read: {message(error)}")
        assert isinstance(outcome, Outcome)
        return replace(outcome, name=job.name)

    def _died(self, job: Job) -> Outcome:
        self.job = None
        self.process.join(GRACE_S)
        return Outcome(name=job.name, failure=_cause(self.process.exitcode), seconds=time.monotonic() - self.since)

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    def stop(self) -> None:
        self.process.terminate()

    def close(self) -> None:
        self.process.join(GRACE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()
        self.process.close()


def _run_locally(
    jobs: Sequence[Job], *, processes: int, report: Callable[[Outcome], None]
) -> dict[str, Outcome]:
    waiting = list(reversed(jobs))
    found: dict[str, Outcome] = {}
    workers: list[_Worker] = []

    def keep(outcome: Outcome) -> None:
        found[outcome.name] = outcome
        report(outcome)

    def feed(worker: _Worker) -> None:
        while waiting and worker.job is None and worker.alive:
            refused = worker.take(waiting.pop())
            if refused is not None:
                keep(refused)

    try:
        while len(found) < len(jobs):
            while len(workers) < min(processes, len(waiting) + sum(worker.job is not None for worker in workers)):
                with _threads(max(1, cores() // processes)):
                    workers.append(_Worker())
                feed(workers[-1])
            busy = {worker.pipe: worker for worker in workers if worker.job is not None}
            # Waiting for nothing would be waiting for ever: the last jobs may all have been refused.
            for pipe in wait(list(busy)) if busy else ():
                assert isinstance(pipe, Connection)
                worker = busy[pipe]
                keep(worker.result())
                if worker.alive:
                    feed(worker)
                else:
                    workers.remove(worker)
                    worker.close()
    finally:
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.close()
    return found


def _serve(pipe: Connection) -> None:
    """What a worker process does until its pipe closes."""
    # Ctrl-C reaches every process of a terminal; the parent decides, and ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed()  # for what trains no network, too
    while True:
        try:
            content = pipe.recv_bytes()
        except EOFError:
            return
        try:
            # From the parent process, never from outside. The name is the parent's to give where this fails.
            outcome = attempt(pickle.loads(content))  # noqa: S301
        except Exception as error:
            outcome = Outcome(name="", failure=f"the job cannot be read in its process: {message(error)}")
        try:
            content = pickle.dumps(outcome)
        except Exception as error:
            content = pickle.dumps(replace(outcome, value=None, failure=f"the result cannot be sent: {message(error)}"))
        pipe.send_bytes(content)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _cause(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"its process ended early with status {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    hint = "; out of memory, or killed by somebody" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Processes that are started inside compute with ``count`` threads."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(count)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
