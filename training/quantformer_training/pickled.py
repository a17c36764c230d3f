"""Read the pickles inside ``.npy`` files without unpickling: arrays, numbers, text and plain containers, nothing else.

suite2p saves its settings as a dict in an object array, so real folders hold pickles, and a pickle is a program. This is
an interpreter of the few instructions that numpy's own pickles use. It looks no name up and calls nothing: the handful
of names that such pickles contain stand for functions of this module. (`pickle.Unpickler` with a restricted
``find_class`` is not enough: numpy's own ``dtype.__setstate__`` believes flags that make it treat bytes as pointers.)
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from quantformer.errors import RecordingError
from quantformer_training.numpy_files import read_header
from quantformer_training.pickled_names import (
    NAMES,
    PickledArray,
    PickledName,
    PickledType,
    PickleRefusedError,
    array_of_state,
    describe_type,
    key_or_refuse,
    refuse,
)

#: Bytes of a file that is read, and instructions that are followed in it.
MAXIMUM_BYTES = 2**30
MAXIMUM_INSTRUCTIONS = 5_000_000


def read_pickled(path: Path) -> np.ndarray[Any, np.dtype[Any]]:
    """The object array in a ``.npy`` file, such as suite2p's ``ops.npy`` and ``stat.npy``.

    Raises:
        RecordingError: the file is not readable or not whole, or its pickle holds anything but arrays of numbers and text,
            numbers, text, None and containers of them; what was found is named.
    """
    try:
        size = path.stat().st_size
        if size > MAXIMUM_BYTES:
            raise RecordingError(f"{path} has {size} bytes, more than the {MAXIMUM_BYTES} that are read")
        raw = path.read_bytes()
    except OSError as error:
        raise RecordingError(f"{path} cannot be read: {error.strerror or error}") from error
    held = BytesIO(raw)
    shape, _, dtype = read_header(held, where=str(path))
    if dtype.kind != "O":
        raise RecordingError(f"{path} holds {dtype}, expected the objects that suite2p writes there")
    try:
        found = _Machine().run(raw[held.tell() :])
    except PickleRefusedError as error:
        raise RecordingError(
            f"{path} was refused: its pickle holds {error}; expected numpy arrays and containers"
        ) from error
    # Damaged instructions are a ValueError of `pickletools`, text that is not Unicode one of numpy.
    except ValueError as error:
        raise RecordingError(f"{path} holds a damaged pickle: {error}") from error
    if not isinstance(found, np.ndarray) or found.shape != shape:
        raise RecordingError(f"{path} does not hold the array of shape {shape} that its header names")
    return found


class _Machine:
    """The stack, the marks and the memo of one pickle; one method or entry of the table below an instruction."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.made = 0

    def run(self, program: bytes) -> Any:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(program)):
            if count > MAXIMUM_INSTRUCTIONS:
                refuse(f"more than {MAXIMUM_INSTRUCTIONS} instructions")
            name = instruction.name
            if name in _IGNORED:
                continue
            if name == "STOP":
                if len(self.stack) != 1 or self.marks:
                    refuse("an end before everything is put together")
                return self.stack[0]
            if name in _LITERALS:
                self.stack.append(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name]())
            elif name in _ACTIONS:
                _ACTIONS[name](self, argument)
            else:
                refuse(f"the instruction {name}")
        raise PickleRefusedError("no end")

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            refuse("an instruction without its operands")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0) or not isinstance(self.stack[-1], kind):
            refuse(f"content for a {kind.__name__} that is not there")
        return self.stack[-1]

    def since_mark(self) -> list[Any]:
        if not self.marks:
            refuse("an instruction without its mark")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def mark(self, _: object) -> None:
        self.marks.append(len(self.stack))

    def tuple_of(self, length: int) -> None:
        items = [self.pop() for _ in range(length)]
        self.stack.append(tuple(reversed(items)))

    def set_items(self, pairs: list[Any]) -> None:
        target = self.top(dict)
        if len(pairs) % 2:
            refuse("a dict with a key and no value")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[key_or_refuse(key)] = value

    def set_item(self, _: object) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def append(self, _: object) -> None:
        item = self.pop()
        self.top(list).append(item)

    def append_all(self, _: object) -> None:
        items = self.since_mark()
        self.top(list).extend(items)

    def add_items(self, _: object) -> None:
        items = self.since_mark()
        self.top(set).update(map(key_or_refuse, items))

    def put(self, index: int) -> None:
        value = self.top(object)
        if isinstance(value, PickledArray):
            value.held_at.append(index)
        self.memo[index] = value

    def get(self, index: int) -> None:
        if index not in self.memo:
            refuse("a reference to nothing")
        self.stack.append(self.memo[index])

    def name(self, module: object, name: object) -> None:
        # Only text is looked up: anything else might not be hashable.
        if not isinstance(module, str) or not isinstance(name, str) or (module, name) not in NAMES:
            refuse(f"the name {str(module)[:100]}.{str(name)[:100]}")
        self.stack.append(NAMES[module, name])

    def stack_name(self, _: object) -> None:
        name, module = self.pop(), self.pop()
        self.name(module, name)

    def call(self, _: object) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, PickledName) or function.call is None or not isinstance(arguments, tuple):
            refuse(f"a call of {getattr(function, 'name', type(function).__name__)}")
        try:
            made = function.call(*arguments)
        except TypeError:
            refuse(f"a call of {function.name} with {len(arguments)} arguments")
        self.stack.append(self.accounted(made))

    def accounted(self, made: Any) -> Any:
        """Keep count of the memory: one stretch of the file can be made into arrays any number of times."""
        self.made += made.nbytes if isinstance(made, np.ndarray) else len(made) if isinstance(made, bytes) else 0
        if self.made > MAXIMUM_BYTES:
            refuse(f"arrays of more than {MAXIMUM_BYTES} bytes")
        return made

    def build(self, _: object) -> None:
        state, target = self.pop(), self.top(object)
        if isinstance(target, PickledType):
            describe_type(target, state)
        elif isinstance(target, PickledArray):
            array = self.accounted(array_of_state(state))
            self.stack[-1] = array
            self.memo.update(dict.fromkeys(target.held_at, array))
        else:
            refuse(f"state for a {type(target).__name__}")


_IGNORED = {"PROTO", "FRAME"}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.append_all,
    "SETITEM": _Machine.set_item,
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "ADDITEMS": _Machine.add_items,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": lambda machine, names: machine.name(*str(names).split(" ", 1)),
    "STACK_GLOBAL": _Machine.stack_name,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
}
