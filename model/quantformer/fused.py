"""Half a transformer layer, and a norm, as one kernel each, forward and backward: what happens inside stays on the chip.

A layer of this size is bound by memory when each of its operations is a kernel: norm, products, attention, GELU, dropout and
residual of a tile of tokens are computed where the tile is (`quantformer.kernels`), the backward pass computes them again, and
only what the weights' gradients need is written. `quantformer.layers` asks for it on a GPU under autocast to bfloat16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
from torch import Tensor, nn
from torch.autograd import Function

from quantformer import kernels

if TYPE_CHECKING:
    from quantformer.layers import Block

#: Tokens of a tile, hidden units at a time, warps and stages of each kernel: the quickest of a dozen on an H200.
_FEED = {"TILE": 64, "CHUNK": 64, "num_warps": 4, "num_stages": 3}
_FEED_BACK = {"TILE": 64, "CHUNK": 64, "num_warps": 4, "num_stages": 2}
_ATTEND = {"TILE": 64, "num_warps": 4, "num_stages": 3, "maxnreg": 168}
_ATTEND_BACK = {"TILE": 64, "num_warps": 4, "num_stages": 3}
_NORM = {"TILE": 32, "num_warps": 4}
#: What products are computed in.
NARROW = torch.bfloat16


def _dropped(dropout: float) -> dict[str, Any]:
    """Seed and threshold of a new draw of dropout, from torch's generator on the CPU."""
    seed = int(torch.randint(0, 1 << 31, ())) if dropout else 0
    return {"seed": seed, "threshold": round(dropout * (1 << 32)), "keep": 1.0 / (1.0 - dropout), "DROP": dropout > 0.0}


def _room(weights: bool, shapes: tuple[tuple[int, ...], ...], *, like: Tensor) -> tuple[Tensor, ...]:
    """For what the weights' gradients are made of; where they are not asked for, nothing is written."""
    return tuple(like.new_empty(shape, dtype=NARROW) for shape in shapes) if weights else (like,) * len(shapes)


def attend(block: Block, tokens: Tensor) -> Tensor:
    """The first half of a layer, ``[B, P, d]`` in the tokens' type."""
    norm, project, out = block.attention_norm, block.query_key_value, block.attention_out
    attended: Tensor = Attend.apply(  # type: ignore[no-untyped-call]  # torch's own
        tokens, norm.weight, norm.bias, project.weight, project.bias, out.weight, out.bias, block.heads, norm.eps,
        block.dropout.p if block.training else 0.0,
    )  # fmt: skip
    return attended


def feed(block: Block, tokens: Tensor) -> Tensor:
    """The second half of a layer, ``[..., d]`` in the tokens' type."""
    norm, into, back = block.feedforward_norm, block.expand, block.contract
    fed: Tensor = FeedForward.apply(  # type: ignore[no-untyped-call]  # torch's own
        tokens, norm.weight, norm.bias, into.weight, into.bias, back.weight, back.bias, norm.eps,
        block.dropout.p if block.training else 0.0,
    )  # fmt: skip
    return fed


def normed(norm: nn.LayerNorm, tokens: Tensor) -> Tensor:
    """A layer norm, ``[..., d]`` in the tokens' type."""
    answer: Tensor = Norm.apply(tokens, norm.weight, norm.bias, norm.eps)  # type: ignore[no-untyped-call]  # torch's own
    return answer


class Norm(Function):
    """A layer norm, ``[..., d]``; the result has the tokens' type."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Keep the tokens."""
        tokens = tokens.contiguous()
        d = len(gain)
        n, out = tokens.numel() // d, torch.empty_like(tokens)
        kernels.norm[(triton.cdiv(n, _NORM["TILE"]),)](tokens, gain, bias, out, n, D=d, EPS=eps, **_NORM)
        ctx.eps = eps
        ctx.save_for_backward(tokens, gain)
        return out

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        """Of tokens, gain and bias."""
        tokens, gain = ctx.saved_tensors
        (slope,) = slopes
        d, weights = len(gain), any(ctx.needs_input_grad[1:])
        n = tokens.numel() // d
        programs = triton.cdiv(n, _NORM["TILE"])
        back = torch.empty_like(tokens)
        sums = gain.new_empty((programs, 2 * d)) if weights else gain
        kernels.norm_back[(programs,)](
            tokens, gain, slope.contiguous(), back, sums, n, D=d, EPS=ctx.eps, WEIGHTS=weights, **_NORM
        )
        return back, *(sums.sum(0).split(d) if weights else (None, None)), None


