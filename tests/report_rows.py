"""Simulated rows and predictions of known quality, for the tests of comparison, figures and report."""

from __future__ import annotations

import numpy as np

from quantformer_training.comparison import Forecasts
from quantformer_training.rows import Rows


def simulated_rows(*, trials: int, neurons: int, seed: int) -> Rows:
    """Rows whose activity depends on neuron, stimulus and the end of the baseline; the logit is `true_logit`."""
    rng = np.random.default_rng(seed)
    neuron = np.tile(np.arange(neurons), trials)
    stimulus = np.repeat(rng.integers(0, 4, trials), neurons)
    baseline = rng.normal(0, 0.1, (trials * neurons, 96))
    baseline[:, -12:] += rng.normal(0, 0.5, trials * neurons)[:, None]
    rows = Rows(
        baseline=baseline.astype(np.float32),
        f0=np.full(trials * neurons, 100.0),
        neuron=neuron,
        stimulus=stimulus,
        trial=np.repeat(np.arange(trials), neurons),
        active=np.zeros(trials * neurons, bool),
        response=np.zeros((trials * neurons, 64), np.float32),
    )
    active = rng.random(len(rows)) < 1 / (1 + np.exp(-true_logit(rows)))
    response = active[:, None] * np.exp(-np.arange(64) / 20.0) + rng.normal(0, 0.05, (len(rows), 64))
    return Rows(**{**vars(rows), "active": active, "response": response.astype(np.float32)})


def true_logit(rows: Rows) -> np.ndarray:
    """What the best possible predictor knows."""
    rate = np.random.default_rng(7).normal(-1.5, 1.0, (64, 4))
    return rate[rows.neuron % 64, rows.stimulus] + 4.0 * rows.baseline[:, -12:].mean(axis=1)


def oracle(rows: Rows) -> Forecasts:
    """The best possible predictor."""
    probability = 1 / (1 + np.exp(-true_logit(rows)))
    return Forecasts(probability=probability, response=probability[:, None] * np.exp(-np.arange(64) / 20.0))


def ignorant(rows: Rows) -> Forecasts:
    """A predictor that knows nothing, not even the rate."""
    rng = np.random.default_rng(1)
    return Forecasts(probability=rng.random(len(rows)), response=rng.normal(0, 0.5, (len(rows), 64)))
