"""What [NEURON] vectors hold (figure A-10): a map of them, and whether neighbours share statistics of their responses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from quantformer.errors import DataError
from quantformer.forecaster import ACTIVATION, FORECAST
from quantformer_training.drawing import GREY, SHADES, style
from quantformer_training.examples import Examples
from quantformer_training.explain.projection import NeighbourTest, neighbour_test, tsne
from quantformer_training.finetune import TrainedModel

#: Names of the two tasks, in the order of `TrainedModel.tokens`.
TASKS = {"activation": ACTIVATION, "forecast": FORECAST}
#: More neurons than this are all tested, but not all drawn: t-SNE of 2,600 takes a minute.
MOST_DRAWN = 1500

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class NeuronStatistics:
    """Of each neuron's training responses, ``(n,)`` each: ``activation_rate``, and of the mean dF/F of a response its
    ``median`` and ``spread`` (standard deviation) over trials. ``neuron`` is the row of the vocabulary.
    """

    neuron: NDArray[np.int64]
    activation_rate: Floats
    median: Floats
    spread: Floats

    def columns(self) -> dict[str, Floats]:
        """The statistics by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "neuron"}


def neuron_statistics(training: Examples) -> NeuronStatistics:
    """Statistics of every known neuron that has rows; training rows only, or the figure would know the test.

    Raises:
        DataError: no row belongs to a known neuron.
    """
    rows = training.neuron.numpy()
    area = training.response.double().mean(1).numpy()
    active = training.active.numpy().astype(np.float64)
    known = np.unique(rows[rows >= 0])
    if not len(known):
        raise DataError(f"none of {len(rows)} training rows belongs to a neuron of the vocabulary")
    of = [rows == neuron for neuron in known]
    return NeuronStatistics(
        neuron=known.astype(np.int64),
        activation_rate=np.array([active[mask].mean() for mask in of]),
        median=np.array([np.median(area[mask]) for mask in of]),
        spread=np.array([area[mask].std() for mask in of]),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddingMap:
    """t-SNE of the neurons' own offsets, a task at a time.

    ``statistics`` are of all neurons; ``drawn`` indexes those in the map, all or a random `MOST_DRAWN`, and
    ``position[task]`` ``(drawn, 2)`` is where they are. ``tests[task][statistic]`` says whether nearest neighbours, among all
    and in the full width, share the statistic. ``mice`` is how many groups values were permuted within.
    """

    statistics: NeuronStatistics
    drawn: NDArray[np.intp]
    position: Mapping[str, Floats]
    tests: Mapping[str, Mapping[str, NeighbourTest]]
    mice: int

    def numbers(self) -> dict[str, float]:
        """What the caption and tables state."""
        made: dict[str, float] = {"neurons": len(self.statistics.neuron), "mice": self.mice}
        for task, tests in self.tests.items():
            for name, test in tests.items():
                made |= {f"{task}_{name}_{key}": getattr(test, key) for key in ("rho", "chance_high", "p")}
        return made


def embedding_map(
    model: TrainedModel, training: Examples, *, seed: int, mouse: NDArray[np.integer] | None = None
) -> EmbeddingMap:
    """Lay out both tasks' [NEURON] offsets; ``mouse`` ``(vocabulary neurons,)`` says whose each neuron is.

    Raises:
        DataError: fewer than four neurons have training rows, or their vectors are all equal.
    """
    statistics = neuron_statistics(training)
    known = len(model.vocabulary.neuron_ids)
    if mouse is not None and np.shape(mouse) != (known,):
        raise DataError(f"mouse has shape {np.shape(mouse)}, expected ({known},): one label a neuron of the vocabulary")
    group = np.zeros(known, np.int64) if mouse is None else np.asarray(mouse)
    group = group[statistics.neuron]
    drawn = np.sort(np.random.default_rng(seed).permutation(len(group))[:MOST_DRAWN])
    position, tests = {}, {}
    for task, index in TASKS.items():
        vectors = model.tokens[index].offset.detach().double().cpu().numpy()[statistics.neuron]
        position[task] = tsne(vectors[drawn], seed=seed)
        tests[task] = {
            name: neighbour_test(vectors, values, seed=seed, group=group)
            for name, values in statistics.columns().items()
        }
    return EmbeddingMap(statistics=statistics, drawn=drawn, position=position, tests=tests, mice=len(np.unique(group)))


_TITLES = {
    "activation_rate": "activation rate",
    "median": "median response, dF/F",
    "spread": "spread of responses, dF/F",
}


def draw_embedding_map(found: EmbeddingMap) -> Figure:
    """A row a task, a column a statistic; colours cover the 5th to 95th percentile."""
    with style():
        figure = Figure(figsize=(10.4, 6.4), layout="constrained")
        axes = figure.subplots(len(found.position), 3, squeeze=False)
        for row, (task, position) in zip(axes, found.position.items(), strict=True):
            for axis, (name, values) in zip(row, found.statistics.columns().items(), strict=True):
                low, high = np.quantile(values, [0.05, 0.95])
                points = axis.scatter(
                    *position.T, c=values[found.drawn], cmap=SHADES, s=18 if len(position) < 400 else 8,
                    edgecolors=GREY, linewidths=0.3,
                    vmin=low, vmax=max(high, low + 1e-12),
                )  # fmt: skip
                bar = figure.colorbar(points, ax=axis, fraction=0.05, pad=0.02)
                bar.ax.tick_params(labelsize=7)
                test = found.tests[task][name]
                verdict = f"neighbours: ρ = {test.rho:.2f}, p = {test.p:.3f}"
                axis.set_title(f"{task}: {_TITLES[name]}\n{verdict}", fontsize=8, loc="left")
                axis.set_xticks([])
                axis.set_yticks([])
        for axis in axes[-1]:
            axis.set_xlabel("t-SNE 1 (no unit)")
        for axis in axes[:, 0]:
            axis.set_ylabel("t-SNE 2 (no unit)")
        return figure
