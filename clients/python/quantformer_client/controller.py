"""An optogenetics controller's side: poll or watch predictions, set rules, hold the trigger's lease."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from quantformer_client import wire
from quantformer_client.clock import ClockOffset
from quantformer_client.connection import TIMEOUT_S, Connection, refusal
from quantformer_client.errors import AnswerTimeoutError, ErrorCode, ServiceError
from quantformer_client.watch import Watch


@dataclass(frozen=True, kw_only=True, eq=False)
class Best:
    """Stimuli ranked by what an ensemble is expected to answer, the best first, and the ``answer`` that says so.

    Choose by it only where `trusted` holds and the ranking's ``rois``, those known and valid, are enough of the ensemble.
    """

    answer: wire.Answer
    ranking: tuple[wire.Ranked, ...]

    @property
    def trusted(self) -> bool:
        """Whether there was a usable ROI, and the answer is neither late nor degraded nor out of phase."""
        doubts = wire.Flags.LATE | wire.Flags.DEGRADED | wire.Flags.OUT_OF_PHASE
        return self.ranking[0].rois > 0 and not self.answer.flags & doubts


class Controller:
    """Commands and watches one session from one thread.

    ``session`` None takes the one session that is open. The trigger stays armed only while `heartbeat` is called more
    often than its lease lasts; there is no thread that does so for a program that hangs.
    """

    def __init__(
        self,
        *,
        session: int | None = None,
        host: str = "127.0.0.1",
        port: int | None = None,
        pub_port: int = 7412,
        over: Literal["zmq", "tcp"] = "zmq",
        token: str = "",
    ) -> None:
        self.connection = Connection(
            host=host, port=port, over=over, token=token, client="controller", unasked=self._hear
        )
        self._host, self._pub_port = host, pub_port
        self._lease = 0
        self._unread: dict[int, wire.Answer | wire.Error] = {}
        try:
            self.session = self._only() if session is None else session
            self.description = self.connection.ask(wire.Describe(), expect=wire.Description, session=self.session)
        except BaseException:
            self.connection.close()
            raise

    def _only(self) -> int:
        sessions = self.status().sessions
        if len(sessions) != 1:
            found = ", ".join(f"{one.session} ({one.subject})" for one in sessions) or "none"
            raise ServiceError(ErrorCode.NO_SESSION, f"found open sessions: {found}; expected one, or give its id")
        return sessions[0].session

    def status(self) -> wire.Status:
        """What the engine is doing."""
        return self.connection.ask(wire.GetStatus(), expect=wire.Status)

    def standing(
        self,
        stimuli: Sequence[str | wire.Stimulus],
        *,
        rois: Sequence[str] | None = None,
        detail: Literal["forecast", "probability"] = "forecast",
    ) -> int:
        """Ask after every frame what would follow if one of ``stimuli`` came now; the question's id."""
        described = [wire.Stimulus(stimulus_id=one) if isinstance(one, str) else one for one in stimuli]
        body = wire.Standing(stimuli=described, rois=None if rois is None else list(rois), detail=detail)
        return self.connection.ask(body, expect=wire.Accepted, session=self.session).question

    def best_stimulus(
        self,
        stimuli: Sequence[str | wire.Stimulus],
        *,
        rois: Sequence[str] | None = None,
        by: Literal["probability", "area"] = "probability",
        timeout_s: float = TIMEOUT_S,
    ) -> Best:
        """Which of ``stimuli`` would drive ``rois`` (None: all) most if it came now.

        The question is hypothetical: it tells of no onset and no rule fires on its answer. Ranked is by the mean probability
        of an active response, or by the mean area of the forecast response.

        Raises:
            ServiceError: it was refused, as where too few frames have been received.
            AnswerTimeoutError: no answer in time.
        """
        described = [wire.Stimulus(stimulus_id=one) if isinstance(one, str) else one for one in stimuli]
        onset = wire.Onset(
            stimuli=described,
            rois=None if rois is None else list(rois),
            detail="forecast" if by == "area" else "probability",
            hypothetical=True,
        )
        end = time.perf_counter() + timeout_s
        self._unread.clear()
        header, _ = self.connection.ask_header(onset, expect=wire.Accepted, session=self.session, timeout_s=timeout_s)
        while header.request not in self._unread:
            if not self.connection.receive(max(0.0, end - time.perf_counter())) and time.perf_counter() >= end:
                raise AnswerTimeoutError(
                    f"no answer to a hypothetical onset within {timeout_s:g} s; is the engine overloaded?"
                )
        body = self._unread.pop(header.request)
        if isinstance(body, wire.Error):
            raise refusal(body, request=header.request)
        ranked = wire.ranking(body, rate_hz=self.connection.welcome.rate_hz, by=by)
        return Best(answer=body, ranking=tuple(ranked))

    def _hear(self, message: wire.Message) -> None:
        if isinstance(message.body, wire.Answer | wire.Error):
            self._unread[message.header.request] = message.body

    def clock(self, *, pings: int = 8) -> ClockOffset:
        """The engine's clock against this process's: offset, uncertainty, and drift since it was measured before."""
        return self.connection.clock(pings=pings)

    def clear_standing(self, question: int) -> None:
        """End a standing question."""
        self._accept(wire.ClearStanding(question=question))

    def poll(self, question: int = 0) -> wire.Answer | None:
        """The latest answer, to one question or to any (0); None while there is none."""
        try:
            return self.connection.ask(wire.Poll(question=question), expect=wire.Answer, session=self.session)
        except ServiceError as error:
            if error.code == ErrorCode.NO_ANSWER_YET:
                return None
            raise

    def watch(self) -> Watch:
        """Subscribe to the session's answers and decisions."""
        return Watch(host=self._host, port=self._pub_port, session=self.session)

    def set_rule(self, rule: wire.Rule) -> None:
        """Add a rule, or replace the one of that name."""
        self._accept(wire.SetRule(rule=rule))

    def remove_rule(self, name: str) -> None:
        """Remove a rule."""
        self._accept(wire.RemoveRule(rule=name))

    def rules(self) -> list[wire.Rule]:
        """The session's rules."""
        return self.connection.ask(wire.ListRules(), expect=wire.Rules, session=self.session).rules

    def arm(self, *, lease_s: float = 2.0) -> wire.Trigger:
        """Arm the trigger for ``lease_s`` seconds from now."""
        return self._trigger(wire.Arm(lease_s=lease_s))

    def heartbeat(self) -> wire.Trigger:
        """Renew the lease that `arm` began."""
        return self._trigger(wire.Heartbeat(lease=self._lease))

    def disarm(self) -> wire.Trigger:
        """Disarm; also the way out of an emergency stop."""
        return self._trigger(wire.Disarm())

    def stop(self, reason: str = "") -> None:
        """Emergency stop: nothing fires until `disarm`, then `arm`."""
        self._accept(wire.Stop(reason=reason))

    def trigger(self) -> wire.Trigger:
        """The trigger's state, and what it did."""
        return self._trigger(wire.GetTrigger())

    def close(self) -> None:
        """Let go of the connection; the session and the lease go on without this client."""
        self.connection.close()

    def _accept(self, body: wire.Body) -> None:
        self.connection.ask(body, expect=wire.Accepted, session=self.session)

    def _trigger(self, body: wire.Body) -> wire.Trigger:
        trigger = self.connection.ask(body, expect=wire.Trigger, session=self.session)
        self._lease = trigger.lease
        return trigger

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
