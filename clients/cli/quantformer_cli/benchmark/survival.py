"""What recordings hold after their writers were killed: every file whole but for a torn tail, every acknowledged record there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from quantformer_client import wire
from quantformer_service.recording_file import SUFFIX, Kind, RecordingReader


class Survival(msgspec.Struct, frozen=True, kw_only=True):
    """Of all files together: how many, and how many whole records and frames in them; files with a torn tail; every damage
    found; and by epoch of the engine how many records were acknowledged and are gone.
    """

    files: int
    records: int
    frames: int
    torn: int
    damages: list[str]
    acknowledged: int
    missing: dict[int, int]


def survival(directory: Path, acknowledged: Mapping[int, int]) -> Survival:
    """Read every record of every recording in ``directory``; ``acknowledged`` is the last number of each epoch that the engine
    said to be safe, and all before it are held to be there.

    Raises:
        RecordingError: a file cannot be read at all.
    """
    paths = sorted(path for path in directory.iterdir() if path.name.endswith(SUFFIX))
    found: dict[int, set[int]] = {}
    damages: list[str] = []
    records = frames = torn = 0
    for path in paths:
        with RecordingReader(path) as reader:
            survey = reader.survey()
            records += survey.records
            torn += survey.torn_bytes > 0
            damages += [f"{path.name}: {damage}" for damage in survey.damages]
            if reader.header is None or survey.damages:
                continue
            numbers = found.setdefault(reader.header.epoch, set())
            for one in reader.records():
                if one.kind not in (Kind.START, Kind.END):
                    numbers.add(one.sequence)
                frames += one.kind == Kind.INPUT and wire.peek(one.payload).type == wire.MessageType.FRAME
    gone = {epoch: len(set(range(1, last + 1)) - found.get(epoch, set())) for epoch, last in acknowledged.items()}
    return Survival(
        files=len(paths),
        records=records,
        frames=frames,
        torn=torn,
        damages=damages,
        acknowledged=sum(acknowledged.values()),
        missing={epoch: count for epoch, count in gone.items() if count},
    )
