"""Folders that suite2p writes: ``plane0/{F,Fneu,iscell,ops}.npy``, arrays ``(regions, frames)``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from quantformer.errors import RecordingError
from quantformer.recording import Provenance, Recording, StimulusTable
from quantformer_training.arrays import matrix, vector
from quantformer_training.numpy_files import read_npy
from quantformer_training.pickled import read_pickled

#: suite2p's own default; used where ``ops.npy`` does not state another ``neucoeff``.
NEUROPIL_FACTOR = 0.7


def load_suite2p(folder: Path, *, rate_hz: float | None = None, cells_only: bool = True) -> Recording:
    """The recording in a suite2p folder, given as the plane's folder or as one above a single plane.

    The rate is ``ops['fs']``, and ``rate_hz`` where there is no ``ops.npy``; suite2p stores no time stamps, so the clock is
    taken to be steady. ``cells_only`` leaves out the regions that ``iscell.npy`` does not call cells. Neuron ids are
    ``roi-<row of F.npy>``.

    Raises:
        RecordingError: a file is missing or damaged, shapes disagree, the rate is unknown, or ``ops.npy`` is refused.
    """
    plane = _plane(folder)
    arrays = {name: read_npy(plane / f"{name}.npy") for name in ("F", "Fneu", "iscell")}
    traces = matrix(arrays, "F", source=plane, order="neurons first")
    neuropil = matrix(arrays, "Fneu", source=plane, order="neurons first")
    frames, regions = traces.shape
    if arrays["iscell"].ndim == 2:  # the second column is the classifier's probability
        arrays["iscell"] = arrays["iscell"][:, 0]
    is_cell = vector(arrays, "iscell", rows=regions, source=plane) > 0
    options = _options(plane)
    rate = _rate(options, rate_hz=rate_hz, plane=plane)
    factor = options.get("neucoeff", NEUROPIL_FACTOR)
    if not _is_number(factor) or not 0 <= factor <= 2:
        raise RecordingError(f"{plane / 'ops.npy'}: neucoeff is {str(factor)[:40]}, expected a number from 0 to 2")
    whole = Recording(
        fluorescence=traces,
        neuropil=neuropil,
        neuropil_factor=np.full(regions, factor, np.float32),
        timestamps_s=np.arange(frames) / rate,
        neuron_ids=tuple(f"roi-{region:04d}" for region in range(regions)),
        stimuli=StimulusTable.empty(),
        provenance=Provenance(
            origin="measured",
            source=plane.name if folder == plane else f"{folder.name}/{plane.relative_to(folder)}",
            facts={
                "extractor": "suite2p",
                "rate_hz": f"{rate:.6g}",
                "clock": "steady, from ops['fs']" if "fs" in options else "steady, from the rate given",
                "regions": str(regions),
                "cells": str(np.count_nonzero(is_cell)),
            },
        ),
    )
    if not cells_only:
        return whole
    if not is_cell.any():
        raise RecordingError(f"{plane / 'iscell.npy'} calls none of the {regions} regions a cell; curate it in suite2p")
    return whole.select_neurons(is_cell)


def _plane(folder: Path) -> Path:
    for pattern in ("F.npy", "plane*/F.npy", "suite2p/plane*/F.npy"):
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            names = ", ".join(str(path.parent.relative_to(folder)) for path in found)
            raise RecordingError(f"{folder} holds {len(found)} planes ({names}); name the folder of one")
        if found:
            return found[0].parent
    raise RecordingError(
        f"{folder} holds no F.npy, nor does a plane folder in it; expected a folder that suite2p wrote"
    )


def _options(plane: Path) -> dict[str, Any]:
    if not (plane / "ops.npy").exists():
        return {}
    array = read_pickled(plane / "ops.npy")
    options = array.item() if array.size == 1 else None
    if not isinstance(options, dict):
        raise RecordingError(f"{plane / 'ops.npy'} holds no dict of options, expected what suite2p writes there")
    return options


def _rate(options: dict[str, Any], *, rate_hz: float | None, plane: Path) -> float:
    if "fs" in options and rate_hz is not None:
        raise RecordingError(f"{plane} states its rate, ops['fs'] = {str(options['fs'])[:40]}; leave the other one out")
    rate = options.get("fs", rate_hz)
    if rate is None:
        raise RecordingError(f"{plane} has no ops.npy with 'fs'; give the frame rate with --rate-hz (rate_hz=)")
    if not _is_number(rate) or rate <= 0:
        raise RecordingError(f"{plane}: the frame rate is {str(rate)[:40]}, expected a positive number")
    return float(rate)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and math.isfinite(value)
