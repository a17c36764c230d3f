"""`quantformer bench`: measure a service, one that runs or one that is started for it; or compare two measurements."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantformer.errors import MissingExtraError, UsageError
from quantformer_cli.main import Parser, Subparsers, add_settings, add_verb

if TYPE_CHECKING:
    from quantformer_cli.benchmark.measure import Target
    from quantformer_cli.benchmark.plan import Condition, Pace
    from quantformer_cli.benchmark.results import Document
    from quantformer_service.settings import Settings

#: The service that the bench starts has its own ports and is on the loopback; these settings are not handed on.
_OWN = {"bundle", "host", "http_port", "zmq_port", "pub_port", "tcp_port", "token", "shutdown_s", "log", "log_level"}

#: METRICS come about once a second, at rates that leave no pause within 4 s.
_METRICS_S = 6.0


def add_parser(subparsers: Subparsers[Parser]) -> Parser:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "bench",
        about="Measure a service with paced frames: one that is started for it (--bundle DIR) or one that runs (--connect, at\n"
        "--host and the ports). Lists are swept: the first value of each is the base, every further one is measured alone.\n"
        "Conditions take turns, round by round, beside bare inference in a process of its own. docs/latency.md explains\n"
        "the figures.",
        example="quantformer bench --bundle bundles/mouse-7 --neurons 241,1,1000 --json here.json --html here.html",
    )
    load = parser.add_argument_group("load")
    load.add_argument("--connect", action="store_true", help="measure the service that runs at --host and the ports")
    load.add_argument("--neurons", metavar="N,...", default="241", help="ROIs a frame, 1 to 65536 (default 241)")
    load.add_argument("--stimuli", metavar="S,...", default="1", help="alternatives of each question (default 1)")
    load.add_argument(
        "--streams", metavar="M,...", default="1", help="sessions at once, each with its own client (default 1)"
    )
    load.add_argument("--questions", metavar="Q,...", default="standing", help="standing, announced, both or none: then one "
                      "ROI is probed, and what a frame costs beside inference is seen (default standing)")  # fmt: skip
    load.add_argument("--transport", metavar="T,...", default="zmq", help="zmq, tcp, websocket or rest (default zmq)")
    load.add_argument("--disturb", metavar="D,...", default="", help="also with the service disturbed: gateway (flooded), "
                      "subscriber (never reads), churn (1000 connections), disk (recorder stalled), or all")  # fmt: skip
    load.add_argument(
        "--detail", choices=("forecast", "probability"), default="forecast", help="of answers (default forecast)"
    )
    pace = parser.add_argument_group("pace")
    pace.add_argument("--rate", type=float, metavar="HZ", default=30.0, help="frames a second (default 30)")
    pace.add_argument(
        "--jitter", type=float, metavar="SHARE", default=0.03, help="of a period, either way (default 0.03)"
    )
    pace.add_argument(
        "--frames", type=int, metavar="N", default=3000, help="measured frames a condition (default 3000)"
    )
    pace.add_argument("--rounds", type=int, metavar="N", default=3, help="in which conditions take turns (default 3)")
    pace.add_argument(
        "--every", type=int, metavar="K", default=3, help="frames between announced onsets and probes (default 3)"
    )
    pace.add_argument("--seed", type=int, metavar="N", default=0, help="of jitter and frames (default 0)")
    out = parser.add_argument_group("output")
    out.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    out.add_argument("--html", type=Path, metavar="FILE", help="write a page with pictures; it needs no network")
    out.add_argument(
        "--compare", type=Path, nargs=2, metavar=("A", "B"), help="compare two --json files, measuring nothing"
    )
    add_settings(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Measure and tell, or compare."""
    from quantformer_cli.benchmark import text

    if args.compare:
        return _compare(*args.compare)
    settings: Settings = args.resolved.settings
    pace, conditions = _asked(args)
    if not args.connect and not settings.bundle:
        raise UsageError(
            "there is nothing to measure: --bundle DIR starts a service on that bundle, --connect measures the one that runs; "
            "'quantformer demo' makes a bundle"
        )
    for file in (args.json, args.html):
        if file is not None and not file.absolute().parent.is_dir():
            raise UsageError(f"{file} cannot be written: {file.absolute().parent} is not a directory")
    need("psutil")
    if any(one.transport == "websocket" for one in conditions):
        need("websockets")
    document = _measure(args, settings, pace, conditions)
    text.print_document(document, text.console())
    if args.json is not None:
        from quantformer_cli.benchmark.results import write_document

        write_document(args.json, document)
    if args.html is not None:
        from quantformer_cli.benchmark.page import write_page

        write_page(args.html, document)
    failed = [one for one in document.results if one.failed]
    return 1 if len(failed) == len(document.results) else 0


