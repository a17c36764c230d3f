"""From runs to tables: ours first, then the paper's, each from the runs that belong to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from quantformer_training.contest import MODELS
from quantformer_training.effort import Effort
from quantformer_training.intervals import INTERVAL_LEVEL
from quantformer_training.paper_figures import PAPER_TABLES, PAPER_TITLES, PaperTable
from quantformer_training.reproduce.plan import (
    LABEL_MODELS,
    LABELS_GROUP,
    LEFT_OUT_GROUP,
    MODELS_GROUP,
    OTHER_LABELS,
    PAPERS_OWN,
    POOLED_GROUP,
    QUANTFORMER,
    SEARCH_GROUP,
    STIMULI,
    SUBJECTS,
    is_ablation,
)
from quantformer_training.result_columns import columns
from quantformer_training.result_tables import ResultTable, result_table
from quantformer_training.run_store import Run

#: Steps of the paper's ablation, by our models; the last one is the paper's design whole.
ABLATION = {
    "ablation_baseline": "baseline",
    "ablation_tokens": "learnable_tokens",
    "ablation_autoencoder": "autoencoder",
    PAPERS_OWN: "quantization",
}
#: The paper's "mean signal" beside our nearest.
PAPERS_MEAN, OUR_MEAN = "mean", "neuron_mean"


@dataclass(frozen=True, kw_only=True)
class _Page:
    """A table to be: its title, the metrics of its columns, the task that a run must have answered."""

    title: str
    metrics: tuple[str, ...]
    task: str


#: Our own tables, headline figures in the order of NOTES: `ours` is all of them.
OURS = {
    "ours_activation": _Page(
        title="Ours: is the neuron about to respond? Headline figures",
        metrics=(
            "log_loss_skill", "brier_skill", "auroc_within_neuron_stimulus", "auroc_within_neuron", "calibration_slope_off",
            "calibration_intercept_off", "calibration_error", "precision_at_1", "precision_at_2", "precision_at_5",
        ),
        task="activation",
    ),
    "ours_forecast": _Page(
        title="Ours: forecast of the response",
        metrics=("mse", "r", "area_r", "mse_window", "r_window", "mae"),
        task="forecast",
    ),
    "ours_interval": _Page(
        title="Ours: the forecast with its interval, made of the errors on validation",
        metrics=("crps", "interval_coverage_off", "interval_coverage_neuron_off", "interval_width"),
        task="forecast",
    ),
    "ours_stimulus": _Page(
        title="Ours: what the stimulus adds, and the same model where no stimulus begins (pseudo-onsets)",
        metrics=("stimulus_gain", "log_loss", "control_log_loss", "auroc_within_neuron", "control_auroc_within_neuron"),
        task="activation",
    ),
    "ours_lead": _Page(
        title="Ours: skill by lead, the number of last frames withheld",
        metrics=("skill_at_lead_0", "skill_at_lead_5", "skill_at_lead_10"),
        task="activation",
    ),
}  # fmt: skip
_POOLED = _Page(
    title="Ours: one model trained on all mice together, scored on each category",
    metrics=("log_loss_skill", "brier_skill", "auroc_within_neuron", "calibration_error", "mse", "r"),
    task="both",
)
#: The three meanings of "active" (`quantformer.labels`), the usual one first.
_LABELS = {
    "signed": "mean dF/F of the response at least 0.10 (the paper's words)",
    "absolute": "mean absolute dF/F at least 0.10 (the authors' released code)",
    "evoked": "mean dF/F less the expected decay, as a z-score of the neuron's pseudo-onsets, at least 2",
}
_LABEL_METRICS = ("log_loss_skill", "auroc_within_neuron", "calibration_error")
_PAPER = {
    "table1": _Page(
        title="Table 1: classification, paper-compatible",
        metrics=("balanced_accuracy", "f1", "precision", "recall", "auroc"),
        task="activation",
    ),
    "table2": _Page(
        title="Table 2: forecasting, gradient-normalised, paper-compatible",
        metrics=("normalised_mse", "normalised_smape", "absolute_r", "normalised_ssim"),
        task="forecast",
    ),
    "table3": _Page(
        title="Table 3: ablation", metrics=("balanced_accuracy", "f1", "normalised_mse", "absolute_r"), task="both"
    ),
    "table4": _Page(
        title="Table 4: pre-training without the mouse, or the stimulus category, that is tested",
        metrics=("balanced_accuracy", "f1", "normalised_mse", "absolute_r", "log_loss_skill", "mse"),
        task="both",
    ),
    "tableA2": _Page(
        title="Table A-2: K and d search, forecasting",
        metrics=("normalised_mse", "normalised_mae", "normalised_smape", "absolute_r", "normalised_ssim"),
        task="both",
    ),
    "tableA3": _Page(
        title="Table A-3: K and d search, classification", metrics=("balanced_accuracy", "f1", "log_loss_skill"), task="both"
    ),
    "tableA4": _Page(
        title="Table A-4: forecasting, un-normalised",
        metrics=("mse", "mae", "smape", "absolute_r", "ssim"),
        task="forecast",
    ),
}  # fmt: skip


def tables_of(name: str, runs: Iterable[Run], *, effort: Effort) -> list[ResultTable]:
    """The tables that a name of `names.TABLES` stands for, "figures" excepted, from all runs of a plan; none without runs."""
    runs = [_with_derived(run) for run in runs]
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.key.table].append(run)
    whole = [run for run in groups[MODELS_GROUP] if not is_ablation(run.key.model)]
    if name == "ours":
        made = [_table(part, page, whole, reference=QUANTFORMER) for part, page in OURS.items()]
        made += _label_tables(whole, groups[LABELS_GROUP])
        return [
            *filter(None, made),
            *filter(None, [_table("ours_pooled", _POOLED, groups[POOLED_GROUP], reference="")]),
        ]
    if name == "table3":
        chosen, reference = _ablation(groups[MODELS_GROUP]), f"{QUANTFORMER}/{ABLATION[PAPERS_OWN]}"
    elif name == "table4":
        chosen, reference = _left_out(whole, groups[LEFT_OUT_GROUP]), QUANTFORMER
    elif name in ("tableA2", "tableA3"):
        chosen, reference = _search(whole, groups[SEARCH_GROUP], effort), f"{QUANTFORMER}/k={effort.model.codes}"
    else:
        chosen, reference = whole, QUANTFORMER
    return [*filter(None, [_table(name, _PAPER[name], chosen, reference=reference)])]


def places_left_out(runs: Iterable[Run]) -> dict[tuple[str, str], str]:
    """Mice and categories of which no model could be run, all for one reason, with that reason."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for run in runs:
        found[run.key.mouse, run.key.category].add(run.failure)
    return {place: next(iter(reasons)) for place, reasons in found.items() if len(reasons) == 1 and "" not in reasons}


