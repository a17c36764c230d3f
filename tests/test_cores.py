"""Shares of the CPUs: none twice, none left out, hyper-threads of a core together."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantformer_service import cores

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads choose their CPUs on Linux alone")


def shared(monkeypatch: pytest.MonkeyPatch, folder: Path, siblings: dict[int, str], count: int) -> list[set[int]]:
    """`cores.shares` of a machine with these CPUs, each with the hyper-threads of its core."""
    for cpu, together in siblings.items():
        topology = folder / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True, exist_ok=True)
        (topology / "thread_siblings_list").write_text(f"{together}\n")
    monkeypatch.setattr(cores, "_CPUS", folder)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _thread: set(siblings))
    return cores.shares(count)


@given(st.sets(st.integers(0, 300), min_size=1, max_size=64), st.integers(2, 70))
def test_no_cpu_is_shared_twice_and_none_is_left_out(cpus: set[int], count: int) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(cores, "_CPUS", Path("/nowhere"))
        monkeypatch.setattr(os, "sched_getaffinity", lambda _thread: cpus)
        found = cores.shares(count)
    if len(cpus) < count:
        assert found == []
        return
    assert len(found) == count
    assert all(found)
    assert sorted(cpu for share in found for cpu in share) == sorted(cpus)


@pytest.mark.parametrize("siblings", [{0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}])
def test_hyper_threads_stay_together(
    siblings: dict[int, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = shared(monkeypatch, tmp_path, siblings, 2)
    assert sorted(len({siblings[cpu] for cpu in share}) for share in found) == [1, 1]
    # Of more threads than cores each has a hyper-thread.
    assert shared(monkeypatch, tmp_path, siblings, 4) == [{0}, {1}, {2}, {3}]


def test_one_thread_goes_where_it_likes() -> None:
    assert cores.shares(1) == []


def test_cpus_that_are_gone_change_nothing() -> None:
    before = os.sched_getaffinity(0)
    absent = {max(before) + 1000}
    assert cores.settle(absent) == before
    assert os.sched_getaffinity(0) == before
