"""A bench's pictures as inline SVG: histograms, the stages of an answer, and how cost grows. Colours come from the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from quantformer_cli.benchmark.stamps import STAGES

#: What a stage is called in a legend.
STAGE_WORDS = {
    "slip": "client late",
    "wire_in": "wire in",
    "window": "window",
    "queue": "queue",
    "inference": "inference",
    "publish": "publish",
    "wire_out": "wire out",
}
_WIDTH, _LEFT, _RIGHT = 920.0, 64.0, 16.0
#: Bins a decade of the histograms.
_BINS = 16


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line with its name: ``points`` are (x, y)."""

    name: str
    points: Sequence[tuple[float, float]]


def histogram_svg(curves: Mapping[str, Sequence[tuple[float, int]]]) -> str:
    """Shares of durations over a logarithmic axis; each curve is buckets of (lower end in us, count)."""
    ends = [us for buckets in curves.values() for us, _ in buckets if us > 0]
    if not ends:
        return ""
    low = math.floor(math.log10(max(min(ends), 1.0)) * _BINS) / _BINS
    high = math.floor(math.log10(max(max(ends), 1.0)) * _BINS) / _BINS + 2 / _BINS
    bins = round((high - low) * _BINS) + 1
    shares: dict[str, list[float]] = {}
    for name, buckets in curves.items():
        total = sum(count for _, count in buckets)
        found = [0.0] * bins
        for us, count in buckets:
            at = math.floor((math.log10(max(us, 1.0)) - low) * _BINS + 1e-9)
            found[min(max(at, 0), bins - 1)] += count / total
        shares[name] = found
    height, top, bottom = 260.0, 30.0, 40.0
    most = max(max(found) for found in shares.values())

    def x(decade: float) -> float:
        return _LEFT + (decade - low) / (high - low + 1 / _BINS) * (_WIDTH - _LEFT - _RIGHT)

    def y(share: float) -> float:
        return height - bottom - share / most * (height - top - bottom)

    parts = [_decades(low, high, x, height - bottom, unit=_milliseconds)]
    parts.append(_label(_LEFT - 8, y(most) + 4, f"{100 * most:.0f} %", anchor="end"))
    parts.append(_label(_LEFT - 8, y(0) + 4, "0", anchor="end"))
    for number, (name, found) in enumerate(shares.items()):
        path = f"M{x(low):.1f} {y(0):.1f}"
        for at, share in enumerate(found):
            path += f"V{y(share):.1f}H{x(low + (at + 1) / _BINS):.1f}"
        parts.append(f'<path class="line c{number}" d="{path}V{y(0):.1f}"><title>{escape(name)}</title></path>')
    parts.append(_legend(list(shares), mark="c"))
    return _svg("".join(parts), height=height, about="histogram of " + ", ".join(curves))


