"""Scores: agreement with scikit-learn and scipy, and NaN without a warning where nothing is defined."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.stats import pearsonr
from sklearn.linear_model import LogisticRegression

from quantformer import metrics
from quantformer.errors import DataError

Rows = tuple[NDArray[np.float64], NDArray[np.bool_]]


@st.composite
def labelled(draw: st.DrawFn, *, both: bool = True) -> Rows:
    """Probabilities, many of them tied, and labels; with at least one of each class where ``both``."""
    rows = draw(st.integers(2, 40))
    value = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]) | st.floats(1e-5, 1 - 1e-5)
    score = draw(hnp.arrays(np.float64, rows, elements=value))
    active = draw(hnp.arrays(np.bool_, rows))
    if both:
        active[:2] = [True, False]
    return score, active


@given(labelled())
def test_probability_scores_agree_with_scikit_learn(rows: Rows) -> None:
    score, active = rows
    floored = np.clip(score, metrics.PROBABILITY_FLOOR, 1 - metrics.PROBABILITY_FLOOR)
    assert metrics.log_loss(score, active) == pytest.approx(reference.log_loss(active, floored))
    assert metrics.brier(score, active) == pytest.approx(reference.brier_score_loss(active, score))
    assert metrics.auroc(score, active) == pytest.approx(reference.roc_auc_score(active, score))
    assert metrics.auprc(score, active) == pytest.approx(reference.average_precision_score(active, score))


@given(labelled(), st.floats(0.05, 0.95))
def test_decisions_agree_with_scikit_learn(rows: Rows, threshold: float) -> None:
    score, active = rows
    chosen = score >= threshold
    found = metrics.decisions(score, active, threshold=threshold)
    assert found.balanced_accuracy == pytest.approx(reference.balanced_accuracy_score(active, chosen))
    assert found.recall == pytest.approx(reference.recall_score(active, chosen))
    assert found.f1 == pytest.approx(reference.f1_score(active, chosen, zero_division=0))
    if chosen.any():
        assert found.precision == pytest.approx(reference.precision_score(active, chosen))
    else:
        assert math.isnan(found.precision)


@given(labelled(both=False))
def test_nothing_warns_and_undefined_is_nan(rows: Rows) -> None:
    score, active = rows
    scores = metrics.score_activation(score, active, neuron=np.arange(len(score)), minutes=1.0)
    assert math.isnan(scores.auroc) == (active.all() or not active.any())
    assert math.isnan(scores.auprc) == (not active.any())
    assert math.isnan(scores.auroc_within_neuron)
    assert scores.auroc_within_neuron_groups == 0
    assert math.isnan(scores.brier_skill)
    assert math.isfinite(scores.log_loss)


def test_no_rows_have_no_scores() -> None:
    scores = metrics.score_activation([], [], neuron=[], stimulus=[], rate=[], minutes=1.0)
    assert all(math.isnan(v) for k, v in asdict(scores).items() if isinstance(v, float))
    assert scores.rows == 0
    none = metrics.score_forecast(np.zeros((0, 64)), np.zeros((0, 64)), neuron=[])
    assert all(math.isnan(v) for v in asdict(none).values() if isinstance(v, float))


def test_within_neuron_ignores_identity() -> None:
    neuron = np.repeat(np.arange(4), 10)
    active = np.zeros(40, bool)
    active[[0, 1, 2, 10, 11, 12, 13, 20, 21]] = True
    active[29] = True
    known = np.array([0.3, 0.4, 0.3, 0.0])[neuron]
    assert metrics.auroc(known, active) > 0.65
    found = metrics.auroc_within(known, active, groups=neuron)
    assert (found.mean, found.groups) == (0.5, 3)
    order = np.random.default_rng(0).permutation(40)
    useful = known + active
    assert metrics.auroc_within(useful[order], active[order], groups=neuron[order]).mean == 1.0
    # The fourth neuron is silent: it is easy, and it is left out of the within-neuron log-loss.
    loss = metrics.log_loss_within(known, active, groups=neuron)
    by_hand = [reference.log_loss(active[neuron == n], known[neuron == n]) for n in range(3)]
    assert loss.mean == pytest.approx(np.mean(by_hand))


def test_within_needs_enough_of_both() -> None:
    active = np.array([True, False, False, True, True, False, False])
    groups = np.array([0, 0, 0, 1, 1, 1, 1])
    assert metrics.auroc_within(np.arange(7.0), active, groups=groups).groups == 1
    assert metrics.auroc_within(np.arange(7.0), active, groups=groups, minimum_each=1).groups == 2


def test_neuron_by_stimulus_groups() -> None:
    neuron, stimulus = (a.reshape(-1) for a in np.meshgrid(np.repeat([3, 7], 8), [0, 5], indexing="ij"))
    rng = np.random.default_rng(1)
    active = rng.random(32) < 0.5
    score = rng.random(32)
    found = metrics.score_activation(score, active, neuron=neuron, stimulus=stimulus)
    expected = metrics.auroc_within(score, active, groups=neuron * 10 + stimulus)
    assert found.auroc_within_neuron_stimulus == expected.mean
    assert found.auroc_within_neuron_stimulus_groups == expected.groups == 4


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.floats(-2, 2), st.floats(-1.5, 2.5))
def test_calibration_is_the_maximum_likelihood(seed: int, intercept: float, slope: float) -> None:
    rng = np.random.default_rng(seed)
    logit = rng.normal(-1.0, 1.5, 300)
    active = rng.random(300) < 1 / (1 + np.exp(-(intercept + slope * logit)))
    assume(5 < active.sum() < 295)
    found = metrics.calibration(1 / (1 + np.exp(-logit)), active)
    fitted = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logit[:, None], active)
    assert found.slope == pytest.approx(fitted.coef_[0, 0], abs=2e-3)
    assert found.intercept == pytest.approx(fitted.intercept_[0], abs=2e-3)


@pytest.mark.parametrize(
    ("score", "active"),
    [
        ([0.1, 0.2, 0.8], [False, False, True]),  # a threshold separates them: the slope would be infinite
        ([0.9, 0.8, 0.2], [False, False, True]),
        ([0.3, 0.3, 0.3], [True, False, True]),
        ([0.3, 0.4], [True, True]),
    ],
)
def test_calibration_without_a_maximum_is_nan(score: list[float], active: list[bool]) -> None:
    found = metrics.calibration(score, active)
    assert math.isnan(found.slope)
    assert math.isnan(found.intercept)


def test_calibration_survives_extreme_probabilities() -> None:
    score = np.array([0.0, 0.0, 1.0, 1.0, 1e-9, 1 - 1e-9, 0.5, 0.4])
    active = np.array([True, False, False, True, False, True, True, False])
    found = metrics.calibration(score, active)
    assert 0 < found.slope < 0.5


@given(labelled(both=False), st.integers(1, 12))
def test_reliability_keeps_every_row(rows: Rows, bins: int) -> None:
    score, active = rows
    found = metrics.reliability(score, active, bins=bins)
    assert found.count.sum() == len(score)
    assert len(found.count) <= bins
    assert (np.diff(found.predicted) > 0).all()
    assert (found.count * found.observed).sum() == pytest.approx(active.sum())
    assert (found.count * found.predicted).sum() == pytest.approx(score.sum())
    assert 0 <= found.error <= 1


def test_reliability_bins_of_equal_size() -> None:
    score = np.linspace(0, 1, 1000)
    active = np.random.default_rng(0).random(1000) < score
    found = metrics.reliability(score, active)
    assert found.count.tolist() == [100] * 10
    assert found.error < 0.05
    assert metrics.reliability(score, ~active).error > 0.4


def test_precision_at_false_triggers() -> None:
    score = np.array([0.9, 0.8, 0.8, 0.7, 0.6, 0.5, 0.4])
    active = np.array([True, True, False, True, False, False, True])
    at = [metrics.precision_at_false_triggers(score, active, false_per_minute=k, minutes=0.5) for k in (1.0, 2.0, 4.0)]
    # Half a minute at one false a minute allows none; the tie at 0.8 cannot be cut between its rows.
    assert (at[0].threshold, at[0].precision, at[0].recall, at[0].triggers) == (0.9, 1.0, 0.25, 1)
    assert (at[1].threshold, at[1].precision, at[1].recall, at[1].triggers) == (0.7, 0.75, 0.75, 4)
    assert (at[2].threshold, at[2].triggers) == (0.6, 5)
    none = metrics.precision_at_false_triggers([0.9, 0.1], [False, True], false_per_minute=1.0, minutes=0.1)
    assert (none.threshold, none.recall, none.triggers) == (math.inf, 0.0, 0)
    assert math.isnan(none.precision)
    with pytest.raises(DataError, match="positive time"):
        metrics.precision_at_false_triggers(score, active, false_per_minute=1.0, minutes=0.0)


@given(labelled(both=False), st.floats(0, 5), st.floats(0.1, 10))
def test_false_triggers_keep_to_the_budget(rows: Rows, budget: float, minutes: float) -> None:
    score, active = rows
    found = metrics.precision_at_false_triggers(score, active, false_per_minute=budget, minutes=minutes)
    fired = score >= found.threshold
    assert fired.sum() == found.triggers
    assert (fired & ~active).sum() <= budget * minutes
    lower = score[score < found.threshold]
    if lower.size:
        assert ((score >= lower.max()) & ~active).sum() > budget * minutes


def test_skill_against_a_rate() -> None:
    active = np.array([True, False, False, False] * 5)
    rate = np.full(20, 0.25)
    better = np.where(active, 0.6, 0.1)
    scores = metrics.score_activation(better, active, neuron=np.zeros(20, int), rate=rate, minutes=2.0)
    assert scores.brier_skill == pytest.approx(1 - np.mean((better - active) ** 2) / 0.1875)
    assert scores.log_loss_skill > 0
    assert metrics.score_activation(rate, active, neuron=np.zeros(20, int), rate=rate).log_loss_skill == 0
    assert [trigger.false_per_minute for trigger in scores.triggers] == [1.0, 2.0, 5.0]
    assert math.isnan(metrics.skill(0.1, reference=0.0))


def test_bad_rows_are_refused() -> None:
    with pytest.raises(DataError, match="0 to 1"):
        metrics.log_loss([-2.0, 3.0], [True, False])
    with pytest.raises(DataError, match="NaN"):
        metrics.auroc([np.nan, 0.2], [True, False])
    with pytest.raises(DataError, match="one of each a row"):
        metrics.brier([0.1, 0.2], [True])
    with pytest.raises(DataError, match="one a row"):
        metrics.auroc_within([0.1, 0.2], [True, False], groups=[1])
    with pytest.raises(DataError, match="not finite"):
        metrics.score_forecast(np.full((2, 4), np.nan), np.zeros((2, 4)), neuron=[0, 1])
    with pytest.raises(DataError, match=r"expected \(rows, frames\)"):
        metrics.pearson_rows(np.zeros((2, 4)), np.zeros((2, 5)))
    with pytest.raises(DataError, match="one label a row"):
        metrics.area_r(np.zeros((2, 4)), np.zeros((2, 4)), neuron=[0])


TRACES = hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.just(16)), elements=st.floats(-5, 5, width=32))


@given(st.data())
def test_trace_scores_agree_with_scipy_and_plain_formulas(data: st.DataObject) -> None:
    actual = data.draw(TRACES)
    predicted = data.draw(hnp.arrays(np.float64, actual.shape, elements=st.floats(-5, 5, width=32)))
    r = metrics.pearson_rows(predicted, actual)
    for row, (p, a) in enumerate(zip(predicted, actual, strict=True)):
        if min(p.std(), a.std()) > 1e-3:
            assert r[row] == pytest.approx(pearsonr(p, a).statistic, abs=1e-9)
        if p.std() == 0 or a.std() == 0:
            assert math.isnan(r[row])
    assert metrics.squared_error(predicted, actual) == pytest.approx(((predicted - actual) ** 2).mean(axis=1))
    s = metrics.smape(predicted, actual)
    assert ((s >= 0) & (s <= 1)).all()
    similarity = metrics.ssim(predicted, actual)
    assert (np.abs(similarity) <= 1 + 1e-9).all()
    assert metrics.ssim(actual, actual) == pytest.approx(np.ones(len(actual)))
    metrics.score_forecast(predicted, actual, neuron=np.arange(len(actual)) % 2)


def test_smape_and_ssim_by_hand() -> None:
    assert metrics.smape([[0.0, 1.0, -1.0, 2.0]], [[0.0, 3.0, 1.0, 2.0]])[0] == pytest.approx((0 + 0.5 + 1 + 0) / 4)
    p, a = np.array([0.1, 0.3]), np.array([0.2, 0.6])
    level = (2 * 0.2 * 0.4 + 1e-4) / (0.04 + 0.16 + 1e-4)
    shape = (2 * 0.1 * 0.2 + 9e-4) / (0.01 + 0.04 + 9e-4)
    assert metrics.ssim(p[None], a[None])[0] == pytest.approx(level * shape)


def test_gradient_normalised() -> None:
    found = metrics.gradient_normalised([[1.0, 3.0, 2.0], [4.0, 4.0, 4.0]])
    assert found.degenerate.tolist() == [False, True]
    assert found.traces[0] == pytest.approx(np.array([1.0, 3.0, 2.0]) / 3.0)
    assert (found.traces[1] == 0).all()
    rng = np.random.default_rng(0)
    actual = rng.normal(size=(10, 64))
    predicted = 2.0 * actual
    predicted[3] = 0.7
    scores = metrics.score_forecast(predicted, actual, neuron=np.arange(10))
    assert scores.degenerate == pytest.approx(0.1)
    assert scores.normalised_mse == pytest.approx(0.0, abs=1e-20)
    assert scores.r_undefined == 1
    assert scores.r == pytest.approx(1.0)


def test_chance_of_absolute_r_is_high_for_smooth_traces() -> None:
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.normal(size=(200, 64)), axis=1)
    rough = rng.normal(size=(200, 64))
    # Pitfall 5 of the notes: unrelated smooth traces correlate in absolute value, so abs(r) is shown beside its chance.
    assert metrics.absolute_r_chance(smooth, smooth) > 0.3
    assert metrics.absolute_r_chance(rough, rough) < 0.15
    # A trace is never paired with itself.
    assert metrics.absolute_r_chance(rough[:2], rough[:2]) == pytest.approx(abs(pearsonr(*rough[:2]).statistic))
    scores = metrics.score_forecast(smooth, np.roll(smooth, 7, axis=0), neuron=np.arange(200))
    assert scores.absolute_r == pytest.approx(scores.absolute_r_chance, abs=0.06)
    assert abs(scores.r) < 0.1


def test_area_r_needs_a_forecast_that_varies() -> None:
    rng = np.random.default_rng(0)
    neuron = np.repeat([4, 9, 2], [10, 10, 2])
    size = rng.normal(size=22)
    actual = size[:, None] + 0.5 * rng.normal(size=(22, 64))
    found = metrics.area_r(size[:, None] * np.ones(64), actual, neuron=neuron)
    assert found.neurons == 2  # the third has two trials only
    expected = [pearsonr(size[neuron == n], actual[neuron == n].mean(axis=1)).statistic for n in (4, 9)]
    assert found.mean == pytest.approx(np.mean(expected))
    # A different level a neuron, the same in every trial, tells nothing about the trial.
    same = metrics.area_r((neuron * 0.1)[:, None].astype(np.float32) * np.ones(64), actual, neuron=neuron)
    assert (same.neurons, math.isnan(same.mean)) == (0, True)
