"""Rows kept aside: the same differences and intervals as from the whole traces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_rows import ignorant, oracle, simulated_rows
from result_runs import run

from quantformer.errors import DataError
from quantformer_training.bootstrap import compare
from quantformer_training.resampled_metrics import ACTIVATION_METRICS, FORECAST_METRICS
from quantformer_training.run_store import RunStore
from quantformer_training.stored_rows import compare_stored, row_arrays

ROWS = simulated_rows(trials=30, neurons=8, seed=2)


def test_a_comparison_from_the_store_is_that_of_the_whole_traces(tmp_path: Path) -> None:
    store, kept = RunStore(tmp_path), {}
    made = {"good": oracle(ROWS), "bad": ignorant(ROWS)}
    made["bad"].response[:5] = 0.0  # flat: their r is undefined
    for seed, (name, found) in enumerate(made.items()):
        arrays = row_arrays(ROWS, probability=found.probability, response=found.response)
        kept[name] = store.arrays(store.add(run(seed=seed), arrays))
    stored = compare_stored(kept["good"], {"bad": kept["bad"]}, resamples=300)
    blocks: dict[str, Any] = {"trial": ROWS.trial, "neuron": ROWS.neuron, "resamples": 300}
    whole = compare(
        made["good"].probability, {"bad": made["bad"].probability}, truth=ROWS.active, metrics=ACTIVATION_METRICS, **blocks
    ) | compare(
        made["good"].response, {"bad": made["bad"].response}, truth=ROWS.response, metrics=FORECAST_METRICS, **blocks
    )
    assert stored.keys() == whole.keys()
    for name, expected in whole.items():
        ours, theirs = ([d.candidate, d.reference, d.difference, d.low, d.high] for d in (stored[name], expected))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=name)
        assert stored[name].verdict == expected.verdict == "ahead"


def test_the_same_predictions_are_not_distinguishable() -> None:
    arrays = row_arrays(ROWS, probability=oracle(ROWS).probability, response=oracle(ROWS).response)
    for found in compare_stored(arrays, {"itself": arrays}, resamples=100).values():
        assert (found.difference, found.verdict) == (0.0, "not distinguishable")


def test_runs_of_one_task_are_compared_on_its_metrics() -> None:
    first = row_arrays(ROWS, probability=oracle(ROWS).probability)
    both = row_arrays(ROWS, probability=ignorant(ROWS).probability, response=ignorant(ROWS).response)
    assert compare_stored(first, {"both": both}, resamples=50).keys() == ACTIVATION_METRICS.keys()


def test_other_rows_and_nothing_in_common_are_refused() -> None:
    other = simulated_rows(trials=30, neurons=8, seed=3)
    arrays = row_arrays(ROWS, probability=oracle(ROWS).probability)
    with pytest.raises(DataError, match="'other' was scored on other rows"):
        compare_stored(arrays, {"other": row_arrays(other, probability=oracle(other).probability)})
    with pytest.raises(DataError, match="no array in common"):
        compare_stored(arrays, {"traces": row_arrays(ROWS, response=oracle(ROWS).response)})
    fewer = ROWS.select(np.arange(8, len(ROWS)))
    with pytest.raises(DataError, match="scored on other rows"):
        compare_stored(arrays, {"fewer": row_arrays(fewer, probability=oracle(fewer).probability)})
