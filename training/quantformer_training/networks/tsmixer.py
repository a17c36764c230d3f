"""TSMixer (Chen et al. 2023): multilayer perceptrons across time and across neurons in turn, neuralforecast's layers."""

from __future__ import annotations

from torch import Tensor, nn

from quantformer_training.networks.network import CompetitorNetwork, NetworkConfig, neuralforecast


class TSMixerSeries(nn.Module):
    """The library's mixing layers and a linear map over time, ``[T, N, frames]`` to ``[T, N, outputs]``.

    Its weights belong to neurons by place. A neuron that is not valid enters as zeros, which is what masking can be here.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        library = neuralforecast("models.tsmixer", title="TSMixer")
        self.layers = nn.Sequential(
            *(
                library.MixingLayer(
                    n_series=config.neurons, input_size=config.series_frames, dropout=config.dropout, ff_dim=config.d
                )
                for _ in range(config.layers)
            )
        )
        self.head = nn.Linear(config.series_frames, config.outputs)

    def forward(self, series: Tensor, valid: Tensor) -> Tensor:
        """Mix, then map; invalid series come as zeros."""
        answer: Tensor = self.head(self.layers(series.transpose(1, 2)).transpose(1, 2))
        return answer


def tsmixer(config: NetworkConfig) -> CompetitorNetwork:
    """TSMixer.

    Raises:
        MissingExtraError: neuralforecast is not installed.
    """
    return CompetitorNetwork(config, TSMixerSeries(config), multivariate=True)
