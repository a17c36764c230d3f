"""Measure one question about every neuron: the engine's network, in float32 and int8, beside PyTorch eager and a plain run.

    python deploy/measure_inference.py [--preset paper] [--neurons 241] [--stimuli 1] [--threads 2] [--rounds 20] [--json FILE]

Random weights. Each is a process of its own on the same threads; by turns each answers the same question five times, and the
others wait. A round's figure is the median of its five; "faster" is PyTorch's over its own, within a round, by the clock and by
CPU time of all threads. On a machine that does other work only CPU time with ``--threads 1`` tells anything: PyTorch's threads
spin while they wait for each other. docs/benchmarks.md says what was found.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from quantformer.manifest import Precision

ROOT = Path(__file__).resolve().parents[1]
RUNS = 5
Answers = list[NDArray[np.float32]]
Call = Callable[[], Answers]


def made_up() -> ModuleType:
    """The tests' bundle of random weights."""
    sys.path.insert(0, str(ROOT / "tests"))
    return importlib.import_module("tiny_bundle")


def question(path: Path, stimuli: int) -> dict[str, NDArray[Any]]:
    """The graph's inputs: every neuron of the bundle, each of so many stimuli."""
    from quantformer.bundle import load_bundle
    from quantformer.config import LEVEL_QUANTITIES

    bundle, rng = load_bundle(path), np.random.default_rng(0)
    ids = bundle.manifest.neuron_ids
    named = sorted(bundle.manifest.stimuli)
    return {
        "baseline": rng.normal(0, 0.2, (len(ids), bundle.recipe.baseline_frames)).astype(np.float32),
        "level": rng.normal(0, 0.3, (len(ids), LEVEL_QUANTITIES)).astype(np.float32),
        "neuron": bundle.neurons(ids, unknown="refuse").vectors,
        "stimulus": np.stack([bundle.stimulus(named[i % len(named)]) for i in range(stimuli)]),
        "row_neuron": np.tile(np.arange(len(ids)), stimuli),
        "row_stimulus": np.repeat(np.arange(stimuli), len(ids)),
    }


def eager(path: Path, preset: str, stimuli: int, threads: int) -> Call:
    """PyTorch, eager, all rows at once."""
    import torch

    from quantformer.config import PRESETS
    from quantformer.forecaster import ServingGraph
    from quantformer.layers import torch_alone

    torch.set_num_threads(threads)
    graph = ServingGraph(made_up().random_forecaster(PRESETS[preset], seed=0)).eval()
    given = [torch.from_numpy(array) for array in question(path, stimuli).values()]

    def call() -> Answers:
        with torch.inference_mode(), torch_alone():
            return [one.numpy() for one in graph(*given)]

    return call


def plain(path: Path, preset: str, stimuli: int, threads: int) -> Call:
    """The runtime's own run of the bundle's graph, all rows at once, on so many of its threads."""
    from quantformer.bundle import load_bundle
    from quantformer_service.runtime import open_session

    session, given = open_session(load_bundle(path), provider="cpu", threads=threads), question(path, stimuli)
    return lambda: list(session.run(None, given))


def engine(path: Path, preset: str, stimuli: int, threads: int, *, precision: Precision = "float32") -> Call:
    """The engine's network: bound tensors, rows in parts, lanes."""
    from quantformer.bundle import load_bundle
    from quantformer_service.network import Network

    bundle, given = load_bundle(path).in_precision(precision), question(path, stimuli)
    network = Network(bundle, provider="cpu", threads=threads)
    population = network.place(given["neuron"])
    asked: dict[str, Any] = {name: given[name] for name in ("stimulus", "row_neuron", "row_stimulus")}

    def call() -> Answers:
        population.baseline[:] = given["baseline"]
        population.level[:] = given["level"]
        found = network.ask(population, **asked)
        assert found.response is not None
        assert found.spread is not None
        return [found.logit, found.response, found.spread]

    return call


LOWERED = "engine, int8"
COMPETITORS: dict[str, Callable[[Path, str, int, int], Call]] = {
    "PyTorch eager": eager,
    "session.run": plain,
    "engine": engine,
    LOWERED: functools.partial(engine, precision="int8"),
}