def stages_svg(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Where the time went: a bar a row, cut into mean us of each stage."""
    most = max((sum(row.values()) for row in rows.values()), default=0.0)
    if most <= 0:
        return ""
    pitch, top, left = 34.0, 34.0, 190.0
    height = top + pitch * len(rows) + 26
    scale = (_WIDTH - left - 90) / most
    parts = [_legend([STAGE_WORDS[name] for name in STAGES], mark="s")]
    for line, (name, row) in enumerate(rows.items()):
        at, y = left, top + pitch * line
        parts.append(_label(left - 8, y + 16, name, anchor="end"))
        for number, stage in enumerate(STAGES):
            width = max(0.0, row.get(stage, 0.0)) * scale
            about = f"{STAGE_WORDS[stage]}: {row.get(stage, 0.0):.0f} us"
            parts.append(
                f'<rect class="s{number}" x="{at:.2f}" y="{y:.1f}" width="{width:.2f}" height="24"><title>{about}</title></rect>'
            )
            at += width
        parts.append(_label(at + 6, y + 16, f"{sum(row.values()) / 1e3:.2f} ms"))
    return _svg("".join(parts), height=height, about="mean time by stage")


def growth_svg(curves: Sequence[Curve], *, along: str) -> str:
    """Cost against size, both logarithmic; the dotted line is what linear growth from the first point would be."""
    points = [point for curve in curves for point in curve.points if min(point) > 0]
    if not points:
        return ""
    height, top, bottom = 300.0, 34.0, 44.0
    xs, ys = [math.log10(x) for x, _ in points], [math.log10(y) for _, y in points]
    left, right = min(xs), max(max(xs), min(xs) + 0.1)
    low, high = math.floor(min(ys)), math.ceil(max(ys) + 1e-9)
    high = max(high, low + 1)

    def x(decade: float) -> float:
        return _LEFT + (decade - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT - 40)

    def y(decade: float) -> float:
        return height - bottom - (decade - low) / (high - low) * (height - top - bottom)

    parts = []
    for decade in range(low, high + 1):
        parts.append(f'<path class="grid" d="M{_LEFT} {y(decade):.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(_label(_LEFT - 8, y(decade) + 4, _milliseconds(10.0**decade), anchor="end"))
    for value in sorted({x_value for x_value, _ in points}):
        parts.append(_label(x(math.log10(value)), height - bottom + 18, f"{value:g}", anchor="middle"))
    parts.append(_label((_LEFT + _WIDTH) / 2, height - 6, along, anchor="middle"))
    for number, curve in enumerate(curves):
        logs = [(math.log10(a), math.log10(b)) for a, b in curve.points if min(a, b) > 0]
        if not logs:
            continue
        path = "M" + "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in logs)
        parts.append(f'<path class="line c{number}" d="{path}"/>')
        for (a, b), (size, us) in zip(logs, curve.points, strict=True):
            about = f"{escape(curve.name)} at {size:g}: {us:.0f} us"
            parts.append(
                f'<circle class="dot c{number}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="4"><title>{about}</title></circle>'
            )
        (a, b), last = logs[0], logs[-1][0]
        rise = min(last - a, high - b)
        parts.append(f'<path class="linear" d="M{x(a):.1f} {y(b):.1f}L{x(a + rise):.1f} {y(b + rise):.1f}"/>')
    parts.append(_legend([curve.name for curve in curves], mark="c"))
    return _svg("".join(parts), height=height, about=f"cost against {along}")


def growth_exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """The power of the size with which cost grows, by least squares of logarithms: 1 is linear; None of fewer than two."""
    logs = [(math.log(x), math.log(y)) for x, y in points if min(x, y) > 0]
    if len({x for x, _ in logs}) < 2:
        return None
    mean_x, mean_y = (sum(pair[i] for pair in logs) / len(logs) for i in (0, 1))
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)


def _decades(low: float, high: float, x: object, base: float, *, unit: object) -> str:
    assert callable(x)
    assert callable(unit)
    parts = [f'<path class="axis" d="M{_LEFT} {base:.1f}H{_WIDTH - _RIGHT}"/>']
    for decade in range(math.ceil(low), math.floor(high) + 1):
        for step in (1, 2, 5):
            at = decade + math.log10(step)
            if low <= at <= high:
                parts.append(f'<path class="grid" d="M{x(at):.1f} {base:.1f}v5"/>')
                parts.append(_label(x(at), base + 18, unit(10.0**at), anchor="middle"))
    return "".join(parts)


def _milliseconds(us: float) -> str:
    if us >= 999_500:
        return f"{us / 1e6:.3g} s"
    return f"{us:.3g} us" if us < 99.5 else f"{us / 1e3:.3g} ms"


def _legend(names: Sequence[str], *, mark: str) -> str:
    parts, at = [], _LEFT
    for number, name in enumerate(names):
        parts.append(f'<rect class="{mark}{number} key" x="{at:.0f}" y="6" width="12" height="12"/>')
        parts.append(_label(at + 17, 16, name))
        at += 32 + 6.6 * len(name)
    return "".join(parts)


def _label(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(inside: str, *, height: float, about: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH:.0f} {height:.0f}" role="img" aria-label="{escape(about)}">{inside}</svg>'
