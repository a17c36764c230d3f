"""What is counted of an answer."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from quantformer_client import wire
from quantformer_service.meter import BOUNDS_NS, Meter, Timing

VALID = wire.Validity.VALID | wire.Validity.KNOWN
ANSWER = wire.Answer(
    question=1, asked=wire.Asked.STANDING, phase=wire.Phase.BETWEEN, stimuli=("a",), onset_frame=96, onset_s=3.2,
    first_frame=0, last_frame=95, last_frame_s=3.1, lead=0, held=0, received_ns=1_000, window_ready_ns=21_000,
    submitted_ns=61_000, done_ns=2_061_000, published_ns=2_201_000, deadline_ns=0, bundle=bytes(32),
    rois=np.arange(4, dtype=np.uint32),
    validity=np.array([VALID, wire.Validity.VALID, wire.Validity.KNOWN | wire.Validity.INVALID_F0,
                       wire.Validity.KNOWN | wire.Validity.STIMULATED], np.uint8),
    probability=np.zeros((1, 4), np.float32),
)  # fmt: skip


def only(histogram: wire.Histogram) -> float:
    """The upper bound of the one bucket that has a count, in ns."""
    (place,) = np.flatnonzero(histogram.counts)
    assert histogram.counts[place] == 1
    return round(histogram.bounds_s[place] * 1e9)


def test_stages_of_a_standing_answer() -> None:
    meter = Meter()
    meter.answered(ANSWER)
    found = meter.histograms()
    assert only(found["queue"]) == 50_000
    assert only(found["inference"]) == 2_000_000
    assert only(found["total"]) == 2_500_000
    # (published - received) - (done - submitted) = 0.2 ms, of this frame.
    assert only(found["overhead"]) == 200_000
    assert found["overhead"].sum_s == pytest.approx(200e-6)
    assert dict(meter.counters) == {
        "answers_standing": 1, "rois_valid": 2, "rois_invalid": 1, "rois_stimulated": 1, "rois_unknown": 1,
    }  # fmt: skip


def test_an_onset_has_waited_for_its_own_time_which_is_no_overhead() -> None:
    meter = Meter()
    flags = wire.Flags.LATE | wire.Flags.DEGRADED | wire.Flags.OUT_OF_PHASE
    meter.answered(msgspec.structs.replace(ANSWER, asked=wire.Asked.ANNOUNCED, flags=flags))
    found = meter.histograms()
    assert sum(found["overhead"].counts) == sum(found["total"].counts) == 0
    assert sum(found["inference"].counts) == 1
    for name in ("answers_onset", "late_onset", "degraded", "out_of_phase"):
        assert meter.counters[name] == 1


def test_times_beyond_every_bound_have_a_bucket_too() -> None:
    timing = Timing()
    timing.add(BOUNDS_NS[-1] + 1)
    timing.add(-5)
    counts = timing.snapshot().counts
    assert (counts[0], counts[-1], sum(counts)) == (1, 1, 2)