def _table(name: str, page: _Page, runs: Sequence[Run], *, reference: str) -> ResultTable | None:
    chosen = [run for run in runs if page.task in ("both", run.key.task) or run.key.task == "both"]
    lost = places_left_out(chosen)
    usable = [run for run in chosen if (run.key.mouse, run.key.category) not in lost]
    if all(run.failure for run in usable):
        return None
    there = {run.key.row for run in usable if not run.failure}
    paper = _paper(name, rows={run.key.row for run in usable})
    told = {metric for run in usable for metric in run.metrics}
    told |= set() if paper is None else {metric for cells in paper.rows.values() for metric in cells}
    # A score that no run of ours tells and the paper does not print has no column.
    shown = columns([metric for metric in page.metrics if metric in told])
    if not shown:
        return None
    origin = " and ".join(sorted({run.origin for run in usable}))
    made = result_table(
        usable,
        name=name,
        title=f"{page.title} ({origin} data)",
        columns=shown,
        reference=reference if reference in there else "",
        titles=_titles({run.key.row for run in usable} | (set() if paper is None else paper.rows.keys())),
        paper=paper,
    )
    notes = [f"Left out, {mouse}, {category}, every model: {reason}" for (mouse, category), reason in lost.items()]
    return replace(made, notes=(*made.notes, *notes))


