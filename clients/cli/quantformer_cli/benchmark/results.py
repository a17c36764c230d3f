"""What a bench found, as one document: written by `--json`, drawn by `--html`, held against another by `--compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from quantformer.errors import DataError
from quantformer_cli.benchmark.gpu import GpuRange
from quantformer_cli.benchmark.histogram import Histogram
from quantformer_cli.benchmark.plan import Condition, Pace
from quantformer_cli.benchmark.usage import Usage

FORMAT, SCHEMA = "quantformer-bench", 1
#: Bits of the histograms that are kept for pictures; the figures are taken from finer ones.
_PICTURE_BITS = 6

#: Every figure, in the order shown, with its words.
FIGURES = {
    "overhead": "overhead a frame: (published - received) - (done - submitted)",
    "beside_inference": "client's round trip less the inference of the same frame",
    "corrected": "frame due until the client had its answer, or a later frame's (corrected for coordinated omission)",
    "round_trip": "frame sent until the client had its answer",
    "engine": "in the engine: received until published",
    "inference": "inference in the engine: submitted until done",
    "bare": "bare session.run, in its own process",
    "slip": "frame due until its sending began",
    "wire_in": "sent until received",
    "window": "received until the question was ready",
    "queue": "ready until submitted",
    "publish": "done until published",
    "wire_out": "published until in the client's hand",
}


class RoundFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One round's quantiles in us; None where there are too few."""

    count: int
    p50: float | None
    p99: float | None
    max: float


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """A duration over all rounds, in us. A quantile is None where fewer than 1 / (1 - q) were measured. ``counts`` are
    buckets for a picture: lower end in us, and count.
    """

    count: int
    mean: float
    p50: float | None
    p99: float | None
    p999: float | None
    max: float
    rounds: list[RoundFigures]
    counts: list[tuple[float, int]]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One condition and one kind of question. ``failed`` says why there are no figures. Frames are those of the paced part
    and of filling the window; ``asked`` and what follows, those after the warm-up that a question was about.

    ``late`` answers came after the frame that they were about, as the engine flagged them, ``short`` ones had not read the
    last frames before the onset; ``missed`` frames had no answer
    in the client's hand before the next was due; ``skipped`` ones were answered by a later frame's answer alone.
    ``stages`` are means in us of the typical and of the slowest answers; ``clock`` is the engine's clock less the client's
    and its uncertainty, in us.
    """

    condition: Condition
    kind: Literal["standing", "announced", "probe"]
    failed: str = ""
    sent: int = 0
    received: int = 0
    lost: int = 0
    refused: dict[str, int] = {}
    asked: int = 0
    answers: int = 0
    late: int = 0
    short: int = 0
    missed: int = 0
    skipped: int = 0
    unanswered: int = 0
    figures: dict[str, Figure] = {}
    stages: dict[str, dict[str, float]] = {}
    usage: dict[str, Usage] = {}
    disturbed: dict[str, float] = {}
    clock: tuple[float, float] = (0.0, 0.0)


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """The service that was measured; ``threads`` are those of one inference in it and of the bare run, ``granted`` the settings
    whose wish the system granted it (such as ``realtime``).
    """

    engine: str
    bundle: str
    provider: str
    threads: int
    preset: str
    started: bool
    address: str
    precision: str = "float32"
    granted: list[str] = []

    @property
    def granted_words(self) -> str:
        """Those settings, in words."""
        return ", ".join(self.granted) or "nothing"


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What everything ran on."""

    processor: str
    cores: int
    usable_cores: int
    memory_gib: float
    system: str
    host: str
    load_before: float


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of it; ``notes`` say what was not measured, and why."""

    format: Literal["quantformer-bench"] = "quantformer-bench"
    schema: int = SCHEMA
    date_utc: str
    command: str
    machine: Machine
    versions: dict[str, str]
    service: Service
    pace: Pace
    results: list[Result]
    gpu: GpuRange | None = None
    notes: list[str] = []


def figure(rounds: Sequence[NDArray[np.int64]]) -> Figure | None:
    """Durations in ns, an array a round, as a figure; None where there are none."""
    together = np.concatenate([np.zeros(0, np.int64), *rounds])
    if not len(together):
        return None
    fine, coarse = Histogram(), Histogram(bits=_PICTURE_BITS)
    fine.record(together)
    coarse.record(together)
    each = []
    for values in rounds:
        own = Histogram()
        own.record(values)
        each.append(
            RoundFigures(
                count=len(values), p50=_us(own.quantile(0.5)), p99=_us(own.quantile(0.99)), max=own.largest / 1e3
            )
        )
    return Figure(
        count=fine.total,
        mean=float(together.mean()) / 1e3,
        p50=_us(fine.quantile(0.5)),
        p99=_us(fine.quantile(0.99)),
        p999=_us(fine.quantile(0.999)),
        max=fine.largest / 1e3,
        rounds=each,
        counts=[(lower / 1e3, count) for lower, count in coarse.pairs()],
    )


def _us(ns: int | None) -> float | None:
    return None if ns is None else ns / 1e3


def write_document(path: Path, document: Document) -> None:
    """As JSON.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}; choose another file") from None


def read_document(path: Path) -> Document:
    """A document that `write_document` wrote.

    Raises:
        DataError: it cannot be read, or is something else, or of a newer schema.
    """
    try:
        content = path.read_bytes()
        head: dict[str, Any] = msgspec.json.decode(content, type=dict[str, Any])
        if head.get("format") != FORMAT or head.get("schema") != SCHEMA:
            found = f"{head.get('format')!r}, schema {head.get('schema')!r}"
            raise DataError(f"{path} is {found}, expected {FORMAT!r}, schema {SCHEMA}; measure again with this version")
        return msgspec.json.decode(content, type=Document)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}; give a file that 'quantformer bench --json' wrote"
        ) from None
    except msgspec.MsgspecError as error:
        raise DataError(f"{path} is not what 'quantformer bench --json' writes: {error}") from None
