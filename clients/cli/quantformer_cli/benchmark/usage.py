"""CPU time and memory of processes by name: the service's, found by its port or its parent, and the bench's own clients."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

import msgspec

if TYPE_CHECKING:
    import psutil

#: Between two looks at memory, in s.
_EVERY_S = 0.5
#: Memory counts as settled after one part in so many of a phase.
_SETTLED = 10


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Of one process name over one phase or several: share of one core, and resident memory in MiB at the first look, once
    it had settled (after a tenth of the first phase), at the last look, and the most of all.
    """

    cpu_share: float
    memory_first_mib: float
    memory_last_mib: float
    memory_most_mib: float
    memory_settled_mib: float | None = None


def service_processes(root: int) -> dict[str, psutil.Process]:
    """The living processes below ``root`` (included) that run a module of the service, by the module's name."""
    import psutil

    found: dict[str, psutil.Process] = {}
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(root)
        for one in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                name = _module(one.cmdline())
                if name:
                    found[name] = one
    return found


def service_root(port: int) -> int | None:
    """The process id of the supervisor whose engine listens on a port of this machine; None where it cannot be told."""
    import psutil

    for one in psutil.process_iter(["cmdline"]):
        if _module(one.info["cmdline"] or []) != "engine":
            continue
        with contextlib.suppress(psutil.Error):
            if any(
                link.status == psutil.CONN_LISTEN and link.laddr.port == port for link in one.net_connections("tcp")
            ):
                return int(one.ppid())
    return None


def _module(command: list[str]) -> str:
    for part in command:
        if part.startswith("quantformer_service."):
            return part.partition(".")[2]
    return ""


class Meter:
    """Watches processes for the time of a block, from a thread that looks twice a second. `usage` afterwards."""

    def __init__(self, processes: Mapping[str, psutil.Process]) -> None:
        self._processes = dict(processes)
        self._memory: dict[str, list[float]] = {name: [] for name in processes}
        self._cpu: dict[str, list[float]] = {name: [] for name in processes}
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        self._look()
        self._thread = threading.Thread(target=self._watch, name="meter", daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY_S):
            self._look()

    def _look(self) -> None:
        import psutil

        for name, process in self._processes.items():
            with contextlib.suppress(psutil.Error):
                cpu = process.cpu_times()
                self._memory[name].append(process.memory_info().rss / 2**20)
                self._cpu[name].append(cpu.user + cpu.system)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._look()
        self.seconds = time.monotonic() - self._start

    def usage(self) -> dict[str, Usage]:
        """By name; a process that could not be looked at is not in it."""
        return {
            name: Usage(
                cpu_share=(cpu[-1] - cpu[0]) / self.seconds,
                memory_first_mib=self._memory[name][0],
                memory_last_mib=self._memory[name][-1],
                memory_most_mib=max(self._memory[name]),
                memory_settled_mib=self._memory[name][len(cpu) // _SETTLED],
            )
            for name, cpu in self._cpu.items()
            if len(cpu) > 1
        }


def together(phases: list[dict[str, Usage]]) -> dict[str, Usage]:
    """Usage over several phases: mean share of a core, memory of the first, the last and the most."""
    names = dict.fromkeys(name for phase in phases for name in phase)
    found = {}
    for name in names:
        seen = [phase[name] for phase in phases if name in phase]
        found[name] = Usage(
            cpu_share=sum(one.cpu_share for one in seen) / len(seen),
            memory_first_mib=seen[0].memory_first_mib,
            memory_last_mib=seen[-1].memory_last_mib,
            memory_most_mib=max(one.memory_most_mib for one in seen),
            memory_settled_mib=seen[0].memory_settled_mib,
        )
    return found
