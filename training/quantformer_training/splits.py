"""Which frames of a recording may be learned from, chosen on, and tested on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantformer.errors import RecordingError
from quantformer.signal import SignalRecipe, onset_frames
from quantformer_training.store import Traced

PARTS = ("train", "validation", "test")
#: Share of the training trials, the last ones, on which every choice is made.
VALIDATION_SHARE = 0.3


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Frame spans ``[start, stop)`` a part. Windows lie wholly inside one span, so no frame serves two parts."""

    train: tuple[tuple[int, int], ...]
    validation: tuple[tuple[int, int], ...]
    test: tuple[tuple[int, int], ...]

    def spans(self, part: str) -> tuple[tuple[int, int], ...]:
        """The spans of ``train``, ``validation`` or ``test``."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[part]

    def inside(self, part: str, start: NDArray[np.int64], stop: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which windows ``[start, stop)`` lie wholly inside one span of a part."""
        within = np.zeros(len(start), bool)
        for low, high in self.spans(part):
            within |= (start >= low) & (stop <= high)
        return within

    def merged(self) -> Split:
        """Train and validation together as train, for a last fit whose length validation has already chosen."""
        return Split(train=(*self.train, *self.validation), validation=self.validation, test=self.test)


def split_by_sub_session(recording: Traced, *, recipe: SignalRecipe, category: str) -> Split:
    """The paper's split: of a category's three sub-sessions the first two train, the third tests; validation is the
    last 30 % of the second. A part ends where the next begins, so windows that reach across are dropped.

    Raises:
        RecordingError: the category has fewer than three sub-sessions, or they are not numbered in order of time.
    """
    chosen = np.array([name == category for name in recording.stimuli.category])
    sub = recording.stimuli.sub_session[chosen]
    found = sorted(set(sub.tolist()) - {-1})
    if len(found) < 3:
        raise RecordingError(
            f"{recording.provenance.source}: category {category!r} has {len(found)} sub-sessions, the split needs three; "
            "use the chronological split"
        )
    frame = onset_frames(recording.timestamps_s, recording.stimuli.onset_s[chosen])
    first, second, third = (frame[sub == number] for number in found[:3])
    if first[-1] >= second[0] or second[-1] >= third[0]:
        raise RecordingError(
            f"{recording.provenance.source}: the sub-sessions of {category!r} overlap in time or are not numbered in order; "
            "number them in order, or use the chronological split"
        )
    middle = _start(second, recipe)
    cut = max(int(second[int(len(second) * (1 - VALIDATION_SHARE))]) - recipe.baseline_frames, middle)
    late = _start(third, recipe)
    return Split(
        train=((_start(first, recipe), min(_stop(first, recording, recipe), cut)), (middle, cut)),
        validation=((cut, min(_stop(second, recording, recipe), late)),),
        test=((late, _stop(third, recording, recipe)),),
    )


def split_by_time(
    recording: Traced, *, recipe: SignalRecipe, train_trials: int, test_trials: int | None = None
) -> Split:
    """Chronological: the first ``train_trials`` presentations train (the last 30 % of them validate), the following
    ``test_trials`` (all, where not given) test.

    Raises:
        RecordingError: there are not enough presentations.
    """
    frame = onset_frames(recording.timestamps_s, recording.stimuli.onset_s)
    if not 4 <= train_trials < len(frame):
        raise RecordingError(
            f"{recording.provenance.source} has {len(frame)} presentations; {train_trials} for training leaves none to "
            "test on or is fewer than 4"
        )
    cut = max(int(frame[int(train_trials * (1 - VALIDATION_SHARE))]) - recipe.baseline_frames, 0)
    end = max(int(frame[train_trials]) - recipe.baseline_frames, cut)
    last = train_trials + test_trials if test_trials is not None else len(frame)
    stop = max(int(frame[last]) - recipe.baseline_frames, end) if last < len(frame) else recording.frames
    return Split(train=((0, cut),), validation=((cut, end),), test=((end, stop),))


def _start(frame: NDArray[np.int64], recipe: SignalRecipe) -> int:
    return max(int(frame[0]) - recipe.baseline_frames, 0)


def _stop(frame: NDArray[np.int64], recording: Traced, recipe: SignalRecipe) -> int:
    return min(int(frame[-1]) + recipe.response_frames, recording.frames)
