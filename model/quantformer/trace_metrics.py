"""Scores of forecast traces: pure functions of ``(rows, frames)`` arrays, NaN where undefined, never a warning.

A *row* is one neuron in one trial; a row's score is NaN where it is not defined, and means leave such rows out and count
them. `score_forecast` gives everything at once; ``docs/metrics.md`` has the formulas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quantformer.errors import DataError

#: A trace whose spread is below this part of its root sum of squares is flat: its correlation would be rounding noise.
FLAT = 1e-6
#: Smallest accumulated gradient (dF/F) that a trace may be divided by.
GRADIENT_EPSILON = 1e-6
#: SSIM constants for a range of 1, (0.01)^2 and (0.03)^2.
SSIM_C1, SSIM_C2 = 1e-4, 9e-4
#: Trials that a neuron needs before its areas are correlated.
MINIMUM_TRIALS = 3
#: Pairings drawn for the chance level of abs(r).
SHUFFLES = 10

Floats = NDArray[np.float64]


def _traces(predicted: ArrayLike, actual: ArrayLike) -> tuple[Floats, Floats]:
    predicted, actual = np.asarray(predicted, dtype=np.float64), np.asarray(actual, dtype=np.float64)
    if predicted.ndim != 2 or predicted.shape != actual.shape:
        raise DataError(
            f"predicted has shape {predicted.shape}, actual {actual.shape}; expected (rows, frames) for both"
        )
    for name, traces in (("predicted", predicted), ("actual", actual)):
        if not np.isfinite(traces).all():
            rows = int((~np.isfinite(traces)).any(axis=1).sum())
            raise DataError(
                f"{rows} {name} traces hold values that are not finite; leave invalid rows out before scoring"
            )
    return predicted, actual


def _defined_mean(values: Floats) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def _frame_mean(values: Floats) -> Floats:
    mean: Floats = values.sum(axis=1) / max(values.shape[1], 1)
    return mean


def squared_error(predicted: ArrayLike, actual: ArrayLike) -> Floats:
    """Mean squared error of each row ``(rows,)``, in (dF/F)^2."""
    predicted, actual = _traces(predicted, actual)
    return _frame_mean((predicted - actual) ** 2)


def _shape(traces: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Traces without mean and of root sum of squares 1, and which are not flat; flat ones hold zeros."""
    centred = traces - _frame_mean(traces)[:, None]
    norm = np.sqrt((centred**2).sum(axis=1))
    varies = norm > FLAT * np.sqrt((traces**2).sum(axis=1))
    return np.where(varies[:, None], centred, 0.0) / np.where(varies, norm, 1.0)[:, None], varies


def pearson_rows(predicted: ArrayLike, actual: ArrayLike) -> Floats:
    """Signed Pearson correlation of each row over its frames ``(rows,)``; NaN where either trace is flat (`FLAT`)."""
    predicted, actual = _traces(predicted, actual)
    left, left_varies = _shape(predicted)
    right, right_varies = _shape(actual)
    return np.where(left_varies & right_varies, np.clip((left * right).sum(axis=1), -1.0, 1.0), np.nan)


def absolute_r_chance(predicted: ArrayLike, actual: ArrayLike, *, seed: int = 0) -> float:
    """Mean abs(r) of forecasts against the traces of other rows, over `SHUFFLES` random pairings (NOTES, pitfall 5)."""
    predicted, actual = _traces(predicted, actual)
    rows = len(predicted)
    if rows < 2:
        return float("nan")
    random = np.random.default_rng(seed)
    values = []
    for _ in range(SHUFFLES):
        order = random.permutation(rows)
        other = np.roll(order, int(random.integers(1, rows)))
        values.append(_defined_mean(np.abs(pearson_rows(predicted[order], actual[other]))))
    return _defined_mean(np.asarray(values))


@dataclass(frozen=True, kw_only=True)
class AreaCorrelation:
    """Mean over ``neurons`` neurons of the correlation of forecast and true response area across that neuron's trials."""

    mean: float
    neurons: int


def area_r(predicted: ArrayLike, actual: ArrayLike, *, neuron: ArrayLike) -> AreaCorrelation:
    """Correlation of the response area (mean over the frames) across trials within a neuron, averaged over neurons.

    Neurons with fewer than `MINIMUM_TRIALS` rows, or whose forecast or true area does not vary, are left out: a forecast
    that is the same in every trial knows nothing about the trial and has no score.
    """
    predicted, actual = _traces(predicted, actual)
    labels = np.asarray(neuron)
    if labels.shape != (len(predicted),):
        raise DataError(f"neuron has shape {labels.shape}, expected ({len(predicted)},): one label a row")
    values = []
    for label in np.unique(labels):
        rows = labels == label
        if np.count_nonzero(rows) >= MINIMUM_TRIALS:
            values.append(pearson_rows(predicted[rows].mean(axis=1)[None], actual[rows].mean(axis=1)[None])[0])
    defined = [value for value in values if not np.isnan(value)]
    return AreaCorrelation(mean=_defined_mean(np.asarray(defined)), neurons=len(defined))


