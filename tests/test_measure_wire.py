"""The measurement of bare ZeroMQ runs, and its two ways make the whole."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("detail", ["forecast", "probability"])
def test_script_tells_the_way_there_and_back(detail: str) -> None:
    asked = ["--neurons", "16", "--detail", detail, "--frames", "30", "--rate", "100", "--busy-ms", "2"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "deploy" / "measure_wire.py"), *asked],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"30 frames of 16 ROIs, answers with {detail}, 2 ms of work between" in done.stdout
    lines = re.findall(r"(\w+), (\w+): p50 ([\d.]+) ms, p99 [\d.]+ ms", done.stdout)
    found = {(which, name): float(p50) for which, name, p50 in lines}
    assert set(found) == {(which, name) for which in ("unforetold", "foretold") for name in ("there", "back", "both")}
    assert all(p50 > 0 for p50 in found.values())
    for which in ("unforetold", "foretold"):
        assert found[which, "both"] >= max(found[which, "there"], found[which, "back"])
