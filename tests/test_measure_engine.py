"""deploy/measure_engine.py, measure_gpu.py and growth_picture.py: what they keep, what they refuse, and a trial of them."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np
import pytest
import torch
from running_service import clean_environment

from quantformer.bundle import load_bundle
from quantformer_cli.benchmark.aims import Record, Section
from quantformer_cli.benchmark.measure import machine
from quantformer_cli.benchmark.plan import Condition, Pace
from quantformer_cli.benchmark.results import Document, Result, Service, figure, read_document, write_document

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DEPLOY / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def measure_engine() -> Iterator[ModuleType]:
    sys.path.insert(0, str(DEPLOY))
    yield script("measure_engine")
    sys.path.remove(str(DEPLOY))


@pytest.fixture(scope="module")
def growth_picture() -> ModuleType:
    return script("growth_picture")


def test_parts_are_named_in_the_order_of_the_table(measure_engine: ModuleType) -> None:
    assert measure_engine.chosen("start,overhead") == ["overhead", "start"]
    with pytest.raises(argparse.ArgumentTypeError, match="found 'coffee', expected overhead"):
        measure_engine.chosen("start,coffee")
    assert measure_engine.chosen("live", of=("paper", "live")) == ["live"]
    with pytest.raises(argparse.ArgumentTypeError, match="found 'start', expected paper, live"):
        measure_engine.chosen("start", of=("paper", "live"))


def run_at(module: ModuleType, scale: float, folder: Path) -> object:
    return module.Run(live=folder, tiny=folder, out=folder, scale=scale, seed=3, command="c")


def test_a_trial_is_shorter_and_still_asks(measure_engine: ModuleType, tmp_path: Path) -> None:
    whole, trial = run_at(measure_engine, 1.0, tmp_path), run_at(measure_engine, 0.001, tmp_path)
    assert whole.pace(108_000, rounds=1, rate_hz=300.0, every=300) == Pace(  # type: ignore[attr-defined]
        frames=108_000, rounds=1, rate_hz=300.0, every=300, seed=3
    )
    short = trial.pace(108_000, rounds=1, rate_hz=300.0, every=300)  # type: ignore[attr-defined]
    assert short.frames == 108
    assert short.frames // short.every >= 4
    assert (whole.times(200), trial.times(200)) == (200, 2)  # type: ignore[attr-defined]


def test_a_part_that_is_measured_again_leaves_the_others(measure_engine: ModuleType, tmp_path: Path) -> None:
    one = Section(part="start", title="Start", date_utc="then", load=(0.0, 0.0), how=[], rows=[])
    record = Record(
        date_utc="then", command="c", machine=machine(), versions={}, scale=1.0,
        sections=[one, msgspec.structs.replace(one, part="large")],
    )  # fmt: skip
    path = tmp_path / "engine.json"
    assert measure_engine.sections_of(path, scale=1.0) == {}
    measure_engine.write(tmp_path / "engine", record)
    assert list(measure_engine.sections_of(path, scale=1.0)) == ["start", "large"]
    # A trial and a measurement are not mixed.
    assert measure_engine.sections_of(path, scale=0.1) == {}


def ran(name: str, *asked: str) -> subprocess.CompletedProcess[str]:
    """A script of deploy/ as its user runs it."""
    command = [sys.executable, str(DEPLOY / f"{name}.py"), *asked]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=clean_environment(), check=False)


@pytest.mark.slow
def test_a_trial_of_the_script_writes_everything(tmp_path: Path) -> None:
    asked = ["--part", "large,start", "--scale", "0.001", "--out", str(tmp_path / "out")]
    done = ran("measure_engine", *asked)
    assert done.returncode == 0, done.stderr
    record = msgspec.json.decode((tmp_path / "out/engine.json").read_bytes(), type=Record)
    assert [one.part for one in record.sections] == ["large", "start"]
    assert (tmp_path / "out/engine.md").read_text() in done.stdout
    assert len(record.sections[1].values["seconds"]) == 2
    large = read_document(tmp_path / "out/large.json")
    assert [(one.condition.neurons, one.failed, one.lost) for one in large.results] == [(10_000, "", 0)]


@pytest.mark.slow
def test_a_trial_of_the_gpus_script_where_there_is_none(tiny_bundle_path: Path, tmp_path: Path) -> None:
    asked = ["--bundle", str(tiny_bundle_path), "--provider", "cpu", "--scale", "0.001", "--out", str(tmp_path)]
    done = ran("measure_gpu", *asked)
    assert done.returncode == 0, done.stderr
    record = msgspec.json.decode((tmp_path / "gpu.json").read_bytes(), type=Record)
    (tiny,) = record.sections
    assert tiny.part == load_bundle(tiny_bundle_path).manifest.preset
    assert tiny.how[0].startswith("cpu, ")
    assert [(row.what, row.aim) for row in tiny.rows if row.aim] == [
        ("241-forecast: in the engine, p50", 1.0),
        ("241-forecast: in the engine, p99", 2.0),
        ("241x40-probability: in the engine, p99", 10.0),
        ("10000-forecast: in the engine, p99", 15.0),
        ("10000-probability: in the engine, p99", 15.0),
        ("20000-probability: frame due until the client has the answer, p99", 33.3),
        ("40000-probability: frame due until the client has the answer, p99", 33.3),
    ]
    documents = [read_document(tmp_path / name) for name in tiny.files]
    assert [one.condition.neurons for found in documents for one in found.results] == [241, 241, 10_000, 10_000, 20_000, 40_000]
    assert [one.failed for found in documents for one in found.results] == [""] * 6
    assert [found.pace.detail for found in documents[:3]] == ["forecast", "probability", "forecast"]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpus_script_says_why_it_cannot_where_there_is_none(tmp_path: Path) -> None:
    done = ran("measure_gpu", "--network", "live", "--out", str(tmp_path))
    assert done.returncode != 0
    assert "provider cuda was asked for" in done.stderr
    assert not (tmp_path / "gpu.json").exists()


@pytest.mark.slow
def test_growth_is_measured_along_each_axis_and_can_be_drawn(
    measure_engine: ModuleType, growth_picture: ModuleType, tiny_bundle_path: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    sizes = {"neurons": (1, 4, 24, 60), "stimuli": (1, 2), "sessions": (1, 2)}
    for name, of_axis in zip(("NEURON_SIZES", "STIMULUS_SIZES", "SESSION_SIZES"), sizes.values(), strict=True):
        monkeypatch.setattr(measure_engine, name, of_axis)
    run = measure_engine.Run(
        live=tiny_bundle_path, tiny=tiny_bundle_path, out=tmp_path, scale=0.001, seed=0, command="a trial"
    )
    found = measure_engine.growth(run)
    documents = [read_document(tmp_path / name) for name in found.files]
    assert found.files == [f"growth-{axis}.json" for axis in sizes]
    for (axis, asked), one in zip(sizes.items(), documents, strict=True):
        assert [getattr(result.condition, axis) for result in one.results] == list(asked)
        assert [(result.failed, result.lost) for result in one.results] == [("", 0)] * len(asked)
        assert any(f"{asked[0]} to {asked[-1]} {axis}" in row.what for row in found.rows), axis
    # Fewer sizes than four have no power to be fitted.
    assert any(row.value is not None for row in found.rows if "1 to 60 neurons" in row.what)
    assert len(charts(growth_picture.picture(documents))) == 3


# --- the picture ------------------------------------------------------------------------------------------------------


def document(costs: dict[int, float]) -> Document:
    """Neurons against us of everything."""
    results = []
    for size, us in costs.items():
        one = figure([np.full(10, round(us * 1e3), np.int64)])
        assert one is not None
        results.append(
            Result(condition=Condition(neurons=size), kind="standing", figures={"overhead": one, "inference": one})
        )
    service = Service(engine="q", bundle="ab" * 32, provider="cpu", threads=1, preset="<live>", started=True, address="x:1")
    return Document(
        date_utc="2026-01-01T00:00:00+00:00", command="quantformer bench", machine=machine(), versions={}, service=service,
        pace=Pace(), results=results,
    )  # fmt: skip


def charts(svg: str) -> list[ElementTree.Element]:
    """The charts in a picture that is well-formed."""
    return ElementTree.fromstring(svg).findall("{http://www.w3.org/2000/svg}svg")


def test_the_picture_states_the_fit(growth_picture: ModuleType) -> None:
    linear = document({size: 100.0 + 2 * size for size in (1, 10, 100, 1000)})
    svg = growth_picture.picture([linear])
    assert len(charts(svg)) == 1
    assert "0.1 ms + 2 us x size ^ 1.00" in svg
    assert "linear or better" in svg
    assert "&lt;live&gt;" in svg
    assert svg == growth_picture.picture([linear])
    squared = growth_picture.picture([document({size: 100.0 + 2 * size**2 for size in (1, 10, 100, 1000)})])
    assert "more than linear" in squared
    flat = growth_picture.picture([document(dict.fromkeys((1, 10, 100, 1000), 100.0))])
    assert "it does not grow" in flat
    assert "too few sizes" in growth_picture.picture([document({1: 5.0, 10: 6.0})])


def test_without_growth_there_is_no_picture(growth_picture: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="varies neurons"):
        growth_picture.picture([document({1: 5.0})])
    write_document(tmp_path / "x.json", document({1: 5.0}))
    done = subprocess.run(
        [sys.executable, str(DEPLOY / "growth_picture.py"), str(tmp_path / "x.json"), "--out", str(tmp_path / "x.svg")],
        capture_output=True, text=True, env=clean_environment(), timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "varies neurons" in done.stderr
    assert not (tmp_path / "x.svg").exists()
