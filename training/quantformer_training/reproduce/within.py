"""Paired differences on one recording, for studies of too few mice for an interval over mice."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quantformer.activation_metrics import row_log_loss
from quantformer.errors import DataError
from quantformer_training.bootstrap import PairedDifference, Unit, compare
from quantformer_training.contest import MODELS
from quantformer_training.report import Table
from quantformer_training.reproduce.plan import MODELS_GROUP, QUANTFORMER, is_ablation
from quantformer_training.resampled_metrics import ACTIVATION_METRICS, Evaluate, Metric
from quantformer_training.result_columns import COLUMNS
from quantformer_training.run_store import Run, RunStore

RESAMPLES = 1_000
#: Scores of probabilities: means over rows, and one over pairs of rows, which is resampled over trials alone.
MEANS, RANKED = ("log_loss", "brier"), "auroc_within_neuron"
#: Scores of forecasts, all means over rows, and where a run keeps each row's.
_ROW_SCORES = {"mse": "squared_error", "r": "r", "crps": "crps"}
UNITS: tuple[Unit, ...] = ("trials", "trials x neurons")

Arrays = Mapping[str, NDArray[np.generic]]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Within:
    """One model less QuantFormer on one mouse and category, by metric and by what is resampled; the means over ``seeds``."""

    mouse: str
    category: str
    model: str
    seeds: tuple[int, ...]
    differences: Mapping[tuple[str, Unit], PairedDifference]


def within_recordings(runs: Iterable[Run], store: RunStore, *, resamples: int = RESAMPLES) -> list[Within]:
    """Every model against QuantFormer on the test rows of each place where both ended well, over the seeds of which both did."""
    places: dict[tuple[str, str], dict[str, dict[int, Run]]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        if run.key.table == MODELS_GROUP and not run.failure and not is_ablation(run.key.model):
            places[run.key.mouse, run.key.category][run.key.model][run.key.seed] = run
    found = []
    for (mouse, category), models in places.items():
        reference = {seed: store.arrays(run) for seed, run in models.pop(QUANTFORMER, {}).items()}
        for model, by_seed in models.items():
            seeds = tuple(sorted(by_seed.keys() & reference.keys()))
            if seeds:
                own = [store.arrays(by_seed[seed]) for seed in seeds]
                differences = _differences(own, [reference[seed] for seed in seeds], resamples=resamples)
                found.append(Within(mouse=mouse, category=category, model=model, seeds=seeds, differences=differences))
    return found


def within_tables(found: Iterable[Within]) -> list[Table]:
    """One table a mouse and category: differences with their interval over trials, and both verdicts."""
    places: dict[tuple[str, str], list[Within]] = defaultdict(list)
    for one in found:
        places[one.mouse, one.category].append(one)
    metrics = (*MEANS, RANKED, *_ROW_SCORES)
    return [
        Table(
            caption=f"Within one recording: {mouse}, {category.replace('_', ' ')}; each model less QuantFormer{_seeds(members)}",
            columns=("model", *(COLUMNS[metric].heading for metric in metrics)),
            rows=[(MODELS[one.model].title, *(_text(one, metric) for metric in metrics)) for one in members],
            note=f"Difference, 95 % interval of {RESAMPLES} paired resamples of whole trials, verdict; then the verdict where "
            "neurons are resampled too. “Not distinguishable” where the interval contains zero.",
        )
        for (mouse, category), members in places.items()
    ]


def _seeds(members: Sequence[Within]) -> str:
    most = max(len(one.seeds) for one in members)
    return f", means over {most} seeds" if most > 1 else ""


def within_lines(found: Iterable[Within]) -> str:
    """Every difference, one JSON object a line; a number that is not finite is null."""
    lines = []
    for one in found:
        for difference in one.differences.values():
            place = {"mouse": one.mouse, "category": one.category, "model": one.model, "seeds": one.seeds}
            record = {**place, **asdict(difference)}
            record = {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in record.items()}
            lines.append(json.dumps({**record, "verdict": difference.verdict}, allow_nan=False) + "\n")
    return "".join(lines)


def _differences(
    arrays: Sequence[Arrays], reference: Sequence[Arrays], *, resamples: int
) -> dict[tuple[str, Unit], PairedDifference]:
    """Of two models' answers by seed."""
    rows = reference[0]
    for name in ("trial", "neuron", "active"):
        if any(name not in one or not np.array_equal(one[name], rows[name]) for one in (*arrays, *reference)):
            raise DataError(f"two runs of one place differ in the {name} of their test rows; remove them and run again")
    found = {}
    for name in (*MEANS, *_ROW_SCORES):
        own, other = _row_scores(name, arrays), _row_scores(name, reference)
        if own is not None and other is not None and np.isfinite(own - other).any():
            for unit in UNITS:
                found[name, unit] = _mean_difference(name, own, other, arrays=rows, unit=unit, resamples=resamples)
    if all("probability" in one for one in (*arrays, *reference)):
        made = compare(
            np.stack([one["probability"] for one in arrays], axis=1),
            {QUANTFORMER: np.stack([one["probability"] for one in reference], axis=1)},
            truth=rows["active"],
            trial=rows["trial"],
            neuron=rows["neuron"],
            metrics={RANKED: _over_columns(ACTIVATION_METRICS[RANKED])},
            resamples=resamples,
        )
        found[RANKED, "trials"] = made[RANKED]
    return found


