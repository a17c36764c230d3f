"""The real-time process: one loop thread with sockets, windows, decisions and publishing, and one inference thread.

``python -m quantformer_service.engine`` runs it as a child of the supervisor (see `quantformer_service.process`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from quantformer.bundle import Bundle, load_bundle
from quantformer.errors import UsageError
from quantformer_client import wire
from quantformer_client.wire import ErrorCode
from quantformer_service.dispatch import Dispatcher, error_header, new_id
from quantformer_service.engine_settings import EngineSettings
from quantformer_service.inference import Inference, Slot
from quantformer_service.pace import Pace
from quantformer_service.process import announce, run_process
from quantformer_service.questions import Question, covered
from quantformer_service.refusal import Refusal
from quantformer_service.session import Session
from quantformer_service.settings import Settings
from quantformer_service.stream import Incoming, Peer, Sockets

_log = logging.getLogger(__name__)

#: Longest sleep of the loop in ms: how soon a wish to stop is seen.
_LONGEST_SLEEP_MS = 50


class Engine:
    """Answers questions about streams of frames. Construction binds the ports; `run` is the loop.

    Raises:
        BusyPortError: a port is taken.
    """

    def __init__(self, settings: EngineSettings, bundle: Bundle) -> None:
        self._settings, self._bundle = settings, bundle
        self._bundle_bytes = bytes.fromhex(bundle.hash)
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
        )
        self._ready: deque[tuple[Session, Question]] = deque()
        self._free = [Slot(), Slot()]
        self._busy: dict[int, Session] = {}
        self._counters: Counter[str] = Counter()
        self._latency_ms: deque[float] = deque(maxlen=1024)
        self._pace = Pace()
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
                    self._state, self._dispatcher.closed = "ready", None
                    on_ready()
                if self._inference.failure is not None:
                    raise self._inference.failure
            self._end()
        finally:
            self._inference.stop(0.5)
            self._sockets.close()

    @property
    def facts(self) -> dict[str, object]:
        """What the parent is told once the engine is ready."""
        return {
            "endpoints": self.endpoints,
            "epoch": self.epoch,
            "bundle": self._bundle.hash,
            "provider": self._inference.provider,
        }

    # --- the loop -----------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        for incoming in self._sockets.poll(self._sleep_ms()):
            self._take(incoming)
        while (slot := self._inference.collect()) is not None:
            self._finish(slot)
        now_ns = time.perf_counter_ns()
        for session in self._dispatcher.sessions.values():
            if session.docket.pending:
                for question in session.docket.due(now_ns=now_ns, expected_ns=self._pace.expected_ns):
                    self._queue(session, question)
            if session.trigger.expire(now_ns=now_ns):
                self._counters["leases_expired"] += 1
                self._publish(session.trigger.describe(now_ns=now_ns), session=session.number)
        self._schedule()

    def _sleep_ms(self) -> int:
        now_ns = time.perf_counter_ns()
        moments = [now_ns + _LONGEST_SLEEP_MS * 1_000_000]
        for session in self._dispatcher.sessions.values():
            deadline = session.docket.next_deadline_ns()
            if deadline is not None:
                moments.append(deadline - self._pace.expected_ns)
            if session.trigger.expires_ns is not None:
                moments.append(session.trigger.expires_ns)
        return max(0, (min(moments) - now_ns) // 1_000_000)

    def _take(self, incoming: Incoming) -> None:
        now_ns = time.perf_counter_ns()
        try:
            if incoming.error is not None:
                raise incoming.error
            message = wire.decode(incoming.data)
            reply = self._dispatcher.handle(message, peer=incoming.peer, now_ns=now_ns)
            if reply is None:
                return
            # In here too: what a client set may be too long to be told back.
            data = wire.encode(
                reply.body,
                session=reply.session,
                request=message.header.request,
                epoch=self.epoch,
                sent_ns=time.perf_counter_ns() if reply.sent_ns is None else reply.sent_ns,
                roi_hash=reply.roi_hash,
            )
        except (Refusal, wire.WireError) as refusal:
            self._refuse(incoming, refusal.code, str(refusal))
        except Exception as error:
            # Whatever a message meets, the stream goes on.
            _log.exception("a message met an error that nobody foresaw")
            self._refuse(incoming, ErrorCode.INTERNAL, f"{type(error).__name__}: {error}")
        else:
            self._sockets.send(incoming.peer, data)

    def _refuse(self, incoming: Incoming, code: ErrorCode, message: str) -> None:
        session, request, frame, refused, device_s = error_header(incoming.data)
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
        """Fill free slots: onset questions first come first, a standing one only when nothing else is under way."""
        while self._free and self._ready:
            self._submit(*self._ready.popleft())
        if self._busy or self._state != "ready" or self._deadline_is_near():
            return
        # The session that was served longest ago is asked first.
        for session in list(self._dispatcher.sessions.values()):
            question = session.standing_question(now_ns=time.perf_counter_ns())
            if question is not None and self._submit(session, question):
                self._dispatcher.sessions[session.number] = self._dispatcher.sessions.pop(session.number)
                return

    def _deadline_is_near(self) -> bool:
        """Whether a standing question begun now could be under way when an onset question must begin: none is, then."""
        deadlines = [session.docket.next_deadline_ns() for session in self._dispatcher.sessions.values()]
        begins_ns = min((one for one in deadlines if one is not None), default=1 << 62) - self._pace.expected_ns
        return time.perf_counter_ns() + self._pace.expected_ns >= begins_ns

    def _submit(self, session: Session, question: Question) -> bool:
        slot = self._free.pop()
        try:
            session.capture(question, slot)
        except Refusal as refusal:
            self._free.append(slot)
            self._fail(session, question, refusal)
            return False
        self._busy[id(slot)] = session
        self._inference.submit(slot)
        return True

    def _finish(self, slot: Slot) -> None:
        session: Session = self._busy.pop(id(slot))
        question: Question = slot.question
        self._free.append(slot)
        if slot.failure is not None:
            self._fail(session, question, Refusal(ErrorCode.INFERENCE_FAILED, slot.failure))
            return
        if self._dispatcher.sessions.get(session.number) is not session or question.acquisition != session.acquisitions:
            self._fail(session, question, _LOST)
            return
        answer = self._answer(session, question, slot)
        header = {"session": session.number, "epoch": self.epoch, "sent_ns": answer.published_ns}
        self._sockets.publish(wire.encode(answer, **header))
        if question.peer is not None:
            self._sockets.send(question.peer, wire.encode(answer, request=question.request, **header))
        session.docket.keep(answer)
        self._counters["answers"] += 1
        self._counters["answers_late"] += bool(answer.flags & wire.Flags.LATE)
        self._latency_ms.append((answer.published_ns - answer.window_ready_ns) / 1e6)
        self._pace.note(
            answer.published_ns - answer.window_ready_ns, standing=question.asked == wire.Asked.STANDING
        )
        for decision in session.trigger.decide(answer, now_ns=time.perf_counter_ns()):
            self._counters["triggers_fired" if decision.fired else "triggers_refused"] += 1
            self._publish(decision, session=session.number)

    def _answer(self, session: Session, question: Question, slot: Slot) -> wire.Answer:
        neurons, rois = session.declared.neurons, question.rois
        known, usable, f0 = neurons.known[rois], slot.usable[rois], slot.f0[rois]
        low, high = neurons.f0_range[rois].T
        bits = np.where(usable & ~question.stimulated, wire.Validity.VALID, 0)
        bits |= np.where(known, wire.Validity.KNOWN, 0)
        bits |= np.where(usable, 0, wire.Validity.INVALID_F0)
        bits |= np.where(question.stimulated, wire.Validity.STIMULATED, 0)
        with np.errstate(invalid="ignore"):
            bits |= np.where(usable & ((f0 < low) | (f0 > high)), wire.Validity.F0_OUT_OF_RANGE, 0)
        flags = wire.Flags(0)
        now_ns = time.perf_counter_ns()
        assert question.onset_frame is not None
        assert question.onset_s is not None
        overtaken = session.window.last >= question.onset_frame
        if now_ns > question.deadline_ns if question.deadline_ns else overtaken:
            flags |= wire.Flags.LATE
        if question.degraded:
            flags |= wire.Flags.DEGRADED
        if not covered(self._bundle, question.phase):
            flags |= wire.Flags.OUT_OF_PHASE
        count, n = len(question.stimuli.labels), len(rois)
        shaped = {
            name: None if array is None else array.reshape(count, n, -1)
            for name, array in (("response", slot.response), ("low", slot.low), ("high", slot.high))
        }
        return wire.Answer(
            question=question.number,
            asked=question.asked,
            phase=question.phase,
            stimuli=question.stimuli.labels,
            onset_frame=question.onset_frame,
            onset_s=question.onset_s,
            first_frame=question.first_frame,
            last_frame=question.last_frame,
            last_frame_s=question.last_frame_s,
            lead=question.lead,
            held=question.held,
            received_ns=question.received_ns,
            window_ready_ns=question.window_ready_ns,
            submitted_ns=slot.submitted_ns,
            done_ns=slot.done_ns,
            published_ns=now_ns,
            deadline_ns=question.deadline_ns,
            bundle=self._bundle_bytes,
            rois=rois.astype(np.uint32),
            validity=bits.astype(np.uint8),
            probability=slot.probability.reshape(count, n),
            **shaped,
            baseline=slot.baseline[rois] if question.baseline else None,
            flags=flags,
        )

    def _fail(self, session: Session, question: Question, refusal: Refusal) -> None:
        """Tell the asker why there is no answer; a standing question has none to tell."""
        self._counters["questions_failed"] += 1
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
        self._sockets.publish(wire.encode(body, session=session, epoch=self.epoch, sent_ns=time.perf_counter_ns()))

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
        )

    def _end(self) -> None:
        """Disarm, answer every pending onset question from the frames that are there, flush."""
        self._state = "stopping"
        self._dispatcher.closed = (ErrorCode.STOPPING, "the engine stops; ask the next one")
        for session in self._dispatcher.sessions.values():
            session.trigger.disarm()
            for question in session.docket.due(now_ns=1 << 62, expected_ns=0):
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
    engine = Engine(EngineSettings.of(settings), load_bundle(settings.bundle))
    engine.run(
        stop,
        on_ready=lambda: announce(
            endpoints=engine.endpoints,
            epoch=engine.epoch,
            bundle=engine._bundle.hash,
            provider=engine._inference.provider,
        ),
    )


if __name__ == "__main__":
    run_process("engine", serve)
