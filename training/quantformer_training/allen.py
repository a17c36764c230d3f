"""Allen Brain Observatory, Visual Coding two-photon: NWB 1.0 files, read with h5py.

The layout is that of ``docs/recordings.md``. Fluorescence is the demixed signal where the pipeline has one (2.0 and
later) and the raw one before; the neuropil and each cell's own factor come along, so that `Recording.corrected` is the
Institute's corrected fluorescence. The stored dF/F is not read: its window is centred, it looks ahead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantformer.errors import RecordingError
from quantformer.recording import Provenance, Recording, Signal
from quantformer_training import hdf5
from quantformer_training.allen_stimuli import find_presentations, read_stimuli

PIPELINE = "processing/brain_observatory_pipeline"
TRACES = f"{PIPELINE}/Fluorescence/imaging_plane_1"
#: The version of files that state none.
FIRST_VERSION = "0.9"
FACTS = {
    "session_id": "general/session_id",
    "session_type": "general/session_type",
    "experiment_container_id": "general/experiment_container_id",
    "targeted_structure": "general/targeted_structure",
    "genotype": "general/subject/genotype",
    "age": "general/subject/age",
    "sex": "general/subject/sex",
    "indicator": "general/optophysiology/imaging_plane_1/indicator",
    "imaging_depth": "general/optophysiology/imaging_plane_1/imaging depth",
    "session_start_time": "session_start_time",
}


@dataclass(frozen=True, kw_only=True)
class AllenLayout:
    """Where one file keeps its parts: paths within it. ``presentations`` maps a stimulus to its group."""

    pipeline_version: str
    signal: Signal
    fluorescence: str
    neuropil: str
    factor: str
    timestamps: str
    presentations: dict[str, str]


def is_allen(file: Any) -> bool:
    """Whether an open HDF5 file is of the Allen pipeline."""
    return PIPELINE in file


def allen_layout(path: Path) -> AllenLayout:
    """Find the parts of a file without reading its traces.

    Raises:
        RecordingError: the file is damaged, of another layout, or its pipeline version cannot be understood.
        MissingExtraError: h5py is not installed.
    """
    with hdf5.open_hdf5(path) as file:
        return _layout(file)


def load_allen(path: Path) -> Recording:
    """The recording in an Allen Visual Coding file, with its presentations of the four stimuli and spontaneous epochs.

    Raises:
        RecordingError: the file is damaged, of another layout, or contradicts itself.
        MissingExtraError: h5py is not installed.
    """
    with hdf5.open_hdf5(path) as file:
        layout = _layout(file)
        clock = _numbers(file, layout.timestamps, np.float64, shape=(None,))
        traces = _numbers(file, layout.fluorescence, np.float32, shape=(None, len(clock)))
        cells = len(traces)
        factor = _numbers(file, layout.factor, np.float32, shape=(cells,))
        neuropil = _numbers(file, layout.neuropil, np.float32, shape=(cells, len(clock)))
        stimuli, notes = read_stimuli(file, layout.presentations, timestamps_s=clock)
        texts = {name: _text(file, where) for name, where in FACTS.items()}
        return Recording(
            fluorescence=np.ascontiguousarray(traces.T),
            neuropil=np.ascontiguousarray(neuropil.T),
            neuropil_factor=factor,
            timestamps_s=clock,
            neuron_ids=_cell_ids(file, cells=cells),
            stimuli=stimuli,
            provenance=Provenance(
                origin="measured",
                source=path.name,
                subject=_text(file, "general/subject/subject_id") or "unknown",
                facts={"pipeline_version": layout.pipeline_version}
                | {name: text for name, text in texts.items() if text}
                | notes,
            ),
            signal=layout.signal,
            running_speed_cm_s=_running_speed(file, clock=clock),
        )


def _layout(file: Any) -> AllenLayout:
    if not is_allen(file):
        raise RecordingError(f"{file.filename} has no group {PIPELINE}; expected an Allen Visual Coding NWB 1.0 file")
    version = _version(file)
    demixed = _at_least_two(version, where=file.filename)
    return AllenLayout(
        pipeline_version=version,
        signal="demixed" if demixed else "raw",
        fluorescence=f"{TRACES}_demixed_signal/data" if demixed else f"{TRACES}/data",
        neuropil=f"{TRACES}_neuropil_response/data" if demixed else f"{TRACES}/neuropil_traces",
        factor=f"{TRACES}_neuropil_response/r" if demixed else f"{TRACES}/r",
        timestamps=f"{TRACES}/timestamps",
        presentations=find_presentations(file),
    )


def _version(file: Any) -> str:
    found = hdf5.dataset(file, "general/generated_by")
    texts = hdf5.read_texts(found) if found is not None else []
    return texts[-1] if texts else FIRST_VERSION


def _at_least_two(version: str, *, where: str) -> bool:
    major = re.match(r"(\d{1,4})(\.\d+)*", version)
    if major is None:
        raise RecordingError(
            f"{where}: the last element of general/generated_by is {version!r}, expected a version like '2.0'"
        )
    return int(major[1]) >= 2


def _numbers(file: Any, name: str, dtype: type[np.generic], *, shape: tuple[int | None, ...]) -> NDArray[Any]:
    found = hdf5.dataset(file, name)
    if found is None:
        raise RecordingError(f"{file.filename} has no array {name}")
    fits = found.shape is not None and len(found.shape) == len(shape)
    if not fits or any(want is not None and have != want for have, want in zip(found.shape, shape, strict=True)):
        expected = ", ".join("any" if length is None else str(length) for length in shape)
        raise RecordingError(f"{file.filename}: {name} has the shape {found.shape}, expected ({expected})")
    return hdf5.read(found, dtype=dtype)


def _cell_ids(file: Any, *, cells: int) -> tuple[str, ...]:
    found = hdf5.dataset(file, f"{PIPELINE}/ImageSegmentation/cell_specimen_ids")
    if found is None:
        raise RecordingError(f"{file.filename} has no array {PIPELINE}/ImageSegmentation/cell_specimen_ids")
    ids = hdf5.read(found, kinds="iu").ravel().tolist()
    if len(ids) != cells:
        raise RecordingError(f"{file.filename} names {len(ids)} cells in cell_specimen_ids and has {cells} traces")
    return tuple(map(str, ids))


def _running_speed(file: Any, *, clock: NDArray[np.float64]) -> NDArray[np.float32] | None:
    group = f"{PIPELINE}/BehavioralTimeSeries/running_speed"
    found = hdf5.dataset(file, f"{group}/data")
    if found is None:
        return None
    times = _numbers(file, f"{group}/timestamps", np.float64, shape=(None,))
    # Version 0.9 keeps one column, (samples, 1).
    column = found.shape is not None and len(found.shape) == 2
    shape = (len(times), 1) if column else (len(times),)
    speed = _numbers(file, f"{group}/data", np.float32, shape=shape).reshape(-1)
    if not len(times):
        return np.full(len(clock), np.nan, np.float32)
    # The last sample at or before each frame; NaN before the first, and after the last, which is not held on.
    last = np.searchsorted(times, clock, side="right") - 1
    known = np.where((last >= 0) & (clock <= times[-1]), speed[np.maximum(last, 0)], np.nan)
    return known.astype(np.float32)


def _text(file: Any, name: str) -> str:
    found = hdf5.dataset(file, name)
    return " ".join(hdf5.read_texts(found)) if found is not None and found.dtype.kind in "SUO" else ""
