"""Finished runs on disk: one JSON line each in ``runs.jsonl``, their arrays aside in ``arrays/``; docs/reproduce.md.

Lines are only ever added, so a cut loses at most the run that was being written. A later line of the same key replaces an
earlier one. One process writes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from quantformer.errors import DataError, UnavailableError
from quantformer.recording import Origin
from quantformer_training.numpy_files import read_npz

#: Number of the line's schema. Older ones are read, newer ones refused.
SCHEMA = 1
LINES = "runs.jsonl"
ARRAYS = "arrays"
#: Booleans, whole numbers, floats and text: what an array aside may hold.
ADMITTED_KINDS = "biufU"

#: What every line holds beside its schema.
_KINDS: Mapping[str, type | tuple[type, ...]] = MappingProxyType(
    {
        **dict.fromkeys(("table", "mouse", "category", "model", "task", "variant"), str),
        **dict.fromkeys(("fingerprint", "origin", "machine", "date", "arrays", "failure"), str),
        "seed": int,
        "seconds": (int, float),
        "versions": dict,
        "metrics": dict,
    }
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, order=True)
class RunKey:
    """Which run it is: of ``table``, on one ``mouse`` and stimulus ``category`` (or "pooled"), of one ``model``.

    ``task`` is "activation", "forecast" or "both"; ``variant`` says how it differs from the model as such, "" if not.
    """

    table: str
    mouse: str
    category: str
    model: str
    task: str
    variant: str = ""
    seed: int = 0

    @property
    def row(self) -> str:
        """The row of a table that it belongs to: the model, and the variant after a slash."""
        return f"{self.model}/{self.variant}" if self.variant else self.model

    def __str__(self) -> str:
        return f"{self.table}, {self.mouse}, {self.category}, {self.row}, {self.task}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run that ended: its ``metrics`` (NaN where undefined), or why it has none in ``failure``.

    ``seconds`` is wall-clock time, ``date`` ISO 8601 in UTC, ``arrays`` the SHA-256 of the file aside or "".
    """

    key: RunKey
    fingerprint: str
    origin: Origin
    metrics: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    seconds: float
    machine: str
    versions: Mapping[str, str]
    date: str
    arrays: str = ""
    failure: str = ""


def fingerprint(*, config: Any, data: str, software: Mapping[str, str]) -> str:
    """A digest of everything that a run's figures follow from; ``data`` is a digest of the recordings themselves.

    ``config`` is a dataclass, or dicts, lists, text and numbers.

    Raises:
        DataError: the configuration holds anything else, such as a path, which is another on every machine.
    """
    plain = {type(config).__name__: asdict(config)} if is_dataclass(config) and not isinstance(config, type) else config
    try:
        text = json.dumps([plain, data, dict(software)], sort_keys=True, separators=(",", ":"))
    except TypeError as error:
        raise DataError(
            f"the configuration cannot be fingerprinted: {error}; it may hold text, numbers, lists, dicts and dataclasses"
        ) from None
    return hashlib.sha256(text.encode()).hexdigest()


