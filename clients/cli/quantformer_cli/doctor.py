"""`quantformer doctor`: will this machine hold the frame rate; and with `--loop`, from light to pulse on a rig."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantformer.errors import DataError, UsageError
from quantformer_cli.main import Parser, Subparsers, add_settings, add_verb

if TYPE_CHECKING:
    from quantformer_cli.diagnosis.check import Check
    from quantformer_cli.diagnosis.loop import Looped
    from quantformer_service.settings import Settings

_MARKS = {"ok": "ok", "advice": "advice", "bad": "NOT OK"}


def add_parser(subparsers: Subparsers[Parser]) -> Parser:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "doctor",
        about="Say whether this machine will hold the frame rate with this bundle, these neurons and stimuli, and what to\n"
        "change if not: exit status 0 or 1. With --loop, measure from light to pulse on a rig whose program speaks the\n"
        "lines of docs/latency.md: it makes light and pulses, so block the laser first.",
        example="quantformer doctor --bundle bundles/mouse-7 --neurons 241 --rate 30",
    )
    parser.add_argument("--neurons", type=int, metavar="N", default=241, help="ROIs that are asked about (default 241)")
    parser.add_argument("--stimuli", type=int, metavar="S", default=1, help="alternatives of each question (default 1)")
    parser.add_argument("--rate", type=float, metavar="HZ", default=30.0, help="frames a second (default 30)")
    parser.add_argument(
        "--loop",
        metavar="PORT",
        help="listen there (or at HOST:PORT) for the rig's program, and measure light to pulse",
    )
    parser.add_argument("--flashes", type=int, metavar="N", default=50, help="of --loop (default 50)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was found")
    add_settings(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Check the machine, or measure the rig."""
    if min(args.neurons, args.stimuli, args.flashes) < 1 or not 1.0 <= args.rate <= 1000.0:
        raise UsageError("found --neurons, --stimuli or --flashes below 1, or a --rate outside 1 to 1000 Hz")
    settings: Settings = args.resolved.settings
    return _loop(args, settings) if args.loop else _check(args, settings)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _check(args: argparse.Namespace, settings: Settings) -> int:
    from quantformer_cli.bench import need

    if not settings.bundle:
        raise UsageError("no bundle was given: 'quantformer doctor --bundle DIR'; 'quantformer demo' makes one")
    need("psutil")
    from quantformer_service.awake import Awake

    # Measured as the engine will run.
    with contextlib.closing(Awake(asked=settings.stay_awake == "on")) as awake:
        checks = examine(
            settings, neurons=args.neurons, stimuli=args.stimuli, rate_hz=args.rate, stay_awake=awake.outcome
        )
    _print_checks(checks)
    holds = all(check.state != "bad" for check in checks)
    asked = f"{args.rate:g} Hz with {args.neurons} neurons x {args.stimuli} stimuli"
    print(f"this machine holds {asked}" if holds else f"this machine does NOT hold {asked}")
    _write(args.json, {"holds": holds, "checks": checks})
    return 0 if holds else 1


def examine(settings: Settings, *, neurons: int, stimuli: int, rate_hz: float, stay_awake: str) -> list[Check]:
    """Every check, in the order shown; ``stay_awake`` is whether cores were kept from sleep, as `Awake` says it.

    Raises:
        BundleError: the bundle cannot be loaded.
    """
    from quantformer.bundle import load_bundle
    from quantformer_cli.benchmark.worker import WorkerError
    from quantformer_cli.diagnosis import rate, system
    from quantformer_cli.diagnosis.check import bad

    bundle = load_bundle(settings.bundle)
    ids, names = bundle.manifest.neuron_ids, tuple(bundle.manifest.stimuli)
    frames = bundle.recipe.response_frames
    checks = [system.check_cores(), system.check_load(), system.check_governor(), system.check_clock()]
    checks.append(system.check_wake_up(rate_hz=rate_hz))
    checks.append(system.check_priority())
    checks.append(system.check_idle(stay_awake))
    checks.append(system.check_memory(neurons=neurons, rate_hz=rate_hz, history_s=settings.history_s))
    # A frame with its neuropil, and an answer with response and interval of every neuron and stimulus, every frame.
    recorded = rate_hz * 4 * neurons * (2 + stimuli * (1 + 3 * frames))
    folder = Path(settings.record or ".")
    checks.append(system.check_disk(folder if folder.is_dir() else Path(), bytes_per_s=recorded))
    checks += system.check_ports(settings)
    checks.append(system.check_gpu(settings.provider))
    rois = [*ids[:neurons], *(f"doctor-{number}" for number in range(neurons - len(ids)))]
    asked = [names[number % len(names)] for number in range(stimuli)]
    try:
        timed, ran = rate.time_runs(
            bundle=Path(settings.bundle),
            provider=settings.provider,  # type: ignore[arg-type]  # the table allows no other
            precision=settings.precision,  # type: ignore[arg-type]  # nor here
            threads=rate.candidates(settings.provider),
            rois=rois,
            stimuli=asked,
            rate_hz=rate_hz,
            say=_say,
        )
    except WorkerError as error:
        checks.append(
            bad("inference", str(error), "install 'quantformer[serve]' (CPU) or 'quantformer[gpu]', or see the message")
        )
        return checks
    checks.append(rate.check_provider(ran, settings.provider))
    checks.append(rate.check_rate(timed, neurons=neurons, stimuli=stimuli, rate_hz=rate_hz, threads=settings.threads))
    return checks


def _print_checks(checks: list[Check]) -> None:
    from rich.markup import escape

    from quantformer_cli.benchmark.text import console, new_table

    rows = new_table("", "", "check", "found", "what to change")
    for check in checks:
        rows.add_row(_MARKS[check.state], check.name, escape(check.found), escape(check.cure))
    console().print(rows)


def _loop(args: argparse.Namespace, settings: Settings) -> int:
    from quantformer_cli.diagnosis.loop import measure_loop
    from quantformer_client import Controller, Rest

    with Rest(host=settings.host, port=settings.http_port, token=settings.token) as rest:
        stimulus = next(iter(rest.bundle()["manifest"]["stimuli"]), "")
    if not stimulus:
        raise UsageError("the bundle that is served names no stimulus: there is nothing to ask about")
    looped = measure_loop(
        args.loop,
        lambda: Controller(
            host=settings.host, port=settings.zmq_port, pub_port=settings.pub_port, token=settings.token
        ),
        stimulus=stimulus,
        flashes=args.flashes,
        seed=0,
        say=_say,
    )
    _print_loop(looped)
    _write(args.json, looped)
    return 0 if not looped.lost else 1


def _print_loop(looped: Looped) -> None:
    import numpy as np

    from quantformer_cli.benchmark.text import console, new_table
    from quantformer_cli.diagnosis.loop import WORDS

    rows = new_table(f"{len(looped.flashes)} flashes, {looped.lost} lost; ms", "", "p50", "p90", "max", "mean")
    for name, words in WORDS.items():
        values = np.array([flash.parts[name] for flash in looped.flashes])
        quantiles = np.quantile(values, [0.5, 0.9, 1.0], method="inverted_cdf")
        rows.add_row(words, *(f"{value:.2f}" for value in (*quantiles, values.mean())))
    out = console()
    out.print(rows)
    out.print(
        f"Means add up to light to pulse. The two clocks agree within {looped.uncertainty_ms:.3f} ms, which moves the borders "
        "of ours, not the sum.",
        markup=False,
    )


def _write(path: Path | None, found: Any) -> None:
    import msgspec

    if path is None:
        return
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}; choose another file") from None
