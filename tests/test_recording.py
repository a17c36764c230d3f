"""The recording in memory: what it refuses, and that cutting it keeps traces and presentations together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantformer.errors import RecordingError
from quantformer.recording import NO_SUB_SESSION, Provenance, Recording, StimulusTable
from quantformer.signal import onset_frames

PROVENANCE = Provenance(origin="simulated", source="test")


def table(onsets: list[float], **columns: Any) -> StimulusTable:
    rows = len(onsets)
    given: dict[str, Any] = {
        "onset_s": onsets,
        "duration_s": [2.0] * rows,
        "category": ["drifting_gratings"] * rows,
        "stimulus_id": [f"id{row}" for row in range(rows)],
        "features": {"direction_deg": np.arange(rows, dtype=float)},
    }
    return StimulusTable.build(**(given | columns))


def recording(**fields: Any) -> Recording:
    frames, neurons = 40, 3
    rng = np.random.default_rng(0)
    given: dict[str, Any] = {
        "fluorescence": rng.uniform(50, 200, (frames, neurons)).astype(np.float32),
        "timestamps_s": np.arange(frames) / 30.0,
        "neuron_ids": ("a", "b", "c"),
        "stimuli": table([0.1, 0.5, 0.9]),
        "provenance": PROVENANCE,
    }
    return Recording(**(given | fields))


def test_build_sorts_every_column_together() -> None:
    built = table([3.0, 1.0, 2.0], sub_session=[2, 0, 1], duration_s=[0.3, 0.1, 0.2])
    assert built.onset_s.tolist() == [1.0, 2.0, 3.0]
    assert built.duration_s.tolist() == [0.1, 0.2, 0.3]
    assert built.stimulus_id == ("id1", "id2", "id0")
    assert built.sub_session.tolist() == [0, 1, 2]
    assert built.features["direction_deg"].tolist() == [1.0, 2.0, 0.0]


def test_build_is_stable_and_defaults_to_no_sub_session() -> None:
    built = table([1.0, 1.0, 0.0])
    assert built.stimulus_id == ("id2", "id0", "id1")
    assert built.sub_session.tolist() == [NO_SUB_SESSION] * 3
    assert built.sub_session.dtype == np.int16


def test_an_empty_table_has_no_rows() -> None:
    assert len(StimulusTable.empty()) == 0


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"duration_s": [1.0]}, "duration_s has 1 rows"),
        ({"category": ["a"]}, "category has 1 rows"),
        ({"stimulus_id": ["a"] * 3}, "stimulus_id has 3 rows"),
        ({"sub_session": [0]}, "sub_session has 1 rows"),
        ({"sub_session": [0, 70_000]}, "16 bits"),
        ({"sub_session": [0.0, np.nan]}, "16 bits"),
        ({"features": {"direction_deg": [1.0]}}, "direction_deg has 1 rows"),
        ({"features": {"direction_deg": [1.0, np.inf]}}, "'direction_deg' is infinite in row 1"),
        ({"onset_s": [0.0, np.nan]}, "finite"),
        ({"onset_s": [[0.0], [1.0]]}, "shape"),
        ({"duration_s": [0.0, np.inf]}, "finite"),
        ({"duration_s": [0.0, -1.0]}, "row 1 lasts -1.0 s"),
    ],
)
def test_a_contradictory_table_is_refused_by_name(columns: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordingError, match=said):
        table([0.0, 1.0], **columns)


def test_unsorted_rows_are_refused_where_no_one_sorts() -> None:
    good = table([0.0, 1.0])
    with pytest.raises(RecordingError, match="row 1 begins before row 0"):
        replace(good, onset_s=good.onset_s[::-1])


def test_features_cannot_be_changed_in_place_and_leave_out_nan() -> None:
    built = table([0.0, 1.0], features={"direction_deg": [45.0, np.nan], "blank": [0.0, 1.0]})
    with pytest.raises(TypeError):
        built.features["blank"] = np.zeros(2)  # type: ignore[index]
    assert built.features_of(0) == {"direction_deg": 45.0, "blank": 0.0}
    assert built.features_of(1) == {"blank": 1.0}


def test_select_by_mask_and_by_index_agree() -> None:
    built = table([0.0, 1.0, 2.0])
    by_mask = built.select(np.array([True, False, True]))
    by_index = built.select(np.array([2, 0]))
    assert by_mask.stimulus_id == by_index.stimulus_id == ("id0", "id2")
    assert by_mask.features["direction_deg"].tolist() == by_index.features["direction_deg"].tolist() == [0.0, 2.0]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"fluorescence": np.zeros(40, np.float32)}, r"expected \(frames, neurons\)"),
        ({"fluorescence": np.zeros((0, 3), np.float32)}, "at least one frame"),
        ({"timestamps_s": np.arange(39) / 30}, r"timestamps_s has shape \(39,\)"),
        ({"timestamps_s": np.zeros(40)}, "strictly increasing"),
        ({"timestamps_s": np.full(40, np.nan)}, "strictly increasing"),
        ({"neuron_ids": ("a", "b")}, "2 neuron ids for 3 traces"),
        ({"neuron_ids": ("a", "b", "b")}, "'b' occurs twice"),
        ({"signal": "filtered"}, "'filtered', expected one of raw"),
        ({"neuropil": np.zeros((40, 2), np.float32)}, "neuropil has shape"),
        (
            {"neuropil": np.zeros((40, 3), np.float32), "neuropil_factor": np.zeros(2, np.float32)},
            "neuropil_factor has",
        ),
        ({"neuropil_factor": np.zeros(3, np.float32)}, "without neuropil"),
        ({"neuropil": np.zeros((40, 3), np.float32), "signal": "corrected"}, "second time"),
        ({"running_speed_cm_s": np.zeros(3, np.float32)}, "running_speed_cm_s has shape"),
    ],
)
def test_a_contradictory_recording_is_refused_by_name(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordingError, match=said):
        recording(**fields)


def test_arrays_become_the_documented_types_whatever_came_in() -> None:
    made = recording(
        fluorescence=np.asfortranarray(np.ones((40, 3))),
        timestamps_s=np.arange(40),
        neuropil=np.ones((3, 40)).T,
        running_speed_cm_s=np.zeros(40),
    )
    assert made.fluorescence.dtype == np.float32
    assert made.fluorescence.flags.c_contiguous
    assert made.timestamps_s.dtype == np.float64
    assert made.neuropil is not None
    assert made.neuropil.flags.c_contiguous
    assert made.neuropil_factor is not None
    assert made.neuropil_factor.tolist() == pytest.approx([0.7] * 3)
    assert made.running_speed_cm_s is not None
    assert made.running_speed_cm_s.dtype == np.float32


def test_corrected_subtracts_the_neuropil_once() -> None:
    neuropil = np.full((40, 3), 10, np.float32)
    factor = np.array([0.0, 0.5, 1.0], np.float32)
    made = recording(neuropil=neuropil, neuropil_factor=factor)
    np.testing.assert_array_equal(made.corrected(), made.fluorescence - np.array([0, 5, 10], np.float32))
    plain = recording()
    assert plain.corrected() is plain.fluorescence


def test_rate_and_duration_come_from_the_stamps() -> None:
    made = recording(timestamps_s=100 + np.arange(40) / 29.9)
    assert made.rate_hz == pytest.approx(29.9)
    assert made.duration_s == pytest.approx(39 / 29.9)
    one = recording(fluorescence=np.ones((1, 3)), timestamps_s=np.zeros(1))
    assert np.isnan(one.rate_hz)
    assert one.duration_s == 0.0


def test_select_neurons_by_position_and_by_mask() -> None:
    made = recording(neuropil=np.ones((40, 3), np.float32), neuropil_factor=np.array([0.1, 0.2, 0.3], np.float32))
    by_position = made.select_neurons([2, 1])
    by_mask = made.select_neurons(np.array([False, True, True]))
    assert by_position.neuron_ids == ("c", "b")
    assert by_mask.neuron_ids == ("b", "c")
    np.testing.assert_array_equal(by_position.fluorescence, by_mask.fluorescence[:, ::-1])
    assert by_mask.neuropil_factor is not None
    assert by_mask.neuropil_factor.tolist() == pytest.approx([0.2, 0.3])
    with pytest.raises(RecordingError, match="neuron mask"):
        made.select_neurons(np.array([True]))


@pytest.mark.parametrize(("start", "stop"), [(-1, 4), (4, 4), (5, 4), (0, 41)])
def test_between_refuses_ranges_outside_the_recording(start: int, stop: int) -> None:
    with pytest.raises(RecordingError, match=r"asked of a recording with 40"):
        recording().between(start, stop)


@given(
    onsets=st.lists(st.floats(-0.2, 1.6), max_size=12),
    cut=st.integers(1, 39),
)
def test_two_adjoining_parts_hold_each_presentation_once(onsets: list[float], cut: int) -> None:
    whole = recording(stimuli=table(onsets))
    first, second = whole.between(0, cut), whole.between(cut, 40)
    assert first.stimuli.stimulus_id + second.stimuli.stimulus_id == whole.stimuli.stimulus_id
    np.testing.assert_array_equal(np.vstack([first.fluorescence, second.fluorescence]), whole.fluorescence)
    # A part never holds an onset whose frame lies in the other one.
    assert (onset_frames(whole.timestamps_s, first.stimuli.onset_s) < cut).all()
    assert (onset_frames(whole.timestamps_s, second.stimuli.onset_s) >= cut).all()
