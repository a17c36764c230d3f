"""`make bench` measures inference of what a bundle holds today, and an import; a process that dies ends it with a word."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]


def run(script: str, *asked: str) -> subprocess.CompletedProcess[str]:
    """A script of ``deploy``, as `make bench` runs it."""
    return subprocess.run(
        [sys.executable, str(ROOT / "deploy" / script), *asked],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_every_form_answers_alike_and_is_timed(tmp_path: Path) -> None:
    found = tmp_path / "inference.json"
    asked = ["--preset", "small", "--neurons", "5", "--stimuli", "2", "--threads", "1", "--rounds", "2"]
    done = run("measure_inference.py", *asked, "--json", str(found))
    assert done.returncode == 0, done.stderr
    assert "small, 5 neurons x 2 stimuli, both answers, 1 threads" in " ".join(done.stdout.split())
    taken = {name: np.array(ms) for name, ms in json.loads(found.read_text()).items()}
    assert set(taken) == {"PyTorch eager", "session.run", "engine", "engine, int8"}
    assert all(ms.shape == (2, 5, 2) and (ms[..., 0] > 0).all() for ms in taken.values())


def test_a_process_that_ends_without_an_answer_is_named() -> None:
    done = run("measure_inference.py", "--preset", "small", "--neurons", "2", "--stimuli", "0", "--rounds", "1")
    assert done.returncode != 0
    assert "PyTorch eager: its process ended without an answer" in done.stderr


def test_import_is_measured_beside_its_packages() -> None:
    done = run("measure_import.py", "--repeats", "2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("import numpy, zmq, httpx, msgspec: median ")
    assert lines[0].endswith("1.00 x")