def need(package: str) -> None:
    """Import a package of the extra ``bench``.

    Raises:
        MissingExtraError: it is not installed.
    """
    import importlib

    try:
        importlib.import_module(package)
    except ModuleNotFoundError:
        raise MissingExtraError(package=package, extra="bench", purpose="measuring") from None


def _asked(args: argparse.Namespace) -> tuple[Pace, list[Condition]]:
    from quantformer_cli.benchmark import plan

    disturb = _words("--disturb", args.disturb, (*plan.DISTURBANCES, "all")) if args.disturb else []
    if "all" in disturb:
        disturb = list(plan.DISTURBANCES)
    pace = plan.Pace(
        rate_hz=args.rate,
        jitter=args.jitter,
        frames=args.frames,
        rounds=args.rounds,
        every=args.every,
        detail=args.detail,
        seed=args.seed,
    )
    conditions = plan.conditions(
        transports=_words("--transport", args.transport, plan.TRANSPORTS),
        neurons=numbers("--neurons", args.neurons),
        stimuli=numbers("--stimuli", args.stimuli),
        sessions=numbers("--streams", args.streams),
        questions=_words("--questions", args.questions, plan.QUESTIONS),
        disturb=disturb,
    )
    return pace, conditions


def numbers(flag: str, text: str) -> list[int]:
    """A list of whole numbers from a flag.

    Raises:
        UsageError: it is something else.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{flag}: found {text!r}, expected whole numbers with commas between them") from None


def _words(flag: str, text: str, known: Sequence[str]) -> list[Any]:
    found = [part.strip() for part in text.split(",")]
    strange = [part for part in found if part not in known]
    if strange:
        raise UsageError(f"{flag}: found {strange[0]!r}, expected {', '.join(known)}, with commas between several")
    return found


def _compare(first: Path, second: Path) -> int:
    from quantformer_cli.benchmark import compare, text
    from quantformer_cli.benchmark.results import read_document

    before, after = read_document(first), read_document(second)
    found = compare.ratios(before, after)
    if not found:
        raise UsageError(f"{first} and {second} have no condition in common; measure both with the same options")
    text.print_comparison(found, differ=compare.differences(before, after), out=text.console())
    return 0


def _measure(args: argparse.Namespace, settings: Settings, pace: Pace, conditions: Sequence[Condition]) -> Document:
    from quantformer_cli.benchmark.gpu import GpuWatch
    from quantformer_cli.benchmark.measure import Bench, machine
    from quantformer_cli.benchmark.results import Document, Service
    from quantformer_training.machine import software

    before = machine()
    with _target(args, settings, conditions) as (target, status, preset), GpuWatch() as gpu:
        bench = Bench(target, pace, say=lambda line: print(line, file=sys.stderr, flush=True))
        results = bench.measure(conditions)
        service = Service(
            engine=status["engine"],
            bundle=status["bundle"],
            provider=status["provider"],
            precision=status["precision"],
            threads=target.threads,
            preset=preset,
            started=not args.connect,
            address=f"{target.host}:{target.zmq_port}",
        )
    notes = bench.notes if gpu.found is not None else [*bench.notes, f"GPU: {gpu.absent}"]
    return Document(
        date_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(["quantformer", *sys.argv[1:]]),
        machine=before,
        versions=software(("quantformer", "onnxruntime", "onnxruntime-gpu", "numpy", "pyzmq", "httpx", "websockets")),
        service=service,
        pace=pace,
        results=results,
        gpu=gpu.found,
        notes=notes,
    )


@contextmanager
def _target(
    args: argparse.Namespace, settings: Settings, conditions: Sequence[Condition]
) -> Iterator[tuple[Target, dict[str, Any], str]]:
    """The service to measure with its status and its bundle's preset, started for the time of the block where asked."""
    from quantformer_cli.benchmark.usage import service_root

    if args.connect:
        ports = {name: getattr(settings, name) for name in ("http_port", "zmq_port", "pub_port", "tcp_port")}
        local = settings.host in ("127.0.0.1", "localhost", "::1")
        root = service_root(settings.zmq_port) if local else None
        yield _known(settings, host=settings.host, token=settings.token, root=root, **ports)
        return
    from quantformer_cli.demo_service import Service

    with tempfile.TemporaryDirectory(prefix="quantformer-bench-") as folder:
        flags = _flags(settings, streams=max(one.sessions for one in conditions))
        with Service(Path(settings.bundle), log=Path(folder) / "service.log", flags=flags) as service:
            ports = {f"{name}_port": port for name, port in vars(service.ports).items()}
            yield _known(settings, host="127.0.0.1", token="", root=service.pid, **ports)


