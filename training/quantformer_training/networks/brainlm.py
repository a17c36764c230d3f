"""A BrainLM-style masked auto-encoder (Ortega Caro et al. 2023), written from the paper and its published sizes.

Patches of a trace, a share of them hidden; an encoder sees the visible ones, a light decoder tells the hidden ones. The
layers are BrainLM's (post-norm, a depthwise convolution beside the attention), so that its published encoder fits; with
fewer tokens than landmarks its Nyström attention is plain attention, which is what stands here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from quantformer.patches import to_patches
from quantformer_training.examples import Examples
from quantformer_training.networks.network import PREFIX_FRAMES, CompetitorNetwork, NetworkConfig

#: Share of patches hidden in pre-training, that of BrainLM's first published model (13 M parameters).
MASKED = 0.2
#: Taps of the convolution when trained from scratch: enough to reach from any token to any other (BrainLM: 65).
KERNEL = 23


@dataclass(frozen=True, kw_only=True)
class EncoderSizes:
    """Sizes of an encoder; ``points`` are the samples of a patch, ``kernel`` the taps of the convolution over tokens."""

    d: int
    layers: int
    heads: int
    hidden: int
    points: int
    kernel: int


class Block(nn.Module):
    """Self-attention with a convolution of the values over tokens, then a feed-forward network; norms come last."""

    def __init__(self, sizes: EncoderSizes, *, dropout: float) -> None:
        super().__init__()
        d = sizes.d
        self.heads = sizes.heads
        self.query, self.key, self.value = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.convolution = nn.Conv2d(
            sizes.heads, sizes.heads, (sizes.kernel, 1), padding=(sizes.kernel // 2, 0), groups=sizes.heads, bias=False
        )
        self.attention_out, self.attention_norm = nn.Linear(d, d), nn.LayerNorm(d)
        self.expand, self.contract, self.norm = nn.Linear(d, sizes.hidden), nn.Linear(sizes.hidden, d), nn.LayerNorm(d)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, P, d]`` to ``[B, P, d]``."""
        query, key, value = (
            linear(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value) + self.convolution(value)
        tokens = self.attention_norm(tokens + self.dropout(self.attention_out(mixed.transpose(1, 2).flatten(2))))
        hidden = functional.gelu(self.expand(tokens))
        result: Tensor = self.norm(tokens + self.dropout(self.contract(hidden)))
        return result


class BrainLMEncoder(nn.Module):
    """[CLS] and visible patches to vectors of width d."""

    def __init__(self, sizes: EncoderSizes, *, dropout: float) -> None:
        super().__init__()
        self.points = sizes.points
        self.project = nn.Linear(sizes.points, sizes.d)
        self.cls_token = nn.Parameter(torch.randn(1, 1, sizes.d) * 0.02)
        self.blocks = nn.ModuleList(Block(sizes, dropout=dropout) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.d)

    def forward(self, patches: Tensor, position: Tensor) -> Tensor:
        """``[B, P, frames]`` and what tells their places ``[B, P, d]`` to ``[B, 1 + P, d]``.

        Patches are resampled to as many points as the projection takes: 16 frames to BrainLM's 20.
        """
        if patches.shape[2] != self.points:
            patches = functional.interpolate(patches, size=self.points, mode="linear", align_corners=True)
        tokens = self.project(patches) + position
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        normed: Tensor = self.norm(tokens)
        return normed


class BrainLMSeries(nn.Module):
    """Encoder and decoder over prefix patch, baseline patches and response patches, ``[B, frames]`` to ``[B, outputs]``.

    A forecast is what the decoder tells of hidden response patches; a logit is a linear map of [CLS]. BrainLM tells the
    places of its parcels by their coordinates: neurons of a cortex seen from above have none in common, and the prefix
    patch tells which neuron it is.
    """

    def __init__(self, config: NetworkConfig, sizes: EncoderSizes) -> None:
        super().__init__()
        self.encoder = BrainLMEncoder(sizes, dropout=config.dropout)
        self.seen = config.series_frames // PREFIX_FRAMES
        self.patches = self.seen + config.response_frames // PREFIX_FRAMES
        self.embed = nn.Linear(sizes.d, sizes.d)
        self.mask_token = nn.Parameter(torch.randn(1, 1, sizes.d) * 0.02)
        self.blocks = nn.ModuleList(Block(sizes, dropout=config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(sizes.d)
        self.reconstruct = nn.Sequential(
            nn.Linear(sizes.d, sizes.d // 2), nn.LeakyReLU(0.1), nn.Linear(sizes.d // 2, PREFIX_FRAMES)
        )
        self.head = nn.Linear(sizes.d, 1) if config.outputs == 1 else None
        self.register_buffer("position", sinusoids(self.patches, sizes.d), persistent=False)
        self.position: Tensor

    def forward(self, series: Tensor) -> Tensor:
        """Every patch that is given is visible, the response hidden."""
        patches = to_patches(series, patch_frames=PREFIX_FRAMES)
        kept = torch.arange(self.seen, device=series.device).expand(len(series), -1)
        encoded = self.encoder(patches, self.position[kept])
        if self.head is not None:
            logit: Tensor = self.head(encoded[:, 0])
            return logit
        return self.decode(encoded, kept)[:, self.seen :].flatten(1)

    def decode(self, encoded: Tensor, kept: Tensor) -> Tensor:
        """Vectors of [CLS] and of the patches ``kept``, int64 ``[B, K]``, to every patch ``[B, P, frames]``."""
        embedded = self.embed(encoded)
        places = kept[..., None].expand(-1, -1, embedded.shape[2])
        hidden = self.mask_token.expand(len(embedded), self.patches, -1)
        tokens = hidden.scatter(1, places, embedded[:, 1:]) + self.position
        tokens = torch.cat([embedded[:, :1], tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        made: Tensor = self.reconstruct(self.norm(tokens)[:, 1:])
        return made

    def masked_loss(self, series: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of the hidden patches of whole trials ``[B, prefix + 160]``.

        ``noise`` ``[B, P - 1]`` uniform in [0, 1) decides: the patches with the largest are hidden, the prefix never.
        """
        patches = to_patches(series, patch_frames=PREFIX_FRAMES)
        order = noise.argsort(dim=1) + 1
        hidden = order[:, order.shape[1] - max(1, round(MASKED * order.shape[1])) :]
        kept = order[:, : order.shape[1] - hidden.shape[1]]
        kept = torch.cat([torch.zeros_like(kept[:, :1]), kept], dim=1)
        encoded = self.encoder(_at(patches, kept), self.position[kept])
        return functional.mse_loss(_at(self.decode(encoded, kept), hidden), _at(patches, hidden))


class MaskedAutoencoder(CompetitorNetwork):
    """A BrainLM-style network that is first trained to tell hidden patches of the run's own training windows."""

    series: BrainLMSeries

    def pretraining_loss(self, rows: Examples, noise: Tensor) -> Tensor:
        """Of whole trials, ``rows.trace``; ``noise`` ``[B, 10]`` uniform in [0, 1) chooses the hidden patches."""
        series = torch.cat([self.prefix(self.context(rows)), rows.trace], dim=1)
        return self.series.masked_loss(series, noise)


def brainlm(config: NetworkConfig) -> MaskedAutoencoder:
    """BrainLM-style, from scratch; our own code."""
    sizes = EncoderSizes(
        d=config.d, layers=config.layers, heads=config.heads, hidden=4 * config.d, points=PREFIX_FRAMES, kernel=KERNEL
    )
    return MaskedAutoencoder(config, BrainLMSeries(config, sizes))


def sinusoids(length: int, d: int) -> Tensor:
    """Positions ``[length, d]`` as sines and cosines (Vaswani et al. 2017), which BrainLM adds to its patches."""
    angle = torch.arange(length)[:, None] * torch.exp(torch.arange(0, d, 2) * (-math.log(10_000.0) / d))
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)[:, :d]


def _at(patches: Tensor, index: Tensor) -> Tensor:
    """Patches ``[B, P, frames]`` at int64 ``[B, K]``."""
    return patches.gather(1, index[..., None].expand(-1, -1, patches.shape[2]))
