"""Two mice of a few neurons in a trace store, and an effort of seconds, for the tests of whole studies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from small_recording import GRATING, small_recording

from quantformer.config import ModelConfig
from quantformer_training.cohort import Cohort
from quantformer_training.competitors import Budget
from quantformer_training.effort import EFFORTS
from quantformer_training.finetune import FinetuneConfig
from quantformer_training.loop import LoopConfig
from quantformer_training.reproduce.plan import Extent
from quantformer_training.run_data import MostTrials
from quantformer_training.store import open_session, write_session

_LOOP = LoopConfig(epochs=1, learning_rate=1e-3, patience=1)
_BUDGET = Budget(epochs=1, rows_per_epoch=200, patience=1, pseudo_per_real=1.0)

TINY = replace(
    EFFORTS["small"],
    preset="tiny",
    neurons=3,
    model=ModelConfig(d=16, layers=1, heads=2, codes=8),
    pretraining=_LOOP,
    pretraining_windows=64,
    pretraining_batch=32,
    finetuning=FinetuneConfig(activation=_LOOP, forecast=_LOOP, rows_per_epoch=200, validation_rows=100, pseudo_per_real=1.0),
    budget=_BUDGET,
    most=MostTrials(train=24, validation=10, test=10),
    classical_rows=300,
)  # fmt: skip

EXTENT = Extent(
    codes=(4, 8),
    widths=(16, 32),
    search_mice=1,
    subject_categories=1,
    stimulus_mice=1,
    costly_everywhere=True,
    networks_a_job=4,
)

SCENES = "natural_scenes"
#: A category of which there are too few presentations to be split.
SCARCE = "static_gratings"


def tiny_cohort(directory: Path, *, mice: int = 2, scarce: bool = False, scenes: bool = False) -> Cohort:
    """Mice ``m0``, ``m1`` ... with one session of drifting gratings each; the last one's final two presentations are of
    another category where ``scarce``, as many again where there are ``scenes`` too.
    """
    names = []
    for number in range(mice):
        # Split by time the test part of the first category would reach to the end, and leave nothing of the second.
        trials, sub_sessions = (96, 6) if scenes else (48, 0)
        recording = small_recording(neurons=3 + number % 2, seed=number, trials=trials, sub_sessions=sub_sessions)
        if scenes:
            stimuli = recording.stimuli
            recording = replace(recording, stimuli=replace(stimuli, category=(GRATING,) * 48 + (SCENES,) * 48))
        if scarce and number == mice - 1:
            stimuli = recording.stimuli
            categories = (GRATING,) * (len(stimuli) - 2) + (SCARCE,) * 2
            recording = replace(recording, stimuli=replace(stimuli, category=categories))
        provenance = replace(recording.provenance, subject=f"m{number}")
        names.append(directory / f"session-{number}")
        write_session(replace(recording, provenance=provenance), names[-1])
    return stored_cohort(names)


def stored_cohort(sessions: Iterable[Path]) -> Cohort:
    """The cohort of these sessions of a store."""
    return Cohort(sessions=tuple(open_session(path) for path in sessions), left_out={})
