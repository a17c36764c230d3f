"""The machine's cores, kept out of idle states that take long to leave while frames come.

Between two frames a core has 33 ms in which to fall asleep, and every step of an answer then waits until one has woken. Linux
only, where the user may write ``/dev/cpu_dma_latency``; what came of it is reported, and a refusal ends nothing.
"""

from __future__ import annotations

import logging
import os
import struct
import sys
from pathlib import Path

_log = logging.getLogger(__name__)

#: The kernel's PM QoS: while this file is open, no core of the machine enters an idle state that takes longer to leave than the
#: us written to it. On a machine of its own C1 stays, which takes 1 or 2; a guest must not halt at all, which is to leave its
#: core to the host: its driver (haltpoll) calls that 1 us, and it takes many times that.
_LATENCY, _DRIVER = Path("/dev/cpu_dma_latency"), Path("/sys/devices/system/cpu/cpuidle/current_driver")
_WAKE_US, _WAKE_GUEST_US = 2, 0
#: How long after the last frame cores may sleep again: an acquisition that is started anew within it finds them awake.
LINGER_S = 10.0


class Awake:
    """Asks for it at once, if ``asked``, so that the engine measures its threads as they will run; `follow` does the rest."""

    def __init__(self, *, asked: bool) -> None:
        self._file, self._limit_us = -1, 0
        self._frames, self._last_ns = -1, 0
        #: What came of it, for WELCOME and STATUS.
        self.outcome = self._ask() if asked else "not asked"

    def follow(self, frames: int, *, now_ns: int) -> None:
        """Hold the cores awake, or let them sleep: ``frames`` have come until now."""
        if not self.outcome.startswith("granted"):
            return
        if frames != self._frames:
            self._frames, self._last_ns = frames, now_ns
        wanted = now_ns - self._last_ns < LINGER_S * 1e9
        try:
            if wanted and self._file < 0:
                self._hold()
            elif not wanted and self._file >= 0:
                self.close()
        except OSError as error:
            self.close()
            self.outcome = f"refused: {_LATENCY}: {error.strerror}, though it was granted at the start"
            _log.warning("stay_awake: %s", self.outcome)

    def close(self) -> None:
        """Let the cores sleep as before: the kernel forgets what was asked with the file."""
        if self._file >= 0:
            file, self._file = self._file, -1
            os.close(file)

    def _hold(self) -> None:
        self._file = os.open(_LATENCY, os.O_WRONLY | os.O_CLOEXEC)
        os.write(self._file, struct.pack("=i", self._limit_us))

    def _ask(self) -> str:
        if sys.platform != "linux":
            return f"refused: not on this system ({sys.platform}); Linux only"
        try:
            driver = _DRIVER.read_text().strip()
            if driver == "none":
                return "refused: no idle driver is at work here (cpuidle: none), so there are no states to choose from"
            self._limit_us = _WAKE_GUEST_US if driver == "haltpoll" else _WAKE_US
            self._hold()
        except PermissionError as error:
            rule = 'KERNEL=="cpu_dma_latency", GROUP="imaging", MODE="0660"'
            return f"refused: {_LATENCY}: {error.strerror}; run as root, or give the group that may a udev rule: {rule}"
        except OSError as error:
            return f"refused: {error.filename}: {error.strerror}; this kernel, or container, has no idle states to choose from"
        return f"granted: while frames come no core's sleep takes over {self._limit_us} us to leave (driver {driver})"
