"""Measuring processes: each is told its work on stdin, says when it is ready, waits for the word, and reports on stdout.

A worker is ``python -m MODULE``. Lines of JSON: its work in, ``{"ready": true}`` out, ``go`` in, its result out. It ends when
its stdin closes, so that none outlives the bench.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

import msgspec

from quantformer.errors import QuantformerError

Work = TypeVar("Work", bound=msgspec.Struct)
#: Longest wait in s for a worker to be ready; and beyond its work's own time for its result.
READY_S, REST_S = 180.0, 120.0


class WorkerError(QuantformerError):
    """A measuring process could not do its work; the message is what it said."""


class Worker:
    """One process; a context that leaves nothing running."""

    def __init__(self, module: str, work: msgspec.Struct) -> None:
        self._module, self._work = module, work
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._say(msgspec.json.encode(self._work).decode())
        return self

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def wait_ready(self) -> None:
        """Wait until it could begin.

        Raises:
            WorkerError: it failed, or took longer than `READY_S`.
        """
        self._line(READY_S)

    def go(self) -> None:
        """Begin."""
        self._say("go")

    def result(self, *, within_s: float) -> dict[str, Any]:
        """What it found; ``within_s`` is how long its work takes by plan.

        Raises:
            WorkerError: it failed, or took much longer.
        """
        return self._line(within_s + REST_S)

    def stop(self) -> None:
        """Close its stdin: the end of work that has none of its own."""
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it died: reading its answer says why
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _line(self, within_s: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=within_s)
        except queue.Empty:
            raise WorkerError(f"{self._module} said nothing for {within_s:.0f} s") from None
        if line is None:
            status = self._process.wait()
            self._errors.seek(0)
            tail = " | ".join(self._errors.read().splitlines()[-4:]) or "it wrote no error"
            raise WorkerError(f"{self._module} ended with status {status}: {tail}")
        found: dict[str, Any] = json.loads(line)
        if "failed" in found:
            raise WorkerError(str(found["failed"]))
        return found

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        try:
            self._process.wait(timeout=5.0 if kind is None else 0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(timeout=5.0)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()


class Desk:
    """The worker's side of the conversation. `ended` is set when the bench closes its end."""

    def __init__(self) -> None:
        self._left = b""
        self.ended = threading.Event()

    def read(self) -> bytes:
        """The next line; empty at the end."""
        # os.read and not sys.stdin: a daemon thread inside a buffered read would hold its lock while the interpreter ends.
        while b"\n" not in self._left and (data := os.read(0, 1 << 16)):
            self._left += data
        line, _, self._left = self._left.partition(b"\n")
        return line

    def ready(self) -> None:
        """Say so, and wait for the word to begin; ends the process where none will come."""
        tell({"ready": True})
        if self.read() != b"go":
            os._exit(1)
        threading.Thread(target=self._listen, name="lifeline", daemon=True).start()

    def _listen(self) -> None:
        while self.read():
            pass
        self.ended.set()


def tell(found: object) -> None:
    """One line on stdout."""
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    sys.stdout.flush()


def work_as(kind: type[Work], body: Callable[[Work, Desk], dict[str, Any]]) -> NoReturn:
    """Be a worker: read the work, do it, tell the result or why there is none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the bench closes our stdin
    desk = Desk()
    try:
        tell(body(msgspec.json.decode(desk.read(), type=kind), desk))
    except ModuleNotFoundError as error:
        tell({"failed": f"package {error.name!r} is not installed: pip install 'quantformer[serve,bench]'"})
    except Exception as error:
        # Whatever it was, the bench tells it beside the condition that it belongs to.
        tell({"failed": f"{type(error).__name__}: {error}"})
    sys.exit(0)
