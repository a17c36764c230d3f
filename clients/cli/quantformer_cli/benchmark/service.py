"""The service that is measured, one that runs or one that is started for it, and a measurement of it as one document."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from quantformer.errors import UsageError
from quantformer_cli.benchmark.gpu import GpuWatch
from quantformer_cli.benchmark.measure import Bench, Target, check_stimuli
from quantformer_cli.benchmark.plan import Condition, Pace
from quantformer_cli.benchmark.results import Document, Machine, Service
from quantformer_client import Rest, wire
from quantformer_client.transport import Subscriber
from quantformer_training.machine import software

#: METRICS come about once a second, at rates that leave no pause within 4 s.
_METRICS_S = 6.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """What is measured, and what it says of itself."""

    target: Target
    service: Service


@contextmanager
def started(bundle: Path, *, flags: Sequence[str] = ()) -> Iterator[Subject]:
    """A service on that bundle, with further flags of ``quantformer serve``, for the time of the block.

    Raises:
        QuantformerError: it does not become ready.
    """
    from quantformer_cli import demo_service

    with (
        tempfile.TemporaryDirectory(prefix="quantformer-bench-") as folder,
        demo_service.Service(bundle, log=Path(folder) / "service.log", flags=flags) as service,
    ):
        ports = {f"{name}_port": port for name, port in vars(service.ports).items()}
        yield running(bundle=bundle, host="127.0.0.1", token="", root=service.pid, started=True, **ports)


def running(
    *,
    bundle: Path | None,
    host: str,
    token: str,
    root: int | None,
    threads: int = 0,
    started: bool = False,
    **ports: int,
) -> Subject:
    """A service that runs at these ports. ``threads`` are those that it was set to, told where its METRICS do not come.

    Raises:
        UsageError: it runs another bundle than ``bundle``, or one that names nothing to ask about.
        ClientError: nothing answers there.
    """
    with Rest(host=host, port=ports["http_port"], token=token) as rest:
        status, served = rest.status(), rest.bundle()
    if bundle is not None:
        from quantformer.bundle import load_bundle

        found = load_bundle(bundle).hash
        if found != served["hash"]:
            raise UsageError(
                f"--bundle {bundle} has SHA-256 {found[:16]}, the service runs {served['hash'][:16]}; "
                "give the one that it runs"
            )
    manifest = served["manifest"]
    target = Target(
        host=host,
        token=token,
        root=root,
        neuron_ids=tuple(manifest["neuron_ids"]),
        stimulus_ids=tuple(manifest["stimuli"]),
        baseline_frames=manifest["signal"]["baseline_frames"],
        provider="cuda" if status["provider"] == "cuda" else "cpu",
        precision=status["precision"],
        threads=_threads(host, ports["pub_port"]) or threads or 1,
        bundle=bundle,
        **ports,
    )
    check_stimuli(target)
    service = Service(
        engine=status["engine"],
        bundle=status["bundle"],
        provider=status["provider"],
        precision=status["precision"],
        granted=[name for name, outcome in status["privileges"].items() if outcome.startswith("granted")],
        threads=target.threads,
        preset=manifest["preset"],
        started=started,
        address=f"{target.host}:{target.zmq_port}",
    )
    return Subject(target=target, service=service)


def _threads(host: str, port: int) -> int:
    """Threads of one inference, as the engine's METRICS tell them; 0 where none comes."""
    subscriber = Subscriber(host=host, port=port, types=(wire.MessageType.METRICS,))
    try:
        data = subscriber.receive(_METRICS_S)
        body = None if data is None else wire.decode(data).body
        return int(body.gauges.get("inference_threads", 0)) if isinstance(body, wire.Metrics) else 0
    finally:
        subscriber.close()


def measured(
    subject: Subject,
    pace: Pace,
    conditions: Sequence[Condition],
    *,
    command: str,
    before: Machine,
    say: Callable[[str], None],
) -> Document:
    """Measure the conditions; ``before`` is the machine as it was before the service was started."""
    with GpuWatch() as gpu:
        bench = Bench(subject.target, pace, say=say)
        results = bench.measure(conditions)
    return Document(
        date_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        machine=before,
        versions=software(("quantformer", "onnxruntime", "onnxruntime-gpu", "numpy", "pyzmq", "httpx", "websockets")),
        service=subject.service,
        pace=pace,
        results=results,
        gpu=gpu.found,
        notes=bench.notes if gpu.found is not None else [*bench.notes, f"GPU: {gpu.absent}"],
    )
