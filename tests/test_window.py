"""The ring of frames: what it holds is what the offline functions make of the same frames."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantformer.signal import SignalRecipe, hold_missing, onset_frames, write_baseline
from quantformer_client.wire import ErrorCode
from quantformer_service.refusal import Refusal
from quantformer_service.window import MOST_MARKS, FrameWindow, Mark

RATE = 30.0
RECIPE = SignalRecipe()


def ring(*, neurons: int = 3, capacity: int = 40, reorder: int = 8) -> FrameWindow:
    return FrameWindow(neurons=neurons, capacity=capacity, reorder_frames=reorder, period_s=1 / RATE)


def put(window: FrameWindow, number: int, *, at: float | None = None) -> None:
    value = np.full(window.neurons, 100.0 + number, np.float32)
    window.add(number, device_s=number / RATE if at is None else at, values=value, received_ns=number * 1000)


def held(window: FrameWindow) -> tuple[list[float], list[bool]]:
    values, _, observed = window.view(window.oldest, window.last + 1)
    return values[:, 0].tolist(), observed.tolist()


def code_of(window: FrameWindow, number: int, *, at: float | None = None) -> ErrorCode:
    before = held(window), window.last, window.oldest
    with pytest.raises(Refusal) as raised:
        put(window, number, at=at)
    assert (held(window), window.last, window.oldest) == before
    return raised.value.code


def simulated(frames: int, neurons: int, *, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    trace = rng.lognormal(5.0, 0.3, (frames, neurons)).astype(np.float32)
    return trace, np.cumsum(rng.uniform(0.9, 1.1, frames)) / RATE


@settings(max_examples=60)
@given(
    data=st.data(),
    seed=st.integers(0, 2**32 - 1),
    loss=st.sampled_from([0.0, 0.02, 0.3]),
    capacity=st.integers(97, 140),
)
def test_streamed_windows_equal_the_offline_ones_bit_for_bit(
    data: st.DataObject, seed: int, loss: float, capacity: int
) -> None:
    trace, stamps = simulated(230, 5, seed=seed)
    rng = np.random.default_rng(seed + 1)
    observed = rng.random(len(trace)) >= loss
    observed[0] = True
    offline = hold_missing(trace, observed)
    window = ring(neurons=5, capacity=capacity)
    asked = set(data.draw(st.lists(st.integers(97, len(trace)), min_size=1, max_size=5)))
    for number in range(len(trace)):
        if observed[number]:
            window.add(number, device_s=stamps[number], values=trace[number], received_ns=0)
        if number + 1 in asked and observed[number]:
            first = number + 1 - RECIPE.baseline_frames
            values, times, seen = window.view(first, number + 1)
            np.testing.assert_array_equal(values, offline[first : number + 1])
            np.testing.assert_array_equal(seen, observed[first : number + 1])
            np.testing.assert_array_equal(times[seen], stamps[first : number + 1][seen])
            out, expected = np.empty((2, 5, RECIPE.baseline_frames), np.float32)
            got = write_baseline(np.array(values), recipe=RECIPE, out=out, observed=seen)
            want = write_baseline(
                offline[first : number + 1], recipe=RECIPE, out=expected, observed=observed[first : number + 1]
            )
            assert out.tobytes() == expected.tobytes()
            np.testing.assert_array_equal(got, want)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), swaps=st.integers(1, 5))
def test_frames_out_of_order_end_as_if_in_order(seed: int, swaps: int) -> None:
    rng = np.random.default_rng(seed)
    order = list(range(60))
    for _ in range(swaps):
        at = int(rng.integers(1, 55))
        order.insert(at + int(rng.integers(1, 4)), order.pop(at))
    straight, shuffled = ring(), ring(reorder=20)
    for number in range(60):
        put(straight, number)
    for number in order:
        put(shuffled, number)
    assert held(shuffled) == held(straight)
    assert shuffled.last_s == straight.last_s


def test_a_gap_holds_the_last_value_and_a_late_frame_fills_it() -> None:
    window = ring()
    for number in (0, 1):
        put(window, number)
    added = window.add(5, device_s=5 / RATE, values=np.full(3, 105.0, np.float32), received_ns=0)
    assert (added.gap, added.reordered) == (3, False)
    assert held(window) == ([100, 101, 101, 101, 101, 105], [True, True, False, False, False, True])
    np.testing.assert_allclose(window.view(0, 6)[1], np.arange(6) / RATE)
    assert window.add(3, device_s=3 / RATE, values=np.full(3, 103.0, np.float32), received_ns=0).reordered
    assert held(window) == ([100, 101, 101, 103, 103, 105], [True, True, False, True, False, True])


@pytest.mark.parametrize("jump", [38, 39, 40, 41, 1000, 2**52])
def test_a_jump_beyond_the_ring_is_filled_only_as_far_as_it_reaches(jump: int) -> None:
    window = ring()
    for number in range(50):
        put(window, number)
    number = 49 + jump
    added = window.add(number, device_s=1e7, values=np.full(3, 7.0, np.float32), received_ns=0)
    assert added.gap == jump - 1
    values, observed = held(window)
    missing = min(jump - 1, 39)
    assert values == [*range(150 - (39 - missing), 150), *[149] * missing, 7]
    assert sum(observed) == 40 - missing
    assert code_of(window, 49) in {ErrorCode.FRAME_TOO_OLD, ErrorCode.DUPLICATE_FRAME}


def test_what_is_refused_changes_nothing() -> None:
    window = ring()
    for number in (10, 11, 12, 14, 15, 16, 17, 18, 19, 20):
        put(window, number)
    assert code_of(window, 20) == ErrorCode.DUPLICATE_FRAME
    assert code_of(window, 10) == ErrorCode.DUPLICATE_FRAME
    assert code_of(window, 9) == ErrorCode.FRAME_TOO_OLD
    assert code_of(window, 21, at=20 / RATE) == ErrorCode.BAD_TIME
    assert code_of(window, 13, at=12 / RATE) == ErrorCode.BAD_TIME
    assert code_of(window, 13, at=14 / RATE) == ErrorCode.BAD_TIME
    put(window, 13)
    put(window, 30)
    assert code_of(window, 22) == ErrorCode.FRAME_TOO_OLD
    put(window, 23)


def test_marked_frames_are_held_whether_they_came_before_or_come_after() -> None:
    window = ring()
    for number in range(10):
        put(window, number)
    assert window.mark(Mark(first=8, last=11)) == 2
    for number in range(10, 14):
        put(window, number)
    assert held(window)[0] == [*range(100, 108), 107, 107, 107, 107, 112, 113]
    assert held(window)[1] == [True] * 8 + [False] * 4 + [True] * 2
    assert code_of(window, 9) == ErrorCode.DUPLICATE_FRAME
    assert window.mark(Mark(start_s=2.5 / RATE, end_s=3.5 / RATE)) == 2
    assert held(window)[0][:6] == [100, 101, 101, 101, 104, 105]


def test_a_window_that_begins_with_a_marked_frame_has_no_value_to_hold() -> None:
    window = ring()
    window.mark(Mark(first=0, last=1))
    for number in range(3):
        put(window, number)
    values, observed = held(window)
    assert [math.isnan(value) for value in values] == [True, True, False]
    assert observed == [False, False, True]


def test_marks_are_bounded_and_those_that_are_past_make_room() -> None:
    window = ring()
    put(window, 0)
    for _ in range(MOST_MARKS):
        window.mark(Mark(first=1, last=1))
    with pytest.raises(Refusal) as raised:
        window.mark(Mark(first=5, last=6))
    assert raised.value.code == ErrorCode.QUEUE_FULL
    for number in range(1, 50):
        put(window, number)
    window.mark(Mark(first=48, last=60))
    assert held(window)[1] == [True] * 38 + [False] * 2


def test_stamps_without_sense_leave_a_usable_period() -> None:
    window = ring()
    for number in range(5):
        put(window, number, at=1e-300 * number)
    assert window.frame_at(9.0) == 4 + 90_000


def test_a_reset_forgets_frames_numbers_and_marks() -> None:
    window = ring()
    put(window, 50)
    window.mark(Mark(first=0, last=3))
    window.reset()
    assert window.empty
    assert math.isnan(window.last_s)
    put(window, 0)
    assert held(window) == ([100], [True])


@given(onset=st.floats(0.5, 3.9), seed=st.integers(0, 1000), jitter=st.sampled_from([0.0, 1e-4, 5e-3]))
def test_an_onset_is_answered_at_the_frame_that_the_offline_search_finds(
    onset: float, seed: int, jitter: float
) -> None:
    rng = np.random.default_rng(seed)
    stamps = (np.arange(150) + rng.uniform(0, jitter * RATE, 150)) / RATE
    window = ring(capacity=130)
    window.add(0, device_s=stamps[0], values=np.ones(3, np.float32), received_ns=0)
    for number in range(1, 150):
        window.add(number, device_s=stamps[number], values=np.ones(3, np.float32), received_ns=0)
        if window.ready_at(onset):
            break
    expected = int(onset_frames(stamps, np.array([onset]))[0])
    spread = 2 * jitter + 1e-5
    if abs(onset - stamps[number]) > spread and abs(onset - stamps[number] - window.period_s) > spread:
        assert window.frame_at(onset) == expected
        assert window.last - expected in {-1, 0}
    else:
        assert abs(window.frame_at(onset) - expected) <= 1


@pytest.mark.parametrize("lost", [(30,), (30, 31), (29, 30), (28, 29, 30, 31, 32)])
@pytest.mark.parametrize("rate", [30.0, 29.99, 31.3])
def test_a_lost_frame_on_whose_stamp_the_onset_falls_is_the_onset_frame(lost: tuple[int, ...], rate: float) -> None:
    window = ring()
    origin = 571.0
    for number in range(60):
        if number not in lost:
            put(window, number, at=origin + number / rate)
    for number in lost:
        assert window.frame_at(origin + number / rate) == number
        assert window.frame_at(origin + number / rate + 1e-4) == number + 1
        assert window.frame_at(origin + number / rate - 1e-4) == number
    # Frames that came have stamps to which the onset is held exactly.
    assert window.frame_at(origin + 40 / rate) == 40
    assert window.frame_at(np.nextafter(origin + 40 / rate, np.inf)) == 41


def test_an_onset_before_the_ring_is_refused() -> None:
    window = ring()
    for number in range(60):
        put(window, number)
    with pytest.raises(Refusal) as raised:
        window.frame_at(10 / RATE)
    assert raised.value.code == ErrorCode.ONSET_BEFORE_BUFFER
    assert window.frame_at(59.5 / RATE) == 60
    assert window.frame_at(62 / RATE) == 62
    assert window.frame_at(61.9 / RATE) == 62
