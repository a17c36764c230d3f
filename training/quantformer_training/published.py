"""Three ``.npz`` layouts in which public recordings are re-packed for development; the keys tell which one it is.

Their arrays are ``(neurons, frames)``; none of them has time stamps, so a steady rate is assumed and said.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantformer.errors import RecordingError
from quantformer.recording import Provenance, Recording, StimulusTable
from quantformer_training.arrays import Arrays, matrix, number, require, vector
from quantformer_training.sub_sessions import LONGEST_GAP_FRAMES, sub_sessions

#: How long a grating of the drifting-grating layout is shown; the file does not say.
GRATING_S = 8.5
ASSUMED_CLOCK = "steady, from rate_hz"

GRATING_KEYS = frozenset({"fluorescence", "neuropil", "is_cell", "rate_hz", "onset_frame", "direction_deg"})
ONE_CELL_KEYS = frozenset({"corrected_fluorescence_cell0", "cell_ids", "onset_frame", "length_frames", "rate_hz"})
DFF_KEYS = frozenset({"dff", "rate_hz"})


def recording_from_published(arrays: Arrays, *, source: Path, cells_only: bool = True) -> Recording:
    """The recording in a file of one of the three layouts.

    ``cells_only`` leaves out the regions that the drifting-grating file does not call cells.

    Raises:
        RecordingError: the keys belong to none of the layouts, or an array has another shape or type than expected.
    """
    if arrays.keys() >= GRATING_KEYS:
        return _gratings(arrays, source=source, cells_only=cells_only)
    if arrays.keys() >= ONE_CELL_KEYS:
        return _one_cell(arrays, source=source)
    if arrays.keys() >= DFF_KEYS:
        return _dff(arrays, source=source)
    raise RecordingError(
        f"{source} has the keys {', '.join(sorted(arrays)) or 'none'}, which is no layout that is known; "
        "docs/recordings.md lists the keys of a recording"
    )


def direction_id(direction_deg: float) -> str:
    """The stimulus id of a full-field drifting grating of which only the direction is known."""
    return f"drifting_gratings/dir={direction_deg:03g}"


def _gratings(arrays: Arrays, *, source: Path, cells_only: bool) -> Recording:
    traces = matrix(arrays, "fluorescence", source=source, order="neurons first")
    neuropil = matrix(arrays, "neuropil", source=source, order="neurons first")
    frames, regions = traces.shape
    is_cell = vector(arrays, "is_cell", rows=regions, source=source) > 0
    clock, rate_hz = _clock(arrays, frames=frames, source=source)
    onset = _frame_numbers(arrays, "onset_frame", rows=None, frames=frames, source=source)
    direction = vector(arrays, "direction_deg", rows=len(onset), source=source)
    whole = Recording(
        fluorescence=traces,
        neuropil=neuropil,
        timestamps_s=clock,
        neuron_ids=tuple(f"roi-{region:02d}" for region in range(regions)),
        stimuli=StimulusTable.build(
            onset_s=clock[onset],
            duration_s=np.full(len(onset), GRATING_S),
            category=["drifting_gratings"] * len(onset),
            stimulus_id=[direction_id(value) for value in direction],
            features={"direction_deg": direction},
        ),
        provenance=Provenance(
            origin="measured",
            source=source.name,
            facts={
                "rate_hz": f"{rate_hz:.6g}",
                "clock": ASSUMED_CLOCK,
                "regions": str(regions),
                "cells": str(np.count_nonzero(is_cell)),
            },
        ),
    )
    return whole.select_neurons(is_cell) if cells_only else whole


def _one_cell(arrays: Arrays, *, source: Path) -> Recording:
    trace = vector(arrays, "corrected_fluorescence_cell0", rows=None, source=source)
    clock, rate_hz = _clock(arrays, frames=len(trace), source=source)
    onset = _frame_numbers(arrays, "onset_frame", rows=None, frames=len(trace), source=source)
    length = vector(arrays, "length_frames", rows=len(onset), source=source)
    cell = vector(arrays, "cell_ids", rows=None, source=source)
    if len(cell) == 0:
        raise RecordingError(f"{source}: cell_ids is empty, expected the id of the one cell first")
    return Recording(
        fluorescence=trace[:, None].astype(np.float32),
        timestamps_s=clock,
        neuron_ids=(str(int(cell[0])),),
        stimuli=StimulusTable.build(
            onset_s=clock[onset],
            duration_s=length / rate_hz,
            category=["drifting_gratings"] * len(onset),
            stimulus_id=["drifting_gratings/unlabelled"] * len(onset),
            features={},
            sub_session=sub_sessions(
                start=onset, end=onset + length, longest_gap=LONGEST_GAP_FRAMES["drifting_gratings"]
            ),
        ),
        provenance=Provenance(
            origin="measured",
            source=source.name,
            facts={"rate_hz": f"{rate_hz:.6g}", "clock": ASSUMED_CLOCK, "units": "divided by its mean"},
        ),
        signal="corrected",
    )


def _dff(arrays: Arrays, *, source: Path) -> Recording:
    dff = matrix(arrays, "dff", source=source, order="neurons first")
    clock, rate_hz = _clock(arrays, frames=len(dff), source=source)
    return Recording(
        fluorescence=dff + np.float32(1.0),
        timestamps_s=clock,
        neuron_ids=tuple(f"cell-{cell:03d}" for cell in range(dff.shape[1])),
        stimuli=StimulusTable.empty(),
        provenance=Provenance(
            origin="measured", source=source.name, facts={"rate_hz": f"{rate_hz:.6g}", "clock": ASSUMED_CLOCK}
        ),
        signal="dff_plus_one",
    )


def _clock(arrays: Arrays, *, frames: int, source: Path) -> tuple[NDArray[np.float64], float]:
    rate_hz = number(arrays, "rate_hz", source=source)
    if rate_hz <= 0:
        raise RecordingError(f"{source}: rate_hz is {rate_hz}, expected a positive number of frames a second")
    return np.arange(frames) / rate_hz, rate_hz


def _frame_numbers(arrays: Arrays, name: str, *, rows: int | None, frames: int, source: Path) -> NDArray[np.intp]:
    found = require(arrays, name, source=source)
    numbers = vector(arrays, name, rows=rows, source=source)
    if found.dtype.kind not in "iu" or (numbers < 0).any() or (numbers >= frames).any():
        raise RecordingError(f"{source}: {name} must hold frame numbers from 0 to {frames - 1}")
    return numbers.astype(np.intp)
