"""Minutes of a full field of view through the whole service in real time: ``make test-soak``.

SOAK_SECONDS sets how long (300), SOAK_REPORT a file for the figures. Nothing here judges a time: figures are printed.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from running_service import PATIENCE_S, RunningService
from tiny_bundle import write_tiny_bundle

from quantformer.config import PRESETS
from quantformer_client import Answer, Microscope, Player, Presentation, SignalDeclaration, wire

NEURONS = 241
RATE_HZ = 30.0
ONSET_EVERY_S = 3.0
#: The standing question is polled this often by a controller, and the gateway's status read, in s.
POLL_EVERY_S = 1.0
#: Memory that a process may gain after its first seconds; a leak of one answer a second would pass it in minutes.
GROWTH_BYTES = 48 << 20


@dataclass(kw_only=True, eq=False)
class Listener:
    """A controller in a thread of its own: subscribes to every answer, and polls the engine and the gateway."""

    service: RunningService
    session: int
    heard: Counter[str] = field(default_factory=Counter)
    #: Last frame read received to answer published, ms; and the same until this client had it.
    published_ms: list[float] = field(default_factory=list)
    heard_ms: list[float] = field(default_factory=list)
    polls: Counter[str] = field(default_factory=Counter)
    failure: BaseException | None = None

    def __post_init__(self) -> None:
        self._ended, self.watching = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=self._guarded, args=(work,)) for work in (self._watch, self._poll)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self.failure = error

    def _watch(self) -> None:
        with self.service.controller(self.session) as controller, controller.watch() as watch:
            self.watching.set()
            while not self._ended.is_set():
                event = watch.next(0.1)
                if isinstance(event, Answer):
                    self._hear(event)

    def _hear(self, answer: Answer) -> None:
        # One machine, one clock: the engine's stamps and this process's are comparable.
        now = time.perf_counter_ns()
        if answer.asked != wire.Asked.STANDING:
            self.heard["announced"] += 1
            return
        self.heard["standing"] += 1
        self.heard["standing_late"] += bool(answer.flags & wire.Flags.LATE)
        self.published_ms.append((answer.published_ns - answer.received_ns) / 1e6)
        self.heard_ms.append((now - answer.received_ns) / 1e6)

    def _poll(self) -> None:
        with self.service.controller(self.session) as controller, self.service.rest() as rest:
            while not self._ended.wait(POLL_EVERY_S):
                if not self.heard["standing"]:
                    continue  # there is no answer yet to poll
                self.polls["engine"] += controller.poll() is not None
                self.polls["gateway"] += rest.status()["state"] == "ready"
                self.polls["prediction"] += bool(rest.prediction(self.session, detail="probability"))


def traces(frames: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Fluorescence and neuropil; what they are does not matter to the time that they take."""
    rng = np.random.default_rng(8)
    fluorescence = rng.normal(300.0, 15.0, (frames, NEURONS)).astype(np.float32)
    return fluorescence, rng.normal(100.0, 5.0, (frames, NEURONS)).astype(np.float32)


def summary(values: list[float]) -> dict[str, float]:
    p50, p99 = np.quantile(values, [0.5, 0.99])
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2), "max": round(max(values), 2)}


def memory(processes: dict[str, psutil.Process]) -> dict[str, int]:
    return {name: process.memory_info().rss for name, process in processes.items()}


