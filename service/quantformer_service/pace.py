"""How long an answer is expected to take, so that it begins early enough before its deadline."""

from __future__ import annotations

from collections import deque

from quantformer_client import wire

#: Time in ns taken until an onset question has been measured.
FIRST_GUESS_NS = 10_000_000
#: Margin in ns on top of the slowest recent answer.
MARGIN_NS = 1_000_000
#: Answers of each size that are remembered.
REMEMBERED = 32


class Pace:
    """The slowest recent answer of a size, and a margin.

    Sizes are powers of two of the rows that inference computes, as `quantformer_service.batch.cost_of` counts them, each
    remembered apart: in one memory, many answers about a few neurons would make one about all of them look as quick, and one
    slow answer would make all of them late. Of a size that was not asked yet, what the nearest smaller one took is scaled up,
    since cost grows with the rows at most.
    """

    def __init__(self) -> None:
        self._took_ns: dict[int, deque[int]] = {}
        #: When the last standing question was computed.
        self._stood_ns = 0

    def answered(self, answer: wire.Answer, *, rows: int, rows_before: int) -> None:
        """An answer of so many rows was published, in whose batch ``rows_before`` came before them.

        What a standing question took holds what was computed before it, and so is noted for all those rows. An onset question
        may wait for others, which it may again; but not for standing ones, since they make way for one whose time is known:
        those that were under way when it came are left out.
        """
        if answer.asked == wire.Asked.STANDING:
            self._stood_ns = answer.done_ns
            self.note(answer.published_ns - answer.window_ready_ns, rows=rows_before + rows)
        else:
            self.note(answer.published_ns - max(answer.window_ready_ns, self._stood_ns), rows=rows)

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
