"""The transformer that encoder and decoder share: pre-norm, bidirectional attention, GELU."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import _get_current_dispatch_mode

from quantformer.config import ModelConfig

_log = logging.getLogger(__name__)

#: Numbers a head that `quantformer.cpu_kernels` are made for: every preset's.
LENT_WIDTH = 16
_ALONE = ContextVar("torch alone", default=False)


@contextmanager
def torch_alone() -> Iterator[None]:
    """For the time of the block, in this thread, layers on a CPU are torch's own operations: what others are measured against."""
    before = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(before)


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
        if self.lends(tokens):
            from quantformer import cpu_layers

            return cpu_layers.layer(self, tokens.transpose(0, 1), read).transpose(0, 1)
        return self.feed(self.attend(tokens)[:, read])

    def attend(self, tokens: Tensor) -> Tensor:
        """Self-attention with norm, dropout and residual."""
        if fuses(tokens, heads=self.heads):
            from quantformer import fused

            return fused.attend(self, tokens)
        length, d = tokens.shape[1], tokens.shape[2]
        projected = self.query_key_value(self.attention_norm(tokens))
        query, key, value = (
            projected.reshape(-1, length, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        )
        mixed = (functional.scaled_dot_product_attention if tokens.device.type == "cpu" else attention)(
            query, key, value
        )
        mixed = mixed.transpose(1, 2).reshape(-1, length, d)
        result: Tensor = tokens + self.dropout(self.attention_out(mixed))
        return result

    def feed(self, tokens: Tensor) -> Tensor:
        """The feed-forward network with norm, dropout and residual."""
        if fuses(tokens, heads=self.heads):
            from quantformer import fused

            return fused.feed(self, tokens)
        hidden = functional.gelu(self.expand(self.feedforward_norm(tokens)))
        result: Tensor = tokens + self.dropout(self.contract(hidden))
        return result

    def lends(self, tokens: Tensor) -> bool:
        """Whether `quantformer.cpu_layers` computes the layer of these tokens ``[B, P, d]``: on a CPU, in float32, or under
        autocast to bfloat16, where products alone are. Who listens to single operations hears torch's own: then no.
        """
        if tokens.device.type != "cpu" or tokens.dtype != torch.float32:
            return False
        if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") != torch.bfloat16:
            return False
        if tokens.shape[-1] // self.heads != LENT_WIDTH or _get_current_dispatch_mode() is not None:
            return False
        return not _ALONE.get() and not torch.compiler.is_compiling() and _loops_compile()


def fuses(tokens: Tensor, *, heads: int) -> bool:
    """Whether `quantformer.fused` computes layers of these tokens ``[B, P, d]``: under autocast to bfloat16, on a GPU that it
    runs on, in sizes that it knows. Who listens to single operations hears them all: then no.
    """
    if tokens.device.type != "cuda" or not torch.is_autocast_enabled("cuda"):
        return False
    if torch.get_autocast_dtype("cuda") != torch.bfloat16 or _get_current_dispatch_mode() is not None:
        return False
    return knows(tokens.shape, heads=heads) and _runs_on(tokens.device)


@cache
def _loops_compile() -> bool:
    """Without numba, or where it finds no directory to keep what it compiled, layers are torch's own operations."""
    if find_spec("numba") is None:
        return False
    try:
        importlib.import_module("quantformer.cpu_layers")
    except RuntimeError as error:
        _log.warning(
            "training runs at its slower pace: %s; set NUMBA_CACHE_DIR to a directory that can be written", error
        )
        return False
    return True


def knows(shape: torch.Size, *, heads: int) -> bool:
    """Whether the kernels are made for tokens ``[B, P, d]`` of ``heads`` heads; they count in 32 bits."""
    batch, length, d = shape
    power_of_two = d & (d - 1) == 0
    return power_of_two and 32 <= d <= 128 and d // heads >= 16 and length <= 64 and batch * length * 4 * d < 1 << 31


@cache
def _runs_on(device: torch.device) -> bool:
    """Triton comes with torch's builds for CUDA; a tile and its weights want 112 KiB of a processor's own memory. And then
    the kernels have to agree with the layers there.
    """
    room = torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor
    if find_spec("triton") is None or not torch.cuda.is_bf16_supported() or room < 160 * 1024:
        return False
    from quantformer.fused_proof import agree

    return agree(device)


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
        self.heads = config.heads
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.d)

    def forward(self, tokens: Tensor, read: slice = slice(None)) -> Tensor:
        """Apply all layers; ``read`` are the tokens that the caller wants."""
        *first, last = self.blocks
        if isinstance(last, Block) and last.lends(tokens):
            return self._lent(tokens, read)
        fuse = fuses(tokens, heads=self.heads)
        if fuse:
            # Between its kernels too: they are quick enough to wait for memory.
            tokens = tokens.to(torch.bfloat16)
        for block in first:
            tokens = block(tokens)
        tokens = last(tokens, read)
        if fuse:
            from quantformer import fused

            return fused.normed(self.norm, tokens)
        normed: Tensor = self.norm(tokens)
        return normed

    def _lent(self, tokens: Tensor, read: slice) -> Tensor:
        """By `quantformer.cpu_layers`, with tokens turned once for all layers."""
        from quantformer import cpu_layers

        tokens = tokens.transpose(0, 1).contiguous()
        for number, block in enumerate(self.blocks, start=1):
            assert isinstance(block, Block)
            tokens = cpu_layers.layer(block, tokens, read if number == len(self.blocks) else slice(None))
        normed: Tensor = self.norm(tokens)
        return normed.transpose(0, 1)
