"""All figures of the paper in one go, as PNG and SVG files with captions that say where the data came from."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from quantformer.errors import DataError
from quantformer.manifest import Interval
from quantformer.recording import Origin
from quantformer_training.drawing import png, svg
from quantformer_training.examples import Examples
from quantformer_training.explain.attention import AttentionByCategory, attention_by_category, draw_attention
from quantformer_training.explain.chosen import Competitor
from quantformer_training.explain.codes import (
    code_map,
    draw_code_map,
    draw_sequence_effect,
    sequence_effect,
    used_codes,
)
from quantformer_training.explain.embeddings import draw_embedding_map, embedding_map
from quantformer_training.explain.forecasts import draw_forecasts, forecast_examples
from quantformer_training.explain.quantization import draw_quantization, quantization_quality
from quantformer_training.finetune import TrainedModel
from quantformer_training.pretrain import Pretrained


@dataclass(frozen=True, kw_only=True, eq=False)
class Explained:
    """One stimulus category: the model asked about it, its interval, its training and test rows (lead 0), competitors by
    name, and whose each neuron of the model's vocabulary is, where there are several mice.
    """

    model: TrainedModel
    interval: Interval
    train: Examples
    test: Examples
    competitors: Mapping[str, Competitor] = field(default_factory=dict)
    mouse: NDArray[np.integer] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnFigure:
    """One figure on disk; ``paper`` is the paper's own, ``numbers`` what can be said of it without looking."""

    name: str
    paper: str
    title: str
    caption: str
    svg: Path
    png: Path
    numbers: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Gallery:
    """The figures in the paper's order, and by name the reason of each that the data did not allow."""

    figures: tuple[DrawnFigure, ...]
    left_out: Mapping[str, str]


class _Numbered(Protocol):
    def numbers(self) -> dict[str, float]: ...


def draw_all(
    directory: Path,
    *,
    pretrained: Pretrained,
    categories: Mapping[str, Explained],
    origin: Origin,
    source: str,
    rate_hz: float,
    seed: int,
) -> Gallery:
    """Draw every figure into ``directory``, which is made where it does not exist; equal input gives equal SVG files.

    ``categories`` are drawn in their order; models may be one for all or one each. ``source`` names the data in words and
    ``rate_hz`` is the rate of the windows. A figure that the data does not allow (three neurons have no map) is left out
    with its reason.

    Raises:
        DataError: there is no category, or two whose file names would be the same.
    """
    if not categories:
        raise DataError("no stimulus category was given; at least one is needed to explain a model")
    names = [_file_name(category) for category in categories]
    if len(set(names)) < len(names):
        raise DataError(
            f"the categories {', '.join(categories)} would share files; give them names that differ in letters"
        )
    tail = f"Data: {origin} ({source}); seed {seed}."
    pen = _Pen(directory=directory, tail=tail)
    directory.mkdir(parents=True, exist_ok=True)
    for category, one in categories.items():
        pen.forecasts(category, one, rate_hz=rate_hz, seed=seed)
    # Windows of the test part: what pre-training has not seen. Models share the pre-trained auto-encoder, and so its scale.
    windows = torch.cat([one.test.trace for one in categories.values()])
    active = torch.cat([one.test.active for one in categories.values()]).numpy()
    pen.codes(pretrained, windows, active, rate_hz=rate_hz, seed=seed)
    pen.attention(categories, seed=seed)
    pen.embeddings(categories, seed=seed)
    return Gallery(figures=tuple(pen.figures), left_out=pen.left_out)


Found = TypeVar("Found", bound=_Numbered)


