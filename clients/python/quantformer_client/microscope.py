"""The microscope's side: open a session, send frames and events, hear what was refused."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from types import TracebackType
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike

from quantformer_client import wire
from quantformer_client.clock import ClockOffset
from quantformer_client.connection import TIMEOUT_S, Connection, refusal
from quantformer_client.errors import ClientError, ErrorCode, ServiceError, SessionLostError
from quantformer_client.herald import Herald
from quantformer_client.transport import ZMQ_PORT

#: Refusals and answers that are kept for a program that does not read them; the oldest go first.
KEPT = 4096


class Microscope:
    """A session of the engine, fed from one thread.

    `frame` never waits. What the engine refused arrives later: in `errors` (the newest) and `refused` (counts by code). When
    the engine restarted, the next call raises `SessionLostError`; `reopen` makes a new session with the same declaration.
    Answers to onset questions arrive in `answers`. Over ZeroMQ a `Herald` tells the engine when the next frame comes.
    """

    def __init__(
        self,
        *,
        subject: str,
        rois: Sequence[str],
        rate_hz: float,
        signal: wire.SignalDeclaration | None = None,
        unknown: Literal["refuse", "mark"] = "refuse",
        match_confidence: Sequence[float] | None = None,
        host: str = "127.0.0.1",
        port: int | None = None,
        over: Literal["zmq", "tcp"] = "zmq",
        token: str = "",
    ) -> None:
        self._open = wire.Open(
            subject=subject,
            rois=list(rois),
            rate_hz=rate_hz,
            signal=signal or wire.SignalDeclaration(),
            unknown=unknown,
            match_confidence=None if match_confidence is None else list(match_confidence),
        )
        self.errors: deque[ServiceError] = deque(maxlen=KEPT)
        self.answers: deque[wire.Answer] = deque(maxlen=KEPT)
        self.refused: Counter[str] = Counter()
        self._lost = ""
        self.connection = Connection(
            host=host, port=port, over=over, token=token, client="microscope", unasked=self._hear
        )
        self._herald: Herald | None = None
        try:
            self.reopen()
        except BaseException:
            self.connection.close()
            raise
        # An engine of wire version 2.0 would refuse what it says.
        if over == "zmq" and self.connection.welcome.minor >= 1:
            self._herald = Herald(host=host, port=port or ZMQ_PORT)

    def reopen(self) -> None:
        """Open a session (again); sets `session`, `known` (one bool a ROI) and `roi_hash`.

        Raises:
            ServiceError: the engine refuses the declaration.
        """
        self.connection.greet()
        header, opened = self.connection.ask_header(self._open, expect=wire.Opened)
        self._lost = ""
        self.session = header.session
        self.roi_hash = header.roi_hash
        self.known = tuple(opened.known)

    def frame(
        self,
        *,
        number: int,
        device_s: float,
        fluorescence: ArrayLike,
        neuropil: ArrayLike | None = None,
        motion: tuple[float, float] | None = None,
    ) -> None:
        """Send one frame: ``fluorescence`` and ``neuropil`` float32 ``(rois,)``, NaN where a ROI has no value;
        ``device_s`` seconds on the microscope's clock; ``motion`` pixels.

        Raises:
            SessionLostError: the engine does not know the session any more.
            UnreachableError: there is no connection, or it does not keep up; the frame was not sent.
        """
        self._known()
        frame = wire.Frame(
            number=number,
            device_s=device_s,
            fluorescence=np.asarray(fluorescence, dtype=np.float32),
            neuropil=None if neuropil is None else np.asarray(neuropil, dtype=np.float32),
            motion=motion,
            roi_hash=self.roi_hash,
        )
        self.connection.send(frame, session=self.session)
        if self._herald is not None:
            self._herald.sent(frame)
        # Heard when the frame is on its way: it does not wait for that.
        self._check()

    def onset(
        self,
        stimulus: str | wire.Stimulus | Sequence[wire.Stimulus],
        *,
        onset_s: float | None = None,
        onset_frame: int | None = None,
        within_s: float | None = None,
        duration_s: float | None = None,
        source: Literal["photodiode", "daq", "software"] = "software",
        uncertainty_s: float = 0.0,
        display_latency_s: float = 0.0,
        detail: Literal["forecast", "probability"] = "forecast",
        baseline: bool = False,
    ) -> int:
        """Announce an onset, by time (s on the microscope's clock) or frame, or now with neither; the question's id.

        ``stimulus`` is an id, or a description, or several alternatives that are answered together. ``source`` says where the
        time came from and ``uncertainty_s`` how far it may be off; ``display_latency_s`` is added to it. The answer repeats
        all three beside the time as it was told. With ``baseline`` it holds the window that was read.
        """
        self._check()
        if isinstance(stimulus, str):
            stimuli = [wire.Stimulus(stimulus_id=stimulus)]
        else:
            stimuli = [stimulus] if isinstance(stimulus, wire.Stimulus) else list(stimulus)
        onset = wire.Onset(
            stimuli=stimuli,
            onset_s=onset_s,
            onset_frame=onset_frame,
            within_s=within_s,
            duration_s=duration_s,
            source=source,
            uncertainty_s=uncertainty_s,
            display_latency_s=display_latency_s,
            detail=detail,
            baseline=baseline,
        )
        return self._ask(onset).question

    def stimulation(
        self,
        *,
        rois: Sequence[str] | None = None,
        first_frame: int | None = None,
        last_frame: int | None = None,
        start_s: float | None = None,
        duration_s: float | None = None,
        blanked: bool = True,
    ) -> None:
        """Tell that light was delivered to ``rois`` (None: all), in frames or in seconds on the microscope's clock."""
        self._check()
        self._ask(
            wire.Stimulation(
                rois=None if rois is None else list(rois),
                first_frame=first_frame,
                last_frame=last_frame,
                start_s=start_s,
                duration_s=duration_s,
                blanked=blanked,
            )
        )

    def acquisition(self, event: Literal["start", "abort", "stop"]) -> None:
        """Tell that acquisition started, was aborted or stopped. A start empties the window."""
        self._check()
        self._ask(wire.Acquisition(event=event))

    def sync(self, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until the engine has taken everything sent so far, and hear what it refused."""
        self.connection.ask(wire.Ping(), expect=wire.Pong, timeout_s=timeout_s)
        self._check()

    def clock(self, *, pings: int = 8) -> ClockOffset:
        """The engine's clock against this process's: offset, uncertainty, and drift since it was measured before."""
        return self.connection.clock(pings=pings)

    def wait(self, timeout_s: float) -> wire.Answer | None:
        """The oldest unread answer to an onset question; None if none comes within the time."""
        end = time.perf_counter() + timeout_s
        while not self.answers and (left := end - time.perf_counter()) > 0:
            self.connection.receive(left)
        self._check()
        return self.answers.popleft() if self.answers else None

    def close(self) -> dict[str, int]:
        """Close the session and the connection; what happened in the session, by name (empty if it is gone already)."""
        try:
            if self._lost:
                return {}
            self._lost = "it was closed"
            return self.connection.ask(wire.Close(), expect=wire.Closed, session=self.session).counters
        finally:
            if self._herald is not None:
                self._herald.close()
            self.connection.close()

    def _ask(self, body: wire.Body) -> wire.Accepted:
        return self.connection.ask(body, expect=wire.Accepted, session=self.session)

    def _check(self) -> None:
        if not self._lost:
            self.connection.drain()
        self._known()

    def _known(self) -> None:
        if self._lost:
            raise SessionLostError(ErrorCode.SESSION_LOST, self._lost)

    def _hear(self, message: wire.Message) -> None:
        body = message.body
        if isinstance(body, wire.Answer):
            self.answers.append(body)
        elif isinstance(body, wire.Error):
            self.refused[body.code] += 1
            self.errors.append(refusal(body, request=message.header.request))
            # A new engine that wants a token asks for it before it says that it does not know the session.
            if body.code in (ErrorCode.SESSION_LOST, ErrorCode.UNAUTHORIZED):
                self._lost = body.message
        elif isinstance(body, wire.SessionLost) and message.header.session == self.session:
            self._lost = body.reason

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        try:
            self.close()
        except ClientError:
            return  # the error under way says more than the one that it caused here
