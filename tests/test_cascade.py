"""Cascade's ground truth as a list of single neurons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantformer.errors import RecordingError
from quantformer_training.cascade import read_cascade

h5py = pytest.importorskip("h5py")


def write(path: Path, *, rate_hz: Any = 30.0, dff: Any = (0.0, 0.5, -0.25)) -> Path:
    with h5py.File(path, "w") as file:
        if rate_hz is not None:
            file.attrs["rate_hz"] = rate_hz
        for name in ("DS1/cell_a/000", "DS1/cell_a/001", "DS2/cell_b/000"):
            file[f"{name}/dff"] = np.asarray(dff, np.float32)
            file[f"{name}/spikes"] = np.zeros(3, np.uint8)
    return path


def test_every_segment_is_a_recording_of_one_neuron(tmp_path: Path) -> None:
    found = read_cascade(write(tmp_path / "c.h5"))
    assert [recording.neuron_ids for recording in found] == [("DS1/cell_a",), ("DS1/cell_a",), ("DS2/cell_b",)]
    assert [recording.provenance.facts["segment"] for recording in found] == ["000", "001", "000"]
    assert found[0].fluorescence.tolist() == [[1.0], [1.5], [0.75]]
    assert found[0].signal == "dff_plus_one"
    assert found[0].rate_hz == pytest.approx(30)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rate_hz": None}, "has not the layout"),
        ({"rate_hz": 0.0}, "rate_hz is 0.0"),
        ({"rate_hz": "fast"}, "cannot be read as HDF5"),
        ({"dff": np.zeros((3, 2))}, "dff is not one trace"),
        ({"dff": []}, "at least one frame"),
    ],
)
def test_damage_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordingError, match=said):
        read_cascade(write(tmp_path / "c.h5", **changes))


def test_the_real_file(shared_data: Path) -> None:
    found = read_cascade(shared_data / "cascade_mouse_v1_30hz.h5")
    assert len(found) == 372
    assert sum(recording.frames for recording in found) / 30 / 3600 == pytest.approx(18.6, abs=0.05)
    assert all(recording.neurons == 1 and np.isfinite(recording.fluorescence).all() for recording in found)
