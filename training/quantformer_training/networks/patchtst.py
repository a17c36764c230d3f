"""PatchTST (Nie et al. 2023): a transformer over overlapping patches of one series, neuralforecast's backbone."""

from __future__ import annotations

from torch import Tensor, nn

from quantformer_training.networks.network import PREFIX_FRAMES, CompetitorNetwork, NetworkConfig, neuralforecast

#: Frames between two patches; with patches as long as the prefix, the first patch is the prefix alone.
STRIDE = 8


class PatchTSTSeries(nn.Module):
    """The library's backbone without its reversible normalisation, ``[B, frames]`` to ``[B, outputs]``."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        library = neuralforecast("models.patchtst", title="PatchTST")
        self.backbone = library.PatchTST_backbone(
            c_in=1, c_out=1, input_size=config.series_frames, h=config.outputs, patch_len=PREFIX_FRAMES, stride=STRIDE,
            n_layers=config.layers, hidden_size=config.d, n_heads=config.heads, linear_hidden_size=4 * config.d,
            dropout=config.dropout, padding_patch="end", revin=False,
        )  # fmt: skip

    def forward(self, series: Tensor) -> Tensor:
        """Patch, encode, flatten, map."""
        answer: Tensor = self.backbone(series[:, None])
        return answer[:, 0]


def patchtst(config: NetworkConfig) -> CompetitorNetwork:
    """PatchTST.

    Raises:
        MissingExtraError: neuralforecast is not installed.
    """
    return CompetitorNetwork(config, PatchTSTSeries(config))
