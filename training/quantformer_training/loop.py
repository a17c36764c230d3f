"""The one training loop: epochs, early stopping on validation, checkpoints at and inside epochs, exact resume."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantformer.errors import DataError, UnavailableError
from quantformer_training.accelerator import Accelerator
from quantformer_training.averaging import AveragedWeights
from quantformer_training.freed_memory import keep_freed

#: Number of the checkpoint's schema. Older ones are read, newer ones refused. 2: inside an epoch, too. 3: averaged weights.
CHECKPOINT_SCHEMA = 3
#: Seconds between checkpoints inside an epoch, and after how many steps the clock is looked at.
CHECKPOINT_S = 120.0
LOOK_STEPS = 16


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """``learning_rate`` is the peak of a cosine over ``epochs`` with one epoch of warm-up; ``patience`` in epochs.

    With ``stop_after`` the run ends there and keeps its last weights: for a last fit, whose length was chosen before.
    """

    epochs: int
    learning_rate: float
    weight_decay: float = 0.01
    patience: int = 10
    gradient_clip: float = 1.0
    stop_after: int | None = None
    seed: int = 0

    @property
    def most_epochs(self) -> int:
        """Where a run ends that patience does not end before."""
        return self.epochs if self.stop_after is None else min(self.stop_after, self.epochs)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One finished epoch, for whoever shows or keeps progress: losses, and the seconds that remain if every epoch is used.

    ``learning_rate`` held in this epoch, which took ``seconds`` with its validation; ``rows`` were learned from in it, 0
    where the batches did not go through `Accelerator.share`.
    """

    stage: str
    epoch: int
    epochs: int
    loss: float
    validation: float
    best: float
    seconds_left: float
    learning_rate: float = math.nan
    rows: int = 0
    seconds: float = 0.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class LoopResult:
    """``best_epoch`` counts from 0; the network is left with that epoch's weights."""

    best_epoch: int
    best_validation: float
    epochs_run: int


Report = Callable[[Progress], None]
#: A step's loss, or what computes it: a run that resumes inside an epoch passes over the latter without computing it.
Step = Tensor | Callable[[], Tensor]


@dataclass(kw_only=True)
class _State:
    """Where a run stands; with ``step`` > 0 inside ``epoch``, else at its beginning."""

    epoch: int = 0
    best: float = math.inf
    best_epoch: int = -1
    best_weights: dict[str, Any]
    mean_weights: list[Tensor] = field(default_factory=list)
    mean_steps: int = 0
    step: int = 0
    total: float = 0.0
    seconds: float = 0.0


def run_loop(
    *,
    stage: str,
    network: nn.Module,
    config: LoopConfig,
    losses: Callable[[int], Iterator[Step]],
    validate: Callable[[], float],
    report: Report,
    checkpoint: Path | None = None,
    fingerprint: str = "",
    accelerator: Accelerator | None = None,
    checkpoint_s: float = CHECKPOINT_S,
    averaged: bool = False,
) -> LoopResult:
    """Train ``network`` on the losses that ``losses(epoch)`` yields, keep the epoch with the lowest ``validate()``.

    ``averaged``: what is validated and kept are `AveragedWeights`, not those of the last step. (An auto-encoder's are not:
    its quantiser moves codes by more than gradients.)

    All randomness of an epoch is drawn from ``(seed, epoch)``, and a checkpoint inside an epoch (about every
    ``checkpoint_s`` seconds) holds the state of torch's generators, so a run that resumes from ``checkpoint`` continues
    exactly as it would have: on the CPU to the same bits. ``losses`` must yield the same steps whenever it is asked for
    the same epoch. ``fingerprint`` names the configuration and data; a checkpoint of another is refused.

    With an ``accelerator`` the network is moved to its device and left there. Where that has several processes, each runs
    this loop: batches go through `Accelerator.share`, what they share is drawn from generators of its own, and ``validate``
    returns each process's part such that the mean over processes is the value. The first process alone writes and reports.
    Validation is computed in float32 whatever the precision of training: it chooses what is served.

    Raises:
        DataError: a loss is not finite, there is nothing to learn from, or the checkpoint is foreign, damaged or newer.
        UnavailableError: the checkpoint cannot be written.
    """
    keep_freed()
    machine = accelerator or Accelerator()
    network.to(machine.device)
    machine.same_everywhere(network)
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    state, random_state = _State(best_weights=copy.deepcopy(network.state_dict())), []
    if checkpoint is not None and checkpoint.exists():
        loaded = load_checkpoint(checkpoint, fingerprint=fingerprint)
        try:
            network.load_state_dict(loaded["network"])
        except RuntimeError as error:
            raise DataError(
                f"{checkpoint} holds a network of other sizes than this software trains ({str(error).splitlines()[-1].strip()}); "
                "it was begun by another version: choose another directory or remove it"
            ) from None
        optimizer.load_state_dict(loaded["optimizer"])
        # A checkpoint of schema 1 stands at the beginning of an epoch and says nothing of steps; before 3 there was no mean,
        # which begins at the weights.
        state = _State(**{name: loaded[name] for name in vars(state) if name in loaded})
        random_state = loaded.get("random_state", [])
    average = AveragedWeights(trainable, mean=state.mean_weights, steps=state.mean_steps) if averaged else None

    def save() -> None:
        if checkpoint is not None:
            if average is not None:
                state.mean_weights, state.mean_steps = average.mean, average.steps
            # Asked of every process, written by one.
            content = {**vars(state), "network": network.state_dict(), "optimizer": optimizer.state_dict()}
            content["random_state"] = machine.random_state() if state.step else []
            if machine.rank == 0:
                save_checkpoint(checkpoint, content, fingerprint=fingerprint)

    started, first = time.monotonic(), state.epoch
    last = config.most_epochs
    while state.epoch < last:
        epoch = state.epoch
        if config.stop_after is None and 0 <= state.best_epoch < epoch - config.patience:
            break
        machine.begin(config.seed * 1_000_003 + epoch)
        network.train()
        rate = config.learning_rate * _schedule(epoch, config.epochs)
        for group in optimizer.param_groups:
            group["lr"] = rate
        steps = losses(epoch)
        if state.step:
            _pass_over(steps, state.step, machine=machine)
            # What passing over changed (generators, buffers that count) is as it was after that step.
            network.load_state_dict(loaded["network"])
            machine.restore_random_state(random_state)
        total = torch.tensor(state.total, dtype=torch.float64, device=machine.device)
        began, saved = time.monotonic() - state.seconds, time.monotonic()
        while (loss := _next_loss(steps, machine=machine)) is not None:
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            machine.average_gradients(trainable)
            nn.utils.clip_grad_norm_(trainable, config.gradient_clip)
            optimizer.step()
            if average is not None:
                average.add()
            # Kept on the device: to read it at every step would wait for every step.
            total += loss.detach()
            state.step += 1
            look = checkpoint is not None and state.step % LOOK_STEPS == 0
            if look and machine.first_says(time.monotonic() - saved >= checkpoint_s):
                state.total, state.seconds = machine.mean(float(total)), time.monotonic() - began
                save()
                saved = time.monotonic()
        if state.step == 0:
            raise DataError(f"{stage}: epoch {epoch} had not one batch; there is nothing to learn from")
        mean = machine.mean(float(total)) / state.step
        network.eval()
        with torch.no_grad(), contextlib.nullcontext() if average is None else average.in_place():
            validation = machine.mean(validate())
            if validation < state.best or config.stop_after is not None:
                state.best, state.best_epoch = validation, epoch
                state.best_weights = copy.deepcopy(network.state_dict())
        if not math.isfinite(mean) or not math.isfinite(validation):
            raise DataError(
                f"{stage}: the loss of epoch {epoch} is {mean}, on validation {validation}; lower the learning rate or look "
                "for NaN in the data"
            )
        state.epoch, state.step, state.total, state.seconds = epoch + 1, 0, 0.0, 0.0
        save()
        if machine.rank == 0:
            now = time.monotonic()
            report(
                Progress(
                    stage=stage, epoch=epoch, epochs=last, loss=mean, validation=validation, best=state.best,
                    seconds_left=(now - started) / (state.epoch - first) * (last - state.epoch),
                    learning_rate=rate, rows=machine.rows, seconds=now - began, seed=config.seed,
                )
            )  # fmt: skip
    network.load_state_dict(state.best_weights)
    network.eval()
    return LoopResult(best_epoch=state.best_epoch, best_validation=state.best, epochs_run=state.epoch - first)


