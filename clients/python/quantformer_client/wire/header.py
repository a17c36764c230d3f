"""The fixed header of every message, its numbers and its limits. `clients/wire.md` is the same in words."""

from __future__ import annotations

import math
import struct
from enum import IntEnum, IntFlag

import msgspec

from quantformer_client.errors import ErrorCode, WireError

MAGIC = b"QNTF"
#: What this side speaks: another major version is refused, a greater minor version only adds fields at an end. Messages of a
#: recording may be as old as `OLDEST_READ`.
MAJOR = 2
MINOR = 1
OLDEST_READ = 1
#: Bytes of one whole message, header included.
MAX_MESSAGE = 16 * 1024 * 1024
#: Bytes of one JSON payload.
MAX_CONTROL = 1024 * 1024
#: Frame numbers and the ids that an engine makes lie below this, so that readers whose numbers are all float64 hold them exactly.
ID_LIMIT = 1 << 53
#: Most ROIs of a session, and so of a message.
MAX_ROIS = 65_536


class MessageType(IntEnum):
    """What a message is; u16 at offset 6."""

    HELLO = 1
    WELCOME = 2
    BYE = 3
    PING = 4
    PONG = 5
    GET_STATUS = 6
    STATUS = 7
    ERROR = 8
    ACCEPTED = 9
    METRICS = 10
    SOON = 11
    OPEN = 16
    OPENED = 17
    CLOSE = 18
    CLOSED = 19
    DESCRIBE = 20
    DESCRIPTION = 21
    SESSION_LOST = 22
    FRAME = 32
    ACQUISITION = 33
    STIMULATION = 34
    ONSET = 48
    STANDING = 49
    CLEAR_STANDING = 50
    POLL = 51
    ANSWER = 52
    SET_RULE = 64
    REMOVE_RULE = 65
    LIST_RULES = 66
    RULES = 67
    ARM = 68
    HEARTBEAT = 69
    DISARM = 70
    STOP = 71
    GET_TRIGGER = 72
    TRIGGER = 73
    DECISION = 74


class PayloadFormat(IntEnum):
    """How a payload is written; u8 at offset 19."""

    EMPTY = 0
    JSON = 1
    FLOAT32 = 2
    ANSWER = 3


class Flags(IntFlag):
    """Bits of the header's `flags`; unknown bits are ignored."""

    HAS_NEUROPIL = 1
    HAS_MOTION = 2
    LATE = 16
    OUT_OF_PHASE = 32
    DEGRADED = 64
    HYPOTHETICAL = 128


