"""Open HDF5 files and read single datasets; what a dataset claims is checked before memory is taken for it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantformer.errors import MissingExtraError, RecordingError
from quantformer_training.numpy_files import MAXIMUM_BYTES

#: Texts in one dataset: names of columns, key and value pairs.
MOST_TEXTS = 1000
SIGNATURE = b"\x89HDF\r\n\x1a\n"


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """The open file, read-only; what HDF5 says of a damaged one becomes a `RecordingError`.

    Raises:
        MissingExtraError: h5py is not installed.
        RecordingError: the file is not readable or not whole.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError(package="h5py", extra="train", purpose=f"reading {path.name}") from error
    try:
        with h5py.File(path, "r") as file:
            yield file
    # h5py reports damage within a file as any of these, depending on where the damage is.
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise RecordingError(f"{path} cannot be read as HDF5: {error}") from error


def dataset(file: Any, name: str) -> Any:
    """The dataset at a path within an open file, following links inside it only; None where there is nothing.

    Raises:
        RecordingError: the path leads to a group, or its data lie in another file.
    """
    import h5py

    found = file.get(name)
    if found is None:
        return None
    where = f"{file.file.filename}: {name}"
    if not isinstance(found, h5py.Dataset):
        raise RecordingError(f"{where} is a group, expected an array")
    # A file from elsewhere must not make this program read other files of this machine.
    if found.file.filename != file.file.filename or found.external or found.is_virtual:
        raise RecordingError(f"{where} lies in another file; only data inside the file are read")
    return found


def read(found: Any, *, kinds: str = "biuf", dtype: type[np.generic] | None = None) -> NDArray[Any]:
    """The whole dataset, converted to ``dtype`` where one is given.

    Raises:
        RecordingError: its values are of another kind (numpy's letters) than ``kinds``, or too many.
    """
    where = f"{found.file.filename}: {found.name}"
    if found.shape is None or found.dtype.kind not in kinds:
        raise RecordingError(f"{where} holds {found.dtype}, expected values of kind {kinds!r}")
    size = math.prod(found.shape) * (found.dtype.itemsize if dtype is None else np.dtype(dtype).itemsize)
    if size > MAXIMUM_BYTES:
        raise RecordingError(f"{where} claims {size} bytes, more than the {MAXIMUM_BYTES} that are read")
    array: NDArray[Any] = np.asarray(found[()] if dtype is None else found.astype(dtype)[()])
    return array


def read_texts(found: Any) -> list[str]:
    """The strings of a dataset of fixed or variable length, flat; bytes that are no UTF-8 are replaced.

    Raises:
        RecordingError: it holds no strings.
    """
    if found.size is None or found.size > MOST_TEXTS:
        raise RecordingError(
            f"{found.file.filename}: {found.name} holds {found.size} texts, expected at most {MOST_TEXTS}"
        )
    values = read(found, kinds="SUO").ravel().tolist()
    strings = [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in values]
    if not all(isinstance(value, str) for value in strings):
        raise RecordingError(f"{found.file.filename}: {found.name} holds {found.dtype}, expected text")
    return strings
