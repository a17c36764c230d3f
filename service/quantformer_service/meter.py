"""What the loop counts and times: fixed buckets, incremented in place, and a snapshot of them now and then."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

import numpy as np

from quantformer_client import wire

#: Upper ends of the buckets in ns: around the overhead's aims (0.25 and 0.8 ms) and one frame at 30 Hz finer than elsewhere.
BOUNDS_NS = (
    20_000, 50_000, 100_000, 150_000, 200_000, 250_000, 300_000, 400_000, 500_000, 650_000, 800_000, 1_000_000,
    1_500_000, 2_000_000, 2_500_000, 5_000_000, 10_000_000, 15_000_000, 20_000_000, 25_000_000, 33_333_333, 50_000_000,
    100_000_000, 250_000_000, 1_000_000_000,
)  # fmt: skip
_BOUNDS_S = [bound / 1e9 for bound in BOUNDS_NS]


class Timing:
    """How often something took how long."""

    __slots__ = ("_counts", "_sum_ns")

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_NS) + 1)
        self._sum_ns = 0

    def add(self, took_ns: int) -> None:
        """It took this long, once."""
        self._counts[bisect_left(BOUNDS_NS, took_ns)] += 1
        self._sum_ns += took_ns

    def snapshot(self) -> wire.Histogram:
        """The buckets as they are."""
        return wire.Histogram(bounds_s=_BOUNDS_S, counts=list(self._counts), sum_s=max(0, self._sum_ns) / 1e9)


class Meter:
    """The stages of a frame and of an answer, and what ROIs in answers were.

    ``ingest`` is a frame's time in the loop; ``queue`` from a question's window being ready to its submission, ``inference``
    from there to done, ``total`` from the last frame read coming in to the answer being published, and ``overhead`` the total
    without inference. The last two are of standing questions only: an onset is asked about when its own time has come.
    """

    def __init__(self) -> None:
        self.ingest, self.queue, self.inference = Timing(), Timing(), Timing()
        self.total, self.overhead = Timing(), Timing()
        self.counters: Counter[str] = Counter()

    def answered(self, answer: wire.Answer) -> None:
        """An answer was published."""
        standing = answer.asked == wire.Asked.STANDING
        inference_ns = answer.done_ns - answer.submitted_ns
        self.queue.add(answer.submitted_ns - answer.window_ready_ns)
        self.inference.add(inference_ns)
        if standing:
            total_ns = answer.published_ns - answer.received_ns
            self.total.add(total_ns)
            self.overhead.add(total_ns - inference_ns)
        counters, kind = self.counters, "standing" if standing else "onset"
        counters[f"answers_{kind}"] += 1
        if answer.flags & _LATE:
            counters[f"late_{kind}"] += 1
        if answer.flags & _DEGRADED:
            counters["degraded"] += 1
        if answer.flags & _OUT_OF_PHASE:
            counters["out_of_phase"] += 1
        bits = answer.validity
        counters["rois_valid"] += int(np.count_nonzero(bits & _VALID))
        counters["rois_invalid"] += int(np.count_nonzero(bits & _INVALID_F0))
        counters["rois_stimulated"] += int(np.count_nonzero(bits & _STIMULATED))
        counters["rois_unknown"] += len(bits) - int(np.count_nonzero(bits & _KNOWN))

    def histograms(self) -> dict[str, wire.Histogram]:
        """Every timing, by name."""
        return {
            "ingest": self.ingest.snapshot(),
            "queue": self.queue.snapshot(),
            "inference": self.inference.snapshot(),
            "total": self.total.snapshot(),
            "overhead": self.overhead.snapshot(),
        }


_VALID, _KNOWN = np.uint8(wire.Validity.VALID), np.uint8(wire.Validity.KNOWN)
_INVALID_F0, _STIMULATED = np.uint8(wire.Validity.INVALID_F0), np.uint8(wire.Validity.STIMULATED)
_LATE, _DEGRADED = int(wire.Flags.LATE), int(wire.Flags.DEGRADED)
_OUT_OF_PHASE = int(wire.Flags.OUT_OF_PHASE)
