"""The live part of the demo: a fake microscope and an optogenetics controller, both ordinary clients of the service."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantformer.errors import QuantformerError
from quantformer.recording import Recording
from quantformer.signal import onset_frames
from quantformer_cli.demo_service import Ports
from quantformer_client import wire
from quantformer_client.controller import Controller
from quantformer_client.microscope import Microscope
from quantformer_client.player import Played, Player, Presentation
from quantformer_client.transport import Subscriber

#: Seconds: how long an onset is announced ahead, and how long before it the answer is due.
AHEAD_S, MARGIN_S = 1.0, 0.002
LEASE_S, HEARTBEAT_S, POLL_S, SHOW_S = 2.0, 0.5, 0.1, 0.125
#: Longest wait in s for one answer, for the subscription, for the last answers, and for what is published after them.
_ANSWER_S, _SUBSCRIBE_S, _LAST_S, _LINGER_S = 10.0, 10.0, 2.0, 0.5
#: Longest time in s that one thread of this program may hold the interpreter while another wants to stamp a message.
_SWITCH_S = 0.0005


@dataclass(frozen=True, kw_only=True, eq=False)
class Broadcast:
    """What is streamed: frames ``[start, stop)`` of a recording, whose numbers are the recording's own; the rows of its
    stimulus table that are announced; the trigger's rules; and the stimulus of the standing question.
    """

    recording: Recording
    start: int
    stop: int
    fast: bool
    rules: tuple[wire.Rule, ...]
    candidate: str
    trials: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Heard:
    """An answer and when this client had it (`perf_counter_ns`)."""

    answer: wire.Answer
    heard_ns: int


@dataclass(kw_only=True, eq=False)
class Live:
    """What is known while it happens; the screen reads it, the controller's thread writes it."""

    broadcast: Broadcast
    started_ns: int = 0
    frames: int = 0
    onsets: deque[Heard] = field(default_factory=lambda: deque(maxlen=8))
    answered: int = 0
    latency_ms: list[float] = field(default_factory=list)
    standing_ms: list[float] = field(default_factory=list)
    decisions: deque[wire.Decision] = field(default_factory=lambda: deque(maxlen=6))
    trigger: wire.Trigger | None = None
    polled: wire.Answer | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Streamed:
    """What happened. ``answers`` is by row of the stimulus table; ``sent_ns`` is by frame; ``counters`` are the session's
    own, told when it was closed. ``subscribed`` counts the answers to onsets that also came over the subscription.
    """

    played: Played
    trials: NDArray[np.int64]
    answers: Mapping[int, Heard]
    subscribed: int
    latency_ms: NDArray[np.float64]
    standing_ms: NDArray[np.float64]
    engine_ms: NDArray[np.float64]
    decisions: tuple[wire.Decision, ...]
    trigger: wire.Trigger
    counters: Mapping[str, int]
    polls: int
    polls_answered: int
    status: wire.Status


class _StoppedError(Exception):
    """The demo ends before the recording does."""


class _StampedMicroscope(Microscope):
    """A microscope that notes when it sent each frame and when each answer came."""

    def __init__(self, **arguments: Any) -> None:
        self.sent_ns: dict[int, int] = {}
        self.heard: dict[int, Heard] = {}
        super().__init__(**arguments)

    def frame(self, *, number: int, **values: Any) -> None:
        """Send and note."""
        self.sent_ns[number] = time.perf_counter_ns()
        super().frame(number=number, **values)

    def _hear(self, message: wire.Message) -> None:
        if isinstance(message.body, wire.Answer):
            self.heard[message.body.question] = Heard(answer=message.body, heard_ns=time.perf_counter_ns())
        super()._hear(message)


