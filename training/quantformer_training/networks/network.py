"""What every competitor network shares: its sizes, what it is told beside the trace, and the way in and out."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn

from quantformer.config import KNOWN_QUANTITIES, ModelConfig
from quantformer.errors import DataError, MissingExtraError, UsageError
from quantformer.forecaster import known_beforehand
from quantformer.losses import activation_loss
from quantformer.tokens import TaskTokens
from quantformer_training.examples import Examples

#: Frames of the learned patch that tells a series network of neuron, stimulus and tuning, before the baseline's frames.
PREFIX_FRAMES = 16


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Sizes, the same for every network. ``outputs`` is 1 (a logit of activation) or ``response_frames`` (a forecast).

    ``neurons`` is how many have vectors; a network that mixes neurons takes trials of just these, in their order.
    """

    neurons: int
    feature_width: int
    stimulus_ids: int
    outputs: int
    d: int = 64
    layers: int = 2
    heads: int = 4
    dropout: float = 0.1
    baseline_frames: int = 96
    response_frames: int = 64

    def __post_init__(self) -> None:
        # The bounds on sizes are the model's own.
        ModelConfig(
            d=self.d, layers=self.layers, heads=self.heads, dropout=self.dropout, patch_frames=PREFIX_FRAMES,
            baseline_frames=self.baseline_frames, response_frames=self.response_frames,
        )  # fmt: skip
        if self.outputs not in (1, self.response_frames):
            raise UsageError(f"outputs = {self.outputs}; expected 1 (activation) or {self.response_frames} (forecast)")
        if self.neurons < 1 or self.feature_width < 1 or self.stimulus_ids < 0:
            raise UsageError(
                f"neurons = {self.neurons}, feature_width = {self.feature_width}, stimulus_ids = {self.stimulus_ids}; "
                "expected at least 1, 1 and 0"
            )

    @property
    def series_frames(self) -> int:
        """Frames that a series network reads: the prefix patch and the baseline."""
        return PREFIX_FRAMES + self.baseline_frames


class Context(nn.Module):
    """Neuron vector, stimulus vector, tuning and F0's level as one vector ``[B, d]``, the same for every network."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.tokens = TaskTokens(
            neurons=config.neurons, feature_width=config.feature_width, stimulus_ids=config.stimulus_ids, d=config.d
        )
        self.known = nn.Linear(KNOWN_QUANTITIES, config.d)
        self.mix = nn.Sequential(nn.Linear(config.d, config.d), nn.GELU(), nn.Linear(config.d, config.d))

    def forward(self, rows: Examples) -> Tensor:
        """``[B, d]``. A neuron's answer to a stimulus is no sum of both, hence the small network on top of the sum."""
        told = self.tokens.neuron(rows.neuron) + self.tokens.stimulus(rows.features, rows.stimulus)
        told = told + self.known(known_beforehand(rows.tuning, rows.level))
        mixed: Tensor = told + self.mix(told)
        return mixed


class TaskNetwork(nn.Module):
    """A network of one task: ``config.outputs`` says which. ``multivariate`` ones take whole trials."""

    def __init__(self, config: NetworkConfig, *, multivariate: bool = False) -> None:
        super().__init__()
        self.config, self.multivariate = config, multivariate

    def loss(self, rows: Examples, valid: Tensor) -> Tensor:
        """Binary cross-entropy of activation, or mean squared error of the response in signal scales, over valid rows."""
        made: Tensor = self(rows, valid)[valid]
        if self.config.outputs == 1:
            return activation_loss(made, rows.active[valid])
        # The trace ends with the response over the signal scale, clipped like everything that a network sees.
        target = rows.trace[valid, self.config.baseline_frames :]
        return (made - target).square().mean()


class CompetitorNetwork(TaskNetwork):
    """A series network with context: as one learned prefix patch before the baseline, and as an offset of its output.

    ``series`` maps ``[B, series_frames]`` to ``[B, outputs]``; a multivariate one maps ``[trials, neurons, series_frames]``
    and validity ``[trials, neurons]`` to ``[trials, neurons, outputs]``.
    """

    def __init__(self, config: NetworkConfig, series: nn.Module, *, multivariate: bool = False) -> None:
        super().__init__(config, multivariate=multivariate)
        self.context = Context(config)
        self.prefix = nn.Linear(config.d, PREFIX_FRAMES)
        self.offset = nn.Linear(config.d, config.outputs)
        self.series = series

    def forward(self, rows: Examples, valid: Tensor | None = None) -> Tensor:
        """Logits ``[B]``, or dF/F ``[B, 64]`` in signal scales.

        A multivariate network takes whole trials, every neuron in order, and which rows are ``valid``, bool ``[B]``
        (default: all); what an invalid row holds reaches no other row.

        Raises:
            DataError: rows of a multivariate network are no whole trials.
        """
        context = self.context(rows)
        series = torch.cat([self.prefix(context), rows.baseline], dim=1)
        made = self._whole_trials(series, valid) if self.multivariate else self.series(series)
        made = made + self.offset(context)
        answer: Tensor = made[:, 0] if self.config.outputs == 1 else made
        return answer

    def _whole_trials(self, series: Tensor, valid: Tensor | None) -> Tensor:
        neurons = self.config.neurons
        if len(series) % neurons:
            raise DataError(
                f"{len(series)} rows are no whole trials of {neurons} neurons; a network that mixes neurons takes the rows "
                "of draw_trials or trial_batches, from the one recording that it was made for"
            )
        if valid is None:
            valid = torch.ones(len(series), dtype=torch.bool, device=series.device)
        series = torch.where(valid[:, None], series, 0.0)
        made: Tensor = self.series(series.reshape(-1, neurons, series.shape[1]), valid.reshape(-1, neurons))
        return made.flatten(0, 1)


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """A competitor: its name in tables, where its network comes from, and how it is made."""

    title: str
    source: str
    make: Callable[[NetworkConfig], TaskNetwork]
    multivariate: bool = False


def attended(valid: Tensor) -> Tensor:
    """Which neurons of a trial others may attend to, ``[trials, neurons]``: the valid ones, or all where none is.

    Attention over nothing is not a number; the answers of a trial without a valid neuron are never used.
    """
    return valid | ~valid.any(dim=1, keepdim=True)


def neuralforecast(module: str, *, title: str) -> ModuleType:
    """A module of neuralforecast, imported when the network is made: the import takes seconds.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(f"neuralforecast.{module}")
    except ImportError as error:
        missing = error.name or "neuralforecast"
        raise MissingExtraError(
            package=missing.partition(".")[0], extra="compare", purpose=f"the competitor {title}"
        ) from error
