"""Measure the memory that a whole cohort takes, indexed as training indexes it, and while epochs are drawn from it.

    python deploy/measure_cohort.py [--mice 11] [--neurons 241] [--sessions A B C] [--directory DIR] [--json FILE]

Every mouse is shown the three sessions of the Allen schedule as the simulator has them; its fluorescence is noise, for what
it holds changes neither the number of neuron-trials nor what one takes. The store (11 GB for eleven mice) is made in a
temporary folder of ``--directory`` and removed. Then every category is read, labelled, tuned and pooled over all mice, all
categories are kept at once, more than a training does, and epochs of the preset `paper` are drawn ahead on a thread from
each. Needs Linux, whose ``/proc`` says what is anonymous memory and what is pages of the mapped traces, which the system
takes back when it needs room. docs/training.md says what was found.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantformer.recording import Provenance, Recording
from quantformer_training.ahead import drawn_ahead
from quantformer_training.effort import EFFORTS
from quantformer_training.finetune import draw_epoch, draw_moments
from quantformer_training.machine import machine
from quantformer_training.run_data import MostTrials, RunData, RunSources
from quantformer_training.simulated.mouse import RATE_HZ
from quantformer_training.simulated.schedule import ALLEN_A, ALLEN_B, ALLEN_C
from quantformer_training.store import open_session, write_session
from quantformer_training.threads import computing_with
from quantformer_training.trials import EPOCHS

SCHEDULES = {"A": ALLEN_A, "B": ALLEN_B, "C": ALLEN_C}
#: Of training windows; any positive number takes as much memory.
_SIGNAL_SCALE = 0.2
_EPOCHS = 3
_SAMPLE_S = 0.02
_GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage took: seconds by the clock; anonymous and file-mapped bytes held at its end; the most anonymous bytes at
    any moment of it, sampled; the most resident bytes of both kinds since the program began.
    """

    name: str
    seconds: float
    anonymous: int
    mapped: int
    most_anonymous: int
    most_resident: int


