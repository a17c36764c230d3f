"""What each neuron is known to do after each stimulus: a regularised regression on training trials.

The result enters the network beside the learned vectors. It is data too: a neuron that was never trained on gets its
coefficients from a few of its own trials, without a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantformer.config import TUNING_BINS
from quantformer_training.trials import Trials

#: Strengths tried for the pull of a neuron's coefficients towards the population's, in trials.
STRENGTHS = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
#: At most so hard, in trials, is a neuron's own mean pulled: few trials tell how active it is, many how it is tuned.
MEAN_STRENGTH = 1.0
FOLDS = 10

Floats = NDArray[np.float64]
#: How hard rates, and how hard traces are pulled, in trials.
Strengths = tuple[float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Tuning:
    """Coefficients ``(neurons, 10, features)``, those of the mean neuron ``(10, features)``, and the strengths of the
    pull towards them that out-of-fold error chose, of rates and of traces. The first quantity is the neuron's rate whatever the
    stimulus.
    """

    neuron: Floats
    population: Floats
    strengths: Strengths

    def of(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Expected quantities ``(n, neurons, 10)`` after stimuli with tuning features ``(n, features)``."""
        return np.asarray(np.einsum("nf,kqf->nkq", features, self.neuron), np.float32)

    def of_population(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """The mean neuron's ``(n, 10)``."""
        return np.asarray(features @ self.population.T, np.float32)


def quantities(trials: Trials, *, signal_scale: float) -> Floats:
    """What is regressed, ``(n, neurons, 9)``: the label as a grade, and binned dF/F over the signal scale.

    A rate from grades is steadier than one from labels: whether a response near the threshold reaches it is up to noise.
    """
    n, neurons, frames = trials.response.shape
    binned = (
        trials.response.reshape(n, neurons, TUNING_BINS, frames // TUNING_BINS).mean(-1, dtype=np.float64)
        / signal_scale
    )
    return np.concatenate([trials.graded[..., None], binned], axis=-1)


def fit_tuning(
    features: NDArray[np.float32],
    values: Floats,
    valid: NDArray[np.bool_],
    block: NDArray[np.int64],
    *,
    constant: NDArray[np.bool_],
    judged: NDArray[np.bool_],
) -> Tuning:
    """Regress values ``(n, neurons, q)`` on features ``(n, f)``, of which ``constant`` ``(f,)`` are a category's constant;
    ``block`` numbers the presentation of each row.

    The strengths of the pull are those with the smallest out-of-fold squared error on the rows ``judged`` (real onsets): a rate
    is spread otherwise than a trace.
    """
    counted = valid & judged[:, None]
    errors = np.zeros((len(STRENGTHS), 2))
    for out, rest in _folds(features, values, valid, block, constant=constant):
        for number, strength in enumerate(STRENGTHS):
            made = np.einsum("nf,kqf->nkq", features[out], rest.tuned.neurons(strength))
            squared = np.square(made - values[out])[counted[out]].sum(0)
            errors[number] += float(squared[0]), float(squared[1:].sum())
    rate, trace = errors.argmin(0)
    strengths = STRENGTHS[rate], STRENGTHS[trace]
    whole = _Regressed.of(features, values, valid, constant=constant)
    return Tuning(neuron=whole.neurons(strengths), population=whole.population, strengths=strengths)


def out_of_fold(
    features: NDArray[np.float32],
    values: Floats,
    valid: NDArray[np.bool_],
    block: NDArray[np.int64],
    *,
    constant: NDArray[np.bool_],
    strengths: Strengths,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What `Tuning` would say of each training row had its presentation not been fitted: neurons' and population's.

    Without this the network would learn to trust numbers that contain the answer.
    """
    width = 1 + values.shape[2]
    neuron = np.zeros((*values.shape[:2], width), np.float32)
    population = np.zeros((len(values), width), np.float32)
    for out, rest in _folds(features, values, valid, block, constant=constant):
        neuron[out] = np.einsum("nf,kqf->nkq", features[out], rest.neurons(strengths))
        population[out] = features[out] @ rest.population.T
    return neuron, population


def tune_neurons(
    features: NDArray[np.float32],
    values: Floats,
    valid: NDArray[np.bool_],
    *,
    population: Floats,
    constant: NDArray[np.bool_],
    strengths: Strengths,
) -> Floats:
    """Coefficients ``(neurons, 10, features)`` of neurons whose trials are these, pulled towards ``population``."""
    return _Regressed.around(features, values, valid, population=population, constant=constant).neurons(strengths)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Regressed:
    """Two regressions of every neuron: its rate on the constants alone, and every quantity on all features.

    A rate at one stimulus is known from a few trials, the rate over all stimuli from many; a logit wants both.
    """

    rate: _Normal
    tuned: _Normal

    @classmethod
    def of(
        cls, features: NDArray[np.float32], values: Floats, valid: NDArray[np.bool_], *, constant: NDArray[np.bool_]
    ) -> _Regressed:
        return cls(
            rate=_Normal.of(features * constant, values[..., :1], valid, constant=constant),
            tuned=_Normal.of(features, values, valid, constant=constant),
        )

    @classmethod
    def around(
        cls,
        features: NDArray[np.float32],
        values: Floats,
        valid: NDArray[np.bool_],
        *,
        population: Floats,
        constant: NDArray[np.bool_],
    ) -> _Regressed:
        rate = _Normal.around(
            features * constant, values[..., :1], valid, population=population[:1], constant=constant
        )
        return cls(
            rate=rate, tuned=_Normal.around(features, values, valid, population=population[1:], constant=constant)
        )

    @property
    def population(self) -> Floats:
        return np.concatenate([self.rate.population, self.tuned.population])

    def neurons(self, strengths: Strengths) -> Floats:
        rate, trace = strengths
        tuned = [self.tuned.neurons(rate)[:, :1], self.tuned.neurons(trace)[:, 1:]]
        return np.concatenate([self.rate.neurons(rate), *tuned], axis=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Normal:
    """Normal equations of every neuron's ridge regression on what the population leaves; neurons that are valid in the same
    rows share their Gram matrix: ``gram`` ``(patterns, f, f)``, ``pattern`` ``(neurons,)``, ``moment`` ``(neurons, f, q)``.
    """

    population: Floats
    gram: Floats
    pattern: NDArray[np.intp]
    moment: Floats
    constant: NDArray[np.bool_]

    @classmethod
    def of(
        cls, features: NDArray[np.float32], values: Floats, valid: NDArray[np.bool_], *, constant: NDArray[np.bool_]
    ) -> _Normal:
        """Population by ridge on the mean over neurons."""
        x = features.astype(np.float64)
        weight = valid.astype(np.float64)
        count = weight.sum(1)
        mean = np.einsum("nkq,nk->nq", values, weight) / np.maximum(count, 1.0)[:, None]
        seen = (count > 0).astype(np.float64)
        gram = (x * seen[:, None]).T @ x + 0.5 * np.eye(x.shape[1])
        population = np.linalg.solve(gram, (x * seen[:, None]).T @ mean).T
        return cls.around(features, values, valid, population=population, constant=constant)

    @classmethod
    def around(
        cls,
        features: NDArray[np.float32],
        values: Floats,
        valid: NDArray[np.bool_],
        *,
        population: Floats,
        constant: NDArray[np.bool_],
    ) -> _Normal:
        """About a population that is given."""
        x = features.astype(np.float64)
        residual = np.where(valid[..., None], values - (x @ population.T)[:, None], 0.0)
        patterns, pattern = np.unique(valid.T, axis=0, return_inverse=True)
        gram = np.stack([x[rows].T @ x[rows] for rows in patterns])
        moment = np.tensordot(residual, x, axes=(0, 0)).transpose(0, 2, 1)
        return cls(population=population, gram=gram, pattern=pattern.reshape(-1), moment=moment, constant=constant)

    def neurons(self, strength: float) -> Floats:
        """Coefficients ``(neurons, q, f)`` at a strength of the pull."""
        made = np.empty_like(self.moment)
        pull = np.diag(np.where(self.constant, min(strength, MEAN_STRENGTH), strength))
        for number, gram in enumerate(self.gram):
            here = self.pattern == number
            right = self.moment[here]
            solved = np.linalg.solve(gram + pull, right.transpose(1, 0, 2).reshape(len(gram), -1))
            made[here] = solved.reshape(len(gram), len(right), -1).transpose(1, 0, 2)
        tuned: Floats = self.population + made.transpose(0, 2, 1)
        return tuned


def _folds(
    features: NDArray[np.float32],
    values: Floats,
    valid: NDArray[np.bool_],
    block: NDArray[np.int64],
    *,
    constant: NDArray[np.bool_],
) -> Iterator[tuple[NDArray[np.bool_], _Regressed]]:
    """Rows left out, and the regressions on the others, fold by fold; a presentation's rows are left out together."""
    blocks, which = np.unique(block, return_inverse=True)
    fold = which.reshape(-1) % min(FOLDS, len(blocks))
    for number in range(int(fold.max()) + 1):
        out = fold == number
        yield out, _Regressed.of(features[~out], values[~out], valid[~out], constant=constant)
