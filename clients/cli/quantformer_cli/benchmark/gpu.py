"""GPU clocks, temperature, power and throttling over a block of time, from the service's own reader of NVML."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import msgspec

from quantformer_service.gpu import Gpu, GpuState

#: Between two looks, in s.
_EVERY_S = 1.0


class GpuRange(msgspec.Struct, frozen=True, kw_only=True):
    """The first GPU over a run; pairs are smallest and largest of what was seen (None: it does not tell), MHz, degrees C, W
    and MiB.
    """

    name: str
    clock_mhz: tuple[float, float] | None
    clock_max_mhz: float | None
    memory_clock_mhz: tuple[float, float] | None
    temperature_c: tuple[float, float] | None
    power_w: tuple[float, float] | None
    memory_mib: tuple[float, float] | None
    throttled: list[str]
    looks: int

    @property
    def words(self) -> str:
        """For people."""
        parts = [self.name]
        if self.clock_mhz is not None:
            parts.append(f"{self.clock_mhz[0]:g} to {self.clock_mhz[1]:g} of {self.clock_max_mhz or 0:g} MHz")
        for values, unit in ((self.temperature_c, "C"), (self.power_w, "W"), (self.memory_mib, "MiB")):
            if values is not None:
                parts.append(f"up to {values[1]:.0f} {unit}")
        return ", ".join([*parts, "throttled by " + ", ".join(self.throttled) if self.throttled else "not throttled"])


class GpuWatch:
    """Looks once a second for the time of a block; `found` afterwards, None where there is no GPU to read, and then
    ``absent`` says why.
    """

    def __init__(self) -> None:
        self._gpu = Gpu()
        self._states: list[GpuState] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="gpu ranges", daemon=True)
        self.absent = ""

    def __enter__(self) -> Self:
        self._gpu.start()
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY_S):
            self._look()

    def _look(self) -> None:
        state = self._gpu.read()
        if state is not None:
            self._states.append(state)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._look()
        self.absent = self._gpu.absent
        self._gpu.stop()

    @property
    def found(self) -> GpuRange | None:
        """What was seen."""
        return summarise(self._states)


def summarise(states: list[GpuState]) -> GpuRange | None:
    """Readings as ranges; None of none."""
    if not states:
        return None

    def span(values: list[float | None]) -> tuple[float, float] | None:
        told = [value for value in values if value is not None]
        return (min(told), max(told)) if told else None

    used = [None if one.memory_used_bytes is None else one.memory_used_bytes / 2**20 for one in states]
    return GpuRange(
        name=states[0].name,
        clock_mhz=span([one.clock_mhz for one in states]),
        clock_max_mhz=states[0].clock_max_mhz,
        memory_clock_mhz=span([one.memory_clock_mhz for one in states]),
        temperature_c=span([one.temperature_c for one in states]),
        power_w=span([one.power_w for one in states]),
        memory_mib=span(used),
        throttled=sorted({word for one in states for word in one.throttled}),
        looks=len(states),
    )
