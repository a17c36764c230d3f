"""From results to what they show together: how cost grows along an axis, and what a disturbance does to the slowest answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from quantformer_cli.benchmark.charts import growth_exponent
from quantformer_cli.benchmark.results import Result

AXES = ("neurons", "stimuli", "sessions")
_GROWING = ("overhead", "inference", "bare", "corrected")
#: What a disturbance could touch.
_ISOLATED = ("corrected", "overhead", "engine", "round_trip")


@dataclass(frozen=True, kw_only=True)
class Grown:
    """p50 of one figure at each size, ``points`` (size, us), and the power with which it grows."""

    figure: str
    points: list[tuple[float, float]]
    power: float | None


def grown(results: Sequence[Result], *, axis: str) -> list[Grown]:
    """How figures grow along ``axis``; empty where the conditions do not vary along it."""
    if not results:
        return []
    base = results[0]
    along = [one for one in results if one.kind == base.kind and not one.failed and _only(base, one, axis)]
    if len({getattr(one.condition, axis) for one in along}) < 2:
        return []
    found = []
    for name in _GROWING:
        points = sorted(
            (float(getattr(one.condition, axis)), p50)
            for one in along
            if name in one.figures and (p50 := one.figures[name].p50) is not None
        )
        if len(points) > 1:
            found.append(Grown(figure=name, points=points, power=growth_exponent(points)))
    return found


def _only(base: Result, other: Result, axis: str) -> bool:
    alike = msgspec.structs.replace(other.condition, **{axis: getattr(base.condition, axis)})
    return alike == base.condition


@dataclass(frozen=True, kw_only=True)
class Isolation:
    """p99 in us of one figure, quiet and disturbed; None where there are too few answers."""

    disturb: str
    figure: str
    quiet: float | None
    disturbed: float | None

    @property
    def ratio(self) -> float | None:
        """Disturbed over quiet."""
        return None if not self.quiet or self.disturbed is None else self.disturbed / self.quiet


def isolation(results: Sequence[Result]) -> list[Isolation]:
    """Every disturbed condition against the quiet one of the same run."""
    quiet = {(one.condition, one.kind): one for one in results if one.condition.disturb == "quiet"}
    found = []
    for one in results:
        calm = quiet.get((msgspec.structs.replace(one.condition, disturb="quiet"), one.kind))
        if one.condition.disturb == "quiet" or one.failed or calm is None or calm.failed:
            continue
        found += [
            Isolation(
                disturb=f"{one.condition.disturb}, {one.kind}",
                figure=name,
                quiet=calm.figures[name].p99,
                disturbed=one.figures[name].p99,
            )
            for name in _ISOLATED
            if name in calm.figures and name in one.figures
        ]
    return found
