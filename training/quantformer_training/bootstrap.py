"""Intervals by resampling whole trials: the neurons of a trial share its luck, so they are drawn together.

Differences are *paired*: both predictions meet the same resamples. Two-way, trials and neurons are drawn independently
and a row counts as often as the product (Owen 2007), which asks about other neurons too and is wider.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quantformer.errors import DataError
from quantformer_training.resampled_metrics import Draws, Evaluate, Metric

#: Row counts held at once, so that memory stays bounded (16 MB an array).
CHUNK = 2_000_000
#: Part of the resamples that may leave a metric undefined before its interval is.
UNDEFINED_LIMIT = 0.05

Floats = NDArray[np.float64]
Unit = Literal["trials", "trials x neurons"]
Verdict = Literal["ahead", "behind", "not distinguishable"]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A metric's ``value`` on the rows themselves and its 95 % percentile interval over ``unit``.

    ``undefined`` is the part of the resamples without a value; above `UNDEFINED_LIMIT` the interval is NaN.
    """

    value: float
    low: float
    high: float
    unit: Unit
    undefined: float


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """``difference = candidate - reference`` of a metric, with its 95 % percentile interval over ``unit``.

    ``against`` names the reference. ``undefined`` is as in `Interval`.
    """

    metric: str
    against: str
    candidate: float
    reference: float
    difference: float
    low: float
    high: float
    higher_is_better: bool
    unit: Unit
    undefined: float

    @property
    def verdict(self) -> Verdict:
        """Whether the candidate is better; "not distinguishable" where the interval contains zero or is undefined."""
        if not (self.low > 0.0 or self.high < 0.0):
            return "not distinguishable"
        return "ahead" if (self.low > 0.0) == self.higher_is_better else "behind"


@dataclass(frozen=True, kw_only=True, eq=False)
class _Resampler:
    """Draws of ``resamples`` resamples of the rows' trials (and neurons); the same ones each time it is asked."""

    trial: NDArray[np.intp]
    member: NDArray[np.intp]
    unit: Unit
    resamples: int
    seed: int

    @classmethod
    def build(cls, *, trial: ArrayLike, neuron: ArrayLike, unit: Unit, resamples: int, seed: int) -> _Resampler:
        trials, neurons = np.asarray(trial), np.asarray(neuron)
        if trials.ndim != 1 or trials.shape != neurons.shape or len(trials) == 0:
            raise DataError(
                f"trial has shape {trials.shape}, neuron {neurons.shape}; expected one of each a row, and a row"
            )
        if resamples < 1:
            raise DataError(f"{resamples} resamples were asked for; at least one is needed, and 2000 for an interval")
        numbered = [np.unique(labels, return_inverse=True)[1].reshape(-1) for labels in (trials, neurons)]
        return cls(trial=numbered[0], member=numbered[1], unit=unit, resamples=resamples, seed=seed)

    def point(self, evaluate: Evaluate) -> float:
        """The metric of the rows themselves."""
        trial = np.ones((1, len(self.trial)))
        draws = Draws(trial=trial, neuron=np.ones((1, int(self.member.max()) + 1)), member=self.member)
        return float(evaluate(draws)[0])

    def values(self, evaluations: list[Evaluate]) -> Floats:
        """Each metric on each resample ``(evaluations, resamples)``."""
        trial_random, neuron_random = (np.random.default_rng((self.seed, stream)) for stream in range(2))
        trials, neurons = int(self.trial.max()) + 1, int(self.member.max()) + 1
        size = max(1, CHUNK // len(self.trial))
        found = []
        for begin in range(0, self.resamples, size):
            count = min(size, self.resamples - begin)
            trial = trial_random.multinomial(trials, np.full(trials, 1.0 / trials), size=count).astype(np.float64)
            neuron = np.ones((count, neurons))
            if self.unit == "trials x neurons":
                even = np.full(neurons, 1.0 / neurons)
                neuron = neuron_random.multinomial(neurons, even, size=count).astype(np.float64)
            draws = Draws(trial=trial[:, self.trial], neuron=neuron, member=self.member)
            found.append(np.stack([evaluate(draws) for evaluate in evaluations]))
        return np.concatenate(found, axis=1)


def _percentiles(values: Floats) -> tuple[float, float, float]:
    """2.5 and 97.5 percentile of the defined values, and the undefined part."""
    defined = values[~np.isnan(values)]
    undefined = 1.0 - len(defined) / len(values)
    if undefined > UNDEFINED_LIMIT:
        return float("nan"), float("nan"), undefined
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high), undefined


