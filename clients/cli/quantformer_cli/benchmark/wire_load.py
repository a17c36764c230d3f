"""The bench's client over ZeroMQ and TCP: what a microscope and a controller written with the Python client do."""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Any

from quantformer_cli.benchmark.load import FLOW, GRACE_S, PATIENCE_S, POLL_S, Load, Questioner, Stamps
from quantformer_cli.benchmark.worker import Desk
from quantformer_client import wire
from quantformer_client.connection import Connection, refusal
from quantformer_client.errors import SessionLostError
from quantformer_client.herald import Herald
from quantformer_client.watch import Watch
from quantformer_client.wire import Asked, MessageType

#: So long before a frame is due the client stops sleeping in the socket, whose timer counts whole ms, and looks at it.
_LOOK_NS = 2_000_000
_NAP_S = 5e-5


def run_wire(load: Load, desk: Desk, stamps: Stamps) -> dict[str, Any]:
    """One client's whole run."""
    one = _WireClient(load, stamps)
    try:
        return one.run(desk)
    finally:
        one.close()


class _WireClient:
    """Frames and announced onsets on one connection, standing answers from the subscription, or polled over TCP."""

    def __init__(self, load: Load, stamps: Stamps) -> None:
        self._load, self._stamps, self._ask = load, stamps, Questioner(load)
        over = load.transport
        assert over in ("zmq", "tcp")
        self._connection = Connection(
            host=load.host, port=load.zmq_port if over == "zmq" else load.tcp_port, over=over,
            token=load.token, client="bench", unasked=self._hear,
        )  # fmt: skip
        self._herald = Herald(host=load.host, port=load.zmq_port) if over == "zmq" else None
        self._session = self._question = 0
        self._errors: Counter[str] = Counter()
        self._last_error: wire.Error | None = None
        self._watch: Watch | None = None
        self._watcher: threading.Thread | None = None
        self._stop = threading.Event()
        self._polls = self._ask.stands and over == "tcp"
        self._poll_open, self._poll_at_ns = False, 0
        self._now_answers = 0

    # --- listening ----------------------------------------------------------------------------------------------------

    def _hear(self, message: wire.Message) -> None:
        body = message.body
        if isinstance(body, wire.Answer):
            got_ns = time.perf_counter_ns()
            self._now_answers += body.asked == Asked.NOW
            self._note(body, got_ns)
            if body.asked == Asked.STANDING:
                self._poll_open, self._poll_at_ns = False, got_ns + round(POLL_S * 1e9)
        elif isinstance(body, wire.Error):
            if body.refused == MessageType.POLL and body.code == wire.ErrorCode.NO_ANSWER_YET:
                self._poll_open, self._poll_at_ns = False, time.perf_counter_ns() + round(POLL_S * 1e9)
                return
            self._errors[body.code] += 1
            self._last_error = body

    def _note(self, answer: wire.Answer, got_ns: int) -> None:
        ns = (answer.received_ns, answer.window_ready_ns, answer.submitted_ns, answer.done_ns, answer.published_ns)
        late = bool(answer.flags & wire.Flags.LATE)
        self._stamps.add(
            asked=int(answer.asked),
            onset_frame=answer.onset_frame,
            last_frame=answer.last_frame,
            late=late,
            got_ns=got_ns,
            stamps=ns,
        )

    def _listen(self, watch: Watch) -> None:
        # A session that is lost is told to the thread that sends its frames, too.
        with suppress(SessionLostError):
            while not self._stop.is_set():
                event = watch.next(0.1)
                # Announced onsets come to their asker; the published copy would be counted twice.
                if isinstance(event, wire.Answer) and event.asked == Asked.STANDING:
                    self._note(event, time.perf_counter_ns())

    # --- the run ------------------------------------------------------------------------------------------------------

    def run(self, desk: Desk) -> dict[str, Any]:
        """Fill the window, warm up, wait for the word, send the paced frames, hear the last answers."""
        load, stamps, connection = self._load, self._stamps, self._connection
        header, _ = connection.ask_header(self._ask.opening(), expect=wire.Opened, timeout_s=PATIENCE_S)
        self._session, self._roi_hash = header.session, header.roi_hash
        if self._ask.stands and not self._polls:
            self._watch = Watch(host=load.host, port=load.pub_port, session=self._session)
            self._watcher = threading.Thread(target=self._listen, args=(self._watch,), name="watch", daemon=True)
            self._watcher.start()
        welcome = connection.welcome
        filled = self._ask.fill(baseline_frames=welcome.baseline_frames, rate_hz=welcome.rate_hz)
        for number in range(filled):
            connection.send(self._ask.frame(number, roi_hash=self._roi_hash), session=self._session)
            if number % FLOW == FLOW - 1:
                self._sync()
        self._sync()
        self._warm_up()
        stamps.first = filled
        desk.ready()
        stamps.begin(time.perf_counter_ns())
        for frame in range(load.frames):
            body = self._ask.frame(filled + frame, roi_hash=self._roi_hash)
            self._until(stamps.due_ns(frame))
            stamps.sent_ns[frame] = time.perf_counter_ns()
            connection.send(body, session=self._session)
            if self._herald is not None:
                self._herald.sent(body)
            last = self._ask.probed(frame)
            if last is not None:
                stamps.probed.append(last)
                connection.send(self._ask.onset(filled + last + 1), session=self._session)
        self._finish()
        self._sync()
        closed = connection.ask(wire.Close(), expect=wire.Closed, session=self._session, timeout_s=PATIENCE_S)
        return {"filled": filled, "counters": closed.counters, "refused": dict(self._errors)}

    def _sync(self) -> None:
        self._connection.ask(wire.Ping(), expect=wire.Pong, timeout_s=PATIENCE_S)
        self._check()

    def _check(self) -> None:
        if self._last_error is not None and not self._stamps.begun_ns:
            raise refusal(self._last_error)

    def _warm_up(self) -> None:
        """Ask what will be asked, so that the runtime has met the shapes."""
        connection = self._connection
        end = time.monotonic() + PATIENCE_S
        if self._ask.announces:
            for count in range(1, 4):
                connection.send(self._ask.onset(None), session=self._session)
                while self._now_answers < count:
                    self._receive(end)
        if self._ask.stands:
            asked = connection.ask(
                self._ask.standing(), expect=wire.Accepted, session=self._session, timeout_s=PATIENCE_S
            )
            self._question = asked.question
            while not self._stamps.rows:
                self._poll_if_due()
                self._receive(end)

    def _receive(self, end: float) -> None:
        if time.monotonic() > end:
            raise TimeoutError(f"no answer within {PATIENCE_S:g} s")
        self._connection.receive(0.01)
        self._check()

    def _until(self, moment_ns: int) -> None:
        """Listen until then."""
        while (left_ns := moment_ns - time.perf_counter_ns()) > 0:
            self._poll_if_due()
            if left_ns > _LOOK_NS and not self._polls:
                self._connection.receive((left_ns - _LOOK_NS) / 1e9)
            elif not self._connection.receive(0.0):
                time.sleep(min(left_ns / 1e9, _NAP_S))

    def _poll_if_due(self) -> None:
        if self._polls and not self._poll_open and time.perf_counter_ns() >= self._poll_at_ns:
            self._poll_open = True
            self._connection.send(wire.Poll(question=self._question), session=self._session)

    def _finish(self) -> None:
        """Listen until the last frame asked about is answered, or the time for it is over."""
        stamps, last = self._stamps, self._load.frames - 1
        kinds = [(int(Asked.ANNOUNCED), stamps.probed[-1])] if stamps.probed else []
        kinds += [(int(Asked.STANDING), last)] if self._ask.stands else []
        end_ns = time.perf_counter_ns() + round(GRACE_S * 1e9)
        while not all(stamps.answered(asked=asked, frame=frame) for asked, frame in kinds):
            if time.perf_counter_ns() > end_ns:
                break
            self._until(time.perf_counter_ns() + 5_000_000)
        stamps.ended_ns = time.perf_counter_ns()

    def close(self) -> None:
        """Let go of everything."""
        self._stop.set()
        if self._watcher is not None:
            self._watcher.join()
        if self._watch is not None:
            self._watch.close()
        if self._herald is not None:
            self._herald.close()
        self._connection.close()
