"""Half a transformer layer as one kernel, forward and backward: what happens inside a layer stays on the chip.

A layer of this size is bound by memory, not by arithmetic: norm, products, attention, GELU, dropout and residual of a tile of
tokens are computed where the tile is, the backward pass computes them again, and only what the weights' gradients need is
written. Products are in bfloat16 with float32 sums, everything else is in float32, as under autocast.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _kept(index, seed, threshold):
    """Whether dropout keeps the elements at ``index``: a hash of it and the seed, uniform in 32 bits."""
    x = index.to(tl.uint32) * 0x9E3779B1 + seed.to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    x = (x ^ (x >> 16)) + seed.to(tl.uint32) * 0x85EBCA6B
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = x ^ (x >> 15)
    return x >= threshold.to(tl.uint32)


@triton.jit
def _gelu(h):
    """GELU and its slope."""
    bell = tl.exp2(h * h * -0.7213475204444817)
    # The normal distribution's tail, Abramowitz and Stegun 7.1.26: within 1.5e-7.
    t = 1.0 / (1.0 + 0.23164189 * tl.abs(h))
    tail = t * (0.127414796 + t * (-0.142248368 + t * (0.7107068705 + t * (-0.7265760135 + t * 0.5307027145)))) * bell
    cdf = tl.where(h >= 0, 1.0 - tail, tail)
    return h * cdf, cdf + h * bell * 0.3989422804014327


@triton.jit
def _normed(x, gain, bias, EPS: tl.constexpr, D: tl.constexpr):
    centred = x - tl.sum(x, 1)[:, None] / D
    scale = tl.rsqrt(tl.sum(centred * centred, 1) / D + EPS)
    hat = centred * scale[:, None]
    return hat, scale, hat * gain[None, :] + bias[None, :]


@triton.jit
def _through_norm(slope, hat, scale, gain, D: tl.constexpr):
    """The gradient at a norm's input from ``slope`` at its output."""
    g = slope * gain[None, :]
    return scale[:, None] * (g - tl.sum(g, 1)[:, None] / D - hat * (tl.sum(g * hat, 1)[:, None] / D))


