"""Scores of activation probabilities: pure functions of arrays, NaN where a score is undefined, never a warning.

A *row* is one neuron in one trial. `score_activation` gives everything at once; ``docs/metrics.md`` has the formulas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quantformer.errors import DataError

#: Probabilities are held this far from 0 and 1 before a logarithm, so that one sure mistake costs 13.8 nats, not infinity.
PROBABILITY_FLOOR = 1e-6
#: False triggers a minute at which precision is reported.
FALSE_PER_MINUTE = (1.0, 2.0, 5.0)
#: Active and inactive rows that a group needs before it has an AUROC.
MINIMUM_EACH = 2

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


def _scored(score: ArrayLike, active: ArrayLike) -> tuple[Floats, Flags]:
    score, active = np.asarray(score, dtype=np.float64), np.asarray(active, dtype=np.bool_)
    if score.ndim != 1 or score.shape != active.shape:
        raise DataError(f"scores have shape {score.shape}, labels {active.shape}; give one of each a row")
    if np.isnan(score).any():
        raise DataError(
            f"{int(np.isnan(score).sum())} of {len(score)} scores are NaN; leave invalid rows out before scoring"
        )
    return score, active


def _probabilities(probability: ArrayLike, active: ArrayLike) -> tuple[Floats, Flags]:
    probability, active = _scored(probability, active)
    if len(probability) and not (probability.min() >= 0.0 and probability.max() <= 1.0):
        raise DataError(
            f"probabilities reach from {probability.min():.4g} to {probability.max():.4g}, expected 0 to 1; "
            "apply the sigmoid to logits first"
        )
    return probability, active


def _mean(values: ArrayLike) -> float:
    values = np.asarray(values, dtype=np.float64)
    return float(values.mean()) if values.size else float("nan")


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else float("nan")


def row_log_loss(probability: ArrayLike, active: ArrayLike) -> Floats:
    """Negative log-likelihood in nats of each row ``(rows,)``, with `PROBABILITY_FLOOR`."""
    probability, active = _probabilities(probability, active)
    clipped = np.clip(probability, PROBABILITY_FLOOR, 1.0 - PROBABILITY_FLOOR)
    return -np.log(np.where(active, clipped, 1.0 - clipped))


def log_loss(probability: ArrayLike, active: ArrayLike) -> float:
    """Mean negative log-likelihood in nats; lower is better."""
    return _mean(row_log_loss(probability, active))


def brier(probability: ArrayLike, active: ArrayLike) -> float:
    """Mean squared difference of probability and outcome; lower is better."""
    probability, active = _probabilities(probability, active)
    return _mean((probability - active) ** 2)


def skill(loss: float, *, reference: float) -> float:
    """``1 - loss / reference``: 1 is perfect, 0 no better than the reference; NaN where the reference loss is zero."""
    return 1.0 - _ratio(loss, reference)


def auroc(score: ArrayLike, active: ArrayLike) -> float:
    """Probability that an active row scores above an inactive one, ties counting half (Mann-Whitney)."""
    score, active = _scored(score, active)
    positive = int(active.sum())
    negative = len(active) - positive
    if positive == 0 or negative == 0:
        return float("nan")
    _, which, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2.0
    above = float(rank[which][active].sum()) - positive * (positive + 1) / 2.0
    return above / (positive * negative)


@dataclass(frozen=True, kw_only=True)
class WithinGroups:
    """Unweighted mean of a score over ``groups`` groups that have enough active and inactive rows."""

    mean: float
    groups: int


def _within(groups: ArrayLike, active: Flags, minimum_each: int) -> list[NDArray[np.intp]]:
    labels = np.asarray(groups)
    if labels.shape != active.shape:
        raise DataError(f"groups have shape {labels.shape}, labels {active.shape}; give one a row")
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    members = np.split(order, np.flatnonzero(ordered[1:] != ordered[:-1]) + 1)
    return [rows for rows in members if minimum_each <= active[rows].sum() <= len(rows) - minimum_each]


def auroc_within(
    score: ArrayLike, active: ArrayLike, *, groups: ArrayLike, minimum_each: int = MINIMUM_EACH
) -> WithinGroups:
    """AUROC inside each group (neuron, or neuron x stimulus), averaged: what is known beyond the group's identity."""
    score, active = _scored(score, active)
    members = _within(groups, active, max(minimum_each, 1))
    return WithinGroups(mean=_mean([auroc(score[rows], active[rows]) for rows in members]), groups=len(members))


def log_loss_within(
    probability: ArrayLike, active: ArrayLike, *, groups: ArrayLike, minimum_each: int = MINIMUM_EACH
) -> WithinGroups:
    """Log-loss of each group that also has an AUROC, averaged; silent neurons, which are easy, do not count."""
    loss = row_log_loss(probability, active)
    members = _within(groups, np.asarray(active, dtype=np.bool_), max(minimum_each, 1))
    return WithinGroups(mean=_mean([loss[rows].mean() for rows in members]), groups=len(members))


