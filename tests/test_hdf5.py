"""HDF5 datasets: nothing outside the file is read, and no claimed size is believed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from quantformer.errors import MissingExtraError, RecordingError
from quantformer_training import hdf5

h5py = pytest.importorskip("h5py")


def test_links_inside_the_file_are_followed_and_conversion_happens(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["deep/data"] = np.arange(4, dtype=">i2")
        file["link"] = h5py.SoftLink("/deep/data")
    with hdf5.open_hdf5(tmp_path / "a.h5") as file:
        found = hdf5.read(hdf5.dataset(file, "link"), dtype=np.float32)
        assert found.dtype == np.float32
        assert found.tolist() == [0, 1, 2, 3]
        assert hdf5.dataset(file, "none/at/all") is None
        with pytest.raises(RecordingError, match="deep is a group"):
            hdf5.dataset(file, "deep")


def test_data_in_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"12345678")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = np.arange(4)
    layout = h5py.VirtualLayout(shape=(4,), dtype="i8")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "data", shape=(4,))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["link"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "data")
        file["far"] = h5py.SoftLink("/link")
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("raw", shape=(8,), dtype="u1", external=str(tmp_path / "secret"))
        file["dangling"] = h5py.ExternalLink("nowhere.h5", "data")
    with hdf5.open_hdf5(tmp_path / "a.h5") as file:
        for name in ("link", "far", "virtual", "raw"):
            with pytest.raises(RecordingError, match="lies in another file"):
                hdf5.dataset(file, name)
        assert hdf5.dataset(file, "dangling") is None


def test_a_dataset_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("huge", shape=(2**20, 2**20), dtype="f4", chunks=(1024, 1024))
        file.create_dataset("null", data=h5py.Empty("f4"))
        file["text"] = b"hello"
        file["texts"] = np.full(hdf5.MOST_TEXTS + 1, b"a")
        file["numbers"] = np.arange(3)
    with hdf5.open_hdf5(tmp_path / "a.h5") as file:
        with pytest.raises(RecordingError, match="claims 4398046511104 bytes"):
            hdf5.read(hdf5.dataset(file, "huge"))
        for name in ("null", "text"):
            with pytest.raises(RecordingError, match="expected values of kind"):
                hdf5.read(hdf5.dataset(file, name))
        for name in ("texts", "null"):
            with pytest.raises(RecordingError, match="expected at most 1000"):
                hdf5.read_texts(hdf5.dataset(file, name))
        with pytest.raises(RecordingError, match="expected values of kind 'SUO'"):
            hdf5.read_texts(hdf5.dataset(file, "numbers"))


def test_texts_of_every_spelling(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["fixed"] = np.array([b"a", b"bc"])
        file.create_dataset("variable", data=["ä", "b"], dtype=h5py.string_dtype())
        file["one"] = b"\xff!"
        lists = file.create_dataset("lists", shape=(1,), dtype=h5py.vlen_dtype("i4"))
        lists[0] = np.array([1, 2])
    with hdf5.open_hdf5(tmp_path / "a.h5") as file:
        assert hdf5.read_texts(file["fixed"]) == ["a", "bc"]
        assert hdf5.read_texts(file["variable"]) == ["ä", "b"]
        assert hdf5.read_texts(file["one"]) == ["\ufffd!"]
        with pytest.raises(RecordingError, match="expected text"):
            hdf5.read_texts(file["lists"])


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(hdf5.SIGNATURE + b"\0" * 100)
    with pytest.raises(RecordingError, match=r"a\.h5 cannot be read as HDF5"), hdf5.open_hdf5(path):
        pass


def test_without_h5py_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"quantformer\[train\]"), hdf5.open_hdf5(tmp_path / "a.h5"):
        pass
