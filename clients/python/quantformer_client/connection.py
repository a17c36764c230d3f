"""One conversation with the engine: the greeting, requests with their replies, and what comes unasked."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self, TypeVar

from quantformer_client import wire
from quantformer_client.clock import Clock, ClockOffset, Ping
from quantformer_client.errors import AnswerTimeoutError, ErrorCode, ServiceError, SessionLostError
from quantformer_client.transport import ZMQ_PORT, TcpTransport, Transport, ZmqTransport

Reply = TypeVar("Reply")
#: Seconds that a request waits for its reply.
TIMEOUT_S = 5.0


class Connection:
    """Used from one thread. ``unasked`` is called with every message that is not the reply to a request under way: errors
    about frames, answers to onset questions, the engine's BYE.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        over: Literal["zmq", "tcp"] = "zmq",
        token: str = "",
        client: str = "python",
        unasked: Callable[[wire.Message], None] | None = None,
    ) -> None:
        self._transport: Transport
        if over == "zmq":
            self._transport = ZmqTransport(host=host, port=port or ZMQ_PORT)
        else:
            self._transport = TcpTransport(host=host, port=port or 7413)
        self._hello = wire.Hello(oldest=wire.MAJOR, newest=wire.MAJOR, client=client, token=token)
        self._unasked = unasked or (lambda _message: None)
        self._request = 0
        self._arrived_ns = 0
        self._clock = Clock()
        self.epoch = 0
        try:
            self.welcome = self.greet()
        except BaseException:
            self._transport.close()
            raise

    def greet(self) -> wire.Welcome:
        """Introduce this client (again, after the engine restarted); sets `welcome` and `epoch`."""
        message = self.ask(self._hello, expect=wire.Welcome)
        self.welcome = message
        return message

    def send(self, body: wire.Body | wire.Frame, *, session: int = 0) -> int:
        """Send without waiting; returns the request's id.

        Raises:
            UnreachableError: there is no connection, or it does not keep up.
        """
        self._request += 1
        message = wire.encode(body, session=session, request=self._request, sent_ns=time.perf_counter_ns())
        self._transport.send(message)
        return self._request

    def ask(self, body: wire.Body, *, expect: type[Reply], session: int = 0, timeout_s: float = TIMEOUT_S) -> Reply:
        """Send a request and wait for its reply, a body of class ``expect``.

        Raises:
            ServiceError: it was refused; SessionLostError where the engine does not know the session.
            AnswerTimeoutError: no reply in time.
            UnreachableError: there is no connection.
        """
        request = self.send(body, session=session)
        return self._await(request, expect=expect, asked=type(body).__name__, timeout_s=timeout_s)

    def ask_header(
        self, body: wire.Body, *, expect: type[Reply], session: int = 0, timeout_s: float = TIMEOUT_S
    ) -> tuple[wire.Header, Reply]:
        """`ask`, with the reply's header."""
        reply = self.ask(body, expect=expect, session=session, timeout_s=timeout_s)
        return self._last, reply

    def clock(self, *, pings: int = 8, timeout_s: float = TIMEOUT_S) -> ClockOffset:
        """Measure the engine's clock against this process's; called again later, it also tells the drift.

        Raises:
            AnswerTimeoutError, UnreachableError: see `ask`.
        """
        found = []
        for _ in range(pings):
            request = self.send(wire.Ping())
            pong = self._await(request, expect=wire.Pong, asked="Ping", timeout_s=timeout_s)
            found.append(
                Ping(
                    sent_ns=self._last.sent_ns,
                    received_ns=pong.received_ns,
                    replied_ns=pong.replied_ns,
                    returned_ns=self._arrived_ns,
                )
            )
        return self._clock.measured(found, epoch=self.epoch)

    def receive(self, timeout_s: float = 0.0) -> bool:
        """Handle one message that came unasked, if one comes within the time."""
        data = self._transport.receive(timeout_s)
        if data is None:
            return False
        self._unasked(wire.decode(data))
        return True

    def drain(self) -> None:
        """Handle everything that has arrived."""
        while self.receive():
            pass

    def _await(self, request: int, *, expect: type[Reply], asked: str, timeout_s: float) -> Reply:
        end = time.perf_counter() + timeout_s
        while (left := end - time.perf_counter()) > 0:
            data = self._transport.receive(left)
            self._arrived_ns = time.perf_counter_ns()
            if data is None:
                break
            message = wire.decode(data)
            if message.header.request != request or not isinstance(message.body, expect | wire.Error):
                self._unasked(message)
                continue
            self._last = message.header
            self.epoch = message.header.epoch or self.epoch
            if isinstance(message.body, wire.Error) and expect is not wire.Error:
                raise refusal(message.body, request=request)
            return message.body  # type: ignore[return-value]  # expect, or an Error where that was expected
        raise AnswerTimeoutError(
            f"no reply to {asked} within {timeout_s:g} s; is the engine alive? ('quantformer status')"
        )

    def close(self) -> None:
        """Let go of the connection; sessions stay open."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def refusal(error: wire.Error, *, request: int = 0) -> ServiceError:
    """The exception for an ERROR message."""
    kind = SessionLostError if error.code == ErrorCode.SESSION_LOST else ServiceError
    return kind(error.code, error.message, request=request)