class _Pen:
    """Draws one figure after the other and remembers what came of each."""

    def __init__(self, *, directory: Path, tail: str) -> None:
        self.directory, self.tail = directory, tail
        self.figures: list[DrawnFigure] = []
        self.left_out: dict[str, str] = {}

    def forecasts(self, category: str, one: Explained, *, rate_hz: float, seed: int) -> None:
        with_words = category.replace("_", " ")
        name = f"forecasts_{_file_name(category)}"
        found = self.attempt(
            name,
            lambda: forecast_examples(
                one.model, one.test, category=category, interval=one.interval, competitors=one.competitors, seed=seed
            ),
        )
        if found is None:
            return
        own, *others = (f"{key} MSE {score.mse:.4g}, r {score.r:.3f}" for key, score in found.scores.items())
        beside = f" Of the others, over all rows that they were tested on: {'; '.join(others)}." if others else ""
        self.keep(
            name, found, draw_forecasts(found, rate_hz=rate_hz), paper="3, A-2 to A-5", title=f"Forecasts, {with_words}",
            caption=f"Expected decoding against what was measured. Rows were drawn, not picked: one from each third of the "
            f"{found.active_rows} active of {found.rows} test neuron-trials ranked by size, and one inactive. Over all "
            f"{found.rows}: {own}.{beside} The interval is meant to hold {100 * found.level:.0f} % of frames and held "
            f"{100 * found.covered:.1f} %.",
        )  # fmt: skip

    def codes(
        self, pretrained: Pretrained, windows: torch.Tensor, active: NDArray[np.bool_], *, rate_hz: float, seed: int
    ) -> None:
        quality = self.attempt("quantization", lambda: quantization_quality(pretrained, windows, active))
        if quality is None:
            return
        good, quiet = quality.fidelity_active, quality.fidelity_inactive
        self.keep(
            "quantization", quality,
            draw_quantization(quality, rate_hz=rate_hz, baseline_frames=pretrained.config.baseline_frames),
            paper="A-7", title="What the codes keep of a trace",
            caption=f"Test windows (160 frames, nothing masked) and what their ten codes decode to, at the 10th, 50th and "
            f"90th percentile of r. {good.rows} active: r {good.r:.3f}, MSE {good.mse:.4g}, {100 * good.variance_kept:.0f} % "
            f"of variance kept; {quiet.rows} inactive: r {quiet.r:.3f}, MSE {quiet.mse:.4g}, "
            f"{100 * quiet.variance_kept:.0f} %. Perplexity {quality.perplexity:.1f} of {len(quality.usage)} codes, "
            f"{quality.dead} never used.",
        )  # fmt: skip
        found = self.attempt("code_map", lambda: code_map(pretrained, quality.usage, seed=seed))
        if found is not None:
            across = found.amplitude_across
            claim = "does" if across.p < 0.05 else "does not measurably"
            self.keep(
                "code_map", found, draw_code_map(found), paper="A-9 a, b", title="Map of the codes",
                caption=f"t-SNE of the {len(found.code)} codes in use on {len(windows)} test windows, each drawn as the mean "
                f"patch that it stood for in pre-training; darker: used more. The paper's amplitude that grows across the "
                f"map: it {claim} (R² {across.r_squared:.2f} of a straight line, {across.chance_high:.2f} is the 95th "
                f"percentile of permuted amplitudes, p {across.p:.3f}).",
            )  # fmt: skip
        effect = self.attempt(
            "sequence_effect", lambda: sequence_effect(pretrained, used_codes(pretrained, quality.usage))
        )
        if effect is not None:
            told = effect.numbers()
            self.keep(
                "sequence_effect", effect, draw_sequence_effect(effect, rate_hz=rate_hz), paper="A-9 c",
                title="One code among others",
                caption=f"Bursts of one code with code {int(told['peak_code'])}, the largest, as patch "
                f"{effect.position + 1} of ten; bursts at equal steps of rank. Of the variance of the replaced patch over "
                f"all {len(effect.code)} x {len(effect.code)} pairs, {100 * effect.context_share:.0f} % is the context's. "
                f"Its median effect is {told['effect_rms_median']:.3g} dF/F RMS, against {told['own_burst_rms']:.3g} of a "
                f"code in a burst of its own. Such bursts hardly occur in real traces. Deterministic.",
            )  # fmt: skip

    def attention(self, categories: Mapping[str, Explained], *, seed: int) -> None:
        models = {category: one.model for category, one in categories.items()}
        rows = {category: one.test for category, one in categories.items() if len(one.test)}
        found = self.attempt("attention", lambda: attention_by_category(models, rows, seed=seed))
        if found is None:
            return
        most = found.most_drawn_on("activation")
        counts = ", ".join(
            f"{name.replace('_', ' ')} {tasks['activation'].rows}" for name, tasks in found.found.items()
        )
        self.keep(
            "attention", found, draw_attention(found), paper="A-8", title="Attention rollout by stimulus",
            caption=f"Rollout over layers (half attention averaged over heads, half identity) from [CLS], and from the "
            f"response's masks, mean over test rows: {counts}. The paper's [CLS] draws most on [NEURON]: ours does for "
            f"{sum(token == '[NEURON]' for token in most.values())} of {len(most)} categories. Attention is not all: the "
            f"linear shortcut from the baseline's summary and what is known beforehand goes round it, and carries "
            f"{_shortcut(found, 'activation')} of the logit's variance and {_shortcut(found, 'forecast')} of the forecast's "
            f"(covariance over variance). Rollout shows where attention looks, not what moves the answer.",
        )  # fmt: skip

    def embeddings(self, categories: Mapping[str, Explained], *, seed: int) -> None:
        # One map a model: categories that share one lend it the training rows of all of them.
        sharing: dict[int, list[str]] = {}
        for category, one in categories.items():
            sharing.setdefault(id(one.model), []).append(category)
        for names in sharing.values():
            alone = len(sharing) == 1
            name = "neuron_map" if alone else f"neuron_map_{_file_name('_'.join(names))}"
            members = [categories[category] for category in names]
            first, training = members[0], Examples.joined([one.train for one in members])
            found = self.attempt(
                name, lambda first=first, training=training: embedding_map(  # type: ignore[misc]
                    first.model, training, seed=seed, mouse=first.mouse
                ),
            )  # fmt: skip
            if found is None:
                continue
            told = [
                f"{task} {statistic.replace('_', ' ')} ρ {test.rho:.2f} (p {test.p:.3f})"
                for task, tests in found.tests.items()
                for statistic, test in tests.items()
            ]
            held = sum(test.holds for tests in found.tests.values() for test in tests.values())
            near = max(test.neighbours for tests in found.tests.values() for test in tests.values())
            within = f", permuted within {found.mice} mice" if found.mice > 1 else ""
            words = "" if alone else f", {', '.join(names).replace('_', ' ')}"
            self.keep(
                name, found, draw_embedding_map(found), paper="A-10", title=f"Map of the neurons{words}",
                caption=f"t-SNE of the [NEURON] offsets of {len(found.drawn)} of {len(found.statistics.neuron)} neurons, "
                f"coloured by statistics of their {len(training)} training responses. The paper's claim that neighbours "
                f"share statistics holds for {held} of {len(told)} at p < 0.05 (rank correlation with the mean of the {near} "
                f"nearest in the full width, one-sided permutation{within}, p not corrected for {len(told)} tests): "
                f"{'; '.join(told)}.",
            )  # fmt: skip

    def attempt(self, name: str, make: Callable[[], Found]) -> Found | None:
        try:
            return make()
        except DataError as error:
            self.left_out[name] = str(error)
            return None

    def keep(self, name: str, found: _Numbered, figure: Figure, *, paper: str, title: str, caption: str) -> None:
        paths = {"svg": self.directory / f"{name}.svg", "png": self.directory / f"{name}.png"}
        vector = svg(figure)
        # Laid out once: both files show the same, and half the time goes into where labels stand.
        figure.set_layout_engine("none")
        for kind, contents in (("svg", vector), ("png", png(figure))):
            aside = paths[kind].with_suffix(f".{kind}.part")
            aside.write_bytes(contents)
            aside.replace(paths[kind])
        self.figures.append(
            DrawnFigure(
                name=name,
                paper=paper,
                title=title,
                caption=f"{caption} {self.tail}",
                svg=paths["svg"],
                png=paths["png"],
                numbers=found.numbers(),
            )
        )


def _shortcut(found: AttentionByCategory, task: str) -> str:
    shares = [100 * tasks[task].shortcut_share for tasks in found.found.values()]
    low, high = f"{min(shares):.0f}", f"{max(shares):.0f}"
    return f"{low} %" if low == high else f"{low} to {high} %"


def _file_name(category: str) -> str:
    """Only letters, digits, and ``_`` of a category's name: it may come from a file."""
    return re.sub(r"[^A-Za-z0-9]+", "_", category).strip("_")[:80] or "unnamed"
