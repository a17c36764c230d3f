"""Runs on disk: what was stored comes back, a cut costs one run, and nothing altered is believed."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantformer.errors import DataError, UnavailableError
from quantformer_training.run_store import LINES, Run, RunKey, RunStore, fingerprint

KEY = RunKey(table="table1", mouse="mouse-01", category="drifting_gratings", model="lstm", task="activation")


def made(key: RunKey = KEY, **changes: Any) -> Run:
    run = Run(
        key=key,
        fingerprint="f0",
        origin="simulated",
        metrics={"auroc": 0.75, "log_loss": math.nan},
        seconds=1.5,
        machine="a machine",
        versions={"torch": "2"},
        date="2026-01-01T00:00:00+00:00",
    )
    return replace(run, **changes)


def same(left: Run, right: Run) -> bool:
    np.testing.assert_equal(dict(left.metrics), dict(right.metrics))
    return replace(left, metrics={}) == replace(right, metrics={})


def test_what_was_stored_comes_back(tmp_path: Path) -> None:
    arrays = {"probability": np.linspace(0, 1, 5), "trial": np.arange(5), "active": np.array([True] * 5)}
    stored = RunStore(tmp_path / "new").add(made(), arrays)
    again = RunStore(tmp_path / "new")
    (run,) = again.runs()
    assert same(run, stored)
    found = again.arrays(run)
    assert found["probability"].dtype == np.float32
    np.testing.assert_allclose(found["probability"], arrays["probability"], atol=1e-7)
    np.testing.assert_array_equal(found["trial"], arrays["trial"])
    assert again.finished(KEY, fingerprint="f0") is run
    line = json.loads((tmp_path / "new" / LINES).read_text())
    assert line["metrics"] == {"auroc": 0.75, "log_loss": None}


def test_a_run_made_otherwise_or_failed_is_to_be_run_again(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    assert store.finished(KEY, fingerprint="f0") is None
    store.add(made(failure="no neurons", metrics={}))
    assert store.finished(KEY, fingerprint="f0") is None
    store.add(made())
    assert store.finished(KEY, fingerprint="f0") is not None
    assert store.finished(KEY, fingerprint="f1") is None
    store.add(made(fingerprint="f1", metrics={"auroc": 0.5}))
    (run,) = RunStore(tmp_path).runs()
    assert run.metrics == {"auroc": 0.5}


@given(
    text=st.text(max_size=20),
    seed=st.integers(0, 10**6),
    metrics=st.dictionaries(st.text(max_size=8), st.floats(allow_infinity=False), max_size=4),
)
def test_any_text_and_number_survives(
    tmp_path_factory: pytest.TempPathFactory, text: str, seed: int, metrics: dict[str, float]
) -> None:
    directory = tmp_path_factory.mktemp("store")
    key = replace(KEY, mouse=text, variant=text, seed=seed)
    stored = RunStore(directory).add(made(key, metrics=metrics, failure=text), {"x": np.zeros(2)})
    again = RunStore(directory)
    assert same(again.runs()[0], stored)
    assert list(again.arrays(stored)) == ["x"]
    # Whatever a key is called, its file stays inside.
    assert {path.parent.name for path in directory.rglob("*.npz")} == {"arrays"}


def test_a_cut_at_any_byte_costs_the_last_run_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = RunStore(tmp_path)
    first, second = replace(KEY, seed=1), replace(KEY, seed=2)
    store.add(made(first))
    one = (tmp_path / LINES).stat().st_size
    store.add(made(second))
    whole = (tmp_path / LINES).read_bytes()
    for cut in range(one + 1, len(whole)):
        (tmp_path / LINES).write_bytes(whole[:cut])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            again = RunStore(tmp_path)
        assert [run.key for run in again.runs()] == [first], cut
        assert "cut short" in caplog.text
    again.add(made(second))
    assert (tmp_path / LINES).read_bytes() == whole


@pytest.mark.parametrize(("change", "found"), [
    (lambda line: line[:20] + "\n", "is not JSON"),
    (lambda line: "[1, 2]\n", "is not a run"),
    (lambda line: line.replace('"schema": 1', '"schema": 2'), "reads up to 1: update"),
    (lambda line: line.replace('"seconds": 1.5', '"seconds": "long"'), "seconds is 'long'"),
    (lambda line: line.replace('"mouse": "mouse-01"', '"rat": "1"'), "mouse is None"),
    (lambda line: line.replace("simulated", "dreamt"), "origin is 'dreamt'"),
    (lambda line: line.replace("0.75", '"high"'), "auroc has a value of another type"),
    (lambda line: "[" * 100_000 + "\n", "is not JSON"),
])  # fmt: skip
def test_a_damaged_line_is_refused_by_number(tmp_path: Path, change: Any, found: str) -> None:
    RunStore(tmp_path).add(made())
    good = (tmp_path / LINES).read_text()
    bad = change(good)
    assert bad != good
    (tmp_path / LINES).write_text(good + bad + good)
    with pytest.raises(DataError, match=rf"runs\.jsonl, line 2.*{found}"):
        RunStore(tmp_path)


def test_altered_and_lost_arrays_are_noticed(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    run = store.add(made(), {"x": np.arange(100)})
    (path,) = (tmp_path / "arrays").iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="was altered"):
        store.arrays(run)
    path.unlink()
    with pytest.raises(DataError, match="is missing"):
        store.arrays(run)
    assert store.finished(KEY, fingerprint="f0") is None
    assert store.arrays(made()) == {}


def test_objects_are_not_stored(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="dtype object cannot be stored"):
        RunStore(tmp_path).add(made(), {"x": np.array([object()])})
    assert RunStore(tmp_path).runs() == ()


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    """In a process of its own, whose files may not grow beyond a limit."""
    store = RunStore(tmp_path)
    store.add(made())
    before = (tmp_path / LINES).read_bytes()
    program = (
        "import resource, signal, sys\n"
        "import numpy as np\n"
        "from dataclasses import replace\n"
        "from pathlib import Path\n"
        "from quantformer.errors import UnavailableError\n"
        "from quantformer_training.run_store import RunStore\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) + 50}, {len(before) + 50}))\n"
        "store = RunStore(Path(sys.argv[1]))\n"
        "run = store.runs()[0]\n"
        "for arrays in ({'x': np.random.default_rng(0).random(5000)}, {}):\n"
        "    try:\n"
        "        store.add(replace(run, key=replace(run.key, seed=9)), arrays)\n"
        "    except UnavailableError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.stdout.count("finished runs are kept") == 2, done.stderr
    assert (tmp_path / LINES).read_bytes() == before
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [LINES]
    assert len(RunStore(tmp_path).runs()) == 1


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match="choose another directory"):
        RunStore(tmp_path / "file" / "runs").add(made())


@dataclass(frozen=True)
class Config:
    epochs: int = 3
    rates: tuple[float, ...] = (0.1, 0.2)
    place: Any = None


def test_a_fingerprint_follows_from_configuration_data_and_software() -> None:
    first = fingerprint(config=Config(), data="d", software={"torch": "2"})
    assert first == fingerprint(config=Config(), data="d", software={"torch": "2"})
    others = [
        fingerprint(config=Config(epochs=4), data="d", software={"torch": "2"}),
        fingerprint(config=Config(rates=(0.1,)), data="d", software={"torch": "2"}),
        fingerprint(config=Config(), data="e", software={"torch": "2"}),
        fingerprint(config=Config(), data="d", software={"torch": "3"}),
    ]
    assert len({first, *others}) == 5
    with pytest.raises(DataError, match="cannot be fingerprinted"):
        fingerprint(config=Config(place=Path("x")), data="d", software={})


