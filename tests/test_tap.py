"""The tap with a real recorder: what it hands over becomes safe, whatever happens to the recorder, and it never waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import zmq
from engine_process import PATIENCE_S, free_ports
from recorder_process import RecorderProcess, list_recordings, recorder

from quantformer.errors import UsageError
from quantformer_client import wire
from quantformer_service import tap as tap_module
from quantformer_service.engine_settings import EngineSettings
from quantformer_service.recording_file import Ending, Kind, Record, RecordingReader
from quantformer_service.tap import Tap, Word, recorder_endpoint

EPOCH = 77


class Hand:
    """A tap as the engine's loop uses it."""

    def __init__(self, directory: Path, *, epoch: int = EPOCH, stall_s: float = 5.0, port: int | None = None) -> None:
        self.port = free_ports(1)[0] if port is None else port
        settings = EngineSettings(zmq_port=self.port, record=str(directory), record_stall_s=stall_s)
        self.tap = Tap(settings, epoch=epoch)
        self.tap.begin(b'{"facts": 1}')
        self.changes: list[str] = []
        self.made = 0

    def record(self, count: int = 1, *, size: int = 100) -> None:
        """Hand so many records over, numbered in their payload."""
        for _ in range(count):
            self.made += 1
            payload = self.made.to_bytes(8, "little").ljust(size, b"\0")
            self.tap.record(Kind.INPUT, payload, session=3, number=self.made, stamp_ns=time.perf_counter_ns())
            self.turn()

    def turn(self) -> None:
        """What the loop does each time round."""
        if self.tap.tick(time.perf_counter_ns()):
            self.changes.append(self.tap.trouble)

    def until(self, check: Callable[[wire.Recording], bool]) -> wire.Recording:
        """Turn until the status is so."""
        end = time.monotonic() + PATIENCE_S
        while True:
            self.turn()
            status = self.tap.status(time.perf_counter_ns())
            assert status is not None
            if check(status):
                return status
            assert time.monotonic() < end, status
            time.sleep(0.005)

    def safe(self) -> wire.Recording:
        """Wait until everything is acknowledged and there is no trouble."""
        return self.until(lambda one: one.acknowledged == one.records and not one.trouble)


@contextmanager
def hand(directory: Path, **options: object) -> Iterator[Hand]:
    made = Hand(directory, **options)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.tap.close()


def numbered(directory: Path) -> list[Record]:
    """All numbered records of all files in order; none may be damaged, and those that two files hold are the same."""
    found: dict[int, Record] = {}
    for path in list_recordings(directory):
        with RecordingReader(path) as reader:
            for record in reader.records():
                if record.kind not in (Kind.START, Kind.END):
                    assert found.setdefault(record.sequence, record) == record
    return [found[sequence] for sequence in sorted(found)]


def payloads(directory: Path) -> list[int]:
    """What `Hand.record` numbered."""
    return [int.from_bytes(record.payload[:8], "little") for record in numbered(directory) if record.kind == Kind.INPUT]


def test_what_is_handed_over_is_on_the_disk_when_it_is_acknowledged(tmp_path: Path) -> None:
    with hand(tmp_path) as made, recorder(tmp_path, zmq_port=made.port) as process:
        made.record(500)
        # Without a copy, too.
        made.record(2, size=3 << 20)
        status = made.safe()
        assert (status.records, status.waiting_bytes, status.lost) == (502, 0, 0)
        assert payloads(tmp_path) == list(range(1, 503))
        (path,) = list_recordings(tmp_path)
        assert status.file == path.name
        assert path.stat().st_mode & 0o007 == 0
        assert process.end() == 0
        with RecordingReader(path) as reader:
            records = list(reader.records())
            assert reader.header is not None
            assert (reader.header.epoch, reader.ending) == (EPOCH, Ending.CLOSED)
        assert (records[0].kind, records[0].payload, records[5].id) == (Kind.START, b'{"facts": 1}', 5)
    assert made.changes[0] == ""


def test_a_recorder_that_is_killed_and_comes_back_lacks_nothing(tmp_path: Path) -> None:
    with hand(tmp_path, stall_s=0.5) as made:
        for _ in range(3):
            with recorder(tmp_path, zmq_port=made.port, record_sync_s=0.05) as process:
                made.record(300)
                made.until(lambda one: one.acknowledged > 0)
                process.process.kill()
                made.record(200)
                made.until(lambda one: bool(one.trouble))
        with recorder(tmp_path, zmq_port=made.port):
            made.record(10)
            status = made.safe()
        assert status.lost == 0
        assert payloads(tmp_path) == list(range(1, made.made + 1))
        assert len(list_recordings(tmp_path)) >= 2


def test_what_was_missed_is_handed_over_in_pieces(tmp_path: Path) -> None:
    """A recorder that comes late to a thousand records: the loop gives it a few at a time, between its frames."""
    with hand(tmp_path) as made:
        made.record(1000)
        with zmq.Context() as context, context.socket(zmq.DEALER) as late:
            late.connect(recorder_endpoint(str(tmp_path), port=made.port))
            late.send(msgspec.json.encode(Word()))
            pieces: list[int] = []
            while sum(pieces) < 1001:
                time.sleep(0.025)
                made.turn()
                came = 0
                while late.poll(50):
                    late.recv_multipart()
                    came += 1
                pieces.append(came)
                assert len(pieces) < 200
        # With its own look and the greeting, a turn hands over twice.
        assert max(pieces) <= 1 + 2 * 64
        assert sum(pieces) == 1001, "the facts, and every record once"


