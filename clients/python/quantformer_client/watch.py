"""A subscription to answers and decisions, whose reader is awake when the next answer comes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from quantformer_client import wire
from quantformer_client.errors import ErrorCode, SessionLostError
from quantformer_client.transport import Subscriber
from quantformer_client.wire import MessageType

Event = wire.Answer | wire.Decision


class Watch:
    """A subscription to answers and decisions, of one session or (None) of all.

    Between two frames a core forgets how an answer is read: doing so takes ten times as long as right after the last one. So
    when the engine says that an answer comes soon, the last one is read again, for nothing.
    """

    def __init__(self, *, host: str = "127.0.0.1", port: int = 7412, session: int | None = None) -> None:
        self._session = session
        types = (MessageType.ANSWER, MessageType.DECISION, MessageType.SOON)
        self._subscriber = Subscriber(host=host, port=port, types=types, session=session)
        self._last = b""

    def next(self, timeout_s: float) -> Event | None:
        """The next answer or decision; None if there is none within the time.

        Raises:
            SessionLostError: the session ended without being closed, or the engine says that it stops.
        """
        end_s = time.perf_counter() + timeout_s
        while (data := self._subscriber.receive(max(0.0, end_s - time.perf_counter()))) is not None:
            body = wire.decode(data).body
            if isinstance(body, wire.Answer):
                self._last = data
                return body
            if isinstance(body, wire.Decision):
                return body
            if isinstance(body, wire.Soon):
                if self._last:
                    wire.decode(self._last)
            elif isinstance(body, wire.SessionLost | wire.Bye) and self._session is not None:
                raise SessionLostError(ErrorCode.SESSION_LOST, f"session {self._session} ended: {body.reason}")
        return None

    def events(self, *, idle_s: float) -> Iterator[Event]:
        """Every answer and decision, until none comes for ``idle_s`` seconds."""
        while (event := self.next(idle_s)) is not None:
            yield event

    def close(self) -> None:
        """End the subscription."""
        self._subscriber.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
