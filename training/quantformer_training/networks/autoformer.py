"""Autoformer (Wu et al. 2021): series decomposition and auto-correlation, of neuralforecast's layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantformer_training.networks.network import CompetitorNetwork, NetworkConfig, neuralforecast

#: The library's own default.
MOVING_AVERAGE = 25
#: How many delays count, in logarithms of the length: the paper takes 1 to 3, and the cost is in proportion.
FACTOR = 1
#: Width of the feed-forward layers in multiples of d: the paper takes 4, the library 1/4. Every frame is a token here, 112
#: where a network of patches has 7, and training is slow enough.
FEEDFORWARD = 1


class AutoformerSeries(nn.Module):
    """The library's encoder and decoder, put together as its ``Autoformer`` does, without its trainer.

    The decoder starts from the last half of the series and gives ``outputs`` further frames; for a logit, one.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        layers = neuralforecast("models.autoformer", title="Autoformer")
        common = neuralforecast("common._modules", title="Autoformer")
        self.outputs, self.label_frames = config.outputs, -(-config.series_frames // 2)
        d, dropout = config.d, config.dropout

        def correlation(masked: bool) -> nn.Module:
            inner = layers.AutoCorrelation(masked, FACTOR, attention_dropout=dropout)
            made: nn.Module = layers.AutoCorrelationLayer(inner, d, config.heads)
            return made

        shared = {"conv_hidden_size": FEEDFORWARD * d, "MovingAvg": MOVING_AVERAGE, "dropout": dropout, "activation": "gelu"}
        self.decomp = common.SeriesDecomp(MOVING_AVERAGE)
        self.enc_embedding = common.DataEmbedding(1, 0, d, pos_embedding=False, dropout=dropout)
        self.dec_embedding = common.DataEmbedding(1, 0, d, pos_embedding=False, dropout=dropout)
        self.encoder = layers.Encoder(
            [layers.EncoderLayer(correlation(False), hidden_size=d, **shared) for _ in range(config.layers)],
            norm_layer=layers.LayerNorm(d),
        )
        self.decoder = layers.Decoder(
            [layers.DecoderLayer(correlation(True), correlation(False), hidden_size=d, c_out=1, **shared)],
            norm_layer=layers.LayerNorm(d),
            projection=nn.Linear(d, 1),
        )

    def forward(self, series: Tensor) -> Tensor:
        """``[B, frames]`` to ``[B, outputs]``."""
        given = series[..., None]
        future = given.new_zeros(len(given), self.outputs, 1)
        seasonal, trend = self.decomp(given)
        trend = torch.cat([trend[:, -self.label_frames :], future + given.mean(1, keepdim=True)], dim=1)
        seasonal = torch.cat([seasonal[:, -self.label_frames :], future], dim=1)
        encoded, _ = self.encoder(self.enc_embedding(given))
        seasonal, trend = self.decoder(self.dec_embedding(seasonal), encoded, trend=trend)
        answer: Tensor = (seasonal + trend)[:, -self.outputs :, 0]
        return answer


def autoformer(config: NetworkConfig) -> CompetitorNetwork:
    """Autoformer.

    Raises:
        MissingExtraError: neuralforecast is not installed.
    """
    return CompetitorNetwork(config, AutoformerSeries(config))
