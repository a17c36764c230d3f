"""Tests of the training log: a line an epoch, over kills and resumes, and the same figures for TensorBoard."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running_service import PATIENCE_S, clean_environment

from quantformer.errors import MissingExtraError, UnavailableError
from quantformer_training.accelerator import Accelerator
from quantformer_training.loop import LoopConfig, Progress, in_batches, run_loop
from quantformer_training.training_log import LOG_FILE, TENSORBOARD, TrainingLog

EPOCH = Progress(
    stage="refit activation", epoch=0, epochs=3, loss=0.5, validation=0.25, best=0.25, seconds_left=4.0,
    learning_rate=1e-3, rows=300, seconds=2.0, seed=7,
)  # fmt: skip


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]


def test_a_line_an_epoch(tmp_path: Path) -> None:
    with TrainingLog(tmp_path / "run") as log:
        log.report(EPOCH)
        # Written as it happens: whoever looks while training runs sees it.
        assert lines(tmp_path / "run") == [
            {
                "stage": "refit activation", "epoch": 0, "epochs": 3, "loss": 0.5, "validation": 0.25, "best": 0.25,
                "learning_rate": 1e-3, "rows_per_s": 150.0, "seconds": 2.0, "seed": 7,
            }
        ]  # fmt: skip


def test_what_is_not_known_is_null(tmp_path: Path) -> None:
    with TrainingLog(tmp_path) as log:
        log.report(dataclasses.replace(EPOCH, rows=0, learning_rate=math.nan))
    assert (lines(tmp_path)[0]["rows_per_s"], lines(tmp_path)[0]["learning_rate"]) == (None, None)


def test_a_resumed_run_appends_also_after_a_torn_line(tmp_path: Path) -> None:
    with TrainingLog(tmp_path) as log:
        log.report(EPOCH)
    file = tmp_path / LOG_FILE
    file.write_text(file.read_text() + '{"stage": "ref')
    with TrainingLog(tmp_path) as log:
        log.report(dataclasses.replace(EPOCH, epoch=1))
    first, torn, second = file.read_text().splitlines()
    assert (json.loads(first)["epoch"], torn, json.loads(second)["epoch"]) == (0, '{"stage": "ref', 1)


def test_whoever_shows_progress_is_told_too(tmp_path: Path) -> None:
    told: list[Progress] = []
    with TrainingLog(tmp_path, then=told.append) as log:
        log.report(EPOCH)
    assert told == [EPOCH]


def test_tensorboard_reads_the_same_figures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    with TrainingLog(tmp_path, tensorboard=True) as log:
        for epoch in range(3):
            log.report(dataclasses.replace(EPOCH, epoch=epoch, loss=0.5 / (epoch + 1)))
    found = EventAccumulator(str(tmp_path / TENSORBOARD))
    found.Reload()
    assert set(found.Tags()["scalars"]) == {
        f"refit-activation/{name}" for name in ("loss", "validation", "best", "learning_rate", "rows_per_s")
    }
    events = found.Scalars("refit-activation/loss")
    assert [event.step for event in events] == [0, 1, 2]
    assert [event.value for event in events] == pytest.approx([0.5, 0.25, 0.5 / 3])


def test_training_says_its_rate_and_pace(tmp_path: Path) -> None:
    machine = Accelerator()
    network = torch.nn.Linear(1, 1)
    with TrainingLog(tmp_path) as log:
        run_loop(
            stage="test", network=network, config=LoopConfig(epochs=2, learning_rate=0.1, seed=3),
            losses=lambda epoch: (
                network(machine.share(rows)[:, None].float()).square().mean() for rows in in_batches(torch.arange(50), 20)
            ),
            validate=lambda: 1.0, report=log.report, accelerator=machine,
        )  # fmt: skip
    first, second = lines(tmp_path)
    assert first["rows_per_s"] == pytest.approx(50 / first["seconds"])  # type: ignore[operator]
    assert (first["learning_rate"], first["seed"], second["epoch"]) == (0.05, 3, 1)


def test_without_tensorboard_the_cure_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"tensorboard = false does without.*quantformer\[train\]"):
        TrainingLog(tmp_path, tensorboard=True)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UnavailableError, match=r"log\.jsonl cannot be written"):
        TrainingLog(tmp_path / "file")


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from test_training_log import EPOCH\n"
        "from quantformer_training.training_log import TrainingLog\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))\n"
        f"log = TrainingLog(Path({str(tmp_path)!r}))\n"
        "for _ in range(9):\n"
        "    log.report(EPOCH)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False,
        env=clean_environment(), cwd=Path(__file__).parent,
    )  # fmt: skip
    assert "log.jsonl cannot be written (File too large); make room and resume" in done.stderr
