"""Tests of neuron-trials as tensors: order, scale, withheld frames, vocabulary."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from small_model import SCALE, sources_of
from small_recording import GRATING, small_recording

from quantformer.config import F0_LEVELS
from quantformer.forecaster import CLIP
from quantformer.recording import Recording
from quantformer.signal import SignalRecipe
from quantformer_training.examples import LONGEST_LEAD, Examples, ExampleSource, Vocabulary, random_missing
from quantformer_training.fit import rows_of
from quantformer_training.trials import TrialReader


@pytest.fixture(scope="module")
def recording() -> Recording:
    # Four seconds apart, so that no window holds the end of another's baseline.
    made = small_recording(neurons=3, trials=24, period_s=4.0)
    changed = made.fluorescence.copy()
    # One neuron breaks off during one test trial, so that rows and neuron-trials differ.
    changed[int(30 * (5.0 + 4.0 * 20)) + 30, 1] = np.nan
    return dataclasses.replace(made, fluorescence=changed)


@pytest.fixture(scope="module")
def source(recording: Recording) -> ExampleSource:
    return sources_of(recording, train_trials=16).test


def test_a_row_is_a_neuron_and_a_moment(source: ExampleSource) -> None:
    rows, trials = source.at_lead(0), source.trials
    assert len(rows) == trials.valid.sum() == trials.valid.size - 2
    for i, (moment, neuron) in enumerate(np.argwhere(trials.valid)):
        np.testing.assert_allclose(rows.baseline[i].numpy() * SCALE, trials.baseline[moment, neuron], atol=1e-6)
        np.testing.assert_array_equal(rows.response[i].numpy(), trials.response[moment, neuron])
        whole = np.concatenate([trials.baseline[moment, neuron], trials.response[moment, neuron]])
        np.testing.assert_allclose(rows.trace[i].numpy() * SCALE, whole, atol=1e-5)
        assert bool(rows.active[i]) == trials.active[moment, neuron]
        assert int(rows.neuron[i]) == neuron
        assert int(rows.moment[i]) == moment
        np.testing.assert_array_equal(rows.tuning[i].numpy(), source.tuning[moment, neuron])
        np.testing.assert_array_equal(rows.population_tuning[i].numpy(), source.population_tuning[moment])
        np.testing.assert_array_equal(rows.features[i].numpy(), source.features[moment])


def test_plain_rows_come_in_the_same_order(source: ExampleSource) -> None:
    rows, plain = source.at_lead(0), rows_of(source.trials)
    np.testing.assert_array_equal(rows.neuron.numpy(), plain.neuron)
    np.testing.assert_array_equal(rows.active.numpy(), plain.active)
    np.testing.assert_array_equal(rows.response.numpy(), plain.response)
    np.testing.assert_array_equal(source.trials.moments.trial[rows.moment.numpy()], plain.trial)


@pytest.mark.parametrize("lead", [1, 5, 10])
def test_a_lead_hides_the_last_frames_bit_for_bit(recording: Recording, source: ExampleSource, lead: int) -> None:
    # NOTES, pitfall 8: other values in the withheld frames, the same input to the network.
    rows = source.at_lead(lead)
    changed = recording.fluorescence.copy()
    for frame in source.trials.moments.frame:
        changed[frame - lead : frame] = 1e4
    reader = source.reader
    blind = TrialReader(
        dataclasses.replace(recording, fluorescence=changed), split=reader.split, recipe=reader.recipe, rule=reader.rule
    )
    blind.f0_minimum, blind.usual_f0 = reader.f0_minimum, reader.usual_f0
    hidden = ExampleSource(
        blind,
        source.trials,
        vocabulary=sources_of(recording, train_trials=16).vocabulary,
        signal_scale=SCALE,
        tuning=(source.tuning, source.population_tuning),
    ).at_lead(lead)
    for name in ("baseline", "level", "neuron", "features", "stimulus", "tuning", "population_tuning"):
        assert torch.equal(getattr(rows, name), getattr(hidden, name)), name
    assert not torch.equal(rows.baseline, source.at_lead(lead - 1).baseline), "the lead changed nothing"


@pytest.mark.parametrize("lead", [0, 7])
def test_a_level_is_of_the_f0_that_was_seen(source: ExampleSource, recording: Recording, lead: int) -> None:
    rows, trials = source.at_lead(lead), source.trials
    trace = recording.fluorescence.astype(np.float64)
    usual = np.median(trace[slice(*source.reader.split.train[0])], axis=0)
    expected = []
    for moment, neuron in zip(rows.moment.tolist(), rows.neuron.tolist(), strict=True):
        frame = int(trials.moments.frame[moment])
        f0 = trace[frame - 60 : frame - lead, neuron].mean()
        expected.append([np.log(f0 / usual[neuron]), usual[neuron] / f0 - 1.0])
    np.testing.assert_allclose(rows.level[:, :F0_LEVELS].numpy(), expected, atol=1e-5)
    assert rows.level.dtype == torch.float32
    assert rows.level.std(0).min() > 1e-3, "every level is alike: nothing is tested"


def test_the_target_does_not_depend_on_the_lead(source: ExampleSource) -> None:
    one, other = source.at_lead(0), source.at_lead(10)
    assert torch.equal(one.trace, other.trace)
    assert torch.equal(one.response, other.response)
    assert torch.equal(one.active, other.active)


def test_broken_windows_are_clipped(recording: Recording) -> None:
    spiky = recording.fluorescence.copy()
    spiky[::200] = 1e7
    rows = sources_of(dataclasses.replace(recording, fluorescence=spiky), train_trials=16).test.at_lead(0)
    assert float(rows.trace.abs().max()) == CLIP
    assert float(rows.baseline.abs().max()) <= CLIP


def test_random_rows_are_of_the_asked_moments_and_seeded(source: ExampleSource) -> None:
    index = np.array([4, 1])
    one, same, other = (source.random(index, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert torch.equal(one.baseline, same.baseline)
    assert not torch.equal(one.baseline, other.baseline)
    assert set(one.moment.tolist()) == {1, 4}


def test_missing_frames_are_a_lead_and_gaps_as_promised() -> None:
    rng = np.random.default_rng(0)
    drawn = np.stack([random_missing(SignalRecipe(), rng) for _ in range(4000)])
    assert not drawn[:, 0].any(), "a stream fills a gap from what came before it"
    leads = np.array([int(np.argmin(row[::-1])) for row in drawn])
    gaps = np.array([row[: 96 - lead].any() for row, lead in zip(drawn, leads, strict=True)])
    # A gap that touches the lead lengthens it: a few draws are more than 10.
    share = np.bincount(leads, minlength=11)[:11] / len(drawn)
    np.testing.assert_allclose(share, [0.4, *[0.06] * 10], atol=0.03)
    # Three in ten, less single losses that hit nothing (0.02 a frame) and gaps inside the lead.
    assert 0.2 < gaps.mean() < 0.3
    assert (drawn[:, 36:].sum(1) <= 30).all(), "F0 needs 30 observed frames"
    assert LONGEST_LEAD == 10


def test_select_and_join(source: ExampleSource) -> None:
    rows = source.at_lead(0)
    parts = [rows.select(torch.arange(3)), rows.select(torch.arange(3, len(rows)))]
    joined = Examples.joined(parts)
    assert len(parts[0]) == 3
    for name, tensor in vars(rows).items():
        assert torch.equal(getattr(joined, name), tensor), name


def test_the_vocabulary_names_rows(recording: Recording) -> None:
    vocabulary = sources_of(recording, train_trials=16).vocabulary
    moments = sources_of(recording, train_trials=16).pseudo.trials.moments
    assert vocabulary.neuron_ids == recording.neuron_ids
    assert (vocabulary.id_rows(moments) == -1).all(), "a pseudo-onset has no stimulus of its own"
    assert vocabulary.encoded(moments.select(np.arange(0))).shape == (0, vocabulary.recipe.width)
    assert vocabulary.tuning_features(moments.select(np.arange(0))).shape[0] == 0


def test_neurons_outside_the_vocabulary_are_unknown_and_never_row_i(
    source: ExampleSource, recording: Recording
) -> None:
    trials, reader = source.trials, source.reader
    known = sources_of(recording, train_trials=16).vocabulary
    other = Vocabulary(neuron_ids=("n002", "zz"), stimulus_ids=known.stimulus_ids[1:], recipe=known.recipe)
    rows = ExampleSource(
        reader, trials, vocabulary=other, signal_scale=SCALE, tuning=(source.tuning, source.population_tuning)
    ).at_lead(0)
    plain = source.at_lead(0)
    expected = torch.where(plain.neuron == 2, 0, -1)
    assert torch.equal(rows.neuron, expected)
    assert torch.equal(rows.stimulus, plain.stimulus - 1)
    at = plain.neuron == 2
    assert torch.equal(rows.level[at], plain.level[at])
    assert plain.level[~at].all()
    assert not rows.level[~at, :F0_LEVELS].any(), "an unknown neuron has no usual level"
    assert torch.equal(rows.level[:, F0_LEVELS:], plain.level[:, F0_LEVELS:])
    assert GRATING in known.recipe.categories
