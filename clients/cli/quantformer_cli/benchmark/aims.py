"""What was measured beside what was aimed at: rows of figures in sections, and the whole of it as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np

from quantformer_cli.benchmark.growth import AXES, grown, isolation
from quantformer_cli.benchmark.kills import Killed
from quantformer_cli.benchmark.results import Machine, Result
from quantformer_cli.benchmark.survival import Survival

#: Longest p99 of an answer to every frame at 30 Hz, and the most that a disturbance may lengthen a p99.
FRAME_MS, RATIO = 33.3, 1.5
READY_S, GROWTH_PERCENT, POWER = 5.0, 1.0, 1.0

_Quantile = Literal["p50", "p99"]
_QUANTILES: tuple[_Quantile, ...] = ("p50", "p99")
#: Figures of a result, for people.
_WORDS = {
    "engine": "in the engine",
    "inference": "inference",
    "overhead": "overhead a frame",
    "round_trip": "round trip",
    "beside_inference": "client's round trip less inference",
    "corrected": "frame due until the client has the answer",
}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure; smaller is better. ``value`` is None where there was too little to tell it, ``aim`` where none was set."""

    what: str
    value: float | None
    unit: str = ""
    aim: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the aim was reached; None where there is none. What was not measured reached nothing."""
        return None if self.aim is None else self.value is not None and self.value <= self.aim


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """One part: how it was measured, its rows, and the files of `quantformer bench` beside it that hold every figure."""

    part: str
    title: str
    date_utc: str
    load: tuple[float, float]
    how: list[str]
    rows: list[Row]
    files: list[str] = []
    values: dict[str, list[float]] = {}


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one run of ``deploy/measure_engine.py`` measured; ``scale`` below 1 is a trial run."""

    format: Literal["quantformer-engine-record"] = "quantformer-engine-record"
    schema: int = 1
    date_utc: str
    command: str
    machine: Machine
    versions: dict[str, str]
    scale: float
    sections: list[Section]


def _ms(one: Result, figure: str, quantile: _Quantile) -> float | None:
    found = one.figures.get(figure)
    us: float | None = None if found is None else getattr(found, quantile)
    return None if us is None else us / 1e3


def _failed(one: Result) -> list[Row]:
    return [Row(what=f"{one.condition.label}, {one.kind}: {one.failed}", value=None, aim=0.0)]


def overhead_rows(one: Result, *, network: str, every_frame: bool) -> list[Row]:
    """Overhead, the client's round trip and, of a model that is to answer ``every_frame``, its whole latency."""
    if one.failed:
        return _failed(one)
    rows = [
        Row(what=f"overhead a frame, {network}, p50", value=_ms(one, "overhead", "p50"), unit="ms", aim=0.25),
        Row(what=f"overhead a frame, {network}, p99", value=_ms(one, "overhead", "p99"), unit="ms", aim=0.8),
        Row(what=f"client's round trip less inference, {network}, p50", value=_ms(one, "beside_inference", "p50"),
            unit="ms", aim=0.7),
        Row(what=f"client's round trip less inference, {network}, p99", value=_ms(one, "beside_inference", "p99"),
            unit="ms", aim=2.0),
        Row(what=f"inference, {network}, p50", value=_ms(one, "inference", "p50"), unit="ms"),
        Row(what=f"inference, {network}, p99", value=_ms(one, "inference", "p99"), unit="ms"),
        Row(what=f"frame due until the client has the answer, {network}, p50", value=_ms(one, "corrected", "p50"), unit="ms"),
        Row(what=f"frame due until the client has the answer, {network}, p99", value=_ms(one, "corrected", "p99"),
            unit="ms", aim=FRAME_MS if every_frame else None),
        *(Row(what=f"{name} of {one.asked} frames, {network}", value=count)
          for name, count in (("missed", one.missed), ("skipped", one.skipped), ("late", one.late))),
    ]  # fmt: skip
    return [*rows, Row(what=f"frames lost of {one.sent}, {network}", value=one.lost, aim=0.0)]


