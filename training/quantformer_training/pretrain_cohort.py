"""Pre-training on a whole study: training frames of every session, with a mouse or a stimulus category left out if asked."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import MappingProxyType

import numpy as np

from quantformer.errors import DataError, RecordingError, SignalError
from quantformer.labels import LabelRule
from quantformer.signal import SignalRecipe, onset_frames
from quantformer_training.accelerator import one_process
from quantformer_training.effort import Effort
from quantformer_training.loop import Progress
from quantformer_training.pretrain import PRETRAINED, Windows, pretrain, random_windows, save_pretrained
from quantformer_training.run_data import split_of
from quantformer_training.splits import Split
from quantformer_training.store import StoredSession, open_session
from quantformer_training.trials import EPOCHS

#: What was spent on a pre-trained auto-encoder, beside it.
FIGURES = "pretraining.json"
#: Where a training that was interrupted goes on: on another device it could not from the same random state.
CHECKPOINTS = MappingProxyType({"cpu": "checkpoint.pt", "cuda": "checkpoint-cuda.pt"})


def pretrain_cohort(
    *,
    sessions: tuple[str, ...],
    effort: Effort,
    out: str,
    seed: int,
    without_mouse: str = "",
    without_category: str = "",
    quantized: bool = True,
    device: str = "cpu",
) -> dict[str, float]:
    """Pre-train on windows of the training parts of store directories ``sessions`` and write a directory ``out``; on
    ``device``, ``cpu`` or ``cuda``.

    No frame of a validation or test part is read, whatever category it belongs to. A directory that this very call has
    written before is left as it is. Returns its figures.

    Raises:
        DataError: nothing is left to learn from.
        UsageError: the device is not known. UnavailableError: ``cuda`` was asked for and torch sees no GPU.
    """
    accelerator = one_process(device=device, precision=effort.gpu_precision)
    stored = [open_session(Path(path)) for path in sessions]
    config = effort.seeded(seed)
    mark = repr([[one.fingerprint for one in stored], config, without_mouse, without_category, quantized])
    place = Path(out)
    if (place / PRETRAINED).exists() and (place / FIGURES).exists():
        try:
            known = json.loads((place / FIGURES).read_text())
        except ValueError:
            known = {}
        if known.pop("made_with", None) == mark:
            return {name: float(value) for name, value in known.items()}
        # Until this call is done, the directory holds nobody's auto-encoder, and its checkpoint is another's.
        for name in (FIGURES, *CHECKPOINTS.values()):
            (place / name).unlink(missing_ok=True)
    started = time.monotonic()
    train: list[Windows] = []
    validation: list[Windows] = []
    for number, session in enumerate(stored):
        if session.provenance.subject == without_mouse:
            continue
        try:
            split = training_split(session, without_category=without_category)
            made = [
                random_windows(
                    session,
                    split=split,
                    part=part,
                    count=count,
                    recipe=SignalRecipe(),
                    rule=LabelRule(),
                    seed=seed + number,
                )
                for part, count in (
                    ("train", config.pretraining_windows),
                    ("validation", max(config.pretraining_windows // 8, 100)),
                )
            ]
        except (RecordingError, SignalError):
            continue
        train.append(made[0])
        validation.append(made[1])
    if not train:
        raise DataError(
            f"no session is left to pre-train on without mouse {without_mouse!r}, category {without_category!r}"
        )
    trained = pretrain(
        train=Windows.joined(train),
        validation=Windows.joined(validation),
        config=config.model,
        loop=config.pretraining,
        report=_silent,
        batch=config.pretraining_batch,
        quantized=quantized,
        checkpoint=place / CHECKPOINTS[device],
        accelerator=accelerator,
    )
    save_pretrained(trained, place)
    figures = {
        "windows": float(sum(len(one.dff) for one in train)),
        "validation": trained.result.best_validation,
        "epochs": float(trained.result.epochs_run),
        "seconds": time.monotonic() - started,
    }
    (place / FIGURES).write_text(json.dumps({**figures, "made_with": mark}))
    return figures


def training_split(session: StoredSession, *, without_category: str = "") -> Split:
    """Training and validation spans of every category of a session, less any frame of another category's later parts, and of
    every presentation ``without_category`` with the response to it.

    Raises:
        RecordingError: the session has no category that can be split.
    """
    splits = {}
    for category in sorted(set(session.stimuli.category) - EPOCHS):
        try:
            splits[category] = split_of(session, category=category)
        except RecordingError:
            continue
    if not splits.keys() - {without_category}:
        raise RecordingError(f"{session.name} has no stimulus category that can be split in three parts")
    tests = [span for one in splits.values() for span in one.test]
    later = [span for one in splits.values() for span in one.validation]
    # A span of one category may hold presentations of another.
    shown = _shown(session, without_category)
    kept = [one for category, one in splits.items() if category != without_category]
    validation = _without([span for one in kept for span in one.validation], [*tests, *shown])
    train = _without([span for one in kept for span in one.train], [*tests, *later, *shown])
    return Split(train=tuple(train), validation=tuple(validation), test=tuple(tests))


def _shown(session: StoredSession, category: str) -> list[tuple[int, int]]:
    """Frames of a category's presentations, each until it ends and the response to it; those that touch are one."""
    table = session.stimuli
    rows = np.flatnonzero([name == category for name in table.category])
    start = onset_frames(session.timestamps_s, table.onset_s[rows])
    end = onset_frames(session.timestamps_s, table.onset_s[rows] + table.duration_s[rows])
    spans: list[tuple[int, int]] = []
    for low, high in zip(start.tolist(), np.maximum(end, start + SignalRecipe().response_frames).tolist(), strict=True):
        if spans and low <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(high, spans[-1][1]))
        else:
            spans.append((low, high))
    return spans


def _without(spans: list[tuple[int, int]], taken: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The parts of ``spans`` that lie in none of ``taken``."""
    for low, high in taken:
        pieces = [((start, min(stop, low)), (max(start, high), stop)) for start, stop in spans]
        spans = [piece for both in pieces for piece in both if piece[1] > piece[0]]
    return spans


def _silent(progress: Progress) -> None:
    """Runs of a study report as a whole."""
