"""The one training loop: epochs, early stopping on validation, checkpoints at every epoch's end, exact resume."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantformer.errors import DataError, UnavailableError

#: Number of the checkpoint's schema. Older ones are read, newer ones refused.
CHECKPOINT_SCHEMA = 1


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


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One finished epoch, for whoever shows progress: losses, and the seconds that remain if every epoch is used."""

    stage: str
    epoch: int
    epochs: int
    loss: float
    validation: float
    best: float
    seconds_left: float


@dataclass(frozen=True, kw_only=True)
class LoopResult:
    """``best_epoch`` counts from 0; the network is left with that epoch's weights."""

    best_epoch: int
    best_validation: float
    epochs_run: int


Report = Callable[[Progress], None]


def run_loop(
    *,
    stage: str,
    network: nn.Module,
    config: LoopConfig,
    losses: Callable[[int], Iterator[Tensor]],
    validate: Callable[[], float],
    report: Report,
    checkpoint: Path | None = None,
    fingerprint: str = "",
) -> LoopResult:
    """Train ``network`` on the losses that ``losses(epoch)`` yields, keep the epoch with the lowest ``validate()``.

    All randomness of an epoch is drawn from ``(seed, epoch)``, so a run that resumes from ``checkpoint`` continues
    exactly as it would have. ``fingerprint`` names the configuration and data; a checkpoint of another is refused.

    Raises:
        DataError: a loss is not finite, there is nothing to learn from, or the checkpoint is foreign, damaged or newer.
        UnavailableError: the checkpoint cannot be written.
    """
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=config.learning_rate, weight_decay=config.weight_decay)
    best, best_epoch, best_weights, first = math.inf, -1, copy.deepcopy(network.state_dict()), 0
    if checkpoint is not None and checkpoint.exists():
        state = load_checkpoint(checkpoint, fingerprint=fingerprint)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        best, best_epoch, best_weights, first = (
            state["best"],
            state["best_epoch"],
            state["best_weights"],
            state["epoch"],
        )
    started, done = time.monotonic(), first
    last = config.epochs if config.stop_after is None else min(config.stop_after, config.epochs)
    for epoch in range(first, last):
        if config.stop_after is None and 0 <= best_epoch < epoch - config.patience:
            break
        torch.manual_seed(config.seed * 1_000_003 + epoch)
        network.train()
        total, batches = 0.0, 0
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(epoch, config.epochs)
        for loss in losses(epoch):
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trainable, config.gradient_clip)
            optimizer.step()
            total, batches = total + loss.item(), batches + 1
        if batches == 0:
            raise DataError(f"{stage}: epoch {epoch} had not one batch; there is nothing to learn from")
        network.eval()
        with torch.no_grad():
            validation = validate()
        if not math.isfinite(total) or not math.isfinite(validation):
            raise DataError(
                f"{stage}: the loss of epoch {epoch} is {total / batches}, on validation {validation}; lower the learning "
                "rate or look for NaN in the data"
            )
        done = epoch + 1
        if validation < best or config.stop_after is not None:
            best, best_epoch, best_weights = validation, epoch, copy.deepcopy(network.state_dict())
        if checkpoint is not None:
            state = {
                "epoch": epoch + 1, "network": network.state_dict(), "optimizer": optimizer.state_dict(),
                "best": best, "best_epoch": best_epoch, "best_weights": best_weights,
            }  # fmt: skip
            save_checkpoint(checkpoint, state, fingerprint=fingerprint)
        left = (time.monotonic() - started) / (epoch + 1 - first) * (last - epoch - 1)
        report(
            Progress(
                stage=stage, epoch=epoch, epochs=last, loss=total / batches,
                validation=validation, best=best, seconds_left=left,
            )
        )  # fmt: skip
    network.load_state_dict(best_weights)
    network.eval()
    return LoopResult(best_epoch=best_epoch, best_validation=best, epochs_run=done - first)


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
