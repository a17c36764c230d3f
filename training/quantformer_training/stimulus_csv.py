"""Stimuli from a CSV file, for recordings that bring none: one row a presentation, columns as ``docs/recordings.md``."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantformer.errors import RecordingError
from quantformer.recording import NO_SUB_SESSION, StimulusTable

ONSET = ("onset_s", "onset_frame")
REQUIRED = ("duration_s", "category", "stimulus_id")
MAXIMUM_BYTES = 64 * 2**20


def read_stimulus_csv(path: Path, *, timestamps_s: NDArray[np.float64]) -> StimulusTable:
    """The presentations in a CSV file.

    ``onset_s`` is on the clock of ``timestamps_s`` ``(frames,)``; ``onset_frame`` is looked up in it. Every column that is
    not one of the documented ones is a feature of that name; an empty cell there does not apply.

    Raises:
        RecordingError: a column is missing or unknown, or a cell cannot be used; the line of the file is named.
    """
    rows = _rows(path)
    header = [name.strip() for name in rows[0][1]]
    onset_column = _check_header(header, path=path)
    cells = [_cells(header, row, where=f"{path}, line {line}") for line, row in rows[1:]]
    where = [f"{path}, line {line}" for line, _ in rows[1:]]
    if onset_column == "onset_frame":
        frames = [_whole(row, "onset_frame", where=at) for row, at in zip(cells, where, strict=True)]
        for frame, at in zip(frames, where, strict=True):
            if not 0 <= frame < len(timestamps_s):
                raise RecordingError(
                    f"{at}: onset_frame is {frame}, the recording has frames 0 to {len(timestamps_s) - 1}"
                )
        onset = [float(timestamps_s[frame]) for frame in frames]
    else:
        onset = [_number(row, "onset_s", where=at) for row, at in zip(cells, where, strict=True)]
    duration = [_number(row, "duration_s", where=at) for row, at in zip(cells, where, strict=True)]
    for seconds, at in zip(duration, where, strict=True):
        if seconds < 0:
            raise RecordingError(f"{at}: duration_s is {seconds}, it cannot be negative")
    sub_session = [
        _whole(row, "sub_session", where=at) if row.get("sub_session") else NO_SUB_SESSION
        for row, at in zip(cells, where, strict=True)
    ]
    features = [name for name in header if name not in {*ONSET, *REQUIRED, "sub_session"}]
    return StimulusTable.build(
        onset_s=onset,
        duration_s=duration,
        category=[_text(row, "category", where=at) for row, at in zip(cells, where, strict=True)],
        stimulus_id=[_text(row, "stimulus_id", where=at) for row, at in zip(cells, where, strict=True)],
        features={
            name: [
                _number(row, name, where=at) if row[name] else math.nan for row, at in zip(cells, where, strict=True)
            ]
            for name in features
        },
        sub_session=sub_session,
    )


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    try:
        size = path.stat().st_size
        if size > MAXIMUM_BYTES:
            raise RecordingError(f"{path} has {size} bytes, more than the {MAXIMUM_BYTES} of a stimulus table")
        # utf-8-sig: spreadsheets write a byte-order mark, which is not part of the first column's name.
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, strict=True)
            rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except OSError as error:
        raise RecordingError(f"{path} cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise RecordingError(f"{path} is not a CSV file in UTF-8: {error}") from error
    if not rows:
        raise RecordingError(f"{path} is empty; its first line must name the columns")
    return rows


def _check_header(header: list[str], *, path: Path) -> str:
    if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
        raise RecordingError(f"{path} is separated by semicolons or tabs; separate the columns by commas")
    for name in header:
        if header.count(name) > 1:
            raise RecordingError(f"{path}: the column {name!r} occurs twice")
        if not name.isidentifier():
            raise RecordingError(f"{path}: {name!r} cannot name a column; use letters, digits and underscores")
    onset = [name for name in ONSET if name in header]
    if len(onset) != 1:
        raise RecordingError(f"{path} needs exactly one of the columns onset_s and onset_frame, it has {len(onset)}")
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        raise RecordingError(f"{path} has no column {missing[0]!r}; it has {', '.join(header)}")
    return onset[0]


def _cells(header: list[str], row: list[str], *, where: str) -> dict[str, str]:
    if len(row) != len(header):
        raise RecordingError(f"{where} has {len(row)} cells, the header has {len(header)}")
    return {name: cell.strip() for name, cell in zip(header, row, strict=True)}


def _text(row: dict[str, str], name: str, *, where: str) -> str:
    if not row[name]:
        raise RecordingError(f"{where}: {name} is empty")
    return row[name]


def _number(row: dict[str, str], name: str, *, where: str) -> float:
    try:
        value = float(row[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RecordingError(f"{where}: {name} is {row[name]!r}, expected a number")
    return value


def _whole(row: dict[str, str], name: str, *, where: str) -> int:
    value = _number(row, name, where=where)
    if value != int(value) or not -(2**15) <= value < 2**31:
        raise RecordingError(f"{where}: {name} is {row[name]!r}, expected a whole number")
    return int(value)
