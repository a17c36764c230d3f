"""Runs as they end, as one bar with the time left on a terminal, as a line each elsewhere; always on stderr."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from quantformer_cli.progress_bars import ProgressBars

if TYPE_CHECKING:
    from quantformer_training.reproduce.work import Step


def left_text(seconds: float) -> str:
    """The time left, as far as it is known."""
    if math.isnan(seconds):
        return "time left not known yet"
    return f"about {seconds / 60:.0f} minutes left" if seconds >= 90 else f"about {seconds:.0f} seconds left"


class ReproduceProgress(ProgressBars):
    """A context whose `say` and `report` are given to the work."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        super().__init__(
            Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=28),
                TextColumn("{task.completed:.0f}/{task.total:.0f} models"),
                TextColumn("{task.fields[left]}"),
                console=self._console,
                disable=not self._console.is_terminal,
            )
        )
        self._task = self._bars.add_task("reading", total=None, left="", visible=False)

    def say(self, text: str) -> None:
        """A line."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def report(self, step: Step) -> None:
        """A job that ended, and how much is left."""
        left = left_text(step.left_s) if step.done < step.total else "done"
        if step.name:
            # A failure is told at once, whatever goes on; the tables repeat it.
            words = f"{step.name}: {step.failure}" if step.failure else step.name
            self.say(f"[{step.done} of {step.total}] {words}" + ("" if self._console.is_terminal else f"; {left}"))
        elif not self._console.is_terminal:
            self.say(f"{step.done} of {step.total} models are there; {left}")
        self._bars.update(
            self._task, description="training", completed=step.done, total=step.total, left=left, visible=True
        )
