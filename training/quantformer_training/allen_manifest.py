"""``allen-manifest.json``: what was fetched into a folder, from where, when, with which digest.

It decides what a second run need not fetch, and is what a paper cites. Written aside and moved into place after each file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from quantformer.errors import DataError, UnavailableError
from quantformer_training.download import digests

NAME = "allen-manifest.json"
FORMAT, SCHEMA = "quantformer-allen-manifest", 1
_MOST_MANIFEST_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class ManifestEntry:
    """One fetched file: ``url``, size, SHA-256, what was compared (``md5``, ``size``), when (UTC) and by which software.

    ``experiment`` is its id; ``container``, ``session``, ``cre_line``, ``area`` and ``depth_um`` describe it where known.
    """

    experiment: int
    url: str
    bytes: int
    sha256: str
    etag: str | None
    checked: str
    date: str
    software: str
    container: int | None
    session: str | None
    cre_line: str | None
    area: str | None
    depth_um: int | None

    @property
    def name(self) -> str:
        """Its file's name in the folder."""
        return file_name(self.experiment)


def file_name(experiment: int) -> str:
    """What an experiment's file is called here; the server has no say in it."""
    return f"{experiment}.nwb"


def read_manifest(folder: Path) -> dict[int, ManifestEntry]:
    """The entries by experiment; none where the folder has no manifest yet.

    Raises:
        DataError: the file is no manifest of this schema.
    """
    path = folder / NAME
    try:
        if path.stat().st_size > _MOST_MANIFEST_BYTES:
            raise DataError(f"{path} has {path.stat().st_size} bytes, which no manifest has")
        loaded = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}; move it away, files of the right size are then found again") from error
    if not isinstance(loaded, dict) or loaded.get("format") != FORMAT or not isinstance(loaded.get("files"), list):
        raise DataError(f"{path} is no {FORMAT}; move it away or choose another folder")
    if loaded.get("schema") != SCHEMA:
        raise DataError(f"{path} has the schema {loaded.get('schema')!r}, this version reads {SCHEMA}; update quantformer")
    entries = [_entry(record, where=f"{path}: file {row}") for row, record in enumerate(loaded["files"])]
    return {entry.experiment: entry for entry in entries}


def write_manifest(folder: Path, entries: dict[int, ManifestEntry]) -> None:
    """Replace the folder's manifest.

    Raises:
        UnavailableError: the disk refuses.
    """
    files = [asdict(entries[experiment]) for experiment in sorted(entries)]
    aside = folder / f".{NAME}.{os.getpid()}"
    try:
        aside.write_text(json.dumps({"format": FORMAT, "schema": SCHEMA, "files": files}, indent=1) + "\n", encoding="utf-8")
        aside.replace(folder / NAME)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise UnavailableError(f"{folder / NAME} cannot be written: {error.strerror or error}") from error


def verify(folder: Path, *, report: Callable[[ManifestEntry], None] = lambda entry: None) -> dict[int, str]:
    """Compare every file of the manifest with its size and SHA-256; what is wrong, by experiment. Needs no network.

    Raises:
        DataError: there is no manifest, or it cannot be read.
    """
    entries = read_manifest(folder)
    if not entries:
        raise DataError(f"{folder} has no {NAME}; quantformer fetch-allen --out {folder} makes one")
    wrong = {}
    for entry in entries.values():
        report(entry)
        path = folder / entry.name
        try:
            size = path.stat().st_size
            found = digests(path)[0] if size == entry.bytes else None
        except OSError as error:
            wrong[entry.experiment] = f"{path} cannot be read: {error.strerror or error}"
            continue
        if found is None:
            wrong[entry.experiment] = f"{path} has {size} bytes, the manifest says {entry.bytes}"
        elif found != entry.sha256:
            wrong[entry.experiment] = f"{path} has the SHA-256 {found}, the manifest says {entry.sha256}"
    return wrong


def _entry(record: Any, *, where: str) -> ManifestEntry:
    kinds: dict[str, Any] = {field.name: field.type for field in fields(ManifestEntry)}
    if not isinstance(record, dict) or set(record) != set(kinds):
        raise DataError(f"{where} has other keys than {', '.join(kinds)}")
    for key, value in record.items():
        wanted = {"int": (int,), "str": (str,), "int | None": (int, type(None)), "str | None": (str, type(None))}[kinds[key]]
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise DataError(f"{where}: {key} is {str(value)[:40]!r}, expected {kinds[key]}")
    if record["bytes"] < 1 or record["experiment"] < 1 or not re.fullmatch(r"[0-9a-f]{64}", record["sha256"]):
        raise DataError(f"{where}: experiment, bytes or sha256 is no such thing")
    return ManifestEntry(**record)
