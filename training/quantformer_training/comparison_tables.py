"""A comparison as tables for people: headline figures, every predictor, and the paper-compatible scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from quantformer.metrics import ActivationScores, ForecastScores
from quantformer_training.baselines import ACTIVATION_BASELINES, FORECAST_BASELINES
from quantformer_training.bootstrap import PairedDifference
from quantformer_training.comparison import MODEL, Comparison, LeadScores
from quantformer_training.report import Table

#: Metrics with a paired interval, in NOTES' order, with their names in a table.
HEADLINE: Mapping[str, str] = {
    "log_loss": "log-loss, nats",
    "brier": "Brier score",
    "log_loss_within_neuron": "log-loss within neuron, nats",
    "auroc_within_neuron": "AUROC within neuron",
    "auroc": "pooled AUROC, all neurons",
    "mse": "MSE of the trace, (dF/F)²",
    "r": "signed r of the trace",
    "area_r": "response area r within neuron",
}


def title_of(key: str) -> str:
    """A predictor's name for people."""
    if key == MODEL:
        return "QuantFormer"
    made = ACTIVATION_BASELINES.get(key) or FORECAST_BASELINES.get(key)
    return key if made is None else str(getattr(made, "title", key))


def short_title(key: str) -> str:
    """The name up to its details."""
    return title_of(key).partition(":")[0]


def number(value: float | None, digits: int = 3) -> str:
    """A score as text; a dash where it is undefined."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.{digits}f}"


def difference_cells(difference: PairedDifference) -> tuple[str, str, str, str]:
    """The paired difference, its interval, the verdict, and the better direction."""
    interval = "–" if math.isnan(difference.low) else f"{difference.low:+.4f} to {difference.high:+.4f}"
    better = "higher" if difference.higher_is_better else "lower"
    delta = "–" if math.isnan(difference.difference) else f"{difference.difference:+.4f}"
    return delta, interval, difference.verdict, better


def headline_table(comparison: Comparison, *, caption: str) -> Table:
    """The model against the best simple baseline of each metric."""
    rows = []
    for key, name in HEADLINE.items():
        found = comparison.differences[key]
        delta, interval, verdict, better = difference_cells(found)
        rows.append(
            (
                f"{name} {'↑' if better == 'higher' else '↓'}",
                number(found.candidate, 4),
                number(found.reference, 4),
                short_title(found.against),
                delta,
                interval.replace(" ", "\u00a0"),  # stays on its line
                verdict,
            )
        )
    return Table(
        caption=caption,
        columns=("", "QuantFormer", "best baseline", "which", "difference", "95 % interval", "verdict"),
        rows=tuple(rows),
        note=f"{comparison.trials} trials, {comparison.neurons} neurons. ↓: lower is better, ↑: higher. The best "
        "baseline is chosen on these very rows, "
        "which favours the baselines. Intervals: paired bootstrap over whole trials; one that contains zero reads "
        "“not distinguishable”.",
    )


def activation_table(comparison: Comparison, *, caption: str) -> Table:
    """Every predictor of activation."""
    first = comparison.activation[MODEL]
    budgets = [found.false_per_minute for found in first.triggers]
    columns = (
        "", "log-loss skill", "Brier skill", "AUROC within neuron × stimulus", "AUROC within neuron",
        "calibration slope", "intercept", "error", *(f"precision at {budget:g} false/min" for budget in budgets),
    )  # fmt: skip
    note = (
        f"{first.rows} neuron-trials, {100 * first.active_fraction:.1f} % active, {comparison.minutes:.1f} minutes. "
        "Skills are over the neuron × stimulus rate of the training part. AUROC within neuron × stimulus over "
        f"{first.auroc_within_neuron_stimulus_groups} pairs and within neuron over {first.auroc_within_neuron_groups} "
        "neurons with at least two active and two inactive trials. Calibration: 1 and 0 are ideal. Precision: thresholds "
        "read off these rows (recall in brackets)."
    )
    return Table(
        caption=caption,
        columns=columns,
        rows=tuple((title_of(key), *_activation_cells(scores)) for key, scores in comparison.activation.items()),
        note=note,
    )


def _activation_cells(scores: ActivationScores) -> tuple[str, ...]:
    return (
        number(scores.log_loss_skill),
        number(scores.brier_skill),
        number(scores.auroc_within_neuron_stimulus),
        number(scores.auroc_within_neuron),
        number(scores.calibration_slope, 2),
        number(scores.calibration_intercept, 2),
        number(scores.calibration_error),
        *(f"{number(found.precision, 2)} ({number(found.recall, 2)})" for found in scores.triggers),
    )


def forecast_table(comparison: Comparison, *, caption: str) -> Table:
    """Every predictor of the trace."""

    def cells(scores: ForecastScores) -> tuple[str, ...]:
        return number(scores.mse, 4), number(scores.r), number(scores.area_r)

    return Table(
        caption=caption,
        columns=("", "MSE, (dF/F)²", "signed r", "r of the response area within neuron"),
        rows=tuple((title_of(key), *cells(scores)) for key, scores in comparison.forecast.items()),
        note="64 frames (2.13 s) from the onset frame on. A dash: the forecast is flat, or the same in every trial.",
    )


def compatible_table(comparison: Comparison, *, caption: str) -> Table:
    """The paper's own scores, each inflated by knowing which neuron it is."""
    activation = comparison.activation
    rows = [
        (
            title_of(key),
            number(scores.auroc),
            number(scores.auprc),
            number(scores.balanced_accuracy),
            number(scores.f1),
            number(scores.precision),
            number(scores.recall),
        )
        for key, scores in activation.items()
    ]
    trace = comparison.forecast[MODEL]
    return Table(
        caption=caption,
        columns=("", "AUROC", "AUPRC", "balanced accuracy", "F1", "precision", "recall"),
        rows=tuple(rows),
        note=f"Pooled over neurons. The model's traces: |r| {number(trace.absolute_r)} where unrelated traces give "
        f"{number(trace.absolute_r_chance)}; gradient-normalised MSE {number(trace.normalised_mse)}, SMAPE "
        f"{number(trace.normalised_smape)}, SSIM {number(trace.normalised_ssim)}.",
    )


def lead_table(leads: Sequence[LeadScores], *, caption: str) -> Table:
    """Skill as the last frames are withheld."""
    keys = tuple(leads[0].auroc_within_neuron)
    return Table(
        caption=caption,
        columns=("frames withheld", *(f"{short_title(key)}: AUROC | skill" for key in keys)),
        rows=tuple(
            (
                f"{found.lead} ({1000 * found.lead / 30:.0f} ms)",
                *(f"{number(found.auroc_within_neuron[key])} | {number(found.log_loss_skill[key])}" for key in keys),
            )
            for found in leads
        ),
        note="AUROC within neuron, and log-loss skill over the neuron × stimulus rate. Every predictor is denied the same "
        "frames.",
    )
