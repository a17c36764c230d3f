"""A subscription to answers and decisions, whose reader is awake when the next answer comes."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from types import TracebackType
from typing import Self

from quantformer_client import wire
from quantformer_client.errors import ErrorCode, SessionLostError
from quantformer_client.transport import Subscriber

Event = wire.Answer | wire.Decision

#: So long before the next answer is expected the last one is read again for nothing, and every so often until it is so late.
_BEFORE_S, _APART_S, _AFTER_S = 0.0025, 0.001, 0.003
#: By so many answers to standing questions the next one is expected; those that come faster than this keep the way walked.
_REMEMBERED, _SHORTEST_S = 8, 0.008


class Watch:
    """A subscription to answers and decisions, of one session or (None) of all.

    Between two frames a core forgets how an answer is read: doing so takes ten times as long as right after the last one. While
    `next` waits and standing questions are answered frame by frame, it reads the last answer again just before the next.
    """

    def __init__(self, *, host: str = "127.0.0.1", port: int = 7412, session: int | None = None) -> None:
        self._session = session
        self._subscriber = Subscriber(host=host, port=port, session=session)
        self._last = b""
        self._came_s: deque[float] = deque(maxlen=_REMEMBERED)

    def next(self, timeout_s: float) -> Event | None:
        """The next answer or decision; None if there is none within the time.

        Raises:
            SessionLostError: the session ended without being closed, or the engine says that it stops.
        """
        end_s = time.perf_counter() + timeout_s
        while (data := self._receive(end_s)) is not None:
            body = wire.decode(data).body
            if isinstance(body, wire.Answer):
                if body.asked == wire.Asked.STANDING:
                    self._last = data
                    self._came_s.append(time.perf_counter())
                return body
            if isinstance(body, wire.Decision):
                return body
            if isinstance(body, wire.SessionLost | wire.Bye) and self._session is not None:
                raise SessionLostError(ErrorCode.SESSION_LOST, f"session {self._session} ended: {body.reason}")
        return None

    def events(self, *, idle_s: float) -> Iterator[Event]:
        """Every answer and decision, until none comes for ``idle_s`` seconds."""
        while (event := self.next(idle_s)) is not None:
            yield event

    def close(self) -> None:
        """End the subscription."""
        self._subscriber.close()

    def _receive(self, end_s: float) -> bytes | None:
        expected_s = self._expected_s()
        moment_s = expected_s - _BEFORE_S
        while moment_s < end_s and time.perf_counter() < expected_s + _AFTER_S:
            data = self._subscriber.receive(max(0.0, moment_s - time.perf_counter()))
            if data is not None:
                return data
            wire.decode(self._last)
            moment_s = time.perf_counter() + _APART_S
        return self._subscriber.receive(max(0.0, end_s - time.perf_counter()))

    def _expected_s(self) -> float:
        """When the next answer to a standing question is expected: a period after the last; minus infinity where it is not."""
        if len(self._came_s) < _REMEMBERED:
            return -math.inf
        period_s = statistics.median(after - before for before, after in pairwise(self._came_s))
        return self._came_s[-1] + period_s if period_s >= _SHORTEST_S else -math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
