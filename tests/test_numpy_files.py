"""Reading .npy and .npz: everything numpy writes of numbers and text, and nothing that lies about itself."""

from __future__ import annotations

import contextlib
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from quantformer.errors import RecordingError
from quantformer_training.numpy_files import MAXIMUM_BYTES, read_array, read_npy, read_npz, texts


def npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def header(descr: str, shape: str, data: bytes = b"", *, version: bytes = b"\x01\x00") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + data


def read(data: bytes) -> NDArray[Any]:
    return read_array(io.BytesIO(data), size=len(data), where="it")


@given(
    hnp.arrays(
        st.one_of(
            hnp.integer_dtypes(),
            hnp.floating_dtypes(sizes=(16, 32, 64)),
            hnp.boolean_dtypes(),
            hnp.unicode_string_dtypes(),
        ),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
    ),
    st.booleans(),
)
def test_what_numpy_writes_is_read(array: NDArray[Any], fortran: bool) -> None:
    array = np.array(array, order="F" if fortran else "C")
    found = read(npy(array))
    np.testing.assert_array_equal(found, array)
    assert found.shape == array.shape
    assert found.dtype == array.dtype.newbyteorder("=")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (npy(np.array([{}, None], dtype=object)), "objects, which are stored as pickles"),
        (npy(np.zeros(2, dtype="M8[s]")), "which describes no plain array"),
        (npy(np.zeros(2, dtype=[("a", "f4")])), "which describes no plain array"),
        (header("<f8", "(1000000000000,)"), "its header says 8000000000000"),
        (header("<f8", "(99999999999999, 99999999999999)"), "the file is damaged"),
        (header("<f4", "(2,)", b"\0" * 7), "7 bytes of data, its header says 8"),
        (header("<f4", "(2,)", b"\0" * 9), "9 bytes of data, its header says 8"),
        (header("<f4", "(-2,)"), "describes no plain array"),
        (header("<f4", "(0, 99999999999999, 99999999999999)"), "shape"),
        (header("<q9", "(1,)"), "unknown type"),
        (header("<U0", "(1000000000,)"), "text without characters"),
        (header("<f4", "().__class__"), "describes no plain array"),
        (header("<f4", "(1,)", version=b"\x03\x00"), "format 3.0"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "describes no plain array"),
        (b"\x93NUM", "does not begin as a .npy file"),
        (b"", "does not begin as a .npy file"),
    ],
)
def test_what_contradicts_itself_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(RecordingError, match=said):
        read(data)


@given(st.binary(max_size=300), st.integers(0, 200))
def test_damage_is_never_anything_but_a_recording_error(noise: bytes, at: int) -> None:
    data = npy(np.arange(12.0).reshape(3, 4))
    for damaged in (noise, data[:at], data[:at] + noise + data[at + len(noise) :]):
        with contextlib.suppress(RecordingError):
            read(damaged)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(noise=st.binary(min_size=1, max_size=20), at=st.floats(0, 1), cut=st.booleans())
def test_a_damaged_archive_is_never_anything_but_a_recording_error(
    tmp_path: Path, noise: bytes, at: float, cut: bool
) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.arange(30.0), y=np.array(["a", "b"]))
    data = path.read_bytes()
    middle = int(at * len(data))
    path.write_bytes(data[:middle] + (b"" if cut else noise + data[middle + len(noise) :]))
    with contextlib.suppress(RecordingError):
        read_npz(path)


def test_an_archive_is_read_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(3), y=np.array("text"))
    found = read_npz(tmp_path / "a.npz")
    assert found["x"].tolist() == [0, 1, 2]
    assert found["y"].item() == "text"
    assert found.keys() == {"x", "y"}


def test_an_archive_with_foreign_or_repeated_members_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../readme.txt", "hello")
    with pytest.raises(RecordingError, match="is not an array"):
        read_npz(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", npy(np.zeros(1)))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("x.npy", npy(np.zeros(1)))
    with pytest.raises(RecordingError, match="occurs twice"):
        read_npz(path)


def test_an_archive_that_would_unpack_to_too_much_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy(np.zeros(10)))
        archive.infolist()[0].file_size = MAXIMUM_BYTES + 1
    with pytest.raises(RecordingError, match="unpacks to"):
        read_npz(path)


def test_files_that_cannot_be_opened_are_named(tmp_path: Path) -> None:
    for reader in (read_npy, read_npz):
        with pytest.raises(RecordingError, match="No such file"):
            reader(tmp_path / "none")
        with pytest.raises(RecordingError, match="cannot be read"):
            reader(tmp_path)


def test_text_that_no_program_can_print_is_refused() -> None:
    impossible = np.frombuffer((0x110000).to_bytes(4, "little"), dtype="<U1")
    surrogate = np.frombuffer((0xD800).to_bytes(4, "little"), dtype="<U1")
    for array in (impossible, surrogate, np.array([b"\xff"])):
        with pytest.raises(RecordingError, match="not Unicode"):
            texts(array, where="it")
    with pytest.raises(RecordingError, match="expected text"):
        texts(np.zeros(1), where="it")
    assert texts(np.array([b"a", b"bc"]), where="it") == ["a", "bc"]
