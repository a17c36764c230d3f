"""Crossformer (Zhang and Yan, ICLR 2023), written from the paper: attention across time, then across neurons.

Nothing installable holds it. Section and equation numbers are those of "Crossformer: Transformer utilizing cross-dimension
dependency for multivariate time series forecasting".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantformer_training.networks.network import PREFIX_FRAMES, CompetitorNetwork, NetworkConfig, attended

#: Routers of a segment, the paper's c: neurons write to them and read from them, so the cost is linear in neurons.
ROUTERS = 10


class _Attention(nn.Module):
    """Multi-head attention, residual, norm, feed-forward, residual, norm; ``[B, Q, d]`` from ``[B, K, d]``."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        d = config.d
        self.attention = nn.MultiheadAttention(d, config.heads, dropout=config.dropout, batch_first=True)
        self.attention_norm, self.feedforward_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.feedforward = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        mixed, _ = self.attention(query, memory, memory, need_weights=False)
        query = self.attention_norm(query + self.dropout(mixed))
        result: Tensor = self.feedforward_norm(query + self.dropout(self.feedforward(query)))
        return result


class TwoStageAttention(nn.Module):
    """Section 3.2: every neuron's segments attend to each other, then every segment's neurons through routers."""

    def __init__(self, config: NetworkConfig, *, segments: int) -> None:
        super().__init__()
        d = config.d
        self.time = _Attention(config)
        self.router = nn.Parameter(torch.randn(segments, ROUTERS, d) * 0.02)
        self.gather = nn.MultiheadAttention(d, config.heads, dropout=config.dropout, batch_first=True)
        self.spread = _Attention(config)

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """``[T, N, S, d]`` and ``[T, N]`` to ``[T, N, S, d]``; routers gather from valid neurons only (equation 5)."""
        trials, neurons, segments, d = tokens.shape
        series = tokens.flatten(0, 1)
        series = self.time(series, series)
        across = series.reshape(trials, neurons, segments, d).transpose(1, 2).flatten(0, 1)
        absent = ~attended(valid).repeat_interleave(segments, dim=0)
        gathered, _ = self.gather(
            self.router.repeat(trials, 1, 1), across, across, key_padding_mask=absent, need_weights=False
        )
        mixed: Tensor = self.spread(across, gathered)
        return mixed.reshape(trials, segments, neurons, d).transpose(1, 2)


class SegmentMerging(nn.Module):
    """Section 3.3: two neighbouring segments become one; the last is repeated where their number is odd."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(2 * d), nn.Linear(2 * d, d)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[T, N, S, d]`` to ``[T, N, (S + 1) // 2, d]``."""
        if tokens.shape[2] % 2:
            tokens = torch.cat([tokens, tokens[:, :, -1:]], dim=2)
        merged: Tensor = self.linear(self.norm(tokens.reshape(*tokens.shape[:2], -1, 2 * tokens.shape[3])))
        return merged


class DecoderLayer(nn.Module):
    """Section 3.3: two-stage attention, attention to one scale of the encoder, and that scale's forecast."""

    def __init__(self, config: NetworkConfig, *, segments: int, segment_frames: int) -> None:
        super().__init__()
        self.mix = TwoStageAttention(config, segments=segments)
        self.cross = _Attention(config)
        self.forecast = nn.Linear(config.d, segment_frames)

    def forward(self, tokens: Tensor, encoded: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens ``[T, N, S_out, d]`` for the next layer, and this layer's part of the forecast ``[T, N, outputs]``."""
        mixed = self.mix(tokens, valid)
        crossed = self.cross(mixed.flatten(0, 1), encoded.flatten(0, 1)).reshape(mixed.shape)
        return crossed, self.forecast(crossed).flatten(2)


class CrossformerSeries(nn.Module):
    """Dimension-segment-wise embedding, hierarchical encoder and decoder (figure 3), ``[T, N, frames]`` to
    ``[T, N, outputs]``. Segments have 16 frames, so the prefix patch is one; a logit is one segment of one number.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        d, neurons, segments = config.d, config.neurons, config.series_frames // PREFIX_FRAMES
        out_frames = min(PREFIX_FRAMES, config.outputs)
        out_segments = config.outputs // out_frames
        self.embed = nn.Linear(PREFIX_FRAMES, d)
        self.position = nn.Parameter(torch.randn(neurons, segments, d) * 0.02)
        self.norm = nn.LayerNorm(d)
        self.asked = nn.Parameter(torch.randn(neurons, out_segments, d) * 0.02)
        self.merging, self.encoder = nn.ModuleList(), nn.ModuleList()
        for layer in range(config.layers):
            if layer:
                self.merging.append(SegmentMerging(d))
                segments = (segments + 1) // 2
            self.encoder.append(TwoStageAttention(config, segments=segments))
        self.decoder = nn.ModuleList(
            DecoderLayer(config, segments=out_segments, segment_frames=out_frames) for _ in range(config.layers + 1)
        )

    def forward(self, series: Tensor, valid: Tensor) -> Tensor:
        """Embed, encode at every scale, decode from every scale; the scales' forecasts add up."""
        segments = series.reshape(*series.shape[:2], -1, PREFIX_FRAMES)
        tokens = self.norm(self.embed(segments) + self.position)
        scales = [tokens]
        for number, layer in enumerate(self.encoder):
            tokens = layer(self.merging[number - 1](tokens) if number else tokens, valid)
            scales.append(tokens)
        asked = self.asked.expand(len(series), -1, -1, -1)
        parts = []
        for decode, encoded in zip(self.decoder, scales, strict=True):
            asked, part = decode(asked, encoded, valid)
            parts.append(part)
        return torch.stack(parts).sum(0)


def crossformer(config: NetworkConfig) -> CompetitorNetwork:
    """Crossformer; our own code."""
    return CompetitorNetwork(config, CrossformerSeries(config), multivariate=True)
