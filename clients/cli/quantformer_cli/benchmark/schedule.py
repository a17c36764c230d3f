"""When each frame is due: an absolute schedule with jitter, so that lateness never moves the frames after it."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from quantformer.errors import UsageError

#: A sleeping process is woken this much late at worst, where nothing else runs; the rest of a wait is cut in small sleeps.
_COARSE_NS = 1_500_000
_FINE_S = 1e-4


def schedule_ns(*, frames: int, rate_hz: float, jitter: float, seed: int) -> NDArray[np.int64]:
    """Offsets ``(frames,)`` in ns from the beginning, increasing: frame k is due at k / rate, moved by up to ``jitter``
    periods either way.

    Raises:
        UsageError: frames would change places.
    """
    if not 0.0 <= jitter < 0.5:
        raise UsageError(
            f"found a jitter of {jitter:g} periods, expected 0 or more and less than 0.5: frames keep their order"
        )
    period_ns = 1e9 / rate_hz
    moved = np.random.default_rng(seed).uniform(-jitter, jitter, frames)
    return np.rint((np.arange(frames) + jitter + moved) * period_ns).astype(np.int64)


def wait_until(moment_ns: int) -> None:
    """Sleep until a moment of `time.perf_counter_ns`."""
    while (left_ns := moment_ns - time.perf_counter_ns()) > 0:
        time.sleep(left_ns / 1e9 if left_ns > _COARSE_NS else min(left_ns / 1e9, _FINE_S))
