"""Neuron-trials as plain arrays: what baselines are fitted on and bootstraps resample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from quantformer.errors import DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """One row a neuron and trial, in any order.

    ``baseline`` float32 ``(rows, 96)`` is dF/F before the onset frame and ``response`` float32 ``(rows, 64)`` from it on;
    ``f0`` float64 ``(rows,)`` is in the recording's fluorescence units. ``neuron`` and ``stimulus`` are integer labels
    (neurons and trials of two recordings differ); ``trial`` numbers the trials in order of time; ``active`` is the label.
    ``context`` float32 ``(rows, columns)``, where there is one, is what the other neurons and the animal did before the onset
    frame (`Population`).
    """

    baseline: NDArray[np.float32]
    f0: NDArray[np.float64]
    neuron: NDArray[np.integer]
    stimulus: NDArray[np.integer]
    trial: NDArray[np.integer]
    active: NDArray[np.bool_]
    response: NDArray[np.float32]
    context: NDArray[np.float32] | None = None

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
        context = self.context
        if context is not None:
            if context.ndim != 2 or len(context) != rows:
                raise DataError(f"rows: context has shape {context.shape}, expected ({rows}, columns)")
            if not np.isfinite(context).all():
                bad = int((~np.isfinite(context)).any(axis=1).sum())
                raise DataError(f"rows: the context of {bad} of {rows} rows is not finite; leave those rows out first")

    def __len__(self) -> int:
        return len(self.trial)

    def select(self, mask: NDArray[np.bool_] | NDArray[np.intp]) -> Rows:
        """The rows where ``mask`` holds, or at the given indices, in that order."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        chosen: dict[str, Any] = {name: None if column is None else column[mask] for name, column in columns.items()}
        return Rows(**chosen)

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """All rows of several.

        Raises:
            DataError: there are none, or some have a context and some have not.
        """
        having = sum(part.context is not None for part in parts)
        if not parts or having not in (0, len(parts)):
            raise DataError(
                f"{having} of {len(parts)} sets of rows have a context; give all of them one, or none, and at least one set"
            )
        columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(cls)}
        joined: dict[str, Any] = {
            name: None if column[0] is None else np.concatenate(column) for name, column in columns.items()
        }
        return cls(**joined)

    def trial_folds(self, count: int) -> NDArray[np.intp]:
        """Fold ``(rows,)`` of each row: ``count`` blocks of consecutive trials, fewer where there are fewer trials.

        Each recording is cut into blocks of its own, so that none is wholly in one block and a neuron is known from the
        others. Trials that share no neuron, nor are linked through trials that do, are of different recordings.
        """
        if not len(self):
            return np.zeros(0, np.intp)
        trials, trial = np.unique(self.trial, return_inverse=True)
        neurons, neuron = np.unique(self.neuron, return_inverse=True)
        trial, neuron = trial.reshape(-1), neuron.reshape(-1)
        nodes = len(trials) + len(neurons)
        links = coo_array((np.ones(len(self), bool), (trial, len(trials) + neuron)), shape=(nodes, nodes))
        recording = connected_components(links, directed=False)[1][: len(trials)]
        folds = np.zeros(len(trials), np.intp)
        for one in np.unique(recording):
            mine = np.flatnonzero(recording == one)
            folds[mine] = np.arange(len(mine)) * min(count, len(mine)) // len(mine)
        return folds[trial]