def work(name: str, path: Path, preset: str, stimuli: int, threads: int, desk: Connection) -> None:
    """Body of a process: answer, then for every word from the desk the ms of `RUNS` runs, by the clock and of the CPU."""
    call = COMPETITORS[name](path, preset, stimuli, threads)
    for _ in range(2):
        call()
    desk.send(call())
    while desk.recv():
        found = []
        for _ in range(RUNS):
            clock, cpu = time.perf_counter(), time.process_time()
            call()
            found.append((1e3 * (time.perf_counter() - clock), 1e3 * (time.process_time() - cpu)))
        desk.send(found)


def heard(name: str, desk: Connection) -> Any:
    """What a process sent to its desk.

    Raises:
        SystemExit: it ended without a word; it has printed why.
    """
    try:
        return desk.recv()
    except EOFError:
        raise SystemExit(f"{name}: its process ended without an answer (its own error is above): nothing to compare") from None


def measure(path: Path, *, preset: str, stimuli: int, threads: int, rounds: int) -> dict[str, NDArray[np.float64]]:
    """Of each competitor the ms ``(rounds, RUNS, 2)``, by the clock and of the CPU.

    Raises:
        SystemExit: their answers differ, or a process ended without one; the others end with this one.
    """
    context = multiprocessing.get_context("spawn")
    desks: dict[str, Connection] = {}
    answers: dict[str, Answers] = {}
    for name in COMPETITORS:
        desks[name], theirs = context.Pipe()
        context.Process(target=work, args=(name, path, preset, stimuli, threads, theirs), daemon=True).start()
        theirs.close()  # the process holds the only other end: a desk whose process died says so
        answers[name] = heard(name, desks[name])
    off = [np.abs(one - other).max() for one, other in zip(answers[LOWERED], answers["PyTorch eager"], strict=True)]
    print(f"{LOWERED}: a logit is off by at most {off[0]:.4f} (they spread by {answers['PyTorch eager'][0].std():.3f})")
    for name, found in answers.items():
        if name == LOWERED:
            continue
        for one, other in zip(found, answers["PyTorch eager"], strict=True):
            if not np.abs(one - other).max() < 1e-4:
                raise SystemExit(f"{name} and PyTorch differ by {np.abs(one - other).max():.1e}: nothing to compare")
    taken: dict[str, list[object]] = {name: [] for name in COMPETITORS}
    for turn in range(rounds):
        for name in sorted(COMPETITORS, reverse=bool(turn % 2)):
            desks[name].send(True)
            taken[name].append(heard(name, desks[name]))
    for desk in desks.values():
        desk.send(False)
    return {name: np.array(found, np.float64) for name, found in taken.items()}


def table(taken: dict[str, NDArray[np.float64]], *, title: str) -> Table:
    """One row a competitor."""
    made = Table(title=title)
    for name in ("", "ms p50", "least", "p99", "CPU ms", "faster", "quartiles", "by CPU"):
        made.add_column(name, justify="left" if not name else "right")
    first = np.median(taken["PyTorch eager"], axis=1)
    for name, ms in taken.items():
        ratio, of_cpu = (first / np.median(ms, axis=1)).T
        low, high = np.percentile(ratio, [25, 75])
        clock, cpu = ms[..., 0], ms[..., 1]
        made.add_row(
            name, f"{np.median(clock):.1f}", f"{clock.min():.1f}", f"{np.percentile(clock, 99):.1f}", f"{np.median(cpu):.1f}",
            f"{np.median(ratio):.2f}", f"{low:.2f} to {high:.2f}", f"{np.median(of_cpu):.2f}",
        )  # fmt: skip
    return made


def main() -> None:
    """Measure and print; with ``--json`` also write every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--neurons", type=int, default=241)
    parser.add_argument("--stimuli", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each (default: all, %(default)s)")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="file to write")
    asked = parser.parse_args()
    from quantformer.config import PRESETS

    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle"
        ids = tuple(f"n{i:05d}" for i in range(asked.neurons))
        made_up().write_tiny_bundle(path, neuron_ids=ids, config=PRESETS[asked.preset], forms=("int8",))
        load = os.getloadavg()[0]
        taken = measure(
            path, preset=asked.preset, stimuli=asked.stimuli, threads=asked.threads, rounds=asked.rounds
        )  # fmt: skip
    console.print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f} before, {os.getloadavg()[0]:.1f} after"
    )
    title = f"{asked.preset}, {asked.neurons} neurons x {asked.stimuli} stimuli, both answers, {asked.threads} threads"
    console.print(table(taken, title=title))
    if asked.json:
        asked.json.write_text(json.dumps({name: ms.tolist() for name, ms in taken.items()}) + "\n")


if __name__ == "__main__":
    main()
