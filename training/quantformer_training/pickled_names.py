"""What the names in numpy's pickles stand for here; each builds a checked value from arguments that are not believed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from quantformer_training.numpy_files import is_unicode

#: Types of numbers and text that arrays in a pickle may have; "O8" is a list of further objects.
ADMITTED_TYPE = re.compile(r"b1|[iu][1248]|f[248]|c(8|16)|[SU][0-9]{1,6}|O8")


@dataclass(frozen=True, eq=False)
class Opaque:
    """A value of a class that is harmless, known to occur and of no use here (a date, a path); its content is dropped."""

    name: str


class PickleRefusedError(Exception):
    """An instruction, name or value that has no place in a pickle of numpy; becomes a `RecordingError`."""


@dataclass(eq=False)
class PickledType:
    """Stands for ``numpy.dtype`` while it is being described."""

    code: str
    order: str = "|"

    def numpy(self) -> np.dtype[Any]:
        """The type that was described."""
        return np.dtype(self.code if self.order in "|=" else self.order + self.code)


@dataclass(eq=False)
class PickledArray:
    """Stands for an array until its state arrives; ``held_at`` are the memo entries to replace then."""

    held_at: list[int]


@dataclass(frozen=True, eq=False)
class PickledName:
    """Stands for a name that a pickle may mention; ``call`` is what calling it does here."""

    name: str
    call: Callable[..., Any] | None = None


def refuse(found: str) -> NoReturn:
    """Give up a pickle; ``found`` says what was in it."""
    raise PickleRefusedError(found)


def _type(code: object, _align: object = False, _copy: object = True) -> PickledType:
    if not isinstance(code, str) or not ADMITTED_TYPE.fullmatch(code):
        refuse(f"an array type {code[:40]!r}" if isinstance(code, str) else "an array type that is not text")
    return PickledType(code)


def describe_type(described: PickledType, state: object) -> None:
    """What ``numpy.dtype.__setstate__`` does, of which only the byte order is believed."""
    match state:
        case (int(), ("<" | ">" | "=" | "|") as order, None, None, None, int(), int(), int(), *_):
            described.order = order
        case _:
            refuse("an array type with fields or sub-arrays")


def _values(raw: object, kind: object, *, count: int) -> np.ndarray[Any, np.dtype[Any]]:
    if not isinstance(kind, PickledType) or not isinstance(raw, bytes | bytearray) or kind.code.startswith("O"):
        refuse("an array whose data are not bytes of numbers or text")
    dtype = kind.numpy()
    if dtype.itemsize * count != len(raw) or dtype.itemsize == 0:
        refuse(f"an array of {count} {dtype} in {len(raw)} bytes")
    values = np.frombuffer(raw, dtype)
    if not is_unicode(values.astype(dtype.newbyteorder("="), copy=False)):
        refuse("text that is not Unicode")
    return values


def checked_shape(shape: object) -> tuple[int, ...]:
    """The lengths of an array's axes."""
    if not isinstance(shape, tuple) or len(shape) > 8 or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        refuse("an array whose shape is not a tuple of lengths")
    return shape


def array_of_state(state: object) -> np.ndarray[Any, np.dtype[Any]]:
    """What ``numpy.ndarray.__setstate__`` does."""
    match state:
        case (int(), tuple() as lengths, PickledType() as kind, (bool() | int()) as fortran, data):
            shape = checked_shape(lengths)
        case _:
            refuse("an array whose state is not shape, type, order and data")
    count = math.prod(shape)
    if kind.code == "O8":
        if not isinstance(data, list) or len(data) != count:
            refuse(f"an array of {count} objects without as many objects")
        flat = np.empty(count, dtype=object)
        for position, item in enumerate(data):
            flat[position] = item
    else:
        flat = _values(data, kind, count=count)
    return flat.reshape(shape, order="F" if fortran else "C")


def _new_array(cls: object, _shape: object = (), _kind: object = b"b") -> PickledArray:
    if cls is not NDARRAY:
        refuse("an array of a class that is not numpy.ndarray")
    return PickledArray([])


def _array_of_buffer(raw: object, kind: object, shape: object, order: object = "C") -> np.ndarray[Any, np.dtype[Any]]:
    lengths = checked_shape(shape)
    return _values(raw, kind, count=math.prod(lengths)).reshape(lengths, order="F" if order == "F" else "C")


def _scalar(kind: object, raw: object) -> Any:
    return _values(raw, kind, count=1)[0]


def _encode(text: object, encoding: object) -> bytes:
    """How protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        refuse("text in another encoding than latin1")
    return text.encode("latin1")


def key_or_refuse(value: Any) -> str | int:
    """A dict's key or a set's element. Hashing nested tuples can take for ever, and chosen large numbers collide."""
    if type(value) is not str and not (type(value) is int and abs(value) < 2**31):
        refuse(f"a key of type {type(value).__name__}")
    return value


def _set(items: object) -> set[str | int]:
    """How protocols 2 and 3 write sets."""
    if not isinstance(items, list):
        refuse("a set of something that is not a list")
    return set(map(key_or_refuse, items))


def _opaque(name: str) -> Callable[..., Opaque]:
    return lambda *_: Opaque(name)


NDARRAY = PickledName("numpy.ndarray")
_MULTIARRAY: dict[str, Callable[..., Any]] = {"_reconstruct": _new_array, "scalar": _scalar}
NAMES = {
    ("numpy", "ndarray"): NDARRAY,
    ("numpy", "dtype"): PickledName("numpy.dtype", _type),
    ("_codecs", "encode"): PickledName("_codecs.encode", _encode),
    ("builtins", "set"): PickledName("builtins.set", _set),
    ("__builtin__", "set"): PickledName("__builtin__.set", _set),
    ("__builtin__", "bytes"): PickledName("__builtin__.bytes", lambda: b""),
}
for _package in ("numpy.core", "numpy._core"):  # numpy 1 and numpy 2
    for _function, _call in _MULTIARRAY.items():
        NAMES[_package + ".multiarray", _function] = PickledName(f"{_package}.multiarray.{_function}", _call)
    NAMES[_package + ".numeric", "_frombuffer"] = PickledName(f"{_package}.numeric._frombuffer", _array_of_buffer)
for _module, _class in (
    ("datetime", "datetime"),
    ("datetime", "timedelta"),
    ("datetime", "timezone"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib._local", "PosixPath"),
    ("pathlib._local", "WindowsPath"),
):
    NAMES[_module, _class] = PickledName(f"{_module}.{_class}", _opaque(f"{_module}.{_class}"))
