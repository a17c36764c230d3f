"""A recording as a fake microscope: in real time or flat out, undisturbed or with jitter, loss and reordering."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from quantformer_client import wire
from quantformer_client.microscope import Microscope

#: Flat out, the player waits for the engine after this many frames.
FLOW_FRAMES = 32


@dataclass(frozen=True, kw_only=True)
class Presentation:
    """A stimulus of the recording: its onset (s on the recording's clock), its duration (s), and what it is."""

    onset_s: float
    duration_s: float
    stimulus: str | wire.Stimulus


@dataclass(frozen=True, kw_only=True)
class Disturbance:
    """What goes wrong on the way: each frame is late by up to ``jitter_s`` (order kept), is lost with probability
    ``loss``, or changes places with its successor with probability ``reorder``. Seeded.
    """

    jitter_s: float = 0.0
    loss: float = 0.0
    reorder: float = 0.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Played:
    """What a run did. ``lost`` frames were dropped on purpose by the disturbance, never by the player. ``behind_s`` is the
    greatest delay against the pace. ``questions`` maps each announced presentation's index to its question's id;
    ``refused`` counts by code what the engine did not take.
    """

    sent: int
    lost: int
    reordered: int
    seconds: float
    behind_s: float
    questions: dict[int, int]
    refused: dict[str, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Player:
    """Plays ``fluorescence`` ``(frames, rois)`` with its ``timestamps_s`` ``(frames,)`` (start of each exposure).

    ``delivery_s`` is the time from the start of a frame's exposure to its arrival. Each presentation is announced ``ahead_s``
    before its onset (at most 10 s) with a deadline ``margin_s`` before it; flat out there is no clock to keep, so the answer
    is due when the last frame before the onset is in. Frame numbers begin at ``first_frame``. With ``baseline`` the answers
    hold the windows that were read.
    """

    fluorescence: NDArray[np.float32]
    timestamps_s: NDArray[np.float64]
    neuropil: NDArray[np.float32] | None = None
    presentations: Sequence[Presentation] = ()
    ahead_s: float = 1.0
    margin_s: float = 0.02
    delivery_s: float = 0.0
    first_frame: int = 0
    baseline: bool = False
    disturbance: Disturbance = field(default_factory=Disturbance)

    def __post_init__(self) -> None:
        frames = len(self.timestamps_s)
        if self.fluorescence.ndim != 2 or len(self.fluorescence) != frames or frames < 1:
            raise ValueError(f"fluorescence has shape {self.fluorescence.shape}, expected ({frames}, rois), one row a stamp")
        if self.neuropil is not None and self.neuropil.shape != self.fluorescence.shape:
            raise ValueError(f"neuropil has shape {self.neuropil.shape}, expected {self.fluorescence.shape}")
        if not 0.0 <= self.margin_s < self.ahead_s <= 10.0:
            raise ValueError(f"expected 0 <= margin_s < ahead_s <= 10, found {self.margin_s} and {self.ahead_s}")

    def play(
        self,
        microscope: Microscope,
        *,
        pace: Literal["real", "flat"] = "real",
        after_frame: Callable[[int], None] | None = None,
    ) -> Played:
        """Play the whole recording; ``after_frame`` is called with each frame's index once it is sent.

        In real time a frame leaves when its time has come; if sending falls behind, the next ones leave at once.

        Raises:
            SessionLostError: the engine ended the session.
            UnreachableError: the connection is gone, or the engine does not keep up.
        """
        real = pace == "real"
        schedule = self.schedule()
        pending = deque(sorted((shown.onset_s - self.ahead_s, index) for index, shown in enumerate(self.presentations)))
        questions: dict[int, int] = {}
        before = dict(microscope.refused)
        start = time.perf_counter()
        behind = 0.0
        for sent, (due_s, frame) in enumerate(schedule, 1):
            while pending and pending[0][0] <= due_s:
                at_s, index = pending.popleft()
                self._wait(start + at_s - self._origin_s, real)
                questions[index] = self._announce(microscope, self.presentations[index], real, start)
            behind = max(behind, self._wait(start + due_s - self._origin_s, real))
            microscope.frame(
                number=self.first_frame + frame,
                device_s=float(self.timestamps_s[frame]),
                fluorescence=self.fluorescence[frame],
                neuropil=None if self.neuropil is None else self.neuropil[frame],
            )
            if not real and sent % FLOW_FRAMES == 0:
                microscope.sync()
            if after_frame is not None:
                after_frame(frame)
        microscope.sync()
        numbers = [frame for _, frame in schedule]
        return Played(
            sent=len(schedule),
            lost=len(self.timestamps_s) - len(schedule),
            reordered=int(np.count_nonzero(np.diff(numbers) < 0)),
            seconds=time.perf_counter() - start,
            behind_s=behind,
            questions=questions,
            refused={code: count - before.get(code, 0) for code, count in microscope.refused.items()},
        )

    @property
    def _origin_s(self) -> float:
        """The recording's time at which the run begins."""
        return float(self.timestamps_s[0])

    def schedule(self) -> list[tuple[float, int]]:
        """When (s on the recording's clock) each frame leaves, in the order of leaving; lost ones are not in it."""
        rng = np.random.default_rng(self.disturbance.seed)
        frames = len(self.timestamps_s)
        due = self.timestamps_s + self.delivery_s + self.disturbance.jitter_s * rng.random(frames)
        due = np.maximum.accumulate(due)
        kept = np.flatnonzero(rng.random(frames) >= self.disturbance.loss)
        swap = rng.random(max(len(kept) - 1, 0)) < self.disturbance.reorder
        order = kept.copy()
        at = 0
        while at < len(swap):
            if swap[at]:
                order[at], order[at + 1] = order[at + 1], order[at]
                at += 1
            at += 1
        return [(float(due[slot]), int(frame)) for slot, frame in zip(kept, order, strict=True)]

    def _announce(self, microscope: Microscope, shown: Presentation, real: bool, start: float) -> int:
        left_s = start + (shown.onset_s - self._origin_s) - time.perf_counter() - self.margin_s
        return microscope.onset(
            shown.stimulus,
            onset_s=shown.onset_s,
            within_s=max(left_s, 1e-3) if real else None,
            duration_s=shown.duration_s,
            baseline=self.baseline,
        )

    @staticmethod
    def _wait(until: float, real: bool) -> float:
        """Sleep until a moment of `perf_counter`; returns by how much it has passed, seconds."""
        if not real:
            return 0.0
        while (left := until - time.perf_counter()) > 0:
            time.sleep(left)
        return -left