def large_rows(one: Result) -> list[Row]:
    """A frame without a standing question: ingest, window, publish."""
    if one.failed:
        return _failed(one)
    return [
        Row(what="overhead without a standing question, p50", value=_ms(one, "overhead", "p50"), unit="ms"),
        Row(what="overhead without a standing question, p99", value=_ms(one, "overhead", "p99"), unit="ms", aim=2.5),
        Row(what=f"frames lost of {one.sent}", value=one.lost, aim=0.0),
    ]


def load_rows(one: Result, *, load: str, figure: str, p50: float | None, p99: float) -> list[Row]:
    """One load: ``figure`` beside what it may be at most, in ms, and what else belongs to an answer."""
    if one.failed:
        return _failed(one)
    most: dict[tuple[str, _Quantile], float | None] = {(figure, "p50"): p50, (figure, "p99"): p99}
    rows = [
        Row(what=f"{load}: {words}, {quantile}", value=_ms(one, name, quantile), unit="ms", aim=most.get((name, quantile)))
        for name, words in _WORDS.items()
        for quantile in _QUANTILES
    ]
    counts = (("missed", one.missed), ("skipped", one.skipped), ("late", one.late))
    rows += [Row(what=f"{load}: {name} of {one.asked} frames", value=count) for name, count in counts]
    return [*rows, Row(what=f"{load}: frames lost of {one.sent}", value=one.lost, aim=0.0)]


def isolation_rows(results: Sequence[Result], *, network: str) -> list[Row]:
    """p99 disturbed over p99 quiet of the same rounds, by disturbance and figure; what failed is told as not measured."""
    rows = [
        Row(what=f"{one.disturb}, {network}: p99 of {_WORDS[one.figure]}, disturbed / quiet", value=one.ratio, aim=RATIO)
        for one in isolation(results)
    ]
    return rows + [row for one in results if one.failed for row in _failed(one)]


def endurance_rows(phases: Mapping[str, Result]) -> list[Row]:
    """Of each phase in order: frames lost, late answers, and resident memory since it had settled; then over all phases."""
    rows = []
    for name, one in phases.items():
        if one.failed:
            rows += _failed(one)
            continue
        rows += [
            Row(what=f"{name}: frames lost of {one.sent}", value=one.lost, aim=0.0),
            Row(what=f"{name}: late answers of {one.answers}", value=one.late),
            Row(what=f"{name}: frames skipped of {one.asked}", value=one.skipped),
        ]
        for process in ("engine", "gateway"):
            use = one.usage.get(process)
            settled = None if use is None else use.memory_settled_mib
            last = None if use is None else use.memory_last_mib
            rows.append(Row(what=f"{name}: memory of the {process} once settled", value=settled, unit="MiB"))
            rows.append(_growth(f"{name}: memory of the {process} at the end against then", settled, last))
    first, *_, final = phases.values()
    for process in ("engine", "gateway"):
        if process in first.usage and process in final.usage:
            begun, ended = first.usage[process].memory_settled_mib, final.usage[process].memory_last_mib
            rows.append(_growth(f"all phases: memory of the {process} at the end against once settled", begun, ended))
    return rows


def _growth(what: str, begun: float | None, ended: float | None) -> Row:
    percent = None if begun is None or ended is None else 100 * (ended / begun - 1)
    return Row(what=what, value=percent, unit="%", aim=GROWTH_PERCENT)


