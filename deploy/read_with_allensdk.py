"""What allensdk reads in one Allen file, as an archive of plain arrays; runs in the environment that has allensdk.

    .venv-allen/bin/python deploy/read_with_allensdk.py 501574836.nwb out.npz

Needs nothing of this project, so that both readers run with the numpy that each was made for.
"""

import importlib
import json
import sys
import warnings
from typing import Any

import numpy as np


def read(path: str) -> dict[str, Any]:
    """Everything that is compared, by key: numbers, or text as numpy's ``U``; ``failed`` tells what allensdk refused."""
    # By name: the environment in which this is type-checked has no allensdk.
    data = importlib.import_module("allensdk.core.brain_observatory_nwb_data_set").BrainObservatoryNwbDataSet(path)
    failed: dict[str, str] = {}

    def attempt(name: str, question: Any) -> Any:
        try:
            return question()
        except Exception as error:  # whatever it is, the other side says what was not compared
            failed[name] = f"{type(error).__name__}: {error}"
            return None

    found: dict[str, Any] = {"cells": data.get_cell_specimen_ids(), "pipeline_version": str(data.pipeline_version)}
    traces = attempt("traces", data.get_corrected_fluorescence_traces)
    if traces is not None:
        found["clock"], found["traces"] = traces
    speed = attempt("running_speed", data.get_running_speed)
    if speed is not None:
        found["running_speed"], found["running_clock"] = speed
    metadata = attempt("metadata", data.get_metadata) or {}
    for key in ("session_type", "experiment_container_id", "ophys_experiment_id", "targeted_structure", "imaging_depth_um"):
        if metadata.get(key) is not None:
            found[f"metadata.{key}"] = str(metadata[key])
    names = data.list_stimuli()
    found["stimuli"] = np.array(names, dtype="U")
    for name in names:
        table = attempt(f"table.{name}", lambda name=name: data.get_stimulus_table(name))
        for column in () if table is None else table.columns:
            found[f"table.{name}.{column}"] = np.asarray(table[column])
    epochs = attempt("epochs", data.get_stimulus_epoch_table)
    if epochs is not None:
        found["epochs.stimulus"] = np.array(list(epochs["stimulus"]), dtype="U")
        found["epochs.start"], found["epochs.end"] = np.asarray(epochs["start"]), np.asarray(epochs["end"])
    found["failed"] = json.dumps(failed)
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    np.savez(sys.argv[2], **read(sys.argv[1]))
