"""Tests of the tuning regression: against a direct solution, and out of fold for what it was fitted on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_model import SCALE, sources_of
from small_recording import small_recording

from quantformer_training.tuning import FOLDS, STRENGTHS, fit_tuning, out_of_fold, quantities, tune_neurons


def problem(seed: int = 0, *, n: int = 80, neurons: int = 3, f: int = 4, q: int = 9) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, f)).astype(np.float32)
    truth = rng.normal(size=(neurons, q, f))
    values = np.einsum("nf,kqf->nkq", features, truth) + rng.normal(0.0, 0.3, (n, neurons, q))
    return {
        "features": features,
        "values": values,
        "valid": rng.random((n, neurons)) < 0.9,
        "block": np.repeat(np.arange(n // 2), 2),
        "truth": truth,
    }


#: None of the problem's features is a constant.
NONE = np.zeros(4, bool)


def test_coefficients_are_ridge_towards_the_population() -> None:
    p = problem()
    population = np.random.default_rng(1).normal(size=(10, 4))
    found = tune_neurons(p["features"], p["values"], p["valid"], population=population, constant=NONE, strengths=(3.0, 3.0))
    for k in range(3):
        rows = p["valid"][:, k]
        x = p["features"][rows].astype(np.float64)
        for q in range(9):
            # Minimises |y - x b|^2 + 3 |b - population|^2: the same as three extra rows of data.
            stacked = np.vstack([x, np.sqrt(3.0) * np.eye(4)])
            target = np.concatenate([p["values"][rows, k, q], np.sqrt(3.0) * population[1 + q]])
            expected = np.linalg.lstsq(stacked, target, rcond=None)[0]
            np.testing.assert_allclose(found[k, 1 + q], expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("strength", [0.3, 3.0, 300.0])
def test_a_neurons_own_mean_is_pulled_by_one_trial_at_most(strength: float) -> None:
    p, constant = problem(), np.array([False, True, False, False])
    p["features"][:, 1] = 1.0
    population = np.random.default_rng(1).normal(size=(10, 4))
    found = tune_neurons(
        p["features"], p["values"], p["valid"], population=population, constant=constant, strengths=(strength, strength)
    )
    rows = p["valid"][:, 0]
    pull = np.sqrt([strength, min(strength, 1.0), strength, strength])
    stacked = np.vstack([p["features"][rows].astype(np.float64), np.diag(pull)])
    target = np.concatenate([p["values"][rows, 0, 5], pull * population[6]])
    np.testing.assert_allclose(found[0, 6], np.linalg.lstsq(stacked, target, rcond=None)[0], rtol=1e-8, atol=1e-10)


def test_the_first_quantity_is_the_rate_whatever_the_stimulus() -> None:
    p, constant = problem(), np.array([False, True, False, False])
    p["features"][:, 1] = 1.0
    tuning = fit_tuning(
        p["features"], p["values"], p["valid"], p["block"], constant=constant, judged=np.ones(80, bool)
    )
    assert not tuning.neuron[:, 0][:, ~constant].any()
    for k in range(3):
        rates = p["values"][p["valid"][:, k], k, 0]
        expected = (rates.sum() + tuning.population[0, 1]) / (len(rates) + 1.0)
        assert tuning.neuron[k, 0, 1] == pytest.approx(expected, rel=1e-9), "pulled by one trial"


def test_much_data_finds_the_truth_and_no_data_the_population() -> None:
    p = problem(n=2000)
    p["valid"][:, 2] = False
    tuning = fit_tuning(p["features"], p["values"], p["valid"], p["block"], constant=NONE, judged=np.ones(2000, bool))
    np.testing.assert_allclose(tuning.neuron[:2, 1:], p["truth"][:2], atol=0.06)
    np.testing.assert_allclose(tuning.neuron[2], tuning.population, atol=1e-12)


def test_of_is_the_dot_product() -> None:
    p = problem()
    tuning = fit_tuning(p["features"], p["values"], p["valid"], p["block"], constant=NONE, judged=np.ones(80, bool))
    made = tuning.of(p["features"])
    assert made.dtype == np.float32
    assert made[7, 2, 5] == pytest.approx(float(tuning.neuron[2, 5] @ p["features"][7]), rel=1e-5)
    assert tuning.of_population(p["features"])[7, 5] == pytest.approx(
        float(tuning.population[5] @ p["features"][7]), rel=1e-5
    )


def test_the_strengths_have_the_smallest_out_of_fold_error_on_the_judged_rows() -> None:
    p = problem(n=40)
    judged = np.arange(40) % 3 == 0
    # What is judged follows no tuning, what is not follows it well: the two want opposite strengths.
    p["values"][judged] = np.random.default_rng(5).normal(size=p["values"][judged].shape)
    errors = []
    for strength in STRENGTHS:
        neuron, _ = out_of_fold(p["features"], p["values"], p["valid"], p["block"], constant=NONE, strengths=(strength, strength))
        squared = np.square(neuron[..., 1:] - p["values"])[p["valid"] & judged[:, None]]
        errors.append((squared[:, 0].mean(), squared[:, 1:].mean()))
    tuning = fit_tuning(p["features"], p["values"], p["valid"], p["block"], constant=NONE, judged=judged)
    assert tuning.strengths == tuple(STRENGTHS[best] for best in np.argmin(errors, axis=0))
    everything = fit_tuning(p["features"], p["values"], p["valid"], p["block"], constant=NONE, judged=np.ones(40, bool))
    assert everything.strengths != tuning.strengths


def test_rates_and_traces_are_pulled_each_by_its_own_strength() -> None:
    p = problem(n=200)
    p["values"][..., 0] = np.random.default_rng(2).normal(size=p["values"].shape[:2])
    told = (p["features"], p["values"], p["valid"], p["block"])
    tuning = fit_tuning(*told, constant=NONE, judged=np.ones(200, bool))
    assert tuning.strengths[1] < tuning.strengths[0], "a rate that follows nothing, traces that do"
    one, other = (
        tune_neurons(*told[:3], population=tuning.population, constant=NONE, strengths=(strength, strength))
        for strength in tuning.strengths
    )
    np.testing.assert_array_equal(tuning.neuron[:, :2], one[:, :2])
    np.testing.assert_array_equal(tuning.neuron[:, 2:], other[:, 2:])
    assert not np.array_equal(one, other)


def test_noise_is_pulled_harder_than_signal() -> None:
    signal, noise = problem(n=200), problem(n=200)
    noise["values"] = np.random.default_rng(2).normal(size=noise["values"].shape)
    strengths = [
        fit_tuning(
            p["features"], p["values"], p["valid"], p["block"], constant=NONE, judged=np.ones(200, bool)
        ).strengths
        for p in (signal, noise)
    ]
    for few, many in zip(*strengths, strict=True):
        assert few < many
    # One column of noise alone may happen to follow something a little.
    assert strengths[1][1] == STRENGTHS[-1]


@settings(max_examples=20)
@given(block=st.integers(0, 39), value=st.sampled_from([1e6, -1e6, np.pi]), strength=st.sampled_from(STRENGTHS))
def test_out_of_fold_never_sees_its_own_presentation(block: int, value: float, strength: float) -> None:
    p = problem()
    neuron, population = out_of_fold(
        p["features"], p["values"], p["valid"], p["block"], constant=NONE, strengths=(strength, strength)
    )
    own = p["block"] == block
    changed = p["values"].copy()
    changed[own] = value
    after, population_after = out_of_fold(
        p["features"], changed, p["valid"], p["block"], constant=NONE, strengths=(strength, strength)
    )
    assert neuron[own].tobytes() == after[own].tobytes()
    assert population[own].tobytes() == population_after[own].tobytes()
    assert not np.array_equal(neuron[~own], after[~own]), "nobody else saw it either"


def test_out_of_fold_agrees_with_leaving_the_fold_out() -> None:
    p = problem()
    neuron, _ = out_of_fold(p["features"], p["values"], p["valid"], p["block"], constant=NONE, strengths=(3.0, 3.0))
    out = p["block"] % FOLDS == 4
    tuning = fit_tuning(
        p["features"][~out],
        p["values"][~out],
        p["valid"][~out],
        p["block"][~out],
        constant=NONE,
        judged=np.ones((~out).sum(), bool),
    )
    expected = tune_neurons(
        p["features"][~out],
        p["values"][~out],
        p["valid"][~out],
        population=tuning.population,
        constant=NONE,
        strengths=(3.0, 3.0),
    )
    np.testing.assert_allclose(
        neuron[out], np.einsum("nf,kqf->nkq", p["features"][out], expected), rtol=1e-4, atol=1e-5
    )


def test_invalid_trials_do_not_count() -> None:
    p = problem()
    changed = np.where(p["valid"][..., None], p["values"], 1e9)
    one, other = (
        fit_tuning(p["features"], values, p["valid"], p["block"], constant=NONE, judged=np.ones(80, bool))
        for values in (p["values"], changed)
    )
    np.testing.assert_array_equal(one.neuron, other.neuron)
    np.testing.assert_array_equal(one.population, other.population)


@pytest.mark.parametrize("blocks", [1, 2])
def test_few_presentations_are_enough_for_numbers(blocks: int) -> None:
    p = problem(n=6)
    neuron, population = out_of_fold(
        p["features"], p["values"], p["valid"], np.arange(6) % blocks, constant=NONE, strengths=(1.0, 1.0)
    )
    assert np.isfinite(neuron).all()
    assert np.isfinite(population).all()


def test_quantities_are_the_labels_grade_and_bins_of_the_response() -> None:
    sources = sources_of(small_recording(neurons=2, trials=12), train_trials=8)
    trials = sources.test.trials
    found = quantities(trials, signal_scale=SCALE)
    assert found.shape == (*trials.active.shape, 9)
    np.testing.assert_array_equal(found[..., 0], trials.graded)
    np.testing.assert_array_equal((found[..., 0] >= 0.5) & trials.valid, trials.active)
    assert 0 < trials.active.sum() < trials.valid.sum()
    assert np.unique(found[trials.valid, 0]).size == trials.valid.sum(), "each says something of its own"
    np.testing.assert_allclose(found[1, 0, 3], trials.response[1, 0, 16:24].mean() / SCALE, rtol=1e-5)


def test_pseudo_onsets_share_the_fold_of_their_presentation() -> None:
    """Their windows overlap the presentation's own response."""
    sources = sources_of(small_recording(period_s=6.0))
    real, pseudo = sources.real.trials, sources.pseudo.trials
    row = 3
    trial = real.moments.trial[row]
    beside = pseudo.moments.trial == trial
    assert beside.any()
    values = np.concatenate([quantities(trials, signal_scale=SCALE) for trials in (real, pseudo)])
    features = np.concatenate([sources.vocabulary.tuning_features(trials.moments) for trials in (real, pseudo)])
    valid = np.concatenate([real.valid, pseudo.valid])
    block = np.concatenate([real.moments.trial, pseudo.moments.trial])
    changed = values.copy()
    changed[len(real.moments) :][beside] = 1e6
    constant = sources.vocabulary.tuning_constants
    before, after = (
        out_of_fold(features, v, valid, block, constant=constant, strengths=(3.0, 3.0))[0] for v in (values, changed)
    )
    assert before[row].tobytes() == after[row].tobytes()