def kill_rows(killed: Killed, left: Survival) -> list[Row]:
    """What was acknowledged and is gone, files that do not verify, how soon each was back, and what the client heard."""
    back = {"engine killed until ready again": killed.engine_ms, "recorder killed until all is safe": killed.recorder_ms}
    rows = [
        Row(what=f"acknowledged records gone, of {left.acknowledged}", value=sum(left.missing.values()), aim=0.0),
        Row(what=f"places of damage in {left.files} files ({left.records} records, {left.frames} frames, {left.torn} torn "
            "tails)", value=len(left.damages), aim=0.0),
        Row(what=f"open sessions that heard no session_lost, of {killed.orphaned}",
            value=killed.orphaned - killed.session_lost, aim=0.0),
        Row(what=f"sessions that were not disarmed when they were opened, of {killed.opened}, of which {killed.armed} were "
            "armed later", value=killed.opened - killed.disarmed, aim=0.0),
    ]  # fmt: skip
    for name, ms in back.items():
        rows.append(Row(what=f"{name}, {len(ms)} times, p50", value=float(np.median(ms)) / 1e3, unit="s"))
        aim = READY_S if name.startswith("engine") else None
        rows.append(Row(what=f"{name}, {len(ms)} times, longest", value=max(ms) / 1e3, unit="s", aim=aim))
    return rows


def start_rows(seconds: Sequence[float], *, cpu: Mapping[str, Sequence[float]]) -> list[Row]:
    """From the start of `quantformer serve` until it says that it is ready, and what each process computed until then."""
    rows = [
        Row(what=f"start to ready, {len(seconds)} times, p50", value=float(np.median(seconds)), unit="s"),
        Row(what=f"start to ready, {len(seconds)} times, longest", value=max(seconds), unit="s", aim=READY_S),
    ]
    return rows + [
        Row(what=f"CPU time of the {name} until then, p50", value=float(np.median(each)), unit="s")
        for name, each in cpu.items()
    ]


def growth_rows(results: Sequence[Result]) -> list[Row]:
    """The power with which each figure grows along each axis, beyond what it costs at any size; to one place, as 1.04 and 0.97
    are not told apart.
    """
    rows = []
    for axis in AXES:
        for line in grown(results, axis=axis):
            sizes = f"{line.points[0][0]:g} to {line.points[-1][0]:g} {axis}"
            power = None if line.fitted is None else round(line.fitted.power, 1)
            rows.append(Row(what=f"p50 of {line.figure}, {sizes}: power of the size beyond the fixed cost", value=power,
                            aim=POWER))  # fmt: skip
    return rows + [row for one in results if one.failed for row in _failed(one)]


def markdown(record: Record) -> str:
    """A table a section, each row with its aim and whether it was met."""
    machine = record.machine
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    lines = [
        f"# The engine, measured {record.date_utc}",
        "",
        f"{machine.processor}, {machine.usable_cores} of {machine.cores} cores, {machine.memory_gib:g} GiB, {machine.system}; "
        f"load {machine.load_before:g} before. {versions}.",
        "",
        f"`{record.command}`",
    ]
    if record.scale != 1.0:
        lines += ["", f"A trial at {record.scale:g} of the lengths: it shows that everything runs, and judges nothing."]
    for section in record.sections:
        before, after = section.load
        lines += ["", f"## {section.title}", "", *(f"- {line}" for line in section.how)]
        lines += [f"- {section.date_utc}; load {before:.1f} before, {after:.1f} after"]
        lines += [f"- every figure: {', '.join(f'`{name}`' for name in section.files)}"] if section.files else []
        lines += ["", "| | measured | aim | |", "|---|---|---|---|"]
        lines += [_line(row, judged=record.scale == 1.0) for row in section.rows]
    return "\n".join(lines) + "\n"


def _line(row: Row, *, judged: bool) -> str:
    told = {None: "", True: "met", False: "**not met**"}[row.met if judged else None]
    what = row.what.replace("|", "\\|")
    aim = "" if row.aim is None else f"<= {_number(row.aim, row.unit)}"
    return f"| {what} | {_number(row.value, row.unit)} | {aim} | {told} |"


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "not measured"
    return f"{value:.4g} {unit}".strip() if value < 1000 else f"{value:.0f} {unit}".strip()
