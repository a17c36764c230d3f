"""Blocks by pauses."""

from __future__ import annotations

import numpy as np
import pytest

from quantformer_training.sub_sessions import sub_sessions


@pytest.mark.parametrize(
    ("start", "end", "blocks"),
    [
        ([], [], []),
        ([5], [9], [0]),
        ([0, 99, 160], [60, 120, 200], [0, 0, 1]),  # a pause of 39 frames belongs to the block, one of 40 ends it
        ([0, 100, 140], [60, 120, 160], [0, 1, 1]),
        ([0, 50], [90, 60], [0, 0]),
    ],
)
def test_a_pause_longer_than_the_longest_begins_a_block(start: list[int], end: list[float], blocks: list[int]) -> None:
    found = sub_sessions(start=np.array(start, np.intp), end=np.array(end, float), longest_gap=39)
    assert found.tolist() == blocks
    assert found.dtype == np.int16
