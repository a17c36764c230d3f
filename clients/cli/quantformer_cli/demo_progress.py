"""Training as a progress bar on a terminal, as plain lines elsewhere; always on stderr."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from quantformer_cli.progress_bars import ProgressBars

if TYPE_CHECKING:
    from quantformer_training.loop import Progress as Epoch

#: Seconds between two plain lines of the same stage.
_LINE_S = 10.0


class TrainingProgress(ProgressBars):
    """A context whose `report` is given to training."""

    def __init__(self, console: Console) -> None:
        self._console = console
        losses = "loss {task.fields[loss]:.4f}  validation {task.fields[validation]:.4f} (best {task.fields[best]:.4f})"
        super().__init__(
            Progress(
                TextColumn("  {task.description:<14}"),
                BarColumn(bar_width=28),
                TextColumn("{task.completed:>3.0f}/{task.total:.0f} epochs"),
                TextColumn(losses),
                TextColumn("{task.fields[left]}"),
                console=console,
                disable=not console.is_terminal,
            )
        )
        self._tasks: dict[str, TaskID] = {}
        self._stage = ""
        self._told = 0.0

    def report(self, epoch: Epoch) -> None:
        """Show one finished epoch."""
        done = epoch.epoch + 1
        left = f"at most {epoch.seconds_left:.0f} s left" if done < epoch.epochs else "done"
        if not self._console.is_terminal:
            if epoch.stage != self._stage or done == epoch.epochs or time.monotonic() - self._told > _LINE_S:
                self._told = time.monotonic()
                self._console.print(
                    f"  {epoch.stage}: epoch {done}/{epoch.epochs}, loss {epoch.loss:.4f}, "
                    f"validation {epoch.validation:.4f} (best {epoch.best:.4f}), {left}",
                    highlight=False,
                    soft_wrap=True,
                )
            self._stage = epoch.stage
            return
        if epoch.stage not in self._tasks:
            self._finish()
            self._tasks[epoch.stage] = self._bars.add_task(
                epoch.stage,
                total=epoch.epochs,
                loss=epoch.loss,
                validation=epoch.validation,
                best=epoch.best,
                left=left,
            )
        self._bars.update(
            self._tasks[epoch.stage],
            completed=done,
            loss=epoch.loss,
            validation=epoch.validation,
            best=epoch.best,
            left=left,
        )

    def _finish(self) -> None:
        """A stage that another follows is done, also where it stopped early."""
        if not self._console.is_terminal:
            return
        for task in self._tasks.values():
            self._bars.update(task, left="done")
