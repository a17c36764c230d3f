"""What the engine may ask of the system for its threads: CPUs of their own, real-time priority, memory that is never paged out.

Each is asked only where a setting says so, and each is reported as ``granted`` or ``refused``, with the reason and what to
do. A refusal ends nothing: the engine runs without. Linux only; elsewhere all are refused with that reason.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from quantformer.errors import UsageError
from quantformer_service.engine_settings import EngineSettings

#: SCHED_FIFO priorities: the loop comes before inference, both after the kernel's own real-time threads (50). ZeroMQ's own
#: threads, which bring the loop its messages, have the loop's: otherwise inference on every core would keep them from it.
LOOP_PRIORITY, INFERENCE_PRIORITY = 20, 10
_ZMQ_THREADS = "ZMQbg/IO"
_MCL_CURRENT, _MCL_FUTURE = 1, 2
#: Bit of CAP_IPC_LOCK in a process's effective capabilities.
_CAP_IPC_LOCK = 14
_ELSEWHERE = f"refused: not on this system ({sys.platform}); Linux only"
_NOT_ASKED = "not asked"


def cpus(text: str) -> list[int]:
    """The CPUs of a setting such as ``2,4-6``, in that order; none of an empty text.

    Raises:
        UsageError: it is not of that form, or names a CPU twice.
    """
    found: list[int] = []
    for part in filter(None, text.replace(" ", "").split(",")):
        first, _, last = part.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal() or int(last or first) < int(first):
            raise UsageError(f"pin_cpus: found {text!r}, expected numbers of CPUs such as 2,4-6")
        found += range(int(first), int(last or first) + 1)
    if len(set(found)) != len(found):
        raise UsageError(f"pin_cpus: found {text!r}, which names a CPU twice")
    return found


class Privileges:
    """Asked for by the thread that will be the loop, when its sockets are there: some before it starts the inference thread,
    which inherits them.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._cpus = cpus(settings.pin_cpus)
        self._realtime, self._lock = settings.realtime == "on", settings.lock_memory == "on"
        self._outcomes = dict.fromkeys(("pin_cpus", "realtime", "lock_memory"), _NOT_ASKED)

    def before_inference(self) -> None:
        """Take what the inference thread, and the runtime's own, are to have, before it measures its threads."""
        if sys.platform != "linux":
            return
        if self._cpus:
            rest = self._cpus[1:] or self._cpus
            self._outcomes["pin_cpus"] = (
                _pinned(rest) or f"granted: loop on {self._cpus[0]}, inference on {_listed(rest)}"
            )
        if self._realtime:
            refused = _scheduled(INFERENCE_PRIORITY)
            sockets = [] if refused else _threads(_ZMQ_THREADS)
            for thread in sockets:
                refused = refused or _scheduled(LOOP_PRIORITY, thread)
            first = "loop and sockets" if sockets else "loop"
            self._outcomes["realtime"] = (
                refused or f"granted: SCHED_FIFO, {first} {LOOP_PRIORITY}, inference {INFERENCE_PRIORITY}"
            )

    def when_ready(self) -> dict[str, str]:
        """Take what the loop's thread, which calls this, is to have; what was granted and refused, by setting."""
        if sys.platform != "linux":
            asked = bool(self._cpus), self._realtime, self._lock
            return {
                name: _ELSEWHERE if wanted else _NOT_ASKED for name, wanted in zip(self._outcomes, asked, strict=True)
            }
        if self._outcomes["pin_cpus"].startswith("granted"):
            self._outcomes["pin_cpus"] = _pinned(self._cpus[:1]) or self._outcomes["pin_cpus"]
        if self._outcomes["realtime"].startswith("granted"):
            self._outcomes["realtime"] = _scheduled(LOOP_PRIORITY) or self._outcomes["realtime"]
        if self._lock:
            self._outcomes["lock_memory"] = _locked() or "granted: all memory, present and future"
        return dict(self._outcomes)


def _pinned(wanted: Sequence[int]) -> str:
    """Pin the calling thread; why not, or nothing."""
    if sys.platform != "linux":
        return _ELSEWHERE
    there = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(threading.get_native_id(), wanted)
    except (OSError, ValueError, OverflowError) as error:
        return f"refused: CPUs {_listed(wanted)} cannot be had ({_reason(error)}); this process may use {_listed(sorted(there))}"
    found = os.sched_getaffinity(threading.get_native_id())
    if found != set(wanted):
        # The system grants the part of the list that is there.
        os.sched_setaffinity(threading.get_native_id(), there)
        return f"refused: of CPUs {_listed(wanted)} only {_listed(sorted(found))} can be had; name others"
    return ""


def _threads(name: str) -> list[int]:
    """The process's threads whose names begin so, as the kernel numbers them."""
    return [int(one.name) for one in Path("/proc/self/task").iterdir() if (one / "comm").read_text().startswith(name)]


def _scheduled(priority: int, thread: int = 0) -> str:
    """Give a thread, the calling one unless told, real-time priority; why not, or nothing."""
    if sys.platform != "linux":
        return _ELSEWHERE
    try:
        os.sched_setscheduler(thread or threading.get_native_id(), os.SCHED_FIFO, os.sched_param(priority))
    except OSError as error:
        return f"refused: {_reason(error)}; give CAP_SYS_NICE, or raise the limit with 'ulimit -r {LOOP_PRIORITY}'"
    return ""


def _locked() -> str:
    """Lock the process's memory; why not, or nothing."""
    if sys.platform != "linux":
        return _ELSEWHERE
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if not _may_lock() and hard != resource.RLIM_INFINITY:
        # Locked under a limit, a later allocation that passes it would fail in the middle of a stream.
        return f"refused: at most {hard} bytes may be locked; give CAP_IPC_LOCK, or 'ulimit -l unlimited'"
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE) != 0:
        return f"refused: {os.strerror(ctypes.get_errno())}; give CAP_IPC_LOCK, or 'ulimit -l unlimited'"
    return ""


def _may_lock() -> bool:
    try:
        with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123 - no path, a kernel's answer
            effective = next(line.split()[1] for line in status if line.startswith("CapEff:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return False
    return bool(int(effective, 16) >> _CAP_IPC_LOCK & 1)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))
