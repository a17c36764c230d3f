"""Which test rows are shown as examples of forecasts: a rule, so that runs made apart keep their forecasts of the same rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantformer.errors import DataError
from quantformer.trace_metrics import pearson_rows, squared_error
from quantformer_training.examples import even

#: Of more test rows an even choice is looked at.
MOST_ROWS = 4_000
#: Examples a category: active rows, one from each equal part of them ranked by size, and inactive rows.
ACTIVE_EXAMPLES, INACTIVE_EXAMPLES = 3, 1

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ForecastScore:
    """Mean squared error in (dF/F)^2 and signed r of forecasts; r is NaN where it is not defined."""

    mse: float
    r: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Competitor:
    """Another model's forecasts dF/F ``(k, 64)`` of the shown ``rows``, and its mean scores over all test rows."""

    rows: tuple[int, ...]
    forecasts: Floats
    score: ForecastScore

    def of(self, row: int) -> Floats:
        """Its forecast of a shown row.

        Raises:
            DataError: it has none of that row.
        """
        if row not in self.rows:
            raise DataError(f"there is no forecast of row {row}, only of {self.rows}; make the run anew")
        found: Floats = self.forecasts[self.rows.index(row)]
        return found

    @classmethod
    def scored(cls, forecasts: NDArray[np.floating], happened: NDArray[np.floating]) -> Competitor:
        """Of forecasts of every row ``(rows, 64)`` beside what happened, likewise.

        Raises:
            DataError: they differ in shape.
        """
        if np.shape(forecasts) != np.shape(happened):
            raise DataError(
                f"forecasts have shape {np.shape(forecasts)}, expected {np.shape(happened)}: one a row, in their order"
            )
        given, truth = np.asarray(forecasts, np.float64), np.asarray(happened, np.float64)
        return cls(rows=tuple(range(len(given))), forecasts=given, score=mean_score(given, truth))


def mean_score(forecasts: Floats, happened: Floats) -> ForecastScore:
    """Means over rows; r over those that have one."""
    r = pearson_rows(forecasts, happened)
    defined = r[~np.isnan(r)]
    return ForecastScore(
        mse=float(squared_error(forecasts, happened).mean()), r=float(defined.mean()) if len(defined) else float("nan")
    )


def choose_rows(
    response: NDArray[np.floating], active: NDArray[np.bool_], *, seed: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rows to show: active ones, ranked by mean dF/F, cut into `ACTIVE_EXAMPLES` equal parts, one row drawn from each,
    smallest first; and `INACTIVE_EXAMPLES` drawn from the others. Fewer where there are fewer.
    """
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(active)
    ranked = rows[np.argsort(response[rows].mean(axis=1), kind="stable")]
    parts = [part for part in np.array_split(ranked, ACTIVE_EXAMPLES) if len(part)]
    others = np.flatnonzero(~active)
    drawn = rng.choice(others, min(INACTIVE_EXAMPLES, len(others)), replace=False)
    return tuple(int(rng.choice(part)) for part in parts), tuple(int(row) for row in drawn)


def shown_forecasts(
    forecasts: NDArray[np.float32], happened: NDArray[np.float32], active: NDArray[np.bool_], *, seed: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Of a run's forecasts of all test rows, those of the rows that will be shown: their numbers in the even choice of
    `MOST_ROWS`, and the forecasts ``(k, 64)``.
    """
    looked_at = even(len(happened), MOST_ROWS)
    # In float64, as where the figure chooses: the order of sizes must be the same.
    some, none = choose_rows(happened[looked_at].astype(np.float64), active[looked_at], seed=seed)
    rows = np.array([*some, *none], np.int32)
    return rows, forecasts[looked_at[rows]]
