"""Trials: windows of a recording around moments, real onsets and pseudo-onsets alike."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantformer.config import POPULATION_LEVELS
from quantformer.errors import RecordingError
from quantformer.labels import LABEL_FRAMES, OTHER_LABEL_FRAMES, LabelRule, evoked_area, graded, label_frames, score
from quantformer.population_level import recent_fluorescence
from quantformer.signal import (
    SignalRecipe,
    hold_missing,
    needs_interpolation,
    onset_frames,
    window_on_grid,
    write_baseline,
)
from quantformer.vocabulary import NOTHING, ONGOING
from quantformer_training.components import population_level
from quantformer_training.splits import Split
from quantformer_training.store import Traced

#: A window whose F0 is below this share of the neuron's median training fluorescence is rejected.
F0_FLOOR = 0.1
#: Categories that are epochs rather than presentations: nothing begins in them.
EPOCHS = frozenset({"spontaneous"})
#: Pseudo-onsets keep this many frames from the presentation's true onset.
PSEUDO_DISTANCE = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Onset frames at which a question is asked, with what is known of each.

    ``frame`` int64 ``(n,)``; ``trial`` int64 ``(n,)`` is the row of the stimulus table it belongs to (-1: none);
    ``pseudo`` bool ``(n,)`` marks moments at which nothing begins.
    """

    frame: NDArray[np.int64]
    trial: NDArray[np.int64]
    pseudo: NDArray[np.bool_]
    category: tuple[str, ...]
    stimulus_id: tuple[str, ...]
    features: tuple[Mapping[str, float], ...]

    def __len__(self) -> int:
        return len(self.frame)

    def select(self, index: NDArray[np.intp]) -> Moments:
        """The moments at ``index``."""
        return Moments(
            frame=self.frame[index],
            trial=self.trial[index],
            pseudo=self.pseudo[index],
            category=tuple(self.category[i] for i in index),
            stimulus_id=tuple(self.stimulus_id[i] for i in index),
            features=tuple(self.features[i] for i in index),
        )

    @classmethod
    def joined(cls, parts: Sequence[Moments]) -> Moments:
        """All moments of several sets, in order."""
        return cls(
            frame=np.concatenate([part.frame for part in parts]),
            trial=np.concatenate([part.trial for part in parts]),
            pseudo=np.concatenate([part.pseudo for part in parts]),
            category=tuple(name for part in parts for name in part.category),
            stimulus_id=tuple(name for part in parts for name in part.stimulus_id),
            features=tuple(features for part in parts for features in part.features),
        )

    def labels(self) -> NDArray[np.int64]:
        """A number for each stimulus id ``(n,)`` that depends on the name alone, so that any two sets agree."""
        digests = [hashlib.blake2b(name.encode(), digest_size=7).digest() for name in self.stimulus_id]
        return np.array([int.from_bytes(digest, "big") for digest in digests], np.int64)


def real_moments(recording: Traced) -> Moments:
    """One moment a presentation; epochs (spontaneous activity) have none."""
    table = recording.stimuli
    keep = np.flatnonzero([name not in EPOCHS for name in table.category])
    frame = onset_frames(recording.timestamps_s, table.onset_s[keep])
    return Moments(
        frame=frame,
        trial=keep.astype(np.int64),
        pseudo=np.zeros(len(keep), bool),
        category=tuple(table.category[i] for i in keep),
        stimulus_id=tuple(table.stimulus_id[i] for i in keep),
        features=tuple(table.features_of(int(i)) for i in keep),
    )


