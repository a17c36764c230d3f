"""The gateway's line to the engine: the public wire over ZeroMQ, in a thread of its own.

The engine is asked only as much as `engine_queue` allows, whatever the number of HTTP clients, so that a flood stops
here. Nothing is queued for an engine that is not there: a command that arrived after a restart would be a surprise.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self, TypeVar

import zmq
from zmq.utils.monitor import recv_monitor_message

from quantformer_client import wire
from quantformer_client.errors import WireError
from quantformer_service.http_errors import HttpRefusalError
from quantformer_service.settings import Settings

_log = logging.getLogger(__name__)
Reply = TypeVar("Reply")

#: What is passed on to listeners: the header and the bytes of a published message; None when the engine was lost.
Listener = Callable[[wire.Header | None, bytes], None]
_HELLO = 1
_RETRY_S = 0.2
_PUBLISHED = (
    wire.MessageType.ANSWER,
    wire.MessageType.DECISION,
    wire.MessageType.TRIGGER,
    wire.MessageType.SESSION_LOST,
    wire.MessageType.BYE,
    wire.MessageType.METRICS,
)
_METRICS = wire.subscription(wire.MessageType.METRICS)
#: METRICS that are older than this tell nothing of now, seconds: the engine puts them off for 5 at most.
_METRICS_AGE_S = 6.0
_LOST = "the engine is not there: it is starting, or restarting after a fault; ask again in a second"


class Conversation:
    """Messages to the engine under one request id, and what it says to them."""

    def __init__(self, link: EngineLink, request: int) -> None:
        self._link, self.request = link, request
        self._arrived: asyncio.Queue[bytes | None] = asyncio.Queue()

    def send(self, body: wire.Body, *, session: int = 0) -> None:
        """Send a message of this conversation."""
        self.send_bytes([wire.encode(body, session=session, request=self.request, sent_ns=time.perf_counter_ns())])

    def send_bytes(self, messages: Sequence[bytes]) -> None:
        """Send messages that bear this conversation's request id already."""
        self._link.put(self.request, messages)

    async def receive(self, timeout_s: float) -> wire.Message:
        """The next message of the engine.

        Raises:
            HttpRefusalError: none came in time, or the engine was lost.
        """
        try:
            data = await asyncio.wait_for(self._arrived.get(), timeout_s)
        except TimeoutError:
            raise HttpRefusalError(
                "engine_timeout", f"the engine did not answer within {timeout_s:g} s; see /v1/status and its log"
            ) from None
        if data is None:
            raise HttpRefusalError("engine_unavailable", _LOST)
        return wire.decode(data)

    def deliver(self, data: bytes | None) -> None:
        """Called in the loop's thread with what arrived; None: the engine was lost."""
        self._arrived.put_nowait(data)