def _next_loss(steps: Iterator[Step], *, machine: Accelerator) -> Tensor | None:
    """The next step's loss in the accelerator's precision, wherever it is computed; None after the last."""
    with machine.autocast():
        step = next(steps, None)
        if step is None:
            return None
        return machine.weighted(step() if callable(step) else step)


def _pass_over(steps: Iterator[Step], count: int, *, machine: Accelerator) -> None:
    """Leave out the steps that were taken before the checkpoint."""
    with machine.autocast(), torch.no_grad():
        for _ in range(count):
            next(steps, None)


def in_batches(rows: Tensor, size: int) -> Iterator[Tensor]:
    """Consecutive pieces of at most ``size`` rows."""
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _schedule(epoch: int, epochs: int) -> float:
    """Share of the peak learning rate: a first half-speed epoch, then a cosine down to a twentieth."""
    if epoch == 0:
        return 0.5
    return 0.05 + 0.95 * 0.5 * (1.0 + math.cos(math.pi * epoch / max(epochs, 1)))


def save_checkpoint(path: Path, state: Mapping[str, Any], *, fingerprint: str) -> None:
    """Write aside, flush to the disk, then rename: a cut leaves the old checkpoint whole.

    Raises:
        UnavailableError: it cannot be written, for want of room or of rights.
    """
    aside = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            torch.save({"schema": CHECKPOINT_SCHEMA, "fingerprint": fingerprint, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except (OSError, RuntimeError) as error:
        # torch's writer reports a full disk as a RuntimeError.
        with contextlib.suppress(OSError):
            aside.unlink()
        raise UnavailableError(
            f"{path} cannot be written ({error}); make room or choose another directory. An older one there is whole"
        ) from error


def load_checkpoint(path: Path, *, fingerprint: str) -> dict[str, Any]:
    """Read a checkpoint without unpickling code, after its own CRCs have vouched for every byte.

    Raises:
        DataError: damaged, of a newer schema, or of another configuration or data set.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # torch itself reads altered weights without a word.
            altered = archive.testzip()
        if altered is not None:
            raise DataError(f"{altered} was altered")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(
            f"{path} is not a checkpoint, or damaged ({type(error).__name__}); remove it to train from the start"
        ) from None
    if not isinstance(state, dict) or not isinstance(state.get("schema"), int):
        raise DataError(f"{path} is not a quantformer checkpoint; remove it to train from the start")
    if state["schema"] > CHECKPOINT_SCHEMA:
        raise DataError(
            f"{path} has schema {state['schema']}, this software reads up to {CHECKPOINT_SCHEMA}: update quantformer"
        )
    if state.get("fingerprint") != fingerprint:
        raise DataError(
            f"{path} was made with another configuration or data ({state.get('fingerprint')!r}, now {fingerprint!r}); "
            "choose another directory or remove it"
        )
    return state
