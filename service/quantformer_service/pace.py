"""How long an answer is expected to take, so that it begins early enough before its deadline."""

from __future__ import annotations

from collections import deque

#: Time in ns taken until an onset question has been measured.
FIRST_GUESS_NS = 10_000_000
#: Margin in ns on top of the slowest recent answer.
MARGIN_NS = 1_000_000
#: Answers of each size that are remembered.
REMEMBERED = 32


class Pace:
    """The slowest recent answer of a size, and a margin.

    Sizes are powers of two of the rows that inference computes, each remembered apart: in one memory, many answers about a
    few neurons would make one about all of them look as quick, and one slow answer would make all of them late. Of a size
    that was not asked yet, what the nearest smaller one took is scaled up, since cost grows with the rows at most.
    """

    def __init__(self) -> None:
        self._took_ns: dict[int, deque[int]] = {}

    def note(self, took_ns: int, *, rows: int) -> None:
        """An answer of so many rows took this long, from its window being ready to its publishing."""
        size = rows.bit_length()
        if size not in self._took_ns:
            self._took_ns[size] = deque(maxlen=REMEMBERED)
        self._took_ns[size].append(took_ns)

    def expected_ns(self, rows: int) -> int:
        """Time that the next answer of so many rows may take."""
        size = rows.bit_length()
        if size in self._took_ns:
            return max(self._took_ns[size]) + MARGIN_NS
        smaller = max((one for one in self._took_ns if one < size), default=None)
        scaled = 0 if smaller is None else max(self._took_ns[smaller]) << (size - smaller)
        return max(FIRST_GUESS_NS, scaled + MARGIN_NS)