def pseudo_moments(recording: Traced, frames: NDArray[np.int64], *, recipe: SignalRecipe) -> Moments:
    """Moments at those of ``frames`` where nothing begins: no onset in ``(f - 16, f + 64)``.

    Inside a presentation category and id are ``ongoing:`` and the presentation's, with its features; elsewhere both
    are ``nothing``.
    """
    real = real_moments(recording)
    end_s = recording.stimuli.onset_s + recording.stimuli.duration_s
    chosen, trials, categories, ids, features = [], [], [], [], []
    for frame in np.asarray(frames, dtype=np.int64):
        near = np.searchsorted(real.frame, [frame - PSEUDO_DISTANCE + 1, frame + recipe.response_frames])
        if near[1] > near[0]:
            continue
        before = int(np.searchsorted(real.frame, frame, side="right")) - 1
        trial = int(real.trial[before]) if before >= 0 else -1
        blank = before >= 0 and real.features[before].get("blank", 0.0) == 1.0
        ongoing = trial >= 0 and recording.timestamps_s[frame] < end_s[trial] and not blank
        chosen.append(frame)
        trials.append(trial)
        categories.append(ONGOING + real.category[before] if ongoing else NOTHING)
        ids.append(ONGOING + real.stimulus_id[before] if ongoing else NOTHING)
        features.append(real.features[before] if ongoing else {})
    return Moments(
        frame=np.array(chosen, np.int64),
        trial=np.array(trials, np.int64),
        pseudo=np.ones(len(chosen), bool),
        category=tuple(categories),
        stimulus_id=tuple(ids),
        features=tuple(features),
    )


def nearest(presentations: Moments, frames: NDArray[np.int64]) -> NDArray[np.intp]:
    """Index ``(n,)`` of the presentation, of some in order of time, whose onset is nearest to each of ``frames``."""
    halfway = (presentations.frame[1:] + presentations.frame[:-1]) / 2.0
    return np.searchsorted(halfway, frames)


def moments_of(presentations: Moments, frames: NDArray[np.int64]) -> Moments:
    """A moment at each of ``frames``, whatever is shown then; of the presentation whose onset is nearest.

    A pseudo-onset but for what may begin near it: what happened after it is known, and the stimulus is not to be told. None
    where there is no presentation.
    """
    frames = frames if len(presentations) else frames[:0]
    moments = presentations.select(nearest(presentations, frames))
    return replace(moments, frame=np.asarray(frames, np.int64), pseudo=np.ones(len(frames), bool))


@dataclass(frozen=True, kw_only=True, eq=False)
class Trials:
    """Windows of one recording at moments, all neurons: what training, validation and tests read.

    ``baseline`` dF/F float32 ``(n, neurons, 96)`` and ``response`` dF/F ``(n, neurons, 64)``, both over the F0 of the
    full baseline; ``f0`` float64, ``valid`` and ``active`` bool, and ``graded`` float64 (`labels.graded`) ``(n, neurons)``;
    ``population`` float32 ``(n, POPULATION_LEVELS)`` is the population's level at each moment;
    ``rejected`` counts what was left out by reason (neuron windows, except *window outside the part*, which counts moments).
    """

    moments: Moments
    baseline: NDArray[np.float32]
    response: NDArray[np.float32]
    f0: NDArray[np.float64]
    valid: NDArray[np.bool_]
    active: NDArray[np.bool_]
    graded: NDArray[np.float64]
    population: NDArray[np.float32]
    rejected: Mapping[str, int]

    def select(self, index: NDArray[np.intp]) -> Trials:
        """The trials at an index; what was rejected is still that of all of them."""
        arrays: dict[str, Any] = {name: one[index] for name, one in vars(self).items() if isinstance(one, np.ndarray)}
        return replace(self, moments=self.moments.select(index), **arrays)


