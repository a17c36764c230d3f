"""Lanes: every task once, side by side, and what a task raises comes back."""

from __future__ import annotations

import threading

import pytest

from quantformer_service.lanes import Lanes

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


def test_closing_ends_the_threads() -> None:
    before = set(threading.enumerate())
    lanes = Lanes(4)
    made = set(threading.enumerate()) - before
    assert len(made) == 3
    lanes.close()
    for thread in made:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
