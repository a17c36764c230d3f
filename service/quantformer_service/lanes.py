"""Threads that compute the parts of one question side by side.

One run of the graph on several threads makes them meet after each of its operations. Here each lane computes whole runs of
other rows, and they meet once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from queue import SimpleQueue


class Lanes:
    """``count`` threads, the caller's own among them."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._work: SimpleQueue[deque[Callable[[], None]] | None] = SimpleQueue()
        self._done: SimpleQueue[Exception | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._help, name=f"lane-{number}", daemon=True) for number in range(1, count)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, tasks: Iterable[Callable[[], None]]) -> None:
        """Call every task once; each lane takes the next one when it is free. Raises what a task raised."""
        left = deque(tasks)
        helpers = min(len(self._threads), len(left) - 1)
        for _ in range(helpers):
            self._work.put(left)
        raised = [_drain(left), *(self._done.get() for _ in range(helpers))]
        for error in raised:
            if error is not None:
                raise error

    def close(self) -> None:
        """End the threads."""
        for _ in self._threads:
            self._work.put(None)

    def _help(self) -> None:
        while (left := self._work.get()) is not None:
            self._done.put(_drain(left))


def _drain(left: deque[Callable[[], None]]) -> Exception | None:
    try:
        while True:
            try:
                task = left.popleft()
            except IndexError:
                return None
            task()
    except Exception as error:
        left.clear()  # the answer is lost; the other lanes need not go on
        return error
