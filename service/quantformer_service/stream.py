"""The engine's sockets: ZeroMQ ROUTER and PUB, and plain TCP, in one poller. Bytes in, bytes out, and who sent them.

Nothing here ever waits for a client: what one does not take is kept up to a bound, then dropped (ZeroMQ) or its
connection is closed (TCP).
"""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from collections.abc import Iterator

import msgspec
import zmq

from quantformer_client import wire
from quantformer_service.engine_settings import EngineSettings
from quantformer_service.process import BusyPortError

#: ZeroMQ itself closes a connection that sends more than this; up to here the sender gets a typed error.
_LARGEST_ZMQ = 2 * wire.MAX_MESSAGE
#: Longest subscription.
_LARGEST_SUBSCRIPTION = 4096
#: Messages and bytes taken from one socket before the others have their turn.
_MESSAGES_A_TURN = 64
_BYTES_A_TURN = 262_144
#: Calls of `wake` that are answered at once.
_WAKES = 64
#: As a plain number: a flag's own operators are slow.
_POLLIN = int(zmq.POLLIN)
#: Time in ms that closing waits for messages to leave.
_LINGER_MS = 500


class Peer:
    """Who sent a message, and where its reply goes."""

    def __init__(self) -> None:
        self.authorized = False


class ZmqPeer(Peer):
    """A DEALER, by the identity that the ROUTER gave it."""

    def __init__(self, identity: bytes) -> None:
        super().__init__()
        self.identity = identity


