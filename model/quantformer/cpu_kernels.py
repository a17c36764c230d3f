"""Attention, GELU and dropout as loops that a CPU's vectors run, forward and backward, with the residual and biases.

A dozen tokens and 16 numbers a head are too few for libraries' kernels, whose calls then cost more than their arithmetic. Here
`LANES` sequences lie side by side in the innermost dimension, and every operation is one on so many lanes. Compiled by numba when
first called, and kept on the disk. All arrays are float32 and contiguous.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[np.float32]
#: Sequences side by side; numbers a head; elements of a `gelu` at a time.
LANES, WIDTH, CHUNK = 32, 16, 64
#: Sums may be taken in any order and multiplications joined to them; NaN and infinity stay what they are.
_OPTIONS: dict[str, Any] = {
    "fastmath": {"contract", "reassoc", "nsz", "arcp"},
    "nogil": True,
    "error_model": "numpy",
    "cache": True,
}
_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
_SCALE = np.float32(WIDTH**-0.5)
#: exp(x) = 2^(x log2 e): a whole power, which is set as a float's exponent, times a polynomial (Taylor's, to the sixth power of
#: at most ln 2 / 2: 1e-7 of its value).
_LOG2_E, _LOWEST = np.float32(np.log2(np.e)), np.float32(-126)
_T1, _T2, _T3, _T4, _T5, _T6 = (
    np.float32(np.log(2) ** k / f) for k, f in ((1, 1), (2, 2), (3, 6), (4, 24), (5, 120), (6, 720))
)
_BIAS, _EXPONENT = np.int32(127), np.int32(23)
#: The complementary error function as exp(-x^2) times a polynomial of 1 / (1 + p x) (Abramowitz and Stegun, 7.1.26: 1.5e-7).
_E1, _E2, _E3, _E4, _E5 = (np.float32(a) for a in (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429))
_P, _DENSITY = np.float32(0.3275911 * 0.5**0.5), np.float32((2 * np.pi) ** -0.5)
#: A hash of 32 bits in two rounds, an odd factor each, with a seed before either.
_STEP, _FIRST, _SECOND = np.uint32(0x9E3779B1), np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
_BY_16, _BY_15 = np.uint32(16), np.uint32(15)


@njit(**_OPTIONS)
def attend(projected: Array, bias: Array, heads: int, begin: int, end: int, mixed: Array) -> None:
    """Attention of the sequences ``begin`` to ``end``: queries, keys and values ``[3 d, P, B]``, to which ``bias`` ``[3 d]`` is
    to be added, to ``mixed`` ``[d, P, B]``.
    """
    length = projected.shape[1]
    padded = -(-length // 4) * 4
    # Beyond the sequence's length there are zeros throughout, which `_mix` adds.
    query, key, value, found = _room(padded, WIDTH), _room(padded, WIDTH), _room(padded, WIDTH), _room(padded, WIDTH)
    weights = _room(padded, padded)
    for first in range(begin, end, LANES):
        rows = min(LANES, end - first)
        for head in range(heads):
            at = head * WIDTH
            _weigh(projected, bias, first, rows, at, query, key, value, weights)
            _mix(weights, value, length, padded, found)
            _store(found, first, rows, at, mixed)


@njit(**_OPTIONS)
def attend_back(projected: Array, bias: Array, slope: Array, heads: int, begin: int, end: int, back: Array) -> None:
    """From the slope of `attend`'s result that of ``projected``, to ``back``; the weights are computed again."""
    length = projected.shape[1]
    padded, d = -(-length // 4) * 4, heads * WIDTH
    query, key, value = _room(padded, WIDTH), _room(padded, WIDTH), _room(padded, WIDTH)
    given, found, weights, slopes = (
        _room(padded, WIDTH),
        _room(padded, WIDTH),
        _room(padded, padded),
        _room(padded, padded),
    )
    nothing = np.zeros(d, np.float32)
    for first in range(begin, end, LANES):
        rows = min(LANES, end - first)
        for head in range(heads):
            at = head * WIDTH
            _weigh(projected, bias, first, rows, at, query, key, value, weights)
            _load(slope, nothing, first, rows, at, given)
            _mix_back(weights, given, length, padded, found)
            _store(found, first, rows, 2 * d + at, back)
            _products(given, value, length, _ONE, slopes)
            _softmax_back(weights, slopes, length)
            _mix(slopes, key, length, padded, found)
            _store(found, first, rows, at, back)
            _mix_back(slopes, query, length, padded, found)
            _store(found, first, rows, d + at, back)


@njit(**_OPTIONS)
def gelu(x: Array, bias: Array, begin: int, end: int, derivative: Array) -> None:
    """GELU of ``x`` ``[n, CHUNK]`` plus ``bias`` ``[m, CHUNK]``, over and over, in place, and its derivative; rows ``begin`` to
    ``end``.
    """
    power, bell, held = np.empty(CHUNK, np.int32), np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    whole = power.view(np.float32)
    for row in range(begin, end):
        given, added, change = x[row], bias[row % bias.shape[0]], derivative[row]
        for n in range(CHUNK):
            held[n] = given[n] + added[n]
        for n in range(CHUNK):
            _exp2(held[n] * held[n] * (-_HALF * _LOG2_E), power, bell, n)
        for n in range(CHUNK):
            bell[n] *= whole[n]
        for n in range(CHUNK):
            t = _ONE / (_ONE + _P * abs(held[n]))
            tail = _HALF * bell[n] * t * (_E1 + t * (_E2 + t * (_E3 + t * (_E4 + t * _E5))))
            below = tail if held[n] < _ZERO else _ONE - tail
            given[n] = held[n] * below
            change[n] = below + held[n] * bell[n] * _DENSITY


@njit(**_OPTIONS)
def gelu_back(slope: Array, begin: int, end: int, derivative: Array, total: Array) -> None:
    """The slope of `gelu`'s ``x``, in the derivative's place, and their sum ``[m, CHUNK]``, the bias's, added to ``total``."""
    for row in range(begin, end):
        given, change, summed = slope[row], derivative[row], total[row % total.shape[0]]
        for n in range(CHUNK):
            change[n] *= given[n]
        for n in range(CHUNK):
            summed[n] += change[n]


@njit(**_OPTIONS)
def add(
    tokens: Array, update: Array, bias: Array, seeds: NDArray[np.uint32], threshold: int, begin: int, end: int
) -> None:
    """``tokens`` plus what dropout leaves of ``update`` plus ``bias``, in the place of ``update``: rows ``begin`` to ``end`` of
    ``[n, d]``.
    """
    first, second, least = seeds[0], seeds[1], np.uint32(threshold)
    keep = np.float32(1.0 / (1.0 - threshold / 4294967296.0))
    for row in range(begin, end):
        given, added, at = tokens[row], update[row], row * bias.size
        for n in range(bias.size):
            let = (added[n] + bias[n]) * keep
            added[n] = given[n] + (let if _hashed(at + n, first, second) >= least else _ZERO)


@njit(**_OPTIONS)
def add_back(
    slope: Array, seeds: NDArray[np.uint32], threshold: int, begin: int, end: int, back: Array, total: Array
) -> None:
    """The slope of ``update`` in `add`, and their sum ``[d]``, the bias's, added to ``total``: those elements are let back that
    were let through.
    """
    first, second, least = seeds[0], seeds[1], np.uint32(threshold)
    keep = np.float32(1.0 / (1.0 - threshold / 4294967296.0))
    for row in range(begin, end):
        given, found, at = slope[row], back[row], row * slope.shape[1]
        for n in range(slope.shape[1]):
            found[n] = given[n] * keep if _hashed(at + n, first, second) >= least else _ZERO
        for n in range(slope.shape[1]):
            total[n] += found[n]


@njit(**_OPTIONS)
def _hashed(n: int, first: np.uint32, second: np.uint32) -> np.uint32:
    x = np.uint32(np.uint32(np.uint32(n) * _STEP) + first)
    x = np.uint32(np.uint32(x ^ np.uint32(x >> _BY_16)) * _FIRST)
    x = np.uint32(np.uint32(x ^ np.uint32(x >> _BY_15)) ^ second)
    x = np.uint32(x * _SECOND)
    return np.uint32(x ^ np.uint32(x >> _BY_16))


@njit(**_OPTIONS)
def _room(tokens: int, width: int) -> Array:
    return np.zeros((tokens, width, LANES), np.float32)


@njit(**_OPTIONS)
def _weigh(
    projected: Array,
    bias: Array,
    first: int,
    rows: int,
    at: int,
    query: Array,
    key: Array,
    value: Array,
    weights: Array,
) -> None:
    """A head's queries, keys and values, and the weights that they give."""
    length, d = projected.shape[1], projected.shape[0] // 3
    _load(projected, bias, first, rows, at, query)
    _load(projected, bias, first, rows, d + at, key)
    _load(projected, bias, first, rows, 2 * d + at, value)
    _products(query, key, length, _SCALE, weights)
    _softmax(weights, length)


@njit(**_OPTIONS)
def _load(source: Array, bias: Array, first: int, rows: int, at: int, out: Array) -> None:
    """A head's numbers of so many sequences; lanes that are left over keep what they had, and nobody reads them."""
    for c in range(WIDTH):
        given, added = source[at + c], bias[at + c]
        for p in range(source.shape[1]):
            row, into = given[p, first : first + rows], out[p, c]
            for n in range(rows):
                into[n] = row[n] + added


@njit(**_OPTIONS)
def _store(found: Array, first: int, rows: int, at: int, out: Array) -> None:
    for c in range(WIDTH):
        for p in range(out.shape[1]):
            row, into = found[p, c], out[at + c, p, first : first + rows]
            for n in range(rows):
                into[n] = row[n]


@njit(**_OPTIONS)
def _products(left: Array, right: Array, length: int, scale: np.float32, out: Array) -> None:
    """Of every token of ``left`` with every one of ``right``."""
    for i in range(length):
        for j in range(length):
            for n in range(LANES):
                total = _ZERO
                for c in range(WIDTH):
                    total += left[i, c, n] * right[j, c, n]
                out[i, j, n] = total * scale


@njit(**_OPTIONS)
def _mix(weights: Array, values: Array, length: int, padded: int, out: Array) -> None:
    """For each token ``i`` the sum over ``j`` of ``weights[i, j]`` times ``values[j]``; four at a time spare loads."""
    for i in range(length):
        out[i] = _ZERO
        for j in range(0, padded, 4):
            _add_four(weights[i, j], weights[i, j + 1], weights[i, j + 2], weights[i, j + 3], values[j : j + 4], out[i])


@njit(**_OPTIONS)
def _mix_back(weights: Array, values: Array, length: int, padded: int, out: Array) -> None:
    """For each token ``j`` the sum over ``i`` of ``weights[i, j]`` times ``values[i]``."""
    for j in range(length):
        out[j] = _ZERO
        for i in range(0, padded, 4):
            _add_four(weights[i, j], weights[i + 1, j], weights[i + 2, j], weights[i + 3, j], values[i : i + 4], out[j])


@njit(**_OPTIONS)
def _add_four(a: Array, b: Array, c: Array, d: Array, values: Array, out: Array) -> None:
    of_a, of_b, of_c, of_d = values[0], values[1], values[2], values[3]
    for k in range(WIDTH):
        for n in range(LANES):
            out[k, n] += a[n] * of_a[k, n] + b[n] * of_b[k, n] + c[n] * of_c[k, n] + d[n] * of_d[k, n]


@njit(**_OPTIONS)
def _softmax(weights: Array, length: int) -> None:
    """In place, over the second dimension."""
    top, total, power = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.int32)
    whole = power.view(np.float32)
    for i in range(length):
        top[:] = weights[i, 0]
        for j in range(1, length):
            for n in range(LANES):
                top[n] = max(top[n], weights[i, j, n])
        total[:] = _ZERO
        for j in range(length):
            row = weights[i, j]
            for n in range(LANES):
                _exp2((row[n] - top[n]) * _LOG2_E, power, row, n)
            for n in range(LANES):
                row[n] *= whole[n]
                total[n] += row[n]
        for n in range(LANES):
            total[n] = _ONE / total[n]
        for j in range(length):
            for n in range(LANES):
                weights[i, j, n] *= total[n]


@njit(**_OPTIONS)
def _softmax_back(weights: Array, slopes: Array, length: int) -> None:
    """From the slopes of the weights, in their place, those of the products that they came from."""
    total = np.empty(LANES, np.float32)
    for i in range(length):
        total[:] = _ZERO
        for j in range(length):
            for n in range(LANES):
                total[n] += weights[i, j, n] * slopes[i, j, n]
        for j in range(length):
            for n in range(LANES):
                slopes[i, j, n] = weights[i, j, n] * (slopes[i, j, n] - total[n]) * _SCALE


@njit(**_OPTIONS)
def _exp2(x: np.float32, power: NDArray[np.int32], rest: Array, n: int) -> None:
    """2^x of an ``x`` of at most 0: the bits of its whole power to ``power[n]``, what remains to be multiplied to ``rest[n]``."""
    held = _LOWEST if x < _LOWEST else x
    whole = np.floor(held + _HALF)
    r = held - whole
    power[n] = (np.int32(whole) + _BIAS) << _EXPONENT
    rest[n] = _ONE + r * (_T1 + r * (_T2 + r * (_T3 + r * (_T4 + r * (_T5 + r * _T6)))))
