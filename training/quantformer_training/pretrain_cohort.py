"""Pre-training on a whole study: training frames of every session, with a mouse or a stimulus category left out if asked."""

from __future__ import annotations

import json
import time
from pathlib import Path

from quantformer.errors import DataError, RecordingError
from quantformer.labels import LabelRule
from quantformer.signal import SignalRecipe
from quantformer_training.effort import Effort
from quantformer_training.loop import Progress
from quantformer_training.pretrain import PRETRAINED, Windows, pretrain, random_windows, save_pretrained
from quantformer_training.run_data import split_of
from quantformer_training.splits import Split
from quantformer_training.store import StoredSession, open_session
from quantformer_training.trials import EPOCHS

#: What was spent on a pre-trained auto-encoder, beside it.
FIGURES = "pretraining.json"


def pretrain_cohort(
    *,
    sessions: tuple[str, ...],
    effort: Effort,
    out: str,
    seed: int,
    without_mouse: str = "",
    without_category: str = "",
    quantized: bool = True,
) -> dict[str, float]:
    """Pre-train on windows of the training parts of store directories ``sessions`` and write a directory ``out``.

    No frame of a validation or test part is read, whatever category it belongs to. A directory that this very call has
    written before is left as it is. Returns its figures.

    Raises:
        DataError: nothing is left to learn from.
    """
    stored = [open_session(Path(path)) for path in sessions]
    config = effort.seeded(seed)
    mark = repr([[one.fingerprint for one in stored], config, without_mouse, without_category, quantized])
    place = Path(out)
    if (place / PRETRAINED).exists() and (place / FIGURES).exists():
        known = json.loads((place / FIGURES).read_text())
        if known.pop("made_with", None) == mark:
            return {name: float(value) for name, value in known.items()}
    started = time.monotonic()
    train: list[Windows] = []
    validation: list[Windows] = []
    for number, session in enumerate(stored):
        if session.provenance.subject == without_mouse:
            continue
        try:
            split = training_split(session, without_category=without_category)
        except RecordingError:
            continue
        for part, count, found in (
            ("train", config.pretraining_windows, train),
            ("validation", max(config.pretraining_windows // 8, 100), validation),
        ):
            found.append(
                random_windows(
                    session,
                    split=split,
                    part=part,
                    count=count,
                    recipe=SignalRecipe(),
                    rule=LabelRule(),
                    seed=seed + number,
                )
            )
    if not train:
        raise DataError(
            f"no session is left to pre-train on without mouse {without_mouse!r}, category {without_category!r}"
        )
    made = pretrain(
        train=Windows.joined(train),
        validation=Windows.joined(validation),
        config=config.model,
        loop=config.pretraining,
        report=_silent,
        batch=config.pretraining_batch,
        quantized=quantized,
        checkpoint=place / "checkpoint.pt",
    )
    save_pretrained(made, place)
    figures = {
        "windows": float(sum(len(one.dff) for one in train)),
        "validation": made.result.best_validation,
        "epochs": float(made.result.epochs_run),
        "seconds": time.monotonic() - started,
    }
    (place / FIGURES).write_text(json.dumps({**figures, "made_with": mark}))
    return figures


def training_split(session: StoredSession, *, without_category: str = "") -> Split:
    """Training and validation spans of every category of a session, less any frame of another category's later parts.

    Raises:
        RecordingError: the session has no category that can be split.
    """
    splits = []
    for category in sorted(set(session.stimuli.category) - EPOCHS - {without_category}):
        try:
            splits.append(split_of(session, category=category))
        except RecordingError:
            continue
    if not splits:
        raise RecordingError(f"{session.name} has no stimulus category that can be split in three parts")
    tests = [span for one in splits for span in one.test]
    validation = _without([span for one in splits for span in one.validation], tests)
    train = _without([span for one in splits for span in one.train], [*tests, *validation])
    return Split(train=tuple(train), validation=tuple(validation), test=tuple(tests))


def _without(spans: list[tuple[int, int]], taken: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The parts of ``spans`` that lie in none of ``taken``."""
    for low, high in taken:
        pieces = [((start, min(stop, low)), (max(start, high), stop)) for start, stop in spans]
        spans = [piece for both in pieces for piece in both if piece[1] > piece[0]]
    return spans


def _silent(progress: Progress) -> None:
    """Runs of a study report as a whole."""
