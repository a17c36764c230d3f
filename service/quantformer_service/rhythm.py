"""When the next question is likely: what keeps a GPU warm must not stand in its way."""

from __future__ import annotations

#: Questions further apart than this, in ns, have no rhythm.
LONGEST_NS = 200_000_000
#: So long before and after the moment at which the next question is due, in ns, nothing is begun.
BEFORE_NS, AFTER_NS = 2_000_000, 1_000_000


class Rhythm:
    """The next question is due as long after the last one as that came after the one before, as standing questions about
    every frame are.
    """

    def __init__(self) -> None:
        self._last_ns, self._apart_ns = 0, LONGEST_NS

    def asked(self, now_ns: int) -> None:
        """A question, or several at once, were handed over."""
        self._apart_ns, self._last_ns = now_ns - self._last_ns, now_ns

    def is_near(self, now_ns: int) -> bool:
        """Whether the next question is due about now."""
        if self._apart_ns >= LONGEST_NS:
            return False
        left_ns = self._last_ns + self._apart_ns - now_ns
        return -AFTER_NS < left_ns < BEFORE_NS
