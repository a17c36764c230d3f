"""Every score against somebody else's: scikit-learn, scipy, torchmetrics, or a loop that is the definition.

Each test names, in a comment, a change of the score that it was seen to fail on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.stats import bootstrap, pearsonr
from sklearn.calibration import calibration_curve

from quantformer import metrics
from quantformer.trace_metrics import FLAT, GRADIENT_EPSILON
from quantformer_training.bootstrap import intervals
from quantformer_training.resampled_metrics import ACTIVATION_METRICS, FORECAST_METRICS, Draws

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Labels = NDArray[np.int64]

VALUES = st.sampled_from([0.1, 0.25, 0.5, 0.75, 0.9]) | st.floats(1e-5, 1 - 1e-5)


@st.composite
def grouped(draw: st.DrawFn, *, groups: int = 4) -> tuple[Floats, Flags, Labels, Labels]:
    """Probabilities, many tied, labels, neurons and stimuli of some rows; both classes are there."""
    rows = draw(st.integers(4, 60))
    score = draw(hnp.arrays(np.float64, rows, elements=VALUES))
    active = draw(hnp.arrays(np.bool_, rows))
    active[:2] = [True, False]
    labels = [draw(hnp.arrays(np.int64, rows, elements=st.integers(0, groups - 1))) for _ in range(2)]
    return score, active, labels[0], labels[1]


Grouped = tuple[Floats, Flags, Labels, Labels]


def within(score: Floats, active: Flags, group: Labels, *, of: Any) -> list[float]:
    """A scikit-learn score of each group with two of both."""
    found = []
    for one in np.unique(group):
        mine = group == one
        if active[mine].sum() >= 2 and (~active[mine]).sum() >= 2:
            found.append(float(of(active[mine], score[mine])))
    return found


@settings(max_examples=40)
@given(grouped())
def test_scores_within_groups_are_loops_over_scikit_learn(rows: Grouped) -> None:
    # Seen to fail: groups weighted by their rows; groups with one active row let in; ties counted as won.
    score, active, neuron, stimulus = rows
    found = metrics.score_activation(score, active, neuron=neuron, stimulus=stimulus)
    for value, count, expected in (
        (found.auroc_within_neuron, found.auroc_within_neuron_groups, within(score, active, neuron, of=sk.roc_auc_score)),
        (
            found.auroc_within_neuron_stimulus,
            found.auroc_within_neuron_stimulus_groups,
            within(score, active, neuron * 10 + stimulus, of=sk.roc_auc_score),
        ),
    ):
        assert count == len(expected)
        assert value == pytest.approx(np.mean(expected) if expected else np.nan, nan_ok=True)
    losses = within(score, active, neuron, of=sk.log_loss)
    assert found.log_loss_within_neuron == pytest.approx(np.mean(losses) if losses else np.nan, nan_ok=True)


@settings(max_examples=40)
@given(grouped())
def test_skill_over_the_base_rate_is_scikit_learns_d2(rows: Grouped) -> None:
    # Seen to fail: reference / loss in place of loss / reference.
    score, active, neuron, _ = rows
    rate = np.full(len(score), active.mean())
    found = metrics.score_activation(score, active, neuron=neuron, rate=rate)
    assert found.log_loss_skill == pytest.approx(sk.d2_log_loss_score(active, score))
    assert found.brier_skill == pytest.approx(sk.d2_brier_score(active, score))


@settings(max_examples=25)
@given(grouped())
def test_probability_scores_agree_with_torchmetrics(rows: Grouped) -> None:
    # Seen to fail: a threshold that is not reached by equality; average precision by trapezes.
    torch, tm = pytest.importorskip("torch"), pytest.importorskip("torchmetrics.functional.classification")
    score, active, neuron, _ = rows
    found = metrics.score_activation(score, active, neuron=neuron, threshold=0.5)
    made, truth = torch.from_numpy(score), torch.from_numpy(active.astype(np.int64))
    assert found.auroc == pytest.approx(float(tm.binary_auroc(made, truth)), abs=1e-6)
    assert found.auprc == pytest.approx(float(tm.binary_average_precision(made, truth)), abs=1e-6)
    # Torchmetrics decides by p > threshold; the next number below makes that p >= 0.5.
    asked = {"threshold": float(np.nextafter(0.5, 0))}
    if (score >= 0.5).any():
        assert found.precision == pytest.approx(float(tm.binary_precision(made, truth, **asked)), abs=1e-6)
    assert found.recall == pytest.approx(float(tm.binary_recall(made, truth, **asked)), abs=1e-6)
    assert found.f1 == pytest.approx(float(tm.binary_f1_score(made, truth, **asked)), abs=1e-6)
    specificity = float(tm.binary_specificity(made, truth, **asked))
    assert found.balanced_accuracy == pytest.approx((found.recall + specificity) / 2, abs=1e-6)


@settings(max_examples=50)
@given(grouped())
def test_calibration_solves_the_score_equations(rows: Grouped) -> None:
    # The maximum of a logistic likelihood is where residuals are orthogonal to the constant and to the logit: no solver's
    # tolerance enters. Seen to fail: two Newton steps; slope not divided by the spread of the logit.
    score, active, _, _ = rows
    found = metrics.calibration(score, active)
    logit = np.log(score) - np.log1p(-score)
    separated = logit[active].min() >= logit[~active].max() or logit[~active].min() >= logit[active].max()
    assert np.isnan(found.slope) == separated
    assume(not separated)
    residual = active - 1 / (1 + np.exp(-(found.intercept + found.slope * logit)))
    assert residual.sum() == pytest.approx(0.0, abs=1e-6 * len(score))
    assert (residual * logit).sum() == pytest.approx(0.0, abs=1e-5 * len(score))


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(2, 8), st.integers(2, 20))
def test_reliability_of_even_bins_is_scikit_learns(seed: int, bins: int, each: int) -> None:
    # Without ties, and with rows that divide evenly, "about equally many rows" leaves no choice. Seen to fail: edges at
    # the next lower score.
    rng = np.random.default_rng(seed)
    score = rng.permutation(np.linspace(0.01, 0.99, bins * each))
    active = rng.random(len(score)) < score
    found = metrics.reliability(score, active, bins=bins)
    observed, predicted = calibration_curve(active, score, n_bins=bins, strategy="quantile")
    assert found.count.tolist() == [each] * bins
    assert found.observed == pytest.approx(observed)
    assert found.predicted == pytest.approx(predicted)
    assert found.error == pytest.approx(np.abs(observed - predicted).mean())


@settings(max_examples=40)
@given(grouped())
def test_reliability_error_is_the_loop_over_its_bins(rows: Grouped) -> None:
    # Seen to fail: an error that does not weigh bins by their rows.
    score, active, _, _ = rows
    found = metrics.reliability(score, active)
    order = np.argsort(score, kind="stable")
    start, total = 0, 0.0
    for count in found.count:
        mine = order[start : start + count]
        total += count * abs(active[mine].mean() - score[mine].mean())
        start += int(count)
    assert found.error == pytest.approx(total / len(score))


@settings(max_examples=40)
@given(grouped(), st.floats(0, 5), st.floats(0.2, 5))
def test_false_triggers_are_the_best_of_all_thresholds(rows: Grouped, budget: float, minutes: float) -> None:
    # Seen to fail: the strictest threshold in place of the lowest; false triggers not divided by the minutes.
    score, active, _, _ = rows
    found = metrics.precision_at_false_triggers(score, active, false_per_minute=budget, minutes=minutes)
    kept = [t for t in np.unique(score) if ((score >= t) & ~active).sum() <= budget * minutes]
    if not kept:
        assert (found.threshold, found.triggers) == (np.inf, 0)
        return
    fires = score >= min(kept)
    assert found.threshold == min(kept)
    assert found.precision == pytest.approx(sk.precision_score(active, fires))
    assert found.recall == pytest.approx(sk.recall_score(active, fires))


TRACE = st.floats(-5, 5, width=32)


@st.composite
def paired(draw: st.DrawFn, *, frames: int) -> tuple[Floats, Floats, Labels]:
    """Forecast and true traces, and a neuron a row."""
    rows = draw(st.integers(1, 8))
    made, truth = (draw(hnp.arrays(np.float64, (rows, frames), elements=TRACE)) for _ in range(2))
    return made, truth, draw(hnp.arrays(np.int64, rows, elements=st.integers(0, 2)))


Paired = tuple[Floats, Floats, Labels]


@settings(max_examples=40)
@given(paired(frames=16))
def test_trace_scores_agree_with_torchmetrics(rows: Paired) -> None:
    # Seen to fail: SMAPE with a factor 2; r of the whole array in place of the rows.
    torch, tm = pytest.importorskip("torch"), pytest.importorskip("torchmetrics.functional")
    predicted, actual, neuron = rows
    made, truth = torch.from_numpy(predicted), torch.from_numpy(actual)
    found = metrics.score_forecast(predicted, actual, neuron=neuron)
    assert found.mse == pytest.approx(float(tm.mean_squared_error(made, truth)), rel=1e-5)
    assert found.mse == pytest.approx(sk.mean_squared_error(actual, predicted))
    # Torchmetrics' SMAPE has the factor 2 that ours leaves out, and never divides by less than 1.17e-6.
    clear = np.abs(predicted) + np.abs(actual) > 1e-3
    assume(clear.all())
    smape = float(tm.symmetric_mean_absolute_percentage_error(made, truth))
    assert found.smape == pytest.approx(smape / 2, rel=1e-4)
    varies = (predicted.std(axis=1) > 1e-2) & (actual.std(axis=1) > 1e-2)
    assume(varies.any())
    theirs = tm.pearson_corrcoef(made[varies].T, truth[varies].T).numpy().reshape(-1)
    assert metrics.pearson_rows(predicted, actual)[varies] == pytest.approx(theirs, abs=1e-4)


@settings(max_examples=40)
@given(st.sampled_from([3, 5, 7]), st.data())
def test_ssim_of_one_window_is_torchmetrics(side: int, data: st.DataObject) -> None:
    # A trace of side**2 frames as an image: the uniform window around its centre covers it whole, and SSIM knows no order
    # within a window.
    # Seen to fail: sample moments (n - 1) in place of population moments; c2 in place of c1.
    torch, tm = pytest.importorskip("torch"), pytest.importorskip("torchmetrics.functional.image")
    frames = st.floats(-1, 1, width=32)
    made, truth = (data.draw(hnp.arrays(np.float64, (3, side * side), elements=frames)) for _ in range(2))
    _, image = tm.structural_similarity_index_measure(
        torch.from_numpy(made).reshape(3, 1, side, side),
        torch.from_numpy(truth).reshape(3, 1, side, side),
        gaussian_kernel=False, kernel_size=side, data_range=1.0, return_full_image=True,
    )  # fmt: skip
    assert metrics.ssim(made, truth) == pytest.approx(image[:, 0, side // 2, side // 2].numpy(), abs=1e-6)


@settings(max_examples=40)
@given(paired(frames=8))
def test_area_r_is_a_loop_over_scipy(rows: Paired) -> None:
    # Seen to fail: areas as sums of absolute values; neurons with two trials let in.
    predicted, actual, neuron = rows
    expected = []
    for one in np.unique(neuron):
        left, right = (traces[neuron == one].mean(axis=1) for traces in (predicted, actual))
        spreads = [np.std(a) / max(np.sqrt(np.square(a).mean()), 1e-300) for a in (left, right)]
        assume(all(spread == 0 or spread > 10 * FLAT for spread in spreads))
        if len(left) >= 3 and min(spreads) > 0:
            expected.append(pearsonr(left, right).statistic)
    found = metrics.area_r(predicted, actual, neuron=neuron)
    assert found.neurons == len(expected)
    assert found.mean == pytest.approx(np.mean(expected) if expected else np.nan, nan_ok=True, abs=1e-7)


@settings(max_examples=40)
@given(paired(frames=12))
def test_gradient_normalised_scores_are_the_definition(rows: Paired) -> None:
    # Seen to fail: both traces divided by the truth's gradient; degenerate rows scored as zeros.
    predicted, actual, neuron = rows
    scaled: list[tuple[Floats, Floats]] = []
    for p, a in zip(predicted, actual, strict=True):
        paths = [sum(abs(float(x[i + 1]) - float(x[i])) for i in range(len(x) - 1)) for x in (p, a)]
        assume(all(path == 0 or path > 2 * GRADIENT_EPSILON for path in paths))
        if min(paths) > 0:
            scaled.append((p / paths[0], a / paths[1]))
    found = metrics.score_forecast(predicted, actual, neuron=neuron)
    assert found.degenerate == pytest.approx(1 - len(scaled) / len(predicted))
    expected = np.mean([sk.mean_squared_error(a, p) for p, a in scaled]) if scaled else np.nan
    assert found.normalised_mse == pytest.approx(expected, nan_ok=True)
    away = np.mean([sk.mean_absolute_error(a, p) for p, a in scaled]) if scaled else np.nan
    assert found.normalised_mae == pytest.approx(away, nan_ok=True)


def test_chance_of_absolute_r_is_the_mean_over_all_pairings() -> None:
    # Seen to fail: pairs of a row with itself. Every pairing of 12 rows, against the mean of ten random ones.
    rng = np.random.default_rng(0)
    made, truth = (np.cumsum(rng.normal(size=(12, 32)), axis=1) for _ in range(2))
    truth[::2] = made[::2]
    pairs = [abs(pearsonr(made[i], truth[j]).statistic) for i in range(12) for j in range(12) if i != j]
    drawn = np.mean([metrics.absolute_r_chance(made, truth, seed=seed) for seed in range(30)])
    assert drawn == pytest.approx(np.mean(pairs), abs=0.02)


@settings(max_examples=40)
@given(grouped(), st.data())
def test_resampled_scores_are_scikit_learns_with_sample_weights(rows: Grouped, data: st.DataObject) -> None:
    # How often a row was drawn is its sample weight. Seen to fail: counts ignored; ties cut, in AUROC and in precision;
    # an absolute error for the Brier score.
    score, active, _, trial = rows
    drawn = data.draw(hnp.arrays(np.float64, 4, elements=st.integers(0, 3).map(float)))
    weight = drawn[trial]
    member = np.zeros(len(score), np.intp)
    draws = Draws(trial=weight[None], neuron=np.ones((1, 1)), member=member)
    both = weight[active].sum() > 0 and weight[~active].sum() > 0
    assume(both)
    for name, of in (
        ("log_loss", sk.log_loss),
        ("brier", sk.brier_score_loss),
        ("auroc", sk.roc_auc_score),
        ("auprc", sk.average_precision_score),
    ):
        found = ACTIVATION_METRICS[name].prepare(score, active, member)(draws)[0]
        assert found == pytest.approx(of(active, score, sample_weight=weight)), name


def test_intervals_are_those_of_scipys_bootstrap() -> None:
    # One neuron, so that trials are rows. Seen to fail: percentiles of 5 and 95; resamples of half the trials.
    rng = np.random.default_rng(0)
    truth, made = rng.normal(size=(200, 4)), rng.normal(size=(200, 4))
    error = np.square(made - truth).mean(axis=1)
    theirs = bootstrap((error,), np.mean, n_resamples=4000, method="percentile", rng=rng).confidence_interval
    ours = intervals(
        made, truth=truth, trial=np.arange(200), neuron=np.zeros(200, int), resamples=4000,
        metrics={"mse": FORECAST_METRICS["mse"]},
    )["mse"]  # fmt: skip
    width = theirs.high - theirs.low
    assert ours.value == pytest.approx(error.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.06 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.06 * width)


def test_one_sure_mistake_costs_what_the_floor_says() -> None:
    # Where scikit-learn would go to 36 nats (its own floor is the precision of the number), ours stops at 13.8. Seen to fail:
    # a floor of 1e-9.
    assert metrics.log_loss([0.0], [True]) == pytest.approx(13.8155, abs=1e-4)
    assert metrics.log_loss([1.0], [False]) == pytest.approx(13.8155, abs=1e-4)
    assert metrics.log_loss([0.0, 1.0], [False, True]) == pytest.approx(0.0, abs=2e-6)
