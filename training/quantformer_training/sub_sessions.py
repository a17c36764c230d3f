"""Blocks of one stimulus within a session, found by the pauses between presentations; files do not store them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: A longer pause, in frames at 30 Hz from one presentation's end to the next one's start, begins another block.
#: The values belong to the sessions A (gratings that drift), B (static gratings, scenes) and C (sparse noise).
LONGEST_GAP_FRAMES = {
    "drifting_gratings": 39,
    "static_gratings": 15,
    "natural_scenes": 15,
    "locally_sparse_noise": 7,
    "spontaneous": 7,
}


def sub_sessions(*, start: NDArray[np.intp], end: NDArray[np.float64], longest_gap: int) -> NDArray[np.int16]:
    """Number the blocks ``(rows,)`` from 0, for presentations of one stimulus in order of ``start``, both in frames."""
    new = start[1:] - end[:-1] > longest_gap
    return np.concatenate([np.zeros(min(1, len(start)), np.int16), np.cumsum(new)]).astype(np.int16)