@triton.jit(do_not_specialize=["n", "seed", "threshold"])
def _feed_forward(
    tokens, gain, bias, w1, b1, w2, b2, out, n, seed, threshold, keep,
    D: tl.constexpr, H: tl.constexpr, EPS: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    NARROW: tl.constexpr = w1.dtype.element_ty
    row, column = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.arange(0, D)
    inside, at = (row < n)[:, None], row[:, None] * D + column[None, :]
    x = tl.load(tokens + at, mask=inside, other=0.0).to(tl.float32)
    hat, scale, normed = _normed(x, tl.load(gain + column), tl.load(bias + column), EPS, D)
    normed = normed.to(NARROW)
    total = tl.zeros([TILE, D], tl.float32)
    for start in range(0, H, CHUNK):
        hidden = start + tl.arange(0, CHUNK)
        into = tl.load(w1 + hidden[None, :] * D + column[:, None])
        back = tl.load(w2 + column[None, :] * H + hidden[:, None])
        h = tl.dot(normed, into) + tl.load(b1 + hidden)[None, :]
        a, slope = _gelu(h)
        total = tl.dot(a.to(NARROW), back, total)
    total += tl.load(b2 + column)[None, :]
    if DROP:
        total = tl.where(_kept(at, seed, threshold), total * keep, 0.0)
    x = tl.load(tokens + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, x + total, mask=inside)


@triton.jit(do_not_specialize=["n", "seed", "threshold"])
def _feed_forward_back(
    tokens, gain, bias, w1, b1, w2, slope_out, slope_in, kept_normed, kept_slope, kept_hidden, kept_slope_hidden, sums,
    n, seed, threshold, keep,
    D: tl.constexpr, H: tl.constexpr, EPS: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr, DROP: tl.constexpr,
    WEIGHTS: tl.constexpr,
):  # fmt: skip
    NARROW: tl.constexpr = w1.dtype.element_ty
    row, column = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.arange(0, D)
    inside, at = (row < n)[:, None], row[:, None] * D + column[None, :]
    g, b = tl.load(gain + column), tl.load(bias + column)
    x = tl.load(tokens + at, mask=inside, other=0.0).to(tl.float32)
    hat, scale, normed = _normed(x, g, b, EPS, D)
    normed = normed.to(NARROW)
    dy = tl.load(slope_out + at, mask=inside, other=0.0).to(tl.float32)
    if DROP:
        dy = tl.where(_kept(at, seed, threshold), dy * keep, 0.0)
    sums += tl.program_id(0) * (3 * D + H)
    if WEIGHTS:
        tl.store(sums + column, tl.sum(dy, 0))
    dy = dy.to(NARROW)
    if WEIGHTS:
        tl.store(kept_normed + at, normed, mask=inside)
        tl.store(kept_slope + at, dy, mask=inside)
    total = tl.zeros([TILE, D], tl.float32)
    for start in range(0, H, CHUNK):
        hidden = start + tl.arange(0, CHUNK)
        into = tl.load(w1 + hidden[None, :] * D + column[:, None])
        back = tl.load(w2 + column[:, None] * H + hidden[None, :])
        h = tl.dot(normed, into) + tl.load(b1 + hidden)[None, :]
        a, slope = _gelu(h)
        dh = tl.dot(dy, back) * slope
        narrow = dh.to(NARROW)
        if WEIGHTS:
            there = row[:, None] * H + hidden[None, :]
            tl.store(kept_hidden + there, a.to(NARROW), mask=inside)
            tl.store(kept_slope_hidden + there, narrow, mask=inside)
            tl.store(sums + 3 * D + hidden, tl.sum(dh, 0))
        total = tl.dot(narrow, tl.trans(into), total)
    x = tl.load(tokens + at, mask=inside, other=0.0).to(tl.float32)
    hat, scale, normed = _normed(x, g, b, EPS, D)
    if WEIGHTS:
        tl.store(sums + D + column, tl.sum(total * hat, 0))
        tl.store(sums + 2 * D + column, tl.sum(total, 0))
    dx = _through_norm(total, hat, scale, g, D) + tl.load(slope_out + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(slope_in + at, dx, mask=inside)


@triton.jit
def _attended(normed, wqkv, bqkv, head, same, SCALE: tl.constexpr, D: tl.constexpr, HD: tl.constexpr):
    """Queries, keys, values and weights of a head, of a tile of whole sequences."""
    NARROW: tl.constexpr = wqkv.dtype.element_ty
    column, own = tl.arange(0, D), head * HD + tl.arange(0, HD)
    at = own[None, :] * D + column[:, None]
    wq, wk, wv = tl.load(wqkv + at), tl.load(wqkv + D * D + at), tl.load(wqkv + 2 * D * D + at)
    q = (tl.dot(normed, wq) + tl.load(bqkv + own)[None, :]).to(NARROW)
    k = (tl.dot(normed, wk) + tl.load(bqkv + D + own)[None, :]).to(NARROW)
    v = (tl.dot(normed, wv) + tl.load(bqkv + 2 * D + own)[None, :]).to(NARROW)
    scores = tl.where(same, tl.dot(q, tl.trans(k)) * (SCALE * 1.4426950408889634), float("-inf"))
    weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
    weights = weights / tl.sum(weights, 1)[:, None]
    return q, k, v, weights, wq, wk, wv


@triton.jit(do_not_specialize=["n", "seed", "threshold"])
def _attend(
    tokens, gain, bias, wqkv, bqkv, wo, bo, out, n, seed, threshold, keep,
    LENGTH: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr, SCALE: tl.constexpr, EPS: tl.constexpr,
    TILE: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    NARROW: tl.constexpr = wqkv.dtype.element_ty
    USED: tl.constexpr = TILE // LENGTH * LENGTH
    HD: tl.constexpr = D // HEADS
    token, column = tl.arange(0, TILE), tl.arange(0, D)
    row = tl.program_id(0) * USED + token
    inside, at = ((token < USED) & (row < n))[:, None], row[:, None] * D + column[None, :]
    same = (token // LENGTH)[:, None] == (token // LENGTH)[None, :]
    x = tl.load(tokens + at, mask=inside, other=0.0).to(tl.float32)
    hat, scale, normed = _normed(x, tl.load(gain + column), tl.load(bias + column), EPS, D)
    normed = normed.to(NARROW)
    total = tl.zeros([TILE, D], tl.float32)
    for head in range(HEADS):
        q, k, v, weights, wq, wk, wv = _attended(normed, wqkv, bqkv, head, same, SCALE, D, HD)
        mixed = tl.dot(weights.to(NARROW), v)
        own = head * HD + tl.arange(0, HD)
        total = tl.dot(mixed.to(NARROW), tl.load(wo + column[None, :] * D + own[:, None]), total)
    total += tl.load(bo + column)[None, :]
    if DROP:
        total = tl.where(_kept(at, seed, threshold), total * keep, 0.0)
    x = tl.load(tokens + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, x + total, mask=inside)


@triton.jit(do_not_specialize=["n", "seed", "threshold"])
def _attend_back(
    tokens, gain, bias, wqkv, bqkv, wo, slope_out, slope_in, kept_normed, kept_slope, kept_mixed, kept_qkv, sums,
    n, seed, threshold, keep,
    LENGTH: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr, SCALE: tl.constexpr, EPS: tl.constexpr,
    TILE: tl.constexpr, DROP: tl.constexpr, WEIGHTS: tl.constexpr,
):  # fmt: skip
    NARROW: tl.constexpr = wqkv.dtype.element_ty
    USED: tl.constexpr = TILE // LENGTH * LENGTH
    HD: tl.constexpr = D // HEADS
    token, column = tl.arange(0, TILE), tl.arange(0, D)
    row = tl.program_id(0) * USED + token
    within = ((token < USED) & (row < n))[:, None]
    at = row[:, None] * D + column[None, :]
    same = (token // LENGTH)[:, None] == (token // LENGTH)[None, :]
    g, b = tl.load(gain + column), tl.load(bias + column)
    x = tl.load(tokens + at, mask=within, other=0.0).to(tl.float32)
    hat, scale, normed = _normed(x, g, b, EPS, D)
    normed = normed.to(NARROW)
    dy = tl.load(slope_out + at, mask=within, other=0.0).to(tl.float32)
    if DROP:
        dy = tl.where(_kept(at, seed, threshold), dy * keep, 0.0)
    sums += tl.program_id(0) * (6 * D)
    if WEIGHTS:
        tl.store(sums + column, tl.sum(dy, 0))
    dy = dy.to(NARROW)
    if WEIGHTS:
        tl.store(kept_normed + at, normed, mask=within)
        tl.store(kept_slope + at, dy, mask=within)
    total = tl.zeros([TILE, D], tl.float32)
    for head in range(HEADS):
        q, k, v, weights, wq, wk, wv = _attended(normed, wqkv, bqkv, head, same, SCALE, D, HD)
        own = head * HD + tl.arange(0, HD)
        narrow = weights.to(NARROW)
        dmixed = tl.dot(dy, tl.load(wo + column[:, None] * D + own[None, :])).to(NARROW)
        dweights = tl.dot(dmixed, tl.trans(v))
        ds = (weights * (dweights - tl.sum(weights * dweights, 1)[:, None]) * SCALE).to(NARROW)
        dq = tl.dot(ds, k)
        dk = tl.dot(tl.trans(ds), q)
        dv = tl.dot(tl.trans(narrow), dmixed)
        if WEIGHTS:
            tl.store(kept_mixed + row[:, None] * D + own[None, :], tl.dot(narrow, v).to(NARROW), mask=within)
            tl.store(sums + 3 * D + own, tl.sum(dq, 0))
            tl.store(sums + 4 * D + own, tl.sum(dk, 0))
            tl.store(sums + 5 * D + own, tl.sum(dv, 0))
        dq, dk, dv = dq.to(NARROW), dk.to(NARROW), dv.to(NARROW)
        if WEIGHTS:
            there = row[:, None] * (3 * D) + own[None, :]
            tl.store(kept_qkv + there, dq, mask=within)
            tl.store(kept_qkv + there + D, dk, mask=within)
            tl.store(kept_qkv + there + 2 * D, dv, mask=within)
        total = tl.dot(dq, tl.trans(wq), total)
        total = tl.dot(dk, tl.trans(wk), total)
        total = tl.dot(dv, tl.trans(wv), total)
    x = tl.load(tokens + at, mask=within, other=0.0).to(tl.float32)
    hat, scale, normed = _normed(x, g, b, EPS, D)
    if WEIGHTS:
        tl.store(sums + D + column, tl.sum(total * hat, 0))
        tl.store(sums + 2 * D + column, tl.sum(total, 0))
    dx = _through_norm(total, hat, scale, g, D) + tl.load(slope_out + at, mask=within, other=0.0).to(tl.float32)
    tl.store(slope_in + at, dx, mask=within)


#: Tokens of a tile, hidden units at a time, warps and stages of each kernel.
SHAPES: dict[str, dict[str, int]] = {
    "feed": {"TILE": 128, "CHUNK": 64, "num_warps": 8, "num_stages": 2},
    "feed_back": {"TILE": 64, "CHUNK": 64, "num_warps": 4, "num_stages": 2},
    "attend": {"TILE": 64, "num_warps": 4, "num_stages": 2},
    "attend_back": {"TILE": 64, "num_warps": 4, "num_stages": 2},
}
#: What products are computed in.
NARROW = torch.bfloat16


def _dropped(dropout: float) -> dict[str, Any]:
    """Seed and threshold of a new draw of dropout, from torch's generator on the CPU."""
    seed = int(torch.randint(0, 1 << 31, ())) if dropout else 0
    return {"seed": seed, "threshold": round(dropout * (1 << 32)), "keep": 1.0 / (1.0 - dropout), "DROP": dropout > 0.0}


class FeedForward(torch.autograd.Function):
    """``tokens + dropout(contract(gelu(expand(norm(tokens)))))``, ``[..., d]``."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, gain: Tensor, bias: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
                eps: float, dropout: float) -> Tensor:  # fmt: skip
        tokens = tokens.contiguous()
        d, hidden = w2.shape
        n, out = tokens.numel() // d, torch.empty_like(tokens)
        w1, w2 = w1.to(NARROW), w2.to(NARROW)
        ctx.dropped, ctx.eps = _dropped(dropout), eps
        shape = SHAPES["feed"]
        _feed_forward[(triton.cdiv(n, shape["TILE"]),)](
            tokens, gain, bias, w1, b1, w2, b2, out, n, D=d, H=hidden, EPS=eps, **ctx.dropped, **shape
        )
        ctx.save_for_backward(tokens, gain, bias, w1, b1, w2)
        return out

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        tokens, gain, bias, w1, b1, w2 = ctx.saved_tensors
        slope = slope.contiguous()
        d, hidden = w2.shape
        n, weights = tokens.numel() // d, ctx.needs_input_grad[3]
        shape = SHAPES["feed_back"]
        programs = triton.cdiv(n, shape["TILE"])
        narrow = {"dtype": NARROW, "device": tokens.device}
        kept = tuple(torch.empty((n, width), **narrow) for width in (d, d, hidden, hidden)) if weights else (tokens,) * 4
        sums = torch.empty((programs, 3 * d + hidden), device=tokens.device) if weights else tokens
        back = torch.empty_like(tokens)
        _feed_forward_back[(programs,)](
            tokens, gain, bias, w1, b1, w2, slope, back, *kept, sums, n, D=d, H=hidden, EPS=ctx.eps,
            WEIGHTS=weights, **ctx.dropped, **shape,
        )  # fmt: skip
        if not weights:
            return back, *(None,) * 8
        normed, dy, a, dh = kept
        db2, dgain, dbias, db1 = sums.sum(0).split((d, d, d, hidden))
        return back, dgain, dbias, (dh.T @ normed).float(), db1, (dy.T @ a).float(), db2, None, None


class Attend(torch.autograd.Function):
    """``tokens + dropout(out(attention(norm(tokens))))``, ``[B, P, d]``."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, gain: Tensor, bias: Tensor, wqkv: Tensor, bqkv: Tensor, wo: Tensor, bo: Tensor,
                heads: int, eps: float, dropout: float) -> Tensor:  # fmt: skip
        tokens = tokens.contiguous()
        batch, length, d = tokens.shape
        out = torch.empty_like(tokens)
        wqkv, wo = wqkv.to(NARROW), wo.to(NARROW)
        ctx.dropped, ctx.eps, ctx.heads = _dropped(dropout), eps, heads
        shape = SHAPES["attend"]
        _attend[(triton.cdiv(batch, shape["TILE"] // length),)](
            tokens, gain, bias, wqkv, bqkv, wo, bo, out, batch * length, LENGTH=length, D=d, HEADS=heads,
            SCALE=(d // heads) ** -0.5, EPS=eps, **ctx.dropped, **shape,
        )  # fmt: skip
        ctx.save_for_backward(tokens, gain, bias, wqkv, bqkv, wo)
        return out

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        tokens, gain, bias, wqkv, bqkv, wo = ctx.saved_tensors
        slope = slope.contiguous()
        batch, length, d = tokens.shape
        n, weights = batch * length, ctx.needs_input_grad[3]
        shape = SHAPES["attend_back"]
        programs = triton.cdiv(batch, shape["TILE"] // length)
        narrow = {"dtype": NARROW, "device": tokens.device}
        kept = tuple(torch.empty((n, width), **narrow) for width in (d, d, d, 3 * d)) if weights else (tokens,) * 4
        sums = torch.empty((programs, 6 * d), device=tokens.device) if weights else tokens
        back = torch.empty_like(tokens)
        _attend_back[(programs,)](
            tokens, gain, bias, wqkv, bqkv, wo, slope, back, *kept, sums, n, LENGTH=length, D=d, HEADS=ctx.heads,
            SCALE=(d // ctx.heads) ** -0.5, EPS=ctx.eps, WEIGHTS=weights, **ctx.dropped, **shape,
        )  # fmt: skip
        if not weights:
            return back, *(None,) * 9
        normed, dy, mixed, dqkv = kept
        dbo, dgain, dbias, dbqkv = sums.sum(0).split((d, d, d, 3 * d))
        return back, dgain, dbias, (dqkv.T @ normed).float(), dbqkv, (dy.T @ mixed).float(), dbo, None, None, None
