"""`quantformer inspect` as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quantformer.recording import Provenance, Recording, StimulusTable
from quantformer_cli.main import main
from quantformer_training.arrays import save_recording


def save(path: Path, *, source: str = "test") -> Path:
    save_recording(
        Recording(
            fluorescence=np.full((150, 2), 100, np.float32),
            timestamps_s=np.arange(150) / 30,
            neuron_ids=("a", "b"),
            stimuli=StimulusTable.build(
                onset_s=[1.0, 2.0],
                duration_s=[0.25, 0.25],
                category=["natural_scenes"] * 2,
                stimulus_id=["natural_scenes/0001", "natural_scenes/0002"],
                features={"image_0": [0.1, 0.2], "image_1": [0.3, 0.4], "blank": [0.0, 1.0]},
                sub_session=[0, 1],
            ),
            provenance=Provenance(origin="simulated", source=source, facts={"seed": "1"}),
        ),
        path,
    )
    return path


def test_everything_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(save(tmp_path / "r.npz"))]) == 0
    printed = capsys.readouterr()
    facts = dict(line.split("  ", 1) for line in printed.out.splitlines())
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    assert facts["frames"] == "150, 5.0 s"
    assert facts["rate"] == "30 Hz, frame for frame"
    assert facts["F0 a neuron"].startswith("100 (100 to 100)")
    assert facts["seed"] == "1"
    assert facts["natural_scenes"] == (
        "2 presentations of 2 ids, 0.25 s (0.25 to 0.25), sub-sessions of 1, 1, 1 blank, features blank, image_0 .. image_1"
    )
    assert printed.err == ""


def test_json_is_the_same_for_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(save(tmp_path / "r.npz")), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["frames"], found["neurons"], found["stimuli"][0]["presentations"]) == (150, 2, 2)


def test_npy_with_a_csv_and_a_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "traces.npy", np.full((150, 2), 50.0))
    (tmp_path / "s.csv").write_text("onset_s,duration_s,category,stimulus_id\n1,2,flash,flash/on\n")
    arguments = ["inspect", str(tmp_path / "traces.npy"), "--stimuli", str(tmp_path / "s.csv"), "--rate-hz", "20"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "20 Hz, interpolated to 30 Hz" in printed
    assert "1 presentations of 1 ids" in printed


def test_a_collection_of_single_neurons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.attrs["rate_hz"] = 30.0
        file["DS1/cell/0/dff"] = np.zeros(54_001)
        file["DS1/cell/1/dff"] = np.zeros(54_001)
    assert main(["inspect", str(tmp_path / "c.h5")]) == 0
    assert "DS1         2 recordings of 1 neurons, 1.00 h" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "c.h5"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["datasets"]["DS1"] == {"recordings": 2, "neurons": 1, "hours": 1.0}


def test_a_file_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(save(tmp_path / "r.npz", source="\x1b[2Jgone\nframes  0"))]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "gone\N{REPLACEMENT CHARACTER}frames" in printed


def test_bad_data_end_with_status_3_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "none.npz")]) == 3
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "there is no file" in printed.err
    assert len(printed.err.splitlines()) == 1


def test_as_a_process_without_torch(tmp_path: Path) -> None:
    path = save(tmp_path / "r.npz")
    code = (
        "import sys; sys.modules['torch'] = None; from quantformer_cli.main import entry; "
        f"sys.argv = ['quantformer', 'inspect', {str(path)!r}]; entry()"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "150, 5.0 s" in done.stdout
