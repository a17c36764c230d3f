"""What recordings hold against what was acknowledged: files made by the recorder's own writer, then torn and damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantformer.errors import RecordingError
from quantformer_cli.benchmark.survival import survival
from quantformer_client import wire
from quantformer_service.recording_file import FileHeader, Kind, Record
from quantformer_service.recording_writer import RecordingWriter

FRAME = wire.encode(wire.Frame(number=1, device_s=0.0, fluorescence=np.ones(3, np.float32)), session=1)


def record(directory: Path, *, epoch: int, first: int, last: int) -> Path:
    """A file of frames with these sequence numbers, as a writer that was killed leaves it."""
    writer = RecordingWriter(directory, header=FileHeader(epoch=epoch, unix_ns=epoch, clock_ns=0))
    writer.append(Record(kind=Kind.START, sequence=first - 1, stamp_ns=0, payload=b"{}"))
    for number in range(first, last + 1):
        writer.append(Record(kind=Kind.INPUT, sequence=number, stamp_ns=number, session=1, payload=FRAME))
    writer.sync()
    writer.abandon()
    return writer.path


def test_what_was_acknowledged_is_found_in_all_files_of_an_epoch(tmp_path: Path) -> None:
    record(tmp_path, epoch=1, first=1, last=20)
    record(tmp_path, epoch=1, first=21, last=30)
    record(tmp_path, epoch=2, first=1, last=5)
    found = survival(tmp_path, {1: 30, 2: 5})
    assert (found.files, found.records, found.frames, found.acknowledged) == (3, 38, 35, 35)
    assert (found.torn, found.damages, found.missing) == (0, [], {})


def test_records_that_are_gone_are_counted_by_epoch(tmp_path: Path) -> None:
    record(tmp_path, epoch=1, first=4, last=20)
    assert survival(tmp_path, {1: 22, 7: 2}).missing == {1: 5, 7: 2}


def test_a_torn_tail_is_no_damage_and_a_wrong_byte_is(tmp_path: Path) -> None:
    path = record(tmp_path, epoch=1, first=1, last=10)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    torn = survival(tmp_path, {1: 9})
    assert (torn.torn, torn.damages, torn.missing) == (1, [], {})
    assert survival(tmp_path, {1: 10}).missing == {1: 1}
    wrong = bytearray(whole)
    wrong[len(whole) // 2] ^= 1
    path.write_bytes(wrong)
    damaged = survival(tmp_path, {1: 10})
    assert len(damaged.damages) == 1
    assert path.name in damaged.damages[0]
    # What a file with damage holds is not counted as safe.
    assert damaged.missing == {1: 10}


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.qfrec").write_bytes(b"something else" * 10)
    with pytest.raises(RecordingError):
        survival(tmp_path, {})
