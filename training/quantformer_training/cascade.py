"""The Cascade ground truth, re-packed: ``/<dataset>/<cell>/<segment>/dff``, one neuron a segment, no stimuli.

Read for self-supervised pre-training. Cite Rupprecht et al. 2021 (Nature Neuroscience 24, 1324) and the data's authors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from quantformer.errors import RecordingError
from quantformer.recording import Provenance, Recording, StimulusTable
from quantformer_training import hdf5


def is_cascade(file: Any) -> bool:
    """Whether an open HDF5 file has the layout: a rate, and a trace under the first three levels of groups."""
    if "rate_hz" not in file.attrs:
        return False
    level = file
    for _ in range(3):
        names = list(level.keys()) if hasattr(level, "keys") else []
        if not names:
            return False
        level = level[names[0]]
    return hasattr(level, "keys") and "dff" in level


def read_cascade(path: Path) -> list[Recording]:
    """Every segment as a recording of one neuron, in the file's order; ``signal`` is ``dff_plus_one``.

    Neuron ids are ``<dataset>/<cell>``: the segments of one cell share theirs.

    Raises:
        RecordingError: the file is damaged or of another layout.
        MissingExtraError: h5py is not installed.
    """
    recordings = []
    with hdf5.open_hdf5(path) as file:
        if not is_cascade(file):
            raise RecordingError(f"{path} has not the layout /<dataset>/<cell>/<segment>/dff with a rate_hz attribute")
        rate_hz = float(file.attrs["rate_hz"])
        if not (np.isfinite(rate_hz) and rate_hz > 0):
            raise RecordingError(f"{path}: rate_hz is {rate_hz}, expected a positive number of frames a second")
        for name, cells in file.items():
            for cell, segments in cells.items():
                for segment in segments:
                    where = f"{name}/{cell}/{segment}"
                    found = hdf5.dataset(file, f"{where}/dff")
                    if found is None or found.ndim != 1:
                        raise RecordingError(f"{path}: {where}/dff is not one trace")
                    trace = hdf5.read(found, dtype=np.float32) + np.float32(1.0)
                    recordings.append(
                        Recording(
                            fluorescence=trace[:, None],
                            timestamps_s=np.arange(len(trace)) / rate_hz,
                            neuron_ids=(f"{name}/{cell}",),
                            stimuli=StimulusTable.empty(),
                            provenance=Provenance(
                                origin="measured",
                                source=path.name,
                                facts={"dataset": name, "segment": segment, "clock": "steady, resampled by the source"},
                            ),
                            signal="dff_plus_one",
                        )
                    )
    return recordings
