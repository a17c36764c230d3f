"""Bars that are on the terminal while a context lasts; what they show is each verb's own."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.progress import Progress


class ProgressBars:
    """A context around rich's bars."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars

    def _finish(self) -> None:
        """What is shown last, where nothing failed."""

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        self._bars.stop()
