"""How long what is left will take, from how long its like has taken."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np


class Pace:
    """Seconds a unit of each kind (a model's training, an auto-encoder), as they are found."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}

    def took(self, kind: str, seconds: float) -> None:
        """One more was done."""
        self._seconds.setdefault(kind, []).append(seconds)

    def left_s(self, kinds: Iterable[str], *, processes: int) -> float:
        """Seconds for units of these kinds, ``processes`` at once; a kind not seen yet counts as the mean of those seen.

        NaN where none was seen at all.
        """
        wanted: Sequence[str] = list(kinds)
        if not wanted:
            return 0.0
        if not self._seconds:
            return math.nan
        means = {kind: float(np.mean(found)) for kind, found in self._seconds.items()}
        usual = float(np.mean(list(means.values())))
        return sum(means.get(kind, usual) for kind in wanted) / processes