class FeedForward(Function):
    """``tokens + dropout(contract(gelu(expand(norm(tokens)))))``, ``[..., d]``."""

    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, gain: Tensor, bias: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
        eps: float, dropout: float,
    ) -> Tensor:  # fmt: skip
        """Keep the tokens and the weights in `NARROW`."""
        tokens = tokens.contiguous()
        d, hidden = w2.shape
        n, out = tokens.numel() // d, torch.empty_like(tokens)
        w1, w2 = w1.to(NARROW), w2.to(NARROW)
        ctx.dropped, ctx.eps = _dropped(dropout), eps
        kernels.feed_forward[(triton.cdiv(n, _FEED["TILE"]),)](
            tokens, gain, bias, w1, b1, w2, b2, out, n, D=d, H=hidden, EPS=eps, **ctx.dropped, **_FEED
        )
        ctx.save_for_backward(tokens, gain, bias, w1, b1, w2)
        return out

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        """Of tokens, and of all weights or of none."""
        tokens, gain, bias, w1, b1, w2 = ctx.saved_tensors
        (slope,) = slopes
        d, hidden = w2.shape
        n, weights = tokens.numel() // d, any(ctx.needs_input_grad[1:])
        programs = triton.cdiv(n, _FEED_BACK["TILE"])
        kept = _room(weights, ((n, d), (n, d), (n, hidden), (n, hidden)), like=tokens)
        sums = gain.new_empty((programs, 2 * d + hidden)) if weights else gain
        back = torch.empty_like(tokens)
        kernels.feed_forward_back[(programs,)](
            tokens, gain, bias, w1, b1, w2, slope.contiguous(), back, *kept, sums, n, D=d, H=hidden, EPS=ctx.eps,
            WEIGHTS=weights, **ctx.dropped, **_FEED_BACK,
        )  # fmt: skip
        if not weights:
            return back, *(None,) * 8
        normed, dy, a, dh = kept
        db2, dgain, db1 = sums.sum(0).split((d, d, hidden))
        # The norm's bias does what expand's does, through expand's weights.
        dbias = db1 @ w1.float()
        return back, dgain, dbias, (dh.T @ normed).float(), db1, (dy.T @ a).float(), db2, None, None


class Attend(Function):
    """``tokens + dropout(out(attention(norm(tokens))))``, ``[B, P, d]``."""

    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, gain: Tensor, bias: Tensor, wqkv: Tensor, bqkv: Tensor, wo: Tensor, bo: Tensor,
        heads: int, eps: float, dropout: float,
    ) -> Tensor:  # fmt: skip
        """Keep the tokens and the weights in `NARROW`."""
        tokens = tokens.contiguous()
        batch, length, d = tokens.shape
        out = torch.empty_like(tokens)
        wqkv, wo = wqkv.to(NARROW), wo.to(NARROW)
        ctx.dropped, ctx.eps, ctx.heads = _dropped(dropout), eps, heads
        kernels.attend[(triton.cdiv(batch, _ATTEND["TILE"] // length),)](
            tokens, gain, bias, wqkv, bqkv, wo, bo, out, batch * length, LENGTH=length, D=d, HEADS=heads,
            SCALE=(d // heads) ** -0.5, EPS=eps, **ctx.dropped, **_ATTEND,
        )  # fmt: skip
        ctx.save_for_backward(tokens, gain, bias, wqkv, bqkv, wo)
        return out

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        """Of tokens, and of all weights or of none."""
        tokens, gain, bias, wqkv, bqkv, wo = ctx.saved_tensors
        (slope,) = slopes
        batch, length, d = tokens.shape
        n, weights = batch * length, any(ctx.needs_input_grad[1:])
        programs = triton.cdiv(batch, _ATTEND_BACK["TILE"] // length)
        kept = _room(weights, ((n, d), (n, d), (n, d), (n, 3 * d)), like=tokens)
        sums = gain.new_empty((programs, 5 * d)) if weights else gain
        back = torch.empty_like(tokens)
        kernels.attend_back[(programs,)](
            tokens, gain, bias, wqkv, bqkv, wo, slope.contiguous(), back, *kept, sums, n, LENGTH=length, D=d,
            HEADS=ctx.heads, SCALE=(d // ctx.heads) ** -0.5, EPS=ctx.eps, WEIGHTS=weights, **ctx.dropped, **_ATTEND_BACK,
        )  # fmt: skip
        if not weights:
            return back, *(None,) * 9
        normed, dy, mixed, dqkv = kept
        dbo, dgain, dbqkv = sums.sum(0).split((d, d, 3 * d))
        dbias = dbqkv @ wqkv.float()
        return back, dgain, dbias, (dqkv.T @ normed).float(), dbqkv, (dy.T @ mixed).float(), dbo, None, None, None
