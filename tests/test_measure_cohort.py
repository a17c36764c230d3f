"""Tests of the measurement of a cohort's memory: a small cohort is made, indexed, drawn from, counted and removed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MICE, NEURONS, PRESENTATIONS = 2, 4, 628


def test_script_counts_and_measures_every_neuron_trial(tmp_path: Path) -> None:
    store, out = tmp_path / "store", tmp_path / "found.json"
    store.mkdir()
    asked = ["--mice", str(MICE), "--neurons", str(NEURONS), "--sessions", "A", "--directory", str(store)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "deploy" / "measure_cohort.py"), *asked, "--json", str(out)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    real = {name: found["parts"]["drifting_gratings"][name] for name in ("train", "validation", "test")}
    # Noise is never rejected: only windows that reach from one part into another are left out.
    assert 0.98 * MICE * NEURONS * PRESENTATIONS < sum(real.values()) <= MICE * NEURONS * PRESENTATIONS
    assert found["neuron_trials"] == sum(found["parts"]["drifting_gratings"].values()) > sum(real.values())
    # Three epochs at moments; then three of real onsets, and up to twice as many pseudo-onsets.
    moments = found["parts"]["drifting_gratings"]["moments"]
    assert moments > 0
    assert 3 * (real["train"] + moments) < found["rows_drawn"] <= 3 * (3 * real["train"] + moments)
    stages = found["stages"]
    assert [one["name"] for one in stages] == [
        "store", "drifting_gratings, labels and F0", "drifting_gratings, tuning and index", "drawing"
    ]  # fmt: skip
    for one in stages:
        assert 0 < one["anonymous"] <= one["most_anonymous"] <= one["most_resident"] <= found["most_resident"]
        assert one["most_anonymous"] <= found["most_anonymous"]
    assert not list(store.iterdir()), "the store is removed"
