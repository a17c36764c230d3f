"""The metrics of `quantformer.metrics` on many resamples at once.

A `Metric` is prepared once for a prediction (rows sorted, losses taken) and then evaluated on counts: how often each trial
and each neuron was drawn. It equals the plain metric on rows repeated that often; the tests hold it to that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quantformer.activation_metrics import MINIMUM_EACH, row_log_loss
from quantformer.trace_metrics import FLAT, MINIMUM_TRIALS, pearson_rows, squared_error

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Draws:
    """Some resamples: ``trial`` ``(draws, rows)`` counts each row's trial, ``neuron`` ``(draws, neurons)`` each neuron.

    ``member`` ``(rows,)`` is each row's neuron, numbered from 0. A neuron drawn twice counts as two neurons.
    """

    trial: Floats
    neuron: Floats
    member: NDArray[np.intp]

    @property
    def row(self) -> Floats:
        """How often each row counts ``(draws, rows)``."""
        return self.trial * self.neuron[:, self.member]


#: From draws to the metric of each ``(draws,)``, NaN where it is undefined.
Evaluate = Callable[[Draws], Floats]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A score and its direction; ``prepare(prediction, truth, member)`` gives its evaluation on draws."""

    higher_is_better: bool
    prepare: Callable[[ArrayLike, ArrayLike, NDArray[np.intp]], Evaluate]


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    found: Floats = np.divide(numerator, denominator, out=np.full(denominator.shape, np.nan), where=denominator > 0)
    return found


def _row_mean(row_score: Callable[[ArrayLike, ArrayLike], Floats]) -> Callable[..., Evaluate]:
    """Mean over rows of a score of each row, undefined rows left out."""

    def prepare(prediction: ArrayLike, truth: ArrayLike, member: NDArray[np.intp]) -> Evaluate:
        score = row_score(prediction, truth)
        defined = ~np.isnan(score)
        columns = np.stack([np.where(defined, score, 0.0), defined.astype(np.float64)], axis=1)

        def evaluate(draws: Draws) -> Floats:
            total = draws.row @ columns
            return _ratio(total[:, 0], total[:, 1])

        return evaluate

    return prepare


def _squared(probability: ArrayLike, active: ArrayLike) -> Floats:
    error: Floats = np.asarray(probability, dtype=np.float64) - np.asarray(active, dtype=np.float64)
    return error * error


def _starts(keys: NDArray[np.intp] | Floats) -> NDArray[np.bool_]:
    """Where a run of equal values begins in a sorted array."""
    return np.append(True, keys[1:] != keys[:-1])


def _auroc(prediction: ArrayLike, truth: ArrayLike, member: NDArray[np.intp]) -> Evaluate:
    everyone = np.zeros(len(member), np.intp)
    counts = _ranked(prediction, truth, everyone)

    def evaluate(draws: Draws) -> Floats:
        won, active, inactive = counts(draws.row)
        return _ratio(won, active * inactive)[:, 0]

    return evaluate


def _ranked(
    prediction: ArrayLike, truth: ArrayLike, group: NDArray[np.intp]
) -> Callable[[Floats], tuple[Floats, Floats, Floats]]:
    """From row counts to, a group ``(draws, groups)``: active-inactive pairs ranked right, active rows, inactive rows."""
    score = np.asarray(prediction, dtype=np.float64)
    order = np.lexsort((score, group))
    active = np.asarray(truth, dtype=np.float64)[order]
    new_group = _starts(group[order])
    new_score = new_group | _starts(score[order])
    ties = np.flatnonzero(new_score)
    groups_of_ties = np.flatnonzero(new_group[ties])
    tied_group = np.cumsum(new_group[ties]) - 1

    def counts(row: Floats) -> tuple[Floats, Floats, Floats]:
        ordered = row[:, order]
        on = np.add.reduceat(ordered * active, ties, axis=1)
        off = np.add.reduceat(ordered * (1.0 - active), ties, axis=1)
        below = np.cumsum(off, axis=1) - off
        below -= below[:, groups_of_ties][:, tied_group]
        won = np.add.reduceat(on * (below + 0.5 * off), groups_of_ties, axis=1)
        return won, np.add.reduceat(on, groups_of_ties, axis=1), np.add.reduceat(off, groups_of_ties, axis=1)

    return counts


def _within_mean(value: Floats, *, active: Floats, inactive: Floats, neuron: Floats) -> Floats:
    """Mean over the neurons drawn, as often as they were, that have enough of both; ``(draws, neurons)`` each."""
    weight = np.where((active >= MINIMUM_EACH) & (inactive >= MINIMUM_EACH), neuron, 0.0)
    return _ratio((weight * np.where(weight > 0, value, 0.0)).sum(axis=1), weight.sum(axis=1))


