"""The comparison with allensdk: it agrees where both read the same, and finds every single difference."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from quantformer.recording import Recording
from quantformer_training.allen import load_allen

pytest.importorskip("h5py")

import h5py
from allen_file import TRACES, B

ROOT = Path(__file__).resolve().parents[1]
ALLEN_PYTHON = ROOT / ".venv-allen/bin/python"
COLUMNS = {"drifting_gratings": ["temporal_frequency", "orientation", "blank_sweep"],
           "static_gratings": ["orientation", "spatial_frequency", "phase"]}  # fmt: skip


@pytest.fixture(scope="module")
def comparison() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_allen", ROOT / "deploy/compare_allen.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["compare_allen"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def samples(comparison: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    paths: list[Path] = comparison.write_samples(tmp_path_factory.mktemp("samples"))
    assert len(paths) == 16
    return {path.stem.removeprefix("sample_"): path for path in paths}


def independent(path: Path) -> dict[str, Any]:
    """What allensdk documents that it reads of a sample of version 2.0, from the arrays of the file."""
    with h5py.File(path) as file:
        clock = file[f"{TRACES}/timestamps"][()]
        speed = np.full(len(clock), np.nan)
        speed[7:-11] = file[f"{B}/BehavioralTimeSeries/running_speed/data"][()]
        neuropil = file[f"{TRACES}_neuropil_response"]
        found: dict[str, Any] = {
            "cells": file[f"{B}/ImageSegmentation/cell_specimen_ids"][()],
            "pipeline_version": file["general/generated_by"][-1].decode(),
            "clock": clock,
            "traces": file[f"{TRACES}_demixed_signal/data"][()] - neuropil["r"][()][:, None] * neuropil["data"][()],
            "running_speed": speed,
            "metadata.session_type": file["general/session_type"][()].decode(),
            "metadata.ophys_experiment_id": "501574836",
            "failed": "{}",
        }
        epochs: list[tuple[str, int, int]] = []
        for spelled, group in file["stimulus/presentation"].items():
            name = spelled.removesuffix("_stimulus")
            frames, data = group["frame_duration"][()].astype(int), group["data"][()]
            order = np.argsort(frames[:, 0])
            frames, data = frames[order], data[order]
            if name == "spontaneous":
                frames = np.stack([frames[::2, 0], frames[1::2, 0]], 1)
            elif data.ndim == 2:
                found |= {f"table.{name}.{key}": data[:, i] for i, key in enumerate(COLUMNS[name])}
            else:
                found[f"table.{name}.frame"] = data
            found |= {f"table.{name}.start": frames[:, 0], f"table.{name}.end": frames[:, 1]}
            cuts = np.flatnonzero(frames[1:, 0] - frames[:-1, 1] > 7) + 1
            cuts = cuts if name != "drifting_gratings" else np.array([3])
            for block in np.split(frames, cuts if name != "static_gratings" else np.array([3])):
                epochs.append((name, block[0, 0], block[-1, 1]))
    epochs.reverse()
    found["epochs.stimulus"] = np.array([one[0] for one in epochs])
    found["epochs.start"], found["epochs.end"] = (np.array([one[i] for one in epochs]) for i in (1, 2))
    return found


def differing(comparison: ModuleType, recording: Recording, theirs: dict[str, Any]) -> set[str]:
    return {one.item for one in comparison.compare(recording, theirs) if one.agrees is False}


@pytest.mark.parametrize("session", ["A", "B", "C", "C2"])
def test_it_agrees_where_both_read_the_same(comparison: ModuleType, samples: dict[str, Path], session: str) -> None:
    path = samples[f"{session}_2.0"]
    findings = comparison.compare(load_allen(path), independent(path))
    assert [one for one in findings if one.agrees is not True] == []
    assert len(findings) >= 11


@pytest.mark.parametrize(
    ("session", "key", "change", "item"),
    [
        ("A", "cells", lambda old: old[::-1], "cells"),
        ("A", "pipeline_version", lambda old: "2.0.4", "pipeline version"),
        ("A", "metadata.session_type", lambda old: "three_session_B", "session_type"),
        ("A", "metadata.ophys_experiment_id", lambda old: "5", "ophys_experiment_id"),
        ("A", "clock", lambda old: old + 1e-9, "clock"),
        ("A", "traces", lambda old: np.where(np.arange(old.size).reshape(old.shape) == 77, old + 1e-3, old), "corrected traces"),
        ("A", "traces", lambda old: np.where(np.arange(old.size).reshape(old.shape) == 77, np.nan, old), "corrected traces"),
        ("A", "traces", lambda old: old[:, :-1], "corrected traces"),
        ("A", "running_speed", lambda old: np.where(np.arange(old.size) == 3, 0.0, old), "running speed"),
        ("A", "running_speed", lambda old: np.where(np.arange(old.size) == 30, old + 0.1, old), "running speed"),
        ("A", "table.drifting_gratings.start", lambda old: old + (np.arange(old.size) == 2), "drifting_gratings"),
        ("A", "table.drifting_gratings.end", lambda old: old - (np.arange(old.size) == 2), "drifting_gratings"),
        ("A", "table.drifting_gratings.orientation", lambda old: np.where(old == 45, 90, old), "drifting_gratings: features"),
        ("A", "table.drifting_gratings.temporal_frequency", lambda old: old * 2, "drifting_gratings: features"),
        ("A", "table.drifting_gratings.blank_sweep", lambda old: np.ones(old.size), "drifting_gratings: features"),
        ("A", "table.spontaneous.end", lambda old: old + 1, "spontaneous"),
        ("B", "table.static_gratings.phase", lambda old: old + 0.25, "static_gratings: features"),
        ("B", "table.static_gratings.spatial_frequency", lambda old: old * np.nan, "static_gratings: features"),
        ("B", "table.natural_scenes.frame", lambda old: np.where(old == 2, 1, old), "natural_scenes: image"),
        ("B", "table.natural_scenes.frame", lambda old: old * 0, "natural_scenes"),
        ("C2", "table.locally_sparse_noise_8deg.frame", lambda old: old[::-1], "locally_sparse_noise_8deg: image"),
    ],
)  # fmt: skip
def test_it_finds_a_single_difference(
    comparison: ModuleType, samples: dict[str, Path], session: str, key: str, change: Any, item: str
) -> None:
    path = samples[f"{session}_2.0"]
    theirs = independent(path)
    theirs[key] = change(theirs[key])
    assert item in differing(comparison, load_allen(path), theirs)


@pytest.mark.parametrize(
    ("session", "name"),
    [("A", "drifting_gratings"), ("A", "spontaneous"), ("B", "natural_scenes"), ("C", "locally_sparse_noise")],
)
def test_it_finds_an_epoch_cut_elsewhere(
    comparison: ModuleType, samples: dict[str, Path], session: str, name: str
) -> None:
    path = samples[f"{session}_2.0"]
    theirs = independent(path)
    mine = np.flatnonzero(theirs["epochs.stimulus"] == name)
    one = mine[np.argmax(theirs["epochs.start"][mine])]
    for changed in (
        {"epochs.start": theirs["epochs.start"] + 3 * (np.arange(len(theirs["epochs.start"])) == one)},
        {key: np.delete(theirs[key], one) for key in ("epochs.stimulus", "epochs.start", "epochs.end")},
    ):
        assert f"{name}: epochs" in differing(comparison, load_allen(path), theirs | changed)


def test_a_stimulus_that_only_one_knows_is_a_difference(comparison: ModuleType, samples: dict[str, Path]) -> None:
    path = samples["A_2.0"]
    theirs = {key: value for key, value in independent(path).items() if not key.startswith("table.drifting_gratings")}
    assert differing(comparison, load_allen(path), theirs) == {"drifting_gratings"}
    # What allensdk failed at is said, and is no difference.
    theirs["failed"] = json.dumps({"table.drifting_gratings": "KeyError: data", "epochs": "EpochSeparationException"})
    findings = comparison.compare(load_allen(path), theirs)
    assert {one.item for one in findings if one.agrees is None} == {"table.drifting_gratings", "epochs"}
    assert all(one.agrees is not False for one in findings)


def test_a_file_that_one_cannot_read_is_a_difference(
    comparison: ModuleType, samples: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.nwb").write_bytes(b"no")
    findings = comparison.examine(tmp_path / "a.nwb", python=Path(sys.executable))
    assert not comparison.report(tmp_path / "a.nwb", findings)
    assert "DIFFERS" in capsys.readouterr().out
    # This interpreter has no allensdk.
    findings = comparison.examine(samples["A_2.0"], python=Path(sys.executable))
    assert [(one.item, one.agrees) for one in findings] == [("reading", False)]
    assert "allensdk cannot read it: ModuleNotFoundError" in findings[0].found


@pytest.mark.slow
def test_allensdk_itself_reads_the_samples_as_the_reader_does() -> None:
    if not ALLEN_PYTHON.is_file():
        pytest.skip("no .venv-allen: 'make test-allen' makes it")
    line = [sys.executable, str(ROOT / "deploy/compare_allen.py"), "--allen-python", str(ALLEN_PYTHON)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("16 of 16 small files written for this read the same\n")
