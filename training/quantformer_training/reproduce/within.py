"""Paired differences on one recording, for studies of too few mice for an interval over mice."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quantformer.errors import DataError
from quantformer_training.bootstrap import PairedDifference, Unit, compare
from quantformer_training.contest import MODELS
from quantformer_training.report import Table
from quantformer_training.reproduce.plan import MODELS_GROUP, QUANTFORMER, is_ablation
from quantformer_training.resampled_metrics import ACTIVATION_METRICS, Draws, Evaluate, Metric
from quantformer_training.result_columns import COLUMNS
from quantformer_training.run_store import Run, RunStore

RESAMPLES = 1_000
#: Activation scores that are resampled, from probabilities.
CHANCES = ("log_loss", "brier", "auroc_within_neuron")
#: Forecast scores that are means over rows, and where a run keeps each row's.
ROW_SCORES = {"mse": "squared_error", "r": "r"}
UNITS: tuple[Unit, ...] = ("trials", "trials x neurons")

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, kw_only=True)
class Within:
    """One model less QuantFormer on one mouse and category, by metric and by what is resampled."""

    mouse: str
    category: str
    model: str
    differences: Mapping[tuple[str, Unit], PairedDifference]


def within_recordings(runs: Iterable[Run], store: RunStore, *, resamples: int = RESAMPLES) -> list[Within]:
    """Every model against QuantFormer on the test rows of each place where both ended well."""
    places: dict[tuple[str, str], dict[str, Run]] = defaultdict(dict)
    for run in runs:
        if run.key.table == MODELS_GROUP and not run.failure and not is_ablation(run.key.model):
            places[run.key.mouse, run.key.category][run.key.model] = run
    found = []
    for (mouse, category), models in places.items():
        if QUANTFORMER not in models:
            continue
        reference = store.arrays(models[QUANTFORMER])
        for model, run in models.items():
            if model == QUANTFORMER:
                continue
            differences = _differences(store.arrays(run), reference, resamples=resamples)
            found.append(Within(mouse=mouse, category=category, model=model, differences=differences))
    return found


def within_tables(found: Iterable[Within]) -> list[Table]:
    """One table a mouse and category: differences with their interval over trials, and both verdicts."""
    places: dict[tuple[str, str], list[Within]] = defaultdict(list)
    for one in found:
        places[one.mouse, one.category].append(one)
    metrics = (*CHANCES, *ROW_SCORES)
    return [
        Table(
            caption=f"Within one recording: {mouse}, {category.replace('_', ' ')}; each model less QuantFormer",
            columns=("model", *(COLUMNS[metric].heading for metric in metrics)),
            rows=[(MODELS[one.model].title, *(_text(one, metric) for metric in metrics)) for one in members],
            note=f"Difference, 95 % interval of {RESAMPLES} paired resamples of whole trials, verdict; then the verdict where "
            "neurons are resampled too. “Not distinguishable” where the interval contains zero.",
        )
        for (mouse, category), members in places.items()
    ]


def within_lines(found: Iterable[Within]) -> str:
    """Every difference, one JSON object a line; a number that is not finite is null."""
    lines = []
    for one in found:
        for difference in one.differences.values():
            record = {"mouse": one.mouse, "category": one.category, "model": one.model, **asdict(difference)}
            record = {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in record.items()}
            lines.append(json.dumps({**record, "verdict": difference.verdict}, allow_nan=False) + "\n")
    return "".join(lines)


def _differences(arrays: Arrays, reference: Arrays, *, resamples: int) -> dict[tuple[str, Unit], PairedDifference]:
    for name in ("trial", "neuron", "active"):
        if name not in arrays or not np.array_equal(arrays[name], reference[name]):
            raise DataError(f"two runs of one place differ in the {name} of their test rows; remove them and run again")
    told: dict[str, tuple[NDArray[np.generic], NDArray[np.generic], Metric]] = {}
    if "probability" in arrays:
        for name in CHANCES:
            told[name] = arrays["probability"], reference["probability"], ACTIVATION_METRICS[name]
    for name, row in ROW_SCORES.items():
        if row in arrays and np.isfinite(arrays[row].astype(np.float64)).any():
            told[name] = arrays[row], reference[row], Metric(higher_is_better=name == "r", prepare=_row_mean)
    found = {}
    for name, (own, other, metric) in told.items():
        usable = np.isfinite(own.astype(np.float64)) & np.isfinite(other.astype(np.float64))
        for unit in UNITS:
            made = compare(
                own[usable].astype(np.float64),
                {QUANTFORMER: other[usable].astype(np.float64)},
                truth=arrays["active"][usable],
                trial=arrays["trial"][usable],
                neuron=arrays["neuron"][usable],
                metrics={name: metric},
                unit=unit,
                resamples=resamples,
            )
            found[name, unit] = made[name]
    return found


def _row_mean(score: ArrayLike, truth: ArrayLike, member: NDArray[np.intp]) -> Evaluate:
    """Mean of a score that every row has."""
    rows = np.asarray(score, dtype=np.float64)

    def evaluate(draws: Draws) -> NDArray[np.float64]:
        count = draws.row.sum(axis=1)
        mean: NDArray[np.float64] = (draws.row @ rows) / np.where(count > 0, count, np.nan)
        return mean

    return evaluate


def _text(one: Within, metric: str) -> str:
    by_trial, by_both = (one.differences.get((metric, unit)) for unit in UNITS)
    if by_trial is None or by_both is None:
        return "–"
    column = COLUMNS[metric]
    low, high = column.number(by_trial.low), column.number(by_trial.high)
    return f"{column.number(by_trial.difference)} ({low} to {high}), {by_trial.verdict}; {by_both.verdict}"
