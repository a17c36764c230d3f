"""How an answer or a decision of a replay compares with the one that was recorded."""

from __future__ import annotations

import math
import zlib
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from quantformer_client import wire

#: Largest difference of a float where the arithmetic is not the recorded one.
TOLERANCE = 1e-4
#: Stamps of the recorded answer, which no replay can have.
_STAMPS = frozenset({"window_ready_ns", "submitted_ns", "done_ns", "published_ns"})
_FORECAST = ("response", "scale", "ends")

Verdict = Literal["equal", "within", "different"]


def compare_answers(
    recorded: wire.Answer, again: wire.Answer, *, checksum: int | None, exact: bool
) -> tuple[Verdict, str]:
    """How an answer compares with the recorded one, whose forecast is known by its ``checksum`` alone unless that is None.

    With ``exact`` anything but the same bits is different; else floats may differ by `TOLERANCE`.
    """
    within: list[str] = []
    for name in wire.Answer.__struct_fields__:
        if name in _STAMPS or (checksum is not None and name in _FORECAST):
            continue
        then, now = getattr(recorded, name), getattr(again, name)
        if isinstance(then, np.ndarray) and isinstance(now, np.ndarray):
            if then.shape != now.shape:
                return "different", f"{name} has shape {now.shape}, recorded {then.shape}"
            if then.tobytes() == np.ascontiguousarray(now, dtype=then.dtype).tobytes():
                continue
            if then.dtype.kind != "f":
                return "different", f"{name} differs in {int(np.count_nonzero(then != now))} of {then.size} places"
            farthest = _farthest(then, now)
            if exact or not farthest <= TOLERANCE:
                return "different", f"{name} is off by up to {farthest:g}"
            within.append(name)
        elif then != now and not (_nan(then) and _nan(now)):
            return "different", f"{name} is {now!r}, recorded {then!r}"
    if checksum is not None and checksum != _checksum(again):
        if exact:
            return "different", "the forecast's checksum is another one"
        within.append("forecast")
    return ("within", ", ".join(within)) if within else ("equal", "")


def _checksum(answer: wire.Answer) -> int:
    """CRC-32 of the forecast, as it lies in an ANSWER."""
    crc = 0
    for name in _FORECAST:
        array = getattr(answer, name)
        if array is not None:
            crc = zlib.crc32(np.asarray(array, dtype="<f4").tobytes(), crc)
    return crc


def _farthest(then: NDArray[Any], now: NDArray[Any]) -> float:
    """Largest difference; infinite where one is a number and the other is not."""
    same = (then == now) | (np.isnan(then) & np.isnan(now))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(then.astype(np.float64) - now))
    return float(np.where(np.isnan(apart), math.inf, apart).max(initial=0.0))


def _nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def first_difference(then: wire.Decision, now: wire.Decision) -> str:
    """The first field in which a decision differs from the recorded one, in words."""
    for name in then.__struct_fields__:
        if getattr(then, name) != getattr(now, name):
            return f"{name} is {getattr(now, name)!r}, recorded {getattr(then, name)!r}"
    return "not the same"
