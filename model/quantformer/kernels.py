"""Triton's kernels of half a transformer layer and of a norm, forward and backward; `quantformer.fused` calls them.

They are bound by the number of instructions, not by the products: what repeats for every element is as short as it can be.
Products are of the weights' type, bfloat16 in training, with float32 sums; everything else is in float32. Rows beyond the
last are read as zeros and never written.
"""

import triton
import triton.language as tl

#: Triton's interpreter, which runs these on the CPU, knows no assembly.
_INTERPRETED: tl.constexpr = tl.constexpr(bool(triton.knobs.runtime.interpret))
_LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def _tanh(x):
    """Within 5e-4 of its size, an eighth of bfloat16's step."""
    if _INTERPRETED:
        return 1.0 - 2.0 / (1.0 + tl.exp2(x * (2.0 * _LOG2E)))
    return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def _exp2(x):
    if _INTERPRETED:
        return tl.exp2(x)
    return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def _kept(row, column, seed, threshold):
    """Whether dropout keeps the elements at rows and columns: a hash of a row begins a sequence along its columns, whose
    numbers are mixed, uniform in 32 bits.
    """
    start = row.to(tl.uint32) * 0x9E3779B1 + seed.to(tl.uint32)
    start = (start ^ (start >> 16)) * 0x7FEB352D
    start = (start ^ (start >> 15)) * 0x846CA68B + seed.to(tl.uint32) * 0x85EBCA6B
    start = start ^ (start >> 16)
    x = start[:, None] + column.to(tl.uint32)[None, :] * 0x9E3779B1
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x >= threshold.to(tl.uint32)


@triton.jit
def _gelu(h):
    """GELU within 3e-5 and what `_tanh` adds, and its slope."""
    # 2 * (the normal distribution's function) - 1 as tanh of a polynomial, which is fitted up to |h| = 6.
    y = tl.minimum(h * h, 40.0)
    t = _tanh(h * (0.797507884 + y * (0.0370056461 - y * 0.000351516801)))
    cdf = 0.5 * t + 0.5
    inner = 0.398753942 + y * (0.05550846915 - y * 0.0008787920025)
    return h * cdf, cdf + h * (inner - inner * t * t)


@triton.jit
def _statistics(x, EPS: tl.constexpr, D: tl.constexpr):
    """Mean of rows, and one over their standard deviation."""
    mean = tl.sum(x, 1) / D
    centred = x - mean[:, None]
    return mean, tl.rsqrt(tl.sum(centred * centred, 1) / D + EPS)


@triton.jit
def _normed(x, mean, scale, gain, bias):
    return (x - mean[:, None]) * scale[:, None] * gain[None, :] + bias[None, :]


@triton.jit
def _through_norm(slope, hat, scale, gain, D: tl.constexpr):
    """The gradient at a norm's input from ``slope`` at its output."""
    g = slope * gain[None, :]
    return scale[:, None] * (g - tl.sum(g, 1)[:, None] / D - hat * (tl.sum(g * hat, 1)[:, None] / D))


@triton.jit(do_not_specialize=["n"])
def norm(tokens, gain, bias, out, n, D: tl.constexpr, EPS: tl.constexpr, TILE: tl.constexpr):
    """Rows of ``tokens`` ``[n, D]``, normed."""
    row, column = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.arange(0, D)
    inside, at = (row < n)[:, None], row[:, None] * D + column[None, :]
    x = tl.load(tokens + at, mask=inside, other=0.0).to(tl.float32)
    mean, scale = _statistics(x, EPS, D)
    tl.store(out + at, _normed(x, mean, scale, tl.load(gain + column), tl.load(bias + column)), mask=inside)


