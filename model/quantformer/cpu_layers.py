"""A layer on a CPU, with gradients: torch's products, and the loops of `quantformer.cpu_kernels` between them.

`quantformer.layers` asks for them in float32, or under autocast to bfloat16, where the products alone are in it; they answer and
learn as torch's own operations do, to float32's rounding. The rows are cut among as many threads as torch uses, and what comes
out hangs on how many those are in the rounding of sums only.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from quantformer import cpu_kernels as kernels

if TYPE_CHECKING:
    from quantformer.layers import Block

Part = TypeVar("Part")


def layer(block: Block, tokens: Tensor, read: slice = slice(None)) -> Tensor:
    """A layer of tokens ``[P, B, d]``, what follows attention only of the tokens ``read``.

    With the sequences innermost in what attention is given and gives, its loops find side by side what they take at once.
    """
    length, batch, d = tokens.shape
    rows = tokens.reshape(-1, d)
    project, out, expand, contract = block.query_key_value, block.attention_out, block.expand, block.contract
    projected = _product(project.weight, block.attention_norm(rows).t()).view(3 * d, length, batch)
    mixed = Attention.apply(projected, project.bias, block.heads)  # type: ignore[no-untyped-call]  # torch's own
    rows = _added(block, rows, _product(mixed.view(d, -1).t(), out.weight.t()), out.bias)
    chosen = rows.view(length, batch, d)[read]
    rows = chosen.reshape(-1, d)
    expanded = _product(block.feedforward_norm(rows), expand.weight.t())
    hidden = Gelu.apply(expanded, expand.bias)  # type: ignore[no-untyped-call]  # torch's own
    return _added(block, rows, _product(hidden, contract.weight.t()), contract.bias).view(chosen.shape)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """In float32, in whatever precision it was computed: under autocast in bfloat16."""
    return (left @ right).float()


def _added(block: Block, tokens: Tensor, update: Tensor, bias: Tensor) -> Tensor:
    dropout = block.dropout.p if block.training else 0.0
    added: Tensor = Added.apply(tokens, update, bias, dropout)  # type: ignore[no-untyped-call]  # torch's own
    return added


class Attention(Function):
    """Queries, keys and values ``[3 d, P, B]``, before their bias, to the attended values ``[d, P, B]``."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor, bias: Tensor, heads: int) -> Tensor:
        """Keep what was given; the weights are computed again on the way back."""
        projected = projected.contiguous()
        width, length, batch = projected.shape
        mixed = projected.new_empty((width // 3, length, batch))
        given, added, found = (one.detach().numpy() for one in (projected, bias, mixed))
        _spread(batch, lambda begin, end: kernels.attend(given, added, heads, begin, end, found))
        ctx.heads = heads
        ctx.save_for_backward(projected, bias)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        """Of what was given, and of the bias."""
        projected, bias = ctx.saved_tensors
        back, heads = torch.empty_like(projected), ctx.heads
        given, added, slope, found = (one.detach().numpy() for one in (projected, bias, slopes[0].contiguous(), back))
        _spread(given.shape[2], lambda begin, end: kernels.attend_back(given, added, slope, heads, begin, end, found))
        return back, back.sum((1, 2)), None


class Gelu(Function):
    """GELU of ``given`` ``[..., n]`` plus ``bias`` ``[n]``, in the place of ``given``; `kernels.CHUNK` divides ``n``."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, bias: Tensor) -> Tensor:
        """Keep the derivative, which costs next to nothing beside the answer."""
        derivative = torch.empty_like(given)
        x, added, slope = (_chunks(one) for one in (given, bias, derivative))
        _spread(len(x), lambda begin, end: kernels.gelu(x, added, begin, end, slope))
        ctx.derivative = derivative
        ctx.mark_dirty(given)
        return given

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        """Of what was given, and of the bias; once, for the derivative's place is taken."""
        back, ctx.derivative = ctx.derivative, None
        slope, change = _chunks(slopes[0].contiguous()), _chunks(back)

        def work(begin: int, end: int) -> Tensor:
            total = torch.zeros(back.shape[-1])
            kernels.gelu_back(slope, begin, end, change, _chunks(total))
            return total

        return back, torch.stack(_spread(len(slope), work)).sum(0)


class Added(Function):
    """``tokens`` plus what dropout leaves of ``update`` plus ``bias``, ``[..., d]``, in the place of ``update``. No mask is kept:
    its seeds are.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, update: Tensor, bias: Tensor, dropout: float) -> Tensor:
        """Draw the seeds from torch's generator."""
        seeds = torch.randint(0, 1 << 32, (2,)).numpy().astype(np.uint32) if dropout else np.zeros(2, np.uint32)
        threshold = round(dropout * (1 << 32))
        given, new, added = _rows(tokens.contiguous(), len(bias)), _rows(update, len(bias)), bias.detach().numpy()
        _spread(len(given), lambda begin, end: kernels.add(given, new, added, seeds, threshold, begin, end))
        ctx.seeds, ctx.threshold = seeds, threshold
        ctx.mark_dirty(update)
        return update

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        """Of tokens, update and bias."""
        slope = slopes[0].contiguous()
        back, seeds, threshold, d = torch.empty_like(slope), ctx.seeds, ctx.threshold, slope.shape[-1]
        given, found = _rows(slope, d), _rows(back, d)

        def work(begin: int, end: int) -> Tensor:
            total = torch.zeros(d)
            kernels.add_back(given, seeds, threshold, begin, end, found, total.numpy())
            return total

        return slope, back, torch.stack(_spread(len(given), work)).sum(0), None


def _chunks(tensor: Tensor) -> NDArray[np.float32]:
    return _rows(tensor, kernels.CHUNK)


def _rows(tensor: Tensor, width: int) -> NDArray[np.float32]:
    """Its very memory, ``[n, width]``; never a copy, into which nothing could be written."""
    rows: NDArray[np.float32] = tensor.detach().view(-1, width).numpy()
    return rows


def _spread(count: int, work: Callable[[int, int], Part]) -> list[Part]:
    """What comes of a part of ``count`` in each of torch's threads."""
    threads = torch.get_num_threads()
    if threads == 1:
        return [work(0, count)]
    cuts = np.linspace(0, count, threads + 1).astype(int).tolist()
    return list(_pool(threads, os.getpid()).map(work, cuts[:-1], cuts[1:]))


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Of this very process: a forked one has no threads of its parent's."""
    return ThreadPoolExecutor(threads, thread_name_prefix=f"cpu-layers-{process}")