def _label_tables(whole: Sequence[Run], others: Sequence[Run]) -> list[ResultTable | None]:
    """A table a meaning of "active", on the places where all were run; the base rate stands in the notes."""
    places = {(run.key.mouse, run.key.category) for run in others}
    made: list[ResultTable | None] = []
    for label, words in _LABELS.items() if others else ():
        runs = [_as(run, model=run.key.model, variant="") for run in others if run.key.variant == label]
        if label not in OTHER_LABELS:
            runs = [
                run for run in whole if run.key.model in LABEL_MODELS and (run.key.mouse, run.key.category) in places
            ]
        page = _Page(title=f"Ours: “active” by the label {label}, {words}", metrics=_LABEL_METRICS, task="activation")
        table = _table(f"ours_label_{label}", page, runs, reference=QUANTFORMER)
        rates = [run.metrics["active_fraction"] for run in runs if "active_fraction" in run.metrics]
        if table is not None and rates:
            note = f"Base rate: {100 * sum(rates) / len(rates):.1f} % of the test rows are active by this label (mean over runs)."
            table = replace(table, notes=(note, *table.notes))
        made.append(table)
    return made


def _titles(rows: set[str]) -> dict[str, str]:
    """Names for people, in the order of `MODELS`; a variant stands under its model."""
    found = {}
    for model, card in MODELS.items():
        for row in sorted((row for row in rows if row.partition("/")[0] == model), key=_order):
            variant = row.partition("/")[2]
            words = PAPER_TITLES.get(f"{QUANTFORMER}/{variant}", variant.replace("=", " = "))
            found[row] = card.title if not variant else words if model == QUANTFORMER else f"{card.title}, {words}"
    return found


def _order(row: str) -> tuple[object, ...]:
    """As the paper has them: the model itself, its steps, then numbers by size."""
    _, _, variant = row.partition("/")
    name, _, number = variant.partition("=")
    steps = [*ABLATION.values(), SUBJECTS, STIMULI, "k", "d"]
    return (steps.index(name) if name in steps else -1, int(number) if number.isdigit() else 0)


def _paper(name: str, *, rows: set[str]) -> PaperTable | None:
    """The paper's figures, also beside the paper's own design where it was run, and its mean signal beside ours."""
    paper = PAPER_TABLES.get(name)
    if paper is None or name == "table3":
        return paper
    twins = {PAPERS_OWN + row.removeprefix(QUANTFORMER): row for row in paper.rows if row.startswith(QUANTFORMER)}
    figures = {**paper.rows, **{twin: paper.rows[row] for twin, row in twins.items() if twin in rows}}
    if PAPERS_MEAN in figures:
        figures[OUR_MEAN] = figures.pop(PAPERS_MEAN)
    return replace(paper, rows=figures)


def _with_derived(run: Run) -> Run:
    """With how far calibration and coverage are off, which has a better direction where they have none."""
    found = dict(run.metrics)
    ideals = {"calibration_slope": 1.0, "calibration_intercept": 0.0, "interval_coverage": INTERVAL_LEVEL}
    for name, ideal in ideals.items():
        if name in found:
            found[f"{name}_off"] = abs(found[name] - ideal)
    return replace(run, metrics=found)


def _as(run: Run, *, model: str, variant: str) -> Run:
    return replace(run, key=replace(run.key, model=model, variant=variant))


def _ablation(runs: Sequence[Run]) -> list[Run]:
    """The steps under the paper's names, and our model, on the category that they were run on."""
    category = _category_of(runs, is_ablation)
    chosen = [run for run in runs if run.key.category in category]
    steps = [
        _as(run, model=QUANTFORMER, variant=ABLATION[run.key.model]) for run in chosen if run.key.model in ABLATION
    ]
    return [*steps, *(run for run in chosen if run.key.model == QUANTFORMER)]


def _category_of(runs: Sequence[Run], of: Callable[[str], bool]) -> set[str]:
    return {run.key.category for run in runs if of(run.key.model)}


def _left_out(whole: Sequence[Run], left_out: Sequence[Run]) -> list[Run]:
    """Both kinds of leaving out, and the same models with nothing left out, where these were run."""
    places = {(run.key.mouse, run.key.category) for run in left_out}
    models = {run.key.model for run in left_out}
    return [
        *(run for run in whole if run.key.model in models and (run.key.mouse, run.key.category) in places),
        *left_out,
    ]


def _search(whole: Sequence[Run], search: Sequence[Run], effort: Effort) -> list[Run]:
    """Every variant, and the model as it is under both its K and its d, where the others were run."""
    places = {(run.key.mouse, run.key.category) for run in search}
    models = {run.key.model for run in search}
    default = [run for run in whole if run.key.model in models and (run.key.mouse, run.key.category) in places]
    names = (f"k={effort.model.codes}", f"d={effort.model.d}")
    return [*search, *(_as(run, model=run.key.model, variant=name) for run in default for name in names)]