#: magic, major, reserved 0, type, session, header bytes, minor, format, flags, request, epoch, frame, device time in s,
#: sender's monotonic ns, ROI-map hash, count, payload bytes.
_LAYOUT = struct.Struct("<4sBBHQHBBIQQQdqQII")
HEADER_BYTES = _LAYOUT.size
_PREFIX = struct.Struct("<4sBBHQ")


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The fixed fields of a message, in the order of the layout.

    ``device_s`` is seconds on the microscope's clock (NaN: none); ``sent_ns`` is the sender's own monotonic clock;
    ``roi_hash`` is 0 where the sender does not check the order of its ROIs; ``payload_bytes`` is set by `encode`, which writes
    this side's version.
    """

    type: MessageType
    format: PayloadFormat = PayloadFormat.EMPTY
    session: int = 0
    flags: int = 0
    request: int = 0
    epoch: int = 0
    frame: int = 0
    device_s: float = math.nan
    sent_ns: int = 0
    roi_hash: int = 0
    count: int = 0
    payload_bytes: int = 0
    major: int = MAJOR
    minor: int = MINOR
    header_bytes: int = HEADER_BYTES

    def encode(self) -> bytes:
        """The header's bytes.

        Raises:
            WireError: a number does not fit its field.
        """
        return pack_header(
            self.type,
            self.format,
            self.payload_bytes,
            session=self.session,
            flags=self.flags,
            request=self.request,
            epoch=self.epoch,
            frame=self.frame,
            device_s=self.device_s,
            sent_ns=self.sent_ns,
            roi_hash=self.roi_hash,
            count=self.count,
        )

    @classmethod
    def decode(cls, buffer: memoryview, *, oldest: int = MAJOR) -> Header:
        """Read and check a header; the payload's length is compared with the buffer's, nothing is allocated by it.

        Raises:
            WireError: foreign, truncated, oversized, of another major version or of an unknown type.
        """
        found = len(buffer)
        if found < HEADER_BYTES or found > MAX_MESSAGE:
            raise _no_header(buffer)
        (
            magic,
            major,
            _,
            kind,
            session,
            header_bytes,
            minor,
            payload_format,
            flags,
            request,
            epoch,
            frame,
            device_s,
            sent_ns,
            roi_hash,
            count,
            payload_bytes,
        ) = _LAYOUT.unpack_from(buffer)
        if magic != MAGIC or not oldest <= major <= MAJOR:
            raise _no_header(buffer)
        message_type = _TYPES.get(kind)
        if message_type is None:
            raise WireError(ErrorCode.UNKNOWN_TYPE, f"message type {kind} is not known to wire version {MAJOR}.{MINOR}")
        if payload_format not in _FORMATS:
            raise WireError(
                ErrorCode.WRONG_FORMAT,
                f"{message_type.name}: payload format {payload_format} is not known; see wire.md",
            )
        if header_bytes < HEADER_BYTES or header_bytes + payload_bytes != found:
            code = ErrorCode.TRUNCATED if header_bytes + payload_bytes > found else ErrorCode.LENGTH_MISMATCH
            raise WireError(
                code,
                f"{message_type.name}: header of {header_bytes} and payload of {payload_bytes} bytes announced, "
                f"the message has {found} (the header has at least {HEADER_BYTES})",
            )
        if payload_format == PayloadFormat.JSON and payload_bytes > MAX_CONTROL:
            raise WireError(
                ErrorCode.OVERSIZED,
                f"{message_type.name}: a JSON payload of {payload_bytes} bytes, at most {MAX_CONTROL} are taken",
            )
        if count > MAX_ROIS:
            raise WireError(ErrorCode.OVERSIZED, f"{message_type.name}: {count} ROIs, at most {MAX_ROIS} are taken")
        return cls(
            type=message_type,
            format=_FORMATS[payload_format],
            session=session,
            flags=flags,
            request=request,
            epoch=epoch,
            frame=frame,
            device_s=device_s,
            sent_ns=sent_ns,
            roi_hash=roi_hash,
            count=count,
            payload_bytes=payload_bytes,
            major=major,
            minor=minor,
            header_bytes=header_bytes,
        )


def pack_header(
    message_type: MessageType,
    payload_format: PayloadFormat,
    payload_bytes: int,
    *,
    session: int = 0,
    flags: int = 0,
    request: int = 0,
    epoch: int = 0,
    frame: int = 0,
    device_s: float = math.nan,
    sent_ns: int = 0,
    roi_hash: int = 0,
    count: int = 0,
) -> bytes:
    """The bytes of a header of this side's version, its fields as `Header` has them.

    Raises:
        WireError: a number does not fit its field.
    """
    try:
        return _LAYOUT.pack(
            MAGIC,
            MAJOR,
            0,
            message_type,
            session,
            HEADER_BYTES,
            MINOR,
            payload_format,
            flags,
            request,
            epoch,
            frame,
            device_s,
            sent_ns,
            roi_hash,
            count,
            payload_bytes,
        )
    except struct.error as error:
        raise WireError(
            ErrorCode.BAD_PAYLOAD, f"a {message_type.name} header cannot hold its numbers: {error}"
        ) from error


def _no_header(buffer: memoryview) -> WireError:
    """What is wrong with bytes whose first fields are not those of a message, the first thing first."""
    found = len(buffer)
    if bytes(buffer[:4]) != MAGIC[:found]:
        return WireError(ErrorCode.BAD_MAGIC, f"a message begins with {bytes(buffer[:4])!r}, expected {MAGIC!r}")
    if found >= 5 and buffer[4] != MAJOR:
        return WireError(
            ErrorCode.UNSUPPORTED_VERSION,
            f"a message of wire version {buffer[4]}, this side speaks {MAJOR}; install the matching quantformer",
        )
    if found < HEADER_BYTES:
        return WireError(ErrorCode.TRUNCATED, f"a message of {found} bytes, the header alone has {HEADER_BYTES}")
    return WireError(ErrorCode.OVERSIZED, f"a message of {found} bytes, at most {MAX_MESSAGE} are taken")


# Looked up, since making a member from its number takes longer than the rest of reading a header.
_TYPES: dict[int, MessageType] = {int(one): one for one in MessageType}
_FORMATS: dict[int, PayloadFormat] = {int(one): one for one in PayloadFormat}


def subscription(message_type: MessageType, *, session: int | None = None) -> bytes:
    """The bytes to subscribe to on the PUB port: one type, of every session or of one."""
    prefix = _PREFIX.pack(MAGIC, MAJOR, 0, message_type, session or 0)
    return prefix if session is not None else prefix[:8]
