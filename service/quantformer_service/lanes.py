"""Threads that compute the parts of questions side by side.

One run of the graph on several threads makes them meet after each of its operations. Here each lane computes whole runs of
other rows, and they meet once, when all that was begun is done. Each may have CPUs of its own (`quantformer_service.cores`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from quantformer_service import cores

Task = Callable[[], None]
#: Called when a job is done, with what a task of it raised.
Then = Callable[[Exception | None], None]


class _Job:
    """Tasks that belong together, and what follows the last of them."""

    def __init__(self, tasks: int, then: Then) -> None:
        self._left, self._then = tasks, then
        self._raised: Exception | None = None
        self._lock = threading.Lock()

    def call(self, task: Task) -> None:
        if self._raised is None:  # else the answer is lost, and the other tasks need not be called
            try:
                task()
            except Exception as error:
                self._raised = error
        with self._lock:
            self._left -= 1
            ended = self._left == 0
        if ended:
            self._then(self._raised)


class Lanes:
    """``count`` threads, the caller's own among them, which until `close` keep to a share of the CPUs each where ``apart``."""

    def __init__(self, count: int, *, apart: bool = False) -> None:
        self.count = count
        shares = cores.shares(count) if apart else []
        self._before = cores.settle(shares[0]) if shares else None
        self._left: deque[tuple[_Job, Task]] = deque()
        self._called = 0
        self._work: SimpleQueue[bool] = SimpleQueue()
        self._done: SimpleQueue[Exception | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._help, args=(shares[number] if shares else None,), name=f"lane-{number}", daemon=True)
            for number in range(1, count)
        ]
        for thread in self._threads:
            thread.start()

    def begin(self, tasks: Sequence[Task], *, then: Then) -> None:
        """Hand over a job; the other lanes begin at once, the caller's helps in `end`.

        Tasks are taken in the order in which they were begun, each by the next lane that is free. ``then`` is called once,
        in the lane that ended the last of them, or here where there are none. It must not raise.
        """
        if not tasks:
            then(None)
            return
        job = _Job(len(tasks), then)
        self._left.extend((job, task) for task in tasks)
        # One is left to the caller's lane: a single task wakes nobody.
        helpers = max(0, min(len(self._threads), len(self._left) - 1))
        for _ in range(helpers):
            self._work.put(True)
        self._called += helpers

    def end(self) -> None:
        """Help, and return when every job that was begun is done. Raises what a ``then`` raised."""
        raised = [self._drain(), *(self._done.get() for _ in range(self._called))]
        self._called = 0
        for error in raised:
            if error is not None:
                raise error

    def run(self, tasks: Sequence[Task]) -> None:
        """One job, begun and ended. Raises what a task raised."""
        raised: list[Exception | None] = []
        self.begin(tasks, then=raised.append)
        self.end()
        if raised[0] is not None:
            raise raised[0]

    def close(self) -> None:
        """End the other threads; the caller's may run on any CPU again. Called by the one that made them."""
        for _ in self._threads:
            self._work.put(False)
        if self._before is not None:
            cores.settle(self._before)

    def _help(self, cpus: set[int] | None) -> None:
        if cpus is not None:
            cores.settle(cpus)
        while self._work.get():
            self._done.put(self._drain())

    def _drain(self) -> Exception | None:
        """Call tasks until none is left; what a ``then`` raised stops no other job."""
        raised: Exception | None = None
        while True:
            try:
                job, task = self._left.popleft()
            except IndexError:
                return raised
            try:
                job.call(task)
            except Exception as error:
                raised = error
