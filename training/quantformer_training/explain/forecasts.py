"""Examples of forecasts by stimulus category (figures 3 and A-2 to A-5), chosen by a rule and never by eye."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from quantformer.errors import DataError
from quantformer.manifest import Interval
from quantformer_training.drawing import GREY, INK, LIGHT, OTHERS, style
from quantformer_training.examples import Examples
from quantformer_training.explain.chosen import Competitor, ForecastScore, choose_rows, mean_score
from quantformer_training.finetune import TrainedModel
from quantformer_training.report import ACCENT

#: Key of the model itself among the forecasts.
OWN = "QuantFormer"
_DASHES = ("--", ":", "-.", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (6, 2, 1, 2)), (0, (2, 2)))

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One neuron and onset. ``before`` ``(96,)`` and ``happened`` ``(64,)`` are dF/F; ``forecasts[name]`` ``(64,)``, the
    model's own first; ``low`` and ``high`` its interval. ``rank`` is where the size of the response (mean dF/F) lies among
    the active rows of the category, 0 smallest and 1 largest; None for an inactive row. ``scores`` are of this row.
    """

    row: int
    neuron: str
    active: bool
    rank: float | None
    before: Floats
    happened: Floats
    forecasts: Mapping[str, Floats]
    low: Floats
    high: Floats
    scores: Mapping[str, ForecastScore]


@dataclass(frozen=True, kw_only=True, eq=False)
class ForecastExamples:
    """Examples of one category beside what the whole of it says: ``scores`` are means over all ``rows``, ``active_rows`` of
    them active (a competitor's over the rows that it was scored on). ``level`` is the interval's nominal share and
    ``covered`` the share of all frames that it held.
    """

    category: str
    examples: tuple[Example, ...]
    rows: int
    active_rows: int
    scores: Mapping[str, ForecastScore]
    level: float
    covered: float

    def numbers(self) -> dict[str, float]:
        """What the caption and tables state, over all rows of the category."""
        made: dict[str, float] = {"rows": self.rows, "active_rows": self.active_rows, "interval_covered": self.covered}
        for name, score in self.scores.items():
            made |= {f"{name}_mse": score.mse, f"{name}_r": score.r}
        return made


def forecast_examples(
    model: TrainedModel,
    examples: Examples,
    *,
    category: str,
    interval: Interval,
    competitors: Mapping[str, Competitor],
    seed: int,
) -> ForecastExamples:
    """Ask the model about every row of a category and choose what to show beside ``competitors``.

    Raises:
        DataError: no row, or a competitor has no forecast of one that is shown.
    """
    if not len(examples):
        raise DataError(f"{category}: no row to forecast")
    happened = examples.response.double().numpy()
    if OWN in competitors:
        raise DataError(f"{category}: {OWN!r} is the model's own name; give the competitor another")
    made = model.predict(examples)
    forecasts = made.response.astype(np.float64)
    width = (made.spread.astype(np.float64) + interval.floor)[:, None]
    low, high = (forecasts + width * np.asarray(bound) for bound in (interval.low, interval.high))
    before = examples.trace.double().numpy()[:, : -happened.shape[1]] * float(model.forecaster.signal_scale)
    active, neuron = examples.active.numpy(), examples.neuron.numpy()
    size = happened.mean(axis=1)
    largest = np.sort(size[active])

    def shown(row: int) -> Example:
        place = float(np.searchsorted(largest, size[row])) / max(len(largest) - 1, 1)
        told = {OWN: forecasts[row], **{name: other.of(row) for name, other in competitors.items()}}
        return Example(
            row=row,
            neuron=model.vocabulary.neuron_ids[neuron[row]] if neuron[row] >= 0 else "unknown neuron",
            active=bool(active[row]),
            rank=place if active[row] else None,
            before=before[row],
            happened=happened[row],
            forecasts=told,
            low=low[row],
            high=high[row],
            scores={name: mean_score(one[None], happened[row : row + 1]) for name, one in told.items()},
        )

    chosen_active, chosen_inactive = choose_rows(happened, active, seed=seed)
    return ForecastExamples(
        category=category,
        examples=tuple(shown(row) for row in (*chosen_active, *chosen_inactive)),
        rows=len(examples),
        active_rows=int(active.sum()),
        scores={OWN: mean_score(forecasts, happened), **{name: other.score for name, other in competitors.items()}},
        level=interval.level,
        covered=float(((happened >= low) & (happened <= high)).mean()),
    )


def draw_forecasts(found: ForecastExamples, *, rate_hz: float) -> Figure:
    """A panel an example: measured, the model's expected decode with its interval, and every competitor."""
    with style():
        figure = Figure(figsize=(10.4, 3.5), layout="constrained")
        axes = figure.subplots(1, len(found.examples), squeeze=False)[0]
        for axis, example in zip(axes, found.examples, strict=True):
            before = np.arange(-len(example.before), 0) / rate_hz
            after = np.arange(len(example.happened)) / rate_hz
            axis.axvline(0.0, color=LIGHT, linewidth=1)
            axis.plot(before, example.before, color=GREY, linewidth=0.8, label="before the onset")
            axis.fill_between(after, example.low, example.high, color=ACCENT, alpha=0.16, linewidth=0,
                              label=f"{100 * found.level:.0f} % interval")  # fmt: skip
            axis.plot(after, example.happened, color=INK, linewidth=0.9, label="measured")
            for place, (name, forecast) in enumerate(example.forecasts.items()):
                if name == OWN:
                    axis.plot(after, forecast, color=ACCENT, linewidth=1.9, label=name, zorder=3)
                else:
                    axis.plot(after, forecast, color=OTHERS[(place - 1) % len(OTHERS)], linewidth=1.1,
                              linestyle=_DASHES[(place - 1) % len(_DASHES)], label=name)  # fmt: skip
            kind = "not active" if example.rank is None else f"active, percentile {100 * example.rank:.0f} of size"
            own = example.scores[OWN]
            axis.set_title(f"{example.neuron}\n{kind}\nr = {own.r:.2f}, MSE = {own.mse:.3g}", fontsize=7, loc="left")
            axis.set_xlabel("time from onset, s")
        axes[0].set_ylabel("dF/F")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 7), fontsize=7)
        return figure
