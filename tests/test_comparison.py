"""Comparisons: a good model is ahead, a bad one behind, and a baseline against itself is not distinguishable."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from report_rows import ignorant, oracle, simulated_rows

from quantformer.errors import DataError
from quantformer_training.comparison import (
    LEAD_BASELINES,
    MODEL,
    REFERENCE,
    Baselines,
    Comparison,
    Forecasts,
    compare_with_baselines,
    score_at_lead,
    without_last,
)
from quantformer_training.comparison_tables import (
    HEADLINE,
    activation_table,
    compatible_table,
    forecast_table,
    headline_table,
    lead_table,
)
from quantformer_training.rows import Rows

TRAIN, TEST = simulated_rows(trials=60, neurons=12, seed=0), simulated_rows(trials=50, neurons=12, seed=1)


@pytest.fixture(scope="module")
def baselines() -> Baselines:
    return Baselines.fit(TRAIN)


def compared(model: Forecasts, baselines: Baselines, rows: Rows = TEST) -> Comparison:
    return compare_with_baselines(model, rows=rows, baselines=baselines, minutes=5.0, resamples=300)


def test_the_best_possible_predictor_is_ahead_of_the_rates(baselines: Baselines) -> None:
    found = compared(oracle(TEST), Baselines(activation={REFERENCE: baselines.activation[REFERENCE],
        "logistic": baselines.activation["base_rate"]}, forecast={"zero": baselines.forecast["zero"]}))  # fmt: skip
    for key in ("log_loss", "brier", "auroc_within_neuron", "mse"):
        assert found.differences[key].verdict == "ahead", key
    assert found.activation[MODEL].log_loss_skill > 0.1
    assert found.activation[REFERENCE].log_loss_skill == 0.0


def test_a_predictor_that_knows_nothing_is_behind(baselines: Baselines) -> None:
    found = compared(ignorant(TEST), baselines)
    for key in ("log_loss", "brier", "auroc_within_neuron", "auroc", "mse", "area_r"):
        assert found.differences[key].verdict == "behind", key


def test_the_best_baseline_against_itself_is_not_distinguishable(baselines: Baselines) -> None:
    best = compared(oracle(TEST), baselines).differences["log_loss"].against
    same = Forecasts(
        probability=baselines.activation[best].predict(TEST), response=baselines.forecast["ridge"].predict(TEST)
    )
    found = compared(same, baselines).differences["log_loss"]
    assert (found.against, found.difference, found.verdict) == (best, 0.0, "not distinguishable")


def test_being_told_the_stimulus_is_worth_what_it_is_worth(baselines: Baselines) -> None:
    told, denied = oracle(TEST), oracle(replace(TEST, stimulus=np.zeros_like(TEST.stimulus)))
    found = compare_with_baselines(
        told, rows=TEST, baselines=baselines, minutes=5.0, denied=denied.probability, resamples=300
    )
    assert found.stimulus_gain is not None
    assert found.stimulus_gain.difference < 0
    assert found.stimulus_gain.verdict == "ahead"
    assert compared(told, baselines).stimulus_gain is None


def test_no_rows_are_refused(baselines: Baselines) -> None:
    none = TEST.select(np.zeros(len(TEST), bool))
    with pytest.raises(DataError, match="no rows"):
        compared(oracle(none), baselines, rows=none)


def test_without_the_last_frames_the_transient_tells_nothing() -> None:
    asked = [
        score_at_lead(oracle(TEST).probability, rows=TEST, train=TRAIN, lead=lead) for lead in (0, 12)
    ]
    assert asked[0].auroc_within_neuron["last_frames"] > 0.7
    assert abs(asked[1].auroc_within_neuron["last_frames"] - 0.5) < 0.1
    assert asked[0].log_loss_skill[REFERENCE] == asked[1].log_loss_skill[REFERENCE] == 0.0
    assert set(asked[0].auroc_within_neuron) == {MODEL, *LEAD_BASELINES}


def test_withheld_frames_are_cut_off_the_end() -> None:
    np.testing.assert_array_equal(without_last(TEST, lead=5).baseline, TEST.baseline[:, :91])
    assert without_last(TEST, lead=0) is TEST


def test_tables_hold_every_predictor_and_say_the_verdict_in_words(baselines: Baselines) -> None:
    found = compared(oracle(TEST), baselines)
    headline = headline_table(found, caption="a")
    assert len(headline.rows) == len(HEADLINE)
    assert {row[-1] for row in headline.rows} <= {"ahead", "behind", "not distinguishable"}
    activation, forecast = activation_table(found, caption="b"), forecast_table(found, caption="c")
    assert activation.rows[0][0] == forecast.rows[0][0] == "QuantFormer"
    assert len(activation.rows) == len(found.activation)
    assert len(forecast.rows) == len(found.forecast)
    flat = next(row for row in forecast.rows if row[0] == "F0 persists (zero)")
    assert flat[2] == flat[3] == "–"
    assert len(compatible_table(found, caption="d").rows) == len(found.activation)
    leads = lead_table([score_at_lead(oracle(TEST).probability, rows=TEST, train=TRAIN, lead=3)], caption="e")
    assert leads.rows[0][0] == "3 (100 ms)"
