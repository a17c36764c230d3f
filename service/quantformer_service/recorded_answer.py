"""Answers to standing questions as they are recorded: whole but for the forecast, of which a checksum is kept.

They come with every frame and are almost all forecast. It follows from the frames, which are recorded, and a replay that
computes it anew can compare it by the checksum.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from quantformer_client import wire
from quantformer_client.wire import ErrorCode

#: CRC-32 and number of the bytes that were cut out.
_CUT = struct.Struct("<II")
#: The lineage's first fields: its bytes, stimuli, response frames.
_SIZES = struct.Struct("<HHH")
_MAJOR_AT, _HEADER_BYTES_AT, _COUNT_AT = 4, 16, 72


@dataclass(frozen=True, kw_only=True)
class StandingAnswer:
    """``message`` with zeros for the forecast, whose CRC-32 was ``checksum`` (no forecast: the one of no bytes)."""

    message: wire.Message
    checksum: int

    @property
    def answer(self) -> wire.Answer:
        """The answer; its forecast is zeros."""
        assert isinstance(self.message.body, wire.Answer)
        return self.message.body


def cut_forecast(message: bytes | memoryview) -> bytes:
    """The recorded form of an encoded ANSWER.

    Raises:
        WireError: it is none.
    """
    if wire.peek(message).type != wire.MessageType.ANSWER:
        raise wire.WireError(ErrorCode.BAD_PAYLOAD, "only an ANSWER has a forecast to leave out")
    start, stop = _forecast(message)
    if len(message) < stop:
        raise wire.WireError(ErrorCode.BAD_PAYLOAD, f"ANSWER: {len(message)} bytes, its forecast ends at {stop}")
    removed = message[start:stop]
    return b"".join((_CUT.pack(zlib.crc32(removed), len(removed)), message[:start], message[stop:]))


def restore(recorded: bytes) -> StandingAnswer:
    """Read the recorded form.

    Raises:
        WireError: it is not what `cut_forecast` writes.
    """
    if len(recorded) < _CUT.size:
        raise wire.WireError(ErrorCode.TRUNCATED, f"a recorded answer of {len(recorded)} bytes")
    checksum, removed = _CUT.unpack_from(recorded)
    rest = memoryview(recorded)[_CUT.size :]
    start, stop = _forecast(rest)
    if removed != stop - start or removed > wire.MAX_MESSAGE:
        raise wire.WireError(
            ErrorCode.BAD_PAYLOAD, f"a recorded answer lacks {removed} bytes, its sizes announce {stop - start}"
        )
    message = wire.decode(b"".join((rest[:start], bytes(removed), rest[start:])), oldest=wire.OLDEST_READ)
    if not isinstance(message.body, wire.Answer):
        raise wire.WireError(ErrorCode.BAD_PAYLOAD, f"a recorded answer holds a {message.header.type.name}")
    return StandingAnswer(message=message, checksum=checksum)


def _forecast(message: bytes | memoryview) -> tuple[int, int]:
    """Where the forecast of an encoded ANSWER lies, by its announced sizes."""
    if len(message) < wire.HEADER_BYTES:
        raise wire.WireError(ErrorCode.TRUNCATED, f"a recorded message of {len(message)} bytes")
    (header_bytes,) = struct.unpack_from("<H", message, _HEADER_BYTES_AT)
    (n,) = struct.unpack_from("<I", message, _COUNT_AT)
    if len(message) < header_bytes + _SIZES.size:
        raise wire.WireError(ErrorCode.TRUNCATED, f"a recorded message of {len(message)} bytes")
    lineage_bytes, stimuli, steps = _SIZES.unpack_from(message, header_bytes)
    start = header_bytes + lineage_bytes + 5 * n + -n % 4 + 4 * stimuli * n
    return start, start + wire.forecast_bytes(rois=n, stimuli=stimuli, response_frames=steps, major=message[_MAJOR_AT])
