"""Killing a service's engine and recorder at random moments of a recorded stream, again and again: how soon it is back, what
its client hears, and what the recordings hold afterwards.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self, TypeVar

import msgspec
import numpy as np

from quantformer_cli.benchmark.measure import Target
from quantformer_cli.benchmark.schedule import wait_until
from quantformer_cli.benchmark.usage import service_processes
from quantformer_cli.benchmark.worker import WorkerError
from quantformer_client import Connection, wire
from quantformer_client.errors import (
    AnswerTimeoutError,
    ClientError,
    ErrorCode,
    ServiceError,
    SessionLostError,
    UnreachableError,
)

T = TypeVar("T")
Victim = Literal["engine", "recorder"]
#: Longest wait in s for what was killed to be back, and for one reply while it may be dead.
BACK_S, REPLY_S = 60.0, 0.5
#: A kill comes up to so many s after everything is well again.
_MOMENT_S = 1.5
_LOOK_S, _AWAY_S = 0.002, 0.05
#: An onset, and another request to arm for so many s, every so many frames.
_EVERY, _LEASE_S = 10, 30.0


class Killed(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it: ms from each kill until the engine was ready again, or until a new recorder had everything safe. Of the
    client: sessions that were open when the engine was killed, those of them that it heard ``session_lost`` of, and the
    sessions opened, those of them that were disarmed at first, and those that were armed then.
    """

    engine_ms: list[float]
    recorder_ms: list[float]
    epochs: int
    orphaned: int
    session_lost: int
    opened: int
    disarmed: int
    armed: int
    sent: int


@dataclass(kw_only=True, eq=False)
class _Story:
    """What the client lived through so far; ``acknowledged`` by epoch, the number of the last record said to be safe."""

    acknowledged: dict[int, int]
    orphaned: int = 0
    session_lost: int = 0
    opened: int = 0
    disarmed: int = 0
    armed: int = 0
    sent: int = 0


