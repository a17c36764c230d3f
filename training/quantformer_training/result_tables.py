"""Runs as a table: a row a model, a column a metric; mean and spread, both tests, chance, and the paper's figures.

Seeds of one mouse and category are averaged first, then each (mouse, category) counts once: seeds are no new animals.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from quantformer.errors import DataError
from quantformer_training.paper_figures import PAPER_TITLES, PaperTable, PaperValue
from quantformer_training.result_columns import Column
from quantformer_training.run_store import Run
from quantformer_training.significance import RunDifference, SignedRank, hierarchical_bootstrap, holm, signed_rank

#: Below this p the test has one star as in the paper, "p << 0.01", and below `TWO_STARS` two.
ONE_STAR, TWO_STARS = 0.01, 0.05

FAILED, NOT_RUN = "failed", "not run"

#: A mouse and a stimulus category.
Place = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model's score: ``mean`` and ``sd`` (with n - 1) over ``places`` pairs of mouse and category.

    Against the reference row: ``difference`` is this row less the reference (negative where smaller), ``better`` the
    one-sided test that the *reference* is better, whose ``p_holm`` is corrected for the rows of this column; None in the
    reference's own row and where there is none. ``paper`` is the paper's figure.
    """

    mean: float
    sd: float
    places: int
    best: bool = False
    difference: RunDifference | None = None
    better: SignedRank | None = None
    p_holm: float = math.nan
    paper: PaperValue | None = None

    @property
    def stars(self) -> str:
        """As in the paper: "*" where the reference is better with p < 0.01, "**" with p < 0.05."""
        if self.better is None:
            return ""
        return "*" if self.better.p < ONE_STAR else "**" if self.better.p < TWO_STARS else ""


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """``key`` is ``model`` or ``model/variant``, ``title`` its name for people; cells are by metric. ``missing`` says why a
    row has no score at all: `FAILED`, every run of it, or `NOT_RUN`, a row of the paper's alone.
    """

    key: str
    title: str
    cells: Mapping[str, Cell]
    missing: str = ""


