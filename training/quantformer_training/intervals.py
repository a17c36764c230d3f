"""How much a forecast errs: the scale of its errors by row, and what share of them lies below how many such scales."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from quantformer.forecaster import ERROR_TERMS, baseline_noise, error_terms
from quantformer.manifest import Interval

#: The share of what happens that the interval of a bundle holds, and the levels of its ends.
INTERVAL_LEVEL = 0.8
INTERVAL_LEVELS = ((1.0 - INTERVAL_LEVEL) / 2, (1.0 + INTERVAL_LEVEL) / 2)
#: No row's error is taken to be smaller than this share of the mean one: its interval must not close.
LEAST_FLOOR = 0.02

Floats = NDArray[np.float64]


def terms_of(baseline: NDArray[np.float32], probability: NDArray[np.floating] | None) -> NDArray[np.float32]:
    """`error_terms` ``(rows, ERROR_TERMS)`` of baselines ``(rows, frames)`` in dF/F, for a model that says no more than its
    ``probability`` ``(rows,)``, or not even that (None).
    """
    chance = np.zeros(len(baseline)) if probability is None else probability
    made = error_terms(baseline_noise(torch.from_numpy(baseline)), torch.from_numpy(chance.astype(np.float32)))
    return np.asarray(made.numpy())


@dataclass(frozen=True, kw_only=True, eq=False)
class Errors:
    """Quantiles of a forecast's errors: over ``floor + terms @ weights`` a share ``levels[k]`` of them lies below
    ``relative[k, t]``.
    """

    levels: tuple[float, ...]
    floor: float
    weights: tuple[float, ...]
    relative: Floats

    def scale(self, terms: NDArray[np.float32]) -> Floats:
        """Of each row ``(B,)``, dF/F."""
        return np.asarray(self.floor + terms.astype(np.float64) @ np.asarray(self.weights))

    def around(self, predicted: NDArray[np.float32], k: int, *, terms: NDArray[np.float32]) -> Floats:
        """The quantile of level ``k`` of forecasts ``(B, frames)``."""
        return np.asarray(predicted.astype(np.float64) + self.scale(terms)[:, None] * self.relative[k])


def fit_errors(
    predicted: NDArray[np.float32],
    actual: NDArray[np.float32],
    *,
    terms: NDArray[np.float32],
    levels: tuple[float, ...] = INTERVAL_LEVELS,
    pool: int = 16,
) -> Errors:
    """Fit the scale to the errors of rows, and the quantiles of the error over it, pooled over ``pool`` frames."""
    error = (actual - predicted).astype(np.float64)
    floor, weights = _fit_scale(np.abs(error).mean(axis=1), terms.astype(np.float64))
    unscaled = Errors(levels=levels, floor=floor, weights=weights, relative=np.empty((0, 0)))
    relative = error / unscaled.scale(terms)[:, None]
    found = np.quantile(relative.reshape(len(relative), -1, pool), levels, axis=(0, 2))
    return Errors(levels=levels, floor=floor, weights=weights, relative=np.repeat(found, pool, axis=1))


def interval_of(errors: Errors) -> Interval:
    """The interval that a bundle carries, of errors at two levels."""
    low, high = errors.relative.tolist()
    return Interval(level=INTERVAL_LEVEL, floor=errors.floor, low=low, high=high)


def _fit_scale(size: Floats, terms: Floats) -> tuple[float, tuple[float, ...]]:
    """Floor and weights, none negative, under which rows' mean absolute errors ``size`` are likeliest if errors are Laplacian:
    the least mean of ``log(scale) + size / scale``.
    """
    mean = float(size.mean())
    if not mean > 0.0:
        return np.finfo(np.float32).tiny.item(), (0.0,) * ERROR_TERMS
    of_terms = terms.mean(axis=0)
    known = of_terms > 0.0
    # In shares of the mean error, which are of one size, and by their logarithms, which keep them above zero.
    columns = np.column_stack([np.ones(len(size)), terms[:, known] / of_terms[known]])
    relative = size / mean

    def objective(logs: Floats) -> tuple[float, Floats]:
        shares = np.exp(logs)
        scale = columns @ shares
        slope = (1.0 / scale - relative / scale**2) @ columns / len(scale)
        return float((np.log(scale) + relative / scale).mean()), slope * shares

    count = columns.shape[1]
    bounds = [(np.log(LEAST_FLOOR), 3.0), *[(-12.0, 3.0)] * (count - 1)]
    best = minimize(objective, np.full(count, -np.log(count)), jac=True, method="L-BFGS-B", bounds=bounds)
    shares = np.exp(best.x) * mean
    weights = np.zeros(ERROR_TERMS)
    weights[known] = shares[1:] / of_terms[known]
    return float(shares[0]), tuple(weights.tolist())
