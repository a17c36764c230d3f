"""The recording's file: what is written is read, what a kill leaves is a torn tail, and every other change is found."""

from __future__ import annotations

import contextlib
import os
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recorder_process import list_recordings

from quantformer.errors import RecordingError
from quantformer_service import recording_file
from quantformer_service.recording_file import (
    FILE_BYTES,
    MAGIC,
    MARK,
    RECORD_BYTES,
    Ending,
    FileHeader,
    Kind,
    Record,
    RecordingReader,
    Survey,
)
from quantformer_service.recording_writer import RecordingWriter

HEADER = FileHeader(epoch=1234567, unix_ns=1_790_000_000_123_456_789, clock_ns=42)
U64 = st.integers(0, 2**64 - 1)
#: Memory, where there is one: hundreds of files are waited for until the disk has them.
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
#: Payloads that hold marks of records too, so that looking for the next record meets false ones.
PAYLOADS = st.lists(st.one_of(st.binary(max_size=200), st.just(MARK), st.just(MARK * 20)), max_size=8)


def records_of(payloads: Sequence[bytes], *, base: int = 0) -> list[Record]:
    """A START, then one numbered record a payload."""
    numbered = [
        Record(kind=2 + i % 8, sequence=base + 1 + i, stamp_ns=i, session=7, id=i, detail=i, payload=payload)
        for i, payload in enumerate(payloads)
    ]
    return [Record(kind=Kind.START, sequence=base, stamp_ns=-5, payload=b"{}"), *numbered]


def written(folder: Path, records: Sequence[Record], *, closed: bool = True) -> Path:
    """A file of these records."""
    writer = RecordingWriter(folder, header=HEADER)
    for record in records:
        writer.append(record)
    if closed:
        writer.close()
    else:
        writer.sync()
        os.close(writer._fd)
    return writer.path


def survey(path: Path) -> Survey:
    with RecordingReader(path) as reader:
        return reader.survey()


def whole(path: Path) -> list[Record]:
    """What is read without complaint."""
    with RecordingReader(path) as reader:
        return list(reader.records())


@given(payloads=PAYLOADS, base=st.integers(0, 2**60), session=U64, number=U64, stamp=st.integers(-(2**63), 2**63 - 1))
def test_what_is_written_is_read(payloads: list[bytes], base: int, session: int, number: int, stamp: int) -> None:
    records = records_of(payloads, base=base)
    records.append(
        Record(
            kind=Kind.INPUT,
            sequence=records[-1].sequence + 1,
            stamp_ns=stamp,
            session=session,
            id=number,
            detail=2**32 - 1,
        )
    )
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        path = written(Path(folder), records)
        with RecordingReader(path) as reader:
            found = list(reader.records())
            assert (reader.header, reader.ending) == (HEADER, Ending.CLOSED)
        assert found[:-1] == records
        assert (found[-1].kind, found[-1].sequence) == (Kind.END, records[-1].sequence)
        told = survey(path)
        assert (told.records, told.first, told.last) == (len(records) + 1, base + 1, records[-1].sequence)
        assert not told.damages


@settings(max_examples=60)
@given(payloads=PAYLOADS, share=st.floats(0, 1, exclude_max=True))
@example(payloads=[b"x"], share=0.0)
def test_any_truncation_leaves_the_records_before_it(payloads: list[bytes], share: float) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        path = written(Path(folder), records_of(payloads))
        before, data = whole(path), path.read_bytes()
        size = int(share * len(data))
        path.write_bytes(data[:size])
        found = whole(path)
        assert found == before[: len(found)]
        assert len(found) < len(before)
        told = survey(path)
        assert not told.damages
        assert told.ending in (Ending.TORN, Ending.CUT)
        before_tail = sum(RECORD_BYTES + len(one.payload) for one in found) + (FILE_BYTES if size >= FILE_BYTES else 0)
        assert told.torn_bytes == size - before_tail


@settings(max_examples=200)
@given(payloads=PAYLOADS, place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), closed=st.booleans())
def test_any_changed_byte_is_found(payloads: list[bytes], place: float, flip: int, closed: bool) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        path = written(Path(folder), records_of(payloads), closed=closed)
        data = bytearray(path.read_bytes())
        data[int(place * len(data))] ^= flip
        path.write_bytes(data)
        try:
            assert survey(path).damages
        except RecordingError:
            assert place * len(data) < FILE_BYTES
            return
        with pytest.raises(RecordingError, match="damaged"):
            whole(path)


