"""The rig's side of `doctor --loop`: lines of text over TCP between this program and the one that drives the rig's DAQ.

This program listens, the rig's connects. A line is words with spaces between them and ends in LF; ``k`` is the number of the
flash, times are seconds on the rig's own clock, as decimals:

==============================  ===================================================================================
to the rig                      what the rig does
==============================  ===================================================================================
``CLOCK k``                     answers ``CLOCK k t`` at once, t being its time
``FLASH k``                     makes light; tells ``LIGHT k t`` when the photodiode or trigger line saw the edge
(the first frame after it)      right before that frame goes to the service: ``FRAME k number t_end t_sent``
``PULSE k``                     drives the pulse; tells ``PULSE k t`` when the line in saw it
``BYE``                         it is over
==============================  ===================================================================================

``number`` is the frame's number on the wire, t_end the end of its exposure, t_sent the moment at which it goes out.
``ERROR text`` from the rig ends the measurement.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from quantformer.errors import QuantformerError

#: Longest line in bytes, and longest wait for the rig's program to connect in s.
LONGEST_LINE, CONNECT_S = 256, 120.0
_TIMES = {"CLOCK": 1, "LIGHT": 1, "PULSE": 1, "FRAME": 2}
_CHUNK = 4096


class RigError(QuantformerError):
    """The rig's program is not there, ended, or does not speak the protocol."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line from the rig: its word, the flash or clock question, the frame's number (FRAME alone), and its times in s."""

    word: str
    k: int
    number: int
    times_s: tuple[float, ...]


def parse(text: bytes) -> Line:
    """Read a line.

    Raises:
        RigError: it is not of the protocol, or reports an error of the rig.
    """
    shown = text[:80].decode("ascii", "replace")
    try:
        word, *rest = text.decode("ascii").split()
        if word == "ERROR":
            raise RigError(f"the rig reports: {' '.join(rest)[:200]}")
        ints = 2 if word == "FRAME" else 1
        numbers, times = [int(one) for one in rest[:ints]], tuple(float(one) for one in rest[ints:])
        if len(numbers) != ints or len(times) != _TIMES[word]:
            raise ValueError
        if not all(0 <= one < 1 << 53 for one in numbers) or not all(map(math.isfinite, times)):
            raise ValueError
    except (ValueError, KeyError):
        raise RigError(
            f"the rig sent {shown!r}; expected CLOCK k t, LIGHT k t, FRAME k number t_end t_sent, PULSE k t or ERROR text"
        ) from None
    return Line(word=word, k=numbers[0], number=numbers[-1] if ints == 2 else 0, times_s=times)


class Rig:
    """The connection; ``hear`` is called in a thread of its own with each line and when it came, in ns."""

    def __init__(self, connection: socket.socket, hear: Callable[[Line, int], None]) -> None:
        self._connection, self._hear = connection, hear
        self.failure: RigError | None = None
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(None)
        self._said = threading.Lock()
        self._closing = False
        self._thread = threading.Thread(target=self._listen, name="rig", daemon=True)
        self._thread.start()

    def say(self, line: str) -> int:
        """Send a line; returns when it went, in ns.

        Raises:
            RigError: the rig's program ended.
        """
        with self._said:
            sent_ns = time.perf_counter_ns()
            try:
                self._connection.sendall(line.encode("ascii") + b"\n")
            except OSError as error:
                raise RigError(f"the rig's connection ended ({error}); start its program again") from None
        return sent_ns

    def close(self) -> None:
        """Say goodbye."""
        self._closing = True
        try:
            self.say("BYE")
            self._connection.shutdown(socket.SHUT_RDWR)
        except (RigError, OSError):
            pass  # it left first
        self._thread.join(2.0)
        self._connection.close()

    def _listen(self) -> None:
        left = b""
        try:
            while data := self._connection.recv(_CHUNK):
                now_ns = time.perf_counter_ns()
                *lines, left = (left + data).split(b"\n")
                if len(left) > LONGEST_LINE or any(len(line) > LONGEST_LINE for line in lines):
                    raise RigError(f"the rig sent a line of more than {LONGEST_LINE} bytes; end each line with LF")
                for line in lines:
                    if line.strip():
                        self._hear(parse(line), now_ns)
        except RigError as error:
            self.failure = error
        except OSError as error:
            self.failure = RigError(f"the rig's connection ended ({error})")
        else:
            if not self._closing:
                self.failure = RigError("the rig's program closed the connection")


def await_rig(address: str, *, say: Callable[[str], None]) -> socket.socket:
    """Listen at ``PORT`` or ``HOST:PORT`` until the rig's program connects.

    Raises:
        RigError: the address cannot be listened on, or nobody connects.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise RigError(f"--loop: found {address!r}, expected PORT or HOST:PORT")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, int(port)), family=family) as server:
            say(f"waiting for the rig's program at {host}:{port}")
            server.settimeout(CONNECT_S)
            return server.accept()[0]
    except TimeoutError:
        raise RigError(
            f"no rig connected to {host}:{port} within {CONNECT_S:g} s; start its program (docs/latency.md)"
        ) from None
    except OSError as error:
        raise RigError(f"{host}:{port} cannot be listened on ({error.strerror}); choose another --loop") from None
