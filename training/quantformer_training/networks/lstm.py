"""The paper's simplest competitor: a long short-term memory that reads the trace frame by frame."""

from __future__ import annotations

from torch import Tensor, nn

from quantformer_training.networks.network import CompetitorNetwork, NetworkConfig


class LSTMSeries(nn.Module):
    """A stack of LSTM layers of width d and a linear map of the last state, ``[B, frames]`` to ``[B, outputs]``.

    With torch's own beginning it has forgotten the prefix patch 96 frames later, and begins with the offset alone; gates that
    remember from the start learned worse (docs/competitors.md).
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        # torch warns of dropout between the layers of a single one.
        dropout = config.dropout if config.layers > 1 else 0.0
        self.recurrent = nn.LSTM(1, config.d, config.layers, batch_first=True, dropout=dropout)
        self.head = nn.Linear(config.d, config.outputs)

    def forward(self, series: Tensor) -> Tensor:
        """Read every frame, then answer."""
        states, _ = self.recurrent(series[..., None])
        answer: Tensor = self.head(states[:, -1])
        return answer


def lstm(config: NetworkConfig) -> CompetitorNetwork:
    """The LSTM; torch's own layer."""
    return CompetitorNetwork(config, LSTMSeries(config))
