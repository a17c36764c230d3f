"""Rows drawn where training is: traces and tables of a source lie on the device, windows are gathered and turned into dF/F there.

Which rows, and what is withheld of them, is drawn on the CPU from the same generator as `IndexedSource.draw` draws from, so the
rows are the same; the arithmetic is `quantformer.signal`'s on tensors.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantformer import signal
from quantformer.forecaster import CLIP
from quantformer.tokens import UNKNOWN
from quantformer_training.examples import LONGEST_LEAD, Examples
from quantformer_training.indexed import SHARED_GAPS, IndexedPart, IndexedSource
from quantformer_training.sources import RowSource
from quantformer_training.store import StoredSession

#: Rows gathered at a time; a multiple of `SHARED_GAPS`. A million would take ten times their own room on the way.
_PIECE = 1 << 18
_PER_MOMENT = ("frame", "features", "stimulus", "population", "population_tuning")
_PER_NEURON = ("f0_minimum", "usual_f0", "neuron")
_PER_BOTH = ("valid", "active", "tuning")

#: Its functions take tensors as well as the arrays that their types name.
_SIGNAL: Any = signal
_LOG = logging.getLogger(__name__)


def drawn_on(device: torch.device, *sources: RowSource) -> tuple[RowSource, ...]:
    """The sources as training on ``device`` draws from them: on a GPU their rows are drawn there, where all are indexed and
    their traces and tables take at most half of the memory that is free; else the sources themselves.
    """
    indexed = [source for source in sources if isinstance(source, IndexedSource)]
    if device.type != "cuda" or len(indexed) < len(sources):
        return sources
    free, wanted = torch.cuda.mem_get_info(device)[0], bytes_on_device(indexed)
    if wanted > free // 2:
        _LOG.warning(
            "rows are drawn on the CPU: their traces and tables of %.1f GB are more than half of the GPU's free %.1f GB",
            wanted / 1e9, free / 1e9,
        )  # fmt: skip
        return sources
    traces = Traces(indexed, device=device)
    return tuple(DeviceRows(source, device=device, traces=traces) for source in indexed)


def bytes_on_device(sources: Sequence[IndexedSource]) -> int:
    """Of traces, once for all of the sources, and of each one's tables."""
    tables = sum(table.nbytes for source in sources for part in source.parts for table in _tables(part).values())
    return tables + sum(session.traces.nbytes for session in _sessions(sources).values())