class _Microscope(threading.Thread):
    """Plays the broadcast in a thread of its own; `opened` is set when the session is there, `go` starts the frames."""

    def __init__(self, broadcast: Broadcast, *, ports: Ports) -> None:
        super().__init__(name="microscope", daemon=True)
        self.broadcast, self._ports = broadcast, ports
        self.opened, self.go, self.stopped = threading.Event(), threading.Event(), threading.Event()
        self.error: BaseException | None = None
        self.session = 0
        self.sent_ns: dict[int, int] = {}
        self.heard: dict[int, Heard] = {}
        self.played: Played | None = None
        self.counters: dict[str, int] = {}
        #: Between the last frame and the closing of the session the controller looks at the trigger.
        self.finished, self.close = threading.Event(), threading.Event()

    def run(self) -> None:
        try:
            self._play()
        except _StoppedError:
            pass
        except BaseException as error:  # handed to the main thread
            self.error = error
        finally:
            self.opened.set()
            self.finished.set()

    def _play(self) -> None:
        recording, ports = self.broadcast.recording, self._ports
        corrected = recording.neuropil is None
        factor = recording.neuropil_factor
        signal = wire.SignalDeclaration(
            extractor=f"quantformer demo, {recording.provenance.origin}",
            corrected=corrected,
            neuropil_factor=0.7 if factor is None else [float(value) for value in factor],
        )
        scope = _StampedMicroscope(
            subject=recording.provenance.subject,
            rois=recording.neuron_ids,
            rate_hz=recording.rate_hz,
            signal=signal,
            port=ports.zmq,
        )
        try:
            self.session, self.sent_ns, self.heard = scope.session, scope.sent_ns, scope.heard
            self.opened.set()
            self._stream(scope)
        except BaseException:
            scope.connection.close()
            raise
        self.counters = scope.close()

    def _stream(self, scope: _StampedMicroscope) -> None:
        recording, trials = self.broadcast.recording, self.broadcast.trials
        while not self.go.wait(0.05):
            self._check()
        onset = onset_frames(recording.timestamps_s, recording.stimuli.onset_s)[trials]
        last_before = {int(frame) - 1 for frame in onset}

        def after_frame(index: int) -> None:
            self._check()
            # Flat out there is no clock: the stimulus waits until the answer to its question is there.
            if self.broadcast.fast and self.broadcast.start + index in last_before:
                scope.wait(_ANSWER_S)

        player = self._player(trials, onset)
        self.played = player.play(scope, pace="flat" if self.broadcast.fast else "real", after_frame=after_frame)
        end = time.monotonic() + _LAST_S
        while len(self.heard) < len(trials) and time.monotonic() < end:
            scope.wait(0.05)
        self.finished.set()
        while not self.close.wait(0.05):
            self._check()

    def _player(self, trials: NDArray[np.int64], onset: NDArray[np.int64]) -> Player:
        recording, start, stop = self.broadcast.recording, self.broadcast.start, self.broadcast.stop
        stamps, table = recording.timestamps_s, recording.stimuli
        # Flat out, an onset is placed between the two frames that it falls between, where the jitter of the stamps leaves
        # no doubt of it and the answer need not wait for the deadline that there is none of.
        shown = table.onset_s[trials] if not self.broadcast.fast else 0.5 * (stamps[onset - 1] + stamps[onset])
        return Player(
            fluorescence=recording.fluorescence[start:stop],
            neuropil=None if recording.neuropil is None else recording.neuropil[start:stop],
            timestamps_s=stamps[start:stop],
            presentations=[
                Presentation(
                    onset_s=float(moment), duration_s=float(table.duration_s[row]), stimulus=table.stimulus_id[row]
                )
                for moment, row in zip(shown, trials, strict=True)
            ],
            ahead_s=AHEAD_S,
            margin_s=MARGIN_S,
            first_frame=start,
        )

    def _check(self) -> None:
        if self.stopped.is_set():
            raise _StoppedError


class _Watcher(threading.Thread):
    """Hears everything that is published of the session, and stamps it."""

    def __init__(self, *, ports: Ports, session: int) -> None:
        super().__init__(name="watcher", daemon=True)
        self._ports, self._session = ports, session
        self.heard: SimpleQueue[tuple[wire.Answer | wire.Decision, int]] = SimpleQueue()
        self.subscribed, self.stopped = threading.Event(), threading.Event()

    def run(self) -> None:
        types = (wire.MessageType.ANSWER, wire.MessageType.DECISION, wire.MessageType.TRIGGER)
        subscriber = Subscriber(port=self._ports.pub, types=types, session=self._session)
        try:
            while not self.stopped.is_set():
                data = subscriber.receive(0.05)
                if data is None:
                    continue
                now_ns = time.perf_counter_ns()
                self.subscribed.set()
                body = wire.decode(data).body
                if isinstance(body, wire.Answer | wire.Decision):
                    self.heard.put((body, now_ns))
        finally:
            subscriber.close()


def stream(broadcast: Broadcast, *, ports: Ports, show: Callable[[Live], None]) -> Streamed:
    """Play a broadcast into the service while a controller watches, polls and holds the trigger's lease.

    ``show`` is called several times a second with what is known so far.

    Raises:
        QuantformerError: the subscription stays silent. Errors of the clients come through.
    """
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    microscope = _Microscope(broadcast, ports=ports)
    microscope.start()
    try:
        microscope.opened.wait()
        if microscope.error is not None:
            raise microscope.error
        return _control(microscope, ports=ports, show=show)
    finally:
        microscope.stopped.set()
        microscope.join(timeout=5.0)
        sys.setswitchinterval(before_s)


