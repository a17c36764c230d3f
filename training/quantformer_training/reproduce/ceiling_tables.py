"""The ceiling study as two tables, beside ours: activation by log-loss, forecasts by squared error."""

from __future__ import annotations

import math

from quantformer_training.contest import MODELS
from quantformer_training.report import Table
from quantformer_training.reproduce.ceiling import RESAMPLES, STARTS, CeilingStudy, Share
from quantformer_training.reproduce.ceiling_plan import CeilingPlan
from quantformer_training.result_columns import COLUMNS

_TASKS = {"activation": ("Is the neuron about to respond?", "log_loss"), "forecast": ("Forecast of the response", "mse")}
_NONE = "–"


def ceiling_tables(study: CeilingStudy, *, plan: CeilingPlan) -> list[Table]:
    """One table a task, the ceiling first, then models, the best first."""
    return [_table(study, task, plan=plan) for task in _TASKS]


def _table(study: CeilingStudy, task: str, *, plan: CeilingPlan) -> Table:
    question, metric = _TASKS[task]
    column, ceiling = COLUMNS[metric], study.ceiling[task]
    shares: tuple[Share, ...] = getattr(study, task)
    reachable = study.ceiling[task] < study.start[task]
    top = ("ceiling: its own fluorescence and the stimulus", column.number(ceiling), "100 %" if reachable else _NONE, "", "")
    note = (
        f"Simulated: one mouse, {study.neurons} neurons, {study.trials} test trials of drifting gratings. Share of the way from "
        f"“{MODELS[STARTS[task]].title}” (0 %) to the ceiling of what a neuron's own fluorescence and the stimulus tell (100 %): "
        f"a filter of {plan.particles} particles that knows the simulator's parameters, an approximation from below, so that a "
        f"model that reads more, or better, may pass it. Intervals: {RESAMPLES} resamples of whole trials, paired. The last "
        "column is the first model's lead over the second, and how the others stand to the first."
    )
    if not reachable:
        note += " There are no shares: on these trials the approximated ceiling is not below the start."
    if plan.left_out:
        titles = " and ".join(MODELS[name].title for name in plan.left_out)
        note += f" Without {titles}, which cost ten times what the others do; preset paper has them."
    return Table(
        caption=f"How much of what could be known: {question} (simulated data)",
        columns=("model", column.heading, "share of the way", "95 % interval over trials", "lead in points of share"),
        rows=[
            top,
            *(
                (
                    MODELS[one.model].title,
                    column.number(one.loss),
                    _percent(one.share),
                    _interval(_percent(one.low), _percent(one.high)),
                    _lead(one),
                )
                for one in shares
            ),
        ],
        note=note,
        mark_first=True,
    )


def _lead(one: Share) -> str:
    lead, low, high = map(_points, one.lead)
    return _NONE if lead == _NONE else f"{lead} ({_interval(low, high)}), {one.verdict}"


def _interval(low: str, high: str) -> str:
    return "no interval" if _NONE in (low, high) else f"{low} to {high}"


def _percent(share: float) -> str:
    return f"{100.0 * share:.1f} %" if math.isfinite(share) else _NONE


def _points(share: float) -> str:
    return f"{100.0 * share:+.1f}" if math.isfinite(share) else _NONE
