"""Pickles inside .npy files: what numpy writes is read as numpy reads it, and nothing in a hostile one ever runs."""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import datetime
import io
import os
import pathlib
import pickle
import pickletools
import struct
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from quantformer.errors import RecordingError
from quantformer_training import pickled
from quantformer_training.pickled import read_pickled
from quantformer_training.pickled_names import Opaque


def write(path: Path, program: bytes, *, shape: str = "()") -> Path:
    text = f"{{'descr': '|O', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + program)
    return path


def boxed(item: Any, *, protocol: int = 4) -> bytes:
    """A pickle of a 0-d object array around an item, as suite2p's ``np.save(path, ops)`` makes it."""
    array = np.empty((), dtype=object)
    array[()] = item
    return pickle.dumps(array, protocol=protocol)


PLAIN = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=8),
        st.binary(max_size=8),
        st.sampled_from([np.float32(1.5), np.int64(-3), np.bool_(True), np.str_("x")]),
        hnp.arrays(
            st.one_of(hnp.integer_dtypes(), hnp.floating_dtypes(), hnp.boolean_dtypes(), hnp.complex_number_dtypes()),
            hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=5), inner, max_size=4),
        st.sets(st.text(max_size=3), max_size=3),
    ),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    if isinstance(other, np.ndarray | np.generic):
        equal = np.array_equal(one, other, equal_nan=np.asarray(other).dtype.kind in "fc")
        return bool(equal) and np.asarray(one).dtype == np.asarray(other).dtype
    if isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in other)
    if isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or one != one)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(item=PLAIN, protocol=st.integers(2, 5))
def test_plain_values_and_arrays_come_back_as_they_were(tmp_path: Path, item: Any, protocol: int) -> None:
    found = read_pickled(write(tmp_path / "a.npy", boxed(item, protocol=protocol)))
    assert found.shape == ()
    assert same(found.item(), item)


def test_what_numpy_saves_including_shared_arrays_and_fortran_order(tmp_path: Path) -> None:
    shared = np.arange(6, dtype=">i4")
    rows = np.array([{"a": shared, "b": np.asfortranarray(np.eye(3))}, {"a": shared, "b": [np.array(["x", "yz"])]}])
    np.save(tmp_path / "stat.npy", rows)
    found = read_pickled(tmp_path / "stat.npy")
    assert found.shape == (2,)
    assert found[0]["a"] is found[1]["a"]
    assert all(same(one, other) for one, other in zip(found, rows, strict=True))


def test_the_module_names_of_numpy_1(tmp_path: Path) -> None:
    program = boxed({"fs": np.float64(30), "x": np.arange(3)}, protocol=2)
    old = program.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != program
    found = read_pickled(write(tmp_path / "ops.npy", old)).item()
    assert found["fs"] == 30.0
    assert found["x"].tolist() == [0, 1, 2]


def test_dates_and_paths_are_known_and_dropped(tmp_path: Path) -> None:
    when = datetime.datetime(2024, 5, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=1)))
    found = read_pickled(write(tmp_path / "ops.npy", boxed({"date_proc": when, "save_path": pathlib.Path("a")}))).item()
    assert isinstance(found["date_proc"], Opaque)
    assert isinstance(found["save_path"], Opaque)


