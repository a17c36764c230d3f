"""What stamps say: where the time of each answer went, overhead a frame, and latency corrected for coordinated omission.

Pure arithmetic on arrays of ns. A sender that waits for a slow service sends less while it is slow and so measures it less
often; its own stamps then hide the stall. Here every frame has a moment at which it was due, kept whatever happened before,
and the corrected latency runs from that moment until the client held the first answer that had read the frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ns = NDArray[np.int64]

#: The way of a frame to its answer, in order; they add up to the time from its due moment to the answer in the client's hand.
STAGES = ("slip", "wire_in", "window", "queue", "inference", "publish", "wire_out")


@dataclass(frozen=True, kw_only=True, eq=False)
class Sent:
    """Frames of one client: when each was due and when its sending began ``(frames,)``; on the client's clock."""

    due_ns: Ns
    sent_ns: Ns


@dataclass(frozen=True, kw_only=True, eq=False)
class Heard:
    """Answers of one client ``(n,)``: ``frame`` is the row in `Sent` of the last frame read, ``about`` that of the frame
    before the onset, which an onset answered without its last frames has not read; ``got_ns`` on the client's clock, the
    others on the engine's; ``late`` as the engine flagged it.
    """

    frame: NDArray[np.int64]
    about: NDArray[np.int64]
    received_ns: Ns
    window_ready_ns: Ns
    submitted_ns: Ns
    done_ns: Ns
    published_ns: Ns
    got_ns: Ns
    late: NDArray[np.bool_]

    def where(self, chosen: NDArray[np.bool_]) -> Heard:
        """Those answers alone."""
        return Heard(**{name: column[chosen] for name, column in vars(self).items()})

    def __len__(self) -> int:
        return len(self.frame)


def durations(sent: Sent, heard: Heard, *, offset_ns: int) -> dict[str, Ns]:
    """Every duration of each answer ``(n,)`` in ns: the `STAGES`, and what is made of them a frame.

    ``offset_ns`` is the engine's clock less the client's; only ``wire_in`` and ``wire_out`` depend on it. ``overhead`` is
    (published - received) - (done - submitted); ``round_trip`` runs from the sending of the last frame read until the
    client had the answer; ``beside_inference`` is that less the inference of the same frame.
    """
    inference = heard.done_ns - heard.submitted_ns
    engine = heard.published_ns - heard.received_ns
    begun = sent.sent_ns[heard.frame]
    round_trip = heard.got_ns - begun
    return {
        "slip": begun - sent.due_ns[heard.frame],
        "wire_in": heard.received_ns - offset_ns - begun,
        "window": heard.window_ready_ns - heard.received_ns,
        "queue": heard.submitted_ns - heard.window_ready_ns,
        "inference": inference,
        "publish": heard.published_ns - heard.done_ns,
        "wire_out": heard.got_ns - (heard.published_ns - offset_ns),
        "engine": engine,
        "overhead": engine - inference,
        "round_trip": round_trip,
        "beside_inference": round_trip - inference,
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class Corrected:
    """``latency_ns`` ``(asked,)``: from the moment each frame asked about was due until the client held its answer, or a
    later one's where the latest wins. ``missed``: not before the next frame was due. ``skipped`` frames have no answer of
    their own; ``unanswered`` have none at all, and count as answered when the client gave up.
    """

    latency_ns: Ns
    missed: int
    skipped: int
    unanswered: int


def corrected(
    sent: Sent, heard: Heard, *, asked: NDArray[np.int64], latest_wins: bool, end_ns: int, period_ns: int
) -> Corrected:
    """Latencies of the frames ``asked`` (rows of ``sent``), corrected for coordinated omission; the client stopped
    listening at ``end_ns``. ``latest_wins`` of a standing question: a skipped frame is answered by a later one's answer.
    """
    never = np.iinfo(np.int64).max
    first = np.full(len(sent.due_ns), never)
    np.minimum.at(first, heard.about, heard.got_ns)
    had = (np.minimum.accumulate(first[::-1])[::-1] if latest_wins else first)[asked]
    unanswered = had == never
    latency = np.where(unanswered, end_ns, had) - sent.due_ns[asked]
    next_due = np.append(sent.due_ns[1:], sent.due_ns[-1:] + period_ns)[asked]
    return Corrected(
        latency_ns=latency,
        missed=int(np.count_nonzero(unanswered | (had > next_due))),
        skipped=int(np.count_nonzero(first[asked] == never)),
        unanswered=int(np.count_nonzero(unanswered)),
    )


def stage_means(found: dict[str, Ns]) -> dict[str, dict[str, float]]:
    """Mean of each stage in us: over the answers in the middle (from the 40th to the 60th percentile of their whole way)
    and over the slowest hundredth. Means of stages add up, their percentiles do not.
    """
    order = np.argsort(np.sum([found[name] for name in STAGES], axis=0), kind="stable")
    n = len(order)
    if not n:
        return {}
    chosen = {"typical": order[int(0.4 * n) : int(0.6 * n) + 1], "slowest": order[99 * n // 100 :]}
    return {name: {stage: float(found[stage][rows].mean()) / 1e3 for stage in STAGES} for name, rows in chosen.items()}
