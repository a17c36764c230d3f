"""Training as data: a JSON line an epoch, and the same for TensorBoard."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from quantformer.errors import MissingExtraError, UnavailableError
from quantformer_training.loop import Progress, Report

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG_FILE = "log.jsonl"
#: Directory of TensorBoard's event files, beside the log.
TENSORBOARD = "tensorboard"


class TrainingLog:
    """A context whose `report` is given to training; ``then`` is told every epoch after it was written.

    ``directory/log.jsonl`` is appended to: a run that resumes goes on where it was. An epoch whose process was killed
    between its checkpoint and its line has none. With ``tensorboard`` its event files lie in ``directory/tensorboard``.

    Raises:
        UnavailableError: the log cannot be written.
        MissingExtraError: ``tensorboard`` is wanted and not installed.
    """

    def __init__(self, directory: Path, *, tensorboard: bool = False, then: Report | None = None) -> None:
        self.path = directory / LOG_FILE
        self._then = then
        self._events = _events(directory / TENSORBOARD) if tensorboard else None
        try:
            directory.mkdir(parents=True, exist_ok=True)
            before = self.path.read_bytes() if self.path.exists() else b""
            self._file = self.path.open("a", encoding="utf-8")
            if before and not before.endswith(b"\n"):
                # The last line of a killed process: what follows begins a new one.
                self._file.write("\n")
        except OSError as error:
            raise UnavailableError(f"{self.path} cannot be written ({error.strerror}); choose another directory") from error

    def report(self, progress: Progress) -> None:
        """Write one finished epoch.

        Raises:
            UnavailableError: the disk is full.
        """
        line = as_line(progress)
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise UnavailableError(f"{self.path} cannot be written ({error.strerror}); make room and resume") from error
        if self._events is not None:
            stage = progress.stage.replace(" ", "-")
            for name in ("loss", "validation", "best", "learning_rate", "rows_per_s"):
                if line[name] is not None:
                    self._events.add_scalar(f"{stage}/{name}", line[name], progress.epoch)
            self._events.flush()
        if self._then is not None:
            self._then(progress)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()


def as_line(progress: Progress) -> dict[str, str | int | float | None]:
    """What a line of the log holds; ``epoch`` counts from 0, unknown figures are null."""
    known = progress.rows > 0 and progress.seconds > 0
    return {
        "stage": progress.stage,
        "epoch": progress.epoch,
        "epochs": progress.epochs,
        "loss": progress.loss,
        "validation": progress.validation,
        "best": progress.best,
        "learning_rate": None if math.isnan(progress.learning_rate) else progress.learning_rate,
        "rows_per_s": progress.rows / progress.seconds if known else None,
        "seconds": progress.seconds,
        "seed": progress.seed,
    }


def _events(directory: Path) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        raise MissingExtraError(
            package="tensorboard", extra="train", purpose="a log for TensorBoard (tensorboard = false does without)"
        ) from None
    return SummaryWriter(str(directory))
