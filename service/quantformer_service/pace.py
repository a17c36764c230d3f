"""How long an answer is expected to take, so that it begins early enough before its deadline."""

from __future__ import annotations

from collections import deque

#: Time in ns taken until an onset question has been measured.
FIRST_GUESS_NS = 10_000_000
#: Margin in ns on top of the slowest recent answer.
MARGIN_NS = 1_000_000
#: Answers of each kind that are remembered.
REMEMBERED = 32


class Pace:
    """The slowest recent answer and a margin.

    Onset and standing questions are remembered apart: the latter come with every frame and often ask for less, so that in
    one memory they would soon make an onset's answer look as quick as theirs.
    """

    def __init__(self) -> None:
        self._onset_ns: deque[int] = deque([FIRST_GUESS_NS - MARGIN_NS], maxlen=REMEMBERED)
        self._standing_ns: deque[int] = deque([0], maxlen=REMEMBERED)

    def note(self, took_ns: int, *, standing: bool) -> None:
        """An answer took this long, from its window being ready to its publishing."""
        (self._standing_ns if standing else self._onset_ns).append(took_ns)

    @property
    def expected_ns(self) -> int:
        """Time that the next answer may take."""
        return max(*self._onset_ns, *self._standing_ns) + MARGIN_NS
