"""Tests of the population's level: read from the last second that was observed, learned from training frames alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from small_recording import small_recording

from quantformer.config import F0_LEVELS, LEVEL_QUANTITIES, POPULATION_LEVELS
from quantformer.labels import LabelRule
from quantformer.population_level import PopulationLevel, joined_level, recent_fluorescence
from quantformer.signal import LARGEST_LEVEL, SignalRecipe
from quantformer_training.components import population_level
from quantformer_training.simulated import MouseConfig, short_session
from quantformer_training.splits import split_by_time
from quantformer_training.trials import TrialReader, real_moments

NEURONS, FRAMES = 4, 96


def made(*, seed: int = 0, neurons: int = NEURONS) -> PopulationLevel:
    rng = np.random.default_rng(seed)
    return PopulationLevel(
        usual_f0=rng.uniform(80.0, 120.0, neurons),
        noise=rng.uniform(2.0, 5.0, neurons),
        usual_activity=rng.normal(0.0, 0.2, neurons),
        loading=rng.normal(0.0, 0.4, (neurons, POPULATION_LEVELS)),
    )


windows = arrays(np.float32, (FRAMES, NEURONS), elements=st.floats(1.0, 1000.0, width=32))
masks = arrays(np.bool_, FRAMES)


@given(window=windows, observed=masks)
def test_it_is_a_signed_logarithm_of_the_last_second_along_the_components(
    window: NDArray[np.float32], observed: NDArray[np.bool_]
) -> None:
    known, level = made(), np.zeros(POPULATION_LEVELS)
    last = [frame for frame in range(FRAMES) if observed[frame]][-30:]
    for neuron in range(NEURONS if last else 0):
        away = float(window[last, neuron].astype(np.float64).mean()) - known.usual_f0[neuron]
        times = away / known.noise[neuron]
        active = np.sign(times) * np.log(1.0 + abs(times))
        level += (active - known.usual_activity[neuron]) * known.loading[neuron]
    found = known.of(window, observed=observed)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.clip(level, -LARGEST_LEVEL, LARGEST_LEVEL), atol=1e-5)


@given(window=windows, observed=masks, other=windows)
def test_neither_what_was_not_observed_nor_what_is_a_second_ago_matters(
    window: NDArray[np.float32], observed: NDArray[np.bool_], other: NDArray[np.float32]
) -> None:
    read = np.isin(np.arange(FRAMES), np.flatnonzero(observed)[-30:])
    changed = np.where(read[:, None], window, other)
    np.testing.assert_array_equal(made().of(changed, observed=observed), made().of(window, observed=observed))


@given(window=windows, brightness=st.floats(0.01, 100.0))
def test_brightness_is_no_activity(window: NDArray[np.float32], brightness: float) -> None:
    known = made()
    brighter = dataclasses.replace(known, usual_f0=known.usual_f0 * brightness, noise=known.noise * brightness)
    found = brighter.of_recent(recent_fluorescence(window) * brightness)
    np.testing.assert_allclose(found, known.of(window), atol=1e-4)


@pytest.mark.parametrize("values", [(np.nan,), (np.inf,), (-np.inf,), (np.inf, -np.inf)])
def test_a_value_that_is_not_finite_counts_as_the_usual_one(values: tuple[float, ...]) -> None:
    known, window = made(), np.random.default_rng(1).uniform(80, 120, (FRAMES, NEURONS)).astype(np.float32)
    away = [neuron for neuron in range(NEURONS) if neuron != 2]
    fewer = PopulationLevel(**{name: array[away] for name, array in vars(known).items()})
    window[-3 : -3 + len(values), 2] = values
    with np.errstate(all="raise"):
        found = known.of(window)
    np.testing.assert_allclose(found, fewer.of(window[:, away]), atol=1e-6)
    assert found.any()


def test_however_bright_it_gets_the_level_is_bounded() -> None:
    # As when light for stimulation falls into every neuron's fluorescence.
    window = np.full((FRAMES, NEURONS), 3e38, np.float32)
    known = dataclasses.replace(made(), loading=np.ones((NEURONS, POPULATION_LEVELS)))
    assert known.of(window).tolist() == [LARGEST_LEVEL] * POPULATION_LEVELS


def test_nobody_has_no_level() -> None:
    assert PopulationLevel.of_nobody().of(np.zeros((FRAMES, 0), np.float32)).tolist() == [0.0, 0.0]
    strangers = PopulationLevel(
        usual_f0=np.zeros(3), noise=np.zeros(3), usual_activity=np.zeros(3), loading=np.zeros((3, 2))
    )
    assert strangers.of(np.full((FRAMES, 3), 7.0, np.float32)).tolist() == [0.0, 0.0]
    assert made().of(np.ones((FRAMES, NEURONS), np.float32), observed=np.zeros(FRAMES, bool)).tolist() == [0.0, 0.0]


def test_both_levels_stand_side_by_side() -> None:
    own = np.arange(3 * F0_LEVELS, dtype=np.float32).reshape(3, F0_LEVELS)
    level = joined_level(own, np.array([8.0, 9.0], np.float32))
    assert level.shape == (3, LEVEL_QUANTITIES)
    np.testing.assert_array_equal(level[:, :F0_LEVELS], own)
    assert level[:, F0_LEVELS:].tolist() == [[8.0, 9.0]] * 3


# --- components -------------------------------------------------------------------------------------------------------

SPANS = ((100, 2000), (2500, 4000))


def driven(*, seed: int = 0, neurons: int = 12, frames: int = 5000) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Traces of neurons that a slow state of their population drives, some of them more than others, and the state."""
    rng = np.random.default_rng(seed)
    state = np.repeat(rng.normal(size=frames // 50), 50)
    usual, weight = rng.uniform(50.0, 500.0, neurons), rng.uniform(0.02, 0.3, neurons)
    dff = state[:, None] * weight + rng.normal(0.0, 0.05, (frames, neurons))
    return (usual * (1.0 + dff)).astype(np.float32), state


def fitted(trace: NDArray[np.float32], *, rate_hz: float = 30.0) -> PopulationLevel:
    training = np.concatenate([trace[low:high] for low, high in SPANS])
    usual = np.nan_to_num(np.maximum(np.nanmedian(training, axis=0), 0.0))
    return population_level(trace, spans=SPANS, usual_f0=usual, rate_hz=rate_hz)


def levels(known: PopulationLevel, trace: NDArray[np.float32], stops: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.stack([known.of(trace[stop - FRAMES : stop]) for stop in stops])


def test_the_first_component_is_the_state_that_all_share() -> None:
    trace, state = driven()
    stops = np.arange(4050, 5000, 50)
    found = levels(fitted(trace), trace, stops)
    shared = np.array([state[stop - 30 : stop].mean() for stop in stops])
    assert np.corrcoef(found[:, 0], shared)[0, 1] > 0.95, "frames that were not trained on"


def test_in_training_each_level_is_centred_and_of_unit_spread() -> None:
    trace, _ = driven()
    stops = np.concatenate([np.arange(low + 96, high) for low, high in SPANS])
    found = levels(fitted(trace), trace, stops[::7])
    np.testing.assert_allclose(found.mean(0), 0.0, atol=0.1)
    np.testing.assert_allclose(found.std(0), 1.0, atol=0.1)
    assert (fitted(trace).loading.sum(0) > 0).all()


def test_it_is_learned_from_training_frames_alone() -> None:
    trace, _ = driven()
    other = trace.copy()
    for low, high in ((0, 100), (2000, 2500), (4000, 5000)):
        other[low:high] = np.random.default_rng(9).uniform(1.0, 1e4, other[low:high].shape)
    one, two = fitted(trace), fitted(other)
    for name, array in vars(one).items():
        np.testing.assert_array_equal(array, getattr(two, name), err_msg=name)


@pytest.mark.filterwarnings("ignore:All-NaN")
def test_neurons_that_are_dark_constant_or_mostly_broken_take_no_part() -> None:
    trace, _ = driven()
    trace[:, 1], trace[:, 4], trace[:, 6] = 0.0, 77.0, np.nan
    trace[::40, 8] = np.nan
    known = fitted(trace)
    assert np.flatnonzero(~known.loading.any(1)).tolist() == [1, 4, 6, 8]
    for array in vars(known).values():
        assert np.isfinite(array).all()
    found = levels(known, trace, np.arange(4050, 5000, 50))
    assert found.std(0).min() > 0.1


@pytest.mark.parametrize("neurons", [1, 2])
def test_a_population_of_one_has_one_component(neurons: int) -> None:
    trace, _ = driven(neurons=neurons)
    assert fitted(trace).loading.any(0).tolist() == [True, neurons > 1]


def test_a_training_part_shorter_than_a_second_tells_nothing() -> None:
    trace, _ = driven()
    known = population_level(trace, spans=((10, 30),), usual_f0=np.median(trace, axis=0), rate_hz=30.0)
    assert not known.loading.any()


def test_a_slower_recording_is_read_a_second_at_a_time() -> None:
    trace, state = driven()
    slow = fitted(trace, rate_hz=10.0)
    stops = np.arange(4060, 5000, 50)
    found = slow.of_recent(np.stack([trace[stop - 10 : stop].mean(0, dtype=np.float64) for stop in stops]))
    assert np.corrcoef(found[:, 0], state[stops - 1])[0, 1] > 0.9


def test_a_reader_tells_it_of_every_moment_and_lead_as_the_engine_does() -> None:
    recording = small_recording(seed=3)
    split = split_by_time(recording, recipe=SignalRecipe(), train_trials=16)
    reader = TrialReader(recording, split=split, recipe=SignalRecipe(), rule=LabelRule())
    trials = reader.read(real_moments(recording), part="train")
    by_lead = reader.levels(trials.moments, leads=11)
    np.testing.assert_array_equal(trials.population, by_lead[:, 0])
    assert trials.population.std(0).min() > 0.1, "every level is alike: nothing is tested"
    for row, frame in enumerate(trials.moments.frame):
        for lead in (0, 1, 10):
            window, observed = reader.trace[frame - FRAMES : frame].copy(), np.arange(FRAMES) < FRAMES - lead
            window[~observed] = 1e6
            expected = reader.population.of(window, observed=observed)
            np.testing.assert_array_equal(by_lead[row, lead], expected)
            np.testing.assert_array_equal(reader.level(trials.moments, row, missing=~observed), expected)


def test_on_a_simulated_mouse_it_tells_of_the_arousal_that_nobody_sees() -> None:
    """*Simulated*; presentations that were not trained on."""
    session = short_session(MouseConfig(neurons=24, seed=4), presentations=100)
    split = split_by_time(session.recording, recipe=SignalRecipe(), train_trials=150)
    reader = TrialReader(session.recording, split=split, recipe=SignalRecipe(), rule=LabelRule())
    trials = reader.read(real_moments(session.recording), part="test")
    latent = session.truth.latent
    assert latent is not None
    assert np.corrcoef(trials.population[:, 0], latent.arousal[trials.moments.frame - 1])[0, 1] > 0.35
