"""Messages over a byte stream (TCP): each with its length in front, u32 little-endian, checked before it is waited for."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from quantformer_client.errors import ErrorCode, WireError
from quantformer_client.wire.header import HEADER_BYTES, MAGIC, MAX_MESSAGE

_LENGTH = struct.Struct("<I")


def with_length(message: bytes) -> bytes:
    """A message with its length in front."""
    return _LENGTH.pack(len(message)) + message


class MessageStream:
    """Cuts received bytes into messages. It holds what was received, never what a length only promises."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take received bytes and yield each message that is now whole (without its length).

        Raises:
            WireError: the stream is not this protocol's, or a length is out of bounds. A byte stream cannot be
                resynchronised: answer with the error and close the connection.
        """
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            start = bytes(self._buffer[_LENGTH.size : _LENGTH.size + len(MAGIC)])
            if start != MAGIC[: len(start)]:
                raise WireError(
                    ErrorCode.BAD_MAGIC, f"a message begins with {start!r}, expected {MAGIC!r} after its length"
                )
            if length > MAX_MESSAGE:
                raise WireError(
                    ErrorCode.OVERSIZED, f"a message of {length} bytes announced, at most {MAX_MESSAGE} are taken"
                )
            if length < HEADER_BYTES:
                raise WireError(
                    ErrorCode.TRUNCATED, f"a message of {length} bytes announced, the header alone has {HEADER_BYTES}"
                )
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            message = bytes(memoryview(self._buffer)[_LENGTH.size : end])
            del self._buffer[:end]
            yield message

    @property
    def pending(self) -> int:
        """Bytes received of a message that is not whole yet."""
        return len(self._buffer)
