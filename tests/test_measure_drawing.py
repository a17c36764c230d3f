"""Tests of the measurement of drawing: every number of threads is measured beside the first."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_script_measures_each_number_of_threads() -> None:
    asked = ["--threads", "1", "2", "--rows", "64", "--rounds", "2"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "deploy" / "measure_drawing.py"), *asked],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "64 rows an epoch, 2 rounds" in done.stdout
    found = re.findall(r"(\d) threads: ([\d,]+) rows a second by the clock, ([\d,]+) a second of CPU time", done.stdout)
    assert [threads for threads, _, _ in found] == ["1", "2"]
    assert all(int(rate.replace(",", "")) > 0 for one in found for rate in one[1:])
    assert "1.00 x (1.00 to 1.00)" in done.stdout