def intervals(
    prediction: ArrayLike,
    *,
    truth: ArrayLike,
    trial: ArrayLike,
    neuron: ArrayLike,
    metrics: Mapping[str, Metric],
    unit: Unit = "trials",
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Each metric of one prediction with its interval.

    ``prediction`` and ``truth`` are probabilities and labels ``(rows,)`` with `ACTIVATION_METRICS`, traces
    ``(rows, frames)`` with `FORECAST_METRICS`; ``trial`` and ``neuron`` are labels a row.

    Raises:
        DataError: lengths differ, there are no rows, or ``resamples`` is not positive.
    """
    resampler = _Resampler.build(trial=trial, neuron=neuron, unit=unit, resamples=resamples, seed=seed)
    _check(truth, resampler, what="truth")
    _check(prediction, resampler, what="prediction")
    evaluations = [metric.prepare(prediction, truth, resampler.member) for metric in metrics.values()]
    found = {}
    for name, evaluate, values in zip(metrics, evaluations, resampler.values(evaluations), strict=True):
        low, high, undefined = _percentiles(values)
        value = resampler.point(evaluate)
        found[name] = Interval(value=value, low=low, high=high, unit=unit, undefined=undefined)
    return found


def compare(
    candidate: ArrayLike,
    references: Mapping[str, ArrayLike],
    *,
    truth: ArrayLike,
    trial: ArrayLike,
    neuron: ArrayLike,
    metrics: Mapping[str, Metric],
    unit: Unit = "trials",
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, PairedDifference]:
    """The candidate against the best reference of each metric, best on these very rows: that favours the references.

    Arguments are those of `intervals`; ``references`` are predictions of the same rows by name.

    Raises:
        DataError: as `intervals`, or there is no reference.
    """
    if not references:
        raise DataError("no reference to compare with; give at least one prediction by name")
    resampler = _Resampler.build(trial=trial, neuron=neuron, unit=unit, resamples=resamples, seed=seed)
    _check(truth, resampler, what="truth")
    _check(candidate, resampler, what="candidate")
    for name, reference in references.items():
        _check(reference, resampler, what=f"reference {name!r}")
    pairs: list[Evaluate] = []
    best: dict[str, tuple[str, float, float]] = {}
    for name, metric in metrics.items():
        prepared = {key: metric.prepare(reference, truth, resampler.member) for key, reference in references.items()}
        values = {key: resampler.point(evaluate) for key, evaluate in prepared.items()}
        sign = 1.0 if metric.higher_is_better else -1.0
        against = max(values, key=lambda key: sign * values[key] if np.isfinite(values[key]) else -np.inf)
        own = metric.prepare(candidate, truth, resampler.member)
        pairs += [own, prepared[against]]
        best[name] = against, resampler.point(own), values[against]
    drawn = resampler.values(pairs) if pairs else np.zeros((0, resamples))
    found = {}
    for index, (name, (against, value, reference_value)) in enumerate(best.items()):
        low, high, undefined = _percentiles(drawn[2 * index] - drawn[2 * index + 1])
        found[name] = PairedDifference(
            metric=name,
            against=against,
            candidate=value,
            reference=reference_value,
            difference=value - reference_value,
            low=low,
            high=high,
            higher_is_better=metrics[name].higher_is_better,
            unit=unit,
            undefined=undefined,
        )
    return found


def _check(array: ArrayLike, resampler: _Resampler, *, what: str) -> None:
    found = np.shape(array)
    if not found or found[0] != len(resampler.trial):
        raise DataError(f"{what} has shape {found}, expected {len(resampler.trial)} rows like trial and neuron")
    if not np.isfinite(array).all():
        raise DataError(f"{what} holds values that are not finite; leave invalid rows out of every array alike")
