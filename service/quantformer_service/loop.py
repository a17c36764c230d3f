"""One turn of the loop: messages in, questions to inference, and answers, decisions and errors out.

It has no sockets, no network and no clock of its own to wait for: the engine gives it the real ones, the rehearsal silent ones.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import msgspec
from numpy.typing import NDArray

from quantformer.bundle import Bundle
from quantformer_client import wire
from quantformer_client.wire import ErrorCode
from quantformer_service.answering import Answering, is_late
from quantformer_service.batch import MOST_QUESTIONS, take_turns
from quantformer_service.dispatch import Dispatcher, Reply, error_header
from quantformer_service.engine_settings import EngineSettings
from quantformer_service.foretelling import Foretelling
from quantformer_service.inference import Slot
from quantformer_service.meter import Meter
from quantformer_service.pace import Pace
from quantformer_service.questions import Question
from quantformer_service.recording_file import Kind
from quantformer_service.refusal import Refusal
from quantformer_service.session import Session
from quantformer_service.stream import Incoming, Peer
from quantformer_service.tap import Tap, Told

_log = logging.getLogger(__name__)

#: All of an answer but its results is written this long after its question was handed over: inference is in the graph by
#: then, and not held up by a loop that holds the interpreter.
_DRAFT_AFTER_NS = 1_000_000
#: What is recorded of what is published, beside answers.
_RECORDED = (wire.Decision, wire.Trigger, wire.SessionLost, wire.Bye)


class Port(Protocol):
    """Where messages come in and go out; `quantformer_service.stream.Sockets` is the real one, and says what each does."""

    counters: Counter[str]

    def poll(self, timeout_ms: int) -> Iterator[Incoming]:
        """What came in within that time."""

    def settle(self) -> bool:
        """Whether inference ended a `poll`."""

    def send(self, peer: Peer, data: bytes | bytearray) -> None:
        """Send to one client."""

    def publish(self, data: bytes | bytearray) -> None:
        """Send to every subscriber."""


class Computation(Protocol):
    """What computes answers; `quantformer_service.inference.Inference` is the real one, and says what each does."""

    def submit(self, *slots: Slot) -> None:
        """Hand filled slots over."""

    def collect(self) -> Slot | None:
        """The next finished slot, or None."""

    def prepare(self, vectors: NDArray[Any], *, stimuli: int, rows: int, forecast: bool) -> None:
        """Questions of this size are to come."""


class Loop:
    """What the loop thread does between two looks at its sockets. ``status`` and ``welcome`` answer GET_STATUS and HELLO."""

    def __init__(
        self,
        settings: EngineSettings,
        bundle: Bundle,
        *,
        sockets: Port,
        inference: Computation,
        tap: Tap,
        epoch: int,
        status: Callable[[], wire.Status],
        welcome: Callable[[], wire.Welcome],
    ) -> None:
        self._sockets, self._inference, self._tap = sockets, inference, tap
        self._most_ready, self._epoch = settings.ready_questions, epoch
        self.dispatcher = Dispatcher(
            settings,
            bundle,
            publish=self.publish,
            lose=self._lose,
            status=status,
            welcome=welcome,
            trouble=lambda: tap.trouble,
            prepare=inference.prepare,
        )
        #: Whether standing questions are asked: not while the engine warms up or ends.
        self.stands = False
        self._ready: deque[tuple[Session, Question]] = deque()
        # One batch is computed while the next is filled.
        self._free = [Slot() for _ in range(2 * MOST_QUESTIONS)]
        self._busy: dict[Slot, Session] = {}
        self.counters: Counter[str] = Counter()
        #: From an answer's window being ready to its publishing, of the last answers.
        self.latency_ms: deque[float] = deque(maxlen=1024)
        self.meter, self._pace = Meter(), Pace()
        self.foretelling = Foretelling(self.publish)
        self._answering = Answering(bundle)

    @property
    def waiting(self) -> int:
        """Onset questions that wait for inference."""
        return len(self._ready)

    @property
    def under_way(self) -> int:
        """Questions that inference has."""
        return len(self._busy)

    @property
    def idle(self) -> bool:
        """Whether no question is under way, and none waits for inference."""
        return not self._busy and not self._ready

    def turn(self, until_ns: int) -> None:
        """Sleep until something comes in, at most until then; take it, and do everything that follows."""
        quiet = True
        for incoming in self._sockets.poll(self._sleep_ms(until_ns)):
            self._take(incoming)
            quiet = False
        self._collect()
        # What woke the loop is published before the waking is seen to; what was done meanwhile comes right after.
        if self._sockets.settle():
            self._collect()
        if quiet:
            self._draft_ahead()
        now_ns = time.perf_counter_ns()
        self.foretelling.tell(now_ns)
        due: list[tuple[Session, Question]] = []
        for session in self.dispatcher.sessions.values():
            if session.docket.pending:
                ready = session.docket.due(now_ns=now_ns, expected_ns=self._pace.expected_ns)
                due += [(session, question) for question in ready]
            if session.trigger.expire(now_ns=now_ns):
                self.counters["leases_expired"] += 1
                self.publish(session.trigger.describe(now_ns=now_ns), session=session.number)
        # First come, first answered, whoever's session it is.
        for session, question in sorted(due, key=lambda one: one[1].number):
            self._queue(session, question)
        self._schedule()

    def flush(self) -> None:
        """Let every pending onset question wait for nothing more: it is answered from the frames that are there."""
        for session in self.dispatcher.sessions.values():
            for question in session.docket.due(now_ns=1 << 62, expected_ns=lambda _rows: 0):
                question.window_ready_ns = time.perf_counter_ns()
                self._ready.append((session, question))

    def next_begin_ns(self) -> int | None:
        """When the next pending question must be begun, frames or not; None where none is pending."""
        earliest_ns: int | None = None
        for session in self.dispatcher.sessions.values():
            begin_ns = session.docket.next_begin_ns(self._pace.expected_ns)
            if begin_ns is not None and (earliest_ns is None or begin_ns < earliest_ns):
                earliest_ns = begin_ns
        return earliest_ns

    def publish(self, body: wire.Body, *, session: int) -> None:
        """Send to every subscriber of a session (0: of the engine)."""
        sent_ns = time.perf_counter_ns()
        data = wire.encode(body, session=session, epoch=self._epoch, sent_ns=sent_ns)
        self._sockets.publish(data)
        if isinstance(body, _RECORDED):
            self._tap.record(Kind.OUTPUT, data, session=session, number=0, stamp_ns=sent_ns)

    # --- messages -----------------------------------------------------------------------------------------------------

    def _collect(self) -> None:
        while (slot := self._inference.collect()) is not None:
            self._finish(slot)

    def _sleep_ms(self, until_ns: int) -> int:
        """Whole ms: no later than anything that must be done in time, no earlier than what only wants to be looked at."""
        now_ns = time.perf_counter_ns()
        undrafted = any(slot.question.draft is None for slot in self._busy)
        look_ns = min(until_ns, now_ns + _DRAFT_AFTER_NS) if undrafted else until_ns
        if (tell_ns := self.foretelling.next_ns) is not None:
            look_ns = min(look_ns, tell_ns)
        sleep_ms = -(-(look_ns - now_ns) // 1_000_000)
        for session in self.dispatcher.sessions.values():
            begin_ns = session.docket.next_begin_ns(self._pace.expected_ns)
            for moment_ns in (begin_ns, session.trigger.expires_ns):
                if moment_ns is not None:
                    sleep_ms = min(sleep_ms, (moment_ns - now_ns) // 1_000_000)
        return max(0, sleep_ms)

    def _take(self, incoming: Incoming) -> None:
        now_ns = time.perf_counter_ns()
        try:
            if incoming.error is not None:
                raise incoming.error
            message = wire.decode(incoming.data)
            reply = self.dispatcher.handle(message, peer=incoming.peer, now_ns=now_ns)
            self._tap.taken(message, incoming.data, reply=reply, now_ns=now_ns)
            if isinstance(message.body, wire.Frame):
                self.meter.ingest.add(time.perf_counter_ns() - now_ns)
            if reply is None:
                return
            # In here too: what a client set may be too long to be told back.
            data = self._encoded(reply, request=message.header.request)
        except (Refusal, wire.WireError) as refusal:
            self._refuse(incoming, refusal.code, str(refusal))
        except Exception as error:
            # Whatever a message meets, the stream goes on.
            _log.exception("a message met an error that nobody foresaw")
            self._refuse(incoming, ErrorCode.INTERNAL, f"{type(error).__name__}: {error}")
        else:
            self._sockets.send(incoming.peer, data)

    def _encoded(self, reply: Reply, *, request: int) -> bytes | bytearray:
        sent_ns = time.perf_counter_ns() if reply.sent_ns is None else reply.sent_ns
        if isinstance(reply.body, bytearray):
            wire.readdress(reply.body, request=request, sent_ns=sent_ns)
            return reply.body
        return wire.encode(
            reply.body,
            session=reply.session,
            request=request,
            epoch=self._epoch,
            sent_ns=sent_ns,
            roi_hash=reply.roi_hash,
        )

    def _refuse(self, incoming: Incoming, code: ErrorCode, message: str) -> None:
        session, request, frame, refused, device_s = error_header(incoming.data)
        # Its header alone: what came may hold the token.
        told = Told(
            code=code.value,
            message=message[:4000],
            type=refused,
            request=request,
            frame=frame,
            device_s=None if math.isnan(device_s) else device_s,
            bytes=len(incoming.data),
        )
        self._tap.told(Kind.REFUSED, told, session=session)
        self._error(
            incoming.peer,
            code,
            message,
            session=session,
            request=request,
            frame=frame,
            refused=refused,
            device_s=device_s,
        )

    def _error(self, peer: Peer, code: ErrorCode, message: str, *, refused: int, **header: Any) -> None:
        self.counters[f"error_{code}"] += 1
        body = wire.Error(code=code.value, message=message[:4000], refused=refused)
        self._sockets.send(peer, wire.encode(body, epoch=self._epoch, sent_ns=time.perf_counter_ns(), **header))

    # --- questions ----------------------------------------------------------------------------------------------------

    def _queue(self, session: Session, question: Question) -> None:
        if len(self._ready) >= self._most_ready:
            self._fail(
                session,
                question,
                Refusal(ErrorCode.QUEUE_FULL, f"{len(self._ready)} questions wait for inference already; ask for less"),
            )
        else:
            self._ready.append((session, question))

    def _schedule(self) -> None:
        """Hand over onset questions, first come first; standing ones only when nothing else is under way."""
        slots: list[Slot] = []
        while self._free and self._ready:
            slots += self._captured(*self._ready.popleft())
        if self.stands:
            # Once more where no frames were there for any of them.
            while not self._busy and (turn := self._turns()):
                for session, question in turn:
                    slots += self._captured(session, question)
        if slots:
            self._inference.submit(*slots)
            for slot in slots:
                self.foretelling.asked(self._busy[slot], now_ns=time.perf_counter_ns())

    def _turns(self) -> list[tuple[Session, Question]]:
        return take_turns(self.dispatcher.sessions, now_ns=time.perf_counter_ns(), fits=self._fits)

    def _fits(self, rows: int) -> bool:
        """Whether standing questions of so many rows, begun now, are answered before an onset question must begin."""
        earliest_ns = self.next_begin_ns()
        return earliest_ns is None or time.perf_counter_ns() + self._pace.expected_ns(rows) < earliest_ns

    def _captured(self, session: Session, question: Question) -> list[Slot]:
        """The slot of a question that is asked now; none where its frames are not there, which is told."""
        slot = self._free.pop()
        if self._tap.on:
            self._tap.record(
                Kind.ASKED,
                session.window.last.to_bytes(8, "little", signed=True),
                session=session.number,
                number=question.number,
                detail=question.asked,
                stamp_ns=time.perf_counter_ns(),
            )
        try:
            session.capture(question, slot)
        except Refusal as refusal:
            self._free.append(slot)
            self._fail(session, question, refusal, at_capture=True)
            return []
        self._busy[slot] = session
        return [slot]

    def _draft_ahead(self) -> None:
        """Nothing came in, and inference is at work: write what of its answers is known already."""
        for slot, session in self._busy.items():
            if slot.question.draft is None:
                slot.question.draft = draft = self._draft(session, slot.question)
                self._answering.lay_out(draft, slot)

    def _draft(self, session: Session, question: Question) -> wire.Draft:
        return self._answering.draft(question, session=session.number, epoch=self._epoch)

    def _finish(self, slot: Slot) -> None:
        session: Session = self._busy.pop(slot)
        question: Question = slot.question
        self._free.append(slot)
        if slot.failure is not None:
            self._fail(session, question, Refusal(ErrorCode.INFERENCE_FAILED, slot.failure))
            return
        if self.dispatcher.sessions.get(session.number) is not session or question.acquisition != session.acquisitions:
            self._fail(session, question, _LOST)
            return
        draft, question.draft = question.draft or self._draft(session, question), None
        self._answering.fill(draft, question, slot)
        answer, message = draft.answer, draft.message
        # Stamped when all that comes before sending is done.
        published_ns = time.perf_counter_ns()
        late = is_late(session, question, now_ns=published_ns)
        flags = answer.flags | wire.Flags.LATE if late else answer.flags
        submitted_ns, done_ns = slot.submitted_ns, slot.done_ns
        wire.stamp_published(
            message, submitted_ns=submitted_ns, done_ns=done_ns, published_ns=published_ns, flags=flags
        )
        self._sockets.publish(message)
        standing = question.asked == wire.Asked.STANDING
        self._tap.record(
            Kind.STANDING_ANSWER if standing else Kind.ANSWER,
            message,
            session=session.number,
            number=question.number,
            stamp_ns=published_ns,
        )
        answer = msgspec.structs.replace(
            answer, submitted_ns=submitted_ns, done_ns=done_ns, published_ns=published_ns, flags=flags
        )
        if not question.hypothetical:
            for decision in session.trigger.decide(answer, now_ns=time.perf_counter_ns()):
                self.counters["triggers_fired" if decision.fired else "triggers_refused"] += 1
                self.publish(decision, session=session.number)
        if question.peer is not None:
            wire.readdress(message, request=question.request)
            self._sockets.send(question.peer, message)
        session.docket.keep(answer, message)
        self.counters["answers"] += 1
        self.counters["answers_late"] += late
        self.latency_ms.append((published_ns - answer.window_ready_ns) / 1e6)
        self.foretelling.answered(session, took_ns=published_ns - answer.window_ready_ns)
        self._pace.answered(answer, rows=question.cost, rows_before=slot.cost_before)
        self.meter.answered(answer)

    def _fail(self, session: Session, question: Question, refusal: Refusal, *, at_capture: bool = False) -> None:
        """Tell the asker why there is no answer; a standing question has none to tell."""
        self.counters["questions_failed"] += 1
        told = Told(code=refusal.code.value, message=str(refusal))
        self._tap.told(Kind.FAILED, told, session=session.number, number=question.number, detail=int(at_capture))
        if question.peer is not None:
            self._error(
                question.peer,
                refusal.code,
                f"question {question.number}: {refusal}",
                session=session.number,
                request=question.request,
                refused=int(wire.MessageType.ONSET),
            )

    def _lose(self, session: Session, questions: list[Question]) -> None:
        waiting = [question for owner, question in self._ready if owner is session]
        self._ready = deque((owner, question) for owner, question in self._ready if owner is not session)
        for question in (*questions, *waiting):
            self._fail(session, question, _LOST)


_LOST = Refusal(ErrorCode.WINDOW_NOT_READY, "the acquisition or session ended before the question was answered")