def _flags(settings: Settings, *, streams: int) -> list[str]:
    """Settings that are not the default, as flags of `serve`."""
    from quantformer_service.settings import table

    flags: list[str] = []
    for row in table():
        value = getattr(settings, row.name)
        value = max(value, streams) if row.name == "sessions" else value
        if row.name not in _OWN and value != row.default:
            flags += [row.flag, str(value)]
    return flags


def _known(
    settings: Settings, *, host: str, token: str, root: int | None, **ports: int
) -> tuple[Target, dict[str, Any], str]:
    """What the running service says of itself."""
    from quantformer_cli.benchmark.measure import Target, check_stimuli
    from quantformer_client import Rest

    with Rest(host=host, port=ports["http_port"], token=token) as rest:
        status, bundle = rest.status(), rest.bundle()
    bundle_path = Path(settings.bundle) if settings.bundle else None
    if bundle_path is not None:
        from quantformer.bundle import load_bundle

        found = load_bundle(bundle_path).hash
        if found != bundle["hash"]:
            raise UsageError(
                f"--bundle {bundle_path} has SHA-256 {found[:16]}, the service runs {bundle['hash'][:16]}; "
                "give the one that it runs"
            )
    manifest = bundle["manifest"]
    threads = _threads(host, ports["pub_port"]) or settings.threads or 1
    target = Target(
        host=host,
        token=token,
        root=root,
        neuron_ids=tuple(manifest["neuron_ids"]),
        stimulus_ids=tuple(manifest["stimuli"]),
        baseline_frames=manifest["signal"]["baseline_frames"],
        provider="cuda" if status["provider"] == "cuda" else "cpu",
        precision=status["precision"],
        threads=threads,
        bundle=bundle_path,
        **ports,
    )
    check_stimuli(target)
    return target, status, manifest["preset"]


def _threads(host: str, port: int) -> int:
    """Threads of one inference, as the engine's METRICS tell them; 0 where none comes."""
    from quantformer_client import wire
    from quantformer_client.transport import Subscriber

    subscriber = Subscriber(host=host, port=port, types=(wire.MessageType.METRICS,))
    try:
        data = subscriber.receive(_METRICS_S)
        body = None if data is None else wire.decode(data).body
        return int(body.gauges.get("inference_threads", 0)) if isinstance(body, wire.Metrics) else 0
    finally:
        subscriber.close()