@dataclass(frozen=True, kw_only=True)
class ResultTable:
    """``reference`` is the key of the row that the others are compared with, "" where there is none.

    ``chance`` is by metric; ``origin`` says what the data are; ``notes`` are the footnotes.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[ResultRow, ...]
    reference: str
    chance: Mapping[str, float]
    origin: str
    notes: tuple[str, ...]


def result_table(
    runs: Sequence[Run],
    *,
    name: str,
    title: str,
    columns: Sequence[Column],
    reference: str,
    titles: Mapping[str, str],
    paper: PaperTable | None = None,
    resamples: int = 10_000,
) -> ResultTable:
    """The table of ``runs``, failed ones among them; the rows are those of ``titles``, in that order, that have runs.

    Then come the paper's rows, with or without runs of ours, then rows without a title, under their key.

    Raises:
        DataError: there is no run, two runs tell the same metric of the same row, mouse, category and seed, or the
            reference has no run.
    """
    if not runs:
        raise DataError(f"{name}: there is no run to make a table of; run 'quantformer reproduce {name}' first")
    good = [run for run in runs if not run.failure]
    printed: Mapping[str, Mapping[str, PaperValue]] = MappingProxyType({}) if paper is None else paper.rows
    known = {run.key.row for run in runs} | printed.keys()
    titles = {**titles, **{key: PAPER_TITLES[key] for key in printed if key not in titles}}
    keys = [key for key in titles if key in known] + sorted(known - titles.keys())
    if reference and reference not in {run.key.row for run in good}:
        raise DataError(f"{name}: the reference {reference!r} has no run that ended well; there are {', '.join(keys)}")
    scores = _scores(good, metrics={column.metric for column in columns} | _measured_chances(columns), name=name)
    cells: dict[str, dict[str, Cell]] = {key: {} for key in keys}
    for column in columns:
        found = _column(column, scores[column.metric], keys=keys, reference=reference, resamples=resamples)
        for key in keys:
            cells[key][column.metric] = replace(found[key], paper=printed.get(key, {}).get(column.metric))
    tried, told = {run.key.row for run in runs}, {run.key.row for run in good}
    missing = {key: "" if key in told else FAILED if key in tried else NOT_RUN for key in keys}
    return ResultTable(
        name=name,
        title=title,
        columns=tuple(columns),
        rows=tuple(
            ResultRow(key=key, title=titles.get(key, key), cells=cells[key], missing=missing[key]) for key in keys
        ),
        reference=reference,
        chance={column.metric: _chance(column, scores, reference) for column in columns},
        origin=_origin(runs),
        notes=(
            *_notes(runs, columns=columns, cells=cells, reference=titles.get(reference, reference), paper=paper),
            *_absent(columns, cells=cells, missing=missing, titles=titles),
        ),
    )


def _scores(runs: Sequence[Run], *, metrics: set[str], name: str) -> dict[str, dict[str, dict[Place, float]]]:
    """By metric, row and place: the mean over seeds, of those that have a score; NaN where none has."""
    seeds: dict[tuple[str, str, Place], dict[int, float]] = defaultdict(dict)
    for run in runs:
        for metric in metrics & run.metrics.keys():
            found = seeds[metric, run.key.row, (run.key.mouse, run.key.category)]
            if run.key.seed in found:
                raise DataError(f"{name}: two runs tell {metric} of {run.key}; give one of them another variant")
            found[run.key.seed] = run.metrics[metric]
    scores: dict[str, dict[str, dict[Place, float]]] = {metric: defaultdict(dict) for metric in metrics}
    for (metric, row, place), values in seeds.items():
        finite = [value for value in values.values() if math.isfinite(value)]
        scores[metric][row][place] = float(np.mean(finite)) if finite else math.nan
    return scores


def _column(
    column: Column,
    scores: Mapping[str, Mapping[Place, float]],
    *,
    keys: Sequence[str],
    reference: str,
    resamples: int,
) -> dict[str, Cell]:
    cells: dict[str, Cell] = {}
    against = scores.get(reference, {})
    for key in keys:
        own = scores.get(key, {})
        finite = np.array([value for value in own.values() if math.isfinite(value)])
        difference, better = None, None
        places = sorted(own.keys() & against.keys())
        if key != reference and places:
            left, right = [own[place] for place in places], [against[place] for place in places]
            higher = column.higher_is_better
            better = signed_rank(right, left, higher_is_better=higher)
            difference = hierarchical_bootstrap(
                left, right, mouse=[mouse for mouse, _ in places], higher_is_better=higher, resamples=resamples
            )
        cells[key] = Cell(
            mean=float(finite.mean()) if len(finite) else math.nan,
            sd=float(finite.std(ddof=1)) if len(finite) > 1 else math.nan,
            places=len(finite),
            difference=difference,
            better=better,
        )
    corrected = holm({key: cell.better.p for key, cell in cells.items() if cell.better is not None})
    means = [cell.mean for cell in cells.values() if math.isfinite(cell.mean)]
    first = (max(means) if column.higher_is_better else min(means)) if means else math.nan
    return {
        key: replace(cell, best=cell.mean == first, p_holm=corrected.get(key, math.nan)) for key, cell in cells.items()
    }


def _measured_chances(columns: Sequence[Column]) -> set[str]:
    return {column.chance for column in columns if isinstance(column.chance, str)}


def _chance(column: Column, scores: Mapping[str, Mapping[str, Mapping[Place, float]]], reference: str) -> float:
    """What a guess scores; where that was measured, the mean over the reference's places, or over all rows'."""
    if not isinstance(column.chance, str):
        return math.nan if column.chance is None else column.chance
    rows = scores[column.chance]
    chosen = [rows[reference]] if reference in rows else list(rows.values())
    values = [value for row in chosen for value in row.values() if math.isfinite(value)]
    return float(np.mean(values)) if values else math.nan


def _origin(runs: Sequence[Run]) -> str:
    """What the data are: never left unsaid, and mixed where they are mixed. Failed runs count where there are no others."""
    mice: dict[str, set[str]] = defaultdict(set)
    for run in [run for run in runs if not run.failure] or runs:
        mice[run.origin].add(run.key.mouse)
    return ", ".join(f"{origin} ({len(found)} {_mice(len(found))})" for origin, found in sorted(mice.items()))


def _mice(count: int) -> str:
    return "mouse" if count == 1 else "mice"


def _notes(
    runs: Sequence[Run],
    *,
    columns: Sequence[Column],
    cells: Mapping[str, Mapping[str, Cell]],
    reference: str,
    paper: PaperTable | None,
) -> tuple[str, ...]:
    """The footnotes: data, runs, tests, what was left out and why, cost, machine, seeds, software, the paper."""
    good, failed = [run for run in runs if not run.failure], [run for run in runs if run.failure]
    places = {(run.key.mouse, run.key.category) for run in good}
    mice, seeds = {run.key.mouse for run in good}, sorted({run.key.seed for run in good})
    notes = [
        f"Data: {_origin(runs)}. {len(good)} runs over {len(places)} pairs of {len(mice)} {_mice(len(mice))} and "
        f"{len({category for _, category in places})} stimulus categories; seeds {', '.join(map(str, seeds)) or 'none'}, "
        "averaged within a pair. Mean ± standard deviation over pairs; best mean in bold."
    ]
    if reference:
        notes.append(
            f"Stars, as in the paper: {reference} is better by the one-sided Wilcoxon signed-rank test over pairs, * p < 0.01, "
            "** p < 0.05, not corrected for several rows (the CSV has Holm's correction). That test takes the pairs of one "
            f"mouse as independent. The words compare the row with {reference} by a bootstrap over mice, then categories; "
            "an interval of 95 % that contains zero reads “not distinguishable”, and so does any with fewer than three mice."
        )
        smallest = [
            cell.better.smallest_p for row in cells.values() for cell in row.values() if cell.better is not None
        ]
        if smallest and min(smallest) >= ONE_STAR:
            notes.append(f"So few pairs cannot give p below {min(smallest):.2g}.")
    notes += _left_out(failed, columns=columns, cells=cells)
    seconds = [run.seconds for run in runs]
    by_row = {key: sum(run.seconds for run in runs if run.key.row == key) for key in {run.key.row for run in runs}}
    dearest = max(by_row, key=lambda key: by_row[key])
    notes.append(
        f"Cost: {sum(seconds):.0f} s of runs, median {np.median(seconds):.1f} s a run; the most for {dearest}, "
        f"{by_row[dearest]:.0f} s."
    )
    notes.append(f"Machine: {'; '.join(sorted({run.machine for run in runs}))}.")
    software = sorted({f"{name} {number}" for run in runs for name, number in run.versions.items()})
    dates = sorted(run.date for run in runs)
    notes.append(f"Software: {', '.join(software)}. Run from {dates[0]} to {dates[-1]}.")
    if paper is not None:
        values = [(row, column.title, cells[row][column.metric].paper) for row in paper.rows for column in columns]
        odd = [f"{row}, {metric}: {value.note}" for row, metric, value in values if value is not None and value.note]
        notes.append(f"Paper: Table {paper.number}, measured on the Allen recordings. {paper.note}".rstrip())
        if odd:
            notes.append(f"Printed in the paper so, but doubtful: {'; '.join(odd)}.")
    return tuple(notes)


def _absent(
    columns: Sequence[Column],
    *,
    cells: Mapping[str, Mapping[str, Cell]],
    missing: Mapping[str, str],
    titles: Mapping[str, str],
) -> list[str]:
    """What a cell without a score means, where there is one."""
    notes = []
    for why, words in (
        (NOT_RUN, "no run of ours was asked for, or could be had"),
        (FAILED, "every run of ours failed"),
    ):
        rows = [titles.get(key, key) for key, found in missing.items() if found == why]
        if rows:
            notes.append(f"“{why}”, {words}: {', '.join(rows)}.")
    if any(not row[column.metric].places for key, row in cells.items() if not missing[key] for column in columns):
        notes.append(
            "A dash: the model does not answer that, or the score is undefined on these data (docs/metrics.md)."
        )
    return notes


def _left_out(
    failed: Sequence[Run], *, columns: Sequence[Column], cells: Mapping[str, Mapping[str, Cell]]
) -> list[str]:
    """Runs that failed, by reason, and pairs without a score, by metric."""
    notes = []
    reasons = Counter(run.failure for run in failed)
    for reason, count in sorted(reasons.items()):
        which = "; ".join(str(run.key) for run in failed if run.failure == reason)
        notes.append(f"Left out, {count} {'run' if count == 1 else 'runs'}: {reason} ({which}).")
    for column in columns:
        differences = {key: row[column.metric].difference for key, row in cells.items()}
        undefined = {key: found.left_out for key, found in differences.items() if found is not None and found.left_out}
        if undefined:
            counts = ", ".join(f"{key} {count}" for key, count in undefined.items())
            notes.append(f"{column.title}: pairs left out of the comparison because a score is undefined: {counts}.")
    return notes