def test_another_engine_begins_another_file_and_the_one_before_is_closed(tmp_path: Path) -> None:
    with hand(tmp_path) as first, recorder(tmp_path, zmq_port=first.port):
        first.record(20)
        first.safe()
        first.tap.close()
        with hand(tmp_path, epoch=EPOCH + 1, port=first.port) as second:
            second.record(30)
            second.safe()
    before, after = list_recordings(tmp_path)
    for path, epoch, count, ending in ((before, EPOCH, 20, Ending.CLOSED), (after, EPOCH + 1, 30, Ending.CUT)):
        with RecordingReader(path) as reader:
            survey = reader.survey()
            assert reader.header is not None
            assert (reader.header.epoch, survey.last, survey.ending) == (epoch, count, ending)


def test_a_stalled_recorder_is_told_of_costs_no_time_and_recovers(tmp_path: Path) -> None:
    with (
        hand(tmp_path, stall_s=0.3) as made,
        recorder(tmp_path, zmq_port=made.port, record_stall_s=0.3, record_sync_s=0.05) as process,
    ):
        made.record(10)
        made.safe()
        process.stall()
        made.record(50_000)
        status = made.until(lambda one: bool(one.trouble))
        assert "for more than 0.3 s" in status.trouble
        assert status.waiting_s > 0.3
        process.go_on()
        assert made.safe().lost == 0
        assert payloads(tmp_path) == list(range(1, 50_011))
    # It began with trouble (nobody had come), which ended; then it stalled, and recovered.
    assert [bool(one) for one in made.changes][:3] == [False, True, False]


def test_beyond_the_bound_records_are_lost_counted_and_their_number_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tap_module, "MOST_RECORDS", 1000)
    with hand(tmp_path) as made:
        made.record(1500)
        status = made.until(lambda one: "500 records are lost" in one.trouble)
        assert (status.records, status.lost) == (1000, 500)
        with recorder(tmp_path, zmq_port=made.port):
            made.safe()
            made.record(5)
            assert made.safe().records == 1006
    records = numbered(tmp_path)
    assert [(one.kind, one.id) for one in records[1000:1002]] == [(Kind.LOST, 500), (Kind.INPUT, 1501)]


def test_bytes_that_wait_are_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap_module, "MOST_BYTES", 1 << 20)
    with hand(tmp_path) as made:
        made.record(20, size=100_000)
        status = made.tap.status(time.perf_counter_ns())
        assert status is not None
        assert (status.records, status.lost) == (10, 10)
        assert status.waiting_bytes < 1 << 20


def test_a_full_disk_is_told_of_and_what_it_did_not_take_comes_when_there_is_room(small_disk: Path) -> None:
    filler = small_disk / "filler"
    with hand(small_disk) as made, recorder(small_disk, zmq_port=made.port, record_sync_s=0.05):
        made.record(10)
        made.safe()
        filler.write_bytes(bytes(3 << 20))
        made.record(400, size=4000)
        status = made.until(lambda one: bool(one.trouble))
        assert "No space left on device" in status.trouble
        kept = status.acknowledged
        filler.unlink()
        assert made.safe().lost == 0
        assert 10 <= kept < 410
        assert payloads(small_disk) == list(range(1, 411))
        for path in list_recordings(small_disk):
            with RecordingReader(path) as reader:
                assert not reader.survey().damages


def test_nothing_happens_where_recording_is_off(tmp_path: Path) -> None:
    tap = Tap(EngineSettings(zmq_port=0), epoch=1)
    tap.begin(b"{}")
    tap.record(Kind.INPUT, b"x", session=0, number=0, stamp_ns=0)
    assert not tap.tick(time.perf_counter_ns())
    assert (tap.trouble, tap.status(0)) == ("", None)
    tap.close(linger_s=10.0)


def test_where_they_meet_has_a_path_that_a_socket_takes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="choose a directory with a shorter path"):
        recorder_endpoint(str(tmp_path / ("long" * 30)), port=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be made"):
        recorder_endpoint(str(tmp_path / "file" / "below"), port=1)


def test_a_recorder_without_a_directory_ends_with_the_reason() -> None:
    made = RecorderProcess(Path(), zmq_port=free_ports(1)[0], record="")
    try:
        assert "--record DIR" in made.facts["failed"]
        assert made.process.wait(PATIENCE_S) == 2
    finally:
        made.kill()


def test_a_disk_that_is_waited_for_too_rarely_is_refused(tmp_path: Path) -> None:
    made = RecorderProcess(tmp_path, zmq_port=free_ports(1)[0], record_sync_s=1.5)
    try:
        assert "at least twice the first" in made.facts["failed"]
    finally:
        made.kill()


def test_words_that_are_none_are_passed_over(tmp_path: Path) -> None:
    import zmq

    with hand(tmp_path) as made:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stranger = context.socket(zmq.DEALER)
        stranger.connect(recorder_endpoint(str(tmp_path), port=made.port))
        for word in (b"", b"{", b'{"epoch": -1, "durable": "x"}', b"\xff"):
            stranger.send(word)
        made.record()
        with recorder(tmp_path, zmq_port=made.port):
            made.record(4)
            made.safe()
        stranger.close(0)
        context.destroy(0)
    assert payloads(tmp_path) == [1, 2, 3, 4, 5]
