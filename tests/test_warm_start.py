"""Where fine-tuning begins: exactly at the regression that left-out moments choose, or where it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import small_model  # noqa: F401  # one thread of torch
import torch
from random_rows import NEURONS, RandomSource, random_rows
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold, cross_val_score
from small_model import tiny_forecaster

from quantformer.config import F0_LEVELS, POPULATION_LEVELS
from quantformer.forecaster import Forecaster, Shortcut
from quantformer.tokens import TaskTokens
from quantformer_training.examples import Examples
from quantformer_training.finetune import ask_activation, ask_response
from quantformer_training.warm_start import ROWS, start_rows, start_shortcuts

C = (0.01, 0.03, 0.1, 0.3)
ALPHA = (10_000.0, 3000.0, 1000.0, 300.0, 100.0)


def begun(rows: Examples, *, pseudo: Examples | None = None) -> Forecaster:
    """A forecaster that begins at regressions on all of the rows, each read four times, and on ``pseudo`` at pseudo-onsets."""
    forecaster = tiny_forecaster()
    with torch.no_grad():
        # `finetune` begins with a refinement of zero.
        forecaster.response.refine.weight.zero_()
        forecaster.response.refine.bias.zero_()
    beside = rows.select(torch.arange(0)) if pseudo is None else pseudo
    start_shortcuts(forecaster, start_rows(RandomSource(rows), RandomSource(beside), seed=0))
    return forecaster.eval()


def tokens() -> TaskTokens:
    torch.manual_seed(3)
    made = TaskTokens(neurons=NEURONS, feature_width=3, stimulus_ids=2, d=16)
    with torch.no_grad():
        made.offset.normal_()
    return made


def inputs_of(shortcut: Shortcut, rows: Examples) -> np.ndarray:
    found = shortcut.inputs(rows.baseline, rows.tuning, rows.level).double().numpy()
    standard: np.ndarray = (found - found.mean(0)) / (found.std(0) + 1e-9)
    other = rows.level.clone()
    other[:, F0_LEVELS:] += 1.0
    of_population = (shortcut.inputs(rows.baseline, rows.tuning, other).double().numpy() != found).any(0)
    assert of_population.sum() == POPULATION_LEVELS
    # Half as large, so that a weight of the same effect is twice as large and its penalty four times.
    standard[:, of_population] /= 2.0
    return standard


def best_on_moments_left_out(models: list[Any], x: np.ndarray, y: np.ndarray, moment: np.ndarray, scoring: str) -> int:
    """The rule, written down a second time."""
    scores = [cross_val_score(m, x, y, groups=moment, cv=GroupKFold(5), scoring=scoring).mean() for m in models]
    return int(np.argmax(scores))


@pytest.fixture(scope="module")
def rows() -> Examples:
    return random_rows(60)


def repeated(rows: Examples) -> Examples:
    """All rows four times, in the order in which `start_rows` draws them."""
    rng = np.random.default_rng(0)
    return Examples.joined([RandomSource(rows).draw(ROWS // 4, rng) for _ in range(4)])


def test_the_logit_is_the_decision_function_of_the_chosen_regression(rows: Examples) -> None:
    forecaster, many = begun(rows), repeated(rows)
    x, y, moment = inputs_of(forecaster.activation.shortcut, many), many.active.numpy(), many.moment.numpy()
    decisions = [LogisticRegression(C=c, max_iter=1000).fit(x, y).decision_function(x) for c in C]
    with torch.no_grad():
        logit = ask_activation(forecaster, tokens(), many).numpy()
    off = [float(np.abs(logit - one).max()) for one in decisions]
    assert min(off) < 1e-4, f"no regression says this: {off}"
    assert sorted(off)[1] > 0.02, "penalties are told apart"
    models = [LogisticRegression(C=c, max_iter=1000) for c in C]
    assert int(np.argmin(off)) == best_on_moments_left_out(models, x, y, moment, "neg_log_loss")


def test_the_forecast_is_the_chosen_ridge_regressions(rows: Examples) -> None:
    forecaster, many = begun(rows), repeated(rows)
    x, moment = inputs_of(forecaster.response.shortcut, many), many.moment.numpy()
    target = many.trace[:, 96:].double().numpy()
    with torch.no_grad():
        made = forecaster.decode(ask_response(forecaster, tokens(), many)) / forecaster.signal_scale
        # What the decoder says of no code in particular is taken from the target first: a constant, so the intercept's.
        forecasts = [Ridge(alpha=alpha).fit(x, target).predict(x) for alpha in ALPHA]
    off = [float(np.abs(made.numpy() - one).max()) for one in forecasts]
    assert min(off) < 1e-4
    assert sorted(off)[1] > 0.01, "penalties are told apart"
    models = [Ridge(alpha=alpha) for alpha in ALPHA]
    assert int(np.argmin(off)) == best_on_moments_left_out(models, x, target, moment, "neg_mean_squared_error")


def test_pseudo_onsets_are_read_as_often_as_real_ones(rows: Examples) -> None:
    beside = random_rows(80, seed=5)
    forecaster, rng = begun(rows, pseudo=beside), np.random.default_rng(0)
    drawn = [RandomSource(rows).draw(ROWS // 4, rng) for _ in range(4)]
    many = Examples.joined([*drawn, RandomSource(beside).draw(4 * len(rows), rng)])
    assert len(many) == 4 * len(rows) + len(beside), "of fewer, all"
    x, y = inputs_of(forecaster.activation.shortcut, many), many.active.numpy()
    with torch.no_grad():
        logit = ask_activation(forecaster, tokens(), many).numpy()
    off = [float(np.abs(logit - LogisticRegression(C=c, max_iter=1000).fit(x, y).decision_function(x)).max()) for c in C]
    assert min(off) < 1e-4, f"no regression on both says this: {off}"


def test_noise_gets_the_strongest_penalty(rows: Examples) -> None:
    generator = torch.Generator().manual_seed(1)
    noise = replace(rows, active=torch.rand(len(rows), generator=generator) < 0.5)
    forecaster = begun(noise)
    x = inputs_of(forecaster.activation.shortcut, repeated(noise))
    expected = LogisticRegression(C=C[0], max_iter=1000).fit(x, repeated(noise).active.numpy()).decision_function(x)
    with torch.no_grad():
        logit = ask_activation(forecaster, tokens(), repeated(noise)).numpy()
    np.testing.assert_allclose(logit, expected, atol=1e-4)


@pytest.mark.parametrize("active", [True, False])
def test_one_class_leaves_activation_as_it_was(rows: Examples, active: bool) -> None:
    before = tiny_forecaster().activation.state_dict()
    forecaster = begun(replace(rows, active=torch.full((len(rows),), active)))
    for name, value in forecaster.activation.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert forecaster.response.shortcut.linear.weight.any(), "the forecast has no classes and begins as ever"


@pytest.mark.parametrize("active", [[0], [0, 1], [0, 59]])
def test_folds_without_both_classes_leave_the_strongest_penalty(rows: Examples, active: list[int]) -> None:
    """Too few active moments for every fold; a warning would be an error here."""
    rare = replace(rows, active=torch.isin(rows.moment, torch.tensor(active)))
    forecaster = begun(rare)
    x = inputs_of(forecaster.activation.shortcut, repeated(rare))
    expected = LogisticRegression(C=C[0], max_iter=1000).fit(x, repeated(rare).active.numpy()).decision_function(x)
    with torch.no_grad():
        logit = ask_activation(forecaster, tokens(), repeated(rare)).numpy()
    np.testing.assert_allclose(logit, expected, atol=1e-4)


def test_two_moments_of_one_class_each_are_enough(rows: Examples) -> None:
    two = rows.select(torch.arange(2 * NEURONS))
    forecaster = begun(replace(two, active=two.moment == 0))
    assert torch.isfinite(forecaster.activation.shortcut.linear.weight).all()
    assert forecaster.activation.shortcut.linear.weight.any()


def test_one_moment_is_enough(rows: Examples) -> None:
    one = rows.select(torch.arange(NEURONS))
    forecaster = begun(replace(one, active=torch.arange(NEURONS) < 2))
    for parameter in forecaster.parameters():
        assert torch.isfinite(parameter).all()


def test_an_input_that_never_varies_does_no_harm(rows: Examples) -> None:
    forecaster = begun(replace(rows, level=torch.zeros_like(rows.level), tuning=torch.zeros_like(rows.tuning)))
    with torch.no_grad():
        moved = replace(rows, level=torch.full_like(rows.level, 0.1), tuning=torch.zeros_like(rows.tuning))
        logit = ask_activation(forecaster, tokens(), moved)
    assert torch.isfinite(logit).all()
    assert float(logit.abs().max()) < 100.0, "a level that was never seen to vary gets no weight"