def smape(predicted: ArrayLike, actual: ArrayLike) -> Floats:
    """Symmetric mean absolute percentage error of each row, ``mean(|p - a| / (|p| + |a|))`` in [0, 1]; 0/0 counts as 0."""
    predicted, actual = _traces(predicted, actual)
    size = np.abs(predicted) + np.abs(actual)
    error = np.divide(np.abs(predicted - actual), size, out=np.zeros_like(size), where=size > 0)
    return _frame_mean(error)


def ssim(predicted: ArrayLike, actual: ArrayLike) -> Floats:
    """Structural similarity of each row: one window a trace, range 1, population moments (NOTES, "SSIM")."""
    predicted, actual = _traces(predicted, actual)
    left_mean, right_mean = _frame_mean(predicted), _frame_mean(actual)
    left, right = predicted - left_mean[:, None], actual - right_mean[:, None]
    covariance, spread = _frame_mean(left * right), _frame_mean(left**2 + right**2)
    level: Floats = (2.0 * left_mean * right_mean + SSIM_C1) / (left_mean**2 + right_mean**2 + SSIM_C1)
    return level * (2.0 * covariance + SSIM_C2) / (spread + SSIM_C2)


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientNormalised:
    """``traces`` ``(rows, frames)`` divided by their accumulated gradient; ``degenerate`` ``(rows,)`` rows hold zeros."""

    traces: Floats
    degenerate: NDArray[np.bool_]


def gradient_normalised(traces: ArrayLike, *, epsilon: float = GRADIENT_EPSILON) -> GradientNormalised:
    """``x / sum(|diff(x)|)`` a row (paper section 4.3); a row whose sum is at most ``epsilon`` is degenerate."""
    traces = np.asarray(traces, dtype=np.float64)
    travelled = np.abs(np.diff(traces, axis=1)).sum(axis=1)
    degenerate = travelled <= epsilon
    scaled = np.where(degenerate[:, None], 0.0, traces) / np.where(degenerate, 1.0, travelled)[:, None]
    return GradientNormalised(traces=scaled, degenerate=degenerate)


@dataclass(frozen=True, kw_only=True)
class ForecastScores:
    """Headline figures first. ``r_undefined`` rows had a flat forecast or a flat truth and are not in ``r``."""

    rows: int
    mse: float
    r: float
    r_undefined: int
    area_r: float
    area_r_neurons: int
    #: Paper-compatible from here on; the normalised ones leave out the ``degenerate`` fraction of rows.
    absolute_r: float
    absolute_r_chance: float
    smape: float
    ssim: float
    normalised_mse: float
    normalised_mae: float
    normalised_smape: float
    normalised_ssim: float
    degenerate: float


def score_forecast(predicted: ArrayLike, actual: ArrayLike, *, neuron: ArrayLike, seed: int = 0) -> ForecastScores:
    """Every forecast score of dF/F traces ``(rows, frames)``; ``neuron`` is a label a row, ``seed`` pairs for chance.

    Raises:
        DataError: shapes differ, or a trace is not finite.
    """
    predicted, actual = _traces(predicted, actual)
    r = pearson_rows(predicted, actual)
    area = area_r(predicted, actual, neuron=neuron)
    left, right = gradient_normalised(predicted), gradient_normalised(actual)
    kept = ~(left.degenerate | right.degenerate)
    scaled = left.traces[kept], right.traces[kept]
    return ForecastScores(
        rows=len(predicted),
        mse=_defined_mean(squared_error(predicted, actual)),
        r=_defined_mean(r),
        r_undefined=int(np.isnan(r).sum()),
        area_r=area.mean,
        area_r_neurons=area.neurons,
        absolute_r=_defined_mean(np.abs(r)),
        absolute_r_chance=absolute_r_chance(predicted, actual, seed=seed),
        smape=_defined_mean(smape(predicted, actual)),
        ssim=_defined_mean(ssim(predicted, actual)),
        normalised_mse=_defined_mean(squared_error(*scaled)),
        normalised_mae=_defined_mean(_frame_mean(np.abs(scaled[0] - scaled[1]))),
        normalised_smape=_defined_mean(smape(*scaled)),
        normalised_ssim=_defined_mean(ssim(*scaled)),
        degenerate=1.0 - float(kept.mean()) if len(kept) else float("nan"),
    )
