"""What a check found, and what to do about it."""

from __future__ import annotations

from typing import Literal

import msgspec


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """``bad``: the frame rate will not hold, or the service not start; ``advice``: it would be steadier otherwise. ``cure``
    says what to change, and is empty where nothing is.
    """

    name: str
    state: Literal["ok", "advice", "bad"]
    found: str
    cure: str = ""


def ok(name: str, found: str) -> Check:
    """Nothing to change."""
    return Check(name=name, state="ok", found=found)


def advice(name: str, found: str, cure: str) -> Check:
    """It holds, and could be steadier."""
    return Check(name=name, state="advice", found=found, cure=cure)


def bad(name: str, found: str, cure: str) -> Check:
    """It does not hold."""
    return Check(name=name, state="bad", found=found, cure=cure)