@settings(max_examples=60)
@given(payloads=st.lists(st.binary(max_size=50), min_size=3, max_size=8), which=st.integers(0, 7), swap=st.booleans())
def test_a_record_that_is_missing_or_out_of_order_is_found(payloads: list[bytes], which: int, swap: bool) -> None:
    records = records_of(payloads)
    at = 1 + which % (len(records) - 2)
    if swap:
        records[at], records[at + 1] = records[at + 1], records[at]
    else:
        del records[at]
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        assert survey(written(Path(folder), records)).damages


@settings(max_examples=100)
@given(tail=st.binary(max_size=400))
@example(tail=MARK * 100)
def test_any_bytes_are_read_or_refused_and_nothing_else(tail: bytes) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        path = written(Path(folder), records_of([b"abc"]), closed=False)
        data = path.read_bytes()
        for made in (tail, MAGIC + tail, data[:FILE_BYTES] + tail, data + tail):
            path.write_bytes(made)
            with contextlib.suppress(RecordingError):
                survey(path)


def test_zeros_after_a_loss_of_power_are_a_torn_tail(tmp_path: Path) -> None:
    path = written(tmp_path, records_of([b"abc", b"def" * 400]), closed=False)
    data = path.read_bytes()
    path.write_bytes(data + bytes(5000))
    assert (survey(path).ending, survey(path).damages, len(whole(path))) == (Ending.TORN, (), 3)
    # The last block of the last record never came to the disk.
    path.write_bytes(data[:-600] + bytes(600))
    assert (survey(path).ending, survey(path).damages, len(whole(path))) == (Ending.TORN, (), 2)


def test_bytes_cut_out_of_the_middle_are_damage_though_a_length_then_reaches_beyond_the_end(tmp_path: Path) -> None:
    path = written(tmp_path, records_of([b"abc", b"d" * 900, b"ghi"]), closed=False)
    data = path.read_bytes()
    path.write_bytes(data[:-700] + data[-100:])
    assert survey(path).damages
    assert survey(path).last == 3


def test_a_length_beyond_every_message_is_not_believed(tmp_path: Path) -> None:
    path = written(tmp_path, records_of([b"abc"]), closed=False)
    big = recording_file._RECORD.pack(MARK, Kind.INPUT, 0, 0, recording_file.MOST_PAYLOAD + 1, 2, 0, 0, 0, 0)
    big += recording_file._CRC.pack(zlib.crc32(big))
    path.write_bytes(path.read_bytes() + big)
    assert survey(path).damages


def test_records_after_the_end_are_damage(tmp_path: Path) -> None:
    path = written(tmp_path, [*records_of([b"abc"]), Record(kind=Kind.END, sequence=1, stamp_ns=0)])
    assert "follows the end" in str(survey(path).damages[0])


@pytest.mark.parametrize(("data", "says"), [(b"PK\3\4" + bytes(100), "no file of the recorder"), (b"Q", "")])
def test_a_foreign_file_is_refused_and_a_beginning_of_ours_is_torn(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "file.qfrec"
    path.write_bytes(data)
    if says:
        with pytest.raises(RecordingError, match=says):
            RecordingReader(path)
    else:
        assert survey(path).ending == Ending.TORN


def test_a_newer_major_version_is_refused_by_name(tmp_path: Path) -> None:
    path = written(tmp_path, records_of([]))
    data = bytearray(path.read_bytes())
    data[8] = 2
    path.write_bytes(data)
    with pytest.raises(RecordingError, match="version 2 of the format, this reads 1"):
        RecordingReader(path)


def test_nothing_is_ever_written_over(tmp_path: Path) -> None:
    first, second = (written(tmp_path, records_of([name])) for name in (b"first", b"second"))
    assert first != second
    assert whole(first)[1].payload == b"first"
    assert set(list_recordings(tmp_path)) == {first, second}
    assert first.name == f"20260921T141320.123Z-{1234567:014x}.qfrec"


def test_a_file_is_given_up_where_it_was_safe(tmp_path: Path) -> None:
    writer = RecordingWriter(tmp_path, header=HEADER)
    start, first, second = records_of([b"first", b"second"])
    for record in (start, first):
        writer.append(record)
    writer.sync()
    writer.append(second)
    writer.write()
    writer.abandon()
    assert (whole(writer.path), survey(writer.path).ending) == ([start, first], Ending.CUT)


def test_a_file_in_which_nothing_became_safe_is_removed(tmp_path: Path) -> None:
    writer = RecordingWriter(tmp_path, header=HEADER)
    writer.append(records_of([])[0])
    writer.sync()
    writer.abandon()
    assert list_recordings(tmp_path) == []
