"""Ways to carry messages to the engine and back: ZeroMQ DEALER, TCP, and a ZeroMQ subscription.

All are used from one thread, never block while sending, and refuse to queue for an engine that is not there: a frame or a
trigger command that is delivered after a restart would be worse than one that is not delivered.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Iterable
from typing import Protocol

import zmq

from quantformer_client.errors import UnreachableError
from quantformer_client.wire import MAX_MESSAGE, MessageStream, MessageType, subscription, with_length

#: The engine's ROUTER, unless its settings say otherwise.
ZMQ_PORT = 7411
#: Messages that wait in this process for a slow connection before sending is refused.
SEND_QUEUE = 1000
_CHUNK = 1 << 16


class Transport(Protocol):
    """Carries whole messages both ways, in order, from one thread."""

    def send(self, message: bytes) -> None:
        """Send without blocking.

        Raises:
            UnreachableError: there is no connection, or it does not keep up.
        """

    def receive(self, timeout_s: float) -> bytes | None:
        """The next message, or None if there is none within the time (0: if there is none now).

        Raises:
            UnreachableError: the connection ended.
        """

    def close(self) -> None:
        """Let go of the connection."""


class ZmqTransport:
    """A ZeroMQ DEALER. Connects anew by itself; what was sent to an engine that died is not sent again."""

    def __init__(self, *, host: str = "127.0.0.1", port: int = ZMQ_PORT, connect_s: float = 5.0) -> None:
        self._address = zmq_address(host, port)
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.set(zmq.IPV6, ":" in host)
        self._socket.set(zmq.LINGER, 500)
        self._socket.set(zmq.IMMEDIATE, 1)
        self._socket.set(zmq.SNDHWM, SEND_QUEUE)
        self._socket.set(zmq.RCVHWM, SEND_QUEUE)
        self._socket.set(zmq.MAXMSGSIZE, MAX_MESSAGE)
        self._socket.connect(self._address)
        # With IMMEDIATE the socket can be written to only once there is a connection.
        if not self._socket.poll(round(connect_s * 1000), zmq.POLLOUT):
            self._socket.close(linger=0)
            raise UnreachableError(f"nothing answers at {self._address} within {connect_s:g} s; is 'quantformer serve' running?")

    def send(self, message: bytes) -> None:
        """See `Transport.send`."""
        try:
            self._socket.send(message, zmq.NOBLOCK)
        except zmq.Again:
            raise UnreachableError(
                f"the engine at {self._address} is not connected or does not keep up; the message was not sent"
            ) from None

    def receive(self, timeout_s: float) -> bytes | None:
        """See `Transport.receive`."""
        # Read first: to ask whether there is a message, though quicker, can lose those that came right before a connection ended.
        try:
            return self._socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            if timeout_s <= 0 or not self._socket.poll(max(1, round(timeout_s * 1000))):
                return None
            return self._socket.recv(zmq.NOBLOCK)

    def close(self) -> None:
        """See `Transport.close`."""
        self._socket.close()


class TcpTransport:
    """The same messages over plain TCP, each behind its length. It does not connect anew: make another one."""

    def __init__(self, *, host: str = "127.0.0.1", port: int = 7413, connect_s: float = 5.0) -> None:
        self._address = f"{host}:{port}"
        try:
            self._socket = socket.create_connection((host, port), timeout=connect_s)
        except OSError as error:
            raise UnreachableError(
                f"nothing answers at {self._address} ({error}); is 'quantformer serve' running?"
            ) from None
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream = MessageStream()
        self._ready: deque[bytes] = deque()

    def send(self, message: bytes) -> None:
        """See `Transport.send`. The kernel's buffer is the queue: when it stays full for a second the engine is stuck."""
        try:
            self._socket.settimeout(1.0)
            self._socket.sendall(with_length(message))
        except OSError as error:
            # Part of a message may be out: the stream cannot be used any more.
            self._socket.close()
            raise UnreachableError(f"the connection to {self._address} ended ({error}); connect again") from None

    def receive(self, timeout_s: float) -> bytes | None:
        """See `Transport.receive`."""
        end = time.perf_counter() + timeout_s
        while not self._ready:
            left = end - time.perf_counter()
            try:
                self._socket.settimeout(max(0.0, left))
                data = self._socket.recv(_CHUNK)
            except (BlockingIOError, TimeoutError):
                return None
            except OSError as error:
                raise UnreachableError(f"the connection to {self._address} ended ({error}); connect again") from None
            if not data:
                raise UnreachableError(f"the engine at {self._address} closed the connection; connect again")
            self._ready.extend(self._stream.feed(data))
        return self._ready.popleft()

    def close(self) -> None:
        """See `Transport.close`."""
        self._socket.close()


class Subscriber:
    """A ZeroMQ SUB on the engine's PUB port. A reader that is too slow loses the newest messages, never the engine's time."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 7412,
        types: Iterable[MessageType] = (MessageType.ANSWER, MessageType.DECISION),
        session: int | None = None,
    ) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.RCVHWM, SEND_QUEUE)
        self._socket.set(zmq.MAXMSGSIZE, MAX_MESSAGE)
        for message_type in types:
            self._socket.subscribe(subscription(message_type, session=session))
        # Whatever is watched, the end of the session or of the engine is heard of.
        self._socket.subscribe(subscription(MessageType.SESSION_LOST, session=session))
        self._socket.subscribe(subscription(MessageType.BYE))
        self._socket.set(zmq.IPV6, ":" in host)
        self._socket.connect(zmq_address(host, port))

    def receive(self, timeout_s: float) -> bytes | None:
        """The next message, or None if there is none within the time."""
        # Waiting in the reading itself: a message is in hand sooner than by polling first.
        self._socket.set(zmq.RCVTIMEO, max(0, round(timeout_s * 1000)))
        try:
            return self._socket.recv()
        except zmq.Again:
            return None

    def close(self) -> None:
        """Let go of the connection."""
        self._socket.close()


def zmq_address(host: str, port: int) -> str:
    """Where ZeroMQ connects to."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
