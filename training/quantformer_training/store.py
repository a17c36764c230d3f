"""Corrected traces of many recordings on disk, memory-mapped: a cohort larger than memory is read window by window."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from zipfile import BadZipFile

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from quantformer.errors import DataError, UnavailableError
from quantformer.recording import Provenance, Recording, StimulusTable

#: Number of the store's schema; another is refused.
STORE_SCHEMA = 1
_COLUMNS = ("onset_s", "duration_s", "sub_session")


class Traced(Protocol):
    """What trials are cut from: a `Recording`, or a session of a store."""

    @property
    def stimuli(self) -> StimulusTable:
        """Presentations."""
        ...

    @property
    def timestamps_s(self) -> NDArray[np.float64]:
        """Start of each frame ``(frames,)``."""
        ...

    @property
    def provenance(self) -> Provenance:
        """Where it came from."""
        ...

    @property
    def neuron_ids(self) -> tuple[str, ...]:
        """One id a neuron."""
        ...

    @property
    def frames(self) -> int:
        """Number of frames."""
        ...

    @property
    def neurons(self) -> int:
        """Number of neurons."""
        ...

    @property
    def rate_hz(self) -> float:
        """Median frame rate."""
        ...

    @property
    def running_speed_cm_s(self) -> NDArray[np.float32] | None:
        """Running speed ``(frames,)``, where it was measured."""
        ...

    def corrected(self) -> NDArray[np.float32]:
        """Neuropil-corrected fluorescence ``(frames, neurons)``."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredSession:
    """One recording of a store. ``traces`` is memory-mapped float32 ``(neurons, frames)``: a window of a neuron is one run
    of bytes. ``fingerprint`` is the SHA-256 of traces, stamps, presentations and names.
    """

    name: str
    traces: NDArray[np.float32]
    timestamps_s: NDArray[np.float64]
    neuron_ids: tuple[str, ...]
    stimuli: StimulusTable
    provenance: Provenance
    running_speed_cm_s: NDArray[np.float32] | None
    fingerprint: str

    @property
    def frames(self) -> int:
        """Number of frames."""
        return int(self.traces.shape[1])

    @property
    def neurons(self) -> int:
        """Number of neurons."""
        return int(self.traces.shape[0])

    @property
    def rate_hz(self) -> float:
        """Median frame rate, from the time stamps."""
        return float(1.0 / np.median(np.diff(self.timestamps_s))) if self.frames > 1 else float("nan")

    def corrected(self) -> NDArray[np.float32]:
        """Fluorescence ``(frames, neurons)``, a view."""
        return self.traces.T

    def windows(self, neuron: NDArray[np.int64], start: NDArray[np.int64], *, frames: int) -> NDArray[np.float32]:
        """Fluorescence ``(B, frames)`` of neuron ``neuron[i]`` from frame ``start[i]`` on; every window must lie inside.

        Raises:
            DataError: a window reaches outside the recording, or there is no such neuron.
        """
        if len(start) and (
            start.min() < 0 or start.max() + frames > self.frames or neuron.min() < 0 or neuron.max() >= self.neurons
        ):
            raise DataError(
                f"{self.name}: a window of {frames} frames was asked outside its {self.neurons} x {self.frames} samples"
            )
        runs = sliding_window_view(self.traces.reshape(-1), frames)
        cut: NDArray[np.float32] = runs[neuron * self.frames + start]
        return cut


def write_session(recording: Recording, directory: Path) -> StoredSession:
    """Write a recording's corrected traces and its tables to ``directory``, aside first, then renamed.

    Raises:
        UnavailableError: it cannot be written, for want of room or of rights; nothing is left behind.
    """
    aside = directory.with_name(directory.name + ".partial")
    table = recording.stimuli
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        traces = np.ascontiguousarray(recording.corrected().T)
        digest = hashlib.sha256()
        for array in (traces, recording.timestamps_s, table.onset_s, table.duration_s):
            digest.update(np.ascontiguousarray(array).data)
        digest.update(repr([(table.stimulus_id[i], table.features_of(i)) for i in range(len(table))]).encode())
        names = [table.category, table.sub_session.tolist(), recording.neuron_ids, recording.provenance.subject]
        digest.update(repr(names).encode())
        np.save(aside / "traces.npy", traces)
        np.save(aside / "timestamps.npy", recording.timestamps_s)
        if recording.running_speed_cm_s is not None:
            np.save(aside / "running.npy", recording.running_speed_cm_s)
        columns = {name: getattr(table, name) for name in _COLUMNS}
        columns |= {f"feature.{name}": column for name, column in table.features.items()}
        np.savez(aside / "stimuli.npz", allow_pickle=False, **columns)
        facts = {
            "schema": STORE_SCHEMA, "neuron_ids": recording.neuron_ids, "category": table.category,
            "stimulus_id": table.stimulus_id, "origin": recording.provenance.origin,
            "source": Path(recording.provenance.source).name, "subject": recording.provenance.subject,
            "facts": dict(recording.provenance.facts), "sha256": digest.hexdigest(),
        }  # fmt: skip
        (aside / "session.json").write_text(json.dumps(facts))
        for path in aside.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(directory, ignore_errors=True)
        aside.rename(directory)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise UnavailableError(
            f"{directory} cannot be written ({error}); make room or choose another directory"
        ) from error
    return open_session(directory)


def open_session(directory: Path) -> StoredSession:
    """Open what `write_session` wrote; traces are mapped, not read.

    Raises:
        DataError: it is missing, damaged, contradicts itself, or has another schema.
    """
    try:
        facts = json.loads((directory / "session.json").read_text())
        if facts["schema"] != STORE_SCHEMA:
            raise DataError(
                f"{directory} has schema {facts['schema']}, expected {STORE_SCHEMA}: remove it to rebuild it"
            )
        traces = np.load(directory / "traces.npy", mmap_mode="r", allow_pickle=False)
        stamps = np.load(directory / "timestamps.npy", allow_pickle=False)
        running = directory / "running.npy"
        # Opened here: numpy leaves the file open where the archive is damaged.
        with (directory / "stimuli.npz").open("rb") as file, np.load(file, allow_pickle=False) as saved:
            columns: Mapping[str, NDArray[np.float64]] = {name: saved[name] for name in saved.files}
        if traces.dtype != np.float32 or traces.shape != (len(facts["neuron_ids"]), len(stamps)):
            raise DataError(f"{directory}: traces of shape {traces.shape} {traces.dtype} for {len(stamps)} frames")
        return StoredSession(
            name=directory.name,
            traces=traces,
            timestamps_s=stamps,
            neuron_ids=tuple(facts["neuron_ids"]),
            stimuli=StimulusTable(
                onset_s=columns["onset_s"],
                duration_s=columns["duration_s"],
                sub_session=columns["sub_session"],  # type: ignore[arg-type]
                category=tuple(facts["category"]),
                stimulus_id=tuple(facts["stimulus_id"]),
                features={
                    name.removeprefix("feature."): column
                    for name, column in columns.items()
                    if name.startswith("feature.")
                },
            ),
            provenance=Provenance(
                origin=facts["origin"], source=facts["source"], subject=facts["subject"], facts=facts["facts"]
            ),
            running_speed_cm_s=np.load(running, allow_pickle=False) if running.exists() else None,
            fingerprint=facts["sha256"],
        )
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise DataError(
            f"{directory} is not a stored session, or damaged ({type(error).__name__}: {error}); remove it to rebuild it"
        ) from error
