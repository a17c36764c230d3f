"""The process's CPUs shared out among threads that compute side by side, so that no two of them meet on one.

A scheduler wakes a thread where it ran last or beside what woke it, and moves it to a CPU that is idle some milliseconds later,
which is a good part of an answer's whole time.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")


def shares(count: int) -> list[set[int]]:
    """A set of CPUs for each of ``count`` threads, no CPU in two, of those that the calling thread may use; none where they are
    too few, for a single thread, and where the system lets no thread choose. Hyper-threads of a core stay together where there
    are enough cores.
    """
    if sys.platform != "linux" or count < 2:
        return []
    allowed = sorted(os.sched_getaffinity(0))
    cores: dict[str, set[int]] = {}
    for cpu in allowed:
        cores.setdefault(_core(cpu), set()).add(cpu)
    units = list(cores.values()) if len(cores) >= count else [{cpu} for cpu in allowed]
    return [set().union(*units[first::count]) for first in range(count)] if len(units) >= count else []


def settle(cpus: set[int]) -> set[int]:
    """Keep the calling thread to these CPUs; those that it could use before. Where the system took one away meanwhile, all stays
    as it is.
    """
    if sys.platform != "linux":
        return cpus
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cpus)
    except OSError:
        return before
    return before


def _core(cpu: int) -> str:
    """What the hyper-threads of a core, and they alone, have in common."""
    try:
        return (_CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text()
    except OSError:
        return str(cpu)
