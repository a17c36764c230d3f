"""The part of an ONNX graph that some of its outputs need. The runtime itself computes every node, whatever it is asked for.

An ONNX file is a protobuf message. Of it only what says which node makes what is read; everything that stays, stays byte for
byte. Graphs within nodes (of ``If`` and ``Loop``), which could need what no input of theirs names, are not looked for: the
export makes none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

#: Numbers of fields in ONNX's messages: of a model, a graph, a node; and of what has a name alone: an initialiser, a value.
_GRAPH = 7
_NODE, _INITIALIZER, _OUTPUT, _VALUE_INFO = 1, 5, 12, 13
_NODE_INPUT, _NODE_OUTPUT = 1, 2
_NAME = {_INITIALIZER: 8, _OUTPUT: 1, _VALUE_INFO: 1}
_LENGTH_GIVEN = 2
#: Bytes of the wire types whose length is fixed.
_FIXED = {1: 8, 5: 4}


def part_of(model: bytes, outputs: Collection[str]) -> bytes:
    """The model with these outputs alone, and the nodes and initialisers that they need; its inputs stay all.

    Raises:
        ValueError: it is no ONNX model, or has no such output.
    """
    whole = list(_fields(memoryview(model)))
    graphs = [field for field in whole if field.number == _GRAPH]
    if len(graphs) != 1:
        raise ValueError(f"the model has {len(graphs)} graphs, expected one: export the bundle again")
    inner = list(_fields(graphs[0].content))
    there = [_name(field) for field in inner if field.number == _OUTPUT]
    wanted = {name.encode() for name in outputs}
    if missing := sorted(wanted - set(there)):
        raise ValueError(f"the graph of the model has outputs {_told(there)}, not {_told(missing)}")
    needed, nodes = set(wanted), set[int]()
    # Nodes are stored in an order in which each comes after what it reads.
    for place in range(len(inner) - 1, -1, -1):
        if inner[place].number == _NODE:
            reads, makes = _ends(inner[place])
            if makes & needed:
                nodes.add(place)
                needed |= reads
    kept = [
        field
        for place, field in enumerate(inner)
        if (place in nodes if field.number == _NODE else field.number not in _NAME or _name(field) in needed)
        and (field.number != _OUTPUT or _name(field) in wanted)
    ]
    graph = b"".join(field.whole for field in kept)
    return b"".join(
        _varint(_GRAPH << 3 | _LENGTH_GIVEN) + _varint(len(graph)) + graph
        if field.number == _GRAPH
        else bytes(field.whole)
        for field in whole
    )


@dataclass(frozen=True)
class _Field:
    """A field of a message: its number, its bytes with number and length, and its content where a length is given."""

    number: int
    whole: memoryview
    content: memoryview


def _fields(message: memoryview) -> Iterator[_Field]:
    at = 0
    while at < len(message):
        start = at
        tag, at = _read_varint(message, at)
        number, kind = tag >> 3, tag & 7
        content = at
        if kind == _LENGTH_GIVEN:
            length, content = _read_varint(message, at)
            at = content + length
        elif kind == 0:
            _, at = _read_varint(message, at)
        elif kind in _FIXED:
            at += _FIXED[kind]
        else:
            raise ValueError(f"byte {start} begins a field of protobuf's wire type {kind}: this is no ONNX model")
        if at > len(message):
            raise ValueError(f"a field ends at byte {at} of {len(message)}: the ONNX model is cut short")
        yield _Field(number, message[start:at], message[content:at])


def _name(field: _Field) -> bytes:
    return next((bytes(one.content) for one in _fields(field.content) if one.number == _NAME[field.number]), b"")


def _told(names: Collection[bytes]) -> str:
    return b", ".join(names).decode(errors="replace") or "none"


def _ends(node: _Field) -> tuple[set[bytes], set[bytes]]:
    """What a node reads and what it makes; an end that is left out has an empty name."""
    ends: dict[int, set[bytes]] = {_NODE_INPUT: set(), _NODE_OUTPUT: set()}
    for field in _fields(node.content):
        if field.number in ends and len(field.content):
            ends[field.number].add(bytes(field.content))
    return ends[_NODE_INPUT], ends[_NODE_OUTPUT]


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number, seven bits a byte, and where it ends."""
    value = shift = 0
    while at < len(message) and shift < 64:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
    raise ValueError(f"no number ends at byte {at} of {len(message)}: the ONNX model is cut short, or none")


def _varint(value: int) -> bytes:
    """A number as `_read_varint` reads it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
