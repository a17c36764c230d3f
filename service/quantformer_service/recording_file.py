"""A recorded stream on disk: a header, then records that are only ever appended. `docs/recorder.md` has every byte.

Each record carries two checksums: one of its own header, so that a length is believed only when it was written so, and
one of its payload. Whoever is killed while writing leaves a *torn tail*, a last record that is not whole; everything else
that does not fit is *damage*, and is told apart.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from quantformer.errors import RecordingError
from quantformer_client import wire

MAGIC = b"QNTFREC\0"
#: A reader refuses another major version; a greater minor version only adds kinds of records and fields of JSON.
MAJOR, MINOR = 1, 0
MARK = b"QREC"
SUFFIX = ".qfrec"
#: Most bytes of one payload: a whole message, and room for what is kept beside it.
MOST_PAYLOAD = wire.MAX_MESSAGE + 65_536

#: magic, major, minor, 0, epoch, unix ns, engine clock ns, 0; then the CRC-32 of these.
_FILE = struct.Struct("<8sHHIQqqI")
#: mark, kind, 0, detail, payload bytes, sequence, stamp ns, session, id, CRC-32 of the payload; then that of these.
_RECORD = struct.Struct("<4sHHIIQqQQI")
_CRC = struct.Struct("<I")
FILE_BYTES = _FILE.size + _CRC.size
RECORD_BYTES = _RECORD.size + _CRC.size
#: A file system that lost power may leave so many zeros, or more, where the last blocks should be.
_LOST_BLOCK = 512
_CHUNK = 1 << 20


class Kind(IntEnum):
    """What a record is; docs/recorder.md says what its payload and its ``id`` are."""

    START = 1
    INPUT = 2
    REFUSED = 3
    ASKED = 4
    ANSWER = 5
    STANDING_ANSWER = 6
    FAILED = 7
    OUTPUT = 8
    LOST = 9
    END = 10


#: They stand between the numbered records and repeat the number of the one before.
_UNNUMBERED = frozenset({Kind.START, Kind.END})


class Ending(StrEnum):
    """How a file ends."""

    CLOSED = "closed"
    #: After a whole record, without the record that a graceful end writes: it is being written, or its writer was killed.
    CUT = "cut"
    #: Inside a record: its writer was killed, or the machine lost power.
    TORN = "torn"


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One record. ``kind`` is a `Kind`, or a newer writer's number; ``stamp_ns`` is the engine's monotonic clock."""

    kind: int
    sequence: int
    stamp_ns: int
    session: int = 0
    id: int = 0
    detail: int = 0
    payload: bytes = b""


