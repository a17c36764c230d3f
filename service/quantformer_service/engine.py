"""The real-time process: one loop thread with sockets, windows, decisions and publishing, and one inference thread.

``python -m quantformer_service.engine`` runs it as a child of the supervisor (see `quantformer_service.process`).
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec
import numpy as np

from quantformer.bundle import Bundle, load_bundle
from quantformer.errors import UsageError
from quantformer_client import wire
from quantformer_client.wire import ErrorCode
from quantformer_service.answering import Answering, is_late
from quantformer_service.batch import MOST_QUESTIONS, take_turns
from quantformer_service.dispatch import Dispatcher, Reply, error_header, new_id
from quantformer_service.engine_settings import EngineSettings
from quantformer_service.garbage import Garbage
from quantformer_service.inference import Inference, Slot
from quantformer_service.meter import Meter
from quantformer_service.pace import Pace
from quantformer_service.privileges import Privileges
from quantformer_service.process import announce, run_process
from quantformer_service.provenance import Provenance, provenance
from quantformer_service.questions import Question
from quantformer_service.recording_file import Kind
from quantformer_service.refusal import Refusal
from quantformer_service.runtime import in_precision
from quantformer_service.session import Session
from quantformer_service.settings import Settings
from quantformer_service.stream import Incoming, Peer, Sockets
from quantformer_service.tap import Tap, Told
from quantformer_service.trigger import Disarmed, TriggerState

_log = logging.getLogger(__name__)

#: Longest sleep of the loop in ms: how soon a wish to stop is seen.
_LONGEST_SLEEP_MS = 50
#: All of an answer but its results is written this long after its question was handed over: inference is in the graph by
#: then, and not held up by a loop that holds the interpreter.
_DRAFT_AFTER_MS = 1
#: How often METRICS is published and garbage looked for, in ns; the time before the next frame that this needs; and how
#: long it is put off where there is never so much, as at hundreds of frames a second.
_CHORES_EVERY_NS = 1_000_000_000
_CHORES_SPARE_NS = 2_000_000
_CHORES_PUT_OFF_NS = 4_000_000_000
#: Seconds that a thread may hold the interpreter while another wants it; Python's own 5 ms is a sixth of a frame.
_SWITCH_S = 0.0005
#: Seconds that the last records have to reach the recorder.
_LINGER_S = 0.5
#: What is recorded of what is published, beside answers.
_RECORDED = (wire.Decision, wire.Trigger, wire.SessionLost, wire.Bye)


class Engine:
    """Answers questions about streams of frames. Construction binds the ports; `run` is the loop.

    Raises:
        BusyPortError: a port is taken.
    """

    def __init__(self, settings: EngineSettings, bundle: Bundle) -> None:
        self._settings, self._bundle = settings, bundle
        self.epoch = new_id()
        self._started_ns = time.perf_counter_ns()
        self._sockets = Sockets(settings)
        self.endpoints = self._sockets.endpoints
        self._inference = Inference(
            bundle, provider=settings.provider, threads=settings.threads, on_done=self._sockets.wake
        )
        self._dispatcher = Dispatcher(
            settings,
            bundle,
            publish=self._publish,
            lose=self._lose,
            status=self._status,
            welcome=self._welcome,
            trouble=lambda: self._tap.trouble,
            prepare=self._inference.prepare,
        )
        self._tap = Tap(settings, epoch=self.epoch)
        self._ready: deque[tuple[Session, Question]] = deque()
        # One batch is computed while the next is filled.
        self._free = [Slot() for _ in range(2 * MOST_QUESTIONS)]
        self._busy: dict[Slot, Session] = {}
        self._counters: Counter[str] = Counter()
        self._latency_ms: deque[float] = deque(maxlen=1024)
        self._meter, self._pace, self._garbage = Meter(), Pace(), Garbage()
        self._answering = Answering(bundle)
        self._chores_ns = 0
        #: What the process was granted, for WELCOME and STATUS.
        self.privileges: Mapping[str, str] = {}
        self._state = "warming"
        try:
            self._version = version("quantformer")
        except PackageNotFoundError:  # run from a source tree that is not installed
            self._version = "unknown"

    def run(self, stop: threading.Event, *, on_ready: Callable[[], None] = lambda: None) -> None:
        """Serve until ``stop`` is set, then disarm, answer what is pending, flush and close.

        Raises:
            ProviderError: the asked execution provider is not the one that runs.
        """
        self._inference.start()
        try:
            while not stop.is_set():
                self._turn()
                if self._state == "warming" and self._inference.ready.is_set():
                    on_ready()
                    if self._tap.on:
                        self._tap.begin(msgspec.json.encode(self._made_with()))
                    self._garbage.start()
                    self._state, self._dispatcher.closed = "ready", None
                if self._inference.failure is not None:
                    raise self._inference.failure
            self._end()
        finally:
            if self._state != "warming":
                self._garbage.end()
            self._inference.stop(0.5)
            self._sockets.close()
            self._tap.close(linger_s=_LINGER_S)

    @property
    def facts(self) -> dict[str, object]:
        """What the parent is told once the engine is ready."""
        return {
            "endpoints": self.endpoints,
            "epoch": self.epoch,
            "bundle": self._bundle.hash,
            "provider": self._inference.provider,
            "precision": self._bundle.precision,
            "privileges": dict(self.privileges),
        }

    def _made_with(self) -> Provenance:
        return provenance(
            self._settings,
            self._bundle,
            provider=self._inference.provider,
            threads=self._inference.threads,
            epoch=self.epoch,
        )

    # --- the loop -----------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        quiet = True
        for incoming in self._sockets.poll(self._sleep_ms()):
            self._take(incoming)
            quiet = False
        self._collect()
        # What woke the loop is published before the waking is seen to; what was done meanwhile comes right after.
        if self._sockets.settle():
            self._collect()
        if quiet:
            self._draft_ahead()
        now_ns = time.perf_counter_ns()
        due: list[tuple[Session, Question]] = []
        for session in self._dispatcher.sessions.values():
            if session.docket.pending:
                ready = session.docket.due(now_ns=now_ns, expected_ns=self._pace.expected_ns)
                due += [(session, question) for question in ready]
            if session.trigger.expire(now_ns=now_ns):
                self._counters["leases_expired"] += 1
                self._publish(session.trigger.describe(now_ns=now_ns), session=session.number)
        # First come, first answered, whoever's session it is.
        for session, question in sorted(due, key=lambda one: one[1].number):
            self._queue(session, question)
        self._schedule()
        if self._tap.tick(now_ns):
            self._follow_recording(now_ns)
        if now_ns >= self._chores_ns:
            self._do_chores()

    def _collect(self) -> None:
        while (slot := self._inference.collect()) is not None:
            self._finish(slot)

    def _sleep_ms(self) -> int:
        now_ns = time.perf_counter_ns()
        undrafted = any(slot.question.draft is None for slot in self._busy)
        wake_ns = now_ns + (_DRAFT_AFTER_MS if undrafted else _LONGEST_SLEEP_MS) * 1_000_000
        for session in self._dispatcher.sessions.values():
            begin_ns = session.docket.next_begin_ns(self._pace.expected_ns)
            if begin_ns is not None and begin_ns < wake_ns:
                wake_ns = begin_ns
            if session.trigger.expires_ns is not None and session.trigger.expires_ns < wake_ns:
                wake_ns = session.trigger.expires_ns
        return max(0, (wake_ns - now_ns) // 1_000_000)

    def _do_chores(self) -> None:
        """What has time: METRICS and garbage, while nothing is under way and the next frame is not near."""
        now_ns = time.perf_counter_ns()
        spare_ns = self._spare_ns(now_ns)
        if spare_ns < _CHORES_SPARE_NS and now_ns < self._chores_ns + _CHORES_PUT_OFF_NS:
            return
        self._chores_ns = now_ns + _CHORES_EVERY_NS
        self._publish(self._metrics(), session=0)
        self._garbage.collect(max(spare_ns, _CHORES_SPARE_NS))

    def _spare_ns(self, now_ns: int) -> int:
        """Time for which the loop will surely not be wanted: 0 while a question is under way."""
        if self._busy or self._ready:
            return 0
        spare_ns = _LONGEST_SLEEP_MS * 1_000_000
        for session in self._dispatcher.sessions.values():
            begin_ns = session.docket.next_begin_ns(self._pace.expected_ns)
            for moment_ns in (begin_ns, session.next_frame_ns(now_ns)):
                if moment_ns is not None:
                    spare_ns = min(spare_ns, moment_ns - now_ns)
        return spare_ns

    def _take(self, incoming: Incoming) -> None:
        now_ns = time.perf_counter_ns()
        try:
            if incoming.error is not None:
                raise incoming.error
            message = wire.decode(incoming.data)
            reply = self._dispatcher.handle(message, peer=incoming.peer, now_ns=now_ns)
            self._tap.taken(message, incoming.data, reply=reply, now_ns=now_ns)
            if reply is None:
                self._meter.ingest.add(time.perf_counter_ns() - now_ns)
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
            epoch=self.epoch,
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
        self._counters[f"error_{code}"] += 1
        body = wire.Error(code=code.value, message=message[:4000], refused=refused)
        self._sockets.send(peer, wire.encode(body, epoch=self.epoch, sent_ns=time.perf_counter_ns(), **header))

    # --- questions ----------------------------------------------------------------------------------------------------

    def _queue(self, session: Session, question: Question) -> None:
        if len(self._ready) >= self._settings.ready_questions:
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
        if self._state == "ready":
            # Once more where no frames were there for any of them.
            while not self._busy and (turn := self._turns()):
                for session, question in turn:
                    slots += self._captured(session, question)
        if slots:
            self._inference.submit(*slots)

    def _turns(self) -> list[tuple[Session, Question]]:
        return take_turns(self._dispatcher.sessions, now_ns=time.perf_counter_ns(), fits=self._fits)

    def _fits(self, rows: int) -> bool:
        """Whether standing questions of so many rows, begun now, are answered before an onset question must begin."""
        expected_ns = self._pace.expected_ns
        begins = [session.docket.next_begin_ns(expected_ns) for session in self._dispatcher.sessions.values()]
        earliest_ns = min((one for one in begins if one is not None), default=None)
        return earliest_ns is None or time.perf_counter_ns() + expected_ns(rows) < earliest_ns

    def _captured(self, session: Session, question: Question) -> list[Slot]:
        """The slot of a question that is asked now; none where its frames are not there, which is told."""
        slot = self._free.pop()
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
                slot.question.draft = self._draft(session, slot.question)

    def _draft(self, session: Session, question: Question) -> wire.Draft:
        return self._answering.draft(question, session=session.number, epoch=self.epoch)

    def _finish(self, slot: Slot) -> None:
        session: Session = self._busy.pop(slot)
        question: Question = slot.question
        self._free.append(slot)
        if slot.failure is not None:
            self._fail(session, question, Refusal(ErrorCode.INFERENCE_FAILED, slot.failure))
            return
        if self._dispatcher.sessions.get(session.number) is not session or question.acquisition != session.acquisitions:
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
                self._counters["triggers_fired" if decision.fired else "triggers_refused"] += 1
                self._publish(decision, session=session.number)
        if question.peer is not None:
            wire.readdress(message, request=question.request)
            self._sockets.send(question.peer, message)
        session.docket.keep(answer, message)
        self._counters["answers"] += 1
        self._counters["answers_late"] += late
        self._latency_ms.append((published_ns - answer.window_ready_ns) / 1e6)
        self._pace.answered(answer, rows=question.cost, rows_before=slot.cost_before)
        self._meter.answered(answer)

    def _fail(self, session: Session, question: Question, refusal: Refusal, *, at_capture: bool = False) -> None:
        """Tell the asker why there is no answer; a standing question has none to tell."""
        self._counters["questions_failed"] += 1
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

    # --- what it is ---------------------------------------------------------------------------------------------------

    def _publish(self, body: wire.Body, *, session: int) -> None:
        sent_ns = time.perf_counter_ns()
        data = wire.encode(body, session=session, epoch=self.epoch, sent_ns=sent_ns)
        self._sockets.publish(data)
        if isinstance(body, _RECORDED):
            self._tap.record(Kind.OUTPUT, data, session=session, number=0, stamp_ns=sent_ns)

    def _follow_recording(self, now_ns: int) -> None:
        """The recording got into trouble, or out of it: tell, and in trouble let nothing fire."""
        trouble = self._tap.trouble
        if trouble:
            self._counters["recording_troubles"] += 1
            _log.error("recording: %s; every trigger is disarmed until it is well", trouble)
            for session in self._dispatcher.sessions.values():
                self._disarm(session, Disarmed.RECORDER, now_ns=now_ns)
        else:
            _log.info("recording: all is well")
        self._publish(self._status(), session=0)

    def _disarm(self, session: Session, reason: Disarmed, *, now_ns: int) -> None:
        """Take an armed trigger's lease; an emergency stop stays one."""
        if session.trigger.state == TriggerState.ARMED:
            session.trigger.disarm(reason)
            self._publish(session.trigger.describe(now_ns=now_ns), session=session.number)

    def _welcome(self) -> wire.Welcome:
        recipe = self._bundle.recipe
        return wire.Welcome(
            version=wire.MAJOR,
            minor=wire.MINOR,
            engine=f"quantformer {self._version}",
            bundle=self._bundle.hash,
            provider=self._inference.provider,
            rate_hz=recipe.rate_hz,
            baseline_frames=recipe.baseline_frames,
            response_frames=recipe.response_frames,
            phases=sorted(self._bundle.phases),
            largest_message=wire.MAX_MESSAGE,
            privileges=dict(self.privileges),
            precision=self._bundle.precision,
        )

    def _status(self) -> wire.Status:
        latency = {}
        if self._latency_ms:
            values = np.array(self._latency_ms)
            p50, p99 = np.percentile(values, [50, 99])
            latency = {"p50": float(p50), "p99": float(p99), "max": float(values.max())}
        return wire.Status(
            state=self._state,
            engine=f"quantformer {self._version}",
            bundle=self._bundle.hash,
            provider=self._inference.provider,
            uptime_s=(time.perf_counter_ns() - self._started_ns) / 1e9,
            counters=dict(self._counters + self._dispatcher.counters + self._sockets.counters),
            latency_ms=latency,
            sessions=[session.status() for session in self._dispatcher.sessions.values()],
            privileges=dict(self.privileges),
            recording=self._tap.status(time.perf_counter_ns()),
            precision=self._bundle.precision,
        )

    def _metrics(self) -> wire.Metrics:
        sessions = self._dispatcher.sessions.values()
        happened = self._dispatcher.ended.copy()
        for session in sessions:
            happened.update(session.counters)
        # Frames are counted by the engine and by their session: once is enough.
        happened.pop("frames", None)
        gauges: dict[str, float] = {
            "uptime_s": (time.perf_counter_ns() - self._started_ns) / 1e9,
            "sessions": len(sessions),
            "armed": sum(session.trigger.state == TriggerState.ARMED for session in sessions),
            "onsets_pending": sum(len(session.docket.pending) for session in sessions),
            "questions_waiting": len(self._ready),
            "questions_under_way": len(self._busy),
            "inference_threads": self._inference.threads,
        }
        recording = self._tap.status(time.perf_counter_ns())
        if recording is not None:
            gauges |= {
                "recorder_waiting_bytes": recording.waiting_bytes,
                "recorder_waiting_s": recording.waiting_s,
                "recorder_lost": recording.lost,
                "recorder_trouble": int(bool(recording.trouble)),
            }
        return wire.Metrics(
            state=self._state,
            engine=f"quantformer {self._version}",
            bundle=self._bundle.hash,
            provider=self._inference.provider,
            counters=dict(
                self._counters + self._dispatcher.counters + self._sockets.counters + self._meter.counters + happened
            ),
            gauges=gauges,
            histograms=self._meter.histograms(),
        )

    def _end(self) -> None:
        """Disarm, answer every pending onset question from the frames that are there, flush."""
        self._state = "stopping"
        self._dispatcher.closed = (ErrorCode.STOPPING, "the engine stops; ask the next one")
        for session in self._dispatcher.sessions.values():
            self._disarm(session, Disarmed.STOPPING, now_ns=time.perf_counter_ns())
            for question in session.docket.due(now_ns=1 << 62, expected_ns=lambda _rows: 0):
                question.window_ready_ns = time.perf_counter_ns()
                self._ready.append((session, question))
        end_ns = time.perf_counter_ns() + int(0.7 * self._settings.shutdown_s * 1e9)
        while (self._ready or self._busy) and time.perf_counter_ns() < end_ns:
            self._turn()
        for session in self._dispatcher.sessions.values():
            self._publish(wire.SessionLost(reason="the engine stops"), session=session.number)
        self._publish(wire.Bye(reason="the engine stops"), session=0)


_LOST = Refusal(ErrorCode.WINDOW_NOT_READY, "the acquisition or session ended before the question was answered")


def serve(settings: Settings, stop: threading.Event) -> None:
    """Body of the process: load the bundle, bind, warm up, announce, serve.

    Raises:
        UsageError: no bundle is named. BundleError, BusyPortError, ProviderError: see there.
    """
    if not settings.bundle:
        raise UsageError("no bundle is named; give one with --bundle DIR")
    engine_settings = EngineSettings.of(settings)
    bundle = in_precision(
        load_bundle(settings.bundle), precision=engine_settings.precision, provider=engine_settings.provider
    )
    engine = Engine(engine_settings, bundle)
    privileges = Privileges(engine_settings)
    sys.setswitchinterval(_SWITCH_S)
    # The inference thread, and whatever threads the runtime starts in it, take over what this thread has when they begin.
    privileges.before_inference()

    def ready() -> None:
        engine.privileges = privileges.when_ready()
        for name, outcome in engine.privileges.items():
            _log.log(logging.WARNING if outcome.startswith("refused") else logging.INFO, "%s: %s", name, outcome)
        announce(**engine.facts)

    engine.run(stop, on_ready=ready)


if __name__ == "__main__":
    run_process("engine", serve)
