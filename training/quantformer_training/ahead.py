"""Drawing on a thread of its own: the rows of the next epoch are gathered while those of the present one are learned from.

What an epoch draws follows from ``(seed, epoch)`` alone, so it is the same whenever, and on whichever thread, it is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Drawn = TypeVar("Drawn")


@contextmanager
def drawn_ahead(draw: Callable[[int], Drawn], *, epochs: int) -> Iterator[Callable[[int], Drawn]]:
    """Inside, a function that gives ``draw(epoch)`` and begins to draw the epoch after it, up to number ``epochs - 1``.

    Epochs are asked for in order, each once, by one thread; the first may be any, as in a run that resumes. At most one
    epoch waits: with the one in use, two are in memory. What ``draw`` raises is raised where its epoch is asked for. On
    leaving, by an error or an interrupt too, the thread has ended; a drawing that had begun is waited for.
    """
    waiting: dict[int, Future[Drawn]] = {}
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="drawing") as thread:

        def of(epoch: int) -> Drawn:
            rows = (waiting.pop(epoch, None) or thread.submit(draw, epoch)).result()
            if epoch + 1 < epochs:
                waiting[epoch + 1] = thread.submit(draw, epoch + 1)
            return rows

        yield of
