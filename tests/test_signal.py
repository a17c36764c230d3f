"""Signal processing: onset frame, F0, dF/F, held frames, the 30 Hz grid; above all that nothing looks ahead."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from quantformer.errors import SignalError
from quantformer.signal import (
    LARGEST_LEVEL,
    SignalRecipe,
    baseline_f0,
    f0_level,
    hold_missing,
    needs_interpolation,
    onset_frames,
    read_baseline,
    subtract_neuropil,
    window_on_grid,
    write_baseline,
)

RECIPE = SignalRecipe()
SHORT = SignalRecipe(baseline_frames=8, response_frames=4, f0_frames=5, minimum_f0_frames=3)


def stamps(rate_hz: float, frames: int, *, jitter: float, seed: int) -> NDArray[np.float64]:
    """Strictly increasing stamps whose intervals vary by up to ``jitter`` of themselves."""
    rng = np.random.default_rng(seed)
    return 5.0 + np.cumsum(rng.uniform(1 - jitter, 1 + jitter, frames)) / rate_hz


@given(
    times=st.lists(st.floats(0, 100), min_size=1, max_size=30, unique=True).map(sorted),
    onset=st.floats(-10, 110),
)
def test_the_onset_frame_is_the_first_not_earlier(times: list[float], onset: float) -> None:
    clock = np.array(times)
    frame = int(onset_frames(clock, np.array([onset]))[0])
    assert (clock[:frame] < onset).all()
    assert (clock[frame:] >= onset).all()


def test_an_onset_on_a_stamp_belongs_to_that_frame() -> None:
    clock = np.arange(10) / 30
    assert onset_frames(clock, clock).tolist() == list(range(10))


@pytest.mark.parametrize(
    "lengths",
    [
        {"baseline_frames": 50},
        {"minimum_f0_frames": 0},
        {"minimum_f0_frames": 61},
        {"response_frames": 0},
        {"rate_hz": 0.0},
    ],
)
def test_an_impossible_recipe_is_refused(lengths: dict[str, float]) -> None:
    with pytest.raises(SignalError):
        SignalRecipe(**lengths)  # type: ignore[arg-type]


def test_the_paper_window_is_160_frames() -> None:
    assert RECIPE.window_frames == 160


def test_neuropil_of_one_frame_equals_the_same_row_of_many() -> None:
    rng = np.random.default_rng(0)
    traces, neuropil = rng.uniform(80, 900, (2, 20, 7)).astype(np.float32)
    factor = rng.uniform(0, 1, 7).astype(np.float32)
    whole = subtract_neuropil(traces, neuropil=neuropil, factor=factor)
    rows = [subtract_neuropil(f, neuropil=n, factor=factor) for f, n in zip(traces, neuropil, strict=True)]
    np.testing.assert_array_equal(whole, np.stack(rows))
    assert whole.dtype == np.float32


@given(
    traces=hnp.arrays(
        np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.floats(0, 1e6, width=32)
    ),
    data=st.data(),
)
def test_holding_repeats_the_last_observed_frame(traces: NDArray[np.float32], data: st.DataObject) -> None:
    observed = data.draw(hnp.arrays(np.bool_, len(traces)))
    before = traces.copy()
    held = hold_missing(traces, observed)
    last: NDArray[np.float32] | None = None
    for frame in range(len(traces)):
        last = traces[frame] if observed[frame] else last
        if last is None:
            assert np.isnan(held[frame]).all()
        else:
            np.testing.assert_array_equal(held[frame], last)
    np.testing.assert_array_equal(traces, before)


def test_f0_is_the_float64_mean_of_the_last_frames() -> None:
    rng = np.random.default_rng(1)
    window = rng.uniform(100, 1500, (96, 5)).astype(np.float32)
    np.testing.assert_array_equal(baseline_f0(window, recipe=RECIPE), window[36:].astype(np.float64).sum(axis=0) / 60)


def test_f0_of_values_that_float32_cannot_add() -> None:
    window = np.full((8, 1), 2**24, np.float32)
    window[-1] = 1.0
    assert baseline_f0(window, recipe=SHORT)[0] == (4 * 2**24 + 1) / 5


def test_f0_leaves_out_frames_that_were_not_observed() -> None:
    window = np.arange(16, dtype=np.float32).reshape(8, 2)
    observed = np.array([True, True, True, True, False, True, True, False])
    np.testing.assert_array_equal(
        baseline_f0(window, recipe=SHORT, observed=observed), np.array([28.0, 31.0]) / 3
    )
    observed[3] = False
    assert np.isnan(baseline_f0(window, recipe=SHORT, observed=observed)).all()


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    neurons=st.integers(1, 40),
    scale=st.sampled_from([1e-3, 1.0, 300.0, 5e4]),
    start=st.integers(0, 104),
    data=st.data(),
)
def test_a_window_is_the_same_bits_however_it_lies_in_memory(
    seed: int, neurons: int, scale: float, start: int, data: st.DataObject
) -> None:
    """One neuron or many, a slice, a ring that wrapped round, a transposed copy: the same dF/F and F0."""
    rng = np.random.default_rng(seed)
    traces = (scale * rng.gamma(3, 1, (200, neurons)) + scale).astype(np.float32)
    subset = np.array(data.draw(st.lists(st.integers(0, neurons - 1), min_size=1, max_size=neurons, unique=True)))
    observed = np.ones(96, bool)
    observed[data.draw(st.lists(st.integers(0, 95), max_size=10))] = False
    window = traces[start : start + 96]
    whole = read_baseline(window, recipe=RECIPE, observed=observed)

    ring = np.zeros((2 * 96, neurons + 3), np.float32)  # every frame written twice, so that any window is one slice
    for frame in range(start + 96):
        ring[frame % 96, :neurons] = ring[frame % 96 + 96, :neurons] = traces[frame]
    first = (start + 96) % 96
    view = ring[first : first + 96, :neurons]
    for other, columns in (
        (view, np.arange(neurons)),
        (np.asfortranarray(window), np.arange(neurons)),
        (window[:, subset], subset),
        (window[:, subset[:1]], subset[:1]),
        (view[:, ::2], np.arange(neurons)[::2]),
    ):
        found = read_baseline(other, recipe=RECIPE, observed=observed)
        np.testing.assert_array_equal(found.dff, whole.dff[columns])
        np.testing.assert_array_equal(found.f0, whole.f0[columns])
        np.testing.assert_array_equal(found.valid, whole.valid[columns])
    assert whole.valid.all()
    assert whole.f0.dtype == np.float64


def test_dff_is_the_ratio_less_one_oldest_frame_first() -> None:
    window = np.arange(1, 17, dtype=np.float32).reshape(8, 2)
    baseline = read_baseline(window, recipe=SHORT)
    f0 = window[3:].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(baseline.dff, (window / f0 - 1).T, rtol=1e-6)
    assert baseline.dff.shape == (2, 8)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("frame", [0, 7])
def test_a_value_that_is_not_finite_silences_only_its_neuron(bad: float, frame: int) -> None:
    window = np.full((8, 3), 100, np.float32)
    window[frame, 1] = bad
    baseline = read_baseline(window, recipe=SHORT)
    assert baseline.valid.tolist() == [True, False, True]
    assert (baseline.dff == 0).all()


@given(
    f0=hnp.arrays(np.float32, 4, elements=st.floats(-10, 10, width=32)),
    minimum=hnp.arrays(np.float64, 4, elements=st.floats(-5, 10)),
)
def test_f0_at_or_below_its_minimum_is_not_valid_and_its_row_is_zero(
    f0: NDArray[np.float32], minimum: NDArray[np.float64]
) -> None:
    window = np.broadcast_to(f0, (8, 4)).copy()
    out = np.full((4, 8), 9, np.float32)
    found, valid = write_baseline(window, recipe=SHORT, out=out, f0_minimum=minimum)
    # A subnormal F0 may leave no finite ratio; it is then not valid either.
    assert not (valid & ~(found > np.maximum(minimum, 0))).any()
    assert valid[(f0 > 1e-3) & (f0 > minimum + 1e-9)].all()
    assert (out[~valid] == 0).all()
    assert np.isfinite(out).all()


def test_a_minimum_that_is_not_a_number_admits_nothing() -> None:
    baseline = read_baseline(np.ones((8, 2), np.float32), recipe=SHORT, f0_minimum=np.array([np.nan, 0.0]))
    assert baseline.valid.tolist() == [False, True]


def test_too_few_observed_frames_silence_every_neuron() -> None:
    observed = np.array([True] * 5 + [False] * 3)
    baseline = read_baseline(np.ones((8, 2), np.float32), recipe=SHORT, observed=observed)
    assert not baseline.valid.any()
    assert (baseline.dff == 0).all()


def test_a_window_of_another_length_is_refused() -> None:
    with pytest.raises(SignalError, match="the window has 7 frames, the recipe wants 8"):
        read_baseline(np.ones((7, 2), np.float32), recipe=SHORT)


@pytest.mark.parametrize(
    ("rate", "interpolated"), [(28.49, True), (28.5, False), (31.5, False), (31.6, True), (15.0, True)]
)
def test_which_rates_are_interpolated(rate: float, interpolated: bool) -> None:
    assert needs_interpolation(rate) is interpolated


def test_slow_rates_need_an_explicit_choice() -> None:
    with pytest.raises(SignalError, match="explicit choice"):
        needs_interpolation(14.9)
    assert needs_interpolation(14.9, accept_slow=True)
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(SignalError, match="positive"):
            needs_interpolation(rate, accept_slow=True)


@given(rate=st.floats(15, 120), jitter=st.floats(0, 0.4), seed=st.integers(0, 10_000), offset=st.floats(0, 1))
def test_the_grid_never_reads_the_onset_or_anything_after_it(
    rate: float, jitter: float, seed: int, offset: float
) -> None:
    clock = stamps(rate, int(6 * rate), jitter=jitter, seed=seed)
    rng = np.random.default_rng(seed)
    samples = rng.normal(size=(len(clock), 3)).astype(np.float32)
    frame = int(np.searchsorted(clock, clock[0] + 4.0))
    onset = float(clock[frame - 1] + offset * (clock[frame] - clock[frame - 1]))
    first = int(onset_frames(clock, np.array([onset]))[0])
    before = window_on_grid(samples, timestamps_s=clock, onset_s=onset, recipe=RECIPE)
    changed = samples.copy()
    changed[first:] = np.nan
    np.testing.assert_array_equal(window_on_grid(changed, timestamps_s=clock, onset_s=onset, recipe=RECIPE), before)
    # Nor does it need them to exist: a stream that has received only the earlier frames gets the same window.
    np.testing.assert_array_equal(
        window_on_grid(samples[:first], timestamps_s=clock[:first], onset_s=onset, recipe=RECIPE), before
    )


@given(rate=st.floats(15, 120), jitter=st.floats(0, 0.4), seed=st.integers(0, 10_000), slope=st.floats(-50, 50))
def test_the_grid_is_exact_on_straight_lines_and_then_holds(
    rate: float, jitter: float, seed: int, slope: float
) -> None:
    clock = stamps(rate, int(6 * rate), jitter=jitter, seed=seed)
    onset = float(clock[0] + 4.5)
    line = (300 + slope * (clock - clock[0]))[:, None].astype(np.float32)
    found = window_on_grid(line, timestamps_s=clock, onset_s=onset, recipe=RECIPE)[:, 0]
    grid = onset - np.arange(96, 0, -1) / 30.0
    last = clock[clock < onset][-1]
    np.testing.assert_allclose(found, 300 + slope * (np.minimum(grid, last) - clock[0]), rtol=3e-6)


def test_at_the_models_own_rate_the_grid_returns_the_frames() -> None:
    clock = 7.0 + np.arange(200) / 30.0
    samples = np.random.default_rng(0).uniform(100, 200, (200, 4)).astype(np.float32)
    found = window_on_grid(samples, timestamps_s=clock, onset_s=float(clock[150]), recipe=RECIPE)
    np.testing.assert_allclose(found, samples[54:150], rtol=1e-5)


def test_a_grid_that_begins_before_the_samples_is_refused() -> None:
    clock = np.arange(200) / 30.0
    samples = np.ones((200, 1), np.float32)
    with pytest.raises(SignalError, match="wait until enough frames"):
        window_on_grid(samples, timestamps_s=clock, onset_s=3.0, recipe=RECIPE)
    with pytest.raises(SignalError, match="wait until enough frames"):
        window_on_grid(samples[:0], timestamps_s=clock[:0], onset_s=5.0, recipe=RECIPE)


def test_a_level_by_hand() -> None:
    found = f0_level(np.array([100.0, 200.0, 50.0]), np.full(3, 100.0))
    expected = [[0.0, 0.0], [np.log(2.0), -0.5], [-np.log(2.0), 1.0]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32
    assert f0_level(np.empty(0), np.empty(0)).shape == (0, 2)


def test_a_level_is_clipped_at_both_ends() -> None:
    found = f0_level(np.array([1e30, 1e-30, 1000.0, 20.0]), np.full(4, 100.0))
    # The second number has no lower bound to reach: F0 without end is a dF/F of -1.
    np.testing.assert_allclose(
        found, [[LARGEST_LEVEL, -1.0], [-LARGEST_LEVEL, LARGEST_LEVEL], [np.log(10), -0.9], [-np.log(5), 3.0]], rtol=1e-6
    )


@pytest.mark.parametrize("bad", [0.0, -0.0, -100.0, np.nan, np.inf, -np.inf])
def test_a_level_that_is_not_known_is_zero_and_harms_no_other(bad: float) -> None:
    good = np.full(2, 100.0)
    of_f0 = f0_level(np.array([bad, 200.0]), good)
    of_usual = f0_level(2 * good, np.array([bad, 100.0]))
    for found in (of_f0, of_usual):
        assert found[0].tolist() == [0.0, 0.0]
        np.testing.assert_allclose(found[1], [np.log(2.0), -0.5], rtol=1e-6)


anything = st.floats(width=32)
fluorescence = st.floats(2.0**-20, 2.0**30, width=32)


@given(f0=hnp.arrays(np.float64, 5, elements=anything), usual=hnp.arrays(np.float64, 5, elements=anything))
def test_a_level_is_finite_and_bounded_whatever_it_is_given(f0: NDArray[np.float64], usual: NDArray[np.float64]) -> None:
    found = f0_level(f0, usual)
    assert np.isfinite(found).all()
    assert (np.abs(found) <= LARGEST_LEVEL).all()


@given(f0=hnp.arrays(np.float64, 6, elements=fluorescence), usual=fluorescence)
def test_a_brighter_baseline_has_a_higher_level(f0: NDArray[np.float64], usual: float) -> None:
    found = f0_level(np.sort(f0), np.full(6, usual)).astype(np.float64)
    assert (np.diff(found[:, 0]) >= 0).all()
    assert (np.diff(found[:, 1]) <= 0).all()


@given(f0=fluorescence, usual=fluorescence, factor=st.floats(2.0**-10, 2.0**10))
def test_a_level_has_no_unit(f0: float, usual: float, factor: float) -> None:
    plain, scaled = (f0_level(np.array([c * f0]), np.array([c * usual])) for c in (1.0, factor))
    np.testing.assert_allclose(scaled, plain, rtol=1e-6, atol=1e-6)
