"""What a table of results may show: each metric with its name for people, its direction and its chance level."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from quantformer.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Column:
    """A metric in a table. ``chance`` is the score of a guess, or the name of the metric that measured it, or None.

    ``percent`` shows a fraction as per cent, as the paper does.
    """

    metric: str
    title: str
    higher_is_better: bool
    digits: int = 3
    percent: bool = False
    chance: float | str | None = None

    def number(self, value: float) -> str:
        """A score as text, a dash where it is undefined."""
        if not math.isfinite(value):
            return "–"
        return f"{100 * value:.{self.digits}f}" if self.percent else f"{value:.{self.digits}f}"

    @property
    def heading(self) -> str:
        """The title with its unit and the better direction."""
        return f"{self.title}{', %' if self.percent else ''} {'↑' if self.higher_is_better else '↓'}"


def _column(metric: str, title: str, *, higher: bool, **more: float | str | bool | None) -> Column:
    return Column(metric=metric, title=title, higher_is_better=higher, **more)  # type: ignore[arg-type]


#: Every metric that a table may show, headline figures first (docs/metrics.md).
COLUMNS: Mapping[str, Column] = MappingProxyType(
    {
        found.metric: found
        for found in (
            _column("log_loss_skill", "log-loss skill", higher=True, chance=0.0),
            _column("brier_skill", "Brier skill", higher=True, chance=0.0),
            _column("log_loss", "log-loss, nats", higher=False, digits=4),
            _column("brier", "Brier score", higher=False, digits=4),
            _column("log_loss_within_neuron", "log-loss within neuron, nats", higher=False, digits=4),
            _column("auroc_within_neuron_stimulus", "AUROC within neuron × stimulus", higher=True, chance=0.5),
            _column("auroc_within_neuron", "AUROC within neuron", higher=True, chance=0.5),
            _column("calibration_error", "calibration error", higher=False),
            _column("calibration_slope_off", "calibration slope, off 1 by", higher=False),
            _column("calibration_intercept_off", "calibration intercept, off 0 by", higher=False),
            *(
                _column(f"precision_at_{rate}", f"precision at {rate} false/min", higher=True, chance="active_fraction")
                for rate in (1, 2, 5)
            ),
            *(_column(f"recall_at_{rate}", f"recall at {rate} false/min", higher=True) for rate in (1, 2, 5)),
            _column("stimulus_gain", "gain from the stimulus, nats", higher=True, digits=4, chance=0.0),
            _column("control_log_loss", "log-loss at pseudo-onsets, nats", higher=False, digits=4),
            _column("control_auroc_within_neuron", "AUROC within neuron at pseudo-onsets", higher=True, chance=0.5),
            *(
                _column(
                    f"skill_at_lead_{lead}", f"log-loss skill, last {lead} frames withheld", higher=True, chance=0.0
                )
                for lead in (0, 2, 5, 10)
            ),
            _column("mse", "MSE, (dF/F)²", higher=False, digits=4),
            _column("mae", "MAE, dF/F", higher=False, digits=4),
            _column("r", "signed r", higher=True, chance=0.0),
            _column("mse_window", "MSE over the label's frames", higher=False, digits=4),
            _column("r_window", "signed r over the label's frames", higher=True, chance=0.0),
            _column("area_r", "response area r within neuron", higher=True, chance=0.0),
            _column("crps", "CRPS, dF/F", higher=False, digits=4),
            _column("interval_coverage_off", "coverage of the 80 % interval, off 0.8 by", higher=False),
            _column("interval_coverage_neuron_off", "coverage within neuron, off 0.8 by", higher=False),
            _column("interval_width", "width of the 80 % interval, dF/F", higher=False),
            _column("auroc", "pooled AUROC", higher=True, chance=0.5),
            _column("auprc", "pooled AUPRC", higher=True, chance="active_fraction"),
            _column("balanced_accuracy", "balanced accuracy", higher=True, digits=2, percent=True, chance=0.5),
            _column("f1", "F1", higher=True, digits=2, percent=True),
            _column("precision", "precision", higher=True, digits=2, percent=True, chance="active_fraction"),
            _column("recall", "recall", higher=True, digits=2, percent=True),
            _column("absolute_r", "|r|", higher=True, chance="absolute_r_chance"),
            _column("smape", "SMAPE", higher=False),
            _column("ssim", "SSIM", higher=True),
            _column("normalised_mse", "normalised MSE", higher=False),
            _column("normalised_mae", "normalised MAE", higher=False),
            _column("normalised_smape", "normalised SMAPE", higher=False),
            _column("normalised_ssim", "normalised SSIM", higher=True),
        )
    }
)


def columns(metrics: Sequence[str]) -> tuple[Column, ...]:
    """The columns of the named metrics.

    Raises:
        UsageError: there is no column for one of them.
    """
    unknown = [name for name in metrics if name not in COLUMNS]
    if unknown:
        raise UsageError(f"no column for the metric {unknown[0]!r}; there are {', '.join(COLUMNS)}")
    return tuple(COLUMNS[name] for name in metrics)
