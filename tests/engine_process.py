"""The engine as a real process on free ports, and a plain client of its wire, for tests."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import zmq
from numpy.typing import NDArray

from quantformer_client import wire

#: Long enough for a busy machine; nothing is measured by it.
PATIENCE_S = 60.0
BodyT = TypeVar("BodyT", bound=wire.Body | wire.Answer)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class ChildProcess:
    """``python -m quantformer_service.<name>`` with these settings, ready, as the supervisor starts it."""

    def __init__(self, name: str, settings: Mapping[str, object]) -> None:
        environment = {one: value for one, value in os.environ.items() if not one.startswith("QUANTFORMER_")}
        environment |= {f"QUANTFORMER_{one.upper()}": str(value) for one, value in settings.items()}
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"quantformer_service.{name}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert self.process.stdout is not None
        self.facts: dict[str, Any] = json.loads(self.process.stdout.readline() or b"{}")

    def end(self) -> int:
        """Close its stdin, as its parent does, and return its status."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        return self.process.wait(PATIENCE_S)

    def kill(self) -> None:
        """Leave nothing running."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE_S)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class EngineProcess(ChildProcess):
    """An engine on ports of its own."""

    def __init__(self, path: Path, **settings: object) -> None:
        ports = dict(zip(("zmq_port", "pub_port", "tcp_port"), free_ports(3), strict=True))
        super().__init__("engine", {"bundle": path, "provider": "cpu", **ports, **settings})
        self.endpoints: dict[str, str] = self.facts.get("endpoints", {})

    def tcp(self) -> socket.socket:
        """A connection to the TCP port."""
        host, port = self.endpoints["tcp"].removeprefix("tcp://").rsplit(":", 1)
        return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


class Client:
    """A DEALER that sends messages and waits for replies by their request id."""

    def __init__(
        self, endpoint: str, context: zmq.Context[zmq.Socket[bytes]], *, identity: bytes | None = None
    ) -> None:
        self.socket = context.socket(zmq.DEALER)
        if identity is not None:
            self.socket.setsockopt(zmq.IDENTITY, identity)
        self.socket.setsockopt(zmq.RCVTIMEO, int(PATIENCE_S * 1000))
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)
        self.request = 0
        self.session = 0
        self._early: list[wire.Message] = []

    def send(self, body: wire.Body | wire.Frame, *, session: int | None = None) -> int:
        """Send and return the request id."""
        self.request += 1
        number = self.session if session is None else session
        self.socket.send(wire.encode(body, session=number, request=self.request))
        return self.request

    def receive(self, request: int, *, skip: type | None = None) -> wire.Message:
        """The next message with that request id, other than of class ``skip``; others are kept."""
        for at, message in enumerate(self._early):
            if message.header.request == request and not (skip and isinstance(message.body, skip)):
                return self._early.pop(at)
        while True:
            message = wire.decode(self.socket.recv())
            if message.header.request == request and not (skip and isinstance(message.body, skip)):
                return message
            self._early.append(message)

    def ask(self, body: wire.Body, reply: type[BodyT], *, session: int | None = None) -> BodyT:
        """Send, and return the reply, which must be of that class."""
        message = self.receive(self.send(body, session=session))
        assert isinstance(message.body, reply), message.body
        return message.body

    def error(self, body: wire.Body | wire.Frame, *, session: int | None = None) -> wire.Error:
        """Send something that is refused, and return the error."""
        request = self.send(body, session=session)
        message = self.receive(request, skip=wire.Accepted)
        assert isinstance(message.body, wire.Error), message.body
        return message.body

    def open(self, rois: list[str], **fields: Any) -> wire.Message:
        """Open a session and use it from now on."""
        message = self.receive(
            self.send(wire.Open(subject="mouse", rois=rois, **{"rate_hz": 30.0, **fields}), session=0)
        )
        assert isinstance(message.body, wire.Opened), message.body
        self.session = message.header.session
        return message

    def onset(self, **fields: Any) -> wire.Answer:
        """Ask about an onset and wait for the answer."""
        request = self.send(wire.Onset(**fields))
        accepted = self.receive(request).body
        assert isinstance(accepted, wire.Accepted), accepted
        answer = self.receive(request).body
        assert isinstance(answer, wire.Answer), answer
        assert answer.question == accepted.question
        return answer

    def frames(self, trace: NDArray[np.float32], *, start: int = 0, stamps: NDArray[np.float64] | None = None) -> None:
        """Send rows of ``(frames, rois)`` as frames from number ``start`` on, then wait until they were taken."""
        for row, values in enumerate(trace):
            number = start + row
            device_s = number / 30.0 if stamps is None else float(stamps[row])
            self.send(wire.Frame(number=number, device_s=device_s, fluorescence=values))
        self.ask(wire.GetStatus(), wire.Status)

    def counters(self) -> dict[str, int]:
        """The engine's counters."""
        return self.ask(wire.GetStatus(), wire.Status).counters

    def close(self) -> None:
        """Go without a word."""
        self.socket.close(0)


@contextlib.contextmanager
def running(bundle: Path, **settings: object) -> Iterator[EngineProcess]:
    """An engine for the time of a block."""
    engine = EngineProcess(bundle, **settings)
    try:
        assert engine.facts.get("ready"), engine.facts
        yield engine
    finally:
        engine.kill()


def wait_until(check: Any) -> None:
    """Return when ``check()`` holds; fail when it does not come to hold."""
    end = time.monotonic() + PATIENCE_S
    while not check():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
