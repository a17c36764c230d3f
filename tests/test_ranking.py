"""Stimuli ranked by what an ensemble is expected to answer."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from quantformer_client import wire

BOTH = wire.Validity.VALID | wire.Validity.KNOWN
ANSWER = wire.Answer(
    question=1, asked=wire.Asked.NOW, phase=wire.Phase.BETWEEN, stimuli=("a", "b", "c"), onset_frame=96, onset_s=3.2,
    first_frame=0, last_frame=95, last_frame_s=3.1, lead=0, held=0, received_ns=1, window_ready_ns=2, submitted_ns=3,
    done_ns=4, published_ns=5, deadline_ns=0, bundle=bytes(32), rois=np.arange(4, dtype=np.uint32),
    validity=np.array([BOTH, BOTH, wire.Validity.VALID, wire.Validity.KNOWN], np.uint8),
    probability=np.array([[0.1, 0.3, 1.0, 1.0], [0.5, 0.7, 0.0, 0.0], [0.2, 0.4, 0.0, np.nan]], np.float32),
    response=np.array([2.0, -1.0, 4.0], np.float32)[:, None, None] * np.ones((3, 4, 60), np.float32),
    scale=np.zeros((3, 4), np.float32), ends=np.zeros((2, 60), np.float32),
)  # fmt: skip


def test_only_known_and_valid_rois_count_and_the_best_comes_first() -> None:
    ranked = wire.ranking(ANSWER, rate_hz=30.0)
    assert [one.stimulus for one in ranked] == ["b", "c", "a"]
    assert [one.probability for one in ranked] == pytest.approx([0.6, 0.3, 0.2])
    assert {one.rois for one in ranked} == {2}
    assert [one.area for one in ranked] == pytest.approx([-2.0, 8.0, 4.0])
    assert [one.stimulus for one in wire.ranking(ANSWER, rate_hz=30.0, by="area")] == ["c", "a", "b"]


def test_without_a_usable_roi_there_is_no_order() -> None:
    none = msgspec.structs.replace(ANSWER, validity=np.zeros(4, np.uint8))
    assert wire.ranking(none, rate_hz=30.0) == [
        wire.Ranked(stimulus=name, probability=None, area=None, rois=0) for name in "abc"
    ]


def test_areas_need_a_forecast() -> None:
    bare = msgspec.structs.replace(ANSWER, response=None, scale=None, ends=None)
    assert [one.area for one in wire.ranking(bare, rate_hz=30.0)] == [None] * 3
    with pytest.raises(ValueError, match="detail='forecast'"):
        wire.ranking(bare, rate_hz=30.0, by="area")
