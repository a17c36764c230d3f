"""The transformer that encoder and decoder share: pre-norm, bidirectional attention, GELU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from quantformer.config import ModelConfig


class Block(nn.Module):
    """One layer: self-attention and a feed-forward network of four times the width, ``[B, P, d]`` to ``[B, P, d]``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(config.d)
        self.query_key_value = nn.Linear(config.d, 3 * config.d)
        self.attention_out = nn.Linear(config.d, config.d)
        self.feedforward_norm = nn.LayerNorm(config.d)
        self.expand = nn.Linear(config.d, 4 * config.d)
        self.contract = nn.Linear(4 * config.d, config.d)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, read: slice = slice(None)) -> Tensor:
        """Apply the layer; what follows attention only to the tokens ``read``."""
        return self.feed(self.attend(tokens)[:, read])

    def attend(self, tokens: Tensor) -> Tensor:
        """Self-attention with norm, dropout and residual."""
        if fuses(self, tokens):
            from quantformer.fused import Attend

            norm, project, out = self.attention_norm, self.query_key_value, self.attention_out
            attended: Tensor = Attend.apply(
                tokens, norm.weight, norm.bias, project.weight, project.bias, out.weight, out.bias, self.heads, norm.eps,
                self.dropout.p if self.training else 0.0,
            )  # fmt: skip
            return attended
        length, d = tokens.shape[1], tokens.shape[2]
        projected = self.query_key_value(self.attention_norm(tokens))
        query, key, value = (
            projected.reshape(-1, length, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        )
        mixed = (functional.scaled_dot_product_attention if tokens.device.type == "cpu" else attention)(query, key, value)
        mixed = mixed.transpose(1, 2).reshape(-1, length, d)
        result: Tensor = tokens + self.dropout(self.attention_out(mixed))
        return result

    def feed(self, tokens: Tensor) -> Tensor:
        """The feed-forward network with norm, dropout and residual."""
        if fuses(self, tokens):
            from quantformer.fused import FeedForward

            norm, into, back = self.feedforward_norm, self.expand, self.contract
            fed: Tensor = FeedForward.apply(
                tokens, norm.weight, norm.bias, into.weight, into.bias, back.weight, back.bias, norm.eps,
                self.dropout.p if self.training else 0.0,
            )  # fmt: skip
            return fed
        hidden = functional.gelu(self.expand(self.feedforward_norm(tokens)))
        result: Tensor = tokens + self.dropout(self.contract(hidden))
        return result


def fuses(block: Block, tokens: Tensor) -> bool:
    """Whether the kernels of `quantformer.fused` compute this layer: on a GPU under autocast to bfloat16."""
    if tokens.device.type != "cuda" or not torch.is_autocast_enabled("cuda"):
        return False
    d, length = tokens.shape[2], tokens.shape[1]
    return d & (d - 1) == 0 and 32 <= d <= 128 and d // block.heads >= 16 and length <= 64


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention as plain products, ``[B, heads, P, d / heads]`` each.

    For a GPU: its kernels of whole attention work in tiles of 64 tokens and more, of which a dozen fill one corner.
    """
    scores: Tensor = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    return scores.softmax(-1) @ value


class Transformer(nn.Module):
    """A stack of blocks with a final norm, ``[B, P, d]`` to the tokens ``read`` of it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.d)

    def forward(self, tokens: Tensor, read: slice = slice(None)) -> Tensor:
        """Apply all layers; ``read`` are the tokens that the caller wants."""
        *first, last = self.blocks
        for block in first:
            tokens = block(tokens)
        normed: Tensor = self.norm(last(tokens, read))
        return normed
