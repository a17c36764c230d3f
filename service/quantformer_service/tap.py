"""The engine's side of the recorder: hands records over, knows which of them are safe, and says when they are not.

A record waits here until the recorder says that the disk has it, at most `MOST_RECORDS` and `MOST_BYTES` of them. So a
recorder that dies and comes back is told again what it missed, and one that falls behind costs memory up to a bound and
never time: nothing here blocks. Records beyond the bound are lost, counted, and their number is recorded.
"""

from __future__ import annotations

import struct
import time
from collections import deque
from pathlib import Path

import msgspec
import zmq

from quantformer.errors import UsageError
from quantformer_client import wire
from quantformer_service.dispatch import Reply
from quantformer_service.engine_settings import EngineSettings
from quantformer_service.recording_file import Kind

#: What may wait for the recorder.
MOST_RECORDS, MOST_BYTES = 131_072, 256 << 20
#: A message of the tap is two parts: this, and the payload. kind, detail, sequence, stamp ns, session, id.
HEAD = struct.Struct("<IIQqQQ")
#: Payloads from here on are handed to ZeroMQ without a copy; below, a copy costs less than its bookkeeping.
_NO_COPY_BYTES = 65_536
#: Messages that ZeroMQ takes before the rest waits here, and that it is given at once: what a recorder missed while it was
#: away, a hundred thousand records perhaps, must not be handed over in the middle of a frame.
_QUEUE, _HANDED_AT_ONCE = 4096, 64
#: How often the recorder's words are read, and how many at once.
_LOOK_NS, _WORDS = 20_000_000, 64
#: Longest path of a local socket that every system takes.
_LONGEST_PATH = 100

#: Messages that change what a session answers or decides: they are recorded as they came. HELLO, which holds the token,
#: is not among them.
_RECORDED = frozenset(
    {
        wire.MessageType.OPEN,
        wire.MessageType.CLOSE,
        wire.MessageType.FRAME,
        wire.MessageType.ACQUISITION,
        wire.MessageType.STIMULATION,
        wire.MessageType.ONSET,
        wire.MessageType.STANDING,
        wire.MessageType.CLEAR_STANDING,
        wire.MessageType.SET_RULE,
        wire.MessageType.REMOVE_RULE,
        wire.MessageType.ARM,
        wire.MessageType.HEARTBEAT,
        wire.MessageType.DISARM,
        wire.MessageType.STOP,
    }
)


class Word(msgspec.Struct, frozen=True, kw_only=True):
    """What the recorder says, several times a second: how far the disk has this ``epoch``'s records, and what it lacks.

    A new number in ``attempt`` asks for everything that is not acknowledged. ``failure`` says why it cannot write.
    """

    epoch: int = 0
    durable: int = 0
    attempt: int = 0
    failure: str = ""
    file: str = ""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What a record in JSON says of something that was not done: the error's code and text; of a message its header."""

    code: str
    message: str
    type: int = 0
    request: int = 0
    frame: int = 0
    device_s: float | None = None
    bytes: int = 0


