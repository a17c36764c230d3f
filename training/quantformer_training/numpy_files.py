"""Read ``.npy`` and ``.npz`` files of numbers and text; nothing in them is believed before it is checked.

`numpy.load` allocates what a header claims and, if allowed, runs pickles. Here a header must agree with the bytes that
are there, the sum of an archive is limited before anything is unpacked, and objects are refused.
"""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from quantformer.errors import RecordingError

#: Bytes of arrays that one file may hold, unpacked: 1,000 neurons at 30 Hz for 9 hours with their neuropil.
MAXIMUM_BYTES = 8 * 2**30
#: Booleans, integers, floats and text. Objects ("O") would be pickles, "V" records, "M" and "m" dates.
ADMITTED_KINDS = "biufSU"
#: A header as every writer of the format makes it. `ast.literal_eval`, which numpy uses, would admit much more.
HEADER = re.compile(
    r"\{'descr': '(?P<type>[<>|=]?[a-zA-Z?][0-9]{0,9})', *'fortran_order': (?P<fortran>True|False), *"
    r"'shape': \((?P<shape>(?:[0-9]{1,15}, ?)*(?:[0-9]{1,15})?)\),? ?\}\s*"
)
LONGEST_HEADER = 4096


def read_npy(path: Path) -> NDArray[Any]:
    """The array in a ``.npy`` file.

    Raises:
        RecordingError: the file is not readable, not a ``.npy`` file, holds objects, or is shorter or longer than it says.
    """
    try:
        size = path.stat().st_size
        if size > MAXIMUM_BYTES:
            raise RecordingError(f"{path} has {size} bytes, more than the {MAXIMUM_BYTES} that are read; split it")
        with path.open("rb") as stream:
            return read_array(stream, size=size, where=str(path))
    except OSError as error:
        raise RecordingError(f"{path} cannot be read: {error.strerror or error}") from error


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Every array in a ``.npz`` file, by name.

    Raises:
        RecordingError: the file is not readable, not a whole archive, or holds anything but arrays of numbers and text.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            total = sum(member.file_size for member in members)
            if total > MAXIMUM_BYTES:
                raise RecordingError(f"{path} unpacks to {total} bytes, more than the {MAXIMUM_BYTES} that are read")
            arrays: dict[str, NDArray[Any]] = {}
            for member in members:
                name = member.filename.removesuffix(".npy")
                if name == member.filename or name in arrays:
                    reason = "occurs twice" if name in arrays else "is not an array"
                    raise RecordingError(
                        f"{path}: {member.filename!r} {reason}; expected arrays as numpy.savez writes them"
                    )
                with archive.open(member) as stream:
                    arrays[name] = read_array(stream, size=member.file_size, where=f"{path}: {name}")
            return arrays
    except OSError as error:
        raise RecordingError(f"{path} cannot be read: {error.strerror or error}") from error
    # An encrypted member is a RuntimeError, an unknown compression a NotImplementedError, a cut one an EOFError.
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError, ValueError) as error:
        raise RecordingError(f"{path} is not a whole .npz archive: {error}") from error


def read_array(stream: IO[bytes], *, size: int, where: str) -> NDArray[Any]:
    """The array that fills a stream of ``size`` bytes in the ``.npy`` format, read-only, in native byte order.

    Raises:
        RecordingError: the header is not one, names objects, or does not agree with ``size``.
    """
    shape, fortran, dtype = read_header(stream, where=where)
    if dtype.kind not in ADMITTED_KINDS:
        kind = "objects, which are stored as pickles" if dtype.hasobject else f"values of type {dtype}"
        raise RecordingError(f"{where} holds {kind}; only numbers and text are read")
    if dtype.itemsize == 0:
        raise RecordingError(f"{where} holds {dtype}, a text without characters; write it with one or more")
    start, expected = stream.tell(), math.prod(shape) * dtype.itemsize
    if size - start != expected:
        raise RecordingError(
            f"{where} has {size - start} bytes of data, its header says {expected}; the file is damaged"
        )
    data = stream.read(expected)
    if len(data) != expected:
        raise RecordingError(f"{where} ends after {len(data)} of {expected} bytes; the file is truncated")
    try:
        flat = np.frombuffer(data, dtype) if expected else np.zeros(0, dtype)
        array = flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
    except ValueError as error:
        raise RecordingError(f"{where} has the shape {shape}: {error}") from error
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def read_header(stream: IO[bytes], *, where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran order, and type of the array that follows in a stream.

    Raises:
        RecordingError: the stream does not begin with a ``.npy`` header of version 1 or 2 that describes one plain array.
    """
    start = stream.read(8)
    if start[:6] != b"\x93NUMPY" or len(start) < 8:
        raise RecordingError(f"{where} does not begin as a .npy file does, but with {start[:6]!r}")
    if start[6] not in (1, 2):
        raise RecordingError(f"{where} is a .npy of format {start[6]}.{start[7]}; 1.0 and 2.0 are read")
    length = int.from_bytes(stream.read(2 if start[6] == 1 else 4), "little")
    text = stream.read(min(length, LONGEST_HEADER)).decode("latin1")
    found = HEADER.fullmatch(text)
    if found is None:
        raise RecordingError(f"{where} has the .npy header {text.strip()[:200]!r}, which describes no plain array")
    try:
        dtype = np.dtype(found["type"])
    except TypeError as error:
        raise RecordingError(f"{where} holds values of the unknown type {found['type']!r}") from error
    shape = tuple(int(length) for length in found["shape"].replace(",", " ").split())
    return shape, found["fortran"] == "True", dtype


def texts(array: NDArray[Any], *, where: str) -> list[str]:
    """The strings of a text array of any shape, flat.

    Raises:
        RecordingError: the array holds no text, or text that no program can print.
    """
    if array.dtype.kind not in "US":
        raise RecordingError(f"{where} holds {array.dtype}, expected text")
    flat = np.ascontiguousarray(array).ravel()
    if not is_unicode(flat):
        raise RecordingError(f"{where} holds text that is not Unicode")
    try:
        if array.dtype.kind == "S":
            return [value.decode("utf-8") for value in flat.tolist()]
        strings: list[str] = flat.tolist()
        "".join(strings).encode("utf-8")
    except UnicodeError as error:
        raise RecordingError(f"{where} holds text that is not Unicode: {error}") from error
    return strings


def is_unicode(flat: NDArray[Any]) -> bool:
    """Whether numpy can make strings of a contiguous text array; of code points that do not exist it cannot."""
    return flat.dtype.kind != "U" or int(flat.view(np.uint32).max(initial=0)) < 0x110000
