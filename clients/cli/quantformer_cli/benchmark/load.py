"""One client of the bench, in a process of its own: paced frames, questions, and the stamps of every answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from quantformer_cli.benchmark.plan import Questions, Transport
from quantformer_cli.benchmark.schedule import schedule_ns
from quantformer_cli.benchmark.worker import Desk, work_as
from quantformer_client import wire

#: An onset is announced this many frames before its last frame.
AHEAD = 5
#: Longest wait in s for one answer, first of all while the shapes of a condition are new to the runtime.
PATIENCE_S = 60.0
#: After the last frame the client listens for so long at most, in s.
GRACE_S = 5.0
#: Frames at the beginning that are sent without pace, so that windows are whole; so many at a time.
FLOW = 32
#: Between two polls, where answers are polled, in s.
POLL_S = 1e-3
_VALUES = 32


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """The work of one client. ``stimuli`` and ``rois`` are ids; ``out`` is the .npz file that takes the stamps."""

    transport: Transport
    host: str
    http_port: int
    zmq_port: int
    pub_port: int
    tcp_port: int
    token: str
    rois: list[str]
    stimuli: list[str]
    questions: Questions
    detail: Literal["forecast", "probability"]
    every: int
    rate_hz: float
    jitter: float
    frames: int
    phase: float
    seed: int
    out: str


class Stamps:
    """What one client saw: when frames were due and sent, and a row an answer."""

    COLUMNS = (
        "asked",
        "about",
        "frame",
        "received_ns",
        "window_ready_ns",
        "submitted_ns",
        "done_ns",
        "published_ns",
        "got_ns",
        "late",
    )

    def __init__(self, load: Load) -> None:
        self.offsets_ns = schedule_ns(frames=load.frames, rate_hz=load.rate_hz, jitter=load.jitter, seed=load.seed)
        self.offsets_ns += round(load.phase * 1e9 / load.rate_hz)
        self.sent_ns = np.zeros(load.frames, np.int64)
        self.begun_ns = self.ended_ns = 0
        self.probed: list[int] = []
        #: Frame number of the first paced frame; known once windows are filled.
        self.first = 0
        self.rows: list[tuple[int, ...]] = []
        self._seen: set[tuple[int, int]] = set()

    def begin(self, now_ns: int) -> None:
        """The schedule begins a moment from now; what was heard while warming up is forgotten."""
        self.begun_ns = now_ns + 20_000_000
        self.rows.clear()
        self._seen.clear()

    def due_ns(self, frame: int) -> int:
        """When a frame is due."""
        return self.begun_ns + int(self.offsets_ns[frame])

    def add(
        self, *, asked: int, onset_frame: int, last_frame: int, late: bool, got_ns: int, stamps: Sequence[int]
    ) -> None:
        """An answer; the same one polled again is not another."""
        key = (asked, onset_frame - 1)
        if last_frame >= self.first and key not in self._seen:
            self._seen.add(key)
            frames = (onset_frame - 1 - self.first, last_frame - self.first)
            self.rows.append((asked, *frames, *stamps, got_ns, late))

    def answered(self, *, asked: int, frame: int) -> bool:
        """Whether a question of this kind about this frame (a row, not a number) has its answer."""
        return (asked, frame + self.first) in self._seen

    def write(self, path: str) -> None:
        """As arrays, for the bench."""
        columns = np.array(self.rows, np.int64).reshape(len(self.rows), len(self.COLUMNS))
        arrays: dict[str, Any] = {name: columns[:, at] for at, name in enumerate(self.COLUMNS)}
        arrays |= {"due_ns": self.begun_ns + self.offsets_ns, "sent_ns": self.sent_ns}
        arrays |= {"probed": np.array(self.probed, np.int64), "ended_ns": np.array(self.ended_ns, np.int64)}
        np.savez(path, **arrays)


class Questioner:
    """What is asked, and when: the same for every transport."""

    def __init__(self, load: Load) -> None:
        self.stands = load.questions in ("standing", "both")
        self.announces = load.questions != "standing"
        self._load = load
        probe = load.questions == "none"
        self._stimuli = [wire.Stimulus(stimulus_id=name) for name in (load.stimuli[:1] if probe else load.stimuli)]
        self._rois = load.rois[:1] if probe else None
        self._detail: Literal["forecast", "probability"] = "probability" if probe else load.detail
        self.values = np.random.default_rng(load.seed).normal(300.0, 15.0, (_VALUES, len(load.rois))).astype(np.float32)

    def opening(self) -> wire.Open:
        """The session; ROIs that the bundle does not know are served by its unknown vector."""
        return wire.Open(
            subject="bench", rois=self._load.rois, rate_hz=self._load.rate_hz, unknown="mark", accept_slow=True
        )

    def frame(self, number: int, *, roi_hash: int = 0) -> wire.Frame:
        """A frame; its device time is that of a steady microscope."""
        values: NDArray[np.float32] = self.values[number % _VALUES]
        return wire.Frame(number=number, device_s=number / self._load.rate_hz, fluorescence=values, roi_hash=roi_hash)

    def standing(self) -> wire.Standing:
        """The standing question."""
        return wire.Standing(stimuli=self._stimuli, rois=self._rois, detail=self._load.detail)

    def onset(self, number: int | None) -> wire.Onset:
        """An onset at a frame number; now with None."""
        return wire.Onset(
            stimuli=self._stimuli, onset_frame=number, rois=self._rois, detail=self._detail, duration_s=1e-3
        )

    def probed(self, frame: int) -> int | None:
        """The row of the last frame of the onset that is announced once frame ``frame`` is sent; None: none is."""
        last = frame + AHEAD
        return last if self.announces and last < self._load.frames and last % self._load.every == 0 else None

    def fill(self, *, baseline_frames: int, rate_hz: float) -> int:
        """Frames that a session needs before every onset has a whole window."""
        return int(np.ceil(baseline_frames / rate_hz * self._load.rate_hz)) + AHEAD + 3


def client(load: Load, desk: Desk) -> dict[str, Any]:
    """Send, ask and listen; the counts, while the stamps go to ``load.out``."""
    stamps = Stamps(load)
    if load.transport in ("zmq", "tcp"):
        from quantformer_cli.benchmark.wire_load import run_wire

        counts = run_wire(load, desk, stamps)
    else:
        from quantformer_cli.benchmark.http_load import run_http

        counts = run_http(load, desk, stamps)
    stamps.write(load.out)
    return counts


if __name__ == "__main__":
    work_as(Load, client)
