"""Examples of forecasts by stimulus category (figures 3 and A-2 to A-5), chosen by a rule and never by eye."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from quantformer.errors import DataError
from quantformer.manifest import Interval
from quantformer.trace_metrics import pearson_rows, squared_error
from quantformer_training.drawing import GREY, INK, LIGHT, OTHERS, style
from quantformer_training.examples import Examples
from quantformer_training.finetune import TrainedModel
from quantformer_training.report import ACCENT

#: Key of the model itself among the forecasts.
OWN = "QuantFormer"
#: Examples a category: active rows, one from each equal part of them ranked by size, and inactive rows.
ACTIVE_EXAMPLES, INACTIVE_EXAMPLES = 3, 1
_DASHES = ("--", ":", "-.", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (6, 2, 1, 2)), (0, (2, 2)))

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ForecastScore:
    """Mean squared error in (dF/F)^2 and signed r of forecasts; r is NaN where it is not defined."""

    mse: float
    r: float


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
    them active. ``level`` is the interval's nominal share and ``covered`` the share of all frames that it held.
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


def choose_rows(
    response: NDArray[np.floating], active: NDArray[np.bool_], *, seed: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rows to show: active ones, ranked by mean dF/F, cut into `ACTIVE_EXAMPLES` equal parts, one row drawn from each,
    smallest first; and `INACTIVE_EXAMPLES` drawn from the others. Fewer where there are fewer.
    """
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(active)
    ranked = rows[np.argsort(response[rows].mean(axis=1), kind="stable")]
    parts = [part for part in np.array_split(ranked, ACTIVE_EXAMPLES) if len(part)]
    others = np.flatnonzero(~active)
    drawn = rng.choice(others, min(INACTIVE_EXAMPLES, len(others)), replace=False)
    return tuple(int(rng.choice(part)) for part in parts), tuple(int(row) for row in drawn)


def forecast_examples(
    model: TrainedModel,
    examples: Examples,
    *,
    category: str,
    interval: Interval,
    competitors: Mapping[str, NDArray[np.floating]],
    seed: int,
) -> ForecastExamples:
    """Ask the model about every row of a category and choose what to show; ``competitors[name]`` ``(rows, 64)`` dF/F are
    forecasts of the same rows in the same order.

    Raises:
        DataError: no row, or a competitor's forecasts have another shape.
    """
    if not len(examples):
        raise DataError(f"{category}: no row to forecast")
    happened = examples.response.double().numpy()
    for name, forecast in competitors.items():
        if np.shape(forecast) != happened.shape:
            raise DataError(
                f"{category}: the forecasts of {name!r} have shape {np.shape(forecast)}, expected {happened.shape}: one a "
                "row of the category's examples, in their order"
            )
    if OWN in competitors:
        raise DataError(f"{category}: {OWN!r} is the model's own name; give the competitor another")
    made = model.predict(examples)
    forecasts = {OWN: made.response.astype(np.float64)}
    forecasts |= {name: np.asarray(forecast, np.float64) for name, forecast in competitors.items()}
    width = (made.spread.astype(np.float64) + interval.floor)[:, None]
    low, high = (forecasts[OWN] + width * np.asarray(bound) for bound in (interval.low, interval.high))
    before = examples.trace.double().numpy()[:, : -happened.shape[1]] * float(model.forecaster.signal_scale)
    active, neuron = examples.active.numpy(), examples.neuron.numpy()
    mse = {name: squared_error(forecast, happened) for name, forecast in forecasts.items()}
    r = {name: pearson_rows(forecast, happened) for name, forecast in forecasts.items()}
    size = happened.mean(axis=1)
    largest = np.sort(size[active])

    def shown(row: int) -> Example:
        place = float(np.searchsorted(largest, size[row])) / max(len(largest) - 1, 1)
        return Example(
            row=row,
            neuron=model.vocabulary.neuron_ids[neuron[row]] if neuron[row] >= 0 else "unknown neuron",
            active=bool(active[row]),
            rank=place if active[row] else None,
            before=before[row],
            happened=happened[row],
            forecasts={name: forecast[row] for name, forecast in forecasts.items()},
            low=low[row],
            high=high[row],
            scores={name: ForecastScore(mse=float(mse[name][row]), r=float(r[name][row])) for name in forecasts},
        )

    chosen_active, chosen_inactive = choose_rows(happened, active, seed=seed)
    return ForecastExamples(
        category=category,
        examples=tuple(shown(row) for row in (*chosen_active, *chosen_inactive)),
        rows=len(examples),
        active_rows=int(active.sum()),
        scores={name: ForecastScore(mse=float(mse[name].mean()), r=_defined_mean(r[name])) for name in forecasts},
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


def _defined_mean(values: Floats) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
