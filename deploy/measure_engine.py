"""Measure the engine's table: overhead, 10,000 neurons, isolation, endurance, kills, start and growth, each beside its aim.

    python deploy/measure_engine.py [--part overhead,large,...] [--out DIR] [--scale 1.0] [--seed 0]

Random weights: cost depends on a network's size and not on what it learned. Each part starts services of its own, with as many
threads as they choose, and measures them with the plans and worker processes of `quantformer bench`. DIR takes ``engine.md``,
``engine.json`` and a file of `quantformer bench` a measurement (for its ``--compare``, and for deploy/growth_picture.py); a part
that is measured again replaces its section, the others stay. ``--scale 0.01`` is a trial of a hundredth of the frames, kills and
starts. Nothing else should run. docs/benchmarks.md says what was found and how long each part takes.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import msgspec
from measure_inference import made_up

from quantformer_cli.benchmark import aims
from quantformer_cli.benchmark.aims import Record, Row, Section
from quantformer_cli.benchmark.kills import kill_again_and_again
from quantformer_cli.benchmark.measure import machine
from quantformer_cli.benchmark.plan import DISTURBANCES, Condition, Detail, Pace
from quantformer_cli.benchmark.results import Document, Machine, write_document
from quantformer_cli.benchmark.service import Subject, measured, started
from quantformer_cli.benchmark.survival import survival
from quantformer_cli.benchmark.usage import service_processes
from quantformer_training.machine import software

NEURONS = 241
#: Sizes of growth; the first is the base.
NEURON_SIZES = (1, 10, 100, 241, 1000, 3000, 10_000, 20_000)
STIMULUS_SIZES, FEW = (1, 2, 5, 10, 20, 40), 24
SESSION_SIZES = (1, 2, 3, 4)
#: A restart that came after other restarts waits up to 2 s; a killed service is one that was well for a second.
OFTEN = ["--restart-limit", "1000", "--restart-window-s", "1"]


def say(line: str) -> None:
    """Progress goes to stderr."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the script: where bundles and results lie, and how much of everything is done."""

    live: Path
    tiny: Path
    out: Path
    scale: float
    seed: int
    command: str

    def pace(
        self, frames: int, *, rounds: int = 3, rate_hz: float = 30.0, every: int = 3, detail: Detail = "forecast"
    ) -> Pace:
        """So many frames a condition, fewer in a trial, in which onsets follow closer on each other too."""
        count = max(round(frames * self.scale), 20 * rounds)
        closest = max(count // rounds // 4, 1)
        return Pace(
            frames=count, rounds=rounds, seed=self.seed, rate_hz=rate_hz, every=min(every, closest), detail=detail
        )

    def times(self, count: int) -> int:
        """So many kills or starts, fewer in a trial."""
        return max(round(count * self.scale), 2)

    def bench(
        self, name: str, subject: Subject, pace: Pace, conditions: Sequence[Condition], *, before: Machine
    ) -> Document:
        """Measure, and keep every figure as ``NAME.json``."""
        document = measured(subject, pace, conditions, command=self.command, before=before, say=say)
        write_document(self.out / f"{name}.json", document)
        return document


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a part found: how it was measured, its rows, its files of `quantformer bench`, and single values by name."""

    how: list[str]
    rows: list[Row]
    files: list[str] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)


def serves(subject: Subject) -> str:
    """What was measured, in a line."""
    service = subject.service
    return (
        f"{service.provider}, {service.threads} threads of one inference as the service chose, bundle {service.bundle[:16]}, "
        f"random weights, granted by the system: {service.granted_words}"
    )


def paced(pace: Pace) -> str:
    """How frames came, in a line."""
    return (
        f"{pace.frames} frames a condition at {pace.rate_hz:g} Hz with {100 * pace.jitter:g} % jitter in {pace.rounds} rounds, "
        f"{pace.detail} detail, seed {pace.seed}, ZeroMQ, each client in a process of its own"
    )


def overhead(run: Run) -> Found:
    """N = 241, a standing question about every frame."""
    pace = run.pace(3000)
    how, rows, files = [], [], []
    for network, bundle in (("live", run.live), ("tiny", run.tiny)):
        before = machine()
        with started(bundle) as subject:
            (one,) = run.bench(f"overhead-{network}", subject, pace, [Condition(neurons=NEURONS)], before=before).results
            how.append(f"{network}: {serves(subject)}")
        rows += aims.overhead_rows(one, network=network, every_frame=network == "live")
        files.append(f"overhead-{network}.json")
    about = (
        "tiny is the tests' network (d 16, one layer), whose inference is far below a frame: its overhead is no wait for the "
        "inference of the frame before; live is the preset that answers every frame on a CPU"
    )
    return Found(how=[paced(pace), about, *how], rows=rows, files=files)


def large(run: Run) -> Found:
    """N = 10,000 without a standing question; one ROI is probed."""
    pace, before = run.pace(3000), machine()
    condition = Condition(neurons=10_000, questions="none")
    with started(run.live) as subject:
        (one,) = run.bench("large", subject, pace, [condition], before=before).results
        how = serves(subject)
    probed = f"every {pace.every} frames one ROI's probability is asked for, announced before"
    return Found(how=[paced(pace), probed, how], rows=aims.large_rows(one), files=["large.json"])


def isolation(run: Run) -> Found:
    """Quiet and disturbed phases in turns."""
    pace = run.pace(3000)
    how, rows, files = [], [], []
    conditions = [Condition(neurons=NEURONS), *(Condition(neurons=NEURONS, disturb=one) for one in DISTURBANCES)]
    for network, bundle in (("live", run.live), ("tiny", run.tiny)):
        before = machine()
        with (
            tempfile.TemporaryDirectory(prefix="quantformer-record-") as recordings,
            started(bundle, flags=["--record", recordings]) as subject,
        ):
            name = f"isolation-{network}"
            document = run.bench(name, subject, pace, conditions, before=before)
            how.append(f"{network}: {serves(subject)}")
        rows += aims.isolation_rows(document.results, network=network)
        files.append(f"{name}.json")
    about = (
        "gateway: flooded by 32 requests at a time; subscriber: one that never reads; churn: 1,000 connections a phase; disk: "
        "the recorder stopped. Each of a process of niceness 10 on the same cores, in turns with the quiet phases"
    )
    return Found(how=[paced(pace), about, "everything is recorded", *how], rows=rows, files=files)


def endurance(run: Run) -> Found:
    """Six minutes of onsets at 300 Hz, then ten of a standing question at 30 Hz, in one life of the service."""
    fast = run.pace(108_000, rounds=1, rate_hz=300.0, every=300)
    slow = run.pace(18_000, rounds=1)
    before = machine()
    with started(run.live) as whole:
        # Without the bundle there are no bare runs, which would only be sixteen minutes more.
        subject = replace(whole, target=replace(whole.target, bundle=None))
        onsets = run.bench("endurance-onsets", subject, fast, [Condition(neurons=NEURONS, questions="announced")],
                           before=before)  # fmt: skip
        standing = run.bench("endurance-standing", subject, slow, [Condition(neurons=NEURONS)], before=before)
        how = serves(subject)
    phases = {"onsets at 300 Hz": onsets.results[0], "standing at 30 Hz": standing.results[0]}
    words = f"{paced(fast)}; an onset every {fast.every} frames"
    settled = "memory is settled after a tenth of a phase"
    files = ["endurance-onsets.json", "endurance-standing.json"]
    then = f"then, in the same life of the service, {paced(slow)}"
    return Found(how=[words, then, settled, how], rows=aims.endurance_rows(phases), files=files)


def kills(run: Run) -> Found:
    """kill -9 of engine and recorder at random moments of a recorded stream."""
    times = run.times(200)
    with tempfile.TemporaryDirectory(prefix="quantformer-record-") as recordings:
        with started(run.tiny, flags=["--record", recordings, *OFTEN]) as subject:
            killed, acknowledged = kill_again_and_again(
                subject.target, times=times, rois=subject.target.rois(NEURONS), rate_hz=30.0, seed=run.seed, say=say
            )
            how = serves(subject)
        left = survival(Path(recordings), acknowledged)
    told = (
        f"{NEURONS} ROIs at 30 Hz, a standing question, an onset every 10 frames, armed; {times} kills of the engine and {times} "
        f"of the recorder in random order, each up to 1.5 s after all was well (seed {run.seed})"
    )
    pause = "restarts that follow each other within --restart-window-s (60 s by default) wait longer, up to 2 s; here it is 1 s"
    values = {"engine_ms": killed.engine_ms, "recorder_ms": killed.recorder_ms}
    return Found(how=[told, pause, how], rows=aims.kill_rows(killed, left), values=values)


def start(run: Run) -> Found:
    """`quantformer serve` from the start of its process until it prints that it is ready."""
    from quantformer_cli.demo_service import Service

    seconds: list[float] = []
    cpu: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="quantformer-bench-") as folder:
        for number in range(run.times(10)):
            began = time.perf_counter()
            with Service(run.live, log=Path(folder) / "service.log") as service:
                seconds.append(time.perf_counter() - began)
                for name, process in service_processes(service.pid).items():
                    took = process.cpu_times()
                    cpu.setdefault(name, []).append(took.user + took.system)
            say(f"start {number + 1}: {seconds[-1]:.2f} s")
    how = f"live, {NEURONS} neurons, the number of threads measured at the start"
    return Found(how=[how], rows=aims.start_rows(seconds, cpu=cpu), values={"seconds": seconds, **cpu})


def growth(run: Run) -> Found:
    """Cost over neurons, over stimuli of few neurons, over sessions: announced onsets, far enough apart not to meet."""
    slow, quick = run.pace(1800, rounds=1, every=90), run.pace(900, rounds=2, every=30)
    axes = {
        "neurons": (slow, [Condition(neurons=size, questions="announced") for size in NEURON_SIZES]),
        "stimuli": (quick, [Condition(neurons=FEW, stimuli=size, questions="announced") for size in STIMULUS_SIZES]),
        "sessions": (quick, [Condition(neurons=NEURONS, sessions=size, questions="announced") for size in SESSION_SIZES]),
    }  # fmt: skip
    how, rows, files = [], [], []
    for axis, (pace, conditions) in axes.items():
        before = machine()
        with started(run.live) as subject:
            document = run.bench(f"growth-{axis}", subject, pace, conditions, before=before)
        rows += aims.growth_rows(document.results)
        how.append(f"{axis}: live, {serves(subject)}; {paced(pace)}; an onset every {pace.every} frames, each session's own")
        files.append(f"growth-{axis}.json")
    return Found(how=[*how, "picture: `python deploy/growth_picture.py` with these files"], rows=rows, files=files)


PARTS: dict[str, tuple[str, Callable[[Run], Found]]] = {
    "overhead": (f"Overhead a frame, N = {NEURONS}, every frame asked about", overhead),
    "large": ("Overhead at N = 10,000, no standing question", large),
    "isolation": ("p99 disturbed against quiet", isolation),
    "endurance": ("Endurance", endurance),
    "kills": ("kill -9 at random moments", kills),
    "start": ("Start to ready", start),
    "growth": ("How cost grows", growth),
}


def section(part: str, title: str, measure: Callable[[], Found]) -> Section:
    """Measure one part."""
    load, date = os.getloadavg()[0], datetime.now(UTC).isoformat(timespec="seconds")
    say(f"{part}: begins at {date}, load {load:.1f}")
    found = measure()
    return Section(
        part=part,
        title=title,
        date_utc=date,
        load=(load, os.getloadavg()[0]),
        how=found.how,
        rows=found.rows,
        files=found.files,
        values=found.values,
    )


def record(run: Run, sections: list[Section], *, before: Machine) -> Record:
    """All that was measured until now; ``before`` is the machine as it was at first."""
    return Record(
        date_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        command=run.command,
        machine=before,
        versions=software(("quantformer", "onnxruntime", "onnxruntime-gpu", "numpy", "pyzmq")),
        scale=run.scale,
        sections=sections,
    )


def write(path: Path, made: Record) -> None:
    """As JSON and as Markdown, side by side."""
    path.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(made), indent=1) + b"\n")
    path.with_suffix(".md").write_text(aims.markdown(made), encoding="utf-8")


def chosen(text: str, *, of: Iterable[str] = PARTS) -> list[str]:
    """Names of those that there are, in their order.

    Raises:
        argparse.ArgumentTypeError: there is no such one.
    """
    names, known = text.split(","), list(of)
    strange = sorted(set(names) - set(known))
    if strange:
        raise argparse.ArgumentTypeError(f"found {strange[0]!r}, expected {', '.join(known)}, with commas between several")
    return [name for name in known if name in names]


def main() -> None:
    """Measure the parts one after the other; what is measured is written before the next begins."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", type=chosen, default=list(PARTS), metavar="P,...", help="default: all")
    parser.add_argument("--out", type=Path, default=Path("reports/engine"), metavar="DIR")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the frames, kills and starts (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", *sys.argv])
    before, kept = machine(), sections_of(asked.out / "engine.json", scale=asked.scale)
    from quantformer.config import PRESETS

    with tempfile.TemporaryDirectory(prefix="quantformer-bundle-") as folder:
        run = Run(
            live=Path(folder) / "live",
            tiny=Path(folder) / "tiny",
            out=asked.out,
            scale=asked.scale,
            seed=asked.seed,
            command=command,
        )
        ids = tuple(f"n{number:05d}" for number in range(NEURONS))
        made_up().write_tiny_bundle(run.live, neuron_ids=ids, config=PRESETS["live"])
        made_up().write_tiny_bundle(run.tiny, neuron_ids=ids)
        for part in asked.part:
            title, measure = PARTS[part]
            kept[part] = section(part, title, partial(measure, run))
            made = record(run, [kept[name] for name in PARTS if name in kept], before=before)
            write(asked.out / "engine", made)
    print((asked.out / "engine.md").read_text(encoding="utf-8"))


def sections_of(path: Path, *, scale: float) -> dict[str, Section]:
    """What was measured before at this scale, by part; empty where nothing was."""
    if not path.is_file():
        return {}
    record = msgspec.json.decode(path.read_bytes(), type=Record)
    return {one.part: one for one in record.sections} if record.scale == scale else {}


if __name__ == "__main__":
    main()
