"""One function opens every kind of recording, by content, and says what else it found."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantformer.errors import MissingExtraError, RecordingError
from quantformer.recording import Provenance, Recording, StimulusTable
from quantformer_training.arrays import save_recording
from quantformer_training.readers import open_recording, open_recordings

CSV = "onset_frame,duration_s,category,stimulus_id,direction_deg\n120,2,drifting_gratings,g/90,90\n"


def recording(**changes: Any) -> Recording:
    fields: dict[str, Any] = {
        "fluorescence": np.random.default_rng(0).uniform(100, 200, (300, 2)).astype(np.float32),
        "timestamps_s": np.arange(300) / 30,
        "neuron_ids": ("a", "b"),
        "stimuli": StimulusTable.empty(),
        "provenance": Provenance(origin="simulated", source="test"),
    }
    return Recording(**(fields | changes))


def plane(folder: Path) -> Path:
    folder.mkdir()
    np.save(folder / "F.npy", np.ones((2, 40), np.float32))
    np.save(folder / "Fneu.npy", np.ones((2, 40), np.float32))
    np.save(folder / "iscell.npy", np.ones((2, 2)))
    np.save(folder / "ops.npy", {"fs": 30.0}, allow_pickle=True)  # type: ignore[arg-type]
    return folder


def test_what_a_file_is_its_content_decides(tmp_path: Path) -> None:
    save_recording(recording(), tmp_path / "recording.dat")
    np.savez(tmp_path / "dff", dff=np.zeros((2, 50)), rate_hz=30.0)
    np.save(tmp_path / "traces.npy", np.ones((50, 2)))
    assert open_recording(tmp_path / "recording.dat").neuron_ids == ("a", "b")
    assert open_recording(tmp_path / "dff.npz").signal == "dff_plus_one"
    assert open_recording(tmp_path / "traces.npy", rate_hz=30.0).frames == 50
    assert open_recording(plane(tmp_path / "plane0")).frames == 40
    assert open_recordings(tmp_path / "traces.npy", rate_hz=30.0)[0].frames == 50


def test_allen_and_cascade_files(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    from allen_file import AllenFile

    assert open_recording(AllenFile(stimuli=()).write(tmp_path / "a.nwb")).neurons == 3
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.attrs["rate_hz"] = 30.0
        file["set/cell/0/dff"] = np.zeros(5)
        file["set/cell/1/dff"] = np.zeros(6)
    with pytest.raises(RecordingError, match="many recordings of one neuron each"):
        open_recording(tmp_path / "c.h5")
    assert [found.frames for found in open_recordings(tmp_path / "c.h5")] == [5, 6]
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["estimates/C"] = np.zeros((2, 5))
    for reader in (open_recording, open_recordings):
        with pytest.raises(RecordingError, match=r"an HDF5 file with estimates in it; \.npz"):
            reader(tmp_path / "d.h5")


def test_a_csv_gives_stimuli_to_a_recording_that_has_none(tmp_path: Path) -> None:
    save_recording(recording(), tmp_path / "r.npz")
    (tmp_path / "s.csv").write_text(CSV)
    found = open_recording(tmp_path / "r.npz", stimuli=tmp_path / "s.csv")
    assert found.stimuli.onset_s.tolist() == [found.timestamps_s[120]]
    assert found.stimuli.features_of(0) == {"direction_deg": 90}
    save_recording(found, tmp_path / "labelled.npz")
    with pytest.raises(RecordingError, match="brings 1 presentations of its own"):
        open_recording(tmp_path / "labelled.npz", stimuli=tmp_path / "s.csv")


def test_npy_needs_one_clock(tmp_path: Path) -> None:
    path = tmp_path / "traces.npy"
    np.save(path, np.ones((50, 2)))
    with pytest.raises(RecordingError, match=r"no traces_timestamps\.npy and no rate"):
        open_recording(path)
    assert open_recording(path, rate_hz=25.0).rate_hz == pytest.approx(25)
    np.save(tmp_path / "traces_timestamps.npy", 3 + np.arange(50) / 29.0)
    assert open_recording(path).timestamps_s[0] == 3.0
    with pytest.raises(RecordingError, match=r"both traces_timestamps\.npy and a rate"):
        open_recording(path, rate_hz=25.0)
    np.save(tmp_path / "traces_timestamps.npy", np.arange(49) / 29.0)
    with pytest.raises(RecordingError, match=r"expected numbers \(50,\)"):
        open_recording(path)


def write_npy(array: Any) -> Any:
    return lambda path: np.save(path, array)


def write_npz(**arrays: Any) -> Any:
    return lambda path: np.savez(path, **arrays)


def truncated(path: Path) -> None:
    save_recording(recording(), path)
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("none.npz", lambda path: None, "there is no file"),
        ("folder", lambda path: path.mkdir(), "holds no F.npy"),
        ("empty.npz", lambda path: path.touch(), "is empty"),
        (
            "text.npz",
            lambda path: path.write_text("onset_s,duration_s"),
            "begins with b'onset_s,', which is no recording",
        ),
        ("cut.npz", truncated, "not a whole .npz archive"),
        ("nothing.npz", lambda path: path.write_bytes(b"PK\5\6" + b"\0" * 18), "has the keys none"),
        ("keys.npz", write_npz(a=np.ones(3)), "has the keys a, which is no layout"),
        ("cut.nwb", lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n1234"), "cannot be read as HDF5"),
        ("wide.npy", write_npy(np.ones((2, 50))), "more neurons than frames; save it transposed"),
        ("flat.npy", write_npy(np.ones(50)), r"expected numbers \(frames, neurons\)"),
        ("zero.npy", write_npy(np.ones((0, 2))), r"expected numbers \(frames, neurons\)"),
        ("nan.npy", write_npy(np.full((50, 2), [1.0, np.nan])), r"1 neurons have no finite sample \(neuron-0001\)"),
        ("objects.npy", write_npy(np.array([[{}]], dtype=object)), "objects, which are stored as pickles"),
    ],
)
def test_anything_else_is_a_recording_error_that_says_what_was_found(
    tmp_path: Path, name: str, make: Any, said: str
) -> None:
    path = tmp_path / name
    make(path)
    with pytest.raises(RecordingError, match=said):
        open_recording(path, rate_hz=30.0 if name.endswith(".npy") else None)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes on this system")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RecordingError, match="neither a file nor a folder"):
        open_recording(tmp_path / "pipe")


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_must_be_one(tmp_path: Path, rate: float) -> None:
    np.save(tmp_path / "traces.npy", np.ones((50, 2)))
    with pytest.raises(RecordingError, match="expected a positive number"):
        open_recording(tmp_path / "traces.npy", rate_hz=rate)


def test_a_rate_for_a_file_that_states_its_own(tmp_path: Path) -> None:
    save_recording(recording(), tmp_path / "r.npz")
    with pytest.raises(RecordingError, match="states its own frame rate"):
        open_recording(tmp_path / "r.npz", rate_hz=30.0)
    with pytest.raises(RecordingError, match="states its rate"):
        open_recording(plane(tmp_path / "plane0"), rate_hz=30.0)


def test_some_nan_is_no_error(tmp_path: Path) -> None:
    traces = np.ones((50, 2))
    traces[3:20, 1] = np.nan
    np.save(tmp_path / "traces.npy", traces)
    assert np.isnan(open_recording(tmp_path / "traces.npy", rate_hz=30.0).fluorescence).sum() == 17


def test_without_h5py_only_the_files_that_need_it_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.nwb").write_bytes(b"\x89HDF\r\n\x1a\n1234")
    save_recording(recording(), tmp_path / "r.npz")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"reading a\.nwb needs the package 'h5py'"):
        open_recording(tmp_path / "a.nwb")
    assert open_recording(tmp_path / "r.npz").neurons == 2


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(
    start=st.sampled_from([b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"\x93NUMPY", b"\x89HDF\r\n\x1a\n"]),
    noise=st.binary(max_size=200),
)
def test_noise_is_never_anything_but_a_recording_error(tmp_path: Path, start: bytes, noise: bytes) -> None:
    path = tmp_path / "noise"
    path.write_bytes(start + noise)
    with contextlib.suppress(RecordingError):
        open_recording(path)


@pytest.mark.parametrize("name", ["v1_gratings_24rois.npz", "allen_552195520_excerpt.npz", "suite2p"])
def test_real_recordings_survive_a_round_trip(shared_data: Path, tmp_path: Path, name: str) -> None:
    found = open_recording(shared_data / name)
    save_recording(found, tmp_path / "copy.npz")
    again = open_recording(tmp_path / "copy.npz")
    np.testing.assert_array_equal(again.corrected(), found.corrected())
    assert again.stimuli.stimulus_id == found.stimuli.stimulus_id
    assert again.provenance.facts == found.provenance.facts
