"""The recording file of this project: one ``.npz`` of plain arrays, key by key in ``docs/recordings.md``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from quantformer.errors import RecordingError
from quantformer.recording import Origin, Provenance, Recording, Signal, StimulusTable
from quantformer_training.numpy_files import read_npz, texts

FORMAT = "quantformer-recording"
#: Older files are read, newer ones refused.
SCHEMA = 1
FEATURE = "stimulus_feature."

Arrays = Mapping[str, NDArray[Any]]


def save_recording(recording: Recording, path: Path) -> None:
    """Write a recording; a file that was there is replaced only once the new one is whole.

    Raises:
        RecordingError: a feature's name is not an identifier, or the file cannot be written.
    """
    stimuli = recording.stimuli
    for name in stimuli.features:
        if not name.isidentifier():
            raise RecordingError(
                f"feature {name!r} cannot be saved; name it like a variable, for example 'direction_deg'"
            )
    provenance = recording.provenance
    arrays: dict[str, NDArray[Any]] = {
        "format": np.array(FORMAT),
        "schema": np.array(SCHEMA),
        "fluorescence": recording.fluorescence,
        "timestamps_s": recording.timestamps_s,
        "neuron_ids": np.array(recording.neuron_ids, dtype=np.str_),
        "signal": np.array(recording.signal),
        "provenance": np.array(
            json.dumps(
                {
                    "origin": provenance.origin,
                    "source": provenance.source,
                    "subject": provenance.subject,
                    "facts": dict(provenance.facts),
                }
            )
        ),
        "stimulus_onset_s": stimuli.onset_s,
        "stimulus_duration_s": stimuli.duration_s,
        "stimulus_category": np.array(stimuli.category, dtype=np.str_),
        "stimulus_id": np.array(stimuli.stimulus_id, dtype=np.str_),
        "stimulus_sub_session": stimuli.sub_session,
    }
    arrays |= {FEATURE + name: column for name, column in stimuli.features.items()}
    for name in ("neuropil", "neuropil_factor", "running_speed_cm_s"):
        if (array := getattr(recording, name)) is not None:
            arrays[name] = array
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)
        unfinished.replace(path)
    except OSError as error:
        raise RecordingError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def load_recording(path: Path) -> Recording:
    """Read a recording that `save_recording`, or any program that follows ``docs/recordings.md``, has written.

    Raises:
        RecordingError: the file is damaged, of another layout or a newer schema, or contradicts itself.
    """
    return recording_from_arrays(read_npz(path), source=path)


def recording_from_arrays(arrays: Arrays, *, source: Path) -> Recording:
    """The recording in the arrays of a file of this project's own layout.

    Raises:
        RecordingError: as `load_recording`.
    """
    if "format" not in arrays or texts(arrays["format"], where=f"{source}: format") != [FORMAT]:
        raise RecordingError(f"{source} is not a recording of this project: its key 'format' is not {FORMAT!r}")
    schema = number(arrays, "schema", source=source)
    if not 1 <= schema <= SCHEMA or schema != int(schema):
        raise RecordingError(f"{source} has schema {schema:g}, this version reads 1 to {SCHEMA}; update quantformer")
    fluorescence = matrix(arrays, "fluorescence", source=source)
    return Recording(
        fluorescence=fluorescence,
        timestamps_s=vector(arrays, "timestamps_s", rows=len(fluorescence), source=source),
        neuron_ids=tuple(texts(require(arrays, "neuron_ids", source=source), where=f"{source}: neuron_ids")),
        stimuli=_stimuli(arrays, source=source),
        provenance=_provenance(arrays, source=source),
        signal=_signal(arrays, source=source),
        neuropil=matrix(arrays, "neuropil", source=source) if "neuropil" in arrays else None,
        neuropil_factor=_float32(arrays, "neuropil_factor", rows=fluorescence.shape[1], source=source),
        running_speed_cm_s=_float32(arrays, "running_speed_cm_s", rows=len(fluorescence), source=source),
    )


def require(arrays: Arrays, name: str, *, source: Path) -> NDArray[Any]:
    """The array of that name.

    Raises:
        RecordingError: there is none; the keys that are there are named.
    """
    if name not in arrays:
        raise RecordingError(f"{source} has no key {name!r}; it has {', '.join(sorted(arrays)) or 'none'}")
    return arrays[name]


def number(arrays: Arrays, name: str, *, source: Path) -> float:
    """One finite number.

    Raises:
        RecordingError: the key is missing or holds anything else.
    """
    array = require(arrays, name, source=source)
    if array.dtype.kind not in "iuf" or array.size != 1 or not np.isfinite(array).all():
        raise RecordingError(f"{source}: {name} holds {array.dtype} {array.shape}, expected one finite number")
    return float(array.reshape(()))


def vector(arrays: Arrays, name: str, *, rows: int | None, source: Path) -> NDArray[np.float64]:
    """Numbers ``(rows,)`` as float64; any length where ``rows`` is None.

    Raises:
        RecordingError: the key is missing, or its shape or type is another.
    """
    array = require(arrays, name, source=source)
    expected = "(rows,)" if rows is None else f"({rows},)"
    if array.dtype.kind not in "biuf" or array.ndim != 1 or (rows is not None and len(array) != rows):
        raise RecordingError(f"{source}: {name} holds {array.dtype} {array.shape}, expected numbers {expected}")
    return array.astype(np.float64)


def matrix(
    arrays: Arrays, name: str, *, source: Path, order: Literal["frames first", "neurons first"] = "frames first"
) -> NDArray[np.float32]:
    """Traces as float32 ``(frames, neurons)``, from a file that has them in ``order``.

    Raises:
        RecordingError: the key is missing, or its shape or type is another.
    """
    array = require(arrays, name, source=source)
    if array.dtype.kind not in "iuf" or array.ndim != 2 or array.size == 0:
        axes = "(frames, neurons)" if order == "frames first" else "(neurons, frames)"
        raise RecordingError(f"{source}: {name} holds {array.dtype} {array.shape}, expected numbers {axes}")
    return np.ascontiguousarray(array if order == "frames first" else array.T, dtype=np.float32)


def _float32(arrays: Arrays, name: str, *, rows: int, source: Path) -> NDArray[np.float32] | None:
    return vector(arrays, name, rows=rows, source=source).astype(np.float32) if name in arrays else None


def _stimuli(arrays: Arrays, *, source: Path) -> StimulusTable:
    if not any(name.startswith("stimulus_") for name in arrays):
        return StimulusTable.empty()
    onset = vector(arrays, "stimulus_onset_s", rows=None, source=source)
    rows = len(onset)
    return StimulusTable.build(
        onset_s=onset,
        duration_s=vector(arrays, "stimulus_duration_s", rows=rows, source=source),
        category=texts(require(arrays, "stimulus_category", source=source), where=f"{source}: stimulus_category"),
        stimulus_id=texts(require(arrays, "stimulus_id", source=source), where=f"{source}: stimulus_id"),
        features={
            name.removeprefix(FEATURE): vector(arrays, name, rows=rows, source=source)
            for name in arrays
            if name.startswith(FEATURE)
        },
        sub_session=(
            vector(arrays, "stimulus_sub_session", rows=rows, source=source)
            if "stimulus_sub_session" in arrays
            else None
        ),
    )


def _signal(arrays: Arrays, *, source: Path) -> Signal:
    if "signal" not in arrays:
        return "raw"
    found = texts(arrays["signal"], where=f"{source}: signal")
    known: tuple[Signal, ...] = get_args(Signal)
    for signal in known:
        if found == [signal]:
            return signal
    raise RecordingError(f"{source}: signal is {found}, expected one of {', '.join(get_args(Signal))}")


def _provenance(arrays: Arrays, *, source: Path) -> Provenance:
    if "provenance" not in arrays:
        return Provenance(origin="measured", source=source.name)
    written = texts(arrays["provenance"], where=f"{source}: provenance")
    try:
        (text,) = written
        given = json.loads(text)
        origin: Origin = given["origin"]
        facts = given.get("facts", {})
        strings = [origin, given["source"], given.get("subject", "unknown"), *facts, *facts.values()]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise RecordingError(f"{source}: provenance is not the JSON object of docs/recordings.md: {error!r}") from error
    if origin not in get_args(Origin) or not all(isinstance(string, str) for string in strings):
        raise RecordingError(
            f"{source}: provenance must give source, subject and facts as text and origin as one of {get_args(Origin)}"
        )
    return Provenance(origin=origin, source=strings[1], subject=strings[2], facts=facts)
