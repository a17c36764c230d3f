"""The real service for tests: `quantformer serve` in processes of its own, on free ports, ended whatever happens."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import psutil

from quantformer_client import Controller, Microscope, Rest

PATIENCE_S = 60.0
T = TypeVar("T")
ROIS = tuple(f"n{i:03d}" for i in range(12))


def until(question: Callable[[], T | None]) -> T:
    """Ask until the answer is not None (and not False)."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        answer = question()
        if answer is not None and answer is not False:
            return answer
        time.sleep(0.02)
    raise TimeoutError(f"waited {PATIENCE_S} s")


@contextmanager
def free_ports(count: int) -> Iterator[list[int]]:
    """Ports that nobody listens on, chosen together."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    yield ports


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `quantformer` as a user does, in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(
            [sys.executable, "-m", "quantformer_cli.main", *arguments],
            capture_output=True,
            text=True,
            cwd=folder,
            env=clean_environment(**environment),
            timeout=PATIENCE_S,
            check=False,
        )


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without settings of ours, and with its module path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("QUANTFORMER_")}
    return {**kept, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", **more}


class RunningService:
    """`quantformer serve` on free ports; waits until it says that it is ready."""

    def __init__(self, bundle: Path, *, folder: Path, wait: bool = True, **settings: object) -> None:
        with free_ports(4) as ports:
            self.http, self.zmq, self.pub, self.tcp = ports
        self.token = str(settings.get("token", ""))
        values = {
            "http_port": self.http, "zmq_port": self.zmq, "pub_port": self.pub, "tcp_port": self.tcp, **settings,
        }  # fmt: skip
        flags = [part for name, value in values.items() for part in ("--" + name.replace("_", "-"), str(value))]
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "quantformer_cli.main", "serve", "--bundle", str(bundle), *flags],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=folder,
                env=clean_environment(),
            )
        self.lines: list[str] = []
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Read the lines that `serve` prints when everything is ready."""
        assert self.process.stdout is not None
        while len(self.lines) < 5:
            line = self.process.stdout.readline()
            assert line, f"serve ended with {self.process.wait(PATIENCE_S)}:\n{self.log.read_text()}"
            self.lines.append(line.strip())

    def rest(self, **options: Any) -> Rest:
        """A REST client of it."""
        return Rest(port=self.http, token=self.token, **options)

    def microscope(self, **options: Any) -> Microscope:
        """A session with the tiny bundle's neurons."""
        asked = {"subject": "mouse", "rois": ROIS, "rate_hz": 30.0, "port": self.zmq, "token": self.token, **options}
        return Microscope(**asked)

    def controller(self, session: int | None = None) -> Controller:
        """A controller of it."""
        return Controller(session=session, port=self.zmq, pub_port=self.pub, token=self.token)

    def child(self, module: str) -> psutil.Process:
        """The living process that runs a module of the service."""

        def look() -> psutil.Process | None:
            for one in psutil.Process(self.process.pid).children(recursive=True):
                try:
                    if f"quantformer_service.{module}" in one.cmdline():
                        return one
                except psutil.Error:
                    continue
            return None

        return until(look)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait(PATIENCE_S)
        if self.process.stdout is not None:
            self.process.stdout.close()


def traces(frames: int, *, rois: int = len(ROIS), seed: int = 0) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Fluorescence ``(frames, rois)`` that every check of the engine accepts."""
    rng = np.random.default_rng(seed)
    return (100.0 + rng.normal(0.0, 5.0, (frames, rois))).astype(np.float32)


def feed(scope: Microscope, frames: int, *, first: int = 0) -> None:
    """Send frames as fast as the engine takes them."""
    for number, values in enumerate(traces(frames), first):
        scope.frame(number=number, device_s=number / 30.0, fluorescence=values)
        if number % 32 == 31:
            scope.sync()
    scope.sync()