class Calls:
    """Pickles to a call of anything."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def touch(path: str) -> None:
    """What no pickle may reach: proof that it ran is a file."""
    Path(path).touch()


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("touch {ran}",), "posix.system|nt.system"),
        (os.popen, ("touch {ran}",), "os.popen"),
        (subprocess.run, (["touch", "{ran}"],), "subprocess.run|commands.run"),
        (builtins.eval, ("open('{ran}', 'w')",), "builtins?__?.eval|builtins.eval"),
        (builtins.exec, ("open('{ran}', 'w')",), "exec"),
        (builtins.getattr, ("", "join"), "getattr"),
        (builtins.open, ("{ran}", "w"), "open"),
        (builtins.bytearray, (2**40,), "bytearray"),
        (builtins.__import__, ("os",), "__import__"),
        (np.load, ("{ran}",), "numpy.load"),
        (np.fromfile, ("/dev/zero", "u1", 2**40), "fromfile"),
        (np.zeros, (2**45,), "zeros"),
        (np.memmap, ("{ran}", "u1", "w+", 0, 10), "memmap"),
        (np.ctypeslib.load_library, ("libc", "/lib"), "load_library"),
        (np.testing.assert_raises, (ValueError, touch, "{ran}"), "assert_raises"),
        (ctypes.CDLL, ("libc.so.6",), "ctypes.CDLL"),
        (pickle.loads, (b"cos\nsystem\n.",), "pickle.loads"),
        (touch, ("{ran}",), "touch"),
    ],
)
def test_no_function_is_ever_called(
    tmp_path: Path, protocol: int, function: Callable[..., Any], arguments: tuple[Any, ...], named: str
) -> None:
    ran = tmp_path / "ran"
    filled = tuple(
        a.format(ran=ran) if isinstance(a, str) else [b.format(ran=ran) for b in a] if isinstance(a, list) else a
        for a in arguments
    )
    path = write(tmp_path / "ops.npy", boxed({"fs": Calls(function, *filled)}, protocol=protocol))
    with pytest.raises(RecordingError, match=f"the name .*({named})"):
        read_pickled(path)
    assert not ran.exists()


def program(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


NDARRAY, RECONSTRUCT, DTYPE = b"cnumpy\nndarray\n", b"cnumpy._core.multiarray\n_reconstruct\n", b"cnumpy\ndtype\n"
EMPTY = RECONSTRUCT + b"(" + NDARRAY + b"K\x00\x85C\x01btR"
OBJECT_TYPE = DTYPE + b"(" + text("O8") + b"\x89\x88tR"


def typed(code: str, order: str = "<") -> bytes:
    state = b"(K\x03" + text(order) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return DTYPE + b"(" + text(code) + b"\x89\x88tR" + state


def array(shape: bytes, kind: bytes, data: bytes) -> bytes:
    return EMPTY + b"(K\x01" + shape + kind + b"\x89" + data + b"tb"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        # numpy's own dtype.__setstate__ would take the flags 0 for an object type and the bytes for pointers.
        (
            array(
                b"K\x01\x85",
                DTYPE
                + b"("
                + text("O8")
                + b"\x89\x88tR(K\x03"
                + text("|")
                + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
                b"C\x08AAAAAAAA",
            ),
            "without as many objects",
        ),
        (array(b"K\x05\x85", typed("f8"), b"C\x08AAAAAAAA"), "5 float64 in 8 bytes"),
        (
            array(b"\x8a\x06" + (2**40).to_bytes(6, "little") + b"\x85", typed("f8"), b"C\x08AAAAAAAA"),
            "tuple of lengths",
        ),
        (array(b"J\xff\xff\xff\xff\x85", typed("f8"), b"C\x08AAAAAAAA"), "tuple of lengths"),
        (array(b"]", typed("f8"), b"C\x08AAAAAAAA"), "state is not shape"),
        (array(b"K\x01\x85", OBJECT_TYPE, b"]"), "without as many objects"),
        (array(b"K\x01\x85", typed("V8"), b"C\x08AAAAAAAA"), "array type 'V8'"),
        (array(b"K\x01\x85", typed("f8,f8"), b"C\x10AAAAAAAAAAAAAAAA"), "array type 'f8,f8'"),
        (array(b"K\x01\x85", typed("f8", "x"), b"C\x08AAAAAAAA"), "fields or sub-arrays"),
        (array(b"K\x01\x85", typed("U1"), b"C\x04\xff\xff\xff\xff"), "not Unicode"),
        (array(b"K\x01\x85", typed("U0"), b"C\x00"), "1 <U0 in 0 bytes"),
        (DTYPE + b"(" + text("f8") + b"\x89\x88tR(K\x03" + text("<") + b"N]}K\x08K\x08K\x00tb", "fields or sub-arrays"),
        (RECONSTRUCT + b"(" + DTYPE + b"K\x00\x85C\x01btR", "class that is not numpy.ndarray"),
        (NDARRAY + b"K\x0a\x85R", "a call of numpy.ndarray"),
        (NDARRAY + b"K\x0a\x85\x81", "a call of numpy.ndarray"),
        (RECONSTRUCT + b")R", "with 0 arguments"),
        (RECONSTRUCT + b"]R", "a call of"),
        (b"K\x01)R", "a call of int"),
        (b"}(K\x01tb", "state for a dict"),
        (b"c_codecs\nencode\n(" + text("x") + text("rot13") + b"tR", "another encoding"),
        (b"}" + b")" + b"K\x01s", "a key of type tuple"),
        (b"}" + b"\x8a\x09" + b"\x01" * 9 + b"K\x01s", "a key of type int"),
        (b"\x8f(])\x90", "a key of type list"),
        (b"}(K\x01u", "a key and no value"),
        (b"s", "without its operands"),
        (b"K\x01K\x02s", "content for a dict"),
        (b"K\x01K\x02K\x03s", "content for a dict"),
        (b"]e", "without its mark"),
        (b"(e", "content for a list"),
        (b"h\x05", "reference to nothing"),
        (b"K\x01K\x02", "an end before"),
        (b"(K\x01", "an end before"),
        (b"", "an end before"),
        (b"]]\x93", "the name"),
        (b"Pid\n", "the instruction PERSID"),
        (b"NQ", "the instruction BINPERSID"),
        (b"\x82\x01", "the instruction EXT1"),
        (b"(cos\nsystem\no", "the name os.system"),
        (b"(ios\nsystem\n", "the instruction INST"),
        (b"I10\n", "the instruction INT"),
        (b"N2", "the instruction DUP"),
        (b"\x97", "the instruction NEXT_BUFFER"),
    ],
)
def test_each_trick_is_refused_by_name(tmp_path: Path, body: bytes, said: str) -> None:
    with pytest.raises(RecordingError, match=said):
        read_pickled(write(tmp_path / "ops.npy", program(body)))


@pytest.mark.parametrize(
    "body",
    [
        b"\x8e" + struct.pack("<Q", 2**62),  # bytes that are not there
        b"\x96" + struct.pack("<Q", 2**40) + b"x",
        b"\x8d" + struct.pack("<Q", 2**40) + b"x",
        b"B\xff\xff\xff\x7f",
        b"\x8b\xff\xff\xff\x7f",
        b"\x95" + struct.pack("<Q", 2**60),
    ],
)
def test_a_claimed_length_takes_no_memory(tmp_path: Path, body: bytes) -> None:
    path = write(tmp_path / "ops.npy", program(body))
    tracemalloc.start()
    try:
        with pytest.raises(RecordingError):
            read_pickled(path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_far_memo_entry_takes_no_memory(tmp_path: Path) -> None:
    body = boxed({"fs": 1})
    far = body[:-1] + b"r\xff\xff\xff\xff."
    tracemalloc.start()
    try:
        assert read_pickled(write(tmp_path / "ops.npy", far)).item() == {"fs": 1}
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_one_stretch_of_bytes_cannot_become_endless_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickled, "MAXIMUM_BYTES", 2**20)
    kilobytes = b"\x8d" + struct.pack("<Q", 2**14) + b"a" * 2**14 + b"\x94"
    copy = b"c_codecs\nencode\n(h\x00" + text("latin1") + b"tR"
    with pytest.raises(RecordingError, match="arrays of more than 1048576 bytes"):
        read_pickled(write(tmp_path / "ops.npy", program(kilobytes, copy * 65)))
    monkeypatch.setattr(pickled, "MAXIMUM_INSTRUCTIONS", 10)
    with pytest.raises(RecordingError, match="more than 10 instructions"):
        read_pickled(write(tmp_path / "ops.npy", program(kilobytes, copy * 3)))


@pytest.mark.parametrize("nest", [b"\x85", b"l", b"]a"])
def test_deep_nesting_does_not_bring_the_process_down(tmp_path: Path, nest: bytes) -> None:
    with contextlib.suppress(RecordingError):
        read_pickled(write(tmp_path / "ops.npy", program(b")" + b"\x85" * 200_000 + b"}" + nest)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(noise=st.binary(max_size=40), at=st.floats(0, 1))
def test_damage_is_never_anything_but_a_recording_error(tmp_path: Path, noise: bytes, at: float) -> None:
    data = boxed({"fs": 29.8, "x": np.arange(5), "names": ["a", "b"], "s": np.float32(2)})
    middle = int(at * len(data))
    for damaged in (noise, data[:middle], data[:middle] + noise + data[middle + len(noise) :]):
        with contextlib.suppress(RecordingError):
            read_pickled(write(tmp_path / "ops.npy", damaged))


def test_the_header_must_agree_with_the_pickle(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"array of shape \(3,\)"):
        read_pickled(write(tmp_path / "ops.npy", boxed(1), shape="(3,)"))
    with pytest.raises(RecordingError, match="does not hold the array"):
        read_pickled(write(tmp_path / "ops.npy", pickle.dumps({"fs": 1})))
    np.save(tmp_path / "plain.npy", np.zeros(3))
    with pytest.raises(RecordingError, match="holds float64, expected the objects"):
        read_pickled(tmp_path / "plain.npy")
    with pytest.raises(RecordingError, match="No such file"):
        read_pickled(tmp_path / "none.npy")


@pytest.mark.parametrize("name", ["ops.npy", "stat.npy"])
def test_real_files_are_read_as_numpy_reads_them(shared_data: Path, name: str) -> None:
    path = shared_data / "suite2p" / "plane0" / name
    expected: NDArray[Any] = np.load(path, allow_pickle=True)
    found = read_pickled(path)
    assert found.shape == expected.shape
    for one, other in zip(found.ravel(), expected.ravel(), strict=True):
        assert same(one, other)
        assert [type(value) for value in one.values()] == [type(value) for value in other.values()]
    with io.BytesIO(path.read_bytes()) as stream:
        stream.readline()
        assert sum(1 for _ in pickletools.genops(stream)) > 10
