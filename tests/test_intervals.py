"""How much a forecast errs: the scale of its errors by row, and the interval that holds four fifths of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantformer.forecaster import ERROR_TERMS
from quantformer_training.intervals import LEAST_FLOOR, Errors, fit_errors, interval_of, terms_of


def terms(rows: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.01, 0.5, (rows, ERROR_TERMS)).astype(np.float32)


def laplacian(scale: np.ndarray, *, seed: int, frames: int = 64) -> np.ndarray:
    rng = np.random.default_rng(seed)
    made: np.ndarray = (rng.laplace(size=(len(scale), frames)) * scale[:, None]).astype(np.float32)
    return made


def inside(errors: Errors, predicted: np.ndarray, actual: np.ndarray, known: np.ndarray) -> np.ndarray:
    low, high = (errors.around(predicted, k, terms=known) for k in (0, 1))
    held: np.ndarray = (actual >= low) & (actual <= high)
    return held


@pytest.mark.parametrize("weights", [(0.5, 0.0, 0.2), (0.0, 1.0, 0.0), (0.3, 0.3, 0.3)])
def test_the_scale_is_found_of_what_tells_the_error(weights: tuple[float, ...]) -> None:
    known = terms(20_000)
    actual = laplacian(0.03 + known @ np.array(weights), seed=1)
    found = fit_errors(np.zeros_like(actual), actual, terms=known)
    assert found.floor == pytest.approx(0.03, abs=0.01)
    np.testing.assert_allclose(found.weights, weights, atol=0.03)


@pytest.mark.parametrize("heavy", [False, True])
def test_the_interval_holds_four_fifths_of_quiet_rows_and_of_noisy_ones(heavy: bool) -> None:
    rng = np.random.default_rng(0)
    known = terms(1600)
    noise = rng.standard_t(3, (2, 1600, 64)) if heavy else rng.normal(size=(2, 1600, 64)) + 0.3
    predicted = rng.normal(0.0, 0.2, (1600, 64)).astype(np.float32)
    actual = [(predicted + n * (0.05 + known.sum(1))[:, None]).astype(np.float32) for n in noise]
    errors = fit_errors(predicted, actual[0], terms=known)
    interval = interval_of(errors)
    assert interval.level == 0.8
    assert len(interval.low) == len(interval.high) == 64
    assert all(a < b for a, b in zip(interval.low, interval.high, strict=True))
    scale = (errors.floor + known @ np.array(errors.weights))[:, None]
    noisy = np.argsort(known.sum(1)) >= 800
    for measured in actual:
        low, high = predicted + scale * interval.low, predicted + scale * interval.high
        held = (measured >= low) & (measured <= high)
        assert (measured > high).mean() == pytest.approx(0.1, abs=0.02)
        for some in (noisy, ~noisy):
            assert held[some].mean() == pytest.approx(0.8, abs=0.03)
    # What one scale for all rows holds: too much of the quiet ones, too little of the noisy.
    blind = np.zeros_like(known)
    of_all = inside(fit_errors(predicted, actual[0], terms=blind), predicted, actual[1], blind)
    order = np.argsort(known.sum(1))
    assert of_all[order[:400]].mean() > 0.86
    assert of_all[order[-400:]].mean() < 0.74


def test_the_interval_follows_the_time_after_the_onset() -> None:
    rng = np.random.default_rng(1)
    growing = np.repeat([0.1, 0.2, 0.4, 0.8], 16)
    actual = (rng.normal(size=(500, 64)) * growing).astype(np.float32)
    interval = interval_of(fit_errors(np.zeros_like(actual), actual, terms=np.zeros((500, ERROR_TERMS), np.float32)))
    width = np.subtract(interval.high, interval.low)[::16]
    np.testing.assert_allclose(width / width[0], [1.0, 2.0, 4.0, 8.0], rtol=0.1)


def test_where_nothing_tells_the_error_the_floor_is_its_mean() -> None:
    actual = np.random.default_rng(2).normal(0.0, 0.1, (300, 64)).astype(np.float32)
    found = fit_errors(np.zeros_like(actual), actual, terms=np.zeros((300, ERROR_TERMS), np.float32))
    assert found.weights == (0.0,) * ERROR_TERMS
    assert found.floor == pytest.approx(float(np.abs(actual).mean()), rel=1e-3)


def test_a_row_that_seems_to_have_no_noise_keeps_an_interval() -> None:
    known = terms(4000)
    actual = laplacian(known @ np.array([1.0, 0.0, 0.0]), seed=3)
    found = fit_errors(np.zeros_like(actual), actual, terms=known)
    # Its terms explain everything, so the floor would be nothing.
    assert found.floor == pytest.approx(LEAST_FLOOR * float(np.abs(actual).mean()), rel=1e-3)


def test_a_forecast_without_any_error_has_an_interval_without_width() -> None:
    nothing = np.zeros((50, 64), np.float32)
    found = fit_errors(nothing, nothing, terms=terms(50))
    assert interval_of(found).low == [0.0] * 64
    assert 0.0 < found.floor < 1e-30


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 60), blank=st.integers(0, ERROR_TERMS), loud=st.floats(1e-4, 1e3))
def test_whatever_few_rows_say_the_scale_is_above_zero_and_of_their_size(seed: int, rows: int, blank: int, loud: float) -> None:
    known = terms(rows, seed=seed)
    known[:, :blank] = 0.0
    actual = (np.random.default_rng(seed).standard_t(2, (rows, 64)) * loud).astype(np.float32)
    found = fit_errors(np.zeros_like(actual), actual, terms=known)
    scale = found.scale(known)
    assert (scale > 0.0).all()
    assert min(found.weights) >= 0.0
    assert all(weight == 0.0 for weight in found.weights[:blank])
    # Of the likeliest scales the mean of error over scale is one, whichever they are, unless a bound holds them.
    assert float((np.abs(actual).mean(1) / scale).mean()) == pytest.approx(1.0, abs=0.1)


def test_terms_of_a_model_that_tells_no_probability_are_of_the_baseline_alone() -> None:
    baseline = np.random.default_rng(4).normal(0.0, 0.1, (5, 96)).astype(np.float32)
    with_chance, without = terms_of(baseline, np.full(5, 0.25)), terms_of(baseline, None)
    assert with_chance.shape == without.shape == (5, ERROR_TERMS)
    np.testing.assert_array_equal(with_chance[:, :2], without[:, :2])
    np.testing.assert_allclose(with_chance[:, 2], 0.5)
    assert not without[:, 2].any()
