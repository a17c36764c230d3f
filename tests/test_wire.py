"""Round trips, limits, and bytes that are not messages."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantformer_client import wire
from quantformer_client.errors import ErrorCode
from quantformer_client.wire.answer import Answer
from quantformer_client.wire.control import BODIES

ROOT = Path(__file__).resolve().parents[1]
DOC = (ROOT / "clients" / "wire.md").read_text(encoding="utf-8")
U64 = st.integers(0, 2**64 - 1)


def frame(rois: int = 5, number: int = 3) -> wire.Frame:
    return wire.Frame(number=number, device_s=0.1, fluorescence=np.arange(rois, dtype=np.float32))


def answer(rois: int = 3, stimuli: int = 2, steps: int = 4, frames: int = 6) -> wire.Answer:
    shape = (stimuli, rois, steps)
    return wire.Answer(
        question=1,
        asked=wire.Asked.NOW,
        phase=wire.Phase.ONSET,
        stimuli=tuple(f"stimulus {k}" for k in range(stimuli)),
        onset_frame=96,
        onset_s=3.2,
        first_frame=0,
        last_frame=95,
        last_frame_s=3.1,
        lead=0,
        held=0,
        received_ns=1,
        window_ready_ns=2,
        submitted_ns=3,
        done_ns=4,
        published_ns=5,
        deadline_ns=0,
        bundle=b"\x07" * 32,
        rois=np.arange(rois, dtype=np.uint32),
        validity=np.full(rois, wire.Validity.VALID | wire.Validity.KNOWN, np.uint8),
        probability=np.linspace(0, 1, stimuli * rois, dtype=np.float32).reshape(stimuli, rois),
        response=np.zeros(shape, np.float32) if steps else None,
        scale=np.linspace(1, 2, stimuli * rois, dtype=np.float32).reshape(stimuli, rois) if steps else None,
        ends=np.stack([np.linspace(-3, -1, steps), np.linspace(1, 2, steps)]).astype(np.float32) if steps else None,
        baseline=np.ones((rois, frames), np.float32) if frames else None,
    )


def code_of(data: bytes) -> ErrorCode:
    with pytest.raises(wire.WireError) as raised:
        wire.decode(data)
    return raised.value.code


def outcome(data: bytes) -> ErrorCode | None:
    try:
        wire.decode(data)
    except wire.WireError as error:
        return error.code
    return None


def patched(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


@given(
    session=U64,
    request=U64,
    epoch=U64,
    number=st.integers(0, 2**53 - 1),
    roi_hash=U64,
    sent=st.integers(-(2**63), 2**63 - 1),
)
def test_frame_header_round_trip(session: int, request: int, epoch: int, number: int, roi_hash: int, sent: int) -> None:
    body = wire.Frame(number=number, device_s=-1.5, fluorescence=np.ones(4, np.float32), roi_hash=roi_hash)
    message = wire.decode(wire.encode(body, session=session, request=request, epoch=epoch, sent_ns=sent))
    head = message.header
    assert (head.session, head.request, head.epoch, head.sent_ns) == (session, request, epoch, sent)
    assert isinstance(message.body, wire.Frame)
    assert (message.body.number, message.body.device_s, message.body.roi_hash) == (number, -1.5, roi_hash)


@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=40),
    neuropil=st.booleans(),
    motion=st.none() | st.tuples(st.floats(-9, 9, width=32), st.floats(-9, 9, width=32)),
)
def test_frame_values_round_trip_bit_for_bit(
    values: list[float], neuropil: bool, motion: tuple[float, float] | None
) -> None:
    array = np.array(values, np.float32)
    body = wire.Frame(
        number=1, device_s=0.0, fluorescence=array, neuropil=array[::-1] if neuropil else None, motion=motion
    )
    got = wire.decode(wire.encode(body)).body
    assert isinstance(got, wire.Frame)
    assert got.fluorescence.tobytes() == array.tobytes()
    assert (got.neuropil is not None) == neuropil
    if got.neuropil is not None:
        assert got.neuropil.tobytes() == array[::-1].tobytes()
    assert got.motion == motion


def test_a_decoded_frame_is_a_read_only_view_of_the_bytes() -> None:
    data = wire.encode(frame())
    got = wire.decode(data).body
    assert isinstance(got, wire.Frame)
    assert np.shares_memory(got.fluorescence, np.frombuffer(data, np.uint8))
    assert not got.fluorescence.flags.writeable


@given(
    rois=st.integers(1, 9),
    stimuli=st.integers(1, 4),
    steps=st.sampled_from([0, 1, 64]),
    frames=st.sampled_from([0, 96]),
)
def test_answer_round_trip(rois: int, stimuli: int, steps: int, frames: int) -> None:
    body = answer(rois, stimuli, steps, frames)
    data = wire.encode(body, session=9, epoch=8)
    got = wire.decode(data).body
    assert isinstance(got, wire.Answer)
    for name in ("rois", "validity", "probability", "response", "scale", "ends", "baseline"):
        np.testing.assert_array_equal(getattr(got, name), getattr(body, name))
    assert (got.stimuli, got.bundle, got.last_frame_s, got.lead) == (body.stimuli, body.bundle, 3.1, 0)
    assert got.valid.all()
    assert got.known.all()
    labels = len(msgspec.json.encode(body.stimuli))
    size = wire.answer_bytes(rois=rois, stimuli=stimuli, response_frames=steps, baseline_frames=frames)
    assert len(data) == wire.HEADER_BYTES + size + labels


def test_both_ends_of_the_interval_follow_from_the_scale_of_each_roi() -> None:
    body = answer()
    assert body.response is not None
    assert body.scale is not None
    assert body.ends is not None
    got = wire.decode(wire.encode(body)).body
    assert isinstance(got, wire.Answer)
    assert got.low is not None
    assert got.high is not None
    for s, n, frame in np.ndindex(2, 3, 4):
        middle, scale = body.response[s, n, frame], body.scale[s, n]
        assert got.low[s, n, frame] == middle + scale * body.ends[0, frame] < middle
        assert got.high[s, n, frame] == middle + scale * body.ends[1, frame] > middle
    without = wire.decode(wire.encode(answer(steps=0))).body
    assert isinstance(without, wire.Answer)
    assert (without.low, without.high) == (None, None)


def test_a_full_field_of_view_fits_one_message_whole() -> None:
    """40,000 ROIs with forecast, which version 1 could not hold."""
    message = wire.encode(answer(rois=40_000, stimuli=1, steps=64, frames=0))
    assert 10_000_000 < len(message) < wire.MAX_MESSAGE
    assert wire.answer_bytes(rois=40_000, stimuli=1, response_frames=64, baseline_frames=0, major=1) > wire.MAX_MESSAGE


def test_an_answer_of_version_1_is_read_from_recordings_alone() -> None:
    golden = ROOT / "clients" / "golden" / "version_1" / "answer.json"
    meant = json.loads(golden.read_text(encoding="utf-8"))
    data = bytes.fromhex(meant["hex"])
    for read in (wire.decode, wire.peek):
        with pytest.raises(wire.WireError, match="a message of wire version 1, this side speaks 2") as raised:
            read(data)
        assert raised.value.code == ErrorCode.UNSUPPORTED_VERSION
    message = wire.decode(data, oldest=wire.OLDEST_READ)
    got = message.body
    assert isinstance(got, wire.Answer)
    assert (message.header.major, message.header.minor) == (1, 1)
    for name in ("rois", "validity", "probability", "response", "baseline"):
        assert getattr(got, name).tolist() == meant["body"][name], name
    assert got.stimuli == tuple(meant["body"]["stimuli"])
    assert (got.scale, got.ends, got.low, got.high) == (None, None, None, None)


@pytest.mark.parametrize(("steps", "frames"), [(4, 6), (0, 0), (4, 0), (0, 6)])
def test_a_draft_that_is_filled_and_stamped_is_the_encoded_answer(steps: int, frames: int) -> None:
    whole = answer(steps=steps, frames=frames)
    known = msgspec.structs.replace(
        whole, submitted_ns=0, done_ns=0, published_ns=0, response=None, scale=None, ends=None, baseline=None
    )
    draft = known.draft(response_frames=steps, baseline_frames=frames, session=9, epoch=8)
    for name in ("validity", "probability", "response", "scale", "ends", "baseline"):
        place, found = getattr(draft.answer, name), getattr(whole, name)
        assert (place is None) == (found is None)
        if place is not None:
            place[:] = found
    wire.stamp_published(draft.message, submitted_ns=3, done_ns=4, published_ns=5, flags=wire.Flags.LATE)
    late = msgspec.structs.replace(whole, flags=wire.Flags.LATE)
    assert draft.message == wire.encode(late, session=9, epoch=8, sent_ns=5)


@pytest.mark.parametrize("body", [frame(), answer(), wire.Open(subject="m", rois=["a", "b"], rate_hz=30.0)])
def test_truncated_at_every_byte_and_with_bytes_behind(body: wire.Body | wire.Frame | Answer) -> None:
    data = wire.encode(body)
    for length in range(len(data)):
        assert code_of(data[:length]) == ErrorCode.TRUNCATED
    assert code_of(data + b"\0") == ErrorCode.LENGTH_MISMATCH


@pytest.mark.parametrize(
    "body",
    [frame(), answer(), wire.Onset(stimuli=[wire.Stimulus(stimulus_id="x")]), wire.Standing(stimuli=[wire.Stimulus()])],
)
@settings(max_examples=200)
@given(data=st.data())
def test_a_message_with_bytes_changed_decodes_or_raises_a_wire_error(
    body: wire.Body | wire.Frame | Answer, data: st.DataObject
) -> None:
    message = bytearray(wire.encode(body))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    assert outcome(bytes(message)) in {None, *ErrorCode}


@given(st.binary(max_size=300))
def test_garbage_raises_a_wire_error(data: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(data)


@given(
    kind=st.sampled_from(list(wire.MessageType)), payload=st.binary(max_size=200), count=st.integers(0, 9), flags=U64
)
def test_garbage_payloads_raise_nothing_but_wire_errors(
    kind: wire.MessageType, payload: bytes, count: int, flags: int
) -> None:
    payload_format = {wire.MessageType.FRAME: 2, wire.MessageType.ANSWER: 3}.get(kind, 1)
    head = wire.Header(
        type=kind,
        format=wire.PayloadFormat(payload_format),
        count=count,
        flags=flags & 0xFFFFFFFF,
        device_s=0.0,
        payload_bytes=len(payload),
    )
    assert outcome(head.encode() + payload) in {None, ErrorCode.BAD_PAYLOAD}


def test_what_each_refusal_is_called() -> None:
    data = wire.encode(frame())
    assert code_of(b"GET / HTTP/1.1\r\n\r\n") == ErrorCode.BAD_MAGIC
    assert code_of(b"") == ErrorCode.TRUNCATED
    assert code_of(patched(data, 4, b"\x01")) == code_of(patched(data, 4, b"\x03")) == ErrorCode.UNSUPPORTED_VERSION
    assert code_of(patched(data, 6, struct.pack("<H", 999))) == ErrorCode.UNKNOWN_TYPE
    assert code_of(patched(data, 19, b"\x09")) == ErrorCode.WRONG_FORMAT
    assert code_of(patched(data, 19, b"\x01")) == ErrorCode.WRONG_FORMAT
    assert code_of(patched(data, 16, struct.pack("<H", 8))) == ErrorCode.LENGTH_MISMATCH
    assert code_of(patched(data, 72, struct.pack("<I", 2**31))) == ErrorCode.OVERSIZED
    assert code_of(patched(data, 72, struct.pack("<I", 6))) == ErrorCode.BAD_PAYLOAD
    assert code_of(patched(data, 40, struct.pack("<Q", 2**53))) == ErrorCode.BAD_PAYLOAD
    assert code_of(patched(data, 48, struct.pack("<d", np.nan))) == ErrorCode.BAD_TIME
    control = wire.Header(
        type=wire.MessageType.HELLO, format=wire.PayloadFormat.JSON, payload_bytes=wire.MAX_CONTROL + 1
    )
    assert code_of(control.encode() + b" " * (wire.MAX_CONTROL + 1)) == ErrorCode.OVERSIZED
    assert code_of(data + b"\0" * wire.MAX_MESSAGE) == ErrorCode.OVERSIZED


@pytest.mark.parametrize(
    "payload",
    [
        b'{"oldest": -1}',
        b'{"oldest": 99999999999999999999999999}',
        b'{"client": 5}',
        b'{"client": "' + b"x" * 300 + b'"}',
        b'{"later": ' + b"[" * 100_000,
        b'{"oldest": 1',
        b"[]",
        b"\xff\xfe",
    ],
)
def test_json_that_is_not_the_message(payload: bytes) -> None:
    head = wire.Header(type=wire.MessageType.HELLO, format=wire.PayloadFormat.JSON, payload_bytes=len(payload))
    assert code_of(head.encode() + payload) == ErrorCode.BAD_PAYLOAD


def test_a_newer_minor_version_is_read_and_its_additions_ignored() -> None:
    payload = b'{"oldest": 2, "client": "new", "later": {"a": [1, 2]}}'
    longer = wire.HEADER_BYTES + 8
    head = wire.Header(type=wire.MessageType.HELLO, format=wire.PayloadFormat.JSON, payload_bytes=len(payload)).encode()
    head = patched(patched(head, 16, struct.pack("<H", longer)), 18, b"\x05")
    message = wire.decode(head + b"\xaa" * 8 + payload)
    assert message.body == wire.Hello(client="new")
    assert (message.header.minor, message.header.header_bytes) == (5, longer)

    data = patched(wire.encode(frame()), 18, b"\x05")
    body = wire.decode(patched(data, 76, struct.pack("<I", 5 * 4 + 3)) + b"new").body
    assert isinstance(body, wire.Frame)
    np.testing.assert_array_equal(body.fluorescence, np.arange(5, dtype=np.float32))

    data = wire.encode(answer())
    at = wire.HEADER_BYTES
    lineage = struct.unpack_from("<H", data, at)[0]
    grown = data[: at + lineage] + b"\xbb" * 16 + data[at + lineage :]
    grown = patched(grown, at, struct.pack("<H", lineage + 16))
    grown = patched(grown, 76, struct.pack("<I", len(grown) - at))
    got = wire.decode(grown).body
    assert isinstance(got, wire.Answer)
    np.testing.assert_array_equal(got.probability, answer().probability)


def test_a_frame_of_float64_is_refused_not_misread() -> None:
    one = frame()
    data = wire.encode(one)
    doubled = one.fluorescence.astype("<f8").tobytes()
    data = patched(data[: wire.HEADER_BYTES], 76, struct.pack("<I", len(doubled))) + doubled
    with pytest.raises(wire.WireError, match="send float32"):
        wire.decode(data)


def test_an_empty_payload_means_all_defaults() -> None:
    head = wire.Header(type=wire.MessageType.PING, format=wire.PayloadFormat.EMPTY)
    assert wire.decode(head.encode()).body == wire.Ping()
    missing = wire.Header(type=wire.MessageType.OPEN, format=wire.PayloadFormat.EMPTY)
    assert code_of(missing.encode()) == ErrorCode.BAD_PAYLOAD


def test_what_cannot_be_written_is_refused() -> None:
    with pytest.raises(wire.WireError, match="HELLO header"):
        wire.encode(wire.Hello(), session=-1)
    with pytest.raises(wire.WireError, match="JSON payload"):
        wire.encode(wire.Open(subject="m", rois=["x" * 250] * 5000, rate_hz=30.0))
    with pytest.raises(wire.WireError, match="neuropil"):
        wire.encode(
            wire.Frame(number=0, device_s=0, fluorescence=np.ones(2, np.float32), neuropil=np.ones(3, np.float32))
        )
    with pytest.raises(wire.WireError, match="shape"):
        wire.encode(wire.Frame(number=0, device_s=0, fluorescence=np.ones((2, 2), np.float32)))
    with pytest.raises(wire.WireError, match="fewer ROIs"):
        wire.encode(answer(rois=wire.MAX_ROIS, stimuli=1, steps=64, frames=0))
    with pytest.raises(wire.WireError, match=r"scale has shape None, expected \(2, 3\)"):
        wire.encode(msgspec.structs.replace(answer(), scale=None))
    with pytest.raises(wire.WireError, match=r"probability has shape \(3, 2\), expected \(2, 3\)"):
        wire.encode(msgspec.structs.replace(answer(), probability=np.ones((3, 2), np.float32)))


def test_an_announced_length_is_never_allocated() -> None:
    stream = wire.MessageStream()
    tracemalloc.start()
    try:
        assert list(stream.feed(struct.pack("<I", wire.MAX_MESSAGE) + wire.MAGIC)) == []
        lying = patched(wire.encode(answer()), wire.HEADER_BYTES + 2, struct.pack("<HHH", 65535, 65535, 65535))
        assert code_of(lying) == ErrorCode.BAD_PAYLOAD
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(1, 97))
def test_a_byte_stream_is_cut_into_the_same_messages(sizes: list[int], step: int) -> None:
    messages = [wire.encode(frame(rois=size, number=k)) for k, size in enumerate(sizes)]
    data = b"".join(wire.with_length(message) for message in messages)
    stream = wire.MessageStream()
    got = [message for at in range(0, len(data), step) for message in stream.feed(data[at : at + step])]
    assert got == messages
    assert stream.pending == 0


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (struct.pack("<I", wire.MAX_MESSAGE + 1) + b"QN", ErrorCode.OVERSIZED),
        (struct.pack("<I", 79), ErrorCode.TRUNCATED),
        (b"GET / HTTP/1.1\r\n", ErrorCode.BAD_MAGIC),
    ],
)
def test_a_byte_stream_of_something_else_is_refused(data: bytes, code: ErrorCode) -> None:
    with pytest.raises(wire.WireError) as raised:
        list(wire.MessageStream().feed(data))
    assert raised.value.code == code


def test_subscriptions_are_prefixes() -> None:
    data = wire.encode(answer(), session=2**40 + 5)
    assert data.startswith(wire.subscription(wire.MessageType.ANSWER))
    assert data.startswith(wire.subscription(wire.MessageType.ANSWER, session=2**40 + 5))
    assert not data.startswith(wire.subscription(wire.MessageType.ANSWER, session=5))
    assert not data.startswith(wire.subscription(wire.MessageType.DECISION))


def test_the_roi_map_hash_sees_order_and_borders() -> None:
    hashes = {wire.roi_map_hash(ids) for ids in (["a", "b"], ["b", "a"], ["ab"], ['a","b'], [])}
    assert len(hashes) == 5
    assert 0 not in hashes


def test_the_document_names_every_type_field_code_and_bit() -> None:
    words = {f"`{member.name}`" for member in wire.MessageType} | {f"`{code}`" for code in ErrorCode}
    words |= {f"`{bit.name}`" for bit in [*wire.Flags, *wire.Validity, *wire.Phase, *wire.Asked]}
    nested: list[type[msgspec.Struct]] = [wire.Rule, wire.SignalDeclaration, wire.Stimulus, wire.SessionStatus]
    words |= {f"`{name}`" for body in (*BODIES, *nested) for name in body.__struct_fields__}
    assert sorted(word for word in words if word not in DOC) == []
    for member in wire.MessageType:
        assert f"| {member.value} | `{member.name}` |" in DOC


def test_importing_loads_no_heavy_package_and_no_transport() -> None:
    code = (
        "import sys, quantformer_client; from quantformer_client import wire; "
        "print([m for m in ('torch', 'onnxruntime', 'fastapi', 'zmq', 'httpx', 'asyncio', 'quantformer') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
