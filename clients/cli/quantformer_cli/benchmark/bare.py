"""Bare inference in a process of its own: `session.run` on the bundle's graph, paced as frames are, with nothing around it."""

from __future__ import annotations

import time
from typing import Any, Literal

import msgspec
import numpy as np

from quantformer_cli.benchmark.schedule import schedule_ns, wait_until
from quantformer_cli.benchmark.worker import Desk, work_as

#: Runs before the first that counts.
_WARM_UP = 5


class Bare(msgspec.Struct, frozen=True, kw_only=True):
    """The work: rows are every one of ``rois``, or the first alone (``probe``), for each of ``stimuli``. Ids that the
    bundle does not know get its unknown vector, as in the service's session. ``out`` takes the ns of each run.
    """

    bundle: str
    provider: Literal["auto", "cpu", "cuda"]
    threads: int
    rois: list[str]
    stimuli: list[str]
    probe: bool
    rate_hz: float
    jitter: float
    frames: int
    seed: int
    out: str


def bare(work: Bare, desk: Desk) -> dict[str, Any]:
    """Run the graph once a frame; provider and bundle that it ran with, while the durations go to ``work.out``."""
    from quantformer.bundle import load_bundle
    from quantformer.errors import UnavailableError
    from quantformer_service.runtime import open_session

    bundle = load_bundle(work.bundle)
    session = open_session(bundle, provider=work.provider, threads=work.threads)
    rng = np.random.default_rng(work.seed)
    n, rows = len(work.rois), 1 if work.probe else len(work.rois)
    stimuli = work.stimuli[:1] if work.probe else work.stimuli
    known = {
        "baseline": rng.normal(0.0, 0.1, (n, bundle.recipe.baseline_frames)).astype(np.float32),
        "level": np.zeros((n, 2), np.float32),
        "neuron": bundle.neurons(work.rois, unknown="mark").vectors,
        "stimulus": np.stack([bundle.stimulus(name) for name in stimuli]),
        "row_neuron": np.tile(np.arange(rows), len(stimuli)),
        "row_stimulus": np.repeat(np.arange(len(stimuli)), rows),
    }
    wanted = [one.name for one in session.get_inputs()]
    strange = [name for name in wanted if name not in known]
    if strange:
        raise UnavailableError(
            f"the graph has inputs {', '.join(strange)} that this bench does not know; update quantformer"
        )
    feed = {name: known[name] for name in wanted}
    outputs = [one.name for one in session.get_outputs()]
    for _ in range(_WARM_UP):
        session.run(outputs, feed)
    due_ns = schedule_ns(frames=work.frames, rate_hz=work.rate_hz, jitter=work.jitter, seed=work.seed)
    took_ns = np.zeros(work.frames, np.int64)
    desk.ready()
    start_ns = time.perf_counter_ns() + 20_000_000
    for frame in range(work.frames):
        wait_until(start_ns + int(due_ns[frame]))
        before_ns = time.perf_counter_ns()
        session.run(outputs, feed)
        took_ns[frame] = time.perf_counter_ns() - before_ns
    np.savez(work.out, took_ns=took_ns)
    return {"provider": session.get_providers()[0], "bundle": bundle.hash}


if __name__ == "__main__":
    work_as(Bare, bare)
