"""Differences on one recording: their sign, their verdict, and that both runs are of the same rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_recording import GRATING

from quantformer.errors import DataError
from quantformer_training.bootstrap import Unit, compare
from quantformer_training.reproduce.within import within_lines, within_recordings, within_tables
from quantformer_training.resampled_metrics import ACTIVATION_METRICS
from quantformer_training.run_store import Run, RunKey, RunStore

TRIALS, NEURONS = 60, 8
RUN = Run(
    key=RunKey(table="models", mouse="m0", category=GRATING, model="quantformer", task="both"),
    fingerprint="f",
    origin="simulated",
    seconds=1.0,
    machine="m",
    versions={},
    date="2026-01-01T00:00:00+00:00",
)


def arrays(*, noise: float, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Answers that are worse with ``noise``, of the same trials."""
    random = np.random.default_rng(0)
    trial, neuron = np.divmod(np.arange(TRIALS * NEURONS), NEURONS)
    chance = random.uniform(0.1, 0.9, TRIALS * NEURONS)
    active = random.random(len(chance)) < chance
    own = np.random.default_rng(seed)
    logit = np.log(chance / (1 - chance)) + noise * own.normal(size=len(chance))
    return {
        "trial": trial, "neuron": neuron, "active": active, "probability": 1 / (1 + np.exp(-logit)),
        "squared_error": 0.1 + noise * own.random(len(chance)), "r": np.where(neuron == 0, np.nan, 0.5 - 0.1 * noise),
    }  # fmt: skip


def add(store: RunStore, model: str, made: dict[str, NDArray[Any]], *, seed: int = 0) -> Run:
    return store.add(replace(RUN, key=replace(RUN.key, model=model, seed=seed)), made)


def test_a_worse_model_is_behind_and_an_equal_one_is_not_distinguishable(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    runs = [
        add(store, "quantformer", arrays(noise=0.0)),
        add(store, "lstm", arrays(noise=3.0)),
        add(store, "ridge", {name: a for name, a in arrays(noise=0.0).items() if name != "probability"}),
        replace(RUN, key=replace(RUN.key, model="informer"), failure="lost"),
    ]
    worse, equal = within_recordings(runs, store, resamples=200)
    assert (worse.model, equal.model) == ("lstm", "ridge")
    assert {name for name, _ in worse.differences} == {"log_loss", "brier", "auroc_within_neuron", "mse", "r"}
    assert {found.verdict for found in worse.differences.values()} == {"behind"}
    assert worse.differences["log_loss", "trials"].difference > 0 > worse.differences["r", "trials"].difference
    assert {found.verdict for found in equal.differences.values()} == {"not distinguishable"}
    assert {name for name, _ in equal.differences} == {"mse", "r"}
    (table,) = within_tables([worse, equal])
    assert table.rows[0][0] == "LSTM"
    assert table.rows[0][1].endswith("behind; behind")
    assert table.rows[0][3].endswith(", behind")
    assert table.rows[1][1] == "–"
    records = [json.loads(line) for line in within_lines([worse, equal]).splitlines()]
    assert len(records) == 13
    assert {record["verdict"] for record in records} == {"behind", "not distinguishable"}


def test_runs_of_other_rows_are_not_compared(tmp_path: Path) -> None:
    store, other = RunStore(tmp_path), arrays(noise=0.0)
    other["active"] = ~other["active"]
    runs = [add(store, "quantformer", arrays(noise=0.0)), add(store, "lstm", other)]
    with pytest.raises(DataError, match="differ in the active of their test rows"):
        within_recordings(runs, store)
    assert within_recordings(runs[1:], store) == []


@pytest.mark.parametrize("unit", ["trials", "trials x neurons"])
def test_means_agree_with_the_bootstrap_of_rows(unit: Unit, tmp_path: Path) -> None:
    store, worse = RunStore(tmp_path), arrays(noise=1.0)
    runs = [add(store, "quantformer", arrays(noise=0.0)), add(store, "lstm", worse)]
    (found,) = within_recordings(runs, store, resamples=300)
    own, other = (store.arrays(run)["probability"] for run in reversed(runs))
    wanted = compare(
        own, {"quantformer": other}, truth=worse["active"], trial=worse["trial"], neuron=worse["neuron"], unit=unit,
        metrics={name: ACTIVATION_METRICS[name] for name in ("log_loss", "brier")}, resamples=300,
    )  # fmt: skip
    for name, expected in wanted.items():
        made = found.differences[name, unit]
        for field in ("candidate", "reference", "difference", "low", "high"):
            assert getattr(made, field) == pytest.approx(getattr(expected, field), rel=1e-6)
        assert (made.verdict, made.unit, made.higher_is_better) == (expected.verdict, unit, expected.higher_is_better)


def test_seeds_of_a_place_are_averaged_before_they_are_compared(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    quantformer = {seed: arrays(noise=1.0, seed=seed) for seed in (0, 1)}
    lstm = {seed: arrays(noise=1.0, seed=seed) for seed in (2, 3)}
    runs = [add(store, "quantformer", made, seed=seed) for seed, made in quantformer.items()]
    runs += [add(store, "lstm", made, seed=seed) for seed, made in zip((0, 1), lstm.values(), strict=True)]
    # A seed of one model alone has nothing to be compared with.
    runs.append(add(store, "lstm", arrays(noise=9.0), seed=7))
    (found,) = within_recordings(runs, store, resamples=200)
    singles = [
        within_recordings([run for run in runs if run.key.seed == seed], store, resamples=200)[0] for seed in (0, 1)
    ]
    assert found.seeds == (0, 1)
    assert [one.seeds for one in singles] == [(0,), (1,)]
    for place, made in found.differences.items():
        each = [one.differences[place] for one in singles]
        assert made.difference == pytest.approx(np.mean([one.difference for one in each]), abs=1e-9)
        assert made.low <= made.difference <= made.high
    (table,) = within_tables([found])
    assert table.caption.endswith("means over 2 seeds")
    assert "seeds" not in within_tables(singles)[0].caption
    assert json.loads(within_lines([found]).splitlines()[0])["seeds"] == [0, 1]