@dataclass(frozen=True, kw_only=True)
class FileHeader:
    """Whose recording it is, and the same moment on the machine's calendar and on the engine's monotonic clock."""

    epoch: int
    unix_ns: int
    clock_ns: int
    minor: int = MINOR


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Bytes ``[start, stop)`` of a file are not what was written; ``what`` says how that shows."""

    start: int
    stop: int
    what: str

    def __str__(self) -> str:
        return f"bytes {self.start} to {self.stop}: {self.what}"


@dataclass(frozen=True, kw_only=True)
class Survey:
    """All of a file: how many whole records, their numbers, how it ends, and what is damaged."""

    records: int
    first: int
    last: int
    ending: Ending
    torn_bytes: int
    damages: tuple[Damage, ...]


class RecordingReader:
    """Reads a file whose every byte may be anything. Closed by ``with`` or `close`.

    Raises:
        RecordingError: it is no recording of this kind, or of a newer major version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        #: How the file ends and how many bytes of a torn record are there; known once `records` or `survey` came there.
        self.ending, self.torn_bytes = Ending.CUT, 0
        try:
            self._file = path.open("rb", buffering=_CHUNK)
            self._size = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise RecordingError(f"{path} cannot be read: {error.strerror}; give a recording of the recorder") from None
        try:
            #: None where not even the header is whole.
            self.header = self._header()
        except BaseException:
            self._file.close()
            raise

    def records(self) -> Iterator[Record]:
        """Every whole record up to the end or a torn tail.

        Raises:
            RecordingError: there is damage; nothing that follows it is told.
        """
        for found in self.scan():
            if isinstance(found, Damage):
                raise RecordingError(f"{self.path} is damaged, {found}; 'quantformer recording verify' lists all of it")
            yield found

    def survey(self) -> Survey:
        """Read all of it, past damage."""
        damages: list[Damage] = []
        count, first, last = 0, 0, 0
        for found in self.scan():
            if isinstance(found, Damage):
                damages.append(found)
                continue
            if found.kind not in _UNNUMBERED:
                first = first or found.sequence
                last = found.sequence
            count += 1
        return Survey(
            records=count,
            first=first,
            last=last,
            ending=self.ending,
            torn_bytes=self.torn_bytes,
            damages=tuple(damages),
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- bytes --------------------------------------------------------------------------------------------------------

    def _read(self, offset: int, count: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(max(0, min(count, self._size - offset)))

    def _header(self) -> FileHeader | None:
        data = self._read(0, FILE_BYTES)
        if data[: len(MAGIC)] != MAGIC[: len(data)]:
            raise RecordingError(
                f"{self.path} begins with {data[:8]!r}, expected {MAGIC!r}: it is no file of the recorder"
            )
        if len(data) < FILE_BYTES:
            return None
        _, major, minor, _, epoch, unix_ns, clock_ns, _ = _FILE.unpack_from(data)
        if major != MAJOR:
            raise RecordingError(
                f"{self.path} is of version {major} of the format, this reads {MAJOR}; install the matching quantformer"
            )
        if _CRC.unpack_from(data, _FILE.size)[0] != zlib.crc32(data[: _FILE.size]):
            raise RecordingError(f"{self.path} is damaged: the checksum of its header is wrong")
        return FileHeader(epoch=epoch, unix_ns=unix_ns, clock_ns=clock_ns, minor=minor)

    def scan(self) -> Iterator[Record | Damage]:
        """Every whole record and every stretch of damage, in order; sets `ending` and `torn_bytes` at the end."""
        self.ending, self.torn_bytes = Ending.CUT, 0
        if self.header is None:
            self.ending, self.torn_bytes = Ending.TORN, self._size
            return
        at, previous = FILE_BYTES, -1
        while at < self._size:
            found = self._record(at)
            if not isinstance(found, Record):
                known, follows = found
                following = self._next(follows)
                if following < 0 and self._torn(at, known=known):
                    self.ending, self.torn_bytes = Ending.TORN, self._size - at
                    return
                stop = self._size if following < 0 else following
                yield Damage(start=at, stop=stop, what="no record, or one whose checksum is wrong")
                # What is missing is told once.
                at, previous, self.ending = stop, -2, Ending.CUT
                continue
            wrong = self._out_of_place(found, previous)
            if wrong:
                yield Damage(start=at, stop=at, what=wrong)
            yield found
            previous = found.sequence
            at += RECORD_BYTES + len(found.payload)
            self.ending = Ending.CLOSED if found.kind == Kind.END else Ending.CUT

    def _out_of_place(self, record: Record, previous: int) -> str:
        """What a whole record's kind and number say about missing ones; empty where all is well."""
        if previous == -2:
            return ""
        if previous == -1:
            return "" if record.kind == Kind.START else "the first record is not the one that begins a file"
        if self.ending == Ending.CLOSED or record.kind == Kind.START:
            return "a record follows the end of the recording, or begins it again"
        expected = previous + (record.kind not in _UNNUMBERED)
        if record.sequence != expected:
            return f"record {record.sequence} follows record {previous}, expected {expected}"
        return ""

    def _record(self, at: int) -> Record | tuple[bool, int]:
        """The record at an offset; else whether its header is right, and where others may begin."""
        head = self._read(at, RECORD_BYTES)
        if not _is_head(head):
            return False, at + 1
        _, kind, _, detail, length, sequence, stamp_ns, session, number, crc = _RECORD.unpack_from(head)
        payload = self._read(at + RECORD_BYTES, length)
        if len(payload) < length or zlib.crc32(payload) != crc:
            return True, at + RECORD_BYTES
        return Record(
            kind=kind,
            sequence=sequence,
            stamp_ns=stamp_ns,
            session=session,
            id=number,
            detail=detail,
            payload=payload,
        )

    def _torn(self, at: int, *, known: bool) -> bool:
        """Whether what begins here, with no record after it, is what a killed writer leaves."""
        left = self._size - at
        if known:
            length = _RECORD.unpack_from(self._read(at, RECORD_BYTES))[4]
            return left < RECORD_BYTES + length or self._zeros(max(at + RECORD_BYTES, self._size - _LOST_BLOCK))
        return left < RECORD_BYTES or self._zeros(at)

    def _zeros(self, at: int) -> bool:
        """Whether at least a block of zeros and nothing else begins here."""
        if self._size - at < _LOST_BLOCK:
            return False
        return not any(self._read(start, _CHUNK).strip(b"\0") for start in range(at, self._size, _CHUNK))

    def _next(self, at: int) -> int:
        """Where the next record's header begins, -1 if nowhere."""
        while at < self._size:
            chunk = self._read(at, _CHUNK)
            place = chunk.find(MARK)
            while place >= 0:
                if _is_head(self._read(at + place, RECORD_BYTES)):
                    return at + place
                place = chunk.find(MARK, place + 1)
            # A mark may lie across the chunks' border.
            at += max(1, len(chunk) - len(MARK) + 1)
        return -1


def pack_file(header: FileHeader) -> bytes:
    """The bytes that a file begins with."""
    data = _FILE.pack(MAGIC, MAJOR, MINOR, 0, header.epoch, header.unix_ns, header.clock_ns, 0)
    return data + _CRC.pack(zlib.crc32(data))


def pack_record(record: Record) -> bytes:
    """A record's header; its payload follows it."""
    data = _RECORD.pack(
        MARK,
        record.kind,
        0,
        record.detail,
        len(record.payload),
        record.sequence,
        record.stamp_ns,
        record.session,
        record.id,
        zlib.crc32(record.payload),
    )
    return data + _CRC.pack(zlib.crc32(data))


def _is_head(data: bytes) -> bool:
    """Whether these bytes are a record's header, as it was written, with a length that may be."""
    return (
        len(data) == RECORD_BYTES
        and data[: len(MARK)] == MARK
        and _CRC.unpack_from(data, _RECORD.size)[0] == zlib.crc32(data[: _RECORD.size])
        and _RECORD.unpack_from(data)[4] <= MOST_PAYLOAD
    )