@settings(max_examples=20)
@given(seed=st.integers(0, 999), patterns=st.integers(1, 4), strength=st.sampled_from(STRENGTHS))
def test_neurons_that_share_a_gram_matrix_get_what_each_would_get_alone(
    seed: int, patterns: int, strength: float
) -> None:
    """Neurons that are valid in the same rows are solved together; some of them in none, or in fewer rows than features."""
    p, rng = problem(seed, neurons=7), np.random.default_rng(seed)
    kinds = rng.random((80, patterns)) < rng.choice([0.0, 0.03, 0.5, 1.0], patterns)
    valid = kinds[:, rng.integers(0, patterns, 7)]
    values = np.where(valid[..., None], p["values"], np.nan if seed % 2 else 1e9)
    found = fit_tuning(
        p["features"], np.nan_to_num(values, nan=1e9), valid, p["block"], constant=NONE, judged=np.ones(80, bool)
    )
    coefficients = tune_neurons(
        p["features"], values, valid, population=found.population, constant=NONE, strengths=(strength, strength)
    )
    for k in range(7):
        x = p["features"][valid[:, k]].astype(np.float64)
        left = p["values"][valid[:, k], k] - x @ found.population[1:].T
        alone = found.population[1:] + np.linalg.solve(x.T @ x + strength * np.eye(4), x.T @ left).T
        np.testing.assert_allclose(coefficients[k, 1:], alone, rtol=1e-7, atol=1e-9)