class EngineLink:
    """Used from the event loop's thread; its own thread owns the sockets."""

    def __init__(self, settings: Settings) -> None:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
        host = f"[{host}]" if ":" in host else host
        self._router = f"tcp://{host}:{settings.zmq_port}"
        self._pub = f"tcp://{host}:{settings.pub_port}"
        self._hello = wire.encode(
            wire.Hello(oldest=wire.MAJOR, newest=wire.MAJOR, client="gateway", token=settings.token), request=_HELLO
        )
        self._limit, self._timeout_s = settings.engine_queue, settings.request_timeout_s
        self._conversations: dict[int, Conversation] = {}
        self._listeners: tuple[Listener, ...] = ()
        self._requests = itertools.count(_HELLO + 1)
        self._outgoing: SimpleQueue[tuple[int, Sequence[bytes]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine-link", daemon=True)
        self._connected = False
        #: The engine's greeting and epoch; None while it is not there.
        self.welcome: wire.Welcome | None = None
        self.epoch = 0
        self._metrics: tuple[float, wire.Metrics] | None = None
        #: What could not be passed on, by reason.
        self.counters = {"stray_messages": 0, "engine_losses": 0, "refused_busy": 0}

    # --- the event loop's side --------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._context = zmq.Context()
        self._wake: zmq.Socket[bytes] = self._context.socket(zmq.PUSH)
        self._wake.bind("inproc://wake")
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._outgoing.put(None)
        self._wake.send(b"")
        await asyncio.to_thread(self._thread.join)
        self._wake.close(linger=0)
        self._context.term()

    @contextmanager
    def converse(self) -> Iterator[Conversation]:
        """Begin a conversation; it ends with the block.

        Raises:
            HttpRefusalError: the engine is not there, or too many conversations are under way.
        """
        if self.welcome is None:
            raise HttpRefusalError("engine_unavailable", _LOST)
        if len(self._conversations) >= self._limit:
            self.counters["refused_busy"] += 1
            raise HttpRefusalError(
                "busy", f"{self._limit} requests are under way (--engine-queue); ask again in a second"
            )
        talk: Conversation = Conversation(self, next(self._requests))
        self._conversations[talk.request] = talk
        try:
            yield talk
        finally:
            del self._conversations[talk.request]

    async def ask(self, body: wire.Body, *, expect: type[Reply], session: int = 0) -> tuple[wire.Header, Reply]:
        """Ask the engine and wait for its reply, a body of class ``expect``.

        Raises:
            HttpRefusalError: refused by the engine, or see `converse` and `Conversation.receive`.
        """
        with self.converse() as talk:
            talk.send(body, session=session)
            return expected(await talk.receive(self._timeout_s), expect)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Have every published message passed on, in the loop's thread; the result ends that."""
        self._listeners = (*self._listeners, listener)

        def end() -> None:
            self._listeners = tuple(one for one in self._listeners if one is not listener)

        return end

    @property
    def metrics(self) -> wire.Metrics | None:
        """What the engine published last of its counters and times; None while it is not there, or silent."""
        found = self._metrics
        return None if found is None or time.monotonic() - found[0] > _METRICS_AGE_S else found[1]

    def put(self, request: int, messages: Sequence[bytes]) -> None:
        """Hand messages to the thread."""
        self._outgoing.put((request, messages))
        self._wake.send(b"")

    def _publish(self, header: wire.Header | None, data: bytes) -> None:
        for listener in self._listeners:
            listener(header, data)

    # --- the thread's side ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        wake: zmq.Socket[bytes] = self._context.socket(zmq.PULL)
        wake.connect("inproc://wake")
        dealer: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        dealer.set(zmq.IMMEDIATE, 1)
        monitor = dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        sub: zmq.Socket[bytes] = self._context.socket(zmq.SUB)
        for published in _PUBLISHED:
            sub.subscribe(wire.subscription(published))
        poller = zmq.Poller()
        for one in (dealer, sub):
            one.set(zmq.LINGER, 0)
            one.set(zmq.IPV6, "[" in self._router)
            one.set(zmq.MAXMSGSIZE, wire.MAX_MESSAGE)
            one.connect(self._router if one is dealer else self._pub)
        for one in (wake, dealer, monitor, sub):
            poller.register(one, zmq.POLLIN)
        greet_at = float("inf")
        try:
            while True:
                pause = greet_at - time.monotonic()
                ready = dict(poller.poll(None if pause == float("inf") else max(0, round(pause * 1000))))
                if monitor in ready and self._connection_changed(monitor):
                    greet_at = time.monotonic()
                if greet_at <= time.monotonic() and self._connected:
                    greet_at = float("inf") if _try_send(dealer, self._hello) else time.monotonic() + _RETRY_S
                if dealer in ready and self._read_replies(dealer):
                    greet_at = time.monotonic() + _RETRY_S
                if sub in ready:
                    self._read_published(sub)
                if wake in ready:
                    wake.recv()
                    if not self._write(dealer):
                        return
        finally:
            dealer.disable_monitor()
            for one in (wake, dealer, monitor, sub):
                one.close(linger=0)

    def _connection_changed(self, monitor: zmq.Socket[bytes]) -> bool:
        """Whether the engine is there (again) and must be greeted."""
        event = recv_monitor_message(monitor)["event"]
        self._connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
        if not self._connected:
            self.counters["engine_losses"] += self.welcome is not None
            self.welcome = self._metrics = None
            for talk in tuple(self._conversations.values()):
                self._loop.call_soon_threadsafe(talk.deliver, None)
            self._loop.call_soon_threadsafe(self._publish, None, b"")
        return self._connected

    def _read_replies(self, dealer: zmq.Socket[bytes]) -> bool:
        """Pass on what the engine replied; whether it wants to be greeted again."""
        again = False
        while (data := _try_receive(dealer)) is not None:
            try:
                header = wire.peek(data)
                if header.request == _HELLO:
                    again = not self._greeted(wire.decode(data, header=header))
                    continue
            except WireError as error:
                _log.error("the engine sent bytes that are no message: %s", error)
                continue
            talk = self._conversations.get(header.request)
            if talk is None:
                self.counters["stray_messages"] += 1
            else:
                self._loop.call_soon_threadsafe(talk.deliver, data)
        return again

    def _greeted(self, message: wire.Message) -> bool:
        if isinstance(message.body, wire.Welcome):
            self.epoch = message.header.epoch
            self.welcome = message.body
            return True
        if isinstance(message.body, wire.Error) and message.body.code != "not_ready":
            _log.error("the engine refuses the gateway: %s", message.body.message)
        return False

    def _read_published(self, sub: zmq.Socket[bytes]) -> None:
        while (data := _try_receive(sub)) is not None:
            metrics = data.startswith(_METRICS)
            if not metrics and not self._listeners:
                continue
            try:
                header = wire.peek(data)
                if metrics:
                    body = wire.decode(data, header=header).body
                    self._metrics = (time.monotonic(), body) if isinstance(body, wire.Metrics) else None
                    continue
            except WireError as error:
                _log.error("the engine published bytes that are no message: %s", error)
                continue
            self._loop.call_soon_threadsafe(self._publish, header, data)

    def _write(self, dealer: zmq.Socket[bytes]) -> bool:
        """Send what the loop put; False at the end."""
        while True:
            try:
                item = self._outgoing.get_nowait()
            except Empty:
                return True
            if item is None:
                return False
            request, messages = item
            if not all(_try_send(dealer, message) for message in messages):
                talk = self._conversations.get(request)
                if talk is not None:
                    self._loop.call_soon_threadsafe(talk.deliver, None)


def expected(message: wire.Message, expect: type[Reply]) -> tuple[wire.Header, Reply]:
    """The header and body of a reply.

    Raises:
        HttpRefusalError: it is an ERROR, or of another class.
    """
    if isinstance(message.body, wire.Error):
        raise HttpRefusalError(message.body.code, message.body.message)
    if not isinstance(message.body, expect):
        raise HttpRefusalError(
            "internal", f"the engine replied {type(message.body).__name__}, expected {expect.__name__}"
        )
    return message.header, message.body


def _try_send(socket: zmq.Socket[bytes], data: bytes) -> bool:
    try:
        socket.send(data, zmq.NOBLOCK)
    except zmq.Again:
        return False
    return True


def _try_receive(socket: zmq.Socket[bytes]) -> bytes | None:
    try:
        return socket.recv(zmq.NOBLOCK)
    except zmq.Again:
        return None
