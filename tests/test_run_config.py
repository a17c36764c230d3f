"""Tests of run files: what is told is what runs, nothing unknown passes, and what was run can be run again."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantformer.errors import UnavailableError, UsageError
from quantformer_training.effort import EFFORTS
from quantformer_training.run_config import (
    MADE_WITH,
    RUN_FILE,
    EvaluateRun,
    ExportRun,
    FinetuneRun,
    PretrainRun,
    read_run,
    require,
    write_run,
)
from quantformer_training.toml_text import render_toml


def file_of(folder: Path, text: str) -> Path:
    path = folder / "my.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_overrides_the_preset_and_options_override_the_file(tmp_path: Path) -> None:
    path = file_of(tmp_path, 'seed = 4\nwindows = 100\nrate_hz = 30\n[loop]\nepochs = 7\npatience = 2\n')
    run = read_run(PretrainRun, path, flags={"windows": 50, "loop.epochs": 3, "machine.threads": 2})
    assert (run.seed, run.windows, run.rate_hz, run.machine.threads) == (4, 50, 30.0, 2)
    assert (run.loop.epochs, run.loop.patience, run.loop.learning_rate) == (3, 2, 1e-3)
    assert run.loop.seed == 4, "the seed of the run is that of training"
    assert read_run(PretrainRun, None).windows == 32_000


def test_the_paper_preset_is_the_schedule_of_the_papers_tables() -> None:
    # NOTES, optimiser: pre-training 1e-4, 50 epochs; downstream 1e-3, 100 epochs. Batch: docs/running.md.
    run = read_run(PretrainRun, None, flags={"preset": "paper", "seed": 2})
    assert (run.loop.learning_rate, run.loop.epochs, run.batch, run.loop.seed) == (1e-4, 50, 2_048, 2)
    fit = read_run(FinetuneRun, None, flags={"preset": "paper", "seed": 2}).fit
    study = EFFORTS["paper"].seeded(2)
    assert fit.model == study.model
    assert (fit.finetuning, fit.pretraining, fit.pretraining_batch) == (study.finetuning, study.pretraining, 2_048)
    assert (fit.finetuning.forecast.learning_rate, fit.finetuning.forecast.epochs) == (1e-3, 100)


def test_a_file_reaches_into_every_table_of_a_fit(tmp_path: Path) -> None:
    text = "seed = 5\n[fit]\nrefit = false\n[fit.finetuning]\nbatch = 8\n[fit.finetuning.forecast]\nepochs = 2\n"
    path = file_of(tmp_path, text)
    fit = read_run(FinetuneRun, path).fit
    assert (fit.refit, fit.finetuning.batch, fit.finetuning.forecast.epochs, fit.seed) == (False, 8, 2, 5)
    assert {fit.pretraining.seed, fit.finetuning.activation.seed, fit.finetuning.forecast.seed} == {5}
    assert fit.finetuning.activation.epochs > 2
    assert read_run(EvaluateRun, None).config(7).finetuning.forecast.seed == 7


def test_paths_of_a_file_are_relative_to_it_and_those_of_options_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    path = file_of(tmp_path / "runs", 'recordings = ["a.h5", "../b.npz"]\nout = "here"\n')
    monkeypatch.chdir(tmp_path)
    run = read_run(PretrainRun, path)
    assert run.recordings == (str(tmp_path / "runs" / "a.h5"), str(tmp_path / "b.npz"))
    assert run.out == str(tmp_path / "runs" / "here")
    assert read_run(PretrainRun, path, flags={"out": Path("there")}).out == str(tmp_path / "there")


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        (PretrainRun, "window = 3", r"my\.toml: window is not a key; the nearest is 'windows'"),
        (PretrainRun, "[loop]\nepoch = 3", r"loop\.epoch is not a key; the nearest is 'loop\.epochs'"),
        (FinetuneRun, "[fit.finetuning.forcast]\nepochs = 3", r"fit\.finetuning\.forcast .*'fit\.finetuning\.forecast'"),
        (FinetuneRun, "[fit]\nseed = 3", r"fit\.seed is not a key"),
        (PretrainRun, 'windows = "many"', r"windows is 'many': Expected `int`, got `str`"),
        (PretrainRun, "windows = 1.5", "windows is 1.5"),
        (PretrainRun, "windows = true", "windows is True"),
        (PretrainRun, 'recordings = "a.h5"', "recordings is"),
        (PretrainRun, "loop = 3", r"loop is 3, expected a table: \[loop\]"),
        (PretrainRun, "[loop]\nlearning_rate = nan", r"loop\.learning_rate is nan, expected a finite number"),
        (PretrainRun, 'preset = "large"', "preset is 'large', expected one of small, live, paper"),
        (PretrainRun, "[machine]\nthreads = 0", "threads = 0"),
        (EvaluateRun, "seeds = 0", "seeds = 0"),
        (EvaluateRun, '[machine]\ndevice = "cuda"', "of .machine. only threads is for it"),
        (ExportRun, "windows = 3", "windows is not a key"),
        (PretrainRun, "windows = ", r"my\.toml is not TOML"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, kind: Any, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        read_run(kind, file_of(tmp_path, text))


def test_a_wrong_option_is_said_to_be_one() -> None:
    with pytest.raises(UsageError, match="the command line: windows is 'x'"):
        read_run(PretrainRun, None, flags={"windows": "x"})


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--run .*none\.toml cannot be read"):
        read_run(PretrainRun, tmp_path / "none.toml")


def test_what_a_run_cannot_do_without_is_asked_for() -> None:
    with pytest.raises(UsageError, match="no recordings was given"):
        require(read_run(PretrainRun, None), "recordings", "out")


@pytest.mark.parametrize("kind", [PretrainRun, FinetuneRun, EvaluateRun, ExportRun])
@pytest.mark.parametrize("preset", ["small", "live", "paper"])
def test_what_is_written_back_is_the_same_run(tmp_path: Path, kind: Any, preset: str) -> None:
    flags: dict[str, object] = {"out": tmp_path / 'an "odd" näme'}
    if kind is not ExportRun:
        flags["preset"] = preset
    if kind in (PretrainRun, FinetuneRun):
        flags |= {"seed": 9, "rate_hz": 30.5}
    run = read_run(kind, None, flags=flags)
    write_run(run, tmp_path / "deep" / RUN_FILE)
    assert read_run(kind, tmp_path / "deep" / RUN_FILE) == run
    made = tomllib.loads((tmp_path / "deep" / RUN_FILE).read_text(encoding="utf-8"))[MADE_WITH]
    assert {"quantformer", "torch", "numpy", "python"} <= made.keys()


def keys(tables: dict[str, Any], within: str = "") -> Iterator[str]:
    for name, value in tables.items():
        if isinstance(value, dict):
            yield from keys(value, f"{within}{name}.")
        else:
            yield within + name


@pytest.mark.parametrize("kind", [PretrainRun, FinetuneRun, EvaluateRun, ExportRun])
def test_every_key_is_in_the_document(tmp_path: Path, kind: Any) -> None:
    document = (Path(__file__).resolve().parents[1] / "docs" / "running.md").read_text(encoding="utf-8")
    flags = {} if kind is ExportRun else {"rate_hz": 30.0}
    write_run(read_run(kind, None, flags=flags), tmp_path / RUN_FILE)
    written = tomllib.loads((tmp_path / RUN_FILE).read_text(encoding="utf-8"))
    del written[MADE_WITH]
    found = {key.replace("activation.", "TASK.").replace("forecast.", "TASK.") for key in keys(written)}
    assert len(found) >= 2
    assert {key for key in found if f"| `{key}` |" not in document} == set()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UnavailableError, match=r"run\.toml cannot be written"):
        write_run(read_run(ExportRun, None), tmp_path / "file" / RUN_FILE)


SCALARS = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(st.characters(exclude_categories=["Cs"]))
)
KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
TABLES = st.recursive(
    st.dictionaries(KEYS, st.one_of(SCALARS, st.lists(SCALARS)), max_size=4),
    lambda inner: st.dictionaries(KEYS, st.one_of(SCALARS, inner), max_size=4),
    max_leaves=12,
)


@given(TABLES)
def test_toml_that_is_written_reads_as_what_it_was(tables: dict[str, Any]) -> None:
    assert tomllib.loads(render_toml(tables)) == tables
