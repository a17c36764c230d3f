"""The recorder as a real process, and what it left, for tests."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

from engine_process import ChildProcess

from quantformer_service.recording_file import SUFFIX


class RecorderProcess(ChildProcess):
    """A recorder for the engine on that port."""

    def __init__(self, directory: Path, *, zmq_port: int, **settings: object) -> None:
        super().__init__("recorder", {"record": directory, "zmq_port": zmq_port, **settings})

    def stall(self) -> None:
        """Stop it where it is, as a disk that does not answer does."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """The disk answers again."""
        self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def recorder(directory: Path, *, zmq_port: int, **settings: object) -> Iterator[RecorderProcess]:
    """A recorder for the time of a block."""
    made = RecorderProcess(directory, zmq_port=zmq_port, **settings)
    try:
        assert made.facts.get("ready"), made.facts
        yield made
    finally:
        made.kill()


def list_recordings(directory: Path) -> list[Path]:
    """The recordings in a directory, in the order in which they were begun."""
    return sorted(path for path in directory.iterdir() if path.name.endswith(SUFFIX))