class RunStore:
    """The runs in ``directory``, which is made when the first one is added.

    Raises:
        DataError: a line is damaged or of a newer schema. A last line that was cut short is left out with a warning.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._path = directory / LINES
        self._runs: dict[RunKey, Run] = {}
        #: Bytes of whole lines; what follows was cut short and is overwritten.
        self._whole = 0
        self._read()

    def runs(self) -> tuple[Run, ...]:
        """The latest run of every key, failed ones among them, in order of first appearance."""
        return tuple(self._runs.values())

    def finished(self, key: RunKey, *, fingerprint: str) -> Run | None:
        """The run, unless it is missing, failed, was made otherwise, or has lost its arrays: then it is to be run."""
        run = self._runs.get(key)
        if run is None or run.failure or run.fingerprint != fingerprint:
            return None
        return None if run.arrays and not self._aside(run).exists() else run

    def add(self, run: Run, arrays: Mapping[str, NDArray[Any]] | None = None) -> Run:
        """Store a run, its arrays first; floats are kept as float32. When this returns both are on the disk.

        Raises:
            DataError: an array holds objects.
            UnavailableError: it cannot be written; what was there before is whole.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if arrays:
                run = replace(run, arrays=self._write_arrays(run, arrays))
            self._append(_line(run))
        except OSError as error:
            raise UnavailableError(
                f"{self.directory} cannot be written ({error.strerror or error}); make room or choose another directory, "
                "then run the same command again: finished runs are kept"
            ) from error
        self._runs[run.key] = run
        return run

    def arrays(self, run: Run) -> dict[str, NDArray[Any]]:
        """The arrays aside of a run; empty where it has none.

        Raises:
            DataError: the file is missing or not the one that was written.
        """
        if not run.arrays:
            return {}
        path = self._aside(run)
        if not path.exists():
            raise DataError(f"{path} is missing, the arrays of the run {run.key}; run the command again to make it anew")
        if _sha256(path) != run.arrays:
            raise DataError(f"{path} was altered since it was written; remove it and run the command again")
        return read_npz(path)

    def _aside(self, run: Run) -> Path:
        """A name from the run itself: nothing that a file says becomes a path."""
        identity = json.dumps([asdict(run.key), run.fingerprint], sort_keys=True)
        return self.directory / ARRAYS / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.npz"

    def _write_arrays(self, run: Run, arrays: Mapping[str, NDArray[Any]]) -> str:
        plain = {}
        for name, array in arrays.items():
            if array.dtype.kind not in ADMITTED_KINDS or not name.isidentifier():
                raise DataError(
                    f"{run.key}: array {name!r} of dtype {array.dtype} cannot be stored; numbers, booleans and text can"
                )
            plain[name] = array.astype(np.float32) if array.dtype.kind == "f" else array
        path = self._aside(run)
        path.parent.mkdir(exist_ok=True)
        aside = path.with_suffix(".partial")
        try:
            with aside.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **plain)
                file.flush()
                os.fsync(file.fileno())
            digest = _sha256(aside)
            aside.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                aside.unlink()
            raise
        return digest

    def _append(self, line: bytes) -> None:
        # Without a buffer: one that could not be emptied would be tried again on closing, after the repair.
        with self._path.open("r+b" if self._path.exists() else "x+b", buffering=0) as file:
            file.truncate(self._whole)
            file.seek(self._whole)
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[file.write(rest) or 0 :]
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(self._whole)
                raise
        self._whole += len(line)

    def _read(self) -> None:
        try:
            content = self._path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise UnavailableError(f"{self._path} cannot be read ({error.strerror or error})") from error
        whole, newline, torn = content.rpartition(b"\n")
        self._whole = len(whole) + len(newline)
        if torn:
            _log.warning("%s: the last line was cut short and is left out; that run is run again", self._path)
        for number, line in enumerate(whole.split(b"\n") if newline else (), start=1):
            run = _run(line, where=f"{self._path}, line {number}")
            self._runs[run.key] = run


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line(run: Run) -> bytes:
    metrics = {name: float(value) if math.isfinite(value) else None for name, value in run.metrics.items()}
    entry = {"schema": SCHEMA, **asdict(run.key)}
    entry |= {name.name: getattr(run, name.name) for name in fields(Run) if name.name not in ("key", "metrics", "versions")}
    entry |= {"metrics": metrics, "versions": dict(run.versions)}
    return json.dumps(entry, allow_nan=False).encode() + b"\n"


def _run(line: bytes, *, where: str) -> Run:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError(f"{where} is not JSON; restore the file, or remove that line to have its run made anew") from None
    if not isinstance(entry, dict) or not isinstance(entry.get("schema"), int):
        raise DataError(f"{where} is not a run; remove that line to have its run made anew")
    if entry["schema"] > SCHEMA:
        raise DataError(f"{where} has schema {entry['schema']}, this software reads up to {SCHEMA}: update quantformer")
    for name, kind in _KINDS.items():
        if not isinstance(entry.get(name), kind):
            raise DataError(f"{where}: {name} is {entry.get(name)!r}; remove that line to have its run made anew")
    if entry["origin"] not in get_args(Origin):
        raise DataError(f"{where}: origin is {entry['origin']!r}, expected one of {', '.join(get_args(Origin))}")
    bad = [name for name, value in entry["metrics"].items() if not isinstance(value, int | float | None)]
    bad += [name for name, value in entry["versions"].items() if not isinstance(value, str)]
    if bad:
        raise DataError(f"{where}: {bad[0]} has a value of another type; remove that line to have its run made anew")
    metrics = {name: math.nan if value is None else float(value) for name, value in entry["metrics"].items()}
    key = RunKey(**{name.name: entry[name.name] for name in fields(RunKey)})
    rest = {name.name: entry[name.name] for name in fields(Run) if name.name not in ("key", "metrics")}
    return Run(key=key, metrics=metrics, **rest)