def auprc(score: ArrayLike, active: ArrayLike) -> float:
    """Average precision: precision at each distinct threshold, weighted by the recall it adds (no interpolation)."""
    score, active = _scored(score, active)
    if not active.any():
        return float("nan")
    _, true, chosen = _thresholds(score, active)
    return float((np.diff(true, prepend=0) * true / chosen).sum() / active.sum())


def _thresholds(score: Floats, active: Flags) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    """Distinct scores, highest first, with the active and all rows at or above each."""
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) if len(ordered) else np.zeros(0, np.intp)
    return ordered[last], np.cumsum(active[order], dtype=np.int64)[last], (last + 1).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Logistic recalibration ``logit P(active) = intercept + slope * logit(probability)``; 1 and 0 are ideal.

    A slope below 1 means probabilities too extreme. NaN where the maximum does not exist: one class only, one distinct
    probability only, or classes that a threshold separates.
    """

    slope: float
    intercept: float


def calibration(probability: ArrayLike, active: ArrayLike) -> Calibration:
    """Slope and intercept by maximum likelihood (Newton steps, halved while they do not improve)."""
    probability, active = _probabilities(probability, active)
    clipped = np.clip(probability, PROBABILITY_FLOOR, 1.0 - PROBABILITY_FLOOR)
    logit = np.log(clipped) - np.log1p(-clipped)
    undefined = Calibration(slope=float("nan"), intercept=float("nan"))
    if not active.any() or active.all():
        return undefined
    on, off = logit[active], logit[~active]
    if on.min() >= off.max() or off.min() >= on.max():
        return undefined
    centre, scale = logit.mean(), logit.std()
    design = np.stack([np.ones_like(logit), (logit - centre) / scale], axis=1)
    sign = np.where(active, 1.0, -1.0)

    def loss(weights: Floats) -> float:
        return float(np.logaddexp(0.0, -sign * (design @ weights)).sum())

    weights = np.zeros(2)
    for _ in range(100):
        fitted = 0.5 * (1.0 + np.tanh(0.5 * (design @ weights)))
        gradient = design.T @ (active - fitted)
        # The ridge keeps the step finite where every fitted probability saturates; it does not move the maximum.
        hessian = (design * (fitted * (1.0 - fitted))[:, None]).T @ design + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        before = loss(weights)
        while loss(weights + step) > before and np.abs(step).max() > 1e-12:
            step = step / 2.0
        weights = weights + step
        if np.abs(step).max() < 1e-10:
            break
    slope = float(weights[1] / scale)
    return Calibration(slope=slope, intercept=float(weights[0] - slope * centre))


@dataclass(frozen=True, kw_only=True, eq=False)
class Reliability:
    """Rows binned by probability: mean ``predicted``, ``observed`` active fraction and ``count``, each ``(bins,)``."""

    predicted: Floats
    observed: Floats
    count: NDArray[np.int64]

    @property
    def error(self) -> float:
        """Expected calibration error: mean of abs(observed - predicted), weighted by count."""
        return _ratio(float((self.count * np.abs(self.observed - self.predicted)).sum()), float(self.count.sum()))


def reliability(probability: ArrayLike, active: ArrayLike, *, bins: int = 10) -> Reliability:
    """Bins of about equally many rows, lowest probability first; equal probabilities share a bin, empty bins are left out."""
    probability, active = _probabilities(probability, active)
    if not len(probability):
        return Reliability(predicted=np.zeros(0), observed=np.zeros(0), count=np.zeros(0, np.int64))
    edges = np.quantile(probability, np.arange(1, bins) / bins, method="higher")
    which = np.unique(np.searchsorted(edges, probability, side="right"), return_inverse=True)[1]
    count = np.bincount(which)
    lowest, highest = np.full(len(count), np.inf), np.full(len(count), -np.inf)
    np.minimum.at(lowest, which, probability)
    np.maximum.at(highest, which, probability)
    return Reliability(
        # A mean lies among what it is of, whatever its sum was rounded to: bins keep their order.
        predicted=np.clip(np.bincount(which, probability) / count, lowest, highest),
        observed=np.bincount(which, active) / count,
        count=count.astype(np.int64),
    )


@dataclass(frozen=True, kw_only=True)
class TriggerPrecision:
    """What a trigger at the lowest ``threshold`` with at most ``false_per_minute`` false triggers a minute would do.

    ``precision`` is NaN and ``threshold`` infinite where no threshold keeps within the budget.
    """

    false_per_minute: float
    threshold: float
    precision: float
    recall: float
    triggers: int


def precision_at_false_triggers(
    probability: ArrayLike, active: ArrayLike, *, false_per_minute: float, minutes: float
) -> TriggerPrecision:
    """Precision where every row at or above a threshold fires, at a given number of false triggers a minute.

    ``minutes`` is the time that the rows together took. All rows drive one output: with a rule a neuron instead, multiply
    ``minutes`` by the neurons. The threshold is read off the same rows, so it is an operating point, not a forecast of one.

    Raises:
        DataError: ``minutes`` is not positive.
    """
    score, active = _scored(probability, active)
    if not minutes > 0:
        raise DataError(f"the rows took {minutes} minutes; a positive time was expected")
    value, true, chosen = _thresholds(score, active)
    allowed = np.flatnonzero(chosen - true <= false_per_minute * minutes)
    found = len(allowed) > 0
    hits, fired = (int(true[allowed[-1]]), int(chosen[allowed[-1]])) if found else (0, 0)
    return TriggerPrecision(
        false_per_minute=false_per_minute,
        threshold=float(value[allowed[-1]]) if found else float("inf"),
        precision=_ratio(hits, fired),
        recall=_ratio(hits, int(active.sum())),
        triggers=fired,
    )


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """Paper-compatible scores of yes/no decisions (paper section 4.3), NaN where a denominator is zero."""

    balanced_accuracy: float
    f1: float
    precision: float
    recall: float


def decisions(probability: ArrayLike, active: ArrayLike, *, threshold: float = 0.5) -> Decisions:
    """Scores of ``probability >= threshold``."""
    score, active = _scored(probability, active)
    chosen = score >= threshold
    hit, false = int((chosen & active).sum()), int((chosen & ~active).sum())
    missed, quiet = int((~chosen & active).sum()), int((~chosen & ~active).sum())
    return Decisions(
        balanced_accuracy=0.5 * (_ratio(hit, hit + missed) + _ratio(quiet, quiet + false)),
        f1=_ratio(2 * hit, 2 * hit + false + missed),
        precision=_ratio(hit, hit + false),
        recall=_ratio(hit, hit + missed),
    )


@dataclass(frozen=True, kw_only=True)
class ActivationScores:
    """Headline figures first; skills are against ``rate``, the neuron x stimulus rate known from training."""

    rows: int
    active_fraction: float
    log_loss: float
    log_loss_within_neuron: float
    log_loss_skill: float
    brier: float
    brier_skill: float
    auroc_within_neuron: float
    auroc_within_neuron_groups: int
    auroc_within_neuron_stimulus: float
    auroc_within_neuron_stimulus_groups: int
    calibration_slope: float
    calibration_intercept: float
    calibration_error: float
    triggers: tuple[TriggerPrecision, ...]
    #: Paper-compatible from here on: each is inflated by knowing which neuron it is.
    auroc: float
    auprc: float
    balanced_accuracy: float
    f1: float
    precision: float
    recall: float


def score_activation(
    probability: ArrayLike,
    active: ArrayLike,
    *,
    neuron: ArrayLike,
    stimulus: ArrayLike | None = None,
    rate: ArrayLike | None = None,
    minutes: float | None = None,
    threshold: float = 0.5,
) -> ActivationScores:
    """Every activation score of rows ``(rows,)``.

    ``neuron`` and ``stimulus`` are integer labels a row; ``rate`` the reference probability a row; ``minutes`` the time
    that the rows took, for precision at fixed false triggers. What an absent argument would need is NaN or empty.

    Raises:
        DataError: lengths differ, or probabilities are NaN or outside 0 to 1.
    """
    probability, active = _probabilities(probability, active)
    groups = np.asarray(neuron)
    within = auroc_within(probability, active, groups=groups)
    pairs = WithinGroups(mean=float("nan"), groups=0)
    if stimulus is not None and len(active):
        labels = np.asarray(stimulus)
        if labels.shape != groups.shape:
            raise DataError(f"stimulus has shape {labels.shape}, neuron {groups.shape}; give one of each a row")
        pair = np.unique(np.stack([groups, labels]), axis=1, return_inverse=True)[1].reshape(-1)
        pairs = auroc_within(probability, active, groups=pair)
    losses = log_loss(probability, active), brier(probability, active)
    reference = (float("nan"),) * 2 if rate is None else (log_loss(rate, active), brier(rate, active))
    triggers: tuple[TriggerPrecision, ...] = ()
    if minutes is not None:
        triggers = tuple(
            precision_at_false_triggers(probability, active, false_per_minute=budget, minutes=minutes)
            for budget in FALSE_PER_MINUTE
        )
    fit, decided = calibration(probability, active), decisions(probability, active, threshold=threshold)
    return ActivationScores(
        rows=len(active),
        active_fraction=_mean(active),
        log_loss=losses[0],
        log_loss_within_neuron=log_loss_within(probability, active, groups=groups).mean,
        log_loss_skill=skill(losses[0], reference=reference[0]),
        brier=losses[1],
        brier_skill=skill(losses[1], reference=reference[1]),
        auroc_within_neuron=within.mean,
        auroc_within_neuron_groups=within.groups,
        auroc_within_neuron_stimulus=pairs.mean,
        auroc_within_neuron_stimulus_groups=pairs.groups,
        calibration_slope=fit.slope,
        calibration_intercept=fit.intercept,
        calibration_error=reliability(probability, active).error,
        triggers=triggers,
        auroc=auroc(probability, active),
        auprc=auprc(probability, active),
        balanced_accuracy=decided.balanced_accuracy,
        f1=decided.f1,
        precision=decided.precision,
        recall=decided.recall,
    )
