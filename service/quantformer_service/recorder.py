"""The recorder: a process that writes what the engine hands over, and says how far the disk has it.

``python -m quantformer_service.recorder`` runs it as a child of the supervisor (see `quantformer_service.process`).
`docs/recorder.md` describes files and promises. What goes wrong here never reaches the engine's frames: the recorder says
so, tries again, and asks for what it could not keep.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from pathlib import Path

import msgspec
import zmq

from quantformer.errors import UsageError
from quantformer_client import wire
from quantformer_service.process import announce, give_way, run_process
from quantformer_service.recorded_answer import cut_forecast
from quantformer_service.recording_file import FileHeader, Kind, Record
from quantformer_service.recording_writer import RecordingWriter
from quantformer_service.settings import Settings
from quantformer_service.tap import HEAD, Word, recorder_endpoint

_log = logging.getLogger(__name__)

#: Bytes after which the disk is waited for before the time is up, and messages taken before anything else is done.
_SYNC_BYTES, _MESSAGES_A_TURN = 16 << 20, 1024
#: Pauses in s: between words to the engine (at most), until a failed disk is tried again, of the poll.
_WORD_S, _RETRY_S, _POLL_S = 0.2, 0.5, 0.05
#: Free space without which a full disk is not tried again.
_ROOM_BYTES = 262_144


class Recorder:
    """Writes into ``directory`` what comes from ``endpoint``.

    The disk is waited for at least every ``sync_s``, and the engine is told something at least every ``word_s``. At the
    end, what is still on its way has ``drain_s``.
    """

    def __init__(self, directory: Path, *, endpoint: str, sync_s: float, word_s: float, drain_s: float) -> None:
        self._directory, self._sync_s, self._word_s, self._drain_s = directory, sync_s, word_s, drain_s
        self._writer: RecordingWriter | None = None
        self._epoch = 0
        #: No record is taken before a START: they would follow on nothing.
        self._greeted = False
        self._attempt, self._failure = 0, ""
        self._unsynced_at: float | None = None
        self._word_at = 0.0
        self._retry_at: float | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 200)
        self._socket.setsockopt(zmq.SNDHWM, 16)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self._socket.connect(endpoint)

    def run(self, stop: threading.Event) -> None:
        """Record until ``stop`` is set, then what is still on its way, and close the file."""
        try:
            while not stop.is_set():
                self._turn()
            end = time.monotonic() + self._drain_s
            while self._turn() and time.monotonic() < end:
                pass
            self._finish()
            self._say()
        finally:
            self._context.destroy(200)

    def _turn(self) -> bool:
        """Take what came, write it, wait for the disk where it is time to; whether anything came."""
        came = bool(self._socket.poll(int(1000 * min(self._sync_s, self._word_s, _POLL_S))))
        try:
            if came:
                self._receive()
            self._settle()
        except OSError as error:
            self._fail(error)
        now = time.monotonic()
        if self._retry_at is not None and now >= self._retry_at:
            self._retry(now)
        if now >= self._word_at + self._word_s:
            self._say()
        return came

    def _receive(self) -> None:
        for _ in range(_MESSAGES_A_TURN):
            try:
                head, payload = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            self._take(head, payload)
            if self._writer is not None and self._writer.pending_bytes >= _SYNC_BYTES:
                break
        if self._writer is not None:
            self._writer.write()

    def _take(self, head: bytes, payload: bytes) -> None:
        kind, detail, sequence, stamp_ns, session, number = HEAD.unpack(head)
        if kind == Kind.START:
            self._begin(payload, epoch=number, sequence=sequence, stamp_ns=stamp_ns)
            return
        writer = self._writer
        if writer is None or not self._greeted or sequence <= writer.sequence:
            return
        if sequence != writer.sequence + 1:
            _log.error("record %d follows record %d; asking for those between", sequence, writer.sequence)
            self._ask_again()
            return
        if kind == Kind.STANDING_ANSWER:
            try:
                payload = cut_forecast(payload)
            except wire.WireError as error:
                _log.error("record %d is kept whole: %s", sequence, error)
                kind = Kind.ANSWER
        writer.append(
            Record(
                kind=kind,
                sequence=sequence,
                stamp_ns=stamp_ns,
                session=session,
                id=number,
                detail=detail,
                payload=payload,
            )
        )
        if self._unsynced_at is None:
            self._unsynced_at = time.monotonic()

    def _begin(self, facts: bytes, *, epoch: int, sequence: int, stamp_ns: int) -> None:
        """An engine begins, or begins again because one of us was away."""
        self._greeted = True
        if self._writer is not None and epoch == self._epoch:
            return
        self._finish()
        header = FileHeader(epoch=epoch, unix_ns=time.time_ns(), clock_ns=time.perf_counter_ns())
        self._writer, self._epoch = RecordingWriter(self._directory, header=header), epoch
        self._writer.append(Record(kind=Kind.START, sequence=sequence, stamp_ns=stamp_ns, payload=facts))
        self._writer.sync()
        # Only when more than this could be written has a failure passed.
        self._unsynced_at = time.monotonic()
        _log.info("recording to %s", self._writer.path)
        self._say()

    def _settle(self) -> None:
        """Wait for the disk where the time or the bytes are there, and tell the engine."""
        writer = self._writer
        if writer is None or self._unsynced_at is None:
            return
        unsynced = writer.written_bytes - writer.durable_bytes
        if unsynced >= _SYNC_BYTES or time.monotonic() >= self._unsynced_at + self._sync_s:
            writer.sync()
            self._unsynced_at, self._failure = None, ""
            self._say()

    def _finish(self) -> None:
        """Close the file in peace."""
        writer, self._writer, self._unsynced_at = self._writer, None, None
        if writer is None:
            return
        try:
            writer.close()
        except OSError as error:
            self._tell_failure(error)
            return
        _log.info("closed %s after record %d", writer.path, writer.durable_sequence)

    def _fail(self, error: OSError) -> None:
        """The disk is full or broken: give the file up where it was safe, say so, try again later."""
        self._tell_failure(error)
        writer, self._writer, self._unsynced_at = self._writer, None, None
        self._greeted = False
        if writer is not None:
            writer.abandon()
        self._say()

    def _tell_failure(self, error: OSError) -> None:
        if not self._failure:
            _log.error("%s cannot be written: %s; trying again", self._directory, error.strerror)
        self._failure = str(error.strerror or error)
        self._retry_at = time.monotonic() + _RETRY_S

    def _retry(self, now: float) -> None:
        self._retry_at = now + _RETRY_S
        try:
            free = shutil.disk_usage(self._directory).free
        except OSError:
            return
        if free >= _ROOM_BYTES:
            self._retry_at = None
            self._ask_again()

    def _ask_again(self) -> None:
        """Have the engine begin anew, with everything that was not acknowledged."""
        self._greeted = False
        self._attempt += 1
        self._say()

    def _say(self) -> None:
        """Tell the engine how far the disk has its records."""
        self._word_at = time.monotonic()
        writer = self._writer
        word = Word(
            epoch=self._epoch if writer is not None else 0,
            durable=0 if writer is None else writer.durable_sequence,
            attempt=self._attempt,
            failure=self._failure,
            file="" if writer is None else writer.path.name,
        )
        with contextlib.suppress(zmq.Again):  # no engine is there, or it does not read
            self._socket.send(msgspec.json.encode(word), zmq.NOBLOCK)


def serve(settings: Settings, stop: threading.Event) -> None:
    """Body of the process.

    Raises:
        UsageError: no directory is set, it cannot be written, or the disk is waited for too rarely.
    """
    # No niceness: the engine's backlog is bounded. But no record is worth taking a core from a frame.
    give_way(0)
    if not settings.record:
        raise UsageError("no directory is named; give one with --record DIR")
    if settings.record_sync_s > settings.record_stall_s / 2:
        raise UsageError(
            f"record_sync_s is {settings.record_sync_s:g}, record_stall_s {settings.record_stall_s:g}: waiting for the disk "
            "would look like a stall; let the second be at least twice the first"
        )
    endpoint = recorder_endpoint(settings.record, port=settings.zmq_port)
    directory = Path(settings.record)
    if not os.access(directory, os.W_OK):
        raise UsageError(f"record {directory}: the directory cannot be written; choose another with --record")
    recorder = Recorder(
        directory,
        endpoint=endpoint,
        sync_s=settings.record_sync_s,
        word_s=min(_WORD_S, settings.record_stall_s / 4),
        drain_s=settings.shutdown_s / 2,
    )
    announce(endpoints={"record": str(directory.absolute())})
    recorder.run(stop)


if __name__ == "__main__":
    run_process("recorder", serve)
