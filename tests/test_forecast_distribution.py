"""A forecast as a distribution: CRPS, coverage and width, by the definition and in cases that are known."""

from __future__ import annotations

import numpy as np
import pytest

from quantformer_training.forecast_distribution import distribution_of
from quantformer_training.rows import Rows
from quantformer_training.run_scores import Answers, Scene

NEURONS = 4


def rows(response: np.ndarray, noise: np.ndarray | float) -> Rows:
    """Of so many trials of each neuron; a baseline of ``noise`` ``(rows, 1)``."""
    n = len(response)
    return Rows(
        baseline=(np.random.default_rng(0).normal(size=(n, 96)) * noise).astype(np.float32),
        f0=np.full(n, 100.0),
        neuron=np.arange(n) % NEURONS,
        stimulus=np.zeros(n, int),
        trial=np.arange(n),
        active=np.arange(n) % 2 == 0,
        response=response.astype(np.float32),
    )


def of_zeros(validation: np.ndarray, test: np.ndarray, *, noise: np.ndarray | float = 0.0) -> dict[str, float]:
    """Scores of a forecast of zeros: what happens is its error."""
    scene = Scene(
        validation=rows(validation, noise), test=rows(test, noise), control=None, rate=np.full(len(test), 0.3), window=15,
        minutes=4.0, validation_seconds=240.0,
    )  # fmt: skip
    told = Answers(response=np.zeros_like(test, np.float32), validation_response=np.zeros_like(validation, np.float32))
    found = distribution_of(told, scene)
    assert found is not None
    return found.scores(scene.test.neuron)


def normal(seed: int, scale: np.ndarray | float) -> np.ndarray:
    made: np.ndarray = np.random.default_rng(seed).normal(0.0, 1.0, (400, 64)) * scale
    return made


def test_a_forecast_whose_errors_are_known_has_the_crps_and_coverage_of_its_distribution() -> None:
    # Of a normal distribution: CRPS = sigma / sqrt(pi), and 80 % lie within 1.2816 sigma.
    found = of_zeros(normal(7, 0.2), normal(8, 0.2))
    assert found["crps"] == pytest.approx(0.2 / np.sqrt(np.pi), rel=0.02)
    assert found["interval_coverage"] == pytest.approx(0.8, abs=0.01)
    assert found["interval_width"] == pytest.approx(2 * 1.2816 * 0.2, rel=0.02)
    assert found["interval_coverage_neuron_off"] < 0.02
    # Too sure and too unsure are both worse, and seen.
    for scale, covered in ((0.1, 0.48), (0.4, 0.99)):
        other = of_zeros(normal(7, scale), normal(8, 0.2))
        assert other["crps"] > 1.05 * found["crps"]
        assert other["interval_coverage"] == pytest.approx(covered, abs=0.02)


def test_the_crps_is_the_definition() -> None:
    # E|X - y| - E|X - X'| / 2, with X one of the errors on validation in the same 16 frames.
    rng = np.random.default_rng(0)
    errors, happened = rng.gamma(2.0, 0.1, (400, 64)), rng.gamma(2.0, 0.1, (60, 64))
    expected = []
    for start in range(0, 64, 16):
        drawn = np.sort(errors[:, start : start + 16].ravel())
        n = len(drawn)
        apart = 2.0 * float(((2 * np.arange(1, n + 1) - n - 1) * drawn).sum()) / n**2
        there = happened[:, start : start + 16].ravel()
        expected.append(np.mean([np.abs(drawn - one).mean() for one in there]) - apart / 2)
    assert of_zeros(errors, happened)["crps"] == pytest.approx(np.mean(expected), rel=0.01)


def test_noisy_neurons_have_wide_intervals_and_quiet_ones_narrow_ones() -> None:
    # Every second neuron errs three times as much, and its baseline is as much noisier.
    wide = np.where(np.arange(400) % 2, 3.0, 1.0)[:, None]
    parts = [normal(seed, 0.1 * wide) for seed in (7, 8)]
    knowing, blind = of_zeros(*parts, noise=0.1 * wide), of_zeros(*parts, noise=0.1)
    for found in (knowing, blind):
        assert found["interval_coverage"] == pytest.approx(0.8, abs=0.02)
    assert knowing["crps"] < 0.96 * blind["crps"]
    # One width for all holds nearly everything of the quiet ones and too little of the others.
    assert knowing["interval_coverage_neuron_off"] < 0.02
    assert blind["interval_coverage_neuron_off"] > 0.1


def test_a_forecast_without_one_of_validation_has_no_distribution() -> None:
    made = rows(normal(1, 0.1), 0.1)
    scene = Scene(
        validation=made, test=made, control=None, rate=np.full(400, 0.3), window=15, minutes=4.0, validation_seconds=240.0
    )
    assert distribution_of(Answers(response=made.response), scene) is None
    assert distribution_of(Answers(probability=np.full(400, 0.3), validation=np.full(400, 0.3)), scene) is None
