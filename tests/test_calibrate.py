"""Tests of what validation decides: probabilities, thresholds, skill by lead."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from small_model import sources_of, tiny_model

from quantformer.activation_metrics import log_loss
from quantformer.manifest import Calibration
from quantformer_training.calibrate import (
    LEADS,
    calibrate,
    fit_calibration,
    fit_thresholds,
    probability,
)


def answers(n: int, *, temperature: float, bias: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are wrong by a temperature and a bias, and what happened."""
    rng = np.random.default_rng(seed)
    true = rng.normal(-1.5, 1.5, n)
    active = rng.random(n) < 1.0 / (1.0 + np.exp(-true))
    return ((true - bias) * temperature).astype(np.float32), active


def test_probability_is_the_sigmoid_of_the_scaled_logit() -> None:
    found = probability(np.array([2.0, -800.0, 800.0], np.float32), Calibration(temperature=4.0, bias=0.5))
    np.testing.assert_allclose(found, [1.0 / (1.0 + np.exp(-1.0)), 0.0, 1.0], atol=1e-15)


@pytest.mark.parametrize(("temperature", "bias"), [(2.0, -0.7), (0.5, 0.4), (1.0, 0.0)])
def test_temperature_and_bias_are_found_where_there_are_trials_enough(temperature: float, bias: float) -> None:
    logit, active = answers(40_000, temperature=temperature, bias=bias)
    # As it is used: the same rows asked at every lead.
    found = fit_calibration(np.tile(logit, len(LEADS)), np.tile(active, len(LEADS)), trials=4000)
    assert found.temperature == pytest.approx(temperature, rel=0.05)
    assert found.bias == pytest.approx(bias, abs=0.06)


@settings(max_examples=40)
@given(
    n=st.integers(2, 300),
    trials=st.integers(1, 1000),
    temperature=st.floats(0.1, 10.0),
    bias=st.floats(-5.0, 5.0),
    seed=st.integers(0, 1000),
)
def test_calibration_never_makes_its_own_data_worse(
    n: int, trials: int, temperature: float, bias: float, seed: int
) -> None:
    logit, active = answers(n, temperature=temperature, bias=bias, seed=seed)
    found = fit_calibration(logit, active, trials=trials)
    before = log_loss(probability(logit, Calibration(temperature=1.0, bias=0.0)), active)
    assert log_loss(probability(logit, found), active) <= before + 1e-9
    assert 0.25 <= found.temperature <= 4.0 + 1e-9
    assert -2.0 <= found.bias <= 2.0


def test_few_trials_are_not_taken_at_their_word_however_many_neurons_they_are_of() -> None:
    # Livelier minutes in validation than in what is asked later.
    logit, active = answers(1500, temperature=1.0, bias=0.6, seed=3)
    alone = minimize(
        lambda p: log_loss(probability(logit, Calibration(temperature=float(np.exp(p[0])), bias=float(p[1]))), active),
        np.zeros(2),
    ).x
    few, many = (fit_calibration(logit, active, trials=trials).bias for trials in (10, 500))
    assert few == pytest.approx(10 / 60 * alone[1], rel=0.3)
    assert many == pytest.approx(alone[1], rel=0.15)
    # Leads tell of the same trials.
    again = fit_calibration(np.tile(logit, len(LEADS)), np.tile(active, len(LEADS)), trials=10)
    assert again.bias == pytest.approx(few, rel=1e-2)


def test_a_handful_of_rows_does_not_invent_a_slope() -> None:
    logit = np.array([-1.0, 1.0], np.float32)
    found = fit_calibration(logit, np.array([False, True]), trials=2)
    assert 0.8 < found.temperature < 1.2, "two rows, separated: with nothing beside them it would be 0.25"


def test_thresholds_mean_what_they_say() -> None:
    rng = np.random.default_rng(3)
    active = rng.random(2000) < 0.1
    predicted = np.clip(0.1 + 0.3 * active + rng.normal(0.0, 0.15, 2000), 0.0, 1.0)
    found = fit_thresholds(predicted, active, seconds=600.0)
    for rate in (1, 2, 5):
        threshold = found[f"false_per_minute_{rate}"]
        false = int((~active & (predicted >= threshold)).sum())
        assert false <= rate * 10
        lower = predicted[predicted < threshold].max()
        assert int((~active & (predicted >= lower)).sum()) > rate * 10, "a lower threshold would have done"
    assert found["false_per_minute_1"] > found["false_per_minute_2"] > found["false_per_minute_5"]

    def f1(threshold: float) -> float:
        fired = predicted >= threshold
        return 2.0 * float((fired & active).sum()) / float(fired.sum() + active.sum())

    assert f1(found["default"]) == pytest.approx(max(f1(threshold) for threshold in predicted))


@settings(max_examples=60)
@given(data=st.data(), n=st.integers(1, 40), seconds=st.floats(1.0, 600.0))
def test_equal_probabilities_fire_together(data: st.DataObject, n: int, seconds: float) -> None:
    predicted = np.array(data.draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75]), min_size=n, max_size=n)))
    active = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    found = fit_thresholds(predicted, active, seconds=seconds)
    for rate in (1, 2, 5):
        false = int((~active & (predicted >= found[f"false_per_minute_{rate}"])).sum())
        assert false <= rate * seconds / 60.0


def test_where_every_threshold_is_too_low_none_of_the_probabilities_fires() -> None:
    found = fit_thresholds(np.array([0.9, 0.5]), np.array([False, True]), seconds=10.0)
    assert found["false_per_minute_1"] == 1.0


def test_everything_that_a_bundle_takes_from_validation() -> None:
    sources = sources_of()
    model = tiny_model(sources.vocabulary)
    found = calibrate(model, sources.validation, seconds=60.0)
    assert [skill.lead for skill in found.skill_by_lead] == list(LEADS)
    rows = sources.validation.at_lead(5)
    made = model.predict(rows)
    scored = next(skill for skill in found.skill_by_lead if skill.lead == 5)
    assert scored.mse == pytest.approx(float(np.square(made.response - rows.response.numpy()).mean()), rel=1e-5)
    expected = log_loss(probability(made.logit, found.calibration), rows.active.numpy())
    assert scored.log_loss == pytest.approx(expected, rel=1e-9)
    assert len({skill.mse for skill in found.skill_by_lead}) > 1, "the lead made no difference"


def test_the_interval_of_a_bundle_is_that_of_rows_without_lead() -> None:
    sources = sources_of()
    model = tiny_model(sources.vocabulary)
    found = calibrate(model, sources.validation, seconds=60.0)
    rows = sources.validation.at_lead(0)
    before = model.predict(rows)
    assert before.terms.shape == (len(rows), len(found.spread_weights))
    assert min(found.spread_weights) >= 0.0
    model.forecaster.weigh(found.spread_weights)
    made = model.predict(rows)
    np.testing.assert_allclose(made.spread, made.terms @ np.array(found.spread_weights), rtol=1e-5)
    scale = (made.spread + found.interval.floor)[:, None]
    low, high = (made.response + scale * np.array(end) for end in (found.interval.low, found.interval.high))
    happened = rows.response.numpy()
    assert ((happened >= low) & (happened <= high)).mean() == pytest.approx(0.8, abs=0.01)
