"""Downstream: activation and response from a baseline, a neuron and a stimulus (paper section 3.4).

Each task has its own copy of the pre-trained encoder and its own [NEURON] and [STIM] vectors. Beyond the paper, each
question also carries its *tuning*: what this neuron did after this stimulus in training (rate of active responses, mean
response), from a regularised regression. With six trials a neuron and stimulus, vectors learned by gradient do not find
this; without it the network is behind a table of rates. It also carries the *level*: how F0 stands against the neuron's usual
fluorescence, which dF/F alone does not tell, and how the neurons together stand against what they usually do. `ServingGraph`
is the whole as one function of data, which is what a bundle holds.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from quantformer.autoencoder import Encoder, FrozenAutoencoder
from quantformer.config import (
    BASELINE_BINS,
    F0_LEVELS,
    KNOWN_QUANTITIES,
    LEVEL_QUANTITIES,
    SUMMARY_QUANTITIES,
    TUNING_BINS,
    TUNING_QUANTITIES,
    TUNING_RATES,
    ModelConfig,
)
from quantformer.patches import to_patches

#: Index of each task's vectors in arrays of shape ``[..., 2, d]``.
ACTIVATION: Final = 0
FORECAST: Final = 1
#: dF/F beyond this many times the signal scale is clipped: one broken window must not own the loss or the answer.
CLIP: Final = 40.0
SHORTCUT_GAIN: Final = 10.0
#: How many `error_terms` there are.
ERROR_TERMS: Final = 3

#: A rate that tuning expects is taken for no less than this, and no more than one minus it.
RATE_FLOOR: Final = 0.005


def summary(baseline: Tensor) -> Tensor:
    """What the best simple baselines read of a baseline ``[B, 96]``: eight bins, standard deviation and last five frames,
    ``[B, 10]``.
    """
    bins = baseline.reshape(baseline.shape[0], BASELINE_BINS, -1).mean(-1)
    centred = baseline - baseline.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return torch.cat([bins, deviation, baseline[:, -5:].mean(-1, keepdim=True)], dim=1)


def baseline_noise(baseline: Tensor) -> Tensor:
    """Of baselines ``[B, frames]`` the noise from frame to frame (root mean square of first differences, over the root of 2) and
    the standard deviation, ``[B, 2]``, in their units.
    """
    noise = ((baseline[:, 1:] - baseline[:, :-1]).square().mean(-1) / 2).sqrt()
    deviation = (baseline - baseline.mean(-1, keepdim=True)).square().mean(-1).sqrt()
    return torch.stack([noise, deviation], dim=1)


def error_terms(noise: Tensor, probability: Tensor) -> Tensor:
    """What tells how much a forecast errs, ``[B, ERROR_TERMS]``: `baseline_noise` ``[B, 2]`` in dF/F, and the root of the
    probability ``[B]`` of becoming active, since the deviation of what is mostly nothing and sometimes a response grows with it.
    """
    return torch.cat([noise, probability[:, None].sqrt()], dim=1)


def known_beforehand(tuning: Tensor, level: Tensor) -> Tensor:
    """``[B, KNOWN_QUANTITIES]``: level, log-odds of the rates that tuning expects, and tuning.

    Tuning is linear, so a rate may leave [0, 1]; and a rate is far from linear in the logit that it calls for.
    """
    rate = tuning[:, :TUNING_RATES].clamp(RATE_FLOOR, 1.0 - RATE_FLOOR)
    return torch.cat([level, torch.log(rate / (1.0 - rate)), tuning], dim=1)


class Shortcut(nn.Module, ABC):
    """A linear map around the transformer to ``outputs`` numbers, from ``inputs`` of what the baseline, its level and the
    tuning tell. Made at zero, as the paper's network; training begins at a regression. ``population`` are those of the inputs
    that tell the population's level.
    """

    population: slice

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, baseline: Tensor, tuning: Tensor, level: Tensor) -> Tensor:
        """``[B, outputs]`` from ``[B, 96]``, ``[B, TUNING_QUANTITIES]`` and ``[B, LEVEL_QUANTITIES]``."""
        # A rate between 0 and 1 needs a weight of several units; the gain lets a small learning rate reach it in time.
        mapped: Tensor = SHORTCUT_GAIN * self.linear(self.inputs(baseline, tuning, level))
        return mapped

    @staticmethod
    @abstractmethod
    def inputs(baseline: Tensor, tuning: Tensor, level: Tensor) -> Tensor:
        """What the map is linear in, ``[B, inputs]``."""


class ActivationShortcut(Shortcut):
    """To a logit. Of the tuning only the rates, as log-odds: its bins cost a regression on a few hundred trials more than
    they tell it. The summary also as signed logarithm: a transient twice as high does not fall back twice as surely.
    """

    population = slice(2 * SUMMARY_QUANTITIES + F0_LEVELS, 2 * SUMMARY_QUANTITIES + LEVEL_QUANTITIES)

    def __init__(self) -> None:
        super().__init__(2 * SUMMARY_QUANTITIES + LEVEL_QUANTITIES + TUNING_RATES, 1)

    @staticmethod
    def inputs(baseline: Tensor, tuning: Tensor, level: Tensor) -> Tensor:
        """``[B, 26]``."""
        plain = summary(baseline)
        odds = known_beforehand(tuning, level)[:, : LEVEL_QUANTITIES + TUNING_RATES]
        return torch.cat([plain, plain.sign() * torch.log1p(plain.abs()), odds], dim=1)


class ResponseShortcut(Shortcut):
    """To a trace."""

    population = slice(SUMMARY_QUANTITIES + F0_LEVELS, SUMMARY_QUANTITIES + LEVEL_QUANTITIES)

    def __init__(self, frames: int) -> None:
        super().__init__(SUMMARY_QUANTITIES + LEVEL_QUANTITIES + TUNING_QUANTITIES, frames)

    @staticmethod
    def inputs(baseline: Tensor, tuning: Tensor, level: Tensor) -> Tensor:
        """``[B, 24]``."""
        return torch.cat([summary(baseline), level, tuning], dim=1)


class ActivationNetwork(nn.Module):
    """[CLS][NEURON][STIM] and the baseline's patches; a linear classifier on [CLS] (section 3.4.1)."""

    #: The tokens that are read of the encoder's output: [CLS].
    READ: Final = slice(1)

    def __init__(self, config: ModelConfig, *, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.cls_token = nn.Parameter(torch.randn(config.d) * 0.02)
        self.known = nn.Linear(KNOWN_QUANTITIES, config.d)
        self.head = nn.Linear(config.d, 1)
        self.shortcut = ActivationShortcut()

    def forward(self, baseline: Tensor, neuron: Tensor, stimulus: Tensor, tuning: Tensor, level: Tensor) -> Tensor:
        """Logits ``[B]`` from ``[B, 96]``, ``[B, d]``, ``[B, d]``, ``[B, TUNING_QUANTITIES]`` and ``[B, LEVEL_QUANTITIES]``."""
        tokens = self.encoder.embedding(to_patches(baseline, patch_frames=self.config.patch_frames))
        cls_token = self.cls_token.expand(tokens.shape[0], 1, -1)
        stimulus = stimulus + self.known(known_beforehand(tuning, level))
        sequence = torch.cat([cls_token, neuron[:, None], stimulus[:, None], tokens], dim=1)
        encoded = self.encoder.transformer(sequence, self.READ)[:, 0]
        logit: Tensor = (self.head(encoded) + self.shortcut(baseline, tuning, level))[:, 0]
        return logit


@dataclass(frozen=True, kw_only=True, eq=False)
class ResponseAnswer:
    """``code_logits`` ``[B, 10, K]`` (equation 4) and ``correction`` ``[B, 64]`` in signal scales, which is added to what
    the decoder makes of the codes: 32 codes hold the size of a response, not its exact shape.
    """

    code_logits: Tensor
    correction: Tensor


class ResponseNetwork(nn.Module):
    """[NEURON][STIM], the baseline's patches and a [MASK] a response patch; an MLP names every code (section 3.4.2).

    The head is supervised on all ten codes, so that the baseline's codes for the decoder cost no further encoder pass.
    """

    #: The tokens that are read of the encoder's output: all but [NEURON] and [STIM].
    READ: Final = slice(2, None)

    def __init__(self, config: ModelConfig, *, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.known = nn.Linear(KNOWN_QUANTITIES, config.d)
        self.bin_tuning = nn.Linear(TUNING_BINS // config.response_patches, config.d)
        self.shortcut = ResponseShortcut(config.response_frames)
        self.refine = nn.Linear(config.d * config.patches, config.response_frames)
        nn.init.zeros_(self.refine.weight)
        nn.init.zeros_(self.refine.bias)
        self.head = nn.Sequential(nn.Linear(config.d, 2 * config.d), nn.GELU(), nn.Linear(2 * config.d, config.codes))

    def forward(
        self, baseline: Tensor, neuron: Tensor, stimulus: Tensor, tuning: Tensor, level: Tensor
    ) -> ResponseAnswer:
        """From ``[B, 96]``, ``[B, d]``, ``[B, d]``, ``[B, TUNING_QUANTITIES]`` and ``[B, LEVEL_QUANTITIES]``."""
        embedding = self.encoder.embedding
        stimulus = stimulus + self.known(known_beforehand(tuning, level))
        tokens = embedding(to_patches(baseline, patch_frames=self.config.patch_frames))
        # Each response patch is told the mean response in its own bins.
        bins = tuning[:, TUNING_RATES:].reshape(tuning.shape[0], self.config.response_patches, -1)
        masks = self.encoder.mask_token + embedding.position[self.config.baseline_patches :] + self.bin_tuning(bins)
        sequence = torch.cat([neuron[:, None], stimulus[:, None], tokens, masks], dim=1)
        encoded = self.encoder.transformer(sequence, self.READ)
        correction = self.refine(encoded.flatten(1)) + self.shortcut(baseline, tuning, level)
        return ResponseAnswer(code_logits=self.head(encoded), correction=correction)


class Forecaster(nn.Module):
    """Both task networks over one frozen auto-encoder.

    ``signal_scale`` is the typical size of dF/F in training: the networks see dF/F divided by it. ``spread_weights``
    ``[ERROR_TERMS]``, by which the spread is made of `error_terms`, are zero until validation has told them.
    """

    signal_scale: Tensor
    spread_weights: Tensor

    def __init__(self, config: ModelConfig, *, teacher: FrozenAutoencoder, signal_scale: float) -> None:
        super().__init__()
        self.config = config
        self.teacher = teacher
        self.activation = ActivationNetwork(config, encoder=_trainable_copy(teacher.encoder))
        self.response = ResponseNetwork(config, encoder=_trainable_copy(teacher.encoder))
        self.register_buffer("signal_scale", torch.tensor(float(signal_scale)))
        self.register_buffer("spread_weights", torch.zeros(ERROR_TERMS))

    def weigh(self, weights: Sequence[float]) -> None:
        """Make the spread with these ``spread_weights``."""
        self.spread_weights.copy_(torch.tensor(weights))

    def decode(self, answer: ResponseAnswer) -> Tensor:
        """Expected decoding: dF/F ``[B, 64]`` from the decoder on softmax-weighted code vectors, and the correction.

        Response codes are predicted independently (equation 4), so the arg-max sequence can be incoherent; the expected
        code vector is what keeps the squared error small.
        """
        expected = answer.code_logits.softmax(-1) @ self.teacher.codebook.codebook
        trace = self.teacher.decode(expected, slice(self.config.baseline_patches, None))
        return (trace + answer.correction) * self.signal_scale

    def spread(self, terms: Tensor) -> Tensor:
        """How much the forecast errs, ``[B]`` in dF/F, of its `error_terms` ``[B, ERROR_TERMS]``."""
        return terms @ self.spread_weights


class ServingGraph(nn.Module):
    """The function that a bundle holds; inputs and outputs as `docs/architecture.md` lists them."""

    def __init__(self, forecaster: Forecaster) -> None:
        super().__init__()
        self.forecaster = forecaster

    def forward(
        self,
        baseline: Tensor,
        level: Tensor,
        neuron: Tensor,
        stimulus: Tensor,
        row_neuron: Tensor,
        row_stimulus: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``logit [B]``, ``response [B, 64]`` in dF/F and ``spread [B]`` in dF/F."""
        model = self.forecaster
        d, width = model.config.d, neuron.shape[2]
        # Each task's vectors and tuning one after the other, [B, 2 * width]: a runtime cuts two axes in two steps. Chosen by
        # index_select: what indexing becomes moves its own shapes to a GPU.
        of_neuron = neuron.flatten(1).index_select(0, row_neuron)
        of_stimulus = stimulus.flatten(1).index_select(0, row_stimulus)
        forecast = stimulus.shape[2]
        windows = (baseline / model.signal_scale).clamp(-CLIP, CLIP)
        noise = (baseline_noise(windows) * model.signal_scale).index_select(0, row_neuron)
        rows = windows.index_select(0, row_neuron)
        of_level = level.index_select(0, row_neuron)
        coefficients = of_neuron[:, d:width].reshape(row_neuron.shape[0], TUNING_QUANTITIES, -1)
        tuning = (coefficients * of_stimulus[:, None, d:forecast]).sum(-1)
        logit = model.activation(rows, of_neuron[:, :d], of_stimulus[:, :d], tuning, of_level)
        answer = model.response(
            rows, of_neuron[:, width : width + d], of_stimulus[:, forecast : forecast + d], tuning, of_level
        )
        return logit, model.decode(answer), model.spread(error_terms(noise, logit.sigmoid()))


def _trainable_copy(encoder: Encoder) -> Encoder:
    return copy.deepcopy(encoder).requires_grad_(True)
