"""The network arranged for a runtime: the same answers from less work, in operations that runtimes fuse.

The last layer of each transformer is computed only for the tokens that are read: [CLS] of the activation network, all but
[NEURON] and [STIM] of the response network, the response of the decoder. Tokens lie in one ``[B * P, d]`` array, so that
every linear map is one matrix product with its bias; queries, keys and values are products of their own, whose results need
no splitting; the scale of attention is folded into the queries' weights.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from quantformer.forecaster import ActivationNetwork, Forecaster, ResponseNetwork
from quantformer.layers import Block, Transformer


class LeanBlock(nn.Module):
    """A `Block` on the tokens ``[B * length, d]``, computed for the tokens ``read`` of each row."""

    def __init__(self, block: Block, *, length: int, read: range) -> None:
        super().__init__()
        self.length, self.read, self.heads = length, read, block.heads
        self.attention_norm, self.attention_out = block.attention_norm, block.attention_out
        self.feedforward_norm, self.expand, self.contract = block.feedforward_norm, block.expand, block.contract
        d = block.attention_out.in_features
        self.query, self.key, self.value = (nn.Linear(d, d) for _ in range(3))
        weights, biases = block.query_key_value.weight.chunk(3), block.query_key_value.bias.chunk(3)
        with torch.no_grad():
            for linear, weight, bias in zip((self.query, self.key, self.value), weights, biases, strict=True):
                linear.weight.copy_(weight)
                linear.bias.copy_(bias)
            for parameter in self.query.parameters():
                parameter.mul_((d // block.heads) ** -0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B * length, d]`` to ``[B * len(read), d]``."""
        d = tokens.shape[-1]
        normed = self.attention_norm(tokens)
        key = self._by_head(self.key(normed), self.length).permute(0, 2, 3, 1)
        value = self._by_head(self.value(normed), self.length).transpose(1, 2)
        tokens, normed = self._chosen(tokens), self._chosen(normed)
        query = self._by_head(self.query(normed), len(self.read)).transpose(1, 2)
        mixed = (query @ key).softmax(-1) @ value
        tokens = tokens + self.attention_out(mixed.transpose(1, 2).reshape(-1, d))
        hidden = functional.gelu(self.expand(self.feedforward_norm(tokens)))
        result: Tensor = tokens + self.contract(hidden)
        return result

    def _by_head(self, projected: Tensor, length: int) -> Tensor:
        return projected.reshape(-1, length, self.heads, projected.shape[-1] // self.heads)

    def _chosen(self, tokens: Tensor) -> Tensor:
        if len(self.read) == self.length:
            return tokens
        d = tokens.shape[-1]
        return tokens.reshape(-1, self.length, d)[:, self.read.start : self.read.stop].reshape(-1, d)


class LeanTransformer(nn.Module):
    """A `Transformer` of ``length`` tokens of which only ``read`` are wanted, ``[B, P, d]`` to ``[B, len(read), d]``."""

    def __init__(self, transformer: Transformer, *, length: int, read: slice) -> None:
        super().__init__()
        self.read, self.wanted = read, range(length)[read]
        last = len(transformer.blocks) - 1
        self.blocks = nn.ModuleList()
        for number, block in enumerate(transformer.blocks):
            assert isinstance(block, Block)
            kept = self.wanted if number == last else range(length)
            self.blocks.append(LeanBlock(block, length=length, read=kept))
        self.norm = transformer.norm

    def forward(self, tokens: Tensor, read: slice) -> Tensor:
        """Apply all layers; ``read`` is what the caller wants, and must be what this was made for."""
        assert read == self.read, f"made for the tokens {self.read}, asked for {read}"
        d = tokens.shape[-1]
        tokens = tokens.reshape(-1, d)
        for block in self.blocks:
            tokens = block(tokens)
        normed: Tensor = self.norm(tokens)
        return normed.reshape(-1, len(self.wanted), d)


def lean(forecaster: Forecaster) -> Forecaster:
    """A copy for inference, with its three transformers arranged anew."""
    made = copy.deepcopy(forecaster).eval()
    for holder, length, read in transformers_of(made):
        setattr(holder, "transformer", LeanTransformer(holder.transformer, length=length, read=read))  # noqa: B010
    return made


def transformers_of(forecaster: Forecaster) -> tuple[tuple[Any, int, slice], ...]:
    """What holds a ``transformer`` (both encoders and the decoder), how many tokens that is given and which are read of it."""
    config = forecaster.config
    return (
        (forecaster.activation.encoder, 3 + config.baseline_patches, ActivationNetwork.READ),
        (forecaster.response.encoder, 2 + config.patches, ResponseNetwork.READ),
        (forecaster.teacher.decoder, config.patches, slice(config.baseline_patches, None)),
    )
