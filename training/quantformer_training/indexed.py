"""Trials by index: what is known of every neuron-trial stays in memory, its window is cut from the trace store when asked.

A row costs 10 bytes and its share of a few tables, so the 42 million neuron-trials of eleven Allen mice fit where their
windows (27 GB) do not. Signal processing is `quantformer.signal`'s, as everywhere; a test holds gathered windows to those of
`TrialReader`, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantformer.config import POPULATION_LEVELS
from quantformer.errors import RecordingError
from quantformer.forecaster import CLIP
from quantformer.labels import LabelRule
from quantformer.population_level import joined_level
from quantformer.signal import SignalRecipe, f0_level, hold_missing, write_baseline
from quantformer.tokens import UNKNOWN
from quantformer_training.examples import LONGEST_LEAD, Examples, even, lead_of, random_missing
from quantformer_training.rows import Rows
from quantformer_training.splits import Split
from quantformer_training.store import StoredSession
from quantformer_training.trials import Moments, TrialReader
from quantformer_training.tuning import quantities

#: Moments whose windows are in memory together while an index is made.
_CHUNK = 64
#: Rows of a drawn batch that share one draw of withheld frames.
SHARED_GAPS = 32
#: Threads that gather an epoch's rows, at most; never more than torch computes with.
MOST_THREADS = 8
#: Rows that a thread gathers at a time: few enough for its cache, and a multiple of `SHARED_GAPS`.
_PIECE = 256 * SHARED_GAPS


@dataclass(frozen=True, kw_only=True, eq=False)
class IndexedTrials:
    """Trials of one session and part without their windows.

    ``valid``, ``active`` bool and ``f0`` float64 are ``(n, neurons)``; ``values`` float32 ``(n, neurons, 9)`` is what tuning
    regresses, in dF/F; ``population`` float32 ``(n, LONGEST_LEAD + 1, POPULATION_LEVELS)`` is the population's level by lead;
    ``f0_minimum`` and ``usual_f0`` ``(neurons,)`` are the reader's; ``rejected`` counts what was left out, by reason.
    """

    session: StoredSession
    moments: Moments
    valid: NDArray[np.bool_]
    active: NDArray[np.bool_]
    f0: NDArray[np.float64]
    values: NDArray[np.float32]
    population: NDArray[np.float32]
    f0_minimum: NDArray[np.float64]
    usual_f0: NDArray[np.float64]
    rejected: Mapping[str, int]


class SessionReader:
    """Makes indices of one stored session under one split.

    Raises:
        RecordingError: the session's rate would need interpolation, or as `TrialReader`.
    """

    def __init__(self, session: StoredSession, *, split: Split, recipe: SignalRecipe, rule: LabelRule) -> None:
        self.session, self.split = session, split
        self._reader = TrialReader(session, split=split, recipe=recipe, rule=rule)
        if self._reader.interpolated:
            raise RecordingError(
                f"{session.name} runs at {session.rate_hz:.2f} Hz; a trace store takes 28.5 to 31.5 Hz, frame for frame: "
                "use 'quantformer evaluate', which interpolates"
            )

    def read(self, moments: Moments, *, part: str) -> IndexedTrials:
        """Index the moments whose whole window lies in ``part``."""
        starts = range(0, max(len(moments), 1), _CHUNK)
        found = [
            self._indexed(moments.select(np.arange(start, min(start + _CHUNK, len(moments)))), part=part)
            for start in starts
        ]
        return IndexedTrials(
            session=self.session,
            moments=Moments.joined([one.moments for one in found]),
            valid=np.concatenate([one.valid for one in found]),
            active=np.concatenate([one.active for one in found]),
            f0=np.concatenate([one.f0 for one in found]),
            values=np.concatenate([one.values for one in found]),
            population=np.concatenate([one.population for one in found]),
            f0_minimum=self._reader.f0_minimum,
            usual_f0=self._reader.usual_f0,
            rejected={reason: sum(one.rejected[reason] for one in found) for reason in found[0].rejected},
        )

    def _indexed(self, moments: Moments, *, part: str) -> IndexedTrials:
        """Few moments at once; their windows go when this is done."""
        trials = self._reader.read(moments, part=part)
        return IndexedTrials(
            session=self.session,
            moments=trials.moments,
            valid=trials.valid,
            active=trials.active,
            f0=trials.f0,
            values=quantities(trials, signal_scale=1.0).astype(np.float32),
            population=self._reader.levels(trials.moments, leads=LONGEST_LEAD + 1),
            f0_minimum=self._reader.f0_minimum,
            usual_f0=self._reader.usual_f0,
            rejected=trials.rejected,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class IndexedPart:
    """Trials of one session with what the networks are told of them.

    ``neuron`` int64 ``(neurons,)`` and ``stimulus`` int64 ``(n,)`` are rows of the vocabulary; ``features`` ``(n, width)``;
    ``tuning`` ``(n, neurons, 10)`` and ``population_tuning`` ``(n, 10)`` as in `Examples`.
    """

    trials: IndexedTrials
    neuron: NDArray[np.int64]
    stimulus: NDArray[np.int64]
    features: NDArray[np.float32]
    tuning: NDArray[np.float32]
    population_tuning: NDArray[np.float32]


class IndexedSource:
    """Neuron-trials of one or several sessions, gathered by index; a `TrialSource`. Unless ``withheld`` nothing is missing from
    the baselines that are drawn.
    """

    def __init__(
        self, parts: Sequence[IndexedPart], *, signal_scale: float, recipe: SignalRecipe, withheld: bool = True
    ) -> None:
        self.parts, self.signal_scale, self.recipe, self.withheld = tuple(parts), signal_scale, recipe, withheld
        # In 32 bits part by part: those of all parts in 64 would be twice the index.
        found = [[axis.astype(np.int32) for axis in np.nonzero(part.trials.valid)] for part in self.parts]
        self._rows = Index(
            part=np.repeat(np.arange(len(found), dtype=np.int16), [len(moment) for moment, _ in found]),
            moment=np.concatenate([moment for moment, _ in found]),
            neuron=np.concatenate([neuron for _, neuron in found]),
        )

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def neurons(self) -> int:
        """Neurons of the one session."""
        if len(self.parts) != 1:
            raise RecordingError(
                f"whole trials were asked of {len(self.parts)} sessions together, whose neurons differ; ask one at a time"
            )
        return self.parts[0].trials.session.neurons

    def draw(self, count: int, rng: np.random.Generator) -> Examples:
        """About ``count`` random rows; leads and gaps are drawn for every 32 of them."""
        rows, missing = self.chosen(count, rng)

        def gathered(start: int) -> Examples:
            groups = slice(start // SHARED_GAPS, (start + _PIECE) // SHARED_GAPS)
            piece = rows.select(np.arange(start, min(start + _PIECE, len(rows))))
            examples, valid = self._examples(piece, missing=missing[groups], together=SHARED_GAPS)
            return examples if valid.all() else examples.select(torch.from_numpy(np.flatnonzero(valid)))

        starts = range(0, len(rows), _PIECE)
        threads = min(len(starts), torch.get_num_threads(), MOST_THREADS)
        if threads < 2:
            return Examples.joined([gathered(start) for start in starts])
        with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="gathering") as pool:
            return Examples.joined(list(pool.map(gathered, starts)))

    def chosen(self, count: int, rng: np.random.Generator) -> tuple[Index, NDArray[np.bool_]]:
        """The rows that `draw` gathers, and the frames withheld from each `SHARED_GAPS` of them, bool ``(groups, 96)``."""
        index = rng.choice(len(self), min(count, len(self)), replace=False)
        return self._rows.select(index), self._missing(-(-len(index) // SHARED_GAPS), rng)

    def at_lead(self, lead: int, *, most: int | None = None) -> Examples:
        """Every row, or an even choice of ``most``, with the last ``lead`` frames withheld."""
        return self._examples(self._rows.select(even(len(self), most)), missing=self._withheld(lead))[0]

    def batches(self, *, lead: int, size: int) -> Iterator[Examples]:
        """Every row once, in order."""
        for start in range(0, len(self), size):
            index = np.arange(start, min(start + size, len(self)))
            yield self._examples(self._rows.select(index), missing=self._withheld(lead))[0]

    def draw_trials(self, count: int, rng: np.random.Generator) -> tuple[Examples, Tensor]:
        """Random whole trials of about ``count`` rows; a lead and gaps are drawn for each trial."""
        moments = len(self.parts[0].trials.moments)
        wanted = min(moments, max(1, round(count / self.neurons)))
        chosen = rng.choice(moments, wanted, replace=False)
        return self._whole(chosen, missing=self._missing(wanted, rng))

    def trial_batches(self, *, lead: int, size: int) -> Iterator[tuple[Examples, Tensor]]:
        """Every trial once, in order."""
        moments, step = len(self.parts[0].trials.moments), max(1, size // self.neurons)
        for start in range(0, moments, step):
            chosen = np.arange(start, min(start + step, moments))
            yield self._whole(chosen, missing=np.repeat(self._withheld(lead), len(chosen), axis=0))

    def places(self, *, most: int | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Onset frame, and neuron of its session, of the rows that `rows` gives: two arrays ``(rows,)``."""
        index = self._rows.select(even(len(self), most))
        frame = self._of(index, [one.trials.moments.frame for one in self.parts])
        return frame, index.neuron.astype(np.int64)

    def rows(self, *, most: int | None = None) -> Rows:
        """The rows, or an even choice of ``most``, as plain arrays: what classical models learn from and scores need."""
        index = self._rows.select(even(len(self), most))
        recipe, rows = self.recipe, len(index)
        baseline = np.empty((rows, recipe.baseline_frames), np.float32)
        response = np.empty((rows, recipe.response_frames), np.float32)
        f0, active = np.empty(rows), np.empty(rows, bool)
        # Piece by piece: cutting takes twice the room of what it gives, and the test part of a cohort has millions of rows.
        for start in range(0, rows, _PIECE):
            here = np.arange(start, min(start + _PIECE, rows))
            cut = self._cut(index.select(here), missing=self._withheld(0))
            baseline[here], response[here], f0[here], active[here] = cut.baseline, cut.response, cut.f0, cut.active
        offset, first = [], 0
        for one in self.parts:
            trial = one.trials.moments.trial
            # Moments before the first presentation belong to none, -1: not to the last one of the session before.
            first -= int(trial.min(initial=0))
            offset.append(first)
            first += int(trial.max(initial=-1)) + 1
        return Rows(
            baseline=baseline,
            f0=f0,
            neuron=self._of(index, [one.neuron for one in self.parts], by="neuron"),
            stimulus=self._of(index, [one.trials.moments.labels() for one in self.parts]),
            trial=self._of(index, [one.trials.moments.trial + offset[i] for i, one in enumerate(self.parts)]),
            active=active,
            response=response,
        )

    def _missing(self, count: int, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Frames that are withheld from each of ``count``, bool ``(count, 96)``."""
        if not self.withheld:
            return np.zeros((count, self.recipe.baseline_frames), bool)
        return np.stack([random_missing(self.recipe, rng) for _ in range(count)])

    def _withheld(self, lead: int) -> NDArray[np.bool_]:
        missing = np.zeros((1, self.recipe.baseline_frames), bool)
        missing[:, self.recipe.baseline_frames - lead :] = True
        return missing

    def _whole(self, chosen: NDArray[np.int64], *, missing: NDArray[np.bool_]) -> tuple[Examples, Tensor]:
        index = Index(
            part=np.zeros(len(chosen) * self.neurons, np.int16),
            moment=np.repeat(chosen, self.neurons).astype(np.int32),
            neuron=np.tile(np.arange(self.neurons, dtype=np.int32), len(chosen)),
        )
        examples, valid = self._examples(index, missing=missing, together=self.neurons)
        return examples, torch.from_numpy(valid)

    def _here(self, index: Index, number: int) -> NDArray[np.bool_] | slice:
        """The rows of a part; of the only one, all, without a copy."""
        return slice(None) if len(self.parts) == 1 else index.part == number

    def _of(
        self, index: Index, tables: Sequence[NDArray[Any]], *, by: Literal["moment", "neuron", "both"] = "moment"
    ) -> NDArray[Any]:
        """Each row's entry in its part's table."""
        out = np.empty((len(index), *tables[0].shape[2 if by == "both" else 1 :]), tables[0].dtype)
        for number, table in enumerate(tables):
            here = self._here(index, number)
            moment, neuron = index.moment[here], index.neuron[here]
            out[here] = table[moment, neuron] if by == "both" else table[moment if by == "moment" else neuron]
        return out

    def _cut(self, index: Index, *, missing: NDArray[np.bool_], together: int | None = None) -> _Cut:
        """Windows of rows; ``missing`` bool ``(groups, 96)`` is shared by every ``together`` consecutive rows."""
        recipe = self.recipe
        window = np.empty((len(index), recipe.window_frames), np.float32)
        for number, one in enumerate(self.parts):
            here = self._here(index, number)
            start = one.trials.moments.frame[index.moment[here]] - recipe.baseline_frames
            neuron = index.neuron[here].astype(np.int64)
            window[here] = one.trials.session.windows(neuron, start, frames=recipe.window_frames)
        minimum = self._of(index, [one.trials.f0_minimum for one in self.parts], by="neuron")
        valid = self._of(index, [one.trials.valid for one in self.parts], by="both")
        before = window[:, : recipe.baseline_frames]
        baseline = np.empty(before.shape, np.float32)
        f0, _ = write_baseline(before.T, recipe=recipe, out=baseline, f0_minimum=minimum)
        divisor = np.where(valid, f0, 1.0).astype(np.float32)[:, None]
        with np.errstate(all="ignore"):
            response = window[:, recipe.baseline_frames :] / divisor - np.float32(1.0)
        given, f0_given = baseline, f0
        group = np.arange(len(index)) // (together or max(len(index), 1))
        if missing.any():
            given, f0_given = baseline.copy(), f0.copy()
            # Most groups miss nothing but one of a few leads: those that miss the same are written together.
            kinds, kind = np.unique(missing, axis=0, return_inverse=True)
            of_row = kind.ravel()[group]
            for number, gaps in enumerate(kinds):
                if gaps.any():
                    rows = np.flatnonzero(of_row == number)
                    written = np.empty((len(rows), recipe.baseline_frames), np.float32)
                    f0_given[rows], usable = write_baseline(
                        hold_missing(before[rows].T, ~gaps), recipe=recipe, out=written, f0_minimum=minimum[rows],
                        observed=~gaps,
                    )  # fmt: skip
                    given[rows] = written
                    valid[rows] &= usable
        for array in (baseline, given, response):
            array[~valid] = 0.0
        active = self._of(index, [one.trials.active for one in self.parts], by="both") & valid
        # A neuron that the network does not know is told no level, as in serving.
        told = [np.where(one.neuron == UNKNOWN, 0.0, one.trials.usual_f0) for one in self.parts]
        usual = self._of(index, told, by="neuron")
        # Of what is withheld only how much is missing at the end counts here; gaps before it are read through.
        lead, population = lead_of(missing)[group], np.empty((len(index), POPULATION_LEVELS), np.float32)
        for number, one in enumerate(self.parts):
            here = self._here(index, number)
            population[here] = one.trials.population[index.moment[here], lead[here]]
        level = joined_level(f0_level(f0_given, usual), population)
        return _Cut(
            baseline=baseline,
            given=given,
            response=response,
            f0=f0,
            level=np.where(valid[:, None], level, np.float32(0.0)),
            valid=valid,
            active=active,
        )

    def _examples(
        self, index: Index, *, missing: NDArray[np.bool_], together: int | None = None
    ) -> tuple[Examples, NDArray[np.bool_]]:
        cut = self._cut(index, missing=missing, together=together)
        scale = np.float32(self.signal_scale)
        whole = np.concatenate([cut.baseline, cut.response], axis=1)
        # numpy's, not torch's: a thread that gathers must not begin threads of torch.
        examples = Examples(
            baseline=torch.from_numpy(np.clip(cut.given / scale, -CLIP, CLIP)),
            trace=torch.from_numpy(np.clip(whole / scale, -CLIP, CLIP)),
            response=torch.from_numpy(cut.response),
            active=torch.from_numpy(cut.active),
            neuron=torch.from_numpy(self._of(index, [one.neuron for one in self.parts], by="neuron")),
            features=torch.from_numpy(self._of(index, [one.features for one in self.parts])),
            stimulus=torch.from_numpy(self._of(index, [one.stimulus for one in self.parts])),
            level=torch.from_numpy(cut.level),
            tuning=torch.from_numpy(self._of(index, [one.tuning for one in self.parts], by="both")),
            population_tuning=torch.from_numpy(self._of(index, [one.population_tuning for one in self.parts])),
            moment=torch.from_numpy(index.moment.astype(np.int64)),
        )
        return examples, cut.valid


@dataclass(frozen=True, kw_only=True, eq=False)
class Index:
    """Rows as numbers of a part, a moment of that part, and a neuron of its session."""

    part: NDArray[np.int16]
    moment: NDArray[np.int32]
    neuron: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.part)

    def select(self, index: NDArray[np.int64]) -> Index:
        """The rows at an index."""
        return Index(part=self.part[index], moment=self.moment[index], neuron=self.neuron[index])


@dataclass(frozen=True, kw_only=True, eq=False)
class _Cut:
    """dF/F of rows: the whole baseline, the baseline as given (frames withheld), the response, and the level
    of the baseline as given; zeros where invalid.
    """

    baseline: NDArray[np.float32]
    given: NDArray[np.float32]
    response: NDArray[np.float32]
    f0: NDArray[np.float64]
    level: NDArray[np.float32]
    valid: NDArray[np.bool_]
    active: NDArray[np.bool_]