class Stream:
    """A client in a thread: streams frames, asks a standing question and onsets, arms, and after every death opens anew."""

    def __init__(self, target: Target, *, rois: Sequence[str], rate_hz: float) -> None:
        self._target, self._rois, self._rate_hz = target, list(rois), rate_hz
        self._stimuli = [wire.Stimulus(stimulus_id=target.stimulus_ids[0])]
        self._values = np.random.default_rng(0).normal(300.0, 15.0, (32, len(rois))).astype(np.float32)
        self._stop = threading.Event()
        self._session = self._epoch = self._number = 0
        self._armed = False
        self._failure: BaseException | None = None
        self.story = _Story(acknowledged={})
        self._thread = threading.Thread(target=self._guarded, name="stream")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def check(self) -> None:
        """Raises what ended the client, if anything did."""
        if self._failure is not None:
            raise self._failure

    def _guarded(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    with Connection(host=self._target.host, port=self._target.zmq_port, client="kills") as connection:
                        self._live(connection)
                except (UnreachableError, AnswerTimeoutError, SessionLostError):  # it was killed
                    self._stop.wait(_AWAY_S)
        except BaseException as error:
            self._failure = error

    def _live(self, connection: Connection) -> None:
        """Until the engine dies, or the end."""
        while connection.ask(wire.GetStatus(), expect=wire.Status, timeout_s=REPLY_S).state != "ready":
            time.sleep(_LOOK_S)
        if connection.epoch != self._epoch:
            self._mourn(connection)
            self._open(connection)
        start_ns, first = time.perf_counter_ns(), self._number
        while not self._stop.is_set():
            wait_until(start_ns + round(1e9 * (self._number - first) / self._rate_hz))
            self._frame(connection)

    def _mourn(self, connection: Connection) -> None:
        """Hear from a new engine what became of the session of the one before."""
        if not self._session:
            return
        try:
            connection.ask(wire.Describe(), expect=wire.Description, session=self._session, timeout_s=REPLY_S)
        except SessionLostError:
            self.story.session_lost += 1
        self.story.orphaned += 1
        self._session = 0

    def _open(self, connection: Connection) -> None:
        opening = wire.Open(subject="kills", rois=self._rois, rate_hz=self._rate_hz, accept_slow=True)
        header, _ = connection.ask_header(opening, expect=wire.Opened, timeout_s=REPLY_S)
        self._session, self._epoch, self._number, self._armed = header.session, connection.epoch, 0, False
        self.story.opened += 1
        trigger = self._ask(connection, wire.GetTrigger(), wire.Trigger)
        self.story.disarmed += trigger.state == "disarmed"
        self._ask(connection, wire.Standing(stimuli=self._stimuli), wire.Accepted)

    def _frame(self, connection: Connection) -> None:
        """Send the next frame, and note what is safe then."""
        number = self._number
        values = self._values[number % len(self._values)]
        frame = wire.Frame(number=number, device_s=number / self._rate_hz, fluorescence=values)
        connection.send(frame, session=self._session)
        self._number += 1
        self.story.sent += 1
        if self._number % _EVERY == 0:
            onset = wire.Onset(stimuli=self._stimuli, duration_s=1e-3)
            connection.send(onset, session=self._session)
            self._arm(connection)
        recording = self._ask(connection, wire.GetStatus(), wire.Status).recording
        if recording is not None:
            self.story.acknowledged[self._epoch] = recording.acknowledged

    def _arm(self, connection: Connection) -> None:
        """Arm, or prolong the lease."""
        try:
            self._ask(connection, wire.Arm(lease_s=_LEASE_S), wire.Trigger)
        except ServiceError as error:
            if error.code != ErrorCode.NOT_RECORDING:  # the recorder was killed
                raise
            return
        self.story.armed += not self._armed
        self._armed = True

    def _ask(self, connection: Connection, body: wire.Body, expect: type[T]) -> T:
        return connection.ask(body, expect=expect, session=self._session, timeout_s=REPLY_S)


class Killer:
    """Kills processes of the service at ``target``, which records, and waits for them to be back.

    Raises:
        WorkerError: the service runs elsewhere, or records nothing.
    """

    def __init__(self, target: Target) -> None:
        if target.root is None or "recorder" not in service_processes(target.root):
            raise WorkerError("this service runs no engine and recorder on this machine that could be killed")
        self._target, self._root = target, target.root
        #: Of the engine that is there.
        self.epoch = self._status()[0]

    def engine(self) -> float:
        """Kill the engine; ms until a client that connects anew hears from a new one that it is ready."""
        began = self._kill("engine")

        def ready() -> int | None:
            epoch, status = self._status()
            return epoch if status.state == "ready" else None

        epoch = _until(ready)
        took = time.perf_counter() - began
        if epoch == self.epoch:
            raise WorkerError(f"the engine was killed and has the same epoch {epoch} again")
        self.epoch = epoch
        return 1e3 * took

    def recorder(self) -> float:
        """Kill the recorder; ms until another has safe what there was to record when the first was killed."""
        _, status = self._status()
        due = 0 if status.recording is None else status.recording.records
        before = service_processes(self._root)["recorder"].pid
        began = self._kill("recorder")

        def safe() -> bool:
            process = service_processes(self._root).get("recorder")
            recording = self._status()[1].recording
            return (
                process is not None and process.pid != before and recording is not None
                and not recording.trouble and recording.acknowledged >= due
            )  # fmt: skip

        _until(safe)
        return 1e3 * (time.perf_counter() - began)

    def recording(self) -> bool:
        """Whether something of this epoch is safe on the disk, and nothing is in trouble."""
        recording = self._status()[1].recording
        return recording is not None and not recording.trouble and recording.acknowledged > 0

    def _kill(self, victim: Victim) -> float:
        process = _until(lambda: service_processes(self._root).get(victim))
        began = time.perf_counter()
        os.kill(process.pid, signal.SIGKILL)
        return began

    def _status(self) -> tuple[int, wire.Status]:
        """The epoch and status of the engine that is there.

        Raises:
            ClientError: none is.
        """
        # TCP refuses at once where nobody listens; ZeroMQ would try again at its own pace.
        with Connection(host=self._target.host, port=self._target.tcp_port, over="tcp", client="killer") as connection:
            status = connection.ask(wire.GetStatus(), expect=wire.Status, timeout_s=REPLY_S)
            return connection.epoch, status


def _until(look: Callable[[], T | Literal[False] | None]) -> T:
    """What ``look`` finds, once it finds something; an engine that is not there is looked for again.

    Raises:
        WorkerError: nothing for `BACK_S`.
    """
    end = time.monotonic() + BACK_S
    while time.monotonic() < end:
        try:
            found = look()
        except ClientError:
            found = None
        if found:
            return found
        time.sleep(_LOOK_S)
    raise WorkerError(f"what was killed was not back within {BACK_S:g} s; the service's log says why")


def kill_again_and_again(
    target: Target, *, times: int, rois: Sequence[str], rate_hz: float, seed: int, say: Callable[[str], None]
) -> tuple[Killed, dict[int, int]]:
    """Kill engine and recorder ``times`` each, in random order at random moments of a stream; what came of it, and by epoch the
    number of the last record that was acknowledged. The service must restart without end: ``--restart-limit``.

    Raises:
        WorkerError: something did not come back.
    """
    chance = random.Random(seed)
    victims: tuple[Victim, ...] = ("engine", "recorder")
    order = list(victims * times)
    chance.shuffle(order)
    took: dict[Victim, list[float]] = {"engine": [], "recorder": []}
    killer = Killer(target)
    with Stream(target, rois=rois, rate_hz=rate_hz) as stream:
        for number, victim in enumerate(order, 1):
            _until(killer.recording)
            time.sleep(chance.uniform(0.0, _MOMENT_S))
            took[victim].append(killer.engine() if victim == "engine" else killer.recorder())
            stream.check()
            if number % 10 == 0:
                say(f"kill {number} of {len(order)}: back after {took[victim][-1]:.0f} ms")
        # Until the client has come to the last engine, and something of it is safe.
        _until(lambda: stream.story.acknowledged.get(killer.epoch))
    story = stream.story
    killed = Killed(
        engine_ms=took["engine"],
        recorder_ms=took["recorder"],
        epochs=len(story.acknowledged),
        orphaned=story.orphaned,
        session_lost=story.session_lost,
        opened=story.opened,
        disarmed=story.disarmed,
        armed=story.armed,
        sent=story.sent,
    )
    return killed, dict(story.acknowledged)
