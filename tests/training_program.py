"""A small training as a program of its own, for tests that kill it or run it in several processes.

``python training_program.py FOLDER KIND[,KIND] [NAME=VALUE ...]``. Of the kinds, ``regression`` trains a small network on
steps that are functions, ``direct`` on steps that are losses, ``pretraining`` an auto-encoder. The final weights go to
``FOLDER/KIND/weights-RANK.pt``, every epoch's progress to stdout. With ``kills=N`` each kind is trained once undisturbed
in ``FOLDER/KIND/whole`` and once in ``FOLDER/KIND/killed``, there by a process that is killed at random moments, begun
again, and at last left to end; a line ``killed KIND STEP`` says at which step of its epoch the checkpoint then stood.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from small_model import CONFIG
from small_recording import small_recording
from torch import Tensor, nn

from quantformer.labels import LabelRule
from quantformer.signal import SignalRecipe
from quantformer_training.accelerator import Accelerator, accelerator_of
from quantformer_training.loop import LoopConfig, Progress, Step, in_batches, run_loop
from quantformer_training.pretrain import Windows, pretrain, random_windows, whole

ROWS, BATCH = 330, 6


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the command line asks for."""

    processes: int = 1
    precision: str = "float32"
    dropout: float = 0.0
    epochs: int = 3
    kills: int = 0


def train(kind: str, folder: Path, *, wish: Wish, machine: Accelerator) -> None:
    """Train, and write the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    loop = LoopConfig(epochs=wish.epochs, learning_rate=1e-2)
    regression = partial(_regression, direct=kind == "direct", averaged=kind == "averaged")
    make = _pretraining if kind == "pretraining" else regression
    network = make(folder, loop=loop, machine=machine, dropout=wish.dropout)
    torch.save(network.state_dict(), folder / f"weights-{machine.rank}.pt")


def train_and_kill(kind: str, folder: Path, *, wish: Wish) -> None:
    """Once undisturbed, then with kills."""
    # torch imports much at the first step and windows take a second: here, so that the processes begin with training.
    train(kind, folder / "warm", wish=replace(wish, epochs=1), machine=Accelerator())
    began = time.monotonic()
    os.waitpid(_begin(kind, folder / "whole", wish=wish), 0)
    whole_s = time.monotonic() - began
    rng, kills, inside = random.Random(kind), 0, 0
    # At least one kill must fall where only a checkpoint inside an epoch can help; most do.
    while (kills < wish.kills or not inside) and kills < 50:
        child = _begin(kind, folder / "killed", wish=wish)
        time.sleep(rng.uniform(0.0, whole_s / 3))
        os.kill(child, signal.SIGKILL)
        ended = os.waitpid(child, 0)[1]
        if not os.WIFSIGNALED(ended):
            shutil.rmtree(folder / "killed")
            inside = 0
            continue
        file = folder / "killed" / "test.pt"
        step = torch.load(file, weights_only=True)["step"] if file.exists() else 0
        kills, inside = kills + 1, inside + (step > 0)
        print(f"killed {kind} {step}", flush=True)
    os.waitpid(_begin(kind, folder / "killed", wish=wish), 0)


def _begin(kind: str, folder: Path, *, wish: Wish) -> int:
    """A process that trains; forked, since a kill is as sudden and an import of torch takes seconds."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            train(kind, folder, wish=wish, machine=Accelerator())
            status = 0
        finally:
            os._exit(status)
    return child


def regression_network(dropout: float) -> nn.Module:
    """With a parameter that no loss reaches."""
    torch.manual_seed(0)
    layers = [nn.Linear(4, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 1)]
    network = nn.Sequential(*layers, nn.Linear(1, 1), nn.Identity())
    network[-1].register_parameter("unused", nn.Parameter(torch.ones(3)))
    return network


def _regression(
    folder: Path, *, loop: LoopConfig, machine: Accelerator, dropout: float, direct: bool, averaged: bool
) -> nn.Module:
    network = regression_network(dropout)
    with torch.no_grad():
        # Every process must begin as the first does.
        network.get_parameter("0.bias").add_(machine.rank)
    generator = torch.Generator().manual_seed(7)
    inputs, target = torch.randn(ROWS, 4, generator=generator), torch.randn(ROWS, 1, generator=generator)
    held = slice(machine.rank, None, machine.ranks)

    def loss(rows: Tensor) -> Tensor:
        error: Tensor = (network(inputs[rows]) - target[rows]).square().mean()
        return error

    def losses(epoch: int) -> Iterator[Step]:
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(epoch))
        for rows in in_batches(order, BATCH + 1):
            step: Callable[[], Tensor] = partial(loss, machine.share(rows))
            yield step() if direct else step

    def validate() -> float:
        return float((network(inputs[held]) - target[held]).square().sum()) * machine.ranks / ROWS

    run_loop(
        stage="test", network=network, config=loop, losses=losses, validate=validate, report=_tell,
        checkpoint=folder / "test.pt", accelerator=machine, checkpoint_s=0.0, averaged=averaged,
    )  # fmt: skip
    return network


def _pretraining(folder: Path, *, loop: LoopConfig, machine: Accelerator, dropout: float) -> nn.Module:
    learned, held = _windows()
    made = pretrain(
        train=learned, validation=held, config=replace(CONFIG, dropout=dropout), loop=loop, report=_tell,
        batch=8, checkpoint=folder / "test.pt", accelerator=machine, checkpoint_s=0.0,
    )  # fmt: skip
    return made.autoencoder


@cache
def _windows() -> tuple[Windows, Windows]:
    recording = small_recording()
    split, recipe, rule = whole(recording), SignalRecipe(), LabelRule()
    learned = random_windows(recording, split=split, part="train", count=401, recipe=recipe, rule=rule, seed=0)
    return learned, random_windows(recording, split=split, part="train", count=61, recipe=recipe, rule=rule, seed=1)


def _tell(progress: Progress) -> None:
    print(f"epoch {progress.epoch} {progress.loss!r} {progress.validation!r} {progress.rows}", flush=True)


def main(arguments: list[str]) -> None:
    """Read the command line."""
    kinds = {"processes": int, "precision": str, "dropout": float, "epochs": int, "kills": int}
    words = (word.split("=") for word in arguments[2:])
    wish = Wish(**{name: kinds[name](value) for name, value in words})
    machine = accelerator_of(processes=wish.processes, precision=wish.precision)
    for kind in arguments[1].split(","):
        folder = Path(arguments[0]) / kind
        if wish.kills:
            train_and_kill(kind, folder, wish=wish)
        else:
            train(kind, folder, wish=wish, machine=machine)


if __name__ == "__main__":
    main(sys.argv[1:])
