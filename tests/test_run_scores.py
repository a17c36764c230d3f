"""Scores of a model on a run: what each answer adds, against whom, and what is chosen on validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from quantformer.activation_metrics import auroc_within, decisions, log_loss
from quantformer_training.calibrate import fit_thresholds
from quantformer_training.rows import Rows
from quantformer_training.run_scores import Answers, Scene, score

NEURONS, TRIALS, WINDOW = 4, 60, 15


def rows(seed: int) -> Rows:
    rng, n = np.random.default_rng(seed), NEURONS * TRIALS
    response = rng.normal(0.0, 0.2, (n, 64)).astype(np.float32)
    return Rows(
        baseline=rng.normal(size=(n, 96)).astype(np.float32),
        f0=np.full(n, 100.0),
        neuron=np.tile(np.arange(NEURONS), TRIALS),
        stimulus=np.repeat(np.arange(TRIALS) % 3, NEURONS),
        trial=np.repeat(np.arange(TRIALS), NEURONS),
        active=rng.random(n) < 0.3,
        response=response,
    )


SCENE = Scene(
    validation=rows(1), test=rows(2), control=rows(3), rate=np.full(NEURONS * TRIALS, 0.3), window=WINDOW, minutes=4.0,
    validation_seconds=240.0,
)  # fmt: skip


def guess(active: np.ndarray, *, weight: float, seed: int = 0) -> np.ndarray:
    """A probability that knows this much of the label."""
    noise = np.random.default_rng(seed).uniform(0.05, 0.95, len(active))
    made: np.ndarray = weight * np.where(active, 0.9, 0.1) + (1 - weight) * noise
    return made


GOOD = Answers(
    probability=guess(SCENE.test.active, weight=0.5),
    response=SCENE.test.response,
    validation=guess(SCENE.validation.active, weight=0.5),
    denied=guess(SCENE.test.active, weight=0.2),
    control=guess(rows(3).active, weight=0.5),
    by_lead={5: guess(SCENE.test.active, weight=0.4), 10: guess(SCENE.test.active, weight=0.3)},
    validation_response=rows(4).response,
    parameters=1234,
)


def test_no_answer_no_score() -> None:
    assert score(Answers(), SCENE) == {}


def test_each_answer_adds_its_own_scores() -> None:
    activation = replace(GOOD, response=None)
    forecast = Answers(response=GOOD.response, validation_response=GOOD.validation_response)
    one, other, both = score(activation, SCENE), score(forecast, SCENE), score(GOOD, SCENE)
    assert set(one).isdisjoint(set(other) - {"rows"})
    assert {**one, **other}.keys() == both.keys()
    assert "triggers" not in both
    assert all(isinstance(value, float) for value in both.values())
    assert both["parameters"] == 1234.0
    small = score(Answers(probability=GOOD.probability), SCENE)
    assert not {"stimulus_gain", "control_log_loss", "skill_at_lead_5", "parameters"} & set(small)


def test_skills_are_against_the_neuron_stimulus_rate() -> None:
    found = score(GOOD, SCENE)
    reference = log_loss(SCENE.rate, SCENE.test.active)
    told: Mapping[int, np.ndarray | None] = {0: GOOD.probability, **GOOD.by_lead}
    for lead, probability in told.items():
        assert probability is not None
        expected = 1.0 - log_loss(probability, SCENE.test.active) / reference
        assert found[f"skill_at_lead_{lead}"] == pytest.approx(expected)
    assert found["skill_at_lead_0"] > found["skill_at_lead_5"] > found["skill_at_lead_10"]
    assert found["log_loss_skill"] == pytest.approx(found["skill_at_lead_0"])


def test_the_stimulus_gain_is_what_is_lost_without_it() -> None:
    assert GOOD.denied is not None
    found = score(GOOD, SCENE)
    assert found["stimulus_gain"] == pytest.approx(log_loss(GOOD.denied, SCENE.test.active) - found["log_loss"])
    assert found["stimulus_gain"] > 0
    assert score(replace(GOOD, denied=GOOD.probability), SCENE)["stimulus_gain"] == 0.0


def test_the_threshold_is_chosen_on_validation_alone() -> None:
    assert GOOD.probability is not None
    assert GOOD.validation is not None
    chosen = fit_thresholds(GOOD.validation, SCENE.validation.active, seconds=240.0)["default"]
    assert abs(chosen - 0.5) > 0.01, "otherwise nothing is tested"
    expected = decisions(GOOD.probability, SCENE.test.active, threshold=chosen)
    found = score(GOOD, SCENE)
    assert (found["f1"], found["balanced_accuracy"]) == (expected.f1, expected.balanced_accuracy)
    without = score(replace(GOOD, validation=None), SCENE)
    half = decisions(GOOD.probability, SCENE.test.active)
    assert (without["f1"], without["recall"]) == (half.f1, half.recall)
    flipped = replace(SCENE, test=replace(SCENE.test, active=~SCENE.test.active))
    fires = GOOD.probability >= chosen
    assert score(GOOD, flipped)["precision"] == pytest.approx((~SCENE.test.active[fires]).mean()), (
        "test labels move nothing"
    )


def test_the_control_is_scored_on_its_own_rows() -> None:
    assert GOOD.control is not None
    control = SCENE.control
    assert control is not None
    found = score(GOOD, SCENE)
    assert found["control_log_loss"] == pytest.approx(log_loss(GOOD.control, control.active))
    within = auroc_within(GOOD.control, control.active, groups=control.neuron).mean
    assert found["control_auroc_within_neuron"] == pytest.approx(within)
    assert not any(name.startswith("control") for name in score(GOOD, replace(SCENE, control=None)))


def test_triggers_are_at_a_number_of_false_ones_a_minute() -> None:
    found = score(GOOD, SCENE)
    budgets = sorted(float(name.removeprefix("recall_at_")) for name in found if name.startswith("recall_at_"))
    recalls = [found[f"recall_at_{budget:g}"] for budget in budgets]
    assert len(budgets) >= 2
    assert recalls == sorted(recalls)
    # At false triggers without end everything may fire.
    assert score(GOOD, replace(SCENE, minutes=1e6))[f"recall_at_{budgets[0]:g}"] == 1.0


def test_a_forecast_is_scored_on_all_frames_and_on_the_labels_window() -> None:
    perfect = score(Answers(response=SCENE.test.response), SCENE)
    assert (perfect["mse"], perfect["mae"], perfect["mse_window"]) == (0.0, 0.0, 0.0)
    assert perfect["r"] == pytest.approx(1.0)
    assert perfect["r_window"] == pytest.approx(1.0)
    late = SCENE.test.response.copy()
    late[:, WINDOW:] += 0.5
    found = score(Answers(response=late), SCENE)
    assert found["mse_window"] == 0.0
    assert found["r_window"] == pytest.approx(1.0)
    assert found["mae"] == pytest.approx(0.5 * (64 - WINDOW) / 64, rel=1e-4)
    assert found["mse"] == pytest.approx(0.25 * (64 - WINDOW) / 64, rel=1e-4)


def test_flat_forecasts_have_no_correlation_and_do_not_hide_that_of_others() -> None:
    flat = score(Answers(response=np.zeros_like(SCENE.test.response)), SCENE)
    assert np.isnan(flat["r_window"])
    assert np.isfinite(flat["mse"])
    some = SCENE.test.response.copy()
    some[:5] = 0.0
    assert score(Answers(response=some), SCENE)["r_window"] == pytest.approx(1.0)
