"""From results to what they show together: how cost grows along an axis, and what a disturbance does to the slowest answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from quantformer_cli.benchmark.charts import growth_exponent
from quantformer_cli.benchmark.results import Result

AXES = ("neurons", "stimuli", "sessions")
_GROWING = ("overhead", "inference", "bare", "corrected")
#: What a disturbance could touch.
_ISOLATED = ("corrected", "overhead", "engine", "round_trip")


#: Powers that `beyond_fixed` tries, and the sizes it wants at least: it finds three numbers.
_POWERS, _SIZES = np.arange(0.1, 3.01, 0.01), 4
#: A growing part below this share of the cost at the largest size is no growth: its power would be that of noise.
_FLAT = 0.1


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Cost as ``fixed_us`` + ``factor_us`` x size ** ``power``; a power of 1 is linear, 0 is no growth. ``error`` is the root
    mean square of the relative errors at the sizes measured.
    """

    fixed_us: float
    factor_us: float
    power: float
    error: float


@dataclass(frozen=True, kw_only=True)
class Grown:
    """p50 of one figure at each size, ``points`` (size, us), the power with which it grows as a whole, and how it grows beyond
    what it costs at any size (None: too few sizes).
    """

    figure: str
    points: list[tuple[float, float]]
    power: float | None
    fitted: Fitted | None

    @property
    def words(self) -> str:
        """The power, beyond the fixed cost where that is known."""
        if self.fitted is not None:
            return f"{self.fitted.power:.2f} beyond {self.fitted.fixed_us / 1e3:.3g} ms"
        return "-" if self.power is None else f"{self.power:.2f}"


def beyond_fixed(points: Sequence[tuple[float, float]]) -> Fitted | None:
    """The fixed cost and the power that fit ``points`` (size, us) best, by least squares of relative errors; neither the fixed
    cost nor the growth is negative. None of fewer than four sizes.
    """
    sizes, cost = np.array([point for point in points if min(point) > 0], np.float64).reshape(-1, 2).T
    if len(np.unique(sizes)) < _SIZES:
        return None
    best = min((_fit(sizes, cost, float(power)) for power in _POWERS), key=lambda one: one.error)
    grows = best.factor_us * sizes.max() ** best.power
    return best if grows > _FLAT * (best.fixed_us + grows) else _fit(sizes, cost, 0.0)


def _fit(sizes: NDArray[np.float64], cost: NDArray[np.float64], power: float) -> Fitted:
    """The best fixed cost and factor at this power: both, or one of them alone where the other would be negative; at power 0
    the fixed cost alone.
    """
    shapes = np.stack([1 / cost, sizes**power / cost], axis=1)
    one = np.ones(len(cost))
    both = np.linalg.lstsq(shapes, one, rcond=None)[0]
    alone = (shapes * one[:, None]).sum(axis=0) / (shapes**2).sum(axis=0)
    choices = [both] if power and both.min() >= 0 else [np.array([alone[0], 0.0])]
    choices += [np.array([0.0, alone[1]])] if power and both.min() < 0 else []
    errors = [float(np.sqrt(np.mean((shapes @ choice - 1) ** 2))) for choice in choices]
    best = int(np.argmin(errors))
    fixed, factor = (float(value) for value in choices[best])
    return Fitted(fixed_us=fixed, factor_us=factor, power=power, error=errors[best])


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
            power, fitted = growth_exponent(points), beyond_fixed(points)
            found.append(Grown(figure=name, points=points, power=power, fitted=fitted))
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
