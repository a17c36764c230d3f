"""Python's garbage collector under the loop's command: it runs in time to spare, never in the middle of a frame."""

from __future__ import annotations

import gc
import time

#: What a collection of each generation is taken to need before it was measured, in ns.
_FIRST_GUESS_NS = (300_000, 1_000_000, 5_000_000)


class Garbage:
    """Between `start` and `end` nothing is collected but by `collect`.

    Most memory is freed by reference counts at once; what is left are cycles, as of exceptions and their frames.
    """

    def __init__(self) -> None:
        self._needs_ns = list(_FIRST_GUESS_NS)
        self._was_enabled = False

    def start(self) -> None:
        """Collect everything once, keep what is alive out of all later collections, and take command."""
        self._was_enabled = gc.isenabled()
        gc.collect()
        gc.freeze()
        gc.disable()

    def end(self) -> None:
        """Give it back as it was."""
        gc.unfreeze()
        if self._was_enabled:
            gc.enable()

    def collect(self, spare_ns: int) -> int | None:
        """Collect the oldest generation that is due and whose last collection took at most half of ``spare_ns``.

        Returns the generation; None where none is due, or there is no time.
        """
        counts, limits = gc.get_count(), gc.get_threshold()
        if counts[0] <= limits[0]:
            return None
        for generation in (2, 1, 0):
            if counts[generation] <= limits[generation]:
                continue
            if 2 * self._needs_ns[generation] > spare_ns:
                # One that was interrupted must not be taken for that slow for ever.
                self._needs_ns[generation] = max(_FIRST_GUESS_NS[generation], self._needs_ns[generation] * 9 // 10)
                continue
            begun = time.perf_counter_ns()
            gc.collect(generation)
            self._needs_ns[generation] = time.perf_counter_ns() - begun
            return generation
        return None
