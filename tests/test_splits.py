"""Tests of the split: no frame serves two parts, and parts come in order of time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_recording import GRATING, small_recording

from quantformer.errors import RecordingError
from quantformer.recording import Recording
from quantformer.signal import SignalRecipe, onset_frames
from quantformer_training.splits import PARTS, Split, split_by_sub_session, split_by_time

RECIPE = SignalRecipe()


def frames_of(split: Split, part: str) -> set[int]:
    return {frame for low, high in split.spans(part) for frame in range(low, high)}


def assert_parts_are_disjoint_and_in_order(split: Split, recording: Recording) -> None:
    frames = {part: frames_of(split, part) for part in PARTS}
    assert not frames["train"] & frames["validation"]
    assert not frames["train"] & frames["test"]
    assert not frames["validation"] & frames["test"]
    for spans in (split.train, split.validation, split.test):
        for low, high in spans:
            assert 0 <= low <= high <= recording.frames
    for before, after in (("train", "validation"), ("validation", "test")):
        if frames[before] and frames[after]:
            assert max(frames[before]) < min(frames[after])


@settings(max_examples=40)
@given(
    trials=st.integers(5, 30),
    train=st.integers(4, 29),
    test=st.one_of(st.none(), st.integers(1, 40)),
    period_s=st.floats(0.25, 9.0),
    rate_hz=st.sampled_from([20.0, 30.0, 60.0]),
    start_s=st.sampled_from([0.0, 0.5, 5.0]),
)
def test_by_time_no_frame_serves_two_parts(
    trials: int, train: int, test: int | None, period_s: float, rate_hz: float, start_s: float
) -> None:
    recording = small_recording(neurons=1, trials=trials, period_s=period_s, rate_hz=rate_hz, start_s=start_s)
    if train >= trials:
        with pytest.raises(RecordingError, match=f"has {trials} presentations; {train} for training"):
            split_by_time(recording, recipe=RECIPE, train_trials=train)
        return
    split = split_by_time(recording, recipe=RECIPE, train_trials=train, test_trials=test)
    assert_parts_are_disjoint_and_in_order(split, recording)


@settings(max_examples=40)
@given(each=st.integers(1, 12), period_s=st.floats(0.25, 6.0), pause_s=st.floats(0.0, 10.0))
def test_by_sub_session_no_frame_serves_two_parts(each: int, period_s: float, pause_s: float) -> None:
    recording = small_recording(neurons=1, trials=3 * each, period_s=period_s, pause_s=pause_s, sub_sessions=3)
    split = split_by_sub_session(recording, recipe=RECIPE, category=GRATING)
    assert_parts_are_disjoint_and_in_order(split, recording)


def windows(recording: Recording, split: Split, part: str) -> np.ndarray:
    """Rows of the stimulus table whose whole window lies in a part."""
    frame = onset_frames(recording.timestamps_s, recording.stimuli.onset_s)
    return np.flatnonzero(split.inside(part, frame - RECIPE.baseline_frames, frame + RECIPE.response_frames))


def test_sub_sessions_one_and_two_train_and_three_tests() -> None:
    recording = small_recording(neurons=1, trials=60, sub_sessions=3)
    split = split_by_sub_session(recording, recipe=RECIPE, category=GRATING)
    sub = recording.stimuli.sub_session
    assert set(sub[windows(recording, split, "train")].tolist()) == {0, 1}
    assert set(sub[windows(recording, split, "validation")].tolist()) == {1}
    np.testing.assert_array_equal(windows(recording, split, "test"), np.flatnonzero(sub == 2))
    # The last 30 % of the second: rows 34 to 39 of 20 to 39.
    np.testing.assert_array_equal(windows(recording, split, "validation"), np.arange(34, 40))
    assert windows(recording, split, "train").max() < 34


def test_by_time_the_first_train_their_last_third_validates_and_the_rest_tests() -> None:
    recording = small_recording(neurons=1, trials=40)
    split = split_by_time(recording, recipe=RECIPE, train_trials=30)
    train, validation, test = (windows(recording, split, part) for part in PARTS)
    # Purged: with a period of 90 frames the windows of neighbours overlap, so a trial falls out at each border.
    np.testing.assert_array_equal(train, np.arange(20))
    np.testing.assert_array_equal(validation, np.arange(21, 29))
    np.testing.assert_array_equal(test, np.arange(30, 40))


def test_a_limited_test_part_ends_before_the_next_trial() -> None:
    recording = small_recording(neurons=1, trials=40)
    split = split_by_time(recording, recipe=RECIPE, train_trials=20, test_trials=10)
    assert windows(recording, split, "test").tolist() == list(range(20, 29))


def test_merged_trains_on_validation_and_leaves_the_test_alone() -> None:
    split = Split(train=((0, 10),), validation=((10, 20),), test=((20, 30),))
    merged = split.merged()
    assert frames_of(merged, "train") == set(range(20))
    assert merged.test == split.test


def test_windows_lie_wholly_inside_one_span() -> None:
    split = Split(train=((0, 10), (10, 20)), validation=(), test=())
    inside = split.inside("train", np.array([0, 5, 10, 15]), np.array([10, 15, 20, 21]))
    np.testing.assert_array_equal(inside, [True, False, True, False])


def test_too_few_sub_sessions_are_refused_by_name() -> None:
    with pytest.raises(RecordingError, match=r"small\.npz: category 'drifting_gratings' has 0 sub-sessions"):
        split_by_sub_session(small_recording(neurons=1, trials=6), recipe=RECIPE, category=GRATING)
    with pytest.raises(RecordingError, match="'movies' has 0 sub-sessions"):
        split_by_sub_session(small_recording(neurons=1, trials=6, sub_sessions=3), recipe=RECIPE, category="movies")


@pytest.mark.parametrize("numbers", [[2, 1, 0], [1, 0, 2], [0, 2, 1]])
def test_sub_sessions_out_of_order_are_refused(numbers: list[int]) -> None:
    recording = small_recording(neurons=1, trials=12, sub_sessions=3)
    renumbered = np.array(numbers, np.int16)[recording.stimuli.sub_session]
    backwards = dataclasses.replace(recording.stimuli, sub_session=renumbered)
    with pytest.raises(RecordingError, match="not numbered in order"):
        split_by_sub_session(dataclasses.replace(recording, stimuli=backwards), recipe=RECIPE, category=GRATING)


@pytest.mark.parametrize("train_trials", [3, 12, 99])
def test_a_split_that_leaves_nothing_is_refused(train_trials: int) -> None:
    with pytest.raises(RecordingError, match=f"12 presentations; {train_trials} for training"):
        split_by_time(small_recording(neurons=1, trials=12), recipe=RECIPE, train_trials=train_trials)
