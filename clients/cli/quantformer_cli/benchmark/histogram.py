"""A histogram of durations in a fixed layout: linear within each power of two, so that its relative error is bounded.

The layout is that of HdrHistogram (Gil Tene): two of them add up bucket by bucket, whatever was recorded, and a quantile is
the upper end of its bucket, so that it never flatters. The package of that name for Python would bring setuptools and pbr
into every installation that measures; this is what is needed of it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Durations at and above this are counted as this; 2^42 ns are 73 minutes.
LONGEST_NS = (1 << 42) - 1


class Histogram:
    """Counts of durations in whole ns. ``bits`` 11 keeps three significant digits (error at most 1 / 1024), 6 is for
    pictures (1 / 32). Durations below ``2 ** bits`` ns are exact, and so are `smallest`, `largest` and `total`.
    """

    def __init__(self, *, bits: int = 11) -> None:
        self._bits, self._half = bits, 1 << (bits - 1)
        self.counts = np.zeros(int(self._index(np.array([LONGEST_NS]))[0]) + 1, np.int64)
        self.total = 0
        self.smallest, self.largest = 0, 0

    def record(self, durations_ns: NDArray[np.integer[Any]]) -> None:
        """Count durations ``(n,)``; one below zero, which clocks of two machines can yield, counts as zero."""
        if not len(durations_ns):
            return
        values = np.clip(durations_ns.astype(np.int64), 0, LONGEST_NS)
        np.add.at(self.counts, self._index(values), 1)
        low, high = int(values.min()), int(values.max())
        self.smallest = min(self.smallest, low) if self.total else low
        self.largest = max(self.largest, high)
        self.total += len(values)

    def quantile(self, q: float) -> int | None:
        """The duration that a share ``q`` of all does not exceed, in ns; None where there are too few to say (fewer than
        1 / (1 - q)).
        """
        if self.total * (1 - q) < 1 - 1e-9:
            return None
        rank = max(1, math.ceil(q * self.total - 1e-9))
        bucket = int(np.searchsorted(np.cumsum(self.counts), rank))
        return max(self.smallest, min(self._upper(bucket), self.largest))

    def pairs(self) -> list[tuple[int, int]]:
        """The buckets that hold something: lower end in ns, and count."""
        return [(self._lower(int(bucket)), int(self.counts[bucket])) for bucket in np.flatnonzero(self.counts)]

    def _index(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        # The exponent of frexp is the bit length; floats hold every value in range exactly.
        length = np.frexp(values.astype(np.float64))[1].astype(np.int64)
        shift = np.maximum(length - self._bits, 0)
        bucket: NDArray[np.int64] = shift * self._half + (values >> shift)
        return bucket

    def _lower(self, bucket: int) -> int:
        shift = max(0, bucket // self._half - 1)
        return (bucket - shift * self._half) << shift

    def _upper(self, bucket: int) -> int:
        return self._lower(bucket + 1) - 1
