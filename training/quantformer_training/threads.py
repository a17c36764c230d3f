"""How many threads torch computes with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch


@contextmanager
def computing_with(threads: int) -> Iterator[None]:
    """Compute with so many threads inside, with as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_thread() -> AbstractContextManager[None]:
    """Compute with one thread inside, with as many as before afterwards.

    A network as small as the ``small`` preset gains little from a second thread, and loses tenfold where another program
    wants that core: the threads then wait for each other at every layer.
    """
    return computing_with(1)
