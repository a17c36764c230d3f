"""The runs of a table: those that the store has are not run again, the others are, and stored as each one ends."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from quantformer.recording import Origin
from quantformer_training.jobs import Job, Outcome, Workers, cores, run_all
from quantformer_training.run_store import Run, RunKey, RunStore

#: What figures depend on beside configuration and data.
PACKAGES = ("quantformer", "torch", "numpy", "scipy", "scikit-learn")


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """What a run's function returns: every metric by name (NaN where undefined), and the arrays to keep aside."""

    metrics: Mapping[str, float]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedRun:
    """A run to be made: ``function(**arguments)`` is top-level, can be pickled and returns a `Measured`."""

    key: RunKey
    fingerprint: str
    origin: Origin
    function: Callable[..., Measured]
    arguments: Mapping[str, Any]


def run_missing(
    planned: Sequence[PlannedRun],
    *,
    store: RunStore,
    workers: Workers = "local",
    processes: int = 1,
    report: Callable[[Run], None],
) -> list[Run]:
    """Make the planned runs that ``store`` does not have; all of them, failed ones among them, in the planned order.

    ``report`` is called with each run that was made now, once it is stored.

    Raises:
        DataError: two planned runs have the same key.
        UnavailableError: the store cannot be written, or Ray cannot be used.
    """
    made: dict[RunKey, Run] = {}
    missing: dict[str, PlannedRun] = {}
    for plan in planned:
        run = store.finished(plan.key, fingerprint=plan.fingerprint)
        if run is None:
            missing[str(plan.key)] = plan
        else:
            made[plan.key] = run

    def keep(outcome: Outcome) -> None:
        plan = missing[outcome.name]
        run, arrays = _run(plan, outcome)
        made[plan.key] = store.add(run, arrays)
        report(made[plan.key])

    jobs = [
        Job(name=str(plan.key), function=_measure, arguments={"function": plan.function, "arguments": plan.arguments})
        for plan in planned
        if plan.key not in made
    ]
    run_all(jobs, workers=workers, processes=processes, report=keep)
    return [made[plan.key] for plan in planned]


def software() -> dict[str, str]:
    """Versions of Python and of the packages that figures depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> str:
    """The machine in a few words: processor, cores, and GPU where torch is loaded and sees one."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line for line in cpuinfo.read_text(errors="replace").splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    words = f"{name}, {cores()} of {os.cpu_count()} cores, {platform.system()}"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        words += f", {torch.cuda.get_device_name(0)}"
    return words


def _measure(*, function: Callable[..., Measured], arguments: Mapping[str, Any]) -> tuple[Measured, str, dict[str, str]]:
    """Run where the work is done: on a cluster that is another machine, with its own versions."""
    measured = function(**arguments)
    return measured, machine(), software()


def _run(plan: PlannedRun, outcome: Outcome) -> tuple[Run, Mapping[str, NDArray[Any]]]:
    if outcome.failed:
        measured, where, versions = Measured(metrics={}), machine(), software()
    else:
        measured, where, versions = outcome.value
    run = Run(
        key=plan.key,
        fingerprint=plan.fingerprint,
        origin=plan.origin,
        metrics=measured.metrics,
        seconds=outcome.seconds,
        machine=where,
        versions=versions,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        failure=outcome.failure,
    )
    return run, measured.arrays
