"""The demo while it streams: a live screen on a terminal, a line now and then elsewhere; always on stderr."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, Group, RenderableType
from rich.live import Live as RichLive
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from quantformer.signal import SignalRecipe, baseline_f0

if TYPE_CHECKING:
    from quantformer_cli.demo_stream import Heard, Live

#: Neurons on the screen, and characters of a trace.
NEURONS, WIDTH = 6, 32
#: Seconds between two plain lines.
_LINE_S = 15.0
_BLOCKS, _ASCII = " ▁▂▃▄▅▆▇█", " .:-=+*#@"


class Screen:
    """A context whose `show` is given to `stream`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = RichLive(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._corrected: NDArray[np.float32] | None = None
        self._blocks = _BLOCKS if console.encoding.lower().startswith("utf") else _ASCII
        self._told = time.monotonic()

    def show(self, live: Live) -> None:
        """Draw what is known so far."""
        if self._live is not None:
            self._live.update(self._draw(live), refresh=True)
        elif time.monotonic() - self._told > _LINE_S:
            self._told = time.monotonic()
            total = live.broadcast.stop - live.broadcast.start
            fired = 0 if live.trigger is None else live.trigger.fired
            self._console.print(
                f"  {live.frames}/{total} frames, {live.answered} onsets answered, {fired} triggers fired", highlight=False
            )

    def _draw(self, live: Live) -> RenderableType:
        broadcast = live.broadcast
        total, seconds = broadcast.stop - broadcast.start, (time.perf_counter_ns() - live.started_ns) / 1e9
        head = Table.grid(padding=(0, 2))
        trigger = live.trigger
        state = "unknown" if trigger is None else trigger.state
        head.add_row(
            f"frame [bold]{live.frames}[/] of {total}",
            ProgressBar(total=total, completed=live.frames, width=30),
            f"{live.frames / max(seconds, 1e-3):.1f} Hz",
            f"latency {_milliseconds(live.latency_ms)}",
            f"trigger [bold]{state}[/], {0 if trigger is None else trigger.fired} fired (dry run)",
        )
        parts: list[RenderableType] = [head]
        if live.onsets:
            parts.append(self._forecasts(live, live.onsets[-1]))
        if live.decisions:
            parts.append(_decisions(live))
        return Panel(Group(*parts), title=f"{broadcast.recording.provenance.origin} data, live", title_align="left")

    def _forecasts(self, live: Live, heard: Heard) -> RenderableType:
        """The neurons most likely to be active after the last onset: what was told, and what happens."""
        answer, broadcast = heard.answer, live.broadcast
        if self._corrected is None:
            self._corrected = broadcast.recording.corrected()
        table = Table(box=None, padding=(0, 1), title=f"after {answer.stimuli[0]}, lead {answer.lead}", title_justify="left")
        for name in ("neuron", "p(active)", "forecast, 2.1 s", "what happens"):
            table.add_column(name)
        recipe, frame = SignalRecipe(), answer.onset_frame
        before = self._corrected[frame - recipe.baseline_frames : frame]
        f0 = baseline_f0(before, recipe=recipe)
        arrived = self._corrected[frame : min(frame + recipe.response_frames, broadcast.start + live.frames)]
        order = np.argsort(-answer.probability[0])[:NEURONS]
        for neuron in order:
            forecast = np.zeros(recipe.response_frames) if answer.response is None else answer.response[0, neuron]
            happened = arrived[:, neuron] / f0[neuron] - 1.0
            low, high = -0.1, max(0.5, float(forecast.max()), float(happened.max(initial=0.0)))
            table.add_row(
                broadcast.recording.neuron_ids[neuron],
                f"{answer.probability[0, neuron]:.2f}",
                Text(self._spark(forecast, low, high), style="cyan"),
                Text(self._spark(happened, low, high)),
            )
        return table

    def _spark(self, trace: NDArray[np.floating], low: float, high: float) -> str:
        pooled = [part.mean() for part in np.array_split(trace, max(1, len(trace) * WIDTH // 64)) if len(part)]
        steps = len(self._blocks) - 1
        return "".join(self._blocks[int(np.clip(np.nan_to_num((v - low) / (high - low)) * steps, 0, steps))] for v in pooled)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()


def _milliseconds(values: list[float]) -> str:
    return f"{np.median(values):.1f} ms (median)" if values else "-"


def _decisions(live: Live) -> RenderableType:
    table = Table(box=None, padding=(0, 1), title="decisions", title_justify="left")
    for name in ("frame", "rule", "highest p", "decision"):
        table.add_column(name)
    for decision in reversed(live.decisions):
        value = "-" if decision.value is None else f"{decision.value:.2f} / {decision.threshold:.2f}"
        style = "bold cyan" if decision.fired else "dim"
        table.add_row(str(decision.onset_frame), decision.rule, value, decision.reason, style=style)
    return table
