"""The comparison of the simulator with real recordings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantformer_training import realism
from quantformer_training.realism import Compared, main, table

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


def row(*, name: str, simulated: float, given: bool = False, low: float = 1.0) -> Compared:
    return Compared(
        recording="r", name=name, real=1.5, low=low, high=2.0, simulated=simulated, lowest=0.0, highest=3.0, given=given
    )


def test_the_table_names_what_is_outside() -> None:
    rows = [
        row(name="fits", simulated=1.7),
        row(name="misses", simulated=2.5),
        row(name="was set", simulated=9.0, given=True),
        row(name="too small", simulated=1.7, low=float("nan")),
    ]
    text = table(rows)
    assert "Inside: 1 of 2 properties that were not set." in text
    assert "Outside: misses (r)." in text
    assert "no interval" in text


def test_a_real_population_is_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (DATA / "allen_552195520_excerpt.npz").exists():
        pytest.skip("allen_552195520_excerpt.npz is not beside the checkout")
    monkeypatch.setattr(realism, "RESAMPLES", 20)
    target = tmp_path / "realism.json"
    assert main(["--data", str(DATA), "--only", "population", "--mice", "1", "--json", str(target)]) == 0
    assert "| allen_552195520_excerpt | noise of one frame, dF/F | 0.053 |" in capsys.readouterr().out
    found = {entry["name"]: entry for entry in json.loads(target.read_text())}
    assert found["active fraction, pseudo-onsets"]["verdict"] in ("inside", "OUTSIDE")
    assert all(entry["low"] <= entry["real"] <= entry["high"] for entry in found.values())
