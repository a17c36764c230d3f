"""What a run keeps of single rows, so that models can be compared on one recording later, without being run again.

A forecast of 64 frames shrinks to three numbers: its squared error, its correlation and its area. Every metric of
`bootstrap` follows from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quantformer.errors import DataError
from quantformer.metrics import pearson_rows, squared_error
from quantformer_training.bootstrap import PairedDifference, Unit, compare
from quantformer_training.resampled_metrics import ACTIVATION_METRICS, FORECAST_METRICS, Draws, Evaluate, Metric
from quantformer_training.rows import Rows

StoredRows = Mapping[str, NDArray[Any]]
#: What names a row, and the truth about it: the same in every run on the same test part.
_SAME = ("trial", "neuron", "stimulus", "active", "true_area")


def row_arrays(
    rows: Rows, *, probability: NDArray[np.floating] | None = None, response: NDArray[np.floating] | None = None
) -> dict[str, NDArray[Any]]:
    """Arrays ``(rows,)`` for `Measured.arrays`: of ``probability`` ``(rows,)``, of ``response`` ``(rows, 64)``, or both.

    ``r`` is NaN where the forecast or the truth is flat.
    """
    found: dict[str, NDArray[Any]] = {name: getattr(rows, name) for name in ("trial", "neuron", "stimulus", "active")}
    found["true_area"] = rows.response.mean(axis=1, dtype=np.float64).astype(np.float32)
    if probability is not None:
        found["probability"] = np.asarray(probability, np.float32)
    if response is not None:
        found["squared_error"] = squared_error(response, rows.response).astype(np.float32)
        found["r"] = pearson_rows(response, rows.response).astype(np.float32)
        found["area"] = np.asarray(response, np.float64).mean(axis=1).astype(np.float32)
    return found


def compare_stored(
    candidate: StoredRows,
    references: Mapping[str, StoredRows],
    *,
    unit: Unit = "trials",
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, PairedDifference]:
    """The candidate against the best reference of each metric, as `bootstrap.compare` on what `row_arrays` kept.

    Metrics are those that the candidate and every reference have arrays for.

    Raises:
        DataError: a reference has other rows, or there is nothing to compare.
    """
    for name, reference in references.items():
        for key in _SAME:
            if not np.array_equal(candidate[key], reference[key]):
                raise DataError(f"{name!r} was scored on other rows ({key} differs); compare runs of one test part")
    everyone = [candidate, *references.values()]
    found: dict[str, PairedDifference] = {}
    for needed, metrics in _METRICS.items():
        if all(needed in arrays for arrays in everyone):
            found |= compare(
                _prediction(candidate, needed),
                {name: _prediction(reference, needed) for name, reference in references.items()},
                truth=_truth(candidate, needed),
                trial=candidate["trial"],
                neuron=candidate["neuron"],
                metrics=metrics,
                unit=unit,
                resamples=resamples,
                seed=seed,
            )
    if not found:
        raise DataError("the runs have no array in common that a metric could be computed from")
    return found


def _mean_of_defined(prediction: ArrayLike, truth: ArrayLike, member: NDArray[np.intp]) -> Evaluate:
    """Mean of a score that is stored beside whether it is defined, ``(rows, 2)``."""
    columns = np.asarray(prediction, np.float64)

    def evaluate(draws: Draws) -> NDArray[np.float64]:
        total = draws.row @ columns
        count = total[:, 1]
        mean: NDArray[np.float64] = np.divide(total[:, 0], count, out=np.full(len(count), np.nan), where=count > 0)
        return mean

    return evaluate


#: By the array that they need.
_METRICS: Mapping[str, Mapping[str, Metric]] = {
    "probability": ACTIVATION_METRICS,
    "squared_error": {"mse": Metric(higher_is_better=False, prepare=_mean_of_defined)},
    "r": {"r": Metric(higher_is_better=True, prepare=_mean_of_defined)},
    # The area is the mean over frames: a trace of one frame has the same.
    "area": {"area_r": FORECAST_METRICS["area_r"]},
}


def _prediction(arrays: StoredRows, needed: str) -> NDArray[np.float64]:
    values = np.asarray(arrays[needed], np.float64)
    if needed in ("squared_error", "r"):
        defined = np.isfinite(values)
        return np.stack([np.where(defined, values, 0.0), defined], axis=1)
    return values[:, None] if needed == "area" else values


def _truth(arrays: StoredRows, needed: str) -> NDArray[Any]:
    return arrays["true_area"][:, None] if needed == "area" else arrays["active"]
