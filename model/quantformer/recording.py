"""A recording in memory: traces, time stamps, neuron ids, stimuli and where it all came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quantformer.errors import RecordingError
from quantformer.signal import onset_frames, subtract_neuropil

#: What the numbers in `Recording.fluorescence` are. ``dff_plus_one`` is a stored dF/F shifted so that F0 is near one.
Signal = Literal["raw", "demixed", "corrected", "dff_plus_one"]
#: ``measured``: from an animal. ``semi-synthetic``: measured spikes through an indicator model. ``simulated``: neither.
Origin = Literal["measured", "semi-synthetic", "simulated"]

NO_SUB_SESSION = -1


@dataclass(frozen=True, kw_only=True, eq=False)
class StimulusTable:
    """Presentations in order of onset.

    ``onset_s`` and ``duration_s`` are seconds on the recording's clock, float64 ``(rows,)``. ``features`` holds one
    float64 column ``(rows,)`` a name, NaN where a feature does not apply; names carry their unit
    (``direction_deg``, ``temporal_frequency_hz``, ``spatial_frequency_cpd``, ``phase_cycles``, ``blank``).
    ``sub_session`` numbers the blocks of one category from 0; -1 where the recording has none.
    """

    onset_s: NDArray[np.float64]
    duration_s: NDArray[np.float64]
    category: tuple[str, ...]
    stimulus_id: tuple[str, ...]
    features: Mapping[str, NDArray[np.float64]]
    sub_session: NDArray[np.int16]

    def __post_init__(self) -> None:
        rows = len(self.onset_s)
        for name in ("onset_s", "duration_s", "sub_session"):
            shape = getattr(self, name).shape
            if shape != (rows,):
                raise RecordingError(
                    f"stimulus table: {name} has shape {shape}, expected ({rows},): one a presentation"
                )
        for name in ("category", "stimulus_id"):
            found = len(getattr(self, name))
            if found != rows:
                raise RecordingError(
                    f"stimulus table: {name} has {found} rows, onset_s has {rows}; give one a presentation"
                )
        for name, column in self.features.items():
            if column.shape != (rows,):
                raise RecordingError(f"stimulus table: feature {name!r} has shape {column.shape}, expected ({rows},)")
            if np.isinf(column).any():
                row = int(np.flatnonzero(np.isinf(column))[0])
                raise RecordingError(f"stimulus table: feature {name!r} is infinite in row {row}; leave out as NaN")
        if not np.isfinite(self.onset_s).all() or not np.isfinite(self.duration_s).all():
            raise RecordingError("stimulus table: every onset and duration must be a finite number of seconds")
        if (self.duration_s < 0).any():
            row = int(np.flatnonzero(self.duration_s < 0)[0])
            raise RecordingError(
                f"stimulus table: row {row} lasts {self.duration_s[row]} s; durations cannot be negative"
            )
        if (np.diff(self.onset_s) < 0).any():
            row = int(np.flatnonzero(np.diff(self.onset_s) < 0)[0]) + 1
            raise RecordingError(f"stimulus table: row {row} begins before row {row - 1}; sort the rows by onset")
        object.__setattr__(self, "features", MappingProxyType(dict(self.features)))

    def __len__(self) -> int:
        return len(self.onset_s)

    @classmethod
    def empty(cls) -> StimulusTable:
        """A table without presentations, for unlabelled recordings."""
        return cls.build(onset_s=[], duration_s=[], category=[], stimulus_id=[], features={})

    @classmethod
    def build(
        cls,
        *,
        onset_s: ArrayLike,
        duration_s: ArrayLike,
        category: Sequence[str],
        stimulus_id: Sequence[str],
        features: Mapping[str, ArrayLike],
        sub_session: ArrayLike | None = None,
    ) -> StimulusTable:
        """Make a table from rows in any order; they are sorted by onset (stable)."""
        onset = np.atleast_1d(np.asarray(onset_s, dtype=np.float64))
        rows = len(onset)
        given = np.full(rows, NO_SUB_SESSION) if sub_session is None else np.atleast_1d(np.asarray(sub_session))
        with np.errstate(invalid="ignore"):
            sub = given.astype(np.int16)
        if (sub != given).any():
            raise RecordingError(
                "stimulus table: sub_session must hold whole numbers of 16 bits, -1 where there is none"
            )
        duration = np.atleast_1d(np.asarray(duration_s, dtype=np.float64))
        columns = {name: np.atleast_1d(np.asarray(column, dtype=np.float64)) for name, column in features.items()}
        table = {"duration_s": len(duration), "category": len(category), "stimulus_id": len(stimulus_id)}
        table |= {"sub_session": len(sub)} | {name: len(column) for name, column in columns.items()}
        for name, found in table.items():
            if found != rows:
                raise RecordingError(
                    f"stimulus table: {name} has {found} rows, onset_s has {rows}; give one a presentation"
                )
        if onset.ndim != 1:
            raise RecordingError(f"stimulus table: onset_s has shape {onset.shape}, expected ({rows},)")
        order = np.argsort(onset, kind="stable")
        return cls(
            onset_s=onset[order],
            duration_s=duration[order],
            category=tuple(category[i] for i in order),
            stimulus_id=tuple(stimulus_id[i] for i in order),
            features={name: column[order] for name, column in columns.items()},
            sub_session=sub[order],
        )

    def select(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> StimulusTable:
        """The chosen rows, by mask or by index, in order of onset."""
        index = np.flatnonzero(rows) if rows.dtype == np.bool_ else np.sort(rows)
        return StimulusTable(
            onset_s=self.onset_s[index],
            duration_s=self.duration_s[index],
            category=tuple(self.category[i] for i in index),
            stimulus_id=tuple(self.stimulus_id[i] for i in index),
            features={name: column[index] for name, column in self.features.items()},
            sub_session=self.sub_session[index],
        )

    def features_of(self, row: int) -> dict[str, float]:
        """The features of one presentation that apply to it (NaN left out)."""
        return {name: float(column[row]) for name, column in self.features.items() if np.isfinite(column[row])}


@dataclass(frozen=True, kw_only=True, eq=False)
class Provenance:
    """Where a recording came from: `origin`, its file or generator, the subject, and free facts (seed, pipeline ...)."""

    origin: Origin
    source: str
    subject: str = "unknown"
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """Traces of one continuous acquisition.

    ``fluorescence`` and ``neuropil`` are float32 ``(frames, neurons)``, C-contiguous, in the extractor's arbitrary
    units; ``timestamps_s`` is float64 ``(frames,)``, strictly increasing, the start of each frame's acquisition;
    ``neuropil_factor`` is float32 ``(neurons,)``.
    """

    fluorescence: NDArray[np.float32]
    timestamps_s: NDArray[np.float64]
    neuron_ids: tuple[str, ...]
    stimuli: StimulusTable
    provenance: Provenance
    signal: Signal = "raw"
    neuropil: NDArray[np.float32] | None = None
    neuropil_factor: NDArray[np.float32] | None = None
    running_speed_cm_s: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.fluorescence.ndim != 2:
            raise RecordingError(f"fluorescence has shape {self.fluorescence.shape}, expected (frames, neurons)")
        frames, neurons = self.fluorescence.shape
        # C order with frames first: a reduction over frames then adds in one order, whatever the number of neurons.
        object.__setattr__(self, "fluorescence", np.ascontiguousarray(self.fluorescence, dtype=np.float32))
        if frames == 0 or neurons == 0:
            raise RecordingError(
                f"fluorescence has shape {self.fluorescence.shape}; at least one frame and neuron is needed"
            )
        object.__setattr__(self, "timestamps_s", np.asarray(self.timestamps_s, dtype=np.float64))
        if self.timestamps_s.shape != (frames,):
            raise RecordingError(f"timestamps_s has shape {self.timestamps_s.shape}, expected ({frames},)")
        if not np.isfinite(self.timestamps_s).all() or (np.diff(self.timestamps_s) <= 0).any():
            raise RecordingError("timestamps_s must be finite and strictly increasing seconds")
        if len(self.neuron_ids) != neurons:
            raise RecordingError(f"{len(self.neuron_ids)} neuron ids for {neurons} traces; give one id a neuron")
        if len(set(self.neuron_ids)) != neurons:
            twice = next(name for name in self.neuron_ids if self.neuron_ids.count(name) > 1)
            raise RecordingError(f"neuron id {twice!r} occurs twice; ids must be unique")
        if self.signal not in get_args(Signal):
            raise RecordingError(f"signal is {self.signal!r}, expected one of {', '.join(get_args(Signal))}")
        if self.neuropil is not None and self.signal not in ("raw", "demixed"):
            raise RecordingError(
                f"a {self.signal!r} signal came with neuropil, which would be subtracted a second time"
            )
        if self.neuropil is None and self.neuropil_factor is not None:
            raise RecordingError("neuropil_factor came without neuropil; give both or neither")
        if self.neuropil is not None:
            if self.neuropil.shape != (frames, neurons):
                raise RecordingError(f"neuropil has shape {self.neuropil.shape}, expected ({frames}, {neurons})")
            object.__setattr__(self, "neuropil", np.ascontiguousarray(self.neuropil, dtype=np.float32))
            factor = np.full(neurons, 0.7) if self.neuropil_factor is None else self.neuropil_factor
            if np.shape(factor) != (neurons,):
                raise RecordingError(f"neuropil_factor has shape {np.shape(factor)}, expected ({neurons},)")
            object.__setattr__(self, "neuropil_factor", np.asarray(factor, dtype=np.float32))
        if self.running_speed_cm_s is not None:
            if self.running_speed_cm_s.shape != (frames,):
                raise RecordingError(
                    f"running_speed_cm_s has shape {self.running_speed_cm_s.shape}, expected ({frames},)"
                )
            object.__setattr__(self, "running_speed_cm_s", np.asarray(self.running_speed_cm_s, dtype=np.float32))

    @property
    def frames(self) -> int:
        """Number of frames."""
        return int(self.fluorescence.shape[0])

    @property
    def neurons(self) -> int:
        """Number of neurons."""
        return int(self.fluorescence.shape[1])

    @property
    def rate_hz(self) -> float:
        """Median frame rate, from the time stamps; NaN for a single frame."""
        return float(1.0 / np.median(np.diff(self.timestamps_s))) if self.frames > 1 else float("nan")

    @property
    def duration_s(self) -> float:
        """Seconds from the first to the last frame's start."""
        return float(self.timestamps_s[-1] - self.timestamps_s[0])

    def corrected(self) -> NDArray[np.float32]:
        """Neuropil-corrected fluorescence ``(frames, neurons)``; the traces themselves where there is no neuropil."""
        if self.neuropil is None or self.neuropil_factor is None:
            return self.fluorescence
        return subtract_neuropil(self.fluorescence, neuropil=self.neuropil, factor=self.neuropil_factor)

    def select_neurons(self, index: Sequence[int] | NDArray[np.intp] | NDArray[np.bool_]) -> Recording:
        """The same recording with only the neurons at ``index``, by position or by mask."""
        given = np.asarray(index)
        if given.dtype == np.bool_ and given.shape != (self.neurons,):
            raise RecordingError(f"a neuron mask of shape {given.shape} was given, expected ({self.neurons},)")
        chosen = np.flatnonzero(given) if given.dtype == np.bool_ else given.astype(np.intp)
        return replace(
            self,
            fluorescence=self.fluorescence[:, chosen],
            neuron_ids=tuple(self.neuron_ids[i] for i in chosen),
            neuropil=None if self.neuropil is None else self.neuropil[:, chosen],
            neuropil_factor=None if self.neuropil_factor is None else self.neuropil_factor[chosen],
        )

    def between(self, start: int, stop: int) -> Recording:
        """Frames ``[start, stop)`` with the presentations whose onset frame is among them; the clock is unchanged.

        Adjoining ranges share no presentation. One that begins after the last frame goes with that frame.
        """
        if not 0 <= start < stop <= self.frames:
            raise RecordingError(f"frames [{start}, {stop}) asked of a recording with {self.frames}")
        onset = np.minimum(onset_frames(self.timestamps_s, self.stimuli.onset_s), self.frames - 1)
        inside = (onset >= start) & (onset < stop)
        return replace(
            self,
            fluorescence=self.fluorescence[start:stop],
            timestamps_s=self.timestamps_s[start:stop],
            stimuli=self.stimuli.select(inside),
            neuropil=None if self.neuropil is None else self.neuropil[start:stop],
            running_speed_cm_s=None if self.running_speed_cm_s is None else self.running_speed_cm_s[start:stop],
        )
