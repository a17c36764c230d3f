"""Short time slices: a thread that has one runs sooner when it wakes, while others of ordinary priority run on its core.

A scheduler that shares fairly may let what runs finish its slice, some milliseconds, before another has its turn; Linux from 6.12
on makes an exception for one that asked for a shorter slice (``sched_runtime`` of sched_setattr(2)). It needs no right, and gives
no more of the core than before.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

#: The shortest that the kernel gives, in ns.
SHORTEST_NS = 100_000
#: Numbers of sched_setattr and sched_getattr, for which libraries have no function before glibc 2.41.
_CALLS = {"x86_64": (314, 315), "aarch64": (274, 275)}
#: struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period.
_ATTR = struct.Struct("=IIQiIQQQ")
_RUNTIME = 5


def shorten() -> str:
    """Ask for the calling thread, and those that it starts from now on; why it was refused, or nothing."""
    try:
        set_attr, _ = _calls()
        fields = [*_read(0)]
        fields[_RUNTIME] = SHORTEST_NS
        _call(set_attr, 0, ctypes.create_string_buffer(_ATTR.pack(*fields), _ATTR.size), 0)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def of_thread(thread: int) -> int:
    """The slice of a thread in ns, by its number in the kernel; 0 where the kernel does not tell.

    Raises:
        OSError: there is no such thread, or the system has no such call.
    """
    return int(_read(thread)[_RUNTIME])


def _read(thread: int) -> tuple[int, ...]:
    _, get_attr = _calls()
    found = ctypes.create_string_buffer(_ATTR.size)
    _call(get_attr, thread, found, _ATTR.size, 0)
    return _ATTR.unpack(found.raw)


def _calls() -> tuple[int, int]:
    if sys.platform != "linux" or platform.machine() not in _CALLS:
        raise OSError(0, f"not known on this system ({sys.platform}, {platform.machine()})")
    return _CALLS[platform.machine()]


def _call(number: int, *arguments: object) -> None:
    if ctypes.CDLL(None, use_errno=True).syscall(number, *arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
