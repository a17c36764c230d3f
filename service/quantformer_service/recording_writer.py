"""Writes a recording: records are collected, handed to the system, and known to be on the disk. `recording_file` reads it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from quantformer_service.recording_file import FILE_BYTES, SUFFIX, FileHeader, Kind, Record, pack_file, pack_record


class RecordingWriter:
    """A new file in a directory. `append` collects, `write` hands over to the system, `sync` waits for the disk.

    Raises:
        OSError: the directory cannot be written.
    """

    def __init__(self, directory: Path, *, header: FileHeader) -> None:
        self.path, self._fd = _create(directory, header=header)
        self._pending: list[bytes] = [pack_file(header)]
        #: Bytes collected, handed over, and known to be on the disk.
        self.pending_bytes, self.written_bytes, self.durable_bytes = FILE_BYTES, 0, 0
        self._base: int | None = None
        self.sequence = self.written_sequence = self.durable_sequence = 0

    def append(self, record: Record) -> None:
        """Collect a record; its number becomes `sequence`."""
        head = pack_record(record)
        self._pending += (head, record.payload)
        self.pending_bytes += len(head) + len(record.payload)
        self.sequence = record.sequence
        if self._base is None:
            self._base = record.sequence

    def write(self) -> None:
        """Hand what was collected to the system: it survives the death of this process.

        Raises:
            OSError: the disk is full or failed; the file may end in a part of a record.
        """
        if not self._pending:
            return
        data = memoryview(b"".join(self._pending))
        while data:
            data = data[os.write(self._fd, data) :]
        self.written_bytes += self.pending_bytes
        self.pending_bytes = 0
        self._pending.clear()
        self.written_sequence = self.sequence

    def sync(self) -> None:
        """Write, and wait until the disk has it: it survives the death of the machine.

        Raises:
            OSError: as in `write`. What was not durable before must be taken for lost.
        """
        self.write()
        if self.durable_bytes < self.written_bytes:
            _to_disk(self._fd)
            self.durable_bytes, self.durable_sequence = self.written_bytes, self.written_sequence

    def close(self) -> None:
        """Add the record that says so, sync, close.

        Raises:
            OSError: as in `sync`; the file is closed all the same.
        """
        try:
            self.append(Record(kind=Kind.END, sequence=self.sequence, stamp_ns=time.perf_counter_ns()))
            self.sync()
        finally:
            os.close(self._fd)

    def abandon(self) -> None:
        """Close after a failure: cut off what is not durable, or remove a file of which no numbered record is."""
        try:
            if self._base is not None and self.durable_sequence > self._base:
                os.ftruncate(self._fd, self.durable_bytes)
            else:
                self.path.unlink()
        except OSError:  # the reader knows a torn tail
            pass
        finally:
            os.close(self._fd)


def _create(directory: Path, *, header: FileHeader) -> tuple[Path, int]:
    """A file that was not there: nothing is ever written over."""
    moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime(header.unix_ns // 1_000_000_000))
    stem = f"{moment}.{header.unix_ns // 1_000_000 % 1000:03d}Z-{header.epoch:014x}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | getattr(os, "O_BINARY", 0)
    number = 0
    while True:
        path = directory / (stem + (f"-{number}" if number else "") + SUFFIX)
        try:
            descriptor = os.open(path, flags, 0o640)
        except FileExistsError:
            number += 1
            continue
        if os.name == "posix":
            # So that the name, too, survives the loss of power.
            folder = os.open(directory, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        return path, descriptor


def _to_disk(descriptor: int) -> None:
    getattr(os, "fdatasync", os.fsync)(descriptor)  # macOS and Windows have no fdatasync
