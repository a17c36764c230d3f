"""Inference alone, in a process of its own, paced as frames are: bare `session.run`, or the service's own way of asking."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from quantformer_cli.benchmark.schedule import schedule_ns, wait_until
from quantformer_cli.benchmark.worker import Desk, work_as

if TYPE_CHECKING:
    from quantformer.bundle import Bundle

#: Runs before the first that counts.
_WARM_UP = 5


class Bare(msgspec.Struct, frozen=True, kw_only=True):
    """The work: rows are every one of ``rois``, or the first alone (``probe``), for each of ``stimuli``. Ids that the
    bundle does not know get its unknown vector, as in the service's session. ``lanes`` asks as the service does, who cuts the
    rows into runs for threads of its own; else all rows are one `session.run`. Without ``forecast`` it is the part of the
    graph that the probability needs. ``precision`` is that of the graph, as the setting. ``out`` takes the ns of each run.
    """

    bundle: str
    provider: Literal["auto", "cpu", "cuda"]
    precision: Literal["float32", "auto", "int8", "float16"] = "float32"
    threads: int
    rois: list[str]
    stimuli: list[str]
    probe: bool
    forecast: bool = True
    lanes: bool = False
    rate_hz: float
    jitter: float
    frames: int
    seed: int
    out: str


def bare(work: Bare, desk: Desk) -> dict[str, Any]:
    """Run the graph once a frame; provider and bundle that it ran with, while the durations go to ``work.out``."""
    from quantformer.bundle import load_bundle
    from quantformer.config import LEVEL_QUANTITIES
    from quantformer_service.runtime import in_precision

    bundle = in_precision(load_bundle(work.bundle), precision=work.precision, provider=work.provider)
    n, rows = len(work.rois), 1 if work.probe else len(work.rois)
    stimuli = work.stimuli[:1] if work.probe else work.stimuli
    inputs: dict[str, NDArray[Any]] = {
        "baseline": np.random.default_rng(work.seed)
        .normal(0.0, 0.1, (n, bundle.recipe.baseline_frames))
        .astype(np.float32),
        "level": np.zeros((n, LEVEL_QUANTITIES), np.float32),
        "neuron": bundle.neurons(work.rois, unknown="mark").vectors,
        "stimulus": np.stack([bundle.stimulus(name) for name in stimuli]),
        "row_neuron": np.tile(np.arange(rows), len(stimuli)),
        "row_stimulus": np.repeat(np.arange(len(stimuli)), rows),
    }
    run, provider = (_as_served if work.lanes else graph_run)(work, bundle, inputs)
    for _ in range(_WARM_UP):
        run()
    due_ns = schedule_ns(frames=work.frames, rate_hz=work.rate_hz, jitter=work.jitter, seed=work.seed)
    took_ns = np.zeros(work.frames, np.int64)
    desk.ready()
    start_ns = time.perf_counter_ns() + 20_000_000
    for frame in range(work.frames):
        wait_until(start_ns + int(due_ns[frame]))
        before_ns = time.perf_counter_ns()
        run()
        took_ns[frame] = time.perf_counter_ns() - before_ns
    np.savez(work.out, took_ns=took_ns)
    return {"provider": provider, "bundle": bundle.hash}


def graph_run(work: Bare, bundle: Bundle, inputs: dict[str, NDArray[Any]]) -> tuple[Callable[[], object], str]:
    """One run of the graph, or of its part that the probability needs, and the provider that runs it.

    Raises:
        UnavailableError: the graph has inputs that this does not know.
    """
    from quantformer.errors import UnavailableError
    from quantformer_service.buffers import PROBABILITY
    from quantformer_service.runtime import open_session

    outputs = None if work.forecast else [PROBABILITY]
    session = open_session(bundle, provider=work.provider, threads=work.threads, outputs=outputs)
    wanted = [one.name for one in session.get_inputs()]
    strange = [name for name in wanted if name not in inputs]
    if strange:
        raise UnavailableError(
            f"the graph has inputs {', '.join(strange)} that this bench does not know; update quantformer"
        )
    feed = {name: inputs[name] for name in wanted}
    return lambda: session.run(None, feed), "cuda" if session.get_providers()[0].startswith("CUDA") else "cpu"


def _as_served(work: Bare, bundle: Bundle, inputs: dict[str, NDArray[Any]]) -> tuple[Callable[[], object], str]:
    """One question as the engine's inference thread asks it, and the provider that runs it."""
    from quantformer_service.network import Network

    network = Network(bundle, provider=work.provider, threads=work.threads)
    population = network.place(inputs["neuron"])
    population.baseline[...], population.level[...] = inputs["baseline"], inputs["level"]
    rows: dict[str, Any] = {name: inputs[name] for name in ("stimulus", "row_neuron", "row_stimulus")}
    return lambda: network.ask(population, **rows, forecast=work.forecast), network.provider


if __name__ == "__main__":
    work_as(Bare, bare)
