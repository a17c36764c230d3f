"""A table's runs: made once, failed ones again, stored as each ends whatever cuts the rest."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import run_functions

from quantformer.errors import DataError
from quantformer_training.planned_runs import PlannedRun, machine, run_missing, software
from quantformer_training.run_store import Run, RunKey, RunStore

KEY = RunKey(table="table1", mouse="m", category="drifting_gratings", model="lstm", task="activation")


def plan(seed: int, log: Path, *, fingerprint: str = "f", fails: bool = False) -> PlannedRun:
    return PlannedRun(
        key=replace(KEY, seed=seed),
        fingerprint=fingerprint,
        origin="simulated",
        function=run_functions.measure,
        arguments={"seed": seed, "log": str(log), "fails": fails},
    )


@pytest.mark.parametrize("processes", [1, 2])
def test_finished_runs_are_not_run_again(tmp_path: Path, processes: int) -> None:
    log, reported = tmp_path / "log", list[Run]()
    plans = [plan(seed, log, fails=seed == 1) for seed in range(3)]
    store = RunStore(tmp_path / "store")
    found = run_missing(plans, store=store, processes=processes, report=reported.append)
    assert [run.key.seed for run in found] == [0, 1, 2]
    assert found[1].failure == "mouse m has one neuron in which nothing happens"
    assert found[1].metrics == {}
    assert found[2].metrics["auroc"] == 0.5 + 0.1 * 2
    np.testing.assert_array_equal(store.arrays(found[2])["probability"], np.full(3, 2, np.float32))
    assert sorted(run.key.seed for run in reported) == [0, 1, 2]
    assert found[0].machine == machine()
    assert found[0].versions == software()
    assert {"python", "torch"} < found[0].versions.keys()
    assert sorted(log.read_text().split()) == ["0", "1", "2"]

    # Another day: the failed one is tried again, one is wanted otherwise, the third is there.
    plans = [plan(0, log, fingerprint="g"), plan(1, log), plan(2, log)]
    again = run_missing(plans, store=RunStore(tmp_path / "store"), processes=processes, report=reported.append)
    assert not any(run.failure for run in again)
    assert sorted(log.read_text().split()) == ["0", "0", "1", "1", "2"]
    assert len(RunStore(tmp_path / "store").runs()) == 3


def test_what_ended_before_a_cut_stays(tmp_path: Path) -> None:
    log, store = tmp_path / "log", RunStore(tmp_path / "store")

    def cut(run: Run) -> None:
        if run.key.seed == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_missing([plan(seed, log) for seed in range(4)], store=store, report=cut)
    assert [run.key.seed for run in RunStore(tmp_path / "store").runs()] == [0, 1]
    run_missing([plan(seed, log) for seed in range(4)], store=store, report=lambda run: None)
    assert log.read_text().split() == ["0", "1", "2", "3"]


def test_the_same_run_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two jobs are called"):
        run_missing([plan(1, tmp_path / "log")] * 2, store=RunStore(tmp_path), report=lambda run: None)


def test_a_machine_is_named_with_its_cores() -> None:
    assert f"of {os.cpu_count()} cores" in machine()