def _over_columns(metric: Metric) -> Metric:
    """The metric's mean over the columns of predictions ``(rows, seeds)``."""

    def prepare(prediction: ArrayLike, truth: ArrayLike, member: NDArray[np.intp]) -> Evaluate:
        each = [metric.prepare(column, truth, member) for column in np.asarray(prediction).T]
        return lambda draws: np.mean([evaluate(draws) for evaluate in each], axis=0)

    return Metric(higher_is_better=metric.higher_is_better, prepare=prepare)


def _row_scores(name: str, by_seed: Sequence[Arrays]) -> Floats | None:
    """A score of every row, its mean over seeds, NaN where a row has none; None where the runs do not answer that."""
    scores = [_scores(name, arrays) for arrays in by_seed]
    there = [one for one in scores if one is not None]
    return np.mean(there, axis=0) if len(there) == len(scores) else None


def _scores(name: str, arrays: Arrays) -> Floats | None:
    if name in _ROW_SCORES:
        kept = arrays.get(_ROW_SCORES[name])
        return None if kept is None else kept.astype(np.float64)
    if "probability" not in arrays:
        return None
    probability, active = arrays["probability"].astype(np.float64), arrays["active"].astype(np.bool_)
    return row_log_loss(probability, active) if name == "log_loss" else np.square(probability - active)


def _mean_difference(
    name: str, own: Floats, other: Floats, *, arrays: Arrays, unit: Unit, resamples: int
) -> PairedDifference:
    """As `bootstrap.compare` for a score that is a mean over rows, from sums a trial and neuron: the rows are gone over once."""
    usable = np.isfinite(own - other)
    trials, trial = np.unique(arrays["trial"], return_inverse=True)
    neurons, neuron = np.unique(arrays["neuron"], return_inverse=True)
    total, count = np.zeros((2, len(trials), len(neurons)))
    np.add.at(total, (trial[usable], neuron[usable]), (own - other)[usable])
    np.add.at(count, (trial[usable], neuron[usable]), 1.0)
    by_trial, by_neuron = (np.random.default_rng((0, stream)) for stream in range(2))
    drawn = by_trial.multinomial(len(trials), np.full(len(trials), 1.0 / len(trials)), size=resamples).astype(np.float64)
    weight = np.ones((resamples, len(neurons)))
    if unit == "trials x neurons":
        weight = by_neuron.multinomial(len(neurons), np.full(len(neurons), 1.0 / len(neurons)), size=resamples).astype(np.float64)
    rows = ((drawn @ count) * weight).sum(axis=1)
    defined = rows > 0
    means = ((drawn @ total) * weight).sum(axis=1)[defined] / rows[defined]
    low, high = np.percentile(means, [2.5, 97.5])
    return PairedDifference(
        metric=name,
        against=QUANTFORMER,
        candidate=float(own[usable].mean()),
        reference=float(other[usable].mean()),
        difference=float((own - other)[usable].mean()),
        low=float(low),
        high=float(high),
        higher_is_better=COLUMNS[name].higher_is_better,
        unit=unit,
        undefined=float(1.0 - defined.mean()),
    )


def _text(one: Within, metric: str) -> str:
    by_trial, by_both = (one.differences.get((metric, unit)) for unit in UNITS)
    if by_trial is None:
        return "–"
    column = COLUMNS[metric]
    low, high = column.number(by_trial.low), column.number(by_trial.high)
    return f"{column.number(by_trial.difference)} ({low} to {high}), {by_trial.verdict}" + (
        f"; {by_both.verdict}" if by_both is not None else ""
    )
