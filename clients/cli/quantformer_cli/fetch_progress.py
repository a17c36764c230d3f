"""Files that arrive, as one bar with speed and time left on a terminal, as plain lines elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from quantformer_cli.progress_bars import ProgressBars

if TYPE_CHECKING:
    from quantformer_training.allen_fetch import FetchPlan, PlannedFile


def size_text(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / 1e9:.2f} GB" if count >= 10**9 else f"{count / 1e6:.1f} MB"


class FetchProgress(ProgressBars):
    """A context whose `report` is given to `fetch`; ``line_s`` is the least time between two plain lines."""

    def __init__(self, console: Console, planned: FetchPlan, *, line_s: float = 10.0) -> None:
        self._console, self._line_s = console, line_s
        self._numbers = {file.experiment.id: number for number, file in enumerate(planned.missing, 1)}
        self._done = {file.experiment.id: file.have_bytes for file in planned.missing}
        self._total = sum(file.bytes for file in planned.missing)
        self._begun, self._told = time.monotonic(), time.monotonic()
        self._had = sum(self._done.values())
        super().__init__(
            Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=28),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=console,
                disable=not console.is_terminal or not planned.missing,
            )
        )
        self._task = self._bars.add_task("fetching", total=self._total, completed=self._had)

    def report(self, file: PlannedFile, done: int) -> None:
        """Show that ``done`` bytes of a file are here."""
        self._done[file.experiment.id] = done
        here = sum(self._done.values())
        name = f"{file.experiment.id}.nwb ({self._numbers[file.experiment.id]} of {len(self._numbers)})"
        if self._console.is_terminal:
            self._bars.update(self._task, completed=here, description=name)
        elif time.monotonic() - self._told >= self._line_s:
            self._told = time.monotonic()
            speed = (here - self._had) / max(self._told - self._begun, 1e-9)
            left = f"{(self._total - here) / speed / 60:.0f} minutes left" if speed > 0 else "stalled"
            print(
                f"{name}: {size_text(here)} of {size_text(self._total)}, {size_text(int(speed))}/s, {left}",
                file=sys.stderr,
            )
