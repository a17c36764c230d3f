"""Tests of what boosted trees teach: beside the regression, in the weight asked for, at moments and at onsets."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from random_rows import random_rows
from sklearn.ensemble import HistGradientBoostingClassifier
from small_model import sources_of, tiny_forecaster, tiny_pretrained, tiny_training
from small_recording import small_recording
from threadpoolctl import threadpool_limits

from quantformer.config import F0_LEVELS
from quantformer.errors import UsageError
from quantformer_training.boosted import BoostedTrees
from quantformer_training.examples import Examples
from quantformer_training.finetune import begin, draw_epoch, draw_moments, finetune, stages
from quantformer_training.joint import finetune_joint


@pytest.fixture(scope="module")
def rows() -> Examples:
    return random_rows(300)


@pytest.fixture(scope="module")
def trees(rows: Examples) -> BoostedTrees:
    made = BoostedTrees.fit(tiny_forecaster().activation.shortcut, rows, seed=0)
    assert made is not None
    return made


def test_the_chance_is_the_mean_of_the_regressions_and_the_trees(rows: Examples) -> None:
    shortcut = tiny_forecaster().activation.shortcut
    with torch.no_grad():
        shortcut.linear.weight.normal_(0.0, 0.01)
        shortcut.linear.bias.fill_(-0.1)
    made = BoostedTrees.fit(shortcut, rows, seed=0)
    assert made is not None
    inputs = shortcut.inputs(rows.baseline, rows.tuning, rows.level).double().numpy()
    inputs = np.delete(inputs, [22, 23], axis=1)  # the population's level, which trees do not read
    alone = HistGradientBoostingClassifier(
        max_iter=120, max_leaf_nodes=4, learning_rate=0.05, early_stopping=False, random_state=0
    ).fit(inputs, rows.active.numpy())
    with torch.no_grad():
        linear = shortcut(rows.baseline, rows.tuning, rows.level)[:, 0].sigmoid().numpy()
        # The trees keep the regression they were fitted beside: the network's own goes on learning.
        shortcut.linear.bias.fill_(9.0)
    expected = 0.5 * (linear + alone.predict_proba(inputs)[:, 1])
    np.testing.assert_allclose(made.chance(rows).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_the_population_moves_the_regression_and_not_the_trees(rows: Examples) -> None:
    shortcut = tiny_forecaster().activation.shortcut
    with torch.no_grad():
        shortcut.linear.weight.normal_(0.0, 0.01)
    made = BoostedTrees.fit(shortcut, rows, seed=0)
    assert made is not None
    level = rows.level.clone()
    level[:, F0_LEVELS:] += 1.0
    moved = replace(rows, level=level)
    with torch.no_grad():
        linear = [shortcut(one.baseline, one.tuning, one.level)[:, 0].sigmoid() for one in (rows, moved)]
    assert (linear[0] != linear[1]).all()
    torch.testing.assert_close(made.chance(moved) - made.chance(rows), 0.5 * (linear[1] - linear[0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_a_label_becomes_a_mixture_and_nothing_else_changes(rows: Examples, trees: BoostedTrees, weight: float) -> None:
    taught = trees.taught(rows, weight=weight)
    expected = weight * trees.chance(rows) + (1.0 - weight) * rows.active.float()
    torch.testing.assert_close(taught.active, expected)
    for name, tensor in vars(taught).items():
        assert name == "active" or tensor is getattr(rows, name)


def test_threads_do_not_change_the_trees(rows: Examples) -> None:
    """A run that resumes fits them anew and has to go on with the same."""
    shortcut, found = tiny_forecaster().activation.shortcut, []
    for threads in (1, 2):
        with threadpool_limits(threads):
            made = BoostedTrees.fit(shortcut, rows, seed=0)
        assert made is not None
        found.append(made.chance(rows).numpy().tobytes())
    assert found[0] == found[1]


@pytest.mark.parametrize("active", [True, False])
def test_rows_of_one_class_teach_nothing(rows: Examples, active: bool) -> None:
    one = replace(rows, active=torch.full_like(rows.active, active))
    assert BoostedTrees.fit(tiny_forecaster().activation.shortcut, one, seed=0) is None


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(UsageError, match="boosted_weight"):
        replace(tiny_training(), boosted_weight=weight)


def test_every_stage_is_taught_by_the_weight_asked_for() -> None:
    sources = sources_of(small_recording(neurons=3, trials=20), train_trials=14)
    config = replace(tiny_training(), boosted_weight=0.75, moment_epochs=1, moment_rows=200)
    trees = begin(tiny_forecaster(), sources.real, sources.pseudo, config=config, seed=0)
    assert trees is not None
    told = {"config": config, "device": torch.device("cpu")}
    made = stages(
        sources.real, sources.pseudo, sources.moments, loop=config.activation, trees=trees, **told
    )  # type: ignore[arg-type]
    plain = [
        partial(draw_moments, sources.moments, seed=config.activation.seed, **told),
        partial(draw_epoch, sources.real, sources.pseudo, seed=config.activation.seed, **told),
    ]
    assert [part for part, _, _ in made] == [" at moments", ""]
    for (_, _, draw), happened in zip(made, plain, strict=True):
        (rows, order), (expected, same) = draw(0), happened(0)
        assert torch.equal(order, same)
        torch.testing.assert_close(rows.active, trees.taught(expected, weight=0.75).active)
        assert not torch.equal(rows.active, expected.active.float())
    none = replace(config, boosted_weight=0.0)
    assert begin(tiny_forecaster(), sources.real, sources.pseudo, config=none, seed=0) is None


def test_activation_is_taught_and_the_forecast_is_not() -> None:
    sources = sources_of(small_recording(neurons=3, trials=20), train_trials=14)
    told = {
        "vocabulary": sources.vocabulary, "real": sources.real, "pseudo": sources.pseudo, "moments": sources.moments,
        "validation": sources.validation, "report": lambda progress: None,
    }  # fmt: skip
    asked, made = sources.test.at_lead(0), {}
    for weight in (0.0, 1.0):
        config = replace(tiny_training(epochs=1), boosted_weight=weight)
        for train in (finetune, finetune_joint):
            trained = train(tiny_pretrained(), config=config, **told)  # type: ignore[operator]
            made[train, weight] = trained.predict(asked)
    for train in (finetune, finetune_joint):
        assert not np.array_equal(made[train, 0.0].logit, made[train, 1.0].logit)
    np.testing.assert_array_equal(made[finetune, 0.0].response, made[finetune, 1.0].response)


def test_trees_know_what_bends() -> None:
    """A transient that means something to an active neuron and nothing to a silent one: a product, which no line follows."""
    rows = random_rows(1000, seed=3)
    rng = np.random.default_rng(0)
    bend = (rows.level[:, 0].numpy() > 0) & (rows.baseline[:, -5:].mean(1).numpy() > 0)
    rows = replace(rows, active=torch.from_numpy(rng.random(len(rows)) < np.where(bend, 0.9, 0.1)))
    half = len(rows) // 2
    first, second = rows.select(torch.arange(half)), rows.select(torch.arange(half, len(rows)))
    shortcut = tiny_forecaster().activation.shortcut
    with torch.no_grad():
        shortcut.linear.weight.zero_()
        shortcut.linear.bias.zero_()
    trees = BoostedTrees.fit(shortcut, first, seed=0)
    assert trees is not None
    agreed = ((trees.chance(second).numpy() > 0.5) == bend[half:]).mean()
    assert agreed > 0.9
