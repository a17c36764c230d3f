"""What the demo trains on, and which held-out part of it is streamed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantformer.errors import RecordingError
from quantformer.recording import Recording
from quantformer.signal import SignalRecipe, onset_frames
from quantformer_training.readers import open_recording
from quantformer_training.simulated import MouseConfig, short_session
from quantformer_training.splits import Split, split_by_sub_session, split_by_time
from quantformer_training.trials import EPOCHS

#: Neurons of the simulated mouse, and presentations in each of its three sub-sessions.
NEURONS, PRESENTATIONS = 40, 82
#: The same for the smoke run, whose only purpose is to take every step once.
SMOKE_NEURONS, SMOKE_PRESENTATIONS = 12, 24
#: Seconds of the simulated recording that are streamed in real time, so that the whole demo stays under 4 minutes.
REAL_TIME_S = 72.0
#: Share of the presentations of a recording without sub-sessions that train: 53 of 80.
TRAIN_SHARE = 53 / 80


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """``recording``, how it is split, the frames ``[start, stop)`` that are streamed, and in words what was chosen."""

    recording: Recording
    split: Split
    start: int
    stop: int
    data: str
    chosen: str

    def onset_frames(self) -> NDArray[np.int64]:
        """Onset frame of every presentation."""
        return onset_frames(self.recording.timestamps_s, self.recording.stimuli.onset_s)


def simulated_plan(*, seed: int, fast: bool, smoke: bool) -> Plan:
    """A simulated mouse: two sub-sessions train, the third is held out; in real time its first part is streamed."""
    neurons, presentations = (SMOKE_NEURONS, SMOKE_PRESENTATIONS) if smoke else (NEURONS, PRESENTATIONS)
    # The smoke mouse is more active, so that its few trials hold both classes.
    mouse = MouseConfig(neurons=neurons, seed=seed, active_fraction=0.2 if smoke else MouseConfig.active_fraction)
    recording = short_session(mouse, presentations=presentations).recording
    plan = _by_sub_session(recording, data=f"simulated mouse, {neurons} neurons, seed {seed}")
    if fast:
        return plan
    wanted = plan.start + round(REAL_TIME_S * recording.rate_hz)
    return _shortened(plan, wanted) if wanted < plan.stop else plan


def recording_plan(path: Path) -> Plan:
    """A recording from a file. Three sub-sessions of a category: the third is streamed; else the last third by time.

    Raises:
        RecordingError: it cannot be read, has too few presentations, or no stimuli.
    """
    recording = open_recording(path)
    if not len(recording.stimuli):
        raise RecordingError(f"{path} has no stimuli; the demo forecasts what follows a stimulus, so it needs a stimulus table")
    data = f"{recording.provenance.origin} recording {path.name}, {recording.neurons} neurons"
    category = _category_in_thirds(recording)
    if category is not None:
        return _by_sub_session(recording, data=data, category=category)
    presentations = len(recording.stimuli)
    train = round(TRAIN_SHARE * presentations)
    split = split_by_time(recording, recipe=SignalRecipe(), train_trials=train)
    ((start, stop),) = split.test
    return Plan(
        recording=recording,
        split=split,
        start=start,
        stop=stop,
        data=data,
        chosen=f"presentations 1-{train} train (the last 30 % of them validate), {train + 1}-{presentations} are held out",
    )


def _category_in_thirds(recording: Recording) -> str | None:
    """The first category with three sub-sessions; None where there is none."""
    table = recording.stimuli
    for name in dict.fromkeys(table.category):
        rows = np.array([category == name for category in table.category])
        if name not in EPOCHS and len(set(table.sub_session[rows].tolist()) - {-1}) >= 3:
            return name
    return None


def _by_sub_session(recording: Recording, *, data: str, category: str = "drifting_gratings") -> Plan:
    split = split_by_sub_session(recording, recipe=SignalRecipe(), category=category)
    ((start, stop),) = split.test
    return Plan(
        recording=recording,
        split=split,
        start=start,
        stop=stop,
        data=data,
        chosen=f"of three sub-sessions of {category} the first two train (the last 30 % of the second validates), the third "
        "is held out",
    )


def _shortened(plan: Plan, wanted: int) -> Plan:
    """Stop after the whole response to the last onset before frame ``wanted``."""
    recipe, onset = SignalRecipe(), plan.onset_frames()
    fitting = onset[(onset >= plan.start) & (onset + recipe.response_frames <= wanted)]
    stop = int(fitting[-1]) + recipe.response_frames
    seconds = (stop - plan.start) / plan.recording.rate_hz
    return Plan(
        recording=plan.recording,
        split=plan.split,
        start=plan.start,
        stop=stop,
        data=plan.data,
        chosen=f"{plan.chosen}; its first {seconds:.0f} s are streamed in real time, all of it is scored",
    )
