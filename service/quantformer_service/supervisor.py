"""The parent of the service's processes: starts them, restarts what dies, ends them together.

The processes know nothing of each other's lives. A new engine has a new epoch and no sessions; clients hear
``session_lost`` and open again. After too many deaths in too short a time the supervisor ends everything with an error.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any

from quantformer.errors import QuantformerError
from quantformer_service.process import BusyPortError
from quantformer_service.settings import Settings

_log = logging.getLogger(__name__)
#: Statuses that a restart cannot cure: usage, bad data or bundle, missing extra or provider.
_INCURABLE = frozenset({2, 3, 4})
#: Share of `shutdown_s` that the first process (the engine, with its pending onsets) has before the others are asked.
_FIRST_SHARE = 0.6
_LONGEST_PAUSE_S = 2.0
#: Longest wait for an event: on Windows a signal is not handled while the main thread waits.
_TICK_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Program:
    """A process of the service: its name in the log, and the module that ``python -m`` runs."""

    name: str
    module: str


#: The first starts alone, since it measures how many threads are fastest; the others when it is ready. They end in this order.
PROGRAMS = (
    Program(name="engine", module="quantformer_service.engine"),
    Program(name="gateway", module="quantformer_service.gateway"),
)
#: The one that is there only where something is recorded.
RECORDER = Program(name="recorder", module="quantformer_service.recorder")


@dataclass(kw_only=True, eq=False)
class _Child:
    program: Program
    process: subprocess.Popen[bytes] | None = None
    deaths: deque[float] = field(default_factory=deque)
    restart_at: float | None = None
    reason: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


class ServiceFailedError(QuantformerError):
    """A process of the service could not be started, or died too often."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Supervisor:
    """Runs `PROGRAMS`, and the `RECORDER` where the settings want one, until a signal ends them.

    ``on_ready`` is called once, when every process is ready, with the facts that each announced, by name.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        on_ready: Callable[[Mapping[str, Mapping[str, Any]]], None],
        programs: Sequence[Program] | None = None,
    ) -> None:
        self._settings = settings
        self._on_ready = on_ready
        if programs is None:
            programs = (*PROGRAMS, RECORDER) if settings.record else PROGRAMS
        self._children = [_Child(program=program) for program in programs]
        # Reentrant, so that a signal handler may put while the main thread gets.
        self._events: SimpleQueue[tuple[str, Any, Any]] = SimpleQueue()

    def run(self) -> int:
        """Supervise from the main thread; returns 130 or 143, the signal's status, after a graceful end.

        Raises:
            BusyPortError: a port is taken; nothing was started.
            ServiceFailedError: a process failed while starting, or died more than ``restart_limit`` times.
        """
        check_ports(self._settings)
        signals = [signal.SIGINT, signal.SIGTERM]
        before = [signal.signal(number, self._on_signal) for number in signals]
        try:
            number = self._supervise()
            _log.info("%s: ending gracefully; a second signal ends at once", signal.Signals(number).name)
            self._end()
            return 128 + number
        finally:
            self._kill()
            for one, handler in zip(signals, before, strict=True):
                signal.signal(one, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._events.put(("signal", number, None))

    def _supervise(self) -> int:
        """Start and restart until a signal arrives; returns its number."""
        self._start(self._children[0])
        told = False
        while True:
            due = [child.restart_at for child in self._children if child.restart_at is not None]
            try:
                pause = max(0.0, min(due) - time.monotonic()) if due else _TICK_S
                kind, subject, value = self._events.get(timeout=min(pause, _TICK_S))
            except Empty:
                for child in self._children:
                    if child.restart_at is not None and child.restart_at <= time.monotonic():
                        self._start(child)
                continue
            if kind == "signal":
                return int(subject)
            child = subject
            if kind == "ready":
                child.facts = value
                _log.info("%s is ready", child.program.name)
                for other in self._children:
                    if other.process is None:
                        self._start(other)
                if not told and all(one.facts for one in self._children):
                    told = True
                    self._on_ready({one.program.name: one.facts for one in self._children})
            elif kind == "exit":
                self._bury(child, status=value, started=told)

    def _start(self, child: _Child) -> None:
        child.restart_at = None
        child.reason = ""
        child.facts = {}
        # A group of its own, so that a terminal's Ctrl-C reaches the supervisor alone.
        group: dict[str, Any]
        if sys.platform == "win32":
            group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        else:
            group = {"process_group": 0}
        child.process = subprocess.Popen(
            [sys.executable, "-m", child.program.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **self._settings.environment()},
            **group,
        )
        threading.Thread(target=self._listen, args=(child, child.process), daemon=True).start()

    def _listen(self, child: _Child, process: subprocess.Popen[bytes]) -> None:
        """In a thread a process: pass on its line of readiness and its end."""
        assert process.stdout is not None
        for line in process.stdout:
            try:
                facts = json.loads(line)
            except ValueError:
                facts = None
            if isinstance(facts, dict) and facts.pop("ready", False):
                self._events.put(("ready", child, {"pid": process.pid, **facts}))
            elif isinstance(facts, dict) and "failed" in facts:
                child.reason = str(facts["failed"])
            else:
                _log.warning("%s wrote on its stdout: %r", child.program.name, line[:200])
        self._events.put(("exit", child, process.wait()))

    def _bury(self, child: _Child, *, status: int, started: bool) -> None:
        """Plan the restart of a process that ended by itself, or give up."""
        name, limit, window_s = child.program.name, self._settings.restart_limit, self._settings.restart_window_s
        how = f"ended by signal {-status}" if status < 0 else f"ended with status {status}"
        how += f": {child.reason}" if child.reason else "; its log says why"
        if status in _INCURABLE or not started:
            code = status if status in _INCURABLE else 1
            raise ServiceFailedError(f"the {name} {how}", exit_code=code)
        now = time.monotonic()
        child.deaths.append(now)
        while child.deaths[0] < now - window_s:
            child.deaths.popleft()
        if len(child.deaths) > limit:
            raise ServiceFailedError(
                f"the {name} ended {len(child.deaths)} times within {window_s:g} s, more than --restart-limit {limit}: "
                f"giving up; the last time it {how}"
            )
        pause_s = min(_LONGEST_PAUSE_S, 0.1 * 2 ** (len(child.deaths) - 1))
        _log.error("the %s %s; restarting it in %.1f s", name, how, pause_s)
        child.restart_at = now + pause_s

    def _end(self) -> None:
        """Ask every process to end, the first one first, within ``shutdown_s``."""
        end = time.monotonic() + self._settings.shutdown_s
        deadlines = [end - (1 - _FIRST_SHARE) * self._settings.shutdown_s] + [end] * (len(self._children) - 1)
        for number, deadline in enumerate(deadlines):
            first_only = number == 0 and len(self._children) > 1
            asked = self._children[:1] if first_only else self._children
            for child in asked:
                if child.process is not None and child.process.stdin is not None:
                    child.process.stdin.close()
            while any(child.process is not None and child.process.poll() is None for child in asked):
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                try:
                    kind, _, _ = self._events.get(timeout=min(left, _TICK_S))
                except Empty:
                    continue
                if kind == "signal":
                    _log.warning("second signal: ending at once")
                    return
        for child in self._children:
            if child.process is not None and child.process.poll() is None:
                _log.error("%s did not end within %g s and is killed", child.program.name, self._settings.shutdown_s)

    def _kill(self) -> None:
        for child in self._children:
            if child.process is not None and child.process.poll() is None:
                child.process.kill()
                child.process.wait()


def check_ports(settings: Settings) -> None:
    """Refuse to start on a taken or doubled port.

    Raises:
        BusyPortError: names the port and the flag that moves it.
    """
    names: dict[int, str] = {}
    for name in ("http_port", "zmq_port", "pub_port", "tcp_port"):
        port = getattr(settings, name)
        if port in names:
            raise BusyPortError(host=settings.host, port=port, setting=name, reason=f"it is {names[port]} already")
        names[port] = name
        try:
            listen(settings.host, port).close()
        except OSError as error:
            reason = error.strerror or str(error)
            raise BusyPortError(host=settings.host, port=port, setting=name, reason=reason) from None


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket that another program's listener makes fail, but a connection that lingers does not."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((host, port))
        opened.listen(128)
    except BaseException:
        opened.close()
        raise
    return opened