class TrialReader:
    """Cuts trials out of one recording; the same guards and label for every part of it.

    ``usual_f0`` ``(neurons,)`` is each neuron's median fluorescence in training (0 where it was never seen), and
    ``f0_minimum`` the share of it below which a window is rejected; ``population`` is how the level of all neurons is told.

    Raises:
        RecordingError: the training part has no frame, or the label needs pseudo-onsets and training has none.
        SignalError: the recording is slower than 15 Hz.
    """

    def __init__(self, recording: Traced, *, split: Split, recipe: SignalRecipe, rule: LabelRule) -> None:
        self.recording, self.split, self.recipe, self.rule = recording, split, recipe, rule
        self.trace = recording.corrected()
        self.interpolated = needs_interpolation(recording.rate_hz)
        spans = [self.trace[low:high] for low, high in split.train if high > low]
        if not spans:
            raise RecordingError(
                f"{recording.provenance.source}: the training part holds no frame; give it more presentations"
            )
        training = np.concatenate(spans)
        # A neuron that was never seen in training has no floor but zero.
        seen = np.isfinite(training).any(axis=0)
        self.usual_f0 = np.zeros(recording.neurons)
        self.usual_f0[seen] = np.maximum(np.nanmedian(training[:, seen], axis=0), 0.0)
        self.f0_minimum = F0_FLOOR * self.usual_f0
        self.population = population_level(
            self.trace, spans=split.train, usual_f0=self.usual_f0, rate_hz=recording.rate_hz
        )
        self._pseudo: dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
        if rule.definition == "evoked":
            self._pseudo = self._pseudo_distributions()

    def read(self, moments: Moments, *, part: str) -> Trials:
        """Trials at those moments whose whole window lies in ``part``."""
        recipe = self.recipe
        inside = self.split.inside(part, *self._reach(moments.frame))
        moments = moments.select(np.flatnonzero(inside))
        n, neurons = len(moments), self.recording.neurons
        baseline = np.zeros((n, neurons, recipe.baseline_frames), np.float32)
        response = np.zeros((n, neurons, recipe.response_frames), np.float32)
        f0, valid = np.zeros((n, neurons)), np.zeros((n, neurons), bool)
        for i in range(n):
            f0[i], valid[i] = self.write(moments, i, out=baseline[i])
            # In the same float32 arithmetic as the baseline.
            divisor = np.where(valid[i], f0[i], 1.0).astype(np.float32)
            response[i] = (self._after(moments, i) / divisor - np.float32(1.0)).T
        whole = np.isfinite(response).all(-1)
        rejected = {
            "window outside the part": int((~inside).sum()),
            "F0 at or below its minimum, or baseline not finite": int((~valid).sum()),
            "response not finite": int((valid & ~whole).sum()),
        }
        valid &= whole
        response[~valid] = 0.0
        scores = self._scores(moments, baseline, response)
        return Trials(
            moments=moments,
            baseline=baseline,
            response=response,
            f0=f0,
            valid=valid,
            active=(scores >= self.rule.bar) & valid,
            graded=graded(self.rule, scores),
            population=self.levels(moments, leads=1)[:, 0],
            rejected=rejected,
        )

    def write(
        self, moments: Moments, i: int, *, out: NDArray[np.float32], missing: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Write the baseline of one moment, ``missing`` frames (bool ``(96,)``) held and kept out of F0."""
        window = self._before(moments, i)
        observed = None
        if missing is not None and missing.any():
            observed = ~missing
            window = hold_missing(window, observed)
        return write_baseline(window, recipe=self.recipe, out=out, f0_minimum=self.f0_minimum, observed=observed)

    def level(self, moments: Moments, i: int, *, missing: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """The population's level ``(POPULATION_LEVELS,)`` at one moment, ``missing`` frames (bool ``(96,)``) not read."""
        return self.population.of(self._before(moments, i), observed=None if missing is None else ~missing)

    def levels(self, moments: Moments, *, leads: int) -> NDArray[np.float32]:
        """At each moment with its last 0 to ``leads`` - 1 frames withheld, ``(n, leads, POPULATION_LEVELS)``."""
        made = np.zeros((len(moments), leads, POPULATION_LEVELS), np.float32)
        for i in range(len(moments)):
            window = self._before(moments, i)
            made[i] = self.population.of_recent(
                np.stack([recent_fluorescence(window[: len(window) - lead]) for lead in range(leads)])
            )
        return made

    def _reach(self, frame: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First frame that a window reads, and the one after the last; beyond the recording where it does not suffice."""
        recipe, stamps = self.recipe, self.recording.timestamps_s
        if not self.interpolated:
            return frame - recipe.baseline_frames, frame + recipe.response_frames
        onset = stamps[np.minimum(frame, len(stamps) - 1)]
        first = onset - recipe.baseline_frames / recipe.rate_hz
        last = onset + (recipe.response_frames - 1) / recipe.rate_hz
        start = np.searchsorted(stamps, first, side="right") - 1
        stop = np.searchsorted(stamps, last, side="left") + 1
        stop[frame >= len(stamps)] = len(stamps) + 1
        return start.astype(np.int64), stop.astype(np.int64)

    def _before(self, moments: Moments, i: int) -> NDArray[np.float32]:
        frame = int(moments.frame[i])
        if not self.interpolated:
            return self.trace[frame - self.recipe.baseline_frames : frame]
        near = slice(int(self._reach(moments.frame[i : i + 1])[0][0]), frame)
        return window_on_grid(
            self.trace[near],
            timestamps_s=self.recording.timestamps_s[near],
            onset_s=float(self.recording.timestamps_s[frame]),
            recipe=self.recipe,
        )

    def _after(self, moments: Moments, i: int) -> NDArray[np.float32]:
        frame = int(moments.frame[i])
        if not self.interpolated:
            return self.trace[frame : frame + self.recipe.response_frames]
        stamps = self.recording.timestamps_s
        grid = stamps[frame] + np.arange(self.recipe.response_frames) / self.recipe.rate_hz
        right = np.clip(np.searchsorted(stamps, grid), 1, len(stamps) - 1)
        weight = (grid - stamps[right - 1]) / (stamps[right] - stamps[right - 1])
        weight = np.clip(weight, 0.0, 1.0).astype(np.float32)[:, None]
        after: NDArray[np.float32] = self.trace[right - 1] * (1 - weight) + self.trace[right] * weight
        return after

    def _scores(
        self, moments: Moments, baseline: NDArray[np.float32], response: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        scores = np.zeros(response.shape[:2])
        for name in set(moments.category):
            rows = np.array([category == name for category in moments.category])
            frames = label_frames(name.removeprefix(ONGOING))
            mean, sd = self._pseudo.get(frames, (0.0, 1.0))
            scores[rows] = score(
                self.rule,
                baseline=baseline[rows],
                response=response[rows],
                frames=frames,
                pseudo_mean=mean,
                pseudo_sd=sd,
            )
        return scores

    def _pseudo_distributions(self) -> dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Mean and standard deviation a neuron of the evoked area at training pseudo-onsets, one every 30 frames, for
        each length of label. A neuron that no pseudo-onset could measure is never active.
        """
        frames = np.concatenate([np.arange(low, high, 30) for low, high in self.split.train])
        trials = self.read(pseudo_moments(self.recording, frames, recipe=self.recipe), part="train")
        if not trials.valid.any():
            raise RecordingError(
                f"{self.recording.provenance.source}: the training part has no usable pseudo-onset, without which the label "
                "'evoked' is undefined; use 'signed', or record more time without stimuli"
            )
        measured = trials.valid.sum(0)
        count = np.maximum(measured, 1)
        found = {}
        for length in {*LABEL_FRAMES.values(), OTHER_LABEL_FRAMES}:
            area = evoked_area(trials.baseline, trials.response, frames=length, decay_frames=self.rule.decay_frames)
            mean = np.where(trials.valid, area, 0.0).sum(0) / count
            sd = np.sqrt(np.square(np.where(trials.valid, area - mean, 0.0)).sum(0) / count)
            found[length] = mean, np.where(measured > 0, np.maximum(sd, 1e-9), np.inf)
        return found
