"""What is in a recording, in numbers; `quantformer inspect` prints it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from quantformer.errors import SignalError
from quantformer.recording import NO_SUB_SESSION, Origin, Recording, Signal, StimulusTable
from quantformer.signal import SignalRecipe, needs_interpolation


@dataclass(frozen=True, kw_only=True)
class CategorySummary:
    """The presentations of one stimulus category."""

    category: str
    presentations: int
    ids: int
    median_duration_s: float
    shortest_duration_s: float
    longest_duration_s: float
    sub_sessions: tuple[int, ...]
    features: tuple[str, ...]
    blanks: int


@dataclass(frozen=True, kw_only=True)
class F0Summary:
    """F0 as the mean of consecutive stretches of 60 frames: each neuron's median, and that over neurons, in its units."""

    percentile_5: float
    median: float
    percentile_95: float
    not_positive: float
    """Fraction of stretches, over all neurons, whose F0 is zero, negative or not a number."""


@dataclass(frozen=True, kw_only=True)
class RecordingSummary:
    """What `summarise` finds. Seconds, hertz, and the recording's own units of fluorescence."""

    frames: int
    neurons: int
    duration_s: float
    rate_hz: float
    shortest_interval_ms: float
    longest_interval_ms: float
    used: str
    signal: Signal
    neuropil: bool
    neuropil_factor: tuple[float, float] | None
    running_speed: bool
    not_finite: int
    neurons_not_finite: int
    f0: F0Summary | None
    stimuli: tuple[CategorySummary, ...]
    origin: Origin
    source: str
    subject: str
    facts: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain dicts, lists and numbers, with None for what is not a number, as JSON wants it."""
        plain: dict[str, Any] = _without_nan(asdict(self))
        return plain


def summarise(recording: Recording) -> RecordingSummary:
    """Count and measure a recording."""
    bad = ~np.isfinite(recording.corrected())
    interval_ms = 1000 * np.diff(recording.timestamps_s) if recording.frames > 1 else np.array([np.nan])
    factor = recording.neuropil_factor
    provenance = recording.provenance
    return RecordingSummary(
        frames=recording.frames,
        neurons=recording.neurons,
        duration_s=recording.duration_s,
        rate_hz=recording.rate_hz,
        shortest_interval_ms=float(interval_ms.min()),
        longest_interval_ms=float(interval_ms.max()),
        used=_use_of_rate(recording.rate_hz),
        signal=recording.signal,
        neuropil=recording.neuropil is not None,
        neuropil_factor=None if factor is None else (float(factor.min()), float(factor.max())),
        running_speed=recording.running_speed_cm_s is not None,
        not_finite=int(np.count_nonzero(bad)),
        neurons_not_finite=int(np.count_nonzero(bad.any(axis=0))),
        f0=_f0(recording),
        stimuli=tuple(_category(recording.stimuli, name) for name in sorted(set(recording.stimuli.category))),
        origin=provenance.origin,
        source=provenance.source,
        subject=provenance.subject,
        facts=dict(provenance.facts),
    )


def _use_of_rate(rate_hz: float) -> str:
    try:
        return "interpolated to 30 Hz" if needs_interpolation(rate_hz) else "frame for frame"
    except SignalError as error:
        return f"not used: {error}"


def _f0(recording: Recording) -> F0Summary | None:
    length = SignalRecipe().f0_frames
    stretches = recording.frames // length
    if stretches == 0:
        return None
    traces = recording.corrected()[: stretches * length].reshape(stretches, length, recording.neurons)
    f0 = traces.mean(axis=1, dtype=np.float64)
    finite = np.isfinite(f0)
    usable = f0[:, finite.any(axis=0)]
    if usable.shape[1] == 0:
        return None
    a_neuron = np.nanmedian(np.where(np.isfinite(usable), usable, np.nan), axis=0)
    low, median, high = np.percentile(a_neuron, [5, 50, 95])
    return F0Summary(
        percentile_5=float(low),
        median=float(median),
        percentile_95=float(high),
        not_positive=float(np.mean(~(finite & (f0 > 0)))),
    )


def _category(stimuli: StimulusTable, category: str) -> CategorySummary:
    rows = stimuli.select(np.array([name == category for name in stimuli.category]))
    blocks = Counter(rows.sub_session.tolist())
    del blocks[NO_SUB_SESSION]
    blank = rows.features.get("blank")
    return CategorySummary(
        category=category,
        presentations=len(rows),
        ids=len(set(rows.stimulus_id)),
        median_duration_s=float(np.median(rows.duration_s)),
        shortest_duration_s=float(rows.duration_s.min()),
        longest_duration_s=float(rows.duration_s.max()),
        sub_sessions=tuple(count for _, count in sorted(blocks.items())),
        features=tuple(name for name, column in rows.features.items() if np.isfinite(column).any()),
        blanks=0 if blank is None else int(np.count_nonzero(blank > 0)),
    )


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