def _control(microscope: _Microscope, *, ports: Ports, show: Callable[[Live], None]) -> Streamed:
    broadcast = microscope.broadcast
    live = Live(broadcast=broadcast)
    watcher = _Watcher(ports=ports, session=microscope.session)
    watcher.start()
    decisions: list[wire.Decision] = []
    engine_ms: list[float] = []
    polls = answered = 0
    try:
        with Controller(session=microscope.session, port=ports.zmq, pub_port=ports.pub) as controller:
            for rule in broadcast.rules:
                controller.set_rule(rule)
            live.trigger = _arm(controller, watcher)
            standing = controller.standing([broadcast.candidate], rois=broadcast.rules[0].rois, detail="probability")
            live.started_ns = time.perf_counter_ns()
            microscope.go.set()
            beat = polled = shown = 0.0
            finished_at: float | None = None
            while finished_at is None or time.monotonic() < finished_at:
                for body, heard_ns in _drain(watcher.heard):
                    if isinstance(body, wire.Decision):
                        decisions.append(body)
                        # A standing question is refused with every frame; of its rule, what fired is news.
                        if body.fired or body.rule == broadcast.rules[0].rule:
                            live.decisions.append(body)
                        continue
                    _note(live, body, heard_ns, sent_ns=microscope.sent_ns)
                    if body.asked != wire.Asked.STANDING:
                        engine_ms.append((body.published_ns - body.window_ready_ns) / 1e6)
                live.frames = len(microscope.sent_ns)
                now = time.monotonic()
                if now - beat > HEARTBEAT_S:
                    beat, live.trigger = now, controller.heartbeat()
                if now - polled > POLL_S:
                    polled, polls = now, polls + 1
                    live.polled = controller.poll(standing)
                    answered += live.polled is not None
                if now - shown > SHOW_S:
                    shown = now
                    show(live)
                if microscope.error is not None:
                    raise microscope.error
                if microscope.finished.is_set() and finished_at is None:
                    # What was published last is still on its way.
                    finished_at = now + _LINGER_S
            trigger = controller.disarm()
            status = controller.status()
        microscope.close.set()
        microscope.join(timeout=10.0)
        if microscope.error is not None:
            raise microscope.error
        if microscope.played is None or microscope.is_alive():
            raise QuantformerError("the microscope did not close its session within 10 s; the service's log says more")
    finally:
        watcher.stopped.set()
        watcher.join(timeout=5.0)
    trials = broadcast.trials
    return Streamed(
        played=microscope.played,
        trials=trials,
        answers={
            int(trials[index]): microscope.heard[question]
            for index, question in microscope.played.questions.items()
            if question in microscope.heard
        },
        subscribed=live.answered,
        latency_ms=np.array(live.latency_ms),
        standing_ms=np.array(live.standing_ms),
        engine_ms=np.array(engine_ms),
        decisions=tuple(decisions),
        trigger=trigger,
        counters=microscope.counters,
        polls=polls,
        polls_answered=answered,
        status=status,
    )


def _arm(controller: Controller, watcher: _Watcher) -> wire.Trigger:
    """Arm, and again until the subscription has heard of it: from then on it misses nothing."""
    end = time.monotonic() + _SUBSCRIBE_S
    while time.monotonic() < end:
        trigger = controller.arm(lease_s=LEASE_S)
        if watcher.subscribed.wait(0.2):
            return trigger
    raise QuantformerError(f"the subscription heard nothing within {_SUBSCRIBE_S:g} s of arming; the service's log says more")


def _drain(
    queue: SimpleQueue[tuple[wire.Answer | wire.Decision, int]],
) -> list[tuple[wire.Answer | wire.Decision, int]]:
    """Everything heard; waits 20 ms where there is nothing."""
    found = []
    try:
        found.append(queue.get(timeout=0.02))
        while True:
            found.append(queue.get_nowait())
    except Empty:
        return found


def _note(live: Live, answer: wire.Answer, heard_ns: int, *, sent_ns: Mapping[int, int]) -> None:
    """Latency: from the sending of the last frame read, or where the deadline forced an answer from then, to hearing it.

    Both stamps are of this machine's monotonic clock, which its processes share.
    """
    if answer.asked == wire.Asked.STANDING:
        live.standing_ms.append((heard_ns - sent_ns[answer.last_frame]) / 1e6)
        return
    begun_ns = sent_ns[answer.last_frame] if answer.lead == 0 else answer.window_ready_ns
    live.latency_ms.append((heard_ns - begun_ns) / 1e6)
    live.answered += 1
    live.onsets.append(Heard(answer=answer, heard_ns=heard_ns))