class Tap:
    """Hands records to the recorder at `recorder_endpoint`. With recording off, every method returns at once.

    ``trouble`` says in words why what happens now may be lost; empty when all is well, or recording is off.

    Raises:
        UsageError: the directory cannot be made, or its path is too long for a local socket.
    """

    def __init__(self, settings: EngineSettings, *, epoch: int) -> None:
        self.on = bool(settings.record)
        self.trouble = "no recorder has come yet" if self.on else ""
        self._epoch = epoch
        self._stall_s = settings.record_stall_s
        self._start: bytes | None = None
        self._peer: bytes | None = None
        self._word = Word()
        self._heard_ns = self._look_ns = 0
        #: Records that wait to be handed over, and those handed over that are not safe: number, stamp ns, head, payload.
        self._waiting: deque[tuple[int, int, bytes, bytes | bytearray]] = deque()
        self._sent: deque[tuple[int, int, bytes, bytes | bytearray]] = deque()
        self._bytes = 0
        self._sequence = self._acknowledged = 0
        #: The last record of the time of trouble: until it is safe the trouble has not passed.
        self._owed = 0
        #: Lost since the last record that says so, and ever.
        self._losing = self._lost = 0
        if self.on:
            endpoint = recorder_endpoint(settings.record, port=settings.zmq_port)
            self._context = zmq.Context()
            self._socket = self._context.socket(zmq.ROUTER)
            self._socket.setsockopt(zmq.LINGER, 0)
            self._socket.setsockopt(zmq.SNDHWM, _QUEUE)
            # A recorder that is gone is an error here at once, not silence.
            self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            try:
                self._socket.bind(endpoint)
            except zmq.ZMQError as error:
                self._context.destroy(0)
                raise UsageError(f"record {settings.record}: no socket can be made there ({error.strerror})") from None
            Path(endpoint.removeprefix("ipc://")).chmod(0o600)

    def begin(self, facts: bytes) -> None:
        """Record from now on; every file begins with these facts (JSON)."""
        self._start = facts
        if self._peer is not None:
            self._greet()

    def close(self, *, linger_s: float = 0.0) -> None:
        """End; what was not handed over yet has that long for it."""
        if not self.on:
            return
        end_ns = time.perf_counter_ns() + int(linger_s * 1e9)
        while self._waiting and self._peer is not None and time.perf_counter_ns() < end_ns:
            self._socket.poll(10)
            self._hear(time.perf_counter_ns())
            self._hand_over(most=_QUEUE)
        self.on = False
        self._context.destroy(int(1000 * linger_s))

    # --- records ------------------------------------------------------------------------------------------------------

    def taken(self, message: wire.Message, data: bytes, *, reply: Reply | None, now_ns: int) -> None:
        """A message was taken and did what it does; ``now_ns`` is the time that it was taken at."""
        if not self.on or message.header.type not in _RECORDED:
            return
        session, number = message.header.session, 0
        if reply is not None:
            session = reply.session
            if isinstance(reply.body, wire.Accepted):
                number = reply.body.question
            elif isinstance(reply.body, wire.Trigger):
                number = reply.body.lease
        self.record(Kind.INPUT, data, session=session, number=number, stamp_ns=now_ns)

    def told(self, kind: Kind, told: Told, *, session: int, number: int = 0, detail: int = 0) -> None:
        """Something was refused, or failed."""
        if self.on:
            payload, stamp_ns = msgspec.json.encode(told), time.perf_counter_ns()
            self.record(kind, payload, session=session, number=number, stamp_ns=stamp_ns, detail=detail)

    def record(
        self, kind: Kind, payload: bytes | bytearray, *, session: int, number: int, stamp_ns: int, detail: int = 0
    ) -> None:
        """Record something. What of ``payload`` may still change until it is safe (whom an answer is addressed to) is
        recorded as it was then or is now.
        """
        if not self.on or self._start is None:
            return
        size = HEAD.size + len(payload)
        full = self._bytes + size > MOST_BYTES or len(self._sent) + len(self._waiting) >= MOST_RECORDS
        # Once one is lost, all are until there is room for many: what is missing is one stretch, not many.
        if full or self._losing:
            self._losing += 1
            self._lost += 1
            return
        self._sequence += 1
        head = HEAD.pack(kind, detail, self._sequence, stamp_ns, session, number)
        self._waiting.append((self._sequence, stamp_ns, head, payload))
        self._bytes += size
        self._hand_over()

    def tick(self, now_ns: int) -> bool:
        """Hear the recorder; True when `trouble` has begun or ended. To be called all the time: it looks now and then."""
        if not self.on or now_ns < self._look_ns:
            return False
        self._look_ns = now_ns + _LOOK_NS
        self._hear(now_ns)
        self._hand_over()
        if self._losing and self._bytes < MOST_BYTES // 2 and len(self._sent) + len(self._waiting) < MOST_RECORDS // 2:
            lost, self._losing = self._losing, 0
            self.record(Kind.LOST, b"", session=0, number=lost, stamp_ns=now_ns)
        before, self.trouble = self.trouble, self._cause(now_ns)
        if self.trouble:
            self._owed = self._sequence
        elif self._acknowledged < self._owed:
            self.trouble = "the recorder is catching up"
        return bool(before) != bool(self.trouble)

    def status(self, now_ns: int) -> wire.Recording | None:
        """The recording in STATUS; None where it is off."""
        if not self.on:
            return None
        oldest_ns = self._oldest_ns
        return wire.Recording(
            file=self._word.file,
            trouble=self.trouble,
            records=self._sequence,
            acknowledged=self._acknowledged,
            waiting_bytes=self._bytes,
            waiting_s=0.0 if oldest_ns is None else max(0.0, (now_ns - oldest_ns) / 1e9),
            lost=self._lost,
        )

    # --- the recorder -------------------------------------------------------------------------------------------------

    @property
    def _oldest_ns(self) -> int | None:
        """When the oldest record that is not safe was made."""
        first = self._sent or self._waiting
        return first[0][1] if first else None

    def _cause(self, now_ns: int) -> str:
        """Why what happens now may be lost; empty where nothing says so."""
        if self._start is None:
            return self.trouble
        if self._losing:
            return f"{self._losing} records are lost: more waited for the recorder than is kept"
        if self._word.failure:
            return f"the recorder cannot write: {self._word.failure}"
        if self._peer is None:
            return "no recorder is there"
        if now_ns - self._heard_ns > self._stall_s * 1e9:
            return f"the recorder has said nothing for more than {self._stall_s:g} s"
        oldest_ns = self._oldest_ns
        if oldest_ns is not None and now_ns - oldest_ns > self._stall_s * 1e9:
            return f"the disk has taken nothing for more than {self._stall_s:g} s"
        return ""

    def _hear(self, now_ns: int) -> None:
        for _ in range(_WORDS):
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
                word = msgspec.json.decode(parts[-1], type=Word)
            except zmq.Again:
                return
            except msgspec.MsgspecError:
                continue
            again = parts[0] != self._peer or word.attempt != self._word.attempt
            self._peer, self._word, self._heard_ns = parts[0], word, now_ns
            if word.epoch == self._epoch:
                self._acknowledge(word.durable)
            if again and self._start is not None:
                self._greet()

    def _acknowledge(self, durable: int) -> None:
        for queue in (self._sent, self._waiting):
            while queue and queue[0][0] <= durable:
                self._acknowledged, _, head, payload = queue.popleft()
                self._bytes -= len(head) + len(payload)

    def _greet(self) -> None:
        """Begin with a recorder, or again: the facts, then everything that is not safe."""
        self._sent.extend(self._waiting)
        self._sent, self._waiting = deque(), self._sent
        assert self._start is not None
        head = HEAD.pack(Kind.START, 0, self._acknowledged, time.perf_counter_ns(), 0, self._epoch)
        if self._send(head, self._start):
            self._hand_over()
        else:
            # Its queue is full of what it lacks the beginning of: at its next word, once more.
            self._peer = None

    def _hand_over(self, *, most: int = _HANDED_AT_ONCE) -> None:
        for _ in range(min(most, len(self._waiting))):
            if self._peer is None:
                return
            _, _, head, payload = self._waiting[0]
            if not self._send(head, payload):
                return
            self._sent.append(self._waiting.popleft())

    def _send(self, head: bytes, payload: bytes | bytearray) -> bool:
        assert self._peer is not None
        try:
            # Whether there is room is decided at the first part; the others then follow it.
            self._socket.send(self._peer, zmq.SNDMORE | zmq.NOBLOCK)
            self._socket.send(head, zmq.SNDMORE | zmq.NOBLOCK)
            self._socket.send(payload, zmq.NOBLOCK, copy=len(payload) < _NO_COPY_BYTES)
        except zmq.Again:
            return False
        except zmq.ZMQError:  # EHOSTUNREACH: it is gone
            self._peer = None
            return False
        return True


def recorder_endpoint(directory: str, *, port: int) -> str:
    """Where the engine on that ZeroMQ port and its recorder meet: a local socket in the directory, which is made.

    Raises:
        UsageError: the directory cannot be made, its path is too long, or this system has no local sockets.
    """
    path = Path(directory).absolute()
    meeting = path / f".engine-{port}.socket"
    if not zmq.has("ipc"):
        raise UsageError("this build of ZeroMQ has no local sockets; recording needs them")
    if len(str(meeting).encode()) > _LONGEST_PATH:
        raise UsageError(
            f"record {path}: a local socket's path may have {_LONGEST_PATH} bytes, {meeting} has "
            f"{len(str(meeting).encode())}; choose a directory with a shorter path"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"record {path}: the directory cannot be made ({error.strerror})") from None
    return f"ipc://{meeting}"
