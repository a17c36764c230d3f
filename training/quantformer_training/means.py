"""Means a neuron, and a neuron and stimulus, shrunk by stated amounts: rates where the value is 0 or 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantformer.errors import DataError
from quantformer_training.rows import Rows

#: Trials at the population's mean added to each neuron's own, so that no rate is exactly 0 or 1.
NEURON_PSEUDO_TRIALS = 0.5
#: Trials at the neuron's mean added to each neuron x stimulus pair.
STIMULUS_PSEUDO_TRIALS = 2.0

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class ShrunkMeans:
    """Means of a value of some width.

    ``population`` ``(width,)``; ``neuron_means`` ``(neurons, width)`` of the sorted labels ``neurons``; ``pair_means``
    ``(pairs, width)`` of the sorted keys ``pairs``. A neuron not fitted gets the population's mean, a pair not fitted its
    neuron's.
    """

    population: Floats
    neurons: Labels
    neuron_means: Floats
    stimuli: Labels
    pairs: Labels
    pair_means: Floats

    @classmethod
    def fit(cls, values: Floats, *, rows: Rows) -> ShrunkMeans:
        """Means over ``rows`` of their ``values`` ``(rows, width)``.

        Raises:
            DataError: there are no rows.
        """
        if len(rows) == 0:
            raise DataError("no training rows; at least one is needed")
        population = values.mean(axis=0)
        neurons, neuron = np.unique(rows.neuron.astype(np.int64), return_inverse=True)
        stimuli, stimulus = np.unique(rows.stimulus.astype(np.int64), return_inverse=True)
        pairs, pair = np.unique(neuron.reshape(-1) * len(stimuli) + stimulus.reshape(-1), return_inverse=True)
        neuron_means = _shrunk(values, group=neuron.reshape(-1), toward=population[None], weight=NEURON_PSEUDO_TRIALS)
        return cls(
            population=population,
            neurons=neurons,
            neuron_means=neuron_means,
            stimuli=stimuli,
            pairs=pairs.astype(np.int64),
            pair_means=_shrunk(
                values,
                group=pair.reshape(-1),
                toward=neuron_means[pairs // len(stimuli)],
                weight=STIMULUS_PSEUDO_TRIALS,
            ),
        )

    def by_neuron(self, rows: Rows) -> Floats:
        """Each row's neuron mean ``(rows, width)``."""
        index, known = _find(rows.neuron, self.neurons)
        return np.where(known[:, None], self.neuron_means[index], self.population)

    def by_pair(self, rows: Rows) -> Floats:
        """Each row's neuron x stimulus mean ``(rows, width)``."""
        neuron, neuron_known = _find(rows.neuron, self.neurons)
        stimulus, stimulus_known = _find(rows.stimulus, self.stimuli)
        index, known = _find(neuron * len(self.stimuli) + stimulus, self.pairs)
        known &= neuron_known & stimulus_known
        return np.where(known[:, None], self.pair_means[index], self.by_neuron(rows))

    def features(self, rows: Rows) -> Floats:
        """Both means side by side ``(rows, 2 * width)``."""
        return np.concatenate([self.by_neuron(rows), self.by_pair(rows)], axis=1)


def _shrunk(values: Floats, *, group: NDArray[np.intp], toward: Floats, weight: float) -> Floats:
    """Group means ``(groups, width)``; groups are numbered from 0 and none is empty."""
    order = np.argsort(group, kind="stable")
    count = np.bincount(group)
    total = np.add.reduceat(values[order], np.cumsum(count) - count, axis=0)
    mean: Floats = (total + weight * toward) / (count + weight)[:, None]
    return mean


def _find(wanted: NDArray[np.integer], labels: Labels) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Place of each label among the sorted ones, and whether it is there (the place is valid either way)."""
    index = np.minimum(np.searchsorted(labels, wanted), len(labels) - 1)
    return index, labels[index] == wanted


def out_of_fold(
    rows: Rows, *, values: Callable[[Rows], Floats], folds: int, chosen: NDArray[np.bool_] | None = None
) -> Floats:
    """`ShrunkMeans.features` of training rows, each from the other blocks of trials (in-sample for a single trial).

    In-sample means would leak the label into a regression on them. So would leaving out only the row itself: a neuron's
    rate is then lower exactly on its active trials, which boosted trees find. With ``chosen`` ``(rows,)`` the features are
    those of the chosen rows alone, from the means of all.
    """
    fold = rows.trial_folds(folds)
    chosen = np.ones(len(rows), bool) if chosen is None else chosen
    features = ShrunkMeans.fit(values(rows), rows=rows).features(rows.select(chosen))
    for block in range(int(fold.max()) + 1):
        rest, held = rows.select(fold != block), rows.select((fold == block) & chosen)
        if len(rest):
            features[fold[chosen] == block] = ShrunkMeans.fit(values(rest), rows=rest).features(held)
    return features
