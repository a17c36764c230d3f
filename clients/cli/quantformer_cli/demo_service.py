"""The real service for the demo: ``quantformer serve`` as its own processes on free ports.

``python -m quantformer_cli.demo_service ARGUMENTS`` is ``quantformer serve ARGUMENTS`` that also ends, as by SIGINT, when
its stdin closes: whatever becomes of the demo, no process is left behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from quantformer.errors import QuantformerError

#: Longest wait in s for the service to be ready, and on top of ``shutdown_s`` for it to end.
_READY_S, _END_S = 120.0, 3.0
_SHUTDOWN_S = 5.0
#: Lines of the service's log that an error shows.
_TAIL = 8


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Where the service listens on the loopback interface."""

    http: int
    zmq: int
    pub: int
    tcp: int

    @classmethod
    def free(cls) -> Ports:
        """Four ports that nobody uses now."""
        opened = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
        numbers = [one.getsockname()[1] for one in opened]
        for one in opened:
            one.close()
        return cls(http=numbers[0], zmq=numbers[1], pub=numbers[2], tcp=numbers[3])

    def flags(self) -> list[str]:
        """As flags of ``quantformer serve``."""
        return [part for name, port in vars(self).items() for part in (f"--{name}-port", str(port))]


class Service:
    """A context: on entering, the service runs and is ready; on leaving, every process of it has ended.

    ``log`` is the file that takes what the service writes on stderr, ``flags`` are further flags of ``quantformer serve``.
    `status` is how it ended: 130 is a graceful end.

    Raises:
        QuantformerError: it did not become ready; the end of its log is in the message.
    """

    def __init__(self, bundle: Path, *, log: Path, flags: Sequence[str] = ()) -> None:
        self.ports = Ports.free()
        self.status: int | None = None
        self._bundle, self._log, self._flags = bundle, log, flags
        self._process: subprocess.Popen[str] | None = None
        self._ready = threading.Event()
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        own_group: dict[str, Any] = {}
        if sys.platform == "win32":
            own_group["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP
        else:
            # A group of its own, so that a terminal's Ctrl-C reaches the demo alone, which ends the service in order.
            own_group["process_group"] = 0
        self._file = self._log.open("w", encoding="utf-8")
        command = [sys.executable, "-m", __name__, "--bundle", str(self._bundle), *self.ports.flags()]
        command += ["--host", "127.0.0.1", "--token", "", "--shutdown-s", str(_SHUTDOWN_S), *self._flags]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._file, text=True, **own_group
        )
        self._listener = threading.Thread(target=self._listen, args=(self._process,), daemon=True)
        self._listener.start()
        try:
            self._wait()
        except BaseException:
            self._end()
            raise
        return self

    def _wait(self) -> None:
        assert self._process is not None
        end = time.monotonic() + _READY_S
        while not self._ready.wait(0.05):
            if self._process.poll() is not None:
                status = self._process.returncode
                raise QuantformerError(f"the service ended with status {status} before it was ready: {self.tail()}")
            if time.monotonic() > end:
                raise QuantformerError(f"the service was not ready within {_READY_S:g} s: {self.tail()}")

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                if line.startswith("ready:"):
                    self._ready.set()

    @property
    def pid(self) -> int:
        """Of the supervisor, whose children are the service's processes."""
        assert self._process is not None
        return self._process.pid

    def tail(self) -> str:
        """The end of the service's log."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return " | ".join(lines[-_TAIL:]) or "its log is empty"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        try:
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.wait(timeout=_SHUTDOWN_S + _END_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # Also when the wait was interrupted: the children of a killed supervisor end with it.
            if process.poll() is None:
                process.kill()
            self.status = process.wait()
            self._listener.join(timeout=1.0)
            if self._file is not None:
                self._file.close()


def _interrupt_at_end_of_input() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    if hasattr(signal, "pthread_kill"):
        ident = threading.main_thread().ident
        assert ident is not None
        signal.pthread_kill(ident, signal.SIGINT)
    else:
        signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    from quantformer_cli.main import entry

    threading.Thread(target=_interrupt_at_end_of_input, name="lifeline", daemon=True).start()
    sys.argv = ["quantformer", "serve", *sys.argv[1:]]
    entry()
