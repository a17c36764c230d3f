"""What a training process does with memory that it frees: it keeps it, for the next batch needs as much."""

from __future__ import annotations

import ctypes

#: Parameters of glibc's ``mallopt``: blocks from this size on are mapped alone, and unmapped when they are freed; and a free
#: end of the heap of this size is given back.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: Bytes. What is larger still goes back at once: sessions, not batches.
KEPT = 1 << 30


def keep_freed() -> None:
    """From now on this process keeps what it frees, in blocks up to `KEPT`.

    glibc gives freed blocks of 128 KiB to 32 MiB and more back to the system, which then has to clear every page of the
    next one: a quarter of the time of training an LSTM of the preset `small`, a twentieth of QuantFormer's. Other C
    libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    # An old glibc takes no threshold that large; setting the other alone would make all worse.
    if mallopt(_MMAP_THRESHOLD, KEPT):
        mallopt(_TRIM_THRESHOLD, KEPT)
