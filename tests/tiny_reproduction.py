"""A program that makes runs which take long, a line for each job that ends; for the tests of how it is ended."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from small_recording import GRATING
from tiny_study import EXTENT, TINY, stored_cohort

from quantformer_training.reproduce.execute import Execution
from quantformer_training.reproduce.plan import PlannedContest, Pretraining

if __name__ == "__main__":
    out, processes = Path(sys.argv[1]), int(sys.argv[2])
    recordings = out / "recordings"
    long = replace(TINY.finetuning.activation, epochs=10_000, patience=10_000)
    effort = replace(TINY, finetuning=replace(TINY.finetuning, activation=long, forecast=long))
    contests = [
        PlannedContest(
            group="models", mouse=mouse, category=GRATING, models=("quantformer",), pretraining=Pretraining(effort=effort)
        )
        for mouse in ("m0", "m1")
    ]
    execution = Execution(
        cohort=stored_cohort(sorted(recordings.iterdir())), recordings=recordings, out=out, extent=EXTENT, seed=0,
        processes=processes,
    )  # fmt: skip
    try:
        execution.run(contests, report=lambda step: print(step.name, flush=True))
    except KeyboardInterrupt:
        sys.exit(130)
