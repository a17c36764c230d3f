"""Lanes: every task once, side by side, each job's end told, and what a task raises comes back."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from quantformer_service.lanes import Lanes, Task

PATIENCE_S = 60.0


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("tasks", [0, 1, 2, 9])
def test_every_task_is_called_once_and_is_done_when_run_returns(count: int, tasks: int) -> None:
    lanes = Lanes(count)
    called: list[int] = []
    for _ in range(3):
        called.clear()
        lanes.run([lambda number=number: called.append(number) for number in range(tasks)])
        assert sorted(called) == list(range(tasks))
    lanes.close()


def test_as_many_tasks_as_lanes_run_at_the_same_time() -> None:
    lanes = Lanes(3)
    meeting = threading.Barrier(3, timeout=PATIENCE_S)  # broken, and so raising, unless all three are there
    lanes.run([lambda: meeting.wait() and None] * 3)
    lanes.close()


def test_one_lane_is_the_callers_own_thread() -> None:
    seen: list[int] = []
    Lanes(1).run([lambda: seen.append(threading.get_ident())] * 2)
    assert set(seen) == {threading.get_ident()}


@pytest.mark.parametrize("count", [1, 3])
def test_what_a_task_raises_is_raised_and_the_lanes_go_on(count: int) -> None:
    lanes = Lanes(count)
    called: list[int] = []

    def fail() -> None:
        raise ValueError("this one")

    for _ in range(3):
        with pytest.raises(ValueError, match="this one"):
            lanes.run([fail, *[lambda: called.append(1)] * 5])
        called.clear()
        lanes.run([lambda: called.append(1)] * 5)
        assert len(called) == 5
    lanes.close()


# --- several jobs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 4])
def test_each_job_is_told_of_once_after_the_last_of_its_tasks(count: int) -> None:
    lanes = Lanes(count)
    called: list[tuple[int, int]] = []
    told: list[tuple[int, Exception | None, int]] = []
    for _ in range(20):
        called.clear()
        told.clear()
        for job, tasks in enumerate([3, 1, 0, 7]):
            lanes.begin(
                [lambda job=job, task=task: called.append((job, task)) for task in range(tasks)],
                then=lambda error, job=job: told.append((job, error, sum(one == job for one, _ in called))),
            )
        lanes.end()
        assert sorted(called) == [(job, task) for job, tasks in enumerate([3, 1, 0, 7]) for task in range(tasks)]
        assert sorted(told) == [(0, None, 3), (1, None, 1), (2, None, 0), (3, None, 7)]
    lanes.close()


def test_one_lane_ends_jobs_in_the_order_in_which_they_were_begun() -> None:
    lanes = Lanes(1)
    seen: list[str] = []
    for job in "ab":
        lanes.begin([lambda job=job: seen.append(job)] * 2, then=lambda _, job=job: seen.append(f"{job} ended"))
    assert seen == []
    lanes.end()
    assert seen == ["a", "a", "a ended", "b", "b", "b ended"]


def test_jobs_of_one_task_each_run_side_by_side() -> None:
    lanes = Lanes(3)
    meeting = threading.Barrier(3, timeout=PATIENCE_S)
    raised: list[Exception | None] = []
    for _ in range(3):
        lanes.begin([lambda: meeting.wait() and None], then=raised.append)
    lanes.end()
    assert raised == [None] * 3
    lanes.close()


def test_the_other_lanes_begin_while_the_caller_prepares_the_next_job() -> None:
    lanes = Lanes(2)
    began = threading.Event()
    lanes.begin([began.set] * 2, then=lambda _: None)
    assert began.wait(PATIENCE_S)
    lanes.end()
    lanes.close()


@pytest.mark.parametrize("count", [1, 3])
def test_a_job_that_fails_fails_alone(count: int) -> None:
    lanes = Lanes(count)
    called: list[int] = []
    told: dict[int, Exception | None] = {}

    def fail() -> None:
        raise ValueError("this one")

    for job in range(5):
        tasks: list[Task] = [fail, fail] if job in (0, 3) else [lambda job=job: called.append(job)] * 4
        lanes.begin(tasks, then=lambda error, job=job: told.update({job: error}))
    lanes.end()
    assert sorted(called) == sorted([1, 2, 4] * 4)
    assert {job for job, error in told.items() if isinstance(error, ValueError)} == {0, 3}
    assert {job for job, error in told.items() if error is None} == {1, 2, 4}
    lanes.close()


@pytest.mark.parametrize("count", [1, 3])
def test_what_follows_a_job_and_raises_is_raised_at_the_end_and_stops_no_other(count: int) -> None:
    lanes = Lanes(count)

    def fail(_: Exception | None) -> None:
        raise ValueError("afterwards")

    for _ in range(2):
        told: list[Exception | None] = []
        lanes.begin([lambda: None] * 3, then=fail)
        lanes.begin([lambda: None] * 3, then=told.append)
        with pytest.raises(ValueError, match="afterwards"):
            lanes.end()
        assert told == [None]
    lanes.close()


def test_closing_ends_the_threads() -> None:
    before = set(threading.enumerate())
    lanes = Lanes(4)
    made = set(threading.enumerate()) - before
    assert len(made) == 3
    lanes.close()
    for thread in made:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@pytest.mark.skipif(sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs to choose from")
def test_lanes_that_are_apart_share_no_cpu_and_the_caller_gets_its_own_back() -> None:
    before = os.sched_getaffinity(0)
    lanes = Lanes(2, apart=True)
    meeting = threading.Barrier(2, timeout=PATIENCE_S)
    found: list[set[int]] = []

    def task() -> None:
        meeting.wait()  # so that each lane has one of the two
        found.append(os.sched_getaffinity(0))

    lanes.run([task, task])
    one, other = found
    assert one
    assert other
    assert not one & other
    assert one | other == before
    lanes.close()
    assert os.sched_getaffinity(0) == before
