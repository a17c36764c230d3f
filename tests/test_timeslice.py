"""The engine's threads have short time slices, and of nothing else is anything changed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from engine_process import running

from quantformer_service import timeslice

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has these")


def told() -> bool:
    """Whether the kernel tells of slices, as it does from 6.12 on."""
    return timeslice.of_thread(0) > 0


@linux
def test_the_engine_s_threads_have_one(tiny_bundle_path: Path) -> None:
    if not told():
        pytest.skip("this kernel knows no slices of a thread's own")
    with running(tiny_bundle_path, threads=2) as engine:
        tasks = list(Path(f"/proc/{engine.process.pid}/task").iterdir())
        short = [one for one in tasks if timeslice.of_thread(int(one.name)) == timeslice.SHORTEST_NS]
        names = [(one / "comm").read_text() for one in short]
    # Loop, inference and the other lane, ZeroMQ's two. Those that were there before are in no hurry: the one that waits for the
    # parent's end, and numpy's.
    assert str(engine.process.pid) in {one.name for one in short}
    assert len(short) == 5
    assert sum(name.startswith("ZMQbg") for name in names) == 2


PROGRAM = """
import os, threading
os.nice(3)
from quantformer_service import timeslice
before = timeslice.of_thread(0), os.nice(0), os.sched_getscheduler(0)
assert timeslice.shorten() == ""
later = []
thread = threading.Thread(target=lambda: later.append(timeslice.of_thread(threading.get_native_id())))
thread.start()
thread.join()
print(before, (timeslice.of_thread(0), os.nice(0), os.sched_getscheduler(0)), later)
"""


@linux
def test_nice_and_policy_stay_and_later_threads_inherit() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    if told():
        assert done.stdout.strip().endswith(f"({timeslice.SHORTEST_NS}, 3, {os.SCHED_OTHER}) [{timeslice.SHORTEST_NS}]")


@linux
def test_a_thread_that_is_not_there() -> None:
    with pytest.raises(OSError, match="No such process"):
        timeslice.of_thread(2**22 + 1)


def test_elsewhere_it_is_refused_and_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeslice, "_CALLS", {})
    assert "not known on this system" in timeslice.shorten()
