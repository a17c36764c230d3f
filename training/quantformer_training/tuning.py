"""What each neuron is known to do after each stimulus: a regularised regression on training trials.

The result enters the network beside the learned vectors. It is data too: a neuron that was never trained on gets its
coefficients from a few of its own trials, without a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantformer.config import TUNING_BINS
from quantformer_training.trials import Trials

#: Strengths tried for the pull of a neuron's coefficients towards the population's, in trials.
STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0)
FOLDS = 10

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Tuning:
    """Coefficients ``(neurons, 9, features)``, those of the mean neuron ``(9, features)``, and the strength of the
    pull towards them that out-of-fold error chose.
    """

    neuron: Floats
    population: Floats
    strength: float

    def of(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Expected quantities ``(n, neurons, 9)`` after stimuli with tuning features ``(n, features)``."""
        return np.asarray(np.einsum("nf,kqf->nkq", features, self.neuron), np.float32)

    def of_population(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """The mean neuron's ``(n, 9)``."""
        return np.asarray(features @ self.population.T, np.float32)


def quantities(trials: Trials, *, signal_scale: float) -> Floats:
    """What is regressed, ``(n, neurons, 9)``: the label, and binned dF/F over the signal scale."""
    n, neurons, frames = trials.response.shape
    binned = (
        trials.response.reshape(n, neurons, TUNING_BINS, frames // TUNING_BINS).mean(-1, dtype=np.float64)
        / signal_scale
    )
    return np.concatenate([trials.active[..., None], binned], axis=-1)


def fit_tuning(
    features: NDArray[np.float32],
    values: Floats,
    valid: NDArray[np.bool_],
    block: NDArray[np.int64],
    *,
    judged: NDArray[np.bool_],
) -> Tuning:
    """Regress values ``(n, neurons, q)`` on features ``(n, f)``; ``block`` numbers the presentation of each row.

    The strength of the pull is the one with the smallest out-of-fold squared error on the rows ``judged`` (real onsets).
    """
    errors = []
    for strength in STRENGTHS:
        made = _out_of_fold(features, values, valid, block, strength=strength)[0]
        errors.append(float(np.square(made - values)[valid & judged[:, None]].mean()))
    strength = STRENGTHS[int(np.argmin(errors))]
    neuron, population = _solve(features, values, valid, strength=strength)
    return Tuning(neuron=neuron, population=population, strength=strength)


def out_of_fold(
    features: NDArray[np.float32],
    values: Floats,
    valid: NDArray[np.bool_],
    block: NDArray[np.int64],
    *,
    strength: float,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What `Tuning` would say of each training row had its presentation not been fitted: neurons' and population's.

    Without this the network would learn to trust numbers that contain the answer.
    """
    neuron, population = _out_of_fold(features, values, valid, block, strength=strength)
    return neuron.astype(np.float32), population.astype(np.float32)


def _out_of_fold(
    features: NDArray[np.float32],
    values: Floats,
    valid: NDArray[np.bool_],
    block: NDArray[np.int64],
    *,
    strength: float,
) -> tuple[Floats, Floats]:
    blocks, which = np.unique(block, return_inverse=True)
    fold = which % min(FOLDS, len(blocks))
    neuron, population = np.zeros(values.shape), np.zeros((len(values), values.shape[2]))
    for number in range(int(fold.max()) + 1):
        out = fold == number
        of_neuron, of_population = _solve(features[~out], values[~out], valid[~out], strength=strength)
        neuron[out] = np.einsum("nf,kqf->nkq", features[out], of_neuron)
        population[out] = features[out] @ of_population.T
    return neuron, population


def _solve(
    features: NDArray[np.float32], values: Floats, valid: NDArray[np.bool_], *, strength: float
) -> tuple[Floats, Floats]:
    """Population by ridge on the mean over neurons; each neuron by ridge on what the population leaves."""
    x = features.astype(np.float64)
    weight = valid.astype(np.float64)
    count = weight.sum(1)
    mean = (values * weight[..., None]).sum(1) / np.maximum(count, 1.0)[:, None]
    seen = (count > 0).astype(np.float64)
    gram = (x * seen[:, None]).T @ x + 0.5 * np.eye(x.shape[1])
    population = np.linalg.solve(gram, (x * seen[:, None]).T @ mean).T
    return tune_neurons(features, values, valid, population=population, strength=strength), population


def tune_neurons(
    features: NDArray[np.float32], values: Floats, valid: NDArray[np.bool_], *, population: Floats, strength: float
) -> Floats:
    """Coefficients ``(neurons, 9, features)`` of neurons whose trials are these, pulled towards ``population``."""
    x, weight = features.astype(np.float64), valid.astype(np.float64)
    residual = (values - (x @ population.T)[:, None]) * weight[..., None]
    gram = np.einsum("nf,nk,ng->kfg", x, weight, x, optimize=True) + strength * np.eye(x.shape[1])
    moment = np.einsum("nf,nkq->kfq", x, residual, optimize=True)
    tuned: Floats = population + np.linalg.solve(gram, moment).transpose(0, 2, 1)
    return tuned
