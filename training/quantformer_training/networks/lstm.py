"""The paper's simplest competitor: a long short-term memory that reads the trace frame by frame."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantformer_training.networks.network import CompetitorNetwork, NetworkConfig


class LSTMSeries(nn.Module):
    """A stack of LSTM layers of width d and a linear map of the last state, ``[B, frames]`` to ``[B, outputs]``."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        # torch warns of dropout between the layers of a single one.
        dropout = config.dropout if config.layers > 1 else 0.0
        self.recurrent = nn.LSTM(1, config.d, config.layers, batch_first=True, dropout=dropout)
        self.head = nn.Linear(config.d, config.outputs)
        _remember(self.recurrent, frames=config.series_frames)

    def forward(self, series: Tensor) -> Tensor:
        """Read every frame, then answer."""
        states, _ = self.recurrent(series[..., None])
        answer: Tensor = self.head(states[:, -1])
        return answer


def _remember(recurrent: nn.LSTM, *, frames: int) -> None:
    """Chrono initialisation (Tallec and Ollivier 2018): forget gates open for up to ``frames`` steps.

    With torch's own, half of the state is gone after a frame, and of the prefix patch nothing reaches the answer.
    """
    d = recurrent.hidden_size
    with torch.no_grad():
        for layer in range(recurrent.num_layers):
            into, again = getattr(recurrent, f"bias_ih_l{layer}"), getattr(recurrent, f"bias_hh_l{layer}")
            # torch keeps the gates in the order input, forget, cell, output.
            into[d : 2 * d] = torch.empty(d).uniform_(1.0, frames - 1.0).log()
            into[:d] = -into[d : 2 * d]
            again[: 2 * d] = 0.0


def lstm(config: NetworkConfig) -> CompetitorNetwork:
    """The LSTM; torch's own layer."""
    return CompetitorNetwork(config, LSTMSeries(config))
