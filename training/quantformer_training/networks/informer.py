"""Informer (Zhou et al. 2021): attention of the most telling queries only, of neuralforecast's layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantformer_training.networks.network import CompetitorNetwork, NetworkConfig, neuralforecast

#: The library's own default: sampled keys and kept queries, in logarithms of the length.
FACTOR = 3
#: Width of the feed-forward layers in multiples of d, as in `autoformer`.
FEEDFORWARD = 1
#: Seed of the keys that are sampled outside training.
_SEED = 0


class InformerSeries(nn.Module):
    """The library's encoder (with its distilling convolutions) and decoder, put together as its ``Informer`` does.

    Its attention samples keys at random. Outside training the sample is drawn from a seed of its own, so that a trained
    network answers the same question the same way.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        layers = neuralforecast("models.informer", title="Informer")
        common = neuralforecast("common._modules", title="Informer")
        self.outputs, self.label_frames = config.outputs, -(-config.series_frames // 2)
        d, dropout = config.d, config.dropout

        def attention(masked: bool) -> nn.Module:
            inner = layers.ProbAttention(masked, FACTOR, attention_dropout=dropout)
            made: nn.Module = common.AttentionLayer(inner, d, config.heads)
            return made

        shared = {"conv_hidden_size": FEEDFORWARD * d, "dropout": dropout, "activation": "gelu"}
        self.enc_embedding = common.DataEmbedding(1, 0, d, pos_embedding=True, dropout=dropout)
        self.dec_embedding = common.DataEmbedding(1, 0, d, pos_embedding=True, dropout=dropout)
        self.encoder = common.TransEncoder(
            [common.TransEncoderLayer(attention(False), d, **shared) for _ in range(config.layers)],
            [layers.ConvLayer(d) for _ in range(config.layers - 1)],
            norm_layer=nn.LayerNorm(d),
        )
        self.decoder = common.TransDecoder(
            [common.TransDecoderLayer(attention(True), attention(False), d, **shared)],
            norm_layer=nn.LayerNorm(d),
            projection=nn.Linear(d, 1),
        )

    def forward(self, series: Tensor) -> Tensor:
        """``[B, frames]`` to ``[B, outputs]``."""
        if self.training:
            return self._answer(series)
        devices = [series.device] if series.is_cuda else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(_SEED)
            return self._answer(series)

    def _answer(self, series: Tensor) -> Tensor:
        given = series[..., None]
        encoded, _ = self.encoder(self.enc_embedding(given))
        asked = torch.cat([given[:, -self.label_frames :], given.new_zeros(len(given), self.outputs, 1)], dim=1)
        decoded: Tensor = self.decoder(self.dec_embedding(asked), encoded)
        return decoded[:, -self.outputs :, 0]


def informer(config: NetworkConfig) -> CompetitorNetwork:
    """Informer.

    Raises:
        MissingExtraError: neuralforecast is not installed.
    """
    return CompetitorNetwork(config, InformerSeries(config))
