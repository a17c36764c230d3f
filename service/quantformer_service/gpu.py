"""What the GPU's own sensors say, through NVML: clocks, temperature, power, memory, and what holds the clocks down."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

#: Bits of NVML's clocks event reasons that slow the GPU, by what a reader can do about them. Idle and settings of the user's
#: own are no throttling.
THROTTLES = MappingProxyType(
    {
        0x0000000000000004: "power cap",
        0x0000000000000008: "hardware slowdown",
        0x0000000000000010: "sync boost",
        0x0000000000000020: "software thermal slowdown",
        0x0000000000000040: "hardware thermal slowdown",
        0x0000000000000080: "hardware power brake",
    }
)


@dataclass(frozen=True, kw_only=True)
class GpuState:
    """One reading. Clocks in MHz, temperature in degrees Celsius, power in W, memory in bytes; ``throttled`` says by what.
    None is what this GPU does not tell.
    """

    name: str
    clock_mhz: int | None
    clock_max_mhz: int | None
    memory_clock_mhz: int | None
    temperature_c: int | None
    power_w: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    throttled: tuple[str, ...]


def throttles(reasons: int) -> tuple[str, ...]:
    """The words for a mask of NVML's clocks event reasons, lowest bit first."""
    return tuple(word for bit, word in THROTTLES.items() if reasons & bit)


class Gpu:
    """Reads the sensors once a second in a thread of its own; `read` never waits.

    Nothing here raises: where NVML is not there `read` gives None and ``absent`` says why.
    """

    def __init__(self, *, index: int = 0, period_s: float = 1.0) -> None:
        self._index, self._period_s = index, period_s
        self._state: GpuState | None = None
        self.absent = "not read yet"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def read(self) -> GpuState | None:
        """The last reading; None where there is none, and then ``absent`` says why."""
        return self._state

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            import pynvml
        except ImportError:
            self.absent = "nvidia-ml-py is not installed; install 'quantformer[gpu]'"
            return
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self.absent = f"NVML: {error}; is the NVIDIA driver there?"
            return
        try:
            while True:
                self._state, self.absent = _sensors(pynvml, self._index), ""
                if self._stop.wait(self._period_s):
                    return
        except pynvml.NVMLError as error:
            self._state, self.absent = None, f"NVML: {error}"
        finally:
            pynvml.nvmlShutdown()


def _sensors(nvml: Any, index: int) -> GpuState:
    device = nvml.nvmlDeviceGetHandleByIndex(index)

    def told(sensor: Any, *of: int) -> Any:
        # Part of a divided GPU, and some of the cheaper ones, have not every sensor.
        try:
            return sensor(device, *of)
        except nvml.NVMLError_NotSupported:
            return None

    memory, milliwatts = told(nvml.nvmlDeviceGetMemoryInfo), told(nvml.nvmlDeviceGetPowerUsage)
    return GpuState(
        name=nvml.nvmlDeviceGetName(device),
        clock_mhz=told(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
        clock_max_mhz=told(nvml.nvmlDeviceGetMaxClockInfo, nvml.NVML_CLOCK_SM),
        memory_clock_mhz=told(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
        temperature_c=told(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
        power_w=None if milliwatts is None else milliwatts / 1000,
        memory_used_bytes=None if memory is None else memory.used,
        memory_total_bytes=None if memory is None else memory.total,
        throttled=throttles(told(nvml.nvmlDeviceGetCurrentClocksEventReasons) or 0),
    )
