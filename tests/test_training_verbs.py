"""pretrain, finetune, evaluate and export by running the real commands, from run files and from options."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from running_service import PATIENCE_S, clean_environment, until
from small_recording import small_recording

from quantformer_training.arrays import save_recording

LONG_S = 5 * PATIENCE_S

PRETRAIN = """
recordings = ["small.npz", "other.npz"]
out = "pre"
windows = 240
batch = 32
seed = 3
tensorboard = false
[loop]
epochs = 2
[machine]
checkpoint_s = 0.0
"""
FINETUNE = """
recording = "small.npz"
pretrained = "pre"
out = "fitted"
train = 28
[fit]
refit = false
[fit.finetuning]
rows_per_epoch = 120
moment_epochs = 1
moment_rows = 120
batch = 64
[fit.finetuning.activation]
epochs = 2
[fit.finetuning.forecast]
epochs = 2
"""


def quantformer(folder: Path, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "quantformer_cli.main", *arguments],
        capture_output=True, text=True, cwd=folder, env=clean_environment(), timeout=LONG_S, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done


def log_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("verbs")
    save_recording(small_recording(neurons=4, period_s=5.0), made / "small.npz")
    save_recording(small_recording(neurons=3, seed=1), made / "other.npz")
    (made / "pretrain.toml").write_text(PRETRAIN)
    (made / "finetune.toml").write_text(FINETUNE)
    return made


@pytest.fixture(scope="module")
def pretrained(folder: Path) -> Path:
    done = quantformer(folder, "pretrain", "--run", "pretrain.toml")
    assert "validation loss" in done.stdout
    return folder / "pre"


@pytest.fixture(scope="module")
def fitted(folder: Path, pretrained: Path) -> Path:
    done = quantformer(folder, "finetune", "--run", "finetune.toml", "--seed", "5")
    assert "4 neurons of small.npz" in done.stdout
    return folder / "fitted"


@pytest.mark.slow
def test_pretrain_writes_model_log_and_run(pretrained: Path) -> None:
    assert [(line["stage"], line["epoch"], line["seed"]) for line in log_of(pretrained)] == [
        ("pre-training", 0, 3), ("pre-training", 1, 3),
    ]  # fmt: skip
    assert all(line["rows_per_s"] > 0 for line in log_of(pretrained))  # type: ignore[operator]
    run = tomllib.loads((pretrained / "run.toml").read_text())
    assert (run["windows"], run["loop"]["epochs"], run["loop"]["learning_rate"], run["seed"]) == (240, 2, 0.001, 3)


@pytest.mark.slow
def test_what_was_written_back_makes_the_same_model_again_also_after_a_kill(folder: Path, pretrained: Path) -> None:
    """Under another name for the outputs, killed inside its epochs."""
    arguments = [sys.executable, "-m", "quantformer_cli.main", "pretrain", "--run", "pre/run.toml", "--out", "again"]
    child = subprocess.Popen(arguments, cwd=folder, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        until(lambda: (folder / "again" / "checkpoint.pt").exists() or child.poll() is not None)
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=LONG_S)
    finally:
        child.kill()
        child.wait()
    quantformer(folder, *arguments[3:])
    one, other = (
        torch.load(folder / name / "pretrained.pt", weights_only=True)["autoencoder"] for name in ("pre", "again")
    )
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.slow
def test_a_fitted_model_teaches_another(folder: Path, fitted: Path) -> None:
    quantformer(folder, "finetune", "--run", "finetune.toml", "--teacher", "fitted", "--out", "taught")
    one, other = (json.loads((folder / name / "fitted.json").read_text())["taught_by"] for name in ("fitted", "taught"))
    assert (one, len(other)) == ("", 64)
    assert tomllib.loads((folder / "taught" / "run.toml").read_text())["teachers"] == [str(fitted)]


@pytest.mark.slow
def test_options_alone_do_what_they_always_did(folder: Path) -> None:
    done = quantformer(
        folder, "pretrain", "small.npz", "--out", "plain", "--windows", "60", "--epochs", "1", "--preset", "small"
    )
    assert done.stdout.startswith("plain: 60 windows, validation loss")
    assert (folder / "plain" / "pretrained.pt").is_file()
    assert list((folder / "plain" / "tensorboard").iterdir())


@pytest.mark.slow
def test_finetune_evaluate_export(folder: Path, fitted: Path) -> None:
    assert {str(line["stage"]) for line in log_of(fitted)} == {
        "activation at moments", "activation", "forecast at moments", "forecast",
    }  # fmt: skip
    run = tomllib.loads((fitted / "run.toml").read_text())
    assert (run["seed"], run["fit"]["finetuning"]["batch"], run["train"]) == (5, 64, 28)
    assert run["pretrained"] == str((folder / "pre").resolve())

    done = quantformer(folder, "evaluate", "fitted", "--out", "scores", "--json", "scores.json")
    assert "12 presentations test" in done.stdout
    assert "### Real onsets" in done.stdout
    assert "| log-loss, nats, lower is better | seed 5 |" in done.stdout
    assert "### Pseudo-onsets" in done.stdout
    assert (folder / "scores" / "tables.md").read_text() + "\n" == done.stdout
    figures = json.loads((folder / "scores" / "figures.json").read_text())
    assert {figure["model"] for figure in figures} == {"seed 5"}
    assert json.loads((folder / "scores.json").read_text()) == figures
    assert tomllib.loads((folder / "scores" / "run.toml").read_text())["fitted"] == str(fitted.resolve())

    done = quantformer(folder, "export", "fitted", "--out", "bundle")
    assert "4 neurons" in done.stdout
    assert "whole" in quantformer(folder, "bundle", "verify", "bundle").stdout
    assert (folder / "bundle.run.toml").is_file()
    assert "bundle exists" in quantformer(folder, "export", "fitted", "--out", "bundle", status=2).stderr


@pytest.mark.slow
def test_a_recording_is_still_trained_and_scored_at_once(folder: Path, pretrained: Path) -> None:
    (folder / "evaluate.toml").write_text(
        'pretrained = "pre"\ntrain = 28\n[fit]\nrefit = false\n[fit.finetuning]\nrows_per_epoch = 60\nmoment_epochs = 0\n'
        "[fit.finetuning.activation]\nepochs = 1\n[fit.finetuning.forecast]\nepochs = 1\n"
    )
    done = quantformer(folder, "evaluate", "small.npz", "--run", "evaluate.toml", "--seeds", "2", "--folds", "0")
    assert "28 of 40 presentations train; 2 seeds" in done.stdout
    assert "| mean of 2 seeds |" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["pretrain", "--run", "none.toml"], 2, "none.toml cannot be read"),
        (["pretrain", "small.npz"], 2, "no out was given"),
        (["finetune", "--run", "pretrain.toml"], 2, "recordings is not a key; the nearest is 'recording'"),
        (["export", "nowhere", "--out", "x"], 3, "made by 'quantformer finetune'"),
    ],
)
def test_bad_usage_is_one_line(folder: Path, arguments: list[str], status: int, says: str) -> None:
    done = quantformer(folder, *arguments, status=status)
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