@triton.jit(do_not_specialize=["n"])
def norm_back(
    tokens, gain, slope_out, slope_in, sums, n,
    D: tl.constexpr, EPS: tl.constexpr, TILE: tl.constexpr, WEIGHTS: tl.constexpr,
):  # fmt: skip
    """``sums`` ``[programs, 2 D]``: each program's part of the gradients of gain and bias."""
    row, column = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.arange(0, D)
    inside, at = (row < n)[:, None], row[:, None] * D + column[None, :]
    x = tl.load(tokens + at, mask=inside, other=0.0).to(tl.float32)
    slope = tl.load(slope_out + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gain + column)
    mean, scale = _statistics(x, EPS, D)
    hat = (x - mean[:, None]) * scale[:, None]
    if WEIGHTS:
        sums += tl.program_id(0) * (2 * D)
        tl.store(sums + column, tl.sum(slope * hat, 0))
        tl.store(sums + D + column, tl.sum(slope, 0))
    tl.store(slope_in + at, _through_norm(slope, hat, scale, g, D), mask=inside)


@triton.jit(do_not_specialize=["n", "seed", "threshold"])
def feed_forward(
    tokens, gain, bias, w1, b1, w2, b2, out, n, seed, threshold, keep,
    D: tl.constexpr, H: tl.constexpr, EPS: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    """A tile of tokens, ``CHUNK`` hidden units after the other."""
    NARROW: tl.constexpr = w1.dtype.element_ty
    row, column = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.arange(0, D)
    inside, at = (row < n)[:, None], row[:, None] * D + column[None, :]
    x = tl.load(tokens + at, mask=inside, other=0.0).to(tl.float32)
    mean, scale = _statistics(x, EPS, D)
    normed = _normed(x, mean, scale, tl.load(gain + column), tl.load(bias + column)).to(NARROW)
    total = tl.zeros([TILE, D], tl.float32)
    for start in range(0, H, CHUNK):
        hidden = start + tl.arange(0, CHUNK)
        into = tl.load(w1 + hidden[None, :] * D + column[:, None])
        back = tl.load(w2 + column[None, :] * H + hidden[:, None])
        a, _slope = _gelu(tl.dot(normed, into) + tl.load(b1 + hidden)[None, :])
        total = tl.dot(a.to(NARROW), back, total)
    total += tl.load(b2 + column)[None, :]
    if DROP:
        total = tl.where(_kept(row, column, seed, threshold), total * keep, 0.0)
    x = tl.load(tokens + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, x + total, mask=inside)


@triton.jit(do_not_specialize=["n", "seed", "threshold"])
def feed_forward_back(
    tokens, gain, bias, w1, b1, w2, slope_out, slope_in, kept_normed, kept_slope, kept_hidden, kept_slope_hidden, sums,
    n, seed, threshold, keep,
    D: tl.constexpr, H: tl.constexpr, EPS: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr, DROP: tl.constexpr,
    WEIGHTS: tl.constexpr,
):  # fmt: skip
    """``sums`` ``[programs, 2 D + H]``: each program's part of the gradients of contract's bias, gain and expand's bias."""
    NARROW: tl.constexpr = w1.dtype.element_ty
    row, column = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.arange(0, D)
    inside, at = (row < n)[:, None], row[:, None] * D + column[None, :]
    g, b = tl.load(gain + column), tl.load(bias + column)
    x = tl.load(tokens + at, mask=inside, other=0.0).to(tl.float32)
    mean, scale = _statistics(x, EPS, D)
    normed = _normed(x, mean, scale, g, b).to(NARROW)
    dy = tl.load(slope_out + at, mask=inside, other=0.0).to(tl.float32)
    if DROP:
        dy = tl.where(_kept(row, column, seed, threshold), dy * keep, 0.0)
    sums += tl.program_id(0) * (2 * D + H)
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
        a, slope = _gelu(tl.dot(normed, into) + tl.load(b1 + hidden)[None, :])
        dh = tl.dot(dy, back) * slope
        narrow = dh.to(NARROW)
        if WEIGHTS:
            there = row[:, None] * H + hidden[None, :]
            tl.store(kept_hidden + there, a.to(NARROW), mask=inside)
            tl.store(kept_slope_hidden + there, narrow, mask=inside)
            tl.store(sums + 2 * D + hidden, tl.sum(dh, 0))
        total = tl.dot(narrow, tl.trans(into), total)
    x = tl.load(tokens + at, mask=inside, other=0.0).to(tl.float32)
    hat = (x - mean[:, None]) * scale[:, None]
    if WEIGHTS:
        tl.store(sums + D + column, tl.sum(total * hat, 0))
    dx = _through_norm(total, hat, scale, g, D) + tl.load(slope_out + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(slope_in + at, dx, mask=inside)


@triton.jit
def _attended(normed, wqkv, bqkv, head, same, SCALE: tl.constexpr, D: tl.constexpr, HD: tl.constexpr):
    """Queries (times ``SCALE`` and log2 e), keys and values of a head, of a tile of whole sequences; weights, and one over
    their sums, by which they are yet to be multiplied.
    """
    NARROW: tl.constexpr = wqkv.dtype.element_ty
    column, own = tl.arange(0, D), head * HD + tl.arange(0, HD)
    at = own[None, :] * D + column[:, None]
    wq, wk, wv = tl.load(wqkv + at), tl.load(wqkv + D * D + at), tl.load(wqkv + 2 * D * D + at)
    q = ((tl.dot(normed, wq) + tl.load(bqkv + own)[None, :]) * (SCALE * _LOG2E)).to(NARROW)
    k = (tl.dot(normed, wk) + tl.load(bqkv + D + own)[None, :]).to(NARROW)
    v = (tl.dot(normed, wv) + tl.load(bqkv + 2 * D + own)[None, :]).to(NARROW)
    scores = tl.where(same, tl.dot(q, tl.trans(k)), float("-inf"))
    weights = _exp2(scores - tl.max(scores, 1)[:, None])
    return q, k, v, weights, 1.0 / tl.sum(weights, 1), wq, wk, wv


@triton.jit(do_not_specialize=["n", "seed", "threshold"])
def attend(
    tokens, gain, bias, wqkv, bqkv, wo, bo, out, n, seed, threshold, keep,
    LENGTH: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr, SCALE: tl.constexpr, EPS: tl.constexpr,
    TILE: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    """A tile of as many whole sequences of ``LENGTH`` tokens as it holds, one head after the other."""
    NARROW: tl.constexpr = wqkv.dtype.element_ty
    USED: tl.constexpr = TILE // LENGTH * LENGTH
    HD: tl.constexpr = D // HEADS
    token, column = tl.arange(0, TILE), tl.arange(0, D)
    row = tl.program_id(0) * USED + token
    inside, at = ((token < USED) & (row < n))[:, None], row[:, None] * D + column[None, :]
    same = (token // LENGTH)[:, None] == (token // LENGTH)[None, :]
    x = tl.load(tokens + at, mask=inside, other=0.0).to(tl.float32)
    mean, scale = _statistics(x, EPS, D)
    normed = _normed(x, mean, scale, tl.load(gain + column), tl.load(bias + column)).to(NARROW)
    total = tl.zeros([TILE, D], tl.float32)
    for head in range(HEADS):
        _q, _k, v, weights, share, _wq, _wk, _wv = _attended(normed, wqkv, bqkv, head, same, SCALE, D, HD)
        mixed = tl.dot(weights.to(NARROW), v) * share[:, None]
        own = head * HD + tl.arange(0, HD)
        total = tl.dot(mixed.to(NARROW), tl.load(wo + column[None, :] * D + own[:, None]), total)
    total += tl.load(bo + column)[None, :]
    if DROP:
        total = tl.where(_kept(row, column, seed, threshold), total * keep, 0.0)
    x = tl.load(tokens + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, x + total, mask=inside)


@triton.jit(do_not_specialize=["n", "seed", "threshold"])
def attend_back(
    tokens, gain, bias, wqkv, bqkv, wo, slope_out, slope_in, kept_normed, kept_slope, kept_mixed, kept_qkv, sums,
    n, seed, threshold, keep,
    LENGTH: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr, SCALE: tl.constexpr, EPS: tl.constexpr,
    TILE: tl.constexpr, DROP: tl.constexpr, WEIGHTS: tl.constexpr,
):  # fmt: skip
    """``sums`` ``[programs, 5 D]``: each program's part of the gradients of the output's bias, gain, and the biases of queries,
    keys and values.
    """
    NARROW: tl.constexpr = wqkv.dtype.element_ty
    USED: tl.constexpr = TILE // LENGTH * LENGTH
    HD: tl.constexpr = D // HEADS
    token, column = tl.arange(0, TILE), tl.arange(0, D)
    row = tl.program_id(0) * USED + token
    inside = ((token < USED) & (row < n))[:, None]
    at = row[:, None] * D + column[None, :]
    same = (token // LENGTH)[:, None] == (token // LENGTH)[None, :]
    g, b = tl.load(gain + column), tl.load(bias + column)
    x = tl.load(tokens + at, mask=inside, other=0.0).to(tl.float32)
    mean, scale = _statistics(x, EPS, D)
    normed = _normed(x, mean, scale, g, b).to(NARROW)
    dy = tl.load(slope_out + at, mask=inside, other=0.0).to(tl.float32)
    if DROP:
        dy = tl.where(_kept(row, column, seed, threshold), dy * keep, 0.0)
    sums += tl.program_id(0) * (5 * D)
    if WEIGHTS:
        tl.store(sums + column, tl.sum(dy, 0))
        # The softmax does not feel a number that all scores of a query have in common.
        tl.store(sums + 3 * D + column, tl.zeros([D], tl.float32))
    dy = dy.to(NARROW)
    if WEIGHTS:
        tl.store(kept_normed + at, normed, mask=inside)
        tl.store(kept_slope + at, dy, mask=inside)
    total = tl.zeros([TILE, D], tl.float32)
    for head in range(HEADS):
        q, k, v, weights, share, wq, wk, wv = _attended(normed, wqkv, bqkv, head, same, SCALE, D, HD)
        own = head * HD + tl.arange(0, HD)
        narrow = weights.to(NARROW)
        dmixed = tl.dot(dy, tl.load(wo + column[:, None] * D + own[None, :]))
        dmixed = (dmixed * share[:, None]).to(NARROW)
        dweights = tl.dot(dmixed, tl.trans(v))
        ds = (weights * (dweights - (tl.sum(weights * dweights, 1) * share)[:, None])).to(NARROW)
        dq = tl.dot(ds, k) * SCALE
        dk = tl.dot(tl.trans(ds), q) * (1.0 / _LOG2E)
        dv = tl.dot(tl.trans(narrow), dmixed)
        if WEIGHTS:
            mixed = tl.dot(narrow, v) * share[:, None]
            tl.store(kept_mixed + row[:, None] * D + own[None, :], mixed.to(NARROW), mask=inside)
            tl.store(sums + 2 * D + own, tl.sum(dq, 0))
            tl.store(sums + 4 * D + own, tl.sum(dv, 0))
        dq, dk, dv = dq.to(NARROW), dk.to(NARROW), dv.to(NARROW)
        if WEIGHTS:
            there = row[:, None] * (3 * D) + own[None, :]
            tl.store(kept_qkv + there, dq, mask=inside)
            tl.store(kept_qkv + there + D, dk, mask=inside)
            tl.store(kept_qkv + there + 2 * D, dv, mask=inside)
        total = tl.dot(dq, tl.trans(wq), total)
        total = tl.dot(dk, tl.trans(wk), total)
        total = tl.dot(dv, tl.trans(wv), total)
    x = tl.load(tokens + at, mask=inside, other=0.0).to(tl.float32)
    hat = (x - mean[:, None]) * scale[:, None]
    if WEIGHTS:
        tl.store(sums + D + column, tl.sum(total * hat, 0))
    dx = _through_norm(total, hat, scale, g, D) + tl.load(slope_out + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(slope_in + at, dx, mask=inside)