class TcpPeer(Peer):
    """A TCP connection; ``out`` holds what it has not taken yet."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self.connection = connection
        self.stream = wire.MessageStream()
        self.out = bytearray()
        self.closing = False


class Incoming(msgspec.Struct, frozen=True, kw_only=True):
    """The bytes of one message, and what was found wrong with them already."""

    peer: Peer
    data: bytes = b""
    error: wire.WireError | None = None


class Sockets:
    """Bound on construction.

    Raises:
        BusyPortError: names the port and the flag that moves it.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self.counters: Counter[str] = Counter()
        self._context = zmq.Context()
        self._context.setsockopt(zmq.LINGER, _LINGER_MS)
        self._peers: dict[bytes, ZmqPeer] = {}
        self._clients: dict[int, TcpPeer] = {}
        self._poller = zmq.Poller()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._woken = False
        self._listener: socket.socket | None = None
        try:
            self._router = self._zmq(zmq.ROUTER, "zmq_port", largest=_LARGEST_ZMQ, queue=settings.client_queue)
            self._pub = self._zmq(zmq.PUB, "pub_port", largest=_LARGEST_SUBSCRIPTION, queue=settings.pub_queue)
            self._listener = self._tcp()
        except BaseException:
            self.close()
            raise
        self.endpoints = {
            "zmq": self._router.getsockopt_string(zmq.LAST_ENDPOINT),
            "pub": self._pub.getsockopt_string(zmq.LAST_ENDPOINT),
            "tcp": "tcp://{}:{}".format(*self._listener.getsockname()[:2]),
        }
        for readable in (self._router, self._wake_in, self._listener):
            self._poller.register(readable, zmq.POLLIN)

    def wake(self) -> None:
        """End a `poll` in progress, and every later one at once until `settle`; may be called from any thread."""
        try:
            self._wake_out.send(b"\0")
        except OSError:  # full: the loop is awake already; closed: it has ended
            return

    def poll(self, timeout_ms: int) -> Iterator[Incoming]:
        """What came in within ``timeout_ms``, a bounded part from each sender."""
        for ready, events in self._poller.poll(timeout_ms):
            if ready is self._router:
                yield from self._receive_zmq()
            elif ready == self._wake_in.fileno():
                self._woken = True
            elif self._listener is not None and ready == self._listener.fileno():
                self._accept()
            elif (client := self._clients.get(ready)) is not None:
                if events & zmq.POLLOUT:
                    self._flush(client)
                if events & (zmq.POLLIN | zmq.POLLERR):
                    yield from self._receive_tcp(client)

    def settle(self) -> bool:
        """Whether `wake` ended a `poll`; with this it is over. What it told of may be done before, and once more after."""
        if not self._woken:
            return False
        self._woken = False
        self._wake_in.recv(_WAKES)
        return True

    def send(self, peer: Peer, data: bytes | bytearray) -> None:
        """Send to one client, now or never; ``data`` is copied."""
        if isinstance(peer, ZmqPeer):
            try:
                self._router.send_multipart([peer.identity, data], zmq.NOBLOCK)
            except zmq.Again:
                self.counters["dropped_slow_client"] += 1
            except zmq.ZMQError:
                self.counters["dropped_vanished_client"] += 1
                self._peers.pop(peer.identity, None)
        elif isinstance(peer, TcpPeer) and not peer.closing and peer.connection.fileno() >= 0:
            if len(peer.out) + len(data) > self._settings.tcp_backlog_bytes:
                self.counters["closed_slow_client"] += 1
                self._drop(peer)
                return
            peer.out += len(data).to_bytes(4, "little")
            peer.out += data
            self._flush(peer)

    def publish(self, data: bytes | bytearray) -> None:
        """Send to every subscriber that keeps up; ``data`` is copied."""
        self._pub.send(data, zmq.NOBLOCK)

    def close(self) -> None:
        """Close everything; what was sent has half a second to leave."""
        for client in list(self._clients.values()):
            with contextlib.suppress(OSError):
                client.connection.setblocking(True)
                client.connection.settimeout(_LINGER_MS / 1000 / max(1, len(self._clients)))
                client.connection.sendall(client.out)
            self._drop(client)
        for one in (self._listener, self._wake_in, self._wake_out):
            if one is not None:
                one.close()
        self._context.destroy(_LINGER_MS)

    # --- ZeroMQ -------------------------------------------------------------------------------------------------------

    def _zmq(self, kind: int, setting: str, *, largest: int, queue: int) -> zmq.Socket[bytes]:
        opened = self._context.socket(kind)
        opened.setsockopt(zmq.LINGER, _LINGER_MS)
        opened.setsockopt(zmq.MAXMSGSIZE, largest)
        opened.setsockopt(zmq.SNDHWM, queue)
        opened.setsockopt(zmq.RCVHWM, self._settings.client_queue)
        host, port = self._settings.host, getattr(self._settings, setting)
        if ":" in host:
            opened.setsockopt(zmq.IPV6, 1)
            host = f"[{host}]"
        if kind == zmq.ROUTER:
            # A client that vanished or does not read is an error here, and counted, not silence.
            opened.setsockopt(zmq.ROUTER_MANDATORY, 1)
            if not self._settings.token:
                # A client that reconnects under its own name takes the place of its dead connection.
                opened.setsockopt(zmq.ROUTER_HANDOVER, 1)
        try:
            opened.bind(f"tcp://{host}:{port or '*'}")
        except zmq.ZMQError as error:
            reason = error.strerror or str(error)
            raise BusyPortError(host=self._settings.host, port=port, setting=setting, reason=reason) from None
        return opened

    def _receive_zmq(self) -> Iterator[Incoming]:
        for turn in range(_MESSAGES_A_TURN):
            # The poller saw the first; asking whether there is another is quicker than to be told by an exception.
            if turn and not int(self._router.getsockopt(zmq.EVENTS)) & _POLLIN:
                return
            try:
                identity, *parts = self._router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            # A name that a client chose could be chosen by another, who would inherit what the token opened. Those that
            # the ROUTER gives begin with a zero byte, and no connection gets one twice.
            if self._settings.token and identity[:1] != b"\0":
                yield Incoming(
                    peer=ZmqPeer(identity),
                    data=parts[-1],
                    error=wire.WireError(
                        wire.ErrorCode.UNAUTHORIZED, "this engine wants a token: connect without a ZeroMQ identity"
                    ),
                )
                continue
            peer = self._peers.get(identity)
            if peer is None:
                if len(self._peers) >= 4096:
                    # The oldest must say HELLO again if it still lives; without a token nothing is lost.
                    self._peers.pop(next(iter(self._peers)))
                peer = self._peers[identity] = ZmqPeer(identity)
            if len(parts) == 1:
                yield Incoming(peer=peer, data=parts[0])
            else:
                yield Incoming(
                    peer=peer,
                    data=parts[-1] if parts else b"",
                    error=wire.WireError(
                        wire.ErrorCode.LENGTH_MISMATCH,
                        f"a ZeroMQ message of {len(parts)} parts, expected one: connect a DEALER, not a REQ socket",
                    ),
                )

    # --- TCP ----------------------------------------------------------------------------------------------------------

    def _tcp(self) -> socket.socket:
        host, port = self._settings.host, self._settings.tcp_port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        opened = socket.socket(family, socket.SOCK_STREAM)
        try:
            if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows, where SO_REUSEADDR would share the port
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
            else:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind((host, port))
            opened.listen(64)
        except OSError as error:
            opened.close()
            reason = error.strerror or str(error)
            raise BusyPortError(host=host, port=port, setting="tcp_port", reason=reason) from None
        opened.setblocking(False)
        return opened

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it went away before it was accepted
            return
        if len(self._clients) >= self._settings.tcp_clients:
            self.counters["refused_connections"] += 1
            connection.close()
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._clients[connection.fileno()] = TcpPeer(connection)
        self._poller.register(connection, zmq.POLLIN)

    def _receive_tcp(self, client: TcpPeer) -> Iterator[Incoming]:
        try:
            data = client.connection.recv(_BYTES_A_TURN)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.counters["closed_connections"] += 1
            self._drop(client)
            return
        if client.closing:
            return
        try:
            for message in client.stream.feed(data):
                yield Incoming(peer=client, data=message)
        except wire.WireError as error:
            yield Incoming(peer=client, error=error)
            # A byte stream cannot be resynchronised: the error is sent, then this side is shut. What still comes is
            # read and forgotten until the client closes too: closing at once would take the error back.
            client.closing = True
            self._flush(client)

    def _flush(self, client: TcpPeer) -> None:
        try:
            while client.out:
                sent = client.connection.send(memoryview(client.out)[:_BYTES_A_TURN])
                del client.out[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)
            return
        if client.closing and not client.out:
            with contextlib.suppress(OSError):
                client.connection.shutdown(socket.SHUT_WR)
        self._poller.register(client.connection, zmq.POLLIN | (zmq.POLLOUT if client.out else 0))

    def _drop(self, client: TcpPeer) -> None:
        number = client.connection.fileno()
        client.closing = True
        client.out.clear()
        if self._clients.pop(number, None) is not None:
            with contextlib.suppress(KeyError):
                self._poller.unregister(client.connection)
            client.connection.close()
