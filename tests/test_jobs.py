"""Jobs side by side: the good ones give their values whatever happens to the others, and nothing is left behind."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import job_functions
import psutil
import pytest

from quantformer.errors import DataError, UsageError
from quantformer_training.jobs import Job, Outcome, cores, run_all


def nothing(outcome: Outcome) -> None:
    pass


def doubles(*numbers: float) -> list[Job]:
    return [Job(name=f"double {n}", function=job_functions.double, arguments={"number": n}) for n in numbers]


def until(condition: Callable[[], bool], *, what: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


@pytest.mark.parametrize("processes", [1, 2])
def test_values_come_in_the_order_of_the_jobs_and_reports_as_they_end(processes: int) -> None:
    reported: list[Outcome] = []
    found = run_all(doubles(1, 2, 3, 4, 5), processes=processes, report=reported.append)
    assert [outcome.value for outcome in found] == [2, 4, 6, 8, 10]
    assert sorted(outcome.name for outcome in reported) == sorted(outcome.name for outcome in found)
    assert not any(outcome.failed for outcome in found)


def test_every_way_to_fail_is_told_by_name_and_the_others_go_on() -> None:
    jobs = [
        Job(name="raises", function=job_functions.fail, arguments={"text": "no\nneurons"}),
        Job(name="killed", function=job_functions.die, arguments={"name": "SIGKILL"}),
        Job(name="crashed", function=job_functions.die, arguments={"name": "SIGSEGV"}),
        Job(name="our own error", function=job_functions.refuse),
        Job(name="leaves", function=job_functions.leave),
        Job(name="no such argument", function=job_functions.double, arguments={"many": 2}),
        Job(name="not to be sent", function=lambda: 1),
        Job(name="not to be sent back", function=job_functions.unsendable),
        *doubles(1, 2),
    ]
    found = {outcome.name: outcome for outcome in run_all(jobs, processes=2, report=nothing)}
    assert found["raises"].failure == "ValueError: no neurons"
    assert "in fail" in found["raises"].trace
    assert found["killed"].failure == "its process was ended by SIGKILL; out of memory, or killed by somebody"
    assert found["crashed"].failure == "its process was ended by SIGSEGV"
    assert found["our own error"].failure == "mouse-3.npz has no drifting gratings; choose another category"
    assert found["leaves"].failure == "SystemExit: the run had enough"
    assert "many" in found["no such argument"].failure
    assert "top-level function" in found["not to be sent"].failure
    assert "cannot be sent" in found["not to be sent back"].failure
    assert [found["double 1"].value, found["double 2"].value] == [2, 4]
    assert sum(outcome.failed for outcome in found.values()) == 8


def test_one_process_is_this_one_and_still_isolates_errors() -> None:
    jobs = [
        Job(name="raises", function=job_functions.fail, arguments={"text": "x"}),
        Job(name="here", function=job_functions.process),
    ]
    failed, here = run_all(jobs, processes=1, report=nothing)
    assert failed.failure == "ValueError: x"
    assert here.value == os.getpid()


def test_local_processes_are_others_and_share_the_cores_as_threads() -> None:
    before = os.environ.get("OMP_NUM_THREADS")
    jobs = [Job(name=str(i), function=job_functions.process_and_threads) for i in range(2)]
    share = max(1, cores() // 2)
    for outcome in run_all(jobs, processes=2, report=nothing):
        process, variable, threads = outcome.value
        assert process != os.getpid()
        assert (variable, threads) == (str(share), share)
    assert os.environ.get("OMP_NUM_THREADS") == before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_a_process_of_jobs_keeps_the_memory_that_it_frees() -> None:
    jobs = [Job(name=str(i), function=job_functions.memory_used_again) for i in range(2)]
    for outcome in run_all(jobs, processes=2, report=nothing):
        # Given back each time, the blocks would take 20 x 9,766 pages of 4 KiB (or 20 x 20 huge ones).
        assert outcome.value < 100


def test_only_jobs_that_cannot_be_sent_end_too() -> None:
    jobs = [Job(name=str(i), function=lambda: 1) for i in range(3)]
    assert all(outcome.failed for outcome in run_all(jobs, processes=2, report=nothing))
    assert run_all([], processes=2, report=nothing) == []


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(DataError, match="two jobs are called 'double 1'"):
        run_all(doubles(1, 1), report=nothing)
    with pytest.raises(UsageError, match="0 processes"):
        run_all(doubles(1), processes=0, report=nothing)


def test_an_error_while_reporting_ends_it_and_leaves_no_process() -> None:
    def full_disk(outcome: Outcome) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        run_all(doubles(1, 2, 3, 4), processes=2, report=full_disk)
    names = [" ".join(child.cmdline()) for child in psutil.Process().children()]
    assert not any("spawn_main" in name for name in names)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_no_run_goes_on_after_the_end_of_its_parent(sent: signal.Signals, tmp_path: Path) -> None:
    program = (
        "from quantformer_training.jobs import Job, run_all\n"
        "import job_functions\n"
        "if __name__ == '__main__':\n"
        "    jobs = [Job(name=p, function=job_functions.mark_and_wait, arguments={'path': p}) for p in 'ab']\n"
        "    run_all(jobs, processes=2, report=print)\n"
    )
    (tmp_path / "program.py").write_text(program)
    path = os.pathsep.join(filter(None, sys.path))
    running = subprocess.Popen(
        [sys.executable, "program.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE
    )
    marks = [tmp_path / "a", tmp_path / "b"]
    try:
        until(lambda: all(mark.exists() for mark in marks), what="the jobs did not start")
        children = [psutil.Process(int(mark.read_text())) for mark in marks]
        if sent == signal.SIGINT:
            # From a keyboard it reaches the children too; they leave it to their parent to end.
            for child in children:
                child.send_signal(sent)
            time.sleep(0.5)
            assert all(child.is_running() for child in children)
        running.send_signal(sent)
        _, complaint = running.communicate(timeout=60)
        assert complaint.count(b"KeyboardInterrupt") == (sent == signal.SIGINT)
        until(lambda: not any(child.is_running() for child in children), what="a job outlived its parent")
    finally:
        running.kill()
        running.wait()
