"""Neuron-trials as tensors: one row a neuron and a moment, with random lead and gaps where training asks for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantformer.forecaster import CLIP
from quantformer.population_level import joined_level
from quantformer.signal import SignalRecipe, f0_level
from quantformer.tokens import UNKNOWN
from quantformer.vocabulary import StimulusRecipe
from quantformer_training.trials import Moments, TrialReader, Trials

#: Longest number of last frames withheld in training.
LONGEST_LEAD = 10
#: Share of the training rows from whose end nothing is withheld; the other leads have equal shares of the rest.
NO_LEAD = 0.4


@dataclass(frozen=True, kw_only=True, eq=False)
class Vocabulary:
    """Which row each neuron and each stimulus id has, and how stimuli are encoded."""

    neuron_ids: tuple[str, ...]
    stimulus_ids: tuple[str, ...]
    recipe: StimulusRecipe

    def id_rows(self, moments: Moments) -> NDArray[np.int64]:
        """Row of each moment's stimulus id; -1 where it has none of its own."""
        row_of = {name: row for row, name in enumerate(self.stimulus_ids)}
        return np.array([row_of.get(name, UNKNOWN) for name in moments.stimulus_id], np.int64)

    def tuning_features(self, moments: Moments) -> NDArray[np.float32]:
        """What a neuron's tuning is linear in, ``(n, tuning features)``."""
        return self.recipe.tuning_features(
            self.encoded(moments), id_row=self.id_rows(moments), ids=len(self.stimulus_ids)
        )

    @property
    def tuning_constants(self) -> NDArray[np.bool_]:
        """Which of the tuning features are a category's constant."""
        return self.recipe.tuning_constants(ids=len(self.stimulus_ids))

    def encoded(self, moments: Moments) -> NDArray[np.float32]:
        """Features ``(n, width)`` of each moment's stimulus."""
        if not len(moments):
            return np.zeros((0, self.recipe.width), np.float32)
        pairs = zip(moments.category, moments.features, strict=True)
        return np.stack([self.recipe.encode(category=category, features=features) for category, features in pairs])


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Rows for the networks. ``baseline`` ``[B, 96]`` and ``trace`` ``[B, 160]`` (baseline without lead or gaps, and
    response) are dF/F over the signal scale; ``response`` ``[B, 64]`` is dF/F; ``level`` ``[B, 4]`` is `f0_level` of the
    baseline as given, zero for an unknown neuron, and the population's level; ``tuning`` ``[B, 10]`` is what is known of the
    neuron and stimulus, ``population_tuning`` of the mean neuron; ``moment`` indexes the trials' moments.
    """

    baseline: Tensor
    trace: Tensor
    response: Tensor
    active: Tensor
    neuron: Tensor
    features: Tensor
    stimulus: Tensor
    level: Tensor
    tuning: Tensor
    population_tuning: Tensor
    moment: Tensor

    def select(self, rows: Tensor) -> Examples:
        """The rows at an index."""
        return Examples(**{name: tensor[rows] for name, tensor in vars(self).items()})

    @classmethod
    def joined(cls, parts: list[Examples]) -> Examples:
        """All rows of several sources."""
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])})

    def to(self, device: torch.device) -> Examples:
        """The same rows on a device; themselves where they are there."""
        if device.type == "cuda" and not self.active.is_cuda:
            # Copied from pinned memory: many times faster, and the thread that asks does not wait for it.
            made = {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in vars(self).items()}
            return Examples(**made)
        return Examples(**{name: tensor.to(device) for name, tensor in vars(self).items()})

    def __len__(self) -> int:
        return len(self.active)


class ExampleSource:
    """Examples of the trials of one recording; a reader, its trials and the vocabulary, kept together.

    ``tuning`` is ``(n, neurons, 10)`` and ``(n, 10)``: out of fold for trials that the tuning was fitted on. Unless ``withheld``
    nothing is missing from the baselines that are drawn.
    """

    def __init__(
        self,
        reader: TrialReader,
        trials: Trials,
        *,
        vocabulary: Vocabulary,
        signal_scale: float,
        tuning: tuple[NDArray[np.float32], NDArray[np.float32]],
        withheld: bool = True,
    ) -> None:
        self.reader, self.trials, self.signal_scale, self.withheld = reader, trials, signal_scale, withheld
        self.tuning, self.population_tuning = tuning
        row_of = {name: row for row, name in enumerate(vocabulary.neuron_ids)}
        self.neuron = np.array([row_of.get(name, UNKNOWN) for name in reader.recording.neuron_ids], np.int64)
        self.features = vocabulary.encoded(trials.moments)
        self.stimulus = vocabulary.id_rows(trials.moments)

    def __len__(self) -> int:
        return int(self.trials.valid.sum())

    def at_lead(self, lead: int, *, most: int | None = None) -> Examples:
        """Every valid row, or an even choice of ``most``, with the last ``lead`` frames withheld; no randomness."""
        frames = self.reader.recipe.baseline_frames
        missing = np.zeros(frames, bool)
        missing[frames - lead :] = True
        rows = self._examples(np.arange(len(self.trials.moments)), [missing] * len(self.trials.moments))
        return rows if most is None else rows.select(torch.from_numpy(even(len(rows), most)))

    def draw(self, count: int, rng: np.random.Generator) -> Examples:
        """About ``count`` rows of random moments, every neuron of each: at least one moment, at most all of them."""
        known = len(self.trials.moments)
        wanted = min(known, max(1, round(count / len(self.neuron))))
        return self.random(rng.choice(known, wanted, replace=False), rng)

    def random(self, index: NDArray[np.intp], rng: np.random.Generator) -> Examples:
        """The moments at ``index``, each with a random lead and, three times in ten, random gaps, where frames are withheld."""
        nothing = np.zeros(self.reader.recipe.baseline_frames, bool)
        return self._examples(
            index, [random_missing(self.reader.recipe, rng) if self.withheld else nothing for _ in index]
        )

    def _examples(self, index: NDArray[np.intp], missing: list[NDArray[np.bool_]]) -> Examples:
        trials, neurons = self.trials, len(self.neuron)
        baseline = np.empty((len(index), neurons, self.reader.recipe.baseline_frames), np.float32)
        f0, valid = trials.f0[index].copy(), trials.valid[index].copy()
        population = trials.population[index].copy()
        for row, (i, gaps) in enumerate(zip(index, missing, strict=True)):
            if gaps.any():
                f0[row], usable = self.reader.write(trials.moments, int(i), out=baseline[row], missing=gaps)
                valid[row] &= usable
                population[row] = self.reader.level(trials.moments, int(i), missing=gaps)
            else:
                baseline[row] = trials.baseline[i]
        moment, neuron = np.nonzero(valid)
        trial = index[moment]
        scale = np.float32(self.signal_scale)
        # A neuron that the network does not know is told no level, as in serving.
        usual = np.where(self.neuron == UNKNOWN, 0.0, self.reader.usual_f0)
        whole = np.concatenate([trials.baseline[trial, neuron], trials.response[trial, neuron]], axis=1)
        return Examples(
            baseline=torch.from_numpy(baseline[moment, neuron] / scale).clamp(-CLIP, CLIP),
            trace=torch.from_numpy(whole / scale).clamp(-CLIP, CLIP),
            response=torch.from_numpy(trials.response[trial, neuron]),
            active=torch.from_numpy(trials.active[trial, neuron]),
            neuron=torch.from_numpy(self.neuron[neuron]),
            features=torch.from_numpy(self.features[trial]),
            stimulus=torch.from_numpy(self.stimulus[trial]),
            level=torch.from_numpy(joined_level(f0_level(f0[moment, neuron], usual[neuron]), population[moment])),
            tuning=torch.from_numpy(self.tuning[trial, neuron]),
            population_tuning=torch.from_numpy(self.population_tuning[trial]),
            moment=torch.from_numpy(trial),
        )


def even(rows: int, most: int | None) -> NDArray[np.int64]:
    """All of ``rows`` indices, or ``most`` of them spread evenly."""
    if most is None or most >= rows:
        return np.arange(rows)
    return np.linspace(0, rows - 1, most).round().astype(np.int64)


def lead_of(missing: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many frames at the end of baselines ``(n, 96)`` are missing, at most `LONGEST_LEAD`: a gap may touch a lead."""
    lead: NDArray[np.int64] = np.cumprod(missing[:, ::-1][:, :LONGEST_LEAD], axis=1).sum(axis=1)
    return lead


def random_missing(recipe: SignalRecipe, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Frames of a baseline to withhold: a lead of 0 to 10, four times in ten none, and, three times in ten, single losses or
    one short gap.

    The first frame is never missing: a stream fills a gap from what came before it.
    """
    missing = np.zeros(recipe.baseline_frames, bool)
    # A question "now" has no lead, and the last frames tell most: trained on all leads alike, a network hardly reads them.
    lead = 0 if rng.random() < NO_LEAD else int(rng.integers(1, LONGEST_LEAD + 1))
    missing[recipe.baseline_frames - lead :] = True
    if rng.random() < 0.3:
        if rng.random() < 0.5:
            missing |= rng.random(recipe.baseline_frames) < 0.02
        else:
            start = int(rng.integers(1, recipe.baseline_frames))
            missing[start : start + int(rng.integers(1, 9))] = True
    missing[0] = False
    return missing
