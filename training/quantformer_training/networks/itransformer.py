"""iTransformer (Liu et al. 2024): one token a neuron, attention among neurons, of neuralforecast's layers."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from quantformer_training.networks.network import CompetitorNetwork, NetworkConfig, attended, neuralforecast


class MaskedAttention(nn.Module):
    """Scaled dot-product attention to valid neurons only, in the place of the library's inner attention.

    The library's own is the same without a mask; the mask it takes is of time, not of series.
    """

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        attn_mask: Tensor,
        tau: Tensor | None = None,
        delta: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """``[T, N, heads, width]`` thrice and who may be attended to, bool ``[T, N]``; names and order are the library's."""
        query, key, value = (tensor.transpose(1, 2) for tensor in (queries, keys, values))
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attn_mask[:, None, None, :], dropout_p=self.dropout if self.training else 0.0
        )
        return mixed.transpose(1, 2).contiguous(), None


class ITransformerSeries(nn.Module):
    """Every neuron's series is a token; ``[T, N, frames]`` and ``[T, N]`` to ``[T, N, outputs]``."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        common = neuralforecast("common._modules", title="iTransformer")
        d, dropout = config.d, config.dropout
        self.embedding = common.DataEmbedding_inverted(config.series_frames, d, dropout)
        self.encoder = common.TransEncoder(
            [
                common.TransEncoderLayer(
                    common.AttentionLayer(MaskedAttention(dropout), d, config.heads),
                    d, 4 * d, dropout=dropout, activation="gelu",
                )
                for _ in range(config.layers)
            ],
            norm_layer=nn.LayerNorm(d),
        )  # fmt: skip
        self.projector = nn.Linear(d, config.outputs)

    def forward(self, series: Tensor, valid: Tensor) -> Tensor:
        """Embed each series, attend among them, map each token."""
        encoded, _ = self.encoder(self.embedding(series.transpose(1, 2), None), attn_mask=attended(valid))
        answer: Tensor = self.projector(encoded)
        return answer


def itransformer(config: NetworkConfig) -> CompetitorNetwork:
    """iTransformer.

    Raises:
        MissingExtraError: neuralforecast is not installed.
    """
    return CompetitorNetwork(config, ITransformerSeries(config), multivariate=True)