class DeviceRows:
    """An `IndexedSource` whose rows are drawn on a device; everything else is asked of the source itself."""

    def __init__(self, source: IndexedSource, *, device: torch.device, traces: Traces) -> None:
        self.source, self.device = source, device
        self._traces = traces.samples
        tables = [_tables(part) for part in source.parts]
        self._tables = {name: _joined([table[name] for table in tables], device=device) for name in tables[0]}
        neurons = [part.trials.session.neurons for part in source.parts]
        moments = [len(part.trials.moments) for part in source.parts]
        # Where each part begins in the tables, and where its session begins in the traces.
        self._parts = {
            name: torch.tensor(numbers, device=device)
            for name, numbers in {
                "moment": _starts(moments), "neuron": _starts(neurons), "neurons": neurons,
                "both": _starts([a * b for a, b in zip(moments, neurons, strict=True)]),
                "trace": [traces.start[id(part.trials.session)] for part in source.parts],
                "frames": [part.trials.session.frames for part in source.parts],
            }.items()
        }  # fmt: skip

    def __len__(self) -> int:
        return len(self.source)

    def draw(self, count: int, rng: np.random.Generator) -> Examples:
        """The rows of `IndexedSource.draw`, on the device."""
        rows, missing = self.source.chosen(count, rng)
        withheld = torch.from_numpy(missing).to(self.device)
        numbers = (rows.part, rows.moment, rows.neuron)
        part, moment, neuron = (torch.from_numpy(of).to(self.device).long() for of in numbers)
        pieces = []
        for start in range(0, len(rows), _PIECE):
            here = slice(start, start + _PIECE)
            groups = withheld[start // SHARED_GAPS : (start + _PIECE) // SHARED_GAPS]
            pieces.append(self._gathered(part[here], moment[here], neuron[here], groups))
        return Examples.joined(pieces)

    def at_lead(self, lead: int, *, most: int | None = None) -> Examples:
        """The source's."""
        return self.source.at_lead(lead, most=most)

    def _gathered(self, part: Tensor, moment: Tensor, neuron: Tensor, groups: Tensor) -> Examples:
        recipe, parts = self.source.recipe, {name: numbers[part] for name, numbers in self._parts.items()}
        of_moment, of_neuron = parts["moment"] + moment, parts["neuron"] + neuron
        rows: dict[str, Any] = {name: self._tables[name][of_moment] for name in _PER_MOMENT}
        rows |= {name: self._tables[name][of_neuron] for name in _PER_NEURON}
        rows |= {name: self._tables[name][parts["both"] + moment * parts["neurons"] + neuron] for name in _PER_BOTH}
        start = parts["trace"] + neuron * parts["frames"] + rows["frame"] - recipe.baseline_frames
        window: Any = self._traces.unfold(0, recipe.window_frames, 1)[start]
        before, after = window[:, : recipe.baseline_frames].T, window[:, recipe.baseline_frames :].T
        observed: Any = ~groups.repeat_interleave(SHARED_GAPS, 0)[: len(part)].T
        baseline, given, response = (window.new_empty(of.T.shape) for of in (before, before, after))
        f0, _ = _SIGNAL.write_baseline(before, recipe=recipe, out=baseline, f0_minimum=rows["f0_minimum"])
        held = _SIGNAL.hold_missing(before, observed)
        f0_given, usable = _SIGNAL.write_baseline(
            held, recipe=recipe, out=given, f0_minimum=rows["f0_minimum"], observed=observed
        )
        valid: Any = rows["valid"]
        _SIGNAL.delta_f(after, torch.where(valid, f0, 1.0), out=response)
        valid = valid & usable
        # As many at the end of its window as are withheld one after the other, as `lead_of` counts.
        lead = (~observed).flip(0)[:LONGEST_LEAD].cumprod(0).sum(0)
        population: Any = rows["population"].take_along_dim(lead[:, None, None], 1)[:, 0]
        usual: Any = torch.where(rows["neuron"] == UNKNOWN, 0.0, rows["usual_f0"])
        scale = self.source.signal_scale
        examples = Examples(
            baseline=torch.clip(given / scale, -CLIP, CLIP),
            trace=torch.clip(torch.cat([baseline, response], 1) / scale, -CLIP, CLIP),
            response=response, active=rows["active"], neuron=rows["neuron"], features=rows["features"],
            stimulus=rows["stimulus"], level=torch.cat([_SIGNAL.f0_level(f0_given, usual), population], 1), tuning=rows["tuning"],
            population_tuning=rows["population_tuning"], moment=moment,
        )  # fmt: skip
        return examples if bool(valid.all()) else examples.select(valid.nonzero()[:, 0])


class Traces:
    """Traces of several sources' sessions on a device, one after the other: ``samples`` float32, ``start`` by session."""

    def __init__(self, sources: Sequence[IndexedSource], *, device: torch.device) -> None:
        sessions = _sessions(sources)
        starts = _starts([session.traces.size for session in sessions.values()])
        self.start = dict(zip(sessions, starts, strict=True))
        self.samples = _joined([session.traces.reshape(-1) for session in sessions.values()], device=device)


def _sessions(sources: Sequence[IndexedSource]) -> dict[int, StoredSession]:
    return {id(part.trials.session): part.trials.session for source in sources for part in source.parts}


def _tables(part: IndexedPart) -> Mapping[str, NDArray[Any]]:
    trials = part.trials
    return {
        "frame": trials.moments.frame, "features": part.features, "stimulus": part.stimulus,
        "population": trials.population, "population_tuning": part.population_tuning, "f0_minimum": trials.f0_minimum,
        "usual_f0": trials.usual_f0, "neuron": part.neuron, "valid": trials.valid.reshape(-1),
        "active": trials.active.reshape(-1),
        "tuning": part.tuning.reshape(-1, part.tuning.shape[-1]),
    }  # fmt: skip


def _starts(sizes: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(sizes)[:-1].tolist()]


def _joined(arrays: Sequence[NDArray[Any]], *, device: torch.device) -> Tensor:
    """All of them on the device, which are nowhere together on the CPU."""
    kind = torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype
    joined = torch.empty((sum(map(len, arrays)), *arrays[0].shape[1:]), dtype=kind, device=device)
    for start, array in zip(_starts([len(array) for array in arrays]), arrays, strict=True):
        # Copied first: a trace store is mapped for reading only.
        joined[start : start + len(array)] = torch.from_numpy(np.array(array))
    return joined
