"""What each message of a client does to the engine's sessions, and what is replied."""

from __future__ import annotations

import hmac
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quantformer.bundle import Bundle
from quantformer_client import wire
from quantformer_client.wire import ErrorCode
from quantformer_service.declaration import declare
from quantformer_service.engine_settings import EngineSettings
from quantformer_service.refusal import Refusal
from quantformer_service.session import Session
from quantformer_service.stream import Peer
from quantformer_service.trigger import Trigger


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What goes back to the sender, an encoded ANSWER as bytes; ``session`` and ``roi_hash`` are header fields."""

    body: wire.Body | bytearray
    session: int
    roi_hash: int = 0
    sent_ns: int | None = None


def new_id() -> int:
    """A random id that every reader holds exactly; never 0."""
    return 1 + secrets.randbelow(wire.ID_LIMIT - 1)


class Dispatcher:
    """The sessions, and one method a message type. Each returns its reply or raises `Refusal`.

    ``publish`` sends a body of a session to all subscribers; ``lose`` is told of questions that lost their window;
    ``trouble`` says why nothing may be armed (empty: it may); ``number`` makes the numbers of sessions and leases.
    """

    def __init__(
        self,
        settings: EngineSettings,
        bundle: Bundle,
        *,
        publish: Callable[..., None],
        lose: Callable[[Session, list[Any]], None],
        status: Callable[[], wire.Status],
        welcome: Callable[[], wire.Welcome],
        trouble: Callable[[], str] = str,
        number: Callable[[], int] = new_id,
        prepare: Callable[..., None] = lambda *_, **__: None,
    ) -> None:
        self._settings, self._bundle = settings, bundle
        self._publish, self._lose, self._status, self._welcome = publish, lose, status, welcome
        self.sessions: dict[int, Session] = {}
        self.counters: Counter[str] = Counter()
        #: What happened in sessions that are gone, as far as their own counters told.
        self.ended: Counter[str] = Counter()
        self._trouble, self._number, self._prepare = trouble, number, prepare
        #: How many were made; the next one has the number after it.
        self.questions = 0
        #: Set by the engine: None while requests are taken, else the code and text that refuse them.
        self.closed: tuple[ErrorCode, str] | None = (ErrorCode.NOT_READY, "the engine is warming up; ask again soon")
        self._handlers: dict[wire.MessageType, Callable[..., Reply | None]] = {
            wire.MessageType.OPEN: self._open,
            wire.MessageType.CLOSE: self._close,
            wire.MessageType.DESCRIBE: self._describe,
            wire.MessageType.ACQUISITION: self._acquisition,
            wire.MessageType.STIMULATION: self._stimulation,
            wire.MessageType.ONSET: self._onset,
            wire.MessageType.STANDING: self._standing,
            wire.MessageType.CLEAR_STANDING: self._clear_standing,
            wire.MessageType.POLL: self._poll,
            wire.MessageType.SET_RULE: self._set_rule,
            wire.MessageType.REMOVE_RULE: self._remove_rule,
            wire.MessageType.LIST_RULES: self._list_rules,
            wire.MessageType.ARM: self._arm,
            wire.MessageType.HEARTBEAT: self._heartbeat,
            wire.MessageType.DISARM: self._disarm,
            wire.MessageType.STOP: self._stop,
            wire.MessageType.GET_TRIGGER: self._get_trigger,
        }

    def handle(self, message: wire.Message, *, peer: Peer, now_ns: int) -> Reply | None:
        """Do what a message asks; None where nothing is to be said (FRAME, SOON, BYE).

        Raises:
            Refusal: it cannot be done; nothing has changed.
        """
        kind, body, head = message.header.type, message.body, message.header
        if isinstance(body, wire.Frame) and (peer.authorized or not self._settings.token):
            if self.closed is not None:
                raise Refusal(*self.closed)
            session = self._session(head)
            session.used_ns = now_ns
            self._frame(session, body, now_ns=now_ns)
            return None
        if isinstance(body, wire.Ping):
            return Reply(
                body=wire.Pong(received_ns=now_ns, replied_ns=time.perf_counter_ns()),
                session=head.session,
                sent_ns=head.sent_ns,
            )
        if isinstance(body, wire.Soon):
            self.counters["frames_foretold"] += 1
            return None
        if isinstance(body, wire.Hello):
            return self._hello(body, peer)
        if self._settings.token and not peer.authorized:
            raise Refusal(ErrorCode.UNAUTHORIZED, "this engine wants a token; begin with HELLO and the token")
        if isinstance(body, wire.Bye):
            return None
        if isinstance(body, wire.GetStatus):
            return Reply(body=self._status(), session=0)
        if kind not in self._handlers:
            raise Refusal(ErrorCode.UNEXPECTED, f"{kind.name} is sent by the engine, not to it")
        if self.closed is not None:
            raise Refusal(*self.closed)
        if kind == wire.MessageType.OPEN or (kind == wire.MessageType.STOP and head.session == 0):
            return self._handlers[kind](message, peer=peer, now_ns=now_ns)
        session = self._session(head)
        session.used_ns = now_ns
        return self._handlers[kind](message, session=session, peer=peer, now_ns=now_ns)

    def _session(self, head: wire.Header) -> Session:
        if head.session == 0:
            raise Refusal(
                ErrorCode.NO_SESSION, f"{head.type.name} needs a session; OPEN one and put its id in the header"
            )
        session = self.sessions.get(head.session)
        if session is None:
            raise Refusal(ErrorCode.SESSION_LOST, f"session {head.session} is not known to this engine; OPEN a new one")
        return session

    def _frame(self, session: Session, frame: wire.Frame, *, now_ns: int) -> None:
        try:
            session.frame(frame, received_ns=now_ns)
        except Refusal as refusal:
            session.counters[f"refused_{refusal.code}"] += 1
            raise
        self.counters["frames"] += 1

    def _hello(self, hello: wire.Hello, peer: Peer) -> Reply:
        if not hello.oldest <= wire.MAJOR <= hello.newest:
            raise Refusal(
                ErrorCode.UNSUPPORTED_VERSION,
                f"the client speaks wire versions {hello.oldest} to {hello.newest}, this engine {wire.MAJOR}; "
                "install the matching quantformer",
            )
        if self._settings.token and not hmac.compare_digest(hello.token.encode(), self._settings.token.encode()):
            raise Refusal(ErrorCode.UNAUTHORIZED, "HELLO carries no token, or a wrong one; give the engine's own")
        peer.authorized = True
        return Reply(body=self._welcome(), session=0)

    # --- sessions -----------------------------------------------------------------------------------------------------

    def _open(self, message: wire.Message, *, peer: Peer, now_ns: int) -> Reply:
        assert isinstance(message.body, wire.Open)
        declared = declare(message.body, self._bundle)
        if len(self.sessions) >= self._settings.sessions:
            self._make_way(now_ns)
        number = self._number()
        session = Session(
            number,
            declared=declared,
            bundle=self._bundle,
            limits=self._settings.limits,
            trigger=Trigger(tuple(message.body.rois), lease=self._number),
        )
        session.used_ns = now_ns
        self.sessions[number] = session
        # What it will most likely ask: about one stimulus, all its neurons.
        for forecast in (True, False):
            self._prepare(declared.neurons.vectors, stimuli=1, rows=len(message.body.rois), forecast=forecast)
        self.counters["sessions_opened"] += 1
        opened = wire.Opened(
            known=declared.neurons.known.tolist(),
            buffer_frames=session.window.capacity,
            interpolated=declared.interpolated,
        )
        return Reply(body=opened, session=number, roi_hash=declared.roi_hash)

    def _make_way(self, now_ns: int) -> None:
        idle = min(self.sessions.values(), key=lambda session: session.used_ns)
        if now_ns - idle.used_ns < self._settings.session_idle_s * 1e9:
            raise Refusal(
                ErrorCode.TOO_MANY_SESSIONS,
                f"{len(self.sessions)} sessions are open, the most there may be, and all are in use; CLOSE one",
            )
        self.end(idle)
        self._publish(wire.SessionLost(reason="idle, and another session was opened"), session=idle.number)
        self.counters["sessions_evicted"] += 1

    def end(self, session: Session) -> None:
        """End a session; its pending questions are lost."""
        session.trigger.disarm()
        session.docket.pause(True)
        del self.sessions[session.number]
        self.ended.update(session.counters)
        self._lose(session, session.docket.take_pending())

    def _close(self, message: wire.Message, *, session: Session, **_: Any) -> Reply:
        self.end(session)
        return Reply(body=wire.Closed(counters=dict(session.counters)), session=session.number)

    def _describe(self, message: wire.Message, *, session: Session, **_: Any) -> Reply:
        return Reply(body=session.describe(), session=session.number, roi_hash=session.declared.roi_hash)

    def _acquisition(self, message: wire.Message, *, session: Session, **_: Any) -> Reply:
        assert isinstance(message.body, wire.Acquisition)
        self._lose(session, session.acquisition(message.body.event))
        return Reply(body=wire.Accepted(), session=session.number)

    def _stimulation(self, message: wire.Message, *, session: Session, **_: Any) -> Reply:
        assert isinstance(message.body, wire.Stimulation)
        session.stimulation(message.body)
        return Reply(body=wire.Accepted(), session=session.number)

    # --- questions ----------------------------------------------------------------------------------------------------

    def _onset(self, message: wire.Message, *, session: Session, peer: Peer, now_ns: int) -> Reply:
        assert isinstance(message.body, wire.Onset)
        number = self.questions + 1
        session.docket.ask(message.body, number=number, peer=peer, request=message.header.request, now_ns=now_ns)
        self.questions = number
        return Reply(body=wire.Accepted(question=number), session=session.number)

    def _standing(self, message: wire.Message, *, session: Session, **_: Any) -> Reply:
        assert isinstance(message.body, wire.Standing)
        number = self.questions + 1
        session.docket.stand(message.body, number=number)
        asked, neurons = message.body, session.declared.neurons
        rois = len(neurons.known) if asked.rois is None else len(asked.rois)
        self._prepare(
            neurons.vectors,
            stimuli=len(asked.stimuli),
            rows=rois * len(asked.stimuli),
            forecast=asked.detail == "forecast",
        )
        self.questions = number
        return Reply(body=wire.Accepted(question=number), session=session.number)

    def _clear_standing(self, message: wire.Message, *, session: Session, **_: Any) -> Reply:
        assert isinstance(message.body, wire.ClearStanding)
        session.docket.clear(message.body.question)
        return Reply(body=wire.Accepted(question=message.body.question), session=session.number)

    def _poll(self, message: wire.Message, *, session: Session, **_: Any) -> Reply:
        assert isinstance(message.body, wire.Poll)
        return Reply(body=session.docket.poll(message.body.question), session=session.number)

    # --- the trigger --------------------------------------------------------------------------------------------------

    def _set_rule(self, message: wire.Message, *, session: Session, **_: Any) -> Reply:
        assert isinstance(message.body, wire.SetRule)
        session.trigger.set_rule(message.body.rule)
        return Reply(body=wire.Accepted(), session=session.number)

    def _remove_rule(self, message: wire.Message, *, session: Session, **_: Any) -> Reply:
        assert isinstance(message.body, wire.RemoveRule)
        session.trigger.remove_rule(message.body.rule)
        return Reply(body=wire.Accepted(), session=session.number)

    def _list_rules(self, message: wire.Message, *, session: Session, **_: Any) -> Reply:
        return Reply(body=wire.Rules(rules=session.trigger.rules), session=session.number)

    def _arm(self, message: wire.Message, *, session: Session, now_ns: int, **_: Any) -> Reply:
        assert isinstance(message.body, wire.Arm)
        if trouble := self._trouble():
            raise Refusal(ErrorCode.NOT_RECORDING, f"{trouble}; ARM when STATUS shows the recording without trouble")
        session.trigger.arm(lease_s=message.body.lease_s, now_ns=now_ns)
        return self._trigger_changed(session, now_ns)

    def _heartbeat(self, message: wire.Message, *, session: Session, now_ns: int, **_: Any) -> Reply:
        assert isinstance(message.body, wire.Heartbeat)
        session.trigger.heartbeat(message.body.lease, now_ns=now_ns)
        return self._get_trigger(message, session=session, now_ns=now_ns)

    def _disarm(self, message: wire.Message, *, session: Session, now_ns: int, **_: Any) -> Reply:
        session.trigger.disarm()
        return self._trigger_changed(session, now_ns)

    def _stop(self, message: wire.Message, *, now_ns: int, session: Session | None = None, **_: Any) -> Reply:
        for one in [session] if session is not None else list(self.sessions.values()):
            one.trigger.stop()
            self.counters["emergency_stops"] += 1
            self._trigger_changed(one, now_ns)
        return Reply(body=wire.Accepted(), session=message.header.session)

    def _get_trigger(self, message: wire.Message, *, session: Session, now_ns: int, **_: Any) -> Reply:
        session.trigger.expire(now_ns=now_ns)
        return Reply(body=session.trigger.describe(now_ns=now_ns), session=session.number)

    def _trigger_changed(self, session: Session, now_ns: int) -> Reply:
        state = session.trigger.describe(now_ns=now_ns)
        # The lease's number is for the one who armed; subscribers learn the state.
        public = wire.Trigger(
            state=state.state,
            lease_left_s=state.lease_left_s,
            fired=state.fired,
            refused=state.refused,
            reason=state.reason,
        )
        self._publish(public, session=session.number)
        return Reply(body=state, session=session.number)


def error_header(data: bytes) -> tuple[int, int, int, int, float]:
    """Session, request, frame, type and device time of refused bytes, as far as their header can be read."""
    try:
        head = wire.peek(data)
    except wire.WireError:
        return 0, 0, 0, 0, math.nan
    return head.session, head.request, head.frame, int(head.type), head.device_s