@pytest.mark.soak
def test_no_frame_is_lost_and_every_onset_is_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = float(os.environ.get("SOAK_SECONDS", "300"))
    ids = tuple(f"n{i:03d}" for i in range(NEURONS))
    write_tiny_bundle(tmp_path / "bundle", neuron_ids=ids, config=PRESETS["small"])
    frames = round(seconds * RATE_HZ)
    fluorescence, neuropil = traces(frames)
    onsets = np.arange(6.0, seconds - 1.0, ONSET_EVERY_S)
    player = Player(
        fluorescence=fluorescence,
        neuropil=neuropil,
        timestamps_s=np.arange(frames) / RATE_HZ,
        presentations=[
            Presentation(onset_s=float(onset), duration_s=2.0, stimulus=f"dir={45 * (k % 8):03d}")
            for k, onset in enumerate(onsets)
        ],
    )
    with RunningService(tmp_path / "bundle", folder=tmp_path / "service") as service:
        processes = {name: service.child(name) for name in ("engine", "gateway")}
        scope = Microscope(
            subject="soak",
            rois=ids,
            rate_hz=RATE_HZ,
            signal=SignalDeclaration(corrected=False, neuropil_factor=[0.7] * NEURONS),
            port=service.zmq,
        )
        with service.controller(scope.session) as controller:
            controller.standing(["dir=045"])
        listener = Listener(service=service, session=scope.session)
        assert listener.watching.wait(PATIENCE_S)
        early: dict[str, int] = {}
        cpu = {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}

        def after_frame(frame: int) -> None:
            # Once windows are full, answers flow and every buffer has been used.
            if frame == min(frames - 1, round(20 * RATE_HZ)):
                early.update(memory(processes))

        try:
            played = player.play(scope, after_frame=after_frame)
            while len(scope.answers) + sum(scope.refused.values()) < len(onsets):
                assert scope.connection.receive(PATIENCE_S), "an onset has no answer"
        finally:
            listener.end()
        late_memory = memory(processes)
        cpu = {
            name: round((sum(process.cpu_times()[:2]) - cpu[name]) / played.seconds, 3)
            for name, process in processes.items()
        }
        answers = list(scope.answers)
        counters = scope.close()
    late = [answer for answer in answers if answer.flags & wire.Flags.LATE]
    figures = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_average": [round(value, 1) for value in os.getloadavg()],
        "seconds": round(played.seconds, 1),
        "frames": {
            "sent": played.sent,
            "received": counters["frames"],
            "lost": played.sent - counters["frames"] + counters.get("gap_frames", 0),
            "sent_behind_ms_max": round(1e3 * played.behind_s, 1),
        },
        "onsets": {
            "announced": len(played.questions),
            "answered": len(answers),
            "late": len(late),
            "lead_max": max(answer.lead for answer in answers),
            "window_ready_to_published_ms": summary(
                [(answer.published_ns - answer.window_ready_ns) / 1e6 for answer in answers]
            ),
        },
        "standing": {
            "answers": counters["standing_questions"],
            "skipped": counters.get("standing_dropped", 0),
            "heard": listener.heard["standing"],
            "late": listener.heard["standing_late"],
            "frame_received_to_published_ms": summary(listener.published_ms),
            "frame_received_to_heard_ms": summary(listener.heard_ms),
        },
        "polls": dict(listener.polls),
        "cpu_share_of_a_core": cpu,
        "memory_mib": {name: [early[name] >> 20, late_memory[name] >> 20] for name in processes},
    }
    text = json.dumps(figures, indent=1)
    with capsys.disabled():
        print(f"\n{text}")
    if "SOAK_REPORT" in os.environ:
        Path(os.environ["SOAK_REPORT"]).write_text(text + "\n")
    assert listener.failure is None
    assert played.sent == frames
    assert (counters["frames"], counters.get("gap_frames", 0), played.refused) == (frames, 0, {})
    assert {answer.question for answer in answers} == set(played.questions.values())
    assert len(played.questions) == len(onsets)
    assert all(answer.valid.all() and answer.response is not None for answer in answers)
    # Every frame with a whole window before it had its standing question, or was passed over and counted.
    assert counters["standing_questions"] + counters.get("standing_dropped", 0) >= frames - 96 - 1
    assert listener.heard["standing"] > 0
    assert listener.heard["announced"] == len(onsets)
    assert min(listener.polls[name] for name in ("engine", "gateway", "prediction")) > 0
    for name, begun in early.items():
        assert late_memory[name] - begun < GROWTH_BYTES, f"{name} grew from {begun} to {late_memory[name]} bytes"
