"""Open a recording of any supported kind; what a file is, its content decides, not its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from quantformer.errors import RecordingError
from quantformer.recording import Provenance, Recording, StimulusTable
from quantformer_training import hdf5
from quantformer_training.allen import is_allen, load_allen
from quantformer_training.arrays import matrix, recording_from_arrays, vector
from quantformer_training.cascade import is_cascade, read_cascade
from quantformer_training.numpy_files import read_npy, read_npz
from quantformer_training.published import recording_from_published
from quantformer_training.stimulus_csv import read_stimulus_csv
from quantformer_training.suite2p import load_suite2p

SUPPORTED = ".npz and .npy arrays, suite2p folders and Allen Visual Coding NWB 1.0 files"


def open_recording(path: Path, *, stimuli: Path | None = None, rate_hz: float | None = None) -> Recording:
    """Read the recording at a path.

    ``stimuli`` is a CSV file for recordings that bring no presentations of their own (`read_stimulus_csv`). ``rate_hz`` is
    the frame rate of a ``.npy`` file, or of a suite2p folder without ``ops.npy``; other files state their own.

    Raises:
        RecordingError: there is no such file, it is none of the supported kinds, it is damaged or contradicts itself, or
            a neuron has no finite sample; the message names what was found and what to do.
        MissingExtraError: the file needs a package that is not installed.
    """
    recording = _reader(path, rate_hz=rate_hz)()
    if stimuli is not None:
        if len(recording.stimuli):
            raise RecordingError(
                f"{path} brings {len(recording.stimuli)} presentations of its own; leave {stimuli} out"
            )
        recording = replace(recording, stimuli=read_stimulus_csv(stimuli, timestamps_s=recording.timestamps_s))
    silent = np.flatnonzero(~np.isfinite(recording.fluorescence).any(axis=0))
    if len(silent):
        names = ", ".join(recording.neuron_ids[index] for index in silent[:5])
        raise RecordingError(
            f"{path}: {len(silent)} neurons have no finite sample ({names}); leave them out of the file"
        )
    return recording


def open_recordings(path: Path, *, stimuli: Path | None = None, rate_hz: float | None = None) -> list[Recording]:
    """As `open_recording`, and every recording of a file that holds many (`read_cascade`).

    Raises:
        RecordingError, MissingExtraError: as `open_recording`.
    """
    if path.is_file() and _first_bytes(path).startswith(hdf5.SIGNATURE) and stimuli is None and rate_hz is None:
        with hdf5.open_hdf5(path) as file:
            many = is_cascade(file)
        if many:
            return read_cascade(path)
    return [open_recording(path, stimuli=stimuli, rate_hz=rate_hz)]


def _reader(path: Path, *, rate_hz: float | None) -> Callable[[], Recording]:
    if rate_hz is not None and not (np.isfinite(rate_hz) and rate_hz > 0):
        raise RecordingError(f"the frame rate given is {rate_hz} Hz, expected a positive number")
    if path.is_dir():
        return lambda: load_suite2p(path, rate_hz=rate_hz)
    start = _first_bytes(path)
    if start.startswith(b"\x93NUMPY"):
        return lambda: _load_npy(path, rate_hz=rate_hz)
    if rate_hz is not None:
        raise RecordingError(f"{path} states its own frame rate; leave {rate_hz:g} Hz out")
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return lambda: _load_npz(path)
    if start.startswith(hdf5.SIGNATURE):
        return lambda: _load_hdf5(path)
    raise RecordingError(f"{path} begins with {start[:8]!r}, which is no recording; {SUPPORTED} are read")


def _first_bytes(path: Path) -> bytes:
    if not path.exists():
        raise RecordingError(f"there is no file {path}")
    if not path.is_file():
        raise RecordingError(f"{path} is neither a file nor a folder")
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
    except OSError as error:
        raise RecordingError(f"{path} cannot be read: {error.strerror or error}") from error
    if not start:
        raise RecordingError(f"{path} is empty")
    return start


def _load_npz(path: Path) -> Recording:
    arrays = read_npz(path)
    reader = recording_from_arrays if "format" in arrays else recording_from_published
    return reader(arrays, source=path)


def _load_npy(path: Path, *, rate_hz: float | None) -> Recording:
    """Traces ``(frames, neurons)``; the clock is ``<name>_timestamps.npy`` beside them in seconds, or a steady rate."""
    traces = matrix({"traces": read_npy(path)}, "traces", source=path)
    frames, neurons = traces.shape
    if neurons > frames:
        raise RecordingError(
            f"{path} has the shape ({frames}, {neurons}): more neurons than frames; save it transposed"
        )
    beside = path.with_name(f"{path.stem}_timestamps.npy")
    if beside.exists() == (rate_hz is not None):
        found = f"both {beside.name} and a rate are there" if rate_hz else f"there is no {beside.name} and no rate"
        raise RecordingError(f"{path} needs one clock, {found}: give either --rate-hz (rate_hz=) or that file")
    if rate_hz is None:
        clock, kind = vector({"timestamps": read_npy(beside)}, "timestamps", rows=frames, source=beside), beside.name
    else:
        clock, kind = np.arange(frames) / rate_hz, f"steady, {rate_hz:g} Hz as given"
    return Recording(
        fluorescence=traces,
        timestamps_s=clock,
        neuron_ids=tuple(f"neuron-{index:04d}" for index in range(neurons)),
        stimuli=StimulusTable.empty(),
        provenance=Provenance(origin="measured", source=path.name, facts={"clock": kind}),
    )


def _load_hdf5(path: Path) -> Recording:
    with hdf5.open_hdf5(path) as file:
        allen, cascade, names = is_allen(file), is_cascade(file), sorted(map(str, file))
    if allen:
        return load_allen(path)
    if cascade:
        raise RecordingError(f"{path} holds many recordings of one neuron each; give it to 'quantformer pretrain'")
    raise RecordingError(f"{path} is an HDF5 file with {', '.join(names[:8]) or 'nothing'} in it; {SUPPORTED} are read")
