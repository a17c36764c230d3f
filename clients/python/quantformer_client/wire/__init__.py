"""The wire: one binary message format, over ZeroMQ and over TCP. `clients/wire.md` describes it byte by byte.

::

    data = wire.encode(wire.Ping(), request=7, sent_ns=time.perf_counter_ns())
    message = wire.decode(data)
    match message.body:
        case wire.Frame() as frame: ...
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import msgspec

from quantformer_client.errors import ErrorCode, WireError
from quantformer_client.wire.answer import (
    Answer,
    Asked,
    Draft,
    Phase,
    Source,
    Validity,
    answer_bytes,
    forecast_bytes,
    readdress,
    stamp_published,
)
from quantformer_client.wire.control import (
    BODIES,
    Accepted,
    Acquisition,
    Arm,
    Body,
    Bye,
    ClearStanding,
    Close,
    Closed,
    Count,
    Decision,
    Describe,
    Description,
    Disarm,
    Error,
    GetStatus,
    GetTrigger,
    Heartbeat,
    Hello,
    Histogram,
    ListRules,
    Metrics,
    Onset,
    Open,
    Opened,
    Ping,
    Poll,
    Pong,
    Positive,
    Recording,
    RemoveRule,
    RoiIds,
    Rule,
    Rules,
    Seconds,
    SessionLost,
    SessionStatus,
    SetRule,
    SignalDeclaration,
    Soon,
    Standing,
    Status,
    Stimulation,
    Stimuli,
    Stimulus,
    Stop,
    Trigger,
    Welcome,
)
from quantformer_client.wire.frame import Frame
from quantformer_client.wire.header import (
    HEADER_BYTES,
    ID_LIMIT,
    MAGIC,
    MAJOR,
    MAX_CONTROL,
    MAX_MESSAGE,
    MAX_ROIS,
    MINOR,
    OLDEST_READ,
    Flags,
    Header,
    MessageType,
    PayloadFormat,
    pack_header,
    subscription,
)
from quantformer_client.wire.ranking import Ranked, ranking
from quantformer_client.wire.stream import MessageStream, with_length

__all__ = [
    "HEADER_BYTES",
    "ID_LIMIT",
    "MAGIC",
    "MAJOR",
    "MAX_CONTROL",
    "MAX_MESSAGE",
    "MAX_ROIS",
    "MINOR",
    "OLDEST_READ",
    "Accepted",
    "Acquisition",
    "Answer",
    "Arm",
    "Asked",
    "Body",
    "Bye",
    "ClearStanding",
    "Close",
    "Closed",
    "Count",
    "Decision",
    "Describe",
    "Description",
    "Disarm",
    "Draft",
    "Error",
    "ErrorCode",
    "Flags",
    "Frame",
    "GetStatus",
    "GetTrigger",
    "Header",
    "Heartbeat",
    "Hello",
    "Histogram",
    "ListRules",
    "Message",
    "MessageStream",
    "MessageType",
    "Metrics",
    "Onset",
    "Open",
    "Opened",
    "PayloadFormat",
    "Phase",
    "Ping",
    "Poll",
    "Pong",
    "Positive",
    "Ranked",
    "Recording",
    "RemoveRule",
    "RoiIds",
    "Rule",
    "Rules",
    "Seconds",
    "SessionLost",
    "SessionStatus",
    "SetRule",
    "SignalDeclaration",
    "Soon",
    "Source",
    "Standing",
    "Status",
    "Stimulation",
    "Stimuli",
    "Stimulus",
    "Stop",
    "Trigger",
    "Validity",
    "Welcome",
    "WireError",
    "answer_bytes",
    "decode",
    "encode",
    "forecast_bytes",
    "peek",
    "ranking",
    "readdress",
    "roi_map_hash",
    "stamp_published",
    "subscription",
    "with_length",
]


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A decoded message: its header, and a body whose class says what it is."""

    header: Header
    body: Body | Frame | Answer


_ENCODER = msgspec.json.Encoder()
_DECODERS = {body.message_type: msgspec.json.Decoder(body) for body in BODIES}
_WITH_ARRAYS = (Frame, Answer)
_BINARY = {MessageType.FRAME: PayloadFormat.FLOAT32, MessageType.ANSWER: PayloadFormat.ANSWER}


def encode(
    body: Body | Frame | Answer,
    *,
    session: int = 0,
    request: int = 0,
    epoch: int = 0,
    sent_ns: int = 0,
    frame: int = 0,
    device_s: float = math.nan,
    roi_hash: int = 0,
    count: int = 0,
) -> bytes:
    """The bytes of a message. FRAME and ANSWER fill ``frame``, ``device_s``, ``roi_hash`` and ``count`` themselves.

    Raises:
        WireError: a number or an array does not fit, or the payload is longer than its limit.
    """
    if isinstance(body, _WITH_ARRAYS):
        return body.encode(session=session, request=request, epoch=epoch, sent_ns=sent_ns)
    payload = _ENCODER.encode(body)
    name = body.message_type.name
    if len(payload) > MAX_CONTROL:
        raise WireError(
            ErrorCode.OVERSIZED, f"{name}: a JSON payload of {len(payload)} bytes, at most {MAX_CONTROL} fit"
        )
    head = pack_header(
        body.message_type,
        PayloadFormat.JSON,
        len(payload),
        session=session,
        request=request,
        epoch=epoch,
        sent_ns=sent_ns,
        frame=frame,
        device_s=device_s,
        roi_hash=roi_hash,
        count=count,
    )
    return head + payload


def peek(buffer: bytes | bytearray | memoryview) -> Header:
    """The header alone, checked; its payload is not read.

    Raises:
        WireError: the bytes are not a message of this protocol.
    """
    return Header.decode(memoryview(buffer))


def decode(buffer: bytes | bytearray | memoryview, *, header: Header | None = None, oldest: int = MAJOR) -> Message:
    """Read a whole message. Arrays are views of ``buffer``; pass ``header`` where `peek` has read it already. ``oldest`` is the
    oldest major version to read: `OLDEST_READ` for what was recorded, of whose ANSWERs the interval then is not read.

    Raises:
        WireError: the bytes are not a message of this protocol; `code` says why. Nothing else is ever raised.
    """
    view = memoryview(buffer)
    head = Header.decode(view, oldest=oldest) if header is None else header
    payload = view[head.header_bytes :]
    wanted = _BINARY.get(head.type, PayloadFormat.JSON)
    if head.format != wanted and not (
        wanted == PayloadFormat.JSON and head.format == PayloadFormat.EMPTY and not payload
    ):
        raise WireError(
            ErrorCode.WRONG_FORMAT,
            f"{head.type.name}: the payload's format is {head.format.name}, expected {wanted.name}; see wire.md",
        )
    if head.type == MessageType.FRAME:
        return Message(header=head, body=Frame.decode(head, payload))
    if head.type == MessageType.ANSWER:
        return Message(header=head, body=Answer.decode(head, payload))
    try:
        return Message(header=head, body=_DECODERS[head.type].decode(payload if len(payload) else b"{}"))
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise WireError(ErrorCode.BAD_PAYLOAD, f"{head.type.name}: {error}; see wire.md for its fields") from error


def roi_map_hash(rois: Sequence[str]) -> int:
    """The hash of a session's ROI ids in order: first 8 bytes, little-endian, of SHA-256 over their JSON list.

    JSON as `msgspec` writes it: no spaces, UTF-8. Never 0, which means unchecked.
    """
    return int.from_bytes(hashlib.sha256(_ENCODER.encode(list(rois))).digest()[:8], "little") or 1
