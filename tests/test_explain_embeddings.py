"""Maps of neurons: statistics by hand, what was planted in the vectors is found, and random vectors hold nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_fit import fitted
from small_model import tiny_model

from quantformer.errors import DataError
from quantformer_training.examples import Examples
from quantformer_training.explain import embeddings
from quantformer_training.explain.embeddings import draw_embedding_map, embedding_map, neuron_statistics
from quantformer_training.finetune import TrainedModel

NEURONS, EACH = 40, 6


def rows(*, seed: int = 0) -> Examples:
    """Six training rows of each of forty neurons; a neuron's responses are of a size and spread of its own."""
    rng = np.random.default_rng(seed)
    made = fitted().source(fitted().real["train"]).at_lead(0).select(torch.arange(NEURONS * EACH) % 20)
    neuron = np.repeat(np.arange(NEURONS), EACH)
    level, spread = rng.normal(size=NEURONS), rng.uniform(0.1, 1.0, NEURONS)
    response = level[neuron, None] + rng.normal(size=(len(neuron), 1)) * spread[neuron, None] + np.zeros((1, 64))
    return replace(
        made,
        neuron=torch.from_numpy(neuron),
        response=torch.from_numpy(response.astype(np.float32)),
        active=torch.from_numpy(rng.random(len(neuron)) < 0.5),
    )


def model(*, seed: int = 0) -> TrainedModel:
    """A model of forty neurons with random vectors."""
    names = tuple(f"n{i}" for i in range(NEURONS))
    return tiny_model(replace(fitted().vocabulary, neuron_ids=names), seed=seed)


def test_statistics_are_those_of_each_neurons_own_rows() -> None:
    training = rows()
    found = neuron_statistics(training)
    assert np.array_equal(found.neuron, np.arange(NEURONS))
    own = training.response.numpy()[7 * EACH : 8 * EACH].astype(np.float64).mean(axis=1)
    assert found.median[7] == pytest.approx(np.median(own))
    assert found.spread[7] == pytest.approx(own.std())
    assert found.activation_rate[7] == training.active[7 * EACH : 8 * EACH].float().mean()


def test_rows_of_unknown_neurons_are_left_out() -> None:
    training = rows()
    mixed = replace(training, neuron=torch.where(training.neuron < 3, -1, training.neuron))
    assert neuron_statistics(mixed).neuron.tolist() == list(range(3, NEURONS))
    with pytest.raises(DataError, match="none of 240 training rows"):
        neuron_statistics(replace(training, neuron=torch.full_like(training.neuron, -1)))


def test_random_vectors_hold_nothing() -> None:
    p = []
    for seed in range(2):
        found = embedding_map(model(seed=seed), rows(), seed=seed)
        p += [test.p for tests in found.tests.values() for test in tests.values()]
    assert len(p) == 12
    # One in twenty by chance; four or more of twelve would happen twice in a thousand, were they independent.
    assert sum(value < 0.05 for value in p) <= 3


def test_a_statistic_written_into_one_tasks_vectors_is_found_there_alone() -> None:
    training = rows()
    made = model()
    median = torch.from_numpy(neuron_statistics(training).median).float()
    with torch.no_grad():
        made.tokens[0].offset.mul_(0.1)
        made.tokens[0].offset[:, 0] = median
    found = embedding_map(made, training, seed=0)
    assert found.tests["activation"]["median"].holds
    assert found.tests["activation"]["median"].rho > 0.8
    assert not found.tests["forecast"]["median"].holds
    assert not found.tests["activation"]["activation_rate"].holds


def test_the_map_is_the_same_twice_and_draws_every_neuron() -> None:
    found, again = (embedding_map(model(), rows(), seed=2) for _ in range(2))
    assert np.array_equal(found.position["forecast"], again.position["forecast"])
    assert found.numbers() == again.numbers()
    figure = draw_embedding_map(found)
    panels = [axis for axis in figure.axes if axis.collections and axis.get_title(loc="left")]
    assert len(panels) == 6
    drawn = np.asarray(panels[0].collections[0].get_offsets())
    assert sorted(map(tuple, drawn)) == sorted(map(tuple, found.position["activation"]))


def test_of_many_neurons_some_are_drawn_and_all_are_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "MOST_DRAWN", 12)
    found = embedding_map(model(), rows(), seed=2)
    assert len(found.drawn) == len(found.position["forecast"]) == 12
    assert found.tests["forecast"]["spread"].points == NEURONS
    figure = draw_embedding_map(found)
    assert np.array_equal(figure.axes[1].collections[0].get_array(), found.statistics.median[found.drawn])


def test_mice_are_told_apart_when_told() -> None:
    mouse = np.repeat([0, 1], NEURONS // 2)
    assert embedding_map(model(), rows(), seed=0, mouse=mouse).mice == 2
    with pytest.raises(DataError, match=r"expected \(40,\)"):
        embedding_map(model(), rows(), seed=0, mouse=mouse[:5])


def test_vectors_that_never_moved_have_no_map() -> None:
    made = model()
    with torch.no_grad():
        made.tokens[1].offset.zero_()
    with pytest.raises(DataError, match="all 40 vectors are equal"):
        embedding_map(made, rows(), seed=0)
