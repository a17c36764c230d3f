"""The pictures of a report, as SVG documents: light background, one accent colour, units on every axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from quantformer.metrics import Reliability
from quantformer_training.comparison import LEAD_BASELINES, MODEL, LeadScores
from quantformer_training.comparison_tables import short_title
from quantformer_training.drawing import GREY, INK, LIGHT, style, svg
from quantformer_training.report import ACCENT

_DASHES = {"base_rate": ":", "neuron_stimulus_rate": "-.", "last_frames": "--", "logistic": (0, (1, 1))}


@dataclass(frozen=True, kw_only=True, eq=False)
class ForecastPanel:
    """One neuron at one onset: dF/F ``before`` ``(96,)``, what ``happened`` ``(64,)``, the ``forecast`` with ``low`` and
    ``high`` ``(64,)``, and the activation ``probability`` told before the onset.
    """

    title: str
    before: NDArray[np.floating]
    happened: NDArray[np.floating]
    forecast: NDArray[np.floating]
    low: NDArray[np.floating]
    high: NDArray[np.floating]
    probability: float
    active: bool


def forecast_panels(panels: Sequence[ForecastPanel], *, rate_hz: float, level: float, columns: int = 4) -> bytes:
    """Forecast against what then happened, a panel a neuron and onset."""
    with style():
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(10.4, 2.15 * rows + 0.45), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True)
        for axis, panel in zip(axes.flat, panels, strict=False):
            before = np.arange(-len(panel.before), 0) / rate_hz
            after = np.arange(len(panel.happened)) / rate_hz
            axis.axvline(0.0, color=LIGHT, linewidth=1)
            axis.plot(before, panel.before, color=GREY, linewidth=0.8, label="before the onset")
            axis.fill_between(after, panel.low, panel.high, color=ACCENT, alpha=0.18, linewidth=0,
                              label=f"{100 * level:.0f} % interval")  # fmt: skip
            axis.plot(after, panel.happened, color=INK, linewidth=0.9, label="what then happened")
            axis.plot(after, panel.forecast, color=ACCENT, linewidth=1.8, label="forecast")
            outcome = "active" if panel.active else "not active"
            axis.set_title(f"{panel.title}\np = {panel.probability:.2f}, {outcome}", fontsize=8, loc="left")
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        for axis in axes[-1]:
            axis.set_xlabel("time from onset, s")
        for axis in axes[:, 0]:
            axis.set_ylabel("dF/F")
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=8)
        return svg(figure)


def reliability_diagram(curves: Mapping[str, Reliability]) -> bytes:
    """Observed against predicted frequency; bars are 95 % Wilson intervals that take neuron-trials as independent."""
    with style():
        figure = Figure(figsize=(4.9, 4.4), layout="constrained")
        axis = figure.subplots()
        axis.plot([0, 1], [0, 1], color=LIGHT, linewidth=1.2, label="ideal")
        largest = 0.05
        for key, curve in curves.items():
            own = key == MODEL
            low, high = _wilson(curve.observed, curve.count)
            axis.errorbar(
                curve.predicted, curve.observed, yerr=[curve.observed - low, high - curve.observed],
                color=ACCENT if own else GREY, marker="o" if own else "s", markersize=5 if own else 3.5,
                linewidth=1.5 if own else 0.9, elinewidth=0.8, linestyle="-" if own else "--", label=short_title(key),
                zorder=3 if own else 2,
            )  # fmt: skip
            largest = max(largest, float(curve.predicted.max(initial=0.0)), float(high.max(initial=0.0)))
        limit = min(1.02, 1.08 * largest)
        axis.set(xlim=(-0.02 * limit, limit), ylim=(-0.02 * limit, limit), aspect="equal")
        axis.set_xlabel("predicted probability of an active response")
        axis.set_ylabel("observed fraction active")
        axis.legend(loc="upper left", fontsize=8)
        return svg(figure)


def skill_by_lead(leads: Sequence[LeadScores], *, rate_hz: float) -> bytes:
    """AUROC within neuron and log-loss skill against the frames withheld."""
    with style():
        figure = Figure(figsize=(9.4, 3.6), layout="constrained")
        panels = figure.subplots(1, 2, sharex=True)
        x = [found.lead for found in leads]
        for axis, name, chance in zip(panels, ("auroc_within_neuron", "log_loss_skill"), (0.5, 0.0), strict=True):
            axis.axhline(chance, color=LIGHT, linewidth=1)
            for key in (*LEAD_BASELINES, MODEL):
                own = key == MODEL
                y = [getattr(found, name)[key] for found in leads]
                axis.plot(x, y, color=ACCENT if own else GREY, linewidth=2 if own else 1.2, marker="o" if own else ".",
                          linestyle="-" if own else _DASHES[key], label=short_title(key))  # fmt: skip
            axis.set_xticks(x)
            axis.set_xlabel(f"last frames withheld (1 frame = {1000 / rate_hz:.0f} ms)")
        panels[0].set_ylabel("AUROC within neuron")
        panels[1].set_ylabel("log-loss skill over\nneuron × stimulus rate")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside upper center", ncols=len(labels), fontsize=8)
        return svg(figure)


def latency_histogram(latency_ms: NDArray[np.floating], *, marks: Mapping[str, float], what: str) -> bytes:
    """How long answers took, ms; ``marks`` are named positions such as the median."""
    with style():
        figure = Figure(figsize=(9.4, 2.9), layout="constrained")
        axis = figure.subplots()
        values = np.asarray(latency_ms, np.float64)
        top = max(float(values.max(initial=0.0)), 1e-3)
        axis.hist(values, bins=min(40, max(10, len(values) // 3)), range=(0.0, top), color=ACCENT, alpha=0.85)
        for index, (name, position) in enumerate(marks.items()):
            axis.axvline(position, color=INK, linewidth=0.9, linestyle="--")
            axis.annotate(f" {name} {position:.1f} ms", (position, 1.0 - 0.11 * index), xycoords=("data", "axes fraction"),
                          va="top", ha="right" if position > 0.7 * top else "left", fontsize=8)  # fmt: skip
        axis.set_xlim(0.0, 1.04 * top)
        axis.set_xlabel(f"{what}, ms")
        axis.set_ylabel("answers")
        return svg(figure)


def _wilson(observed: NDArray[np.floating], count: NDArray[np.integer]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    z = 1.96
    centre = (observed + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(observed * (1 - observed) / count + z * z / (4 * count**2))
    return np.minimum(centre - half, observed), np.maximum(centre + half, observed)
