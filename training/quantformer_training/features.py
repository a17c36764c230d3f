"""What a classical model sees of a row besides rates: its baseline in bins, its F0, and what the rest of the field did."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantformer.errors import DataError
from quantformer.signal import f0_level
from quantformer_training.rows import Rows

#: Bins of the baseline and frames of its end that enter the regressions.
BASELINE_BINS, END_FRAMES = 8, 5

Floats = NDArray[np.float64]


def baseline_features(rows: Rows) -> Floats:
    """What a regression sees of the baseline ``(rows, 10)``: means of 8 equal bins, spread, and mean of the last 5 frames.

    dF/F is already relative to F0, so the last of them is the ratio of the end to F0, less one.
    """
    baseline = rows.baseline.astype(np.float64)
    bins = [part.mean(axis=1) for part in np.array_split(baseline, BASELINE_BINS, axis=1)]
    return np.stack([*bins, baseline.std(axis=1), baseline[:, -END_FRAMES:].mean(axis=1)], axis=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class UsualF0:
    """Each neuron's median F0 over training rows: ``f0`` ``(neurons,)`` of the sorted labels ``neurons``.

    dF/F forgets the level that it is relative to. Where F0 stands above the neuron's usual one, a transient or a bright hour
    is under way and fluorescence will fall back; where it stands below, it will rise.
    """

    neurons: NDArray[np.int64]
    f0: Floats

    @classmethod
    def fit(cls, rows: Rows) -> UsualF0:
        """Medians over ``rows``."""
        order = np.lexsort((rows.f0, rows.neuron))
        ordered = rows.f0[order]
        neurons, first, count = np.unique(rows.neuron[order], return_index=True, return_counts=True)
        median = 0.5 * (ordered[first + (count - 1) // 2] + ordered[first + count // 2])
        return cls(neurons=neurons.astype(np.int64), f0=median)

    def features(self, rows: Rows) -> Floats:
        """``log(F0 / usual)`` and ``usual / F0 - 1`` ``(rows, 2)``; zeros for a neuron not fitted or an F0 not above zero.

        The second is the dF/F that a return to the usual level would be, which is what a linear forecast needs.
        """
        index = np.minimum(np.searchsorted(self.neurons, rows.neuron), len(self.neurons) - 1)
        usual = self.f0[index]
        known = self.neurons[index] == rows.neuron
        return f0_level(rows.f0, np.where(known, usual, 0.0)).astype(np.float64)


def context_features(rows: Rows) -> Floats:
    """The rows' context ``(rows, columns)``.

    Raises:
        DataError: the rows have none.
    """
    if rows.context is None:
        raise DataError("these rows have no context; make it with Population.context, or use the baseline without it")
    return rows.context.astype(np.float64)
