"""The layouts of the public recordings beside the checkout, and files written in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quantformer.errors import RecordingError
from quantformer.signal import onset_frames
from quantformer_training.numpy_files import read_npz
from quantformer_training.published import recording_from_published

SOURCE = Path("session.npz")


def gratings(**changes: Any) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "fluorescence": rng.uniform(100, 200, (3, 500)).astype(np.float32),
        "neuropil": rng.uniform(50, 60, (3, 500)).astype(np.float32),
        "is_cell": np.array([True, False, True]),
        "rate_hz": np.array(29.97),
        "onset_frame": np.array([100, 350, 200]),
        "direction_deg": np.array([45, 0, 315]),
    }
    return {name: np.asarray(array) for name, array in (arrays | changes).items() if array is not None}


def test_gratings_become_frames_first_cells_only_and_sorted() -> None:
    arrays = gratings()
    found = recording_from_published(arrays, source=SOURCE)
    assert found.neuron_ids == ("roi-00", "roi-02")
    np.testing.assert_array_equal(found.fluorescence, arrays["fluorescence"][[0, 2]].T)
    np.testing.assert_array_equal(
        found.corrected()[:, 1], found.fluorescence[:, 1] - np.float32(0.7) * arrays["neuropil"][2]
    )
    assert onset_frames(found.timestamps_s, found.stimuli.onset_s).tolist() == [100, 200, 350]
    assert found.stimuli.stimulus_id == (
        "drifting_gratings/dir=045",
        "drifting_gratings/dir=315",
        "drifting_gratings/dir=000",
    )
    assert found.stimuli.features["direction_deg"].tolist() == [45, 315, 0]
    assert set(found.stimuli.duration_s.tolist()) == {8.5}
    assert found.rate_hz == pytest.approx(29.97)
    every = recording_from_published(arrays, source=SOURCE, cells_only=False)
    assert every.neuron_ids == ("roi-00", "roi-01", "roi-02")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rate_hz": 0.0}, "rate_hz is 0.0"),
        ({"rate_hz": [1.0, 2.0]}, "expected one finite number"),
        ({"is_cell": [True]}, r"expected numbers \(3,\)"),
        ({"is_cell": [False] * 3}, "at least one frame and neuron"),
        ({"onset_frame": [100, 350, 500]}, "frame numbers from 0 to 499"),
        ({"onset_frame": [100, 350, -1]}, "frame numbers from 0 to 499"),
        ({"onset_frame": [100.5, 350, 400]}, "frame numbers from 0 to 499"),
        ({"direction_deg": [45]}, r"expected numbers \(3,\)"),
        ({"neuropil": np.ones((2, 500))}, "neuropil has shape"),
        ({"fluorescence": np.ones(500)}, r"expected numbers \(neurons, frames\)"),
        ({"onset_frame": None}, "which is no layout that is known"),
    ],
)
def test_damaged_gratings_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordingError, match=said):
        recording_from_published(gratings(**changes), source=SOURCE)


def test_dff_is_shifted_so_that_f0_is_one() -> None:
    dff = np.linspace(-0.5, 3, 40).reshape(2, 20)
    found = recording_from_published({"dff": dff, "rate_hz": np.array(30.0)}, source=SOURCE)
    np.testing.assert_allclose(found.fluorescence, dff.T + 1, rtol=1e-6)
    assert found.signal == "dff_plus_one"
    assert len(found.stimuli) == 0


def test_one_cell_of_the_allen_session() -> None:
    arrays = {
        "corrected_fluorescence_cell0": np.ones(900, np.float32),
        "cell_ids": np.array([17, 18]),
        "onset_frame": np.array([100, 190, 400]),
        "length_frames": np.array([60, 60, 59]),
        "rate_hz": np.array(30.0, np.float32),
        "spikes": np.zeros((2, 900), np.uint8),
    }
    found = recording_from_published(arrays, source=SOURCE)
    assert found.neuron_ids == ("17",)
    assert found.signal == "corrected"
    assert found.stimuli.sub_session.tolist() == [0, 0, 1]
    assert found.stimuli.duration_s.tolist() == pytest.approx([2.0, 2.0, 59 / 30])
    with pytest.raises(RecordingError, match="cell_ids is empty"):
        recording_from_published(arrays | {"cell_ids": np.zeros(0)}, source=SOURCE)


def test_the_real_gratings(shared_data: Path) -> None:
    path = shared_data / "v1_gratings_24rois.npz"
    found = recording_from_published(read_npz(path), source=path)
    with np.load(path) as file:
        assert (found.frames, found.neurons) == (24_600, 20)
        onsets = onset_frames(found.timestamps_s, found.stimuli.onset_s)
        np.testing.assert_array_equal(onsets, file["onset_frame"])
        np.testing.assert_array_equal(found.stimuli.features["direction_deg"], file["direction_deg"])
        np.testing.assert_array_equal(found.fluorescence, file["fluorescence"][file["is_cell"]].T)
    assert len(set(found.stimuli.stimulus_id)) == 8
    assert found.duration_s == pytest.approx(820, abs=1)


def test_the_real_allen_files(shared_data: Path) -> None:
    path = shared_data / "allen_511510667_session_a.npz"
    found = recording_from_published(read_npz(path), source=path)
    assert (found.frames, found.neurons, len(found.stimuli)) == (115_730, 1, 628)
    assert np.bincount(found.stimuli.sub_session).tolist() == [200, 200, 228]
    firsts = np.flatnonzero(np.diff(found.stimuli.sub_session, prepend=-1))
    assert onset_frames(found.timestamps_s, found.stimuli.onset_s[firsts]).tolist() == [737, 48_707, 94_868]
    path = shared_data / "allen_552195520_excerpt.npz"
    found = recording_from_published(read_npz(path), source=path)
    assert (found.frames, found.neurons, found.signal) == (6001, 74, "dff_plus_one")
