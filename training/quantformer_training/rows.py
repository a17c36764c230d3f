"""Neuron-trials as plain arrays: what baselines are fitted on and bootstraps resample."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from quantformer.errors import DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """One row a neuron and trial, in any order.

    ``baseline`` float32 ``(rows, 96)`` is dF/F before the onset frame and ``response`` float32 ``(rows, 64)`` from it on;
    ``f0`` float64 ``(rows,)`` is in the recording's fluorescence units. ``neuron`` and ``stimulus`` are integer labels
    (neurons of two recordings differ); ``trial`` numbers the trials in order of time; ``active`` is the label.
    """

    baseline: NDArray[np.float32]
    f0: NDArray[np.float64]
    neuron: NDArray[np.integer]
    stimulus: NDArray[np.integer]
    trial: NDArray[np.integer]
    active: NDArray[np.bool_]
    response: NDArray[np.float32]

    def __post_init__(self) -> None:
        rows = len(self.trial)
        for name in ("baseline", "response"):
            traces = getattr(self, name)
            if traces.ndim != 2 or len(traces) != rows or traces.shape[1] == 0:
                raise DataError(
                    f"rows: {name} has shape {traces.shape}, expected ({rows}, frames) with at least one frame"
                )
            if not np.isfinite(traces).all():
                bad = int((~np.isfinite(traces)).any(axis=1).sum())
                raise DataError(f"rows: {bad} of {rows} {name} traces are not finite; reject those rows first")
        for name, kinds in (("f0", "f"), ("neuron", "iu"), ("stimulus", "iu"), ("trial", "iu"), ("active", "b")):
            column = getattr(self, name)
            if column.shape != (rows,) or column.dtype.kind not in kinds:
                expected = {"f": "floats", "iu": "integers", "b": "booleans"}[kinds]
                raise DataError(
                    f"rows: {name} has shape {column.shape} and dtype {column.dtype}, expected ({rows},) {expected}"
                )

    def __len__(self) -> int:
        return len(self.trial)

    def select(self, mask: NDArray[np.bool_] | NDArray[np.intp]) -> Rows:
        """The rows where ``mask`` holds, or at the given indices, in that order."""
        return Rows(**{field.name: getattr(self, field.name)[mask] for field in fields(self)})

    def trial_folds(self, count: int) -> NDArray[np.intp]:
        """Fold ``(rows,)`` of each row: ``count`` blocks of consecutive trials, fewer where there are fewer trials."""
        trials, which = np.unique(self.trial, return_inverse=True)
        folds: NDArray[np.intp] = which.reshape(-1) * min(count, len(trials)) // max(len(trials), 1)
        return folds