class Memory:
    """The stages of a measurement, as they end."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what is done inside."""
        started, ended, most = time.perf_counter(), threading.Event(), [resident("RssAnon")]

        def watch() -> None:
            while not ended.wait(_SAMPLE_S):
                most.append(max(most.pop(), resident("RssAnon")))

        thread = threading.Thread(target=watch, name="memory", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
        seconds = time.perf_counter() - started
        gc.collect()
        anonymous = resident("RssAnon")
        made = Stage(
            name=name, seconds=seconds, anonymous=anonymous, mapped=resident("RssFile"),
            most_anonymous=max(most[0], anonymous), most_resident=resident("VmHWM"),
        )  # fmt: skip
        self.stages.append(made)
        print(
            f"{name}: {seconds:.0f} s; anonymous {anonymous / _GB:.2f} GB, at most {made.most_anonymous / _GB:.2f}; "
            f"mapped {made.mapped / _GB:.2f}; most resident so far {made.most_resident / _GB:.2f}",
            flush=True,
        )


def resident(kind: str) -> int:
    """Bytes of this process by ``/proc/self/status``: ``RssAnon``, ``RssFile``, or ``VmHWM``, the peak of both."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == kind:
            return 1024 * int(value.split()[0])
    raise LookupError(f"/proc/self/status does not say {kind}; Linux 4.5 or newer is needed")


def make_store(directory: Path, *, mice: int, neurons: int, sessions: list[str]) -> list[Path]:
    """Sessions of noise about 100, with the stimuli of the Allen schedule in an order of their own."""
    made = []
    for mouse in range(mice):
        for number, name in enumerate(sessions):
            schedule, rng = SCHEDULES[name], np.random.default_rng((mouse, number))
            frames = round(schedule.duration_s * RATE_HZ)
            traces = rng.standard_normal((frames, neurons), np.float32)
            traces *= 40.0
            traces += 100.0
            recording = Recording(
                fluorescence=traces,
                timestamps_s=np.arange(frames) / RATE_HZ,
                neuron_ids=tuple(f"n{i:03d}" for i in range(neurons)),
                stimuli=schedule.table(rng),
                provenance=Provenance(origin="simulated", source="noise", subject=f"mouse-{mouse:02d}"),
                signal="corrected",
            )
            made.append(directory / f"{mouse:02d}-{name}")
            write_session(recording, made[-1])
    return made


def pooled(paths: list[Path], category: str) -> RunData:
    """Every mouse's presentations of a category, all of them."""
    sessions = [open_session(path) for path in paths]
    shown = [one for one in sessions if category in one.stimuli.category]
    return RunData.pooled([RunData.read(one, category=category, most=MostTrials()) for one in shown])


def draw(sources: RunSources) -> int:
    """Rows of a few epochs as fine-tuning draws them, at moments and then at onsets, the next one on a thread while one is in
    use.
    """
    told: dict[str, Any] = {"config": EFFORTS["paper"].finetuning, "seed": 0, "device": torch.device("cpu")}
    rows = 0
    for drawn_of in (
        partial(draw_moments, sources.moments, **told),
        partial(draw_epoch, sources.train, sources.pseudo, **told),
    ):
        with drawn_ahead(drawn_of, epochs=_EPOCHS) as drawn:
            for epoch in range(_EPOCHS):
                rows += len(drawn(epoch)[0])
    return rows


def main() -> None:
    """Make the store, index it, draw from it, and print what each stage took; with ``--json`` also write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mice", type=int, default=11, help="default %(default)s")
    parser.add_argument("--neurons", type=int, default=241, help="of a mouse (default %(default)s)")
    parser.add_argument("--sessions", nargs="+", choices=tuple(SCHEDULES), default=list(SCHEDULES))
    parser.add_argument("--directory", type=Path, help="where the store is made for the time being")
    parser.add_argument("--json", type=Path, help="file to write")
    asked = parser.parse_args()
    print(machine())
    memory = Memory()
    with computing_with(1), tempfile.TemporaryDirectory(dir=asked.directory) as directory:
        with memory.stage("store"):
            paths = make_store(Path(directory), mice=asked.mice, neurons=asked.neurons, sessions=asked.sessions)
        before = memory.stages[-1].anonymous
        held: dict[str, RunSources] = {}
        parts: dict[str, dict[str, int]] = {}
        shown = {name for one in asked.sessions for name in (block.category for block in SCHEDULES[one].blocks)}
        for category in sorted(shown - EPOCHS):
            with memory.stage(f"{category}, labels and F0"):
                data = pooled(paths, category)
            with memory.stage(f"{category}, tuning and index"):
                held[category] = data.sources(_SIGNAL_SCALE)
                del data
            parts[category] = {part.name: len(getattr(held[category], part.name)) for part in fields(RunSources)}
            print(f"{category}: {sum(parts[category].values()):,} neuron-trials", flush=True)
        after, drawn = memory.stages[-1].anonymous, 0
        with memory.stage("drawing"):
            for sources in held.values():
                drawn += draw(sources)
    trials = sum(sum(of.values()) for of in parts.values())
    most = max(stage.most_anonymous for stage in memory.stages)
    found = {
        "mice": asked.mice, "neurons": asked.neurons, "sessions": asked.sessions, "neuron_trials": trials, "parts": parts,
        "bytes_a_neuron_trial": (after - before) / trials, "most_anonymous": most,
        "most_resident": memory.stages[-1].most_resident, "rows_drawn": drawn,
        "rows_drawn_a_second": drawn / memory.stages[-1].seconds, "stages": [asdict(one) for one in memory.stages],
    }  # fmt: skip
    print(
        f"{trials:,} neuron-trials of {asked.mice} mice: {found['bytes_a_neuron_trial']:.1f} bytes each, "
        f"{(after - before) / _GB:.2f} GB together; at most {most / _GB:.2f} GB of anonymous memory, "
        f"{memory.stages[-1].most_resident / _GB:.2f} GB with pages of the traces; {drawn:,} rows drawn, "
        f"{drawn / memory.stages[-1].seconds:,.0f} a second"
    )
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
