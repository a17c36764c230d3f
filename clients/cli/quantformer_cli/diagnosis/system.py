"""Checks of the machine: cores, memory, clock, wake-ups, priority, disk and ports. Each takes seconds at most."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from quantformer_cli.benchmark.histogram import Histogram
from quantformer_cli.benchmark.schedule import schedule_ns
from quantformer_cli.diagnosis.check import Check, advice, bad, ok
from quantformer_service.settings import Settings
from quantformer_training.jobs import cores

#: Sleeps of the wake-up check, and how many a second.
_SLEEPS, _SLEEPS_HZ = 300, 200.0
#: A loop that is woken later than this in one of a hundred sleeps is not steady, in us; of a period, it is not usable.
_STEADY_US, _USABLE_SHARE = 1000.0, 0.25
#: What the runtime, the graph and Python themselves take, in bytes, beside windows.
_PROGRAM_BYTES = 700 << 20
_WRITE_BYTES, _WRITES = 1 << 20, 48
#: The disk is to be this much faster than what is recorded.
_DISK_MARGIN = 4.0
_SLOW_SYNC_MS = 500.0
#: NVML is read for so long, in s.
_GPU_S = 1.2
_CPU = Path("/sys/devices/system/cpu")


def check_cores() -> Check:
    """The loop and the inference thread want a core each."""
    count, quota = cores(), _quota()
    found = f"{count} of {os.cpu_count()} usable" + (
        "" if quota is None else f", at most {quota:g} cores' time (cgroup)"
    )
    least = count if quota is None else min(count, quota)
    if least < 2:
        return advice(
            "cores", found, "give the service two cores or more: the loop and inference then take turns on none"
        )
    return ok("cores", found)


def _quota() -> float | None:
    try:
        most, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if most == "max" else int(most) / int(period)
    except (OSError, ValueError):
        return None


def check_load() -> Check:
    """Other programs on the same cores come between frames."""
    if not hasattr(os, "getloadavg"):
        return ok("other load", "not told by this system")
    load = os.getloadavg()[0]
    found = f"load {load:.2f} on {cores()} cores over the last minute"
    if load > 0.5 * cores():
        return advice(
            "other load",
            found,
            "end what else runs here, or measure again when it has ended: these figures hold its load",
        )
    return ok("other load", found)


def check_memory(*, neurons: int, rate_hz: float, history_s: float) -> Check:
    """Windows of one session and what the program itself takes."""
    import psutil

    # Each frame is kept twice, and two slots hold a window each with its dF/F.
    window = 8 * neurons * (3.2 + history_s) * rate_hz + 4 * 4 * neurons * 96
    need, free = _PROGRAM_BYTES + window, psutil.virtual_memory().available
    found = f"{free / 2**30:.1f} GiB free, about {need / 2**30:.1f} GiB needed"
    if free < need:
        return bad("memory", found, "free memory, ask about fewer neurons, or set --history-s lower")
    return ok("memory", found)


def check_governor() -> Check:
    """A processor that saves power between frames begins each of them slowly."""
    found = sorted({_read(path) for path in _CPU.glob("cpu[0-9]*/cpufreq/scaling_governor")} - {""})
    if not found:
        return ok("CPU governor", "not told by this system (a virtual machine, or not Linux)")
    if found == ["performance"]:
        return ok("CPU governor", "performance")
    return advice(
        "CPU governor",
        ", ".join(found),
        "set it for the experiment: sudo cpupower frequency-set --governor performance",
    )


def check_clock() -> Check:
    """Stamps need a clock that is quick to read."""
    stamps = np.array([time.perf_counter_ns() for _ in range(20_000)])
    cost = float(np.median(np.diff(stamps)))
    source = _read(Path("/sys/devices/system/clocksource/clocksource0/current_clocksource"))
    found = f"a stamp costs {cost:.0f} ns" + (f", source {source}" if source else "")
    if cost > 1000:
        return advice(
            "clock", found, "boot with clocksource=tsc where the processor has an invariant one ('lscpu': nonstop_tsc)"
        )
    return ok("clock", found)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def check_wake_up(*, rate_hz: float) -> Check:
    """How late the system wakes a process that sleeps until a moment."""
    late = wake_up_ns()
    seen = Histogram()
    seen.record(late)
    p50, p99 = (float(seen.quantile(q) or 0) / 1e3 for q in (0.5, 0.99))
    found = f"late by {p50:.0f} us (p50), {p99:.0f} us (p99), {seen.largest / 1e3:.0f} us (max) of {_SLEEPS} sleeps"
    cure = "end other programs; --pin-cpus and --realtime on give the engine cores and priority of its own (docs/latency.md)"
    if p99 > _USABLE_SHARE * 1e6 / rate_hz:
        return bad("wake-up", found, cure)
    return advice("wake-up", found, cure) if p99 > _STEADY_US else ok("wake-up", found)


def wake_up_ns() -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """How late each of some sleeps until an absolute moment ended, in ns ``(sleeps,)``."""
    due = time.perf_counter_ns() + schedule_ns(frames=_SLEEPS, rate_hz=_SLEEPS_HZ, jitter=0.1, seed=0)
    late = np.zeros(_SLEEPS, np.int64)
    for number, moment in enumerate(due):
        left_s = (int(moment) - time.perf_counter_ns()) / 1e9
        if left_s > 0:
            time.sleep(left_s)
        late[number] = max(0, time.perf_counter_ns() - int(moment))
    return late


def check_priority() -> Check:
    """May this user have real-time priority and locked memory?"""
    if sys.platform != "linux":
        return ok("real-time rights", "told on Linux only")
    import resource

    priority = resource.getrlimit(resource.RLIMIT_RTPRIO)[1]
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    unlimited = resource.RLIM_INFINITY
    words = "unlimited" if locked == unlimited else f"{locked / 2**20:.0f} MiB"
    found = f"priority up to {'any' if priority == unlimited else priority}, locked memory {words}"
    if os.geteuid() == 0 or (priority and (locked == unlimited or locked >= _PROGRAM_BYTES)):
        return ok("real-time rights", found)
    return advice(
        "real-time rights", found,
        "for --realtime on and --lock-memory on: '@imaging - rtprio 80' and '@imaging - memlock unlimited' in "
        "/etc/security/limits.d, then log in anew",
    )  # fmt: skip


def check_idle(outcome: str) -> Check:
    """Do cores stay out of deep idle states while frames come? ``outcome`` is what `Awake` was told."""
    verdict, _, why = outcome.partition(": ")
    found, _, cure = why.partition("; ")
    return advice("idle states", found, cure) if verdict == "refused" and cure else ok("idle states", found or outcome)


def check_ports(settings: Settings) -> list[Check]:
    """The four ports of `serve`."""
    from quantformer_service.supervisor import listen

    found = []
    for name in ("http_port", "zmq_port", "pub_port", "tcp_port"):
        port = getattr(settings, name)
        flag = "--" + name.replace("_", "-")
        try:
            listen(settings.host, port).close()
        except OSError as error:
            cure = (
                f"end the program that holds it (is a service running already? 'quantformer status'), or choose {flag}"
            )
            found.append(bad(f"port {port}", f"cannot be listened on: {error.strerror}", cure))
    return found or [ok("ports", f"free on {settings.host}")]


def check_disk(folder: Path, *, bytes_per_s: float) -> Check:
    """How fast the disk takes what is recorded, each MiB flushed to it."""
    try:
        speed, slowest_ms = write_speed(folder)
    except OSError as error:
        return bad(
            "disk", f"{folder} cannot be written: {error.strerror}", "record into a directory that this user may write"
        )
    name = folder.resolve()
    found = (
        f"{speed / 1e6:.0f} MB/s into {name}, slowest MiB {slowest_ms:.0f} ms; "
        f"up to {bytes_per_s / 1e6:.2f} MB/s are recorded"
    )
    cure = "record onto a local disk, better an SSD; the recorder disarms stimulation where it cannot keep up"
    if speed < bytes_per_s:
        return bad("disk", found, cure)
    if speed < _DISK_MARGIN * bytes_per_s or slowest_ms > _SLOW_SYNC_MS:
        return advice("disk", found, cure)
    return ok("disk", found)


def write_speed(folder: Path) -> tuple[float, float]:
    """Bytes a second, and the slowest write with its flush in ms; the file is removed again.

    Raises:
        OSError: the folder cannot be written.
    """
    block = os.urandom(_WRITE_BYTES)
    slowest = 0.0
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".quantformer-doctor-") as file:
        start = time.perf_counter()
        for _ in range(_WRITES):
            before = time.perf_counter()
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
            slowest = max(slowest, time.perf_counter() - before)
        took = time.perf_counter() - start
    return _WRITES * _WRITE_BYTES / took, 1e3 * slowest


def check_gpu(provider: str) -> Check:
    """Whether there is a GPU where one was asked for, and what holds its clocks down."""
    from quantformer_cli.benchmark.gpu import GpuWatch

    with GpuWatch() as watch:
        time.sleep(_GPU_S)
    gpu = watch.found
    if gpu is None and provider == "cuda":
        return bad("GPU", watch.absent, "check the driver, or set --provider cpu")
    if gpu is None:
        return ok("GPU", f"none is read: {watch.absent}")
    if gpu.throttled:
        return advice(
            "GPU", gpu.words, "cool it, raise its power limit, or lock its clocks: sudo nvidia-smi --lock-gpu-clocks"
        )
    return ok("GPU", gpu.words)