def _auroc_within_neuron(prediction: ArrayLike, truth: ArrayLike, member: NDArray[np.intp]) -> Evaluate:
    counts = _ranked(prediction, truth, member)

    def evaluate(draws: Draws) -> Floats:
        won, active, inactive = counts(draws.trial)
        return _within_mean(_ratio(won, active * inactive), active=active, inactive=inactive, neuron=draws.neuron)

    return evaluate


def _log_loss_within_neuron(prediction: ArrayLike, truth: ArrayLike, member: NDArray[np.intp]) -> Evaluate:
    order = np.argsort(member, kind="stable")
    loss = row_log_loss(prediction, truth)[order]
    on = np.asarray(truth, dtype=np.float64)[order]
    begin = np.flatnonzero(_starts(member[order]))

    def evaluate(draws: Draws) -> Floats:
        ordered = draws.trial[:, order]
        total = np.add.reduceat(ordered * loss, begin, axis=1)
        active = np.add.reduceat(ordered * on, begin, axis=1)
        inactive = np.add.reduceat(ordered, begin, axis=1) - active
        return _within_mean(_ratio(total, active + inactive), active=active, inactive=inactive, neuron=draws.neuron)

    return evaluate


def _auprc(prediction: ArrayLike, truth: ArrayLike, member: NDArray[np.intp]) -> Evaluate:
    score = np.asarray(prediction, dtype=np.float64)
    order = np.argsort(-score, kind="stable")
    active = np.asarray(truth, dtype=np.float64)[order]
    last = np.append(np.flatnonzero(_starts(score[order]))[1:], len(score)) - 1

    def evaluate(draws: Draws) -> Floats:
        ordered = draws.row[:, order]
        true, chosen = np.cumsum(ordered * active, axis=1)[:, last], np.cumsum(ordered, axis=1)[:, last]
        precision = np.where(chosen > 0, true, 0.0) / np.maximum(chosen, 1.0)
        return _ratio((np.diff(true, axis=1, prepend=0.0) * precision).sum(axis=1), true[:, -1])

    return evaluate


def _area_r(prediction: ArrayLike, truth: ArrayLike, member: NDArray[np.intp]) -> Evaluate:
    order = np.argsort(member, kind="stable")
    begin = np.flatnonzero(_starts(member[order]))
    size = np.diff(np.append(begin, len(member)))
    areas = [np.asarray(traces, dtype=np.float64).mean(axis=1)[order] for traces in (prediction, truth)]
    centred = [area - np.repeat(np.add.reduceat(area, begin) / size, size) for area in areas]

    def evaluate(draws: Draws) -> Floats:
        ordered = draws.trial[:, order]

        def total(values: Floats) -> Floats:
            return np.asarray(np.add.reduceat(ordered * values, begin, axis=1), dtype=np.float64)

        rows = np.add.reduceat(ordered, begin, axis=1)
        left, right = (_ratio(total(area), rows) for area in centred)
        left_spread = total(centred[0] ** 2) - rows * left**2
        right_spread = total(centred[1] ** 2) - rows * right**2
        varies = (rows >= MINIMUM_TRIALS) & (left_spread > FLAT**2 * total(areas[0] ** 2))
        varies &= right_spread > FLAT**2 * total(areas[1] ** 2)
        scale = np.sqrt(np.where(varies, left_spread, 0.0)) * np.sqrt(np.where(varies, right_spread, 0.0))
        weight = np.where(varies & (scale > 0), draws.neuron, 0.0)
        r = np.where(weight > 0, total(centred[0] * centred[1]) - rows * left * right, 0.0) / np.where(
            weight > 0, scale, 1
        )
        return _ratio((weight * r).sum(axis=1), weight.sum(axis=1))

    return evaluate


#: Of probabilities against labels.
ACTIVATION_METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "log_loss": Metric(higher_is_better=False, prepare=_row_mean(row_log_loss)),
        "log_loss_within_neuron": Metric(higher_is_better=False, prepare=_log_loss_within_neuron),
        "brier": Metric(higher_is_better=False, prepare=_row_mean(_squared)),
        "auroc_within_neuron": Metric(higher_is_better=True, prepare=_auroc_within_neuron),
        "auroc": Metric(higher_is_better=True, prepare=_auroc),
        "auprc": Metric(higher_is_better=True, prepare=_auprc),
    }
)
#: Of traces against traces.
FORECAST_METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "mse": Metric(higher_is_better=False, prepare=_row_mean(squared_error)),
        "r": Metric(higher_is_better=True, prepare=_row_mean(pearson_rows)),
        "area_r": Metric(higher_is_better=True, prepare=_area_r),
    }
)
