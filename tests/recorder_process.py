"""The recorder as a real process, for tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine_process import PATIENCE_S


class RecorderProcess:
    """``python -m quantformer_service.recorder`` with these settings, ready."""

    def __init__(self, directory: Path, *, zmq_port: int, **settings: object) -> None:
        given: dict[str, object] = {"record": directory, "zmq_port": zmq_port, **settings}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("QUANTFORMER_")}
        environment |= {f"QUANTFORMER_{name.upper()}": str(value) for name, value in given.items()}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "quantformer_service.recorder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert self.process.stdout is not None
        self.facts: dict[str, Any] = json.loads(self.process.stdout.readline() or b"{}")

    def stall(self) -> None:
        """Stop it where it is, as a disk that does not answer does."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """The disk answers again."""
        self.process.send_signal(signal.SIGCONT)

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


@contextlib.contextmanager
def recorder(directory: Path, *, zmq_port: int, **settings: object) -> Iterator[RecorderProcess]:
    """A recorder for the time of a block."""
    made = RecorderProcess(directory, zmq_port=zmq_port, **settings)
    try:
        assert made.facts.get("ready"), made.facts
        yield made
    finally:
        made.kill()
