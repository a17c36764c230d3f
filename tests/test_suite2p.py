"""suite2p folders: real and written, whole and damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantformer.errors import RecordingError
from quantformer_training.suite2p import load_suite2p


def write_plane(folder: Path, *, ops: Any = None, **changes: Any) -> Path:
    """A plane of 4 regions and 50 frames; a change to None leaves the file out."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "F": rng.uniform(100, 200, (4, 50)).astype(np.float32),
        "Fneu": rng.uniform(50, 60, (4, 50)).astype(np.float32),
        "iscell": np.array([[1, 0.9], [0, 0.2], [1, 0.8], [1, 0.7]]),
        "ops": {"fs": 29.87, "neucoeff": 0.7} if ops is None else ops,
    }
    for name, array in (arrays | changes).items():
        if array is not None:
            np.save(folder / f"{name}.npy", array, allow_pickle=True)
    return folder


def test_a_plane_becomes_frames_first_cells_only(tmp_path: Path) -> None:
    plane = write_plane(tmp_path / "plane0")
    found = load_suite2p(plane)
    traces, neuropil = np.load(plane / "F.npy"), np.load(plane / "Fneu.npy")
    assert found.neuron_ids == ("roi-0000", "roi-0002", "roi-0003")
    np.testing.assert_array_equal(found.fluorescence, traces[[0, 2, 3]].T)
    np.testing.assert_allclose(found.corrected(), (traces - 0.7 * neuropil)[[0, 2, 3]].T, rtol=1e-6)
    assert found.rate_hz == pytest.approx(29.87)
    assert found.provenance.source == "plane0"
    assert load_suite2p(plane, cells_only=False).neurons == 4


@pytest.mark.parametrize("below", ["", "suite2p", "mouse"])
def test_the_folder_above_a_plane_will_do(tmp_path: Path, below: str) -> None:
    write_plane(tmp_path / "mouse" / "suite2p" / "plane0")
    start = {"": tmp_path / "mouse" / "suite2p" / "plane0", "suite2p": tmp_path / "mouse" / "suite2p"}
    assert load_suite2p(start.get(below, tmp_path / "mouse")).frames == 50


def test_of_two_planes_one_must_be_named(tmp_path: Path) -> None:
    write_plane(tmp_path / "plane0")
    write_plane(tmp_path / "plane1")
    with pytest.raises(RecordingError, match=r"2 planes \(plane0, plane1\); name the folder of one"):
        load_suite2p(tmp_path)


def test_the_laboratorys_own_neuropil_factor_is_used(tmp_path: Path) -> None:
    found = load_suite2p(write_plane(tmp_path / "plane0", ops={"fs": 30.0, "neucoeff": np.float64(0.5)}))
    assert found.neuropil_factor is not None
    assert found.neuropil_factor.tolist() == [0.5] * 3
    found = load_suite2p(write_plane(tmp_path / "plane1", ops={"fs": np.float32(15.5)}))
    assert found.neuropil_factor is not None
    assert found.neuropil_factor.tolist() == pytest.approx([0.7] * 3)
    assert found.rate_hz == pytest.approx(15.5)


def test_without_options_the_rate_must_be_given(tmp_path: Path) -> None:
    plane = write_plane(tmp_path / "plane0")
    (plane / "ops.npy").unlink()
    with pytest.raises(RecordingError, match="--rate-hz"):
        load_suite2p(plane)
    assert load_suite2p(plane, rate_hz=31.0).rate_hz == pytest.approx(31)
    other = write_plane(tmp_path / "plane1")
    with pytest.raises(RecordingError, match="states its rate"):
        load_suite2p(other, rate_hz=31.0)


class Foreign:
    """A class of a package that the reader cannot have."""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"F": None}, "holds no F.npy"),
        ({"Fneu": None}, "Fneu.npy cannot be read: No such file"),
        ({"iscell": None}, "iscell.npy cannot be read"),
        ({"F": np.zeros((4, 0))}, r"expected numbers \(neurons, frames\)"),
        ({"F": np.array([{}], dtype=object)}, "F.npy holds objects"),
        ({"Fneu": np.zeros((4, 49))}, "neuropil has shape"),
        ({"iscell": np.ones((3, 2))}, r"expected numbers \(4,\)"),
        ({"iscell": np.zeros((4, 2))}, "calls none of the 4 regions a cell"),
        ({"ops": {"fs": 0}}, "the frame rate is 0"),
        ({"ops": {"fs": "30"}}, "the frame rate is 30, expected a positive number"),
        ({"ops": {"fs": float("nan")}}, "the frame rate is nan"),
        ({"ops": {"fs": 30, "neucoeff": -1}}, "neucoeff is -1"),
        ({"ops": [1, 2]}, "expected the objects"),
        ({"ops": np.array([{}, {}])}, "no dict of options"),
        ({"ops": {"fs": Foreign()}}, "the name .*Foreign"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordingError, match=said):
        load_suite2p(write_plane(tmp_path / "plane0", **changes))


def test_the_real_folder(shared_data: Path) -> None:
    found = load_suite2p(shared_data / "suite2p")
    assert (found.frames, found.neurons) == (300, 20)
    assert found.rate_hz == pytest.approx(29.87393200693075)
    assert load_suite2p(shared_data / "suite2p" / "plane0", cells_only=False).neurons == 54
