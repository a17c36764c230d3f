"""`quantformer reproduce` from a shell: its refusals, and one recording from command to report."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from rich.console import Console
from running_service import command

from quantformer_cli.reproduce_progress import ReproduceProgress, left_text
from quantformer_training.reproduce.work import Step


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tabel2", "--data", "simulated"], "there is no table 'tabel2'; the nearest is 'table2'"),
        (["table2", "--data", "simulated", "more.npz"], "either 'simulated', with --mice and --neurons, or recordings"),
        (
            ["table2", "--data", "some.npz", "--mice", "3"],
            "either 'simulated', with --mice and --neurons, or recordings",
        ),
        (["table2"], "--data"),
        (["table2", "--data", "simulated", "--processes", "0"], "processes 1 or more"),
        (["table2", "--data", "simulated", "--seeds", "0"], "--seeds 0"),
        (["table2", "--data", "simulated", "--preset", "large"], "invalid choice: 'large'"),
        (["table2", "--data", "simulated", "--mice", "0"], "0 mice of"),
        (["table2", "--data", "simulated", "--device", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(arguments: list[str], says: str, tmp_path: Path) -> None:
    done = command("reproduce", *arguments, *(["--out", str(tmp_path / "out")] if len(arguments) > 1 else []))
    assert done.returncode == 2
    assert says in done.stderr
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_there_are_told_before_anything_is_made(tmp_path: Path) -> None:
    weights, out = str(tmp_path / "nowhere"), tmp_path / "out"
    done = command("reproduce", "table2", "--data", "simulated", "--brainlm", weights, "--out", str(out))
    assert done.returncode == 3
    assert "nowhere/config.json does not exist; BrainLM's weights (CC BY-NC-ND 4.0" in done.stderr
    assert not out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told_before_anything_is_made(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command("reproduce", "table2", "--data", "simulated", "--device", "cuda", "--out", str(out))
    assert done.returncode == 4
    assert "0 are seen; use device 'cpu'" in done.stderr
    assert not out.exists()


def test_data_of_which_nothing_can_be_used_is_refused_with_every_reason(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no recording at all")
    done = command(
        "reproduce",
        "table1",
        "--data",
        str(tmp_path / "notes.txt"),
        str(tmp_path / "none.npz"),
        "--out",
        str(tmp_path / "out"),
    )
    assert done.returncode == 3
    assert "notes.txt" in done.stderr
    assert "none.npz" in done.stderr


def test_the_time_left_is_told_as_far_as_it_is_known() -> None:
    assert left_text(math.nan) == "time left not known yet"
    assert left_text(80.0) == "about 80 seconds left"
    assert left_text(600.0) == "about 10 minutes left"


def test_each_job_is_a_line_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert not Console(stderr=True).is_terminal
    with ReproduceProgress() as progress:
        progress.say("reading [a].npz")
        progress.report(Step(name="", failure="", done=2, total=6, left_s=math.nan))
        progress.report(Step(name="models, m0: lstm", failure="", done=3, total=6, left_s=30.0))
        progress.report(Step(name="models, m1: lstm", failure="no [usable] trial", done=6, total=6, left_s=0.0))
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == [
        "reading [a].npz",
        "2 of 6 models are there; time left not known yet",
        "[3 of 6] models, m0: lstm; about 30 seconds left",
        "[6 of 6] models, m1: lstm: no [usable] trial; done",
    ]
