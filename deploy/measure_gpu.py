"""Measure the service on a GPU: 241 neurons, 40 candidate stimuli, 10,000 neurons, fields that may be too large, beside the aims.

    python deploy/measure_gpu.py [--network paper,live | --bundle DIR] [--provider cuda] [--out DIR] [--scale 1.0] [--seed 0]

Random weights, or a bundle of one's own: cost depends on a network's size and not on what it learned. For each network a service
is started, on a GPU in float16, and asked about every frame at 30 Hz with the plans and worker processes of `quantformer bench`.
The folder of ``--out`` takes ``gpu.md``, ``gpu.json`` and a file of `quantformer bench` a load; a network that is measured again
replaces its section. A network's frames take 280 s; ``--scale 0.01`` is a trial of a hundredth of them. ``--provider cpu`` is for
a trial where there is no GPU. Nothing else should run. docs/benchmarks.md says what was found.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from measure_engine import NEURONS, Found, Run, chosen, paced, record, section, sections_of, serves, write

from quantformer.bundle import load_bundle
from quantformer_cli.benchmark import aims
from quantformer_cli.benchmark.measure import machine
from quantformer_cli.benchmark.plan import Condition, Detail
from quantformer_cli.benchmark.service import started

NETWORKS = ("paper", "live")
#: How a service is started on each provider: on a GPU in the form that a laboratory would run there.
FLAGS = {"cuda": ("--provider", "cuda", "--precision", "float16"), "cpu": ("--provider", "cpu")}


@dataclass(frozen=True, kw_only=True)
class Load:
    """A standing question about every one of ``frames`` frames, and what ``figure`` of its result may be at most, in ms."""

    frames: int
    neurons: int = NEURONS
    stimuli: int = 1
    detail: Detail = "forecast"
    #: From a frame's last byte until its answer is published; or until the client has it, see `aims.load_rows`.
    figure: str = "engine"
    p50: float | None = None
    p99: float

    @property
    def name(self) -> str:
        """As in a file's name."""
        return f"{self.neurons}{f'x{self.stimuli}' if self.stimuli > 1 else ''}-{self.detail}"


LOADS = (
    Load(frames=3000, p50=1.0, p99=2.0),
    Load(frames=3000, stimuli=40, detail="probability", p99=10.0),
    Load(frames=900, neurons=10_000, p99=15.0),
    Load(frames=900, neurons=10_000, detail="probability", p99=15.0),
    # A field is held where the client has every answer within a frame.
    Load(frames=300, neurons=20_000, detail="probability", figure="corrected", p99=aims.FRAME_MS),
    Load(frames=300, neurons=40_000, detail="probability", figure="corrected", p99=aims.FRAME_MS),
)


def measure(run: Run, *, network: str, bundle: Path, provider: str) -> Found:
    """Every load, one after the other, on one service."""
    rows, files, before = [], [], machine()
    with started(bundle, flags=FLAGS[provider]) as whole:
        # Without the bundle there are no bare runs, which would take as long again.
        subject = replace(whole, target=replace(whole.target, bundle=None))
        how = [f"{serves(subject)}, {subject.service.precision}"]
        for load in LOADS:
            pace, name = run.pace(load.frames, rounds=1, detail=load.detail), f"gpu-{network}-{load.name}"
            condition = Condition(neurons=load.neurons, stimuli=load.stimuli)
            (one,) = run.bench(name, subject, pace, [condition], before=before).results
            rows += aims.load_rows(one, load=load.name, figure=load.figure, p50=load.p50, p99=load.p99)
            how.append(f"{load.name}: {paced(pace)}")
            files.append(f"{name}.json")
    return Found(how=how, rows=rows, files=files)


def random_bundle(path: Path, *, network: str) -> Path:
    """A bundle of a preset, with a float16 form. Needs `quantformer[train]`."""
    from measure_inference import made_up

    from quantformer.config import PRESETS

    ids = tuple(f"n{number:05d}" for number in range(NEURONS))
    made_up().write_tiny_bundle(path, neuron_ids=ids, config=PRESETS[network], forms=("float16",))
    return path


def main() -> None:
    """Measure the networks one after the other; what is measured is written before the next begins."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--network", type=partial(chosen, of=NETWORKS), default=list(NETWORKS), metavar="N,...", help="default: both"
    )
    which.add_argument("--bundle", type=Path, metavar="DIR", help="measure this one, not networks of random weights")
    parser.add_argument("--provider", default="cuda", choices=tuple(FLAGS))
    parser.add_argument("--out", type=Path, default=Path("reports/gpu"), metavar="DIR")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the frames (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    before, kept = machine(), sections_of(asked.out / "gpu.json", scale=asked.scale)
    with tempfile.TemporaryDirectory(prefix="quantformer-bundle-") as folder:
        for network in asked.network if asked.bundle is None else [load_bundle(asked.bundle).manifest.preset]:
            bundle = asked.bundle or random_bundle(Path(folder) / network, network=network)
            run = Run(
                live=bundle, tiny=bundle, out=asked.out, scale=asked.scale, seed=asked.seed,
                command=shlex.join(["python", *sys.argv]),
            )  # fmt: skip
            measured = partial(measure, run, network=network, bundle=bundle, provider=asked.provider)
            kept[network] = section(network, f"The network `{network}` on {asked.provider}", measured)
            write(asked.out / "gpu", record(run, list(kept.values()), before=before))
    print((asked.out / "gpu.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
