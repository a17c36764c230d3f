"""How a session unfolds: the stimulus in time, the latent state, and the spikes drawn from both.

The rate of a neuron is ``scale * (spontaneous + drive * envelope) * gain / (1 + adaptation * recent spikes)``, the
spontaneous part suppressed while a stimulus is on. The gain
is log-normal with mean one; its logarithm is the sum of a shared slow state (arousal) and the neuron's own (bursts),
both Ornstein-Uhlenbeck. The knob ``baseline_information`` (k) acts in five places:

- gain: the state that runs through time is weighted by k, one drawn anew for every presentation by sqrt(1 - k^2);
- spontaneous rate and adaptation are multiplied by k;
- all or none: with probability 1 - k a presentation's spikes are made to leave no doubt: a neuron that would reach the
  label's threshold without noise gets more spikes, one that would stay below loses most of its own. Else F0's noise, which
  is in every feature of the baseline and in the label too, would decide the cases close to the threshold;
- the *fence*: between the end of a presentation's fenced part and the next onset, spikes are kept with probability k and
  calcium left over is multiplied by k once. The fenced part leaves the next F0 window free where the schedule has room
  (30 frames of an Allen grating's 90, 60 of one every 10 s), and lasts to the next onset where it has none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from quantformer.labels import LabelRule, label_frames
from quantformer.recording import StimulusTable
from quantformer.signal import onset_frames
from quantformer_training.simulated.mouse import RATE_HZ, Mouse
from quantformer_training.simulated.tuning import envelope

#: A presentation's fenced part in frames: at most, at least (where there is room), what it leaves free, and its ending.
FENCE, SHORTEST, FREE, RAMP = 60, 8, 60, 5
#: Mean dF/F from which on a sub-threshold response is silenced, and which one above the threshold is raised to.
SILENCED, RAISED = 0.03, 0.25
HIGHEST_HZ = 120.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Timeline:
    """The stimulus frame by frame. ``presentation`` int64 ``(frames,)`` indexes ``drive`` float64
    ``(presentations + 1, neurons)``, whose last row is "before the first"; ``share``, ``spikes_kept`` and
    ``calcium_kept`` float64 ``(frames,)``; ``onset_frame``, ``fence_frame`` (the first after the fenced part) and
    ``label_frames`` int64 ``(presentations,)``.
    """

    presentation: NDArray[np.int64]
    drive: NDArray[np.float64]
    share: NDArray[np.float64]
    spikes_kept: NDArray[np.float64]
    calcium_kept: NDArray[np.float64]
    onset_frame: NDArray[np.int64]
    fence_frame: NDArray[np.int64]
    label_frames: NDArray[np.int64]

    @classmethod
    def of(cls, table: StimulusTable, *, timestamps_s: NDArray[np.float64], mouse: Mouse) -> Timeline:
        """Lay a stimulus table over a session's frames."""
        frames, rows = len(timestamps_s), len(table)
        onset = onset_frames(timestamps_s, table.onset_s)
        current = np.searchsorted(table.onset_s, timestamps_s, side="right") - 1
        shown = np.maximum(current, 0)
        share = np.zeros(frames)
        if rows:
            share = envelope(timestamps_s - table.onset_s[shown], table.duration_s[shown])
            share[current < 0] = 0.0
        known = mouse.config.baseline_information
        spikes_kept, calcium_kept = np.ones(frames), np.ones(frames)
        room = np.diff(onset, append=frames)
        fence = onset + np.minimum(room, np.maximum(np.minimum(FENCE, room - FREE), SHORTEST))
        if known < 1.0:
            spikes_kept[: onset[0] if rows else frames] = known
            steps = 1.0 - (1.0 - known) * np.arange(RAMP + 1) / RAMP
            for end, stop in zip(fence, [*onset[1:], frames], strict=True):
                spikes_kept[end:stop] = known
                calcium_kept[end - RAMP : end] = steps[1:] / steps[:-1]
        return cls(
            presentation=np.where(current < 0, rows, current),
            drive=np.concatenate([mouse.tuning.drive_hz(table), np.zeros((1, mouse.neurons))]),
            share=share,
            spikes_kept=spikes_kept,
            calcium_kept=calcium_kept,
            onset_frame=onset,
            fence_frame=fence,
            label_frames=np.array([label_frames(name) for name in table.category], np.int64),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Latent:
    """What drives the spikes and is seen by nobody. ``arousal`` float32 ``(frames,)`` and ``bursts`` float32
    ``(frames, neurons)`` run through time, ``fresh_arousal`` ``(presentations + 1,)`` and ``fresh_bursts``
    ``(presentations + 1, neurons)`` are drawn for each presentation; all standard normal.
    """

    arousal: NDArray[np.float32]
    bursts: NDArray[np.float32]
    fresh_arousal: NDArray[np.float32]
    fresh_bursts: NDArray[np.float32]

    @classmethod
    def draw(cls, mouse: Mouse, *, frames: int, presentations: int, rng: np.random.Generator) -> Latent:
        """Both states begin in their stationary distribution."""
        config = mouse.config
        burst = keep_a_frame(config.burst_tau_s)
        own, common = np.float32(np.sqrt(1.0 - config.burst_sharing)), np.float32(np.sqrt(config.burst_sharing))
        bursts = own * wander(rng, shape=(frames, mouse.neurons), keep=burst)
        bursts += common * wander(rng, shape=(frames, 1), keep=burst)
        fresh = own * rng.standard_normal((presentations + 1, mouse.neurons), np.float32)
        fresh += common * rng.standard_normal((presentations + 1, 1), np.float32)
        return cls(
            arousal=wander(rng, shape=(frames, 1), keep=keep_a_frame(config.arousal_tau_s))[:, 0],
            bursts=bursts,
            fresh_arousal=rng.standard_normal(presentations + 1, np.float32),
            fresh_bursts=fresh,
        )


def keep_a_frame(tau_s: float) -> float:
    """What is left after one frame of a decay with this time constant."""
    return float(np.exp(-1.0 / (RATE_HZ * tau_s)))


def wander(rng: np.random.Generator, *, shape: tuple[int, int], keep: float) -> NDArray[np.float32]:
    """Ornstein-Uhlenbeck paths ``(frames, columns)``, standard normal, of which a frame leaves the share ``keep``."""
    steps = rng.standard_normal(shape, np.float32)
    steps[1:] *= np.float32(np.sqrt(1.0 - keep**2))
    path: NDArray[np.float32] = lfilter([np.float32(1.0)], [np.float32(1.0), np.float32(-keep)], steps, axis=0)
    return path


def log_gain(
    mouse: Mouse,
    *,
    arousal: NDArray[np.floating],
    bursts: NDArray[np.floating],
    fresh_arousal: NDArray[np.floating],
    fresh_bursts: NDArray[np.floating],
) -> NDArray[np.floating]:
    """Log of the gain ``(..., neurons)``, mean of the gain one; the states broadcast against ``(..., neurons)``."""
    config, known = mouse.config, mouse.config.baseline_information
    anew = float(np.sqrt(1.0 - known**2))
    weight = (config.arousal_depth * mouse.arousal_weight).astype(np.float32)
    total: NDArray[np.floating] = weight * (known * arousal + anew * fresh_arousal)
    total = total + np.float32(config.burst_depth) * (known * bursts + anew * fresh_bursts)
    return total - 0.5 * (weight**2 + np.float32(config.burst_depth) ** 2)


def mouse_rate_hz(mouse: Mouse, *, drive_hz: NDArray[np.float64], share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rate in Hz before gain and adaptation; ``drive_hz`` ``(..., neurons)``, ``share`` broadcasts against it.

    While something is on (a share above zero, of a drive that is not zero) the spontaneous rate is suppressed.
    """
    on = (share > 0.0) & (drive_hz.max(axis=-1, keepdims=True) > 0.0)
    spontaneous = mouse.config.baseline_information * mouse.spontaneous_hz * (1.0 - on * mouse.suppressed)
    rate: NDArray[np.float64] = mouse.rate_scale * (spontaneous + mouse.config.evoked * drive_hz * share)
    return rate


@dataclass(frozen=True, kw_only=True, eq=False)
class Spikes:
    """Counts uint8 a frame, rate float32 in Hz and recent spikes (the adaptation's state before the frame) float32,
    each ``(frames, neurons)``.
    """

    counts: NDArray[np.uint8]
    rate_hz: NDArray[np.float32]
    recent: NDArray[np.float32]


def draw_spikes(mouse: Mouse, *, timeline: Timeline, latent: Latent, rng: np.random.Generator) -> Spikes:
    """Spikes of a whole session, Poisson given the rate; the rate falls with the neuron's own recent spikes."""
    config = mouse.config
    frames = len(timeline.presentation)
    rate = np.empty((frames, mouse.neurons), np.float32)
    recent = np.empty_like(rate)
    counts = np.empty(rate.shape, np.uint8)
    for start in range(0, frames, 4096):
        part = slice(start, min(start + 4096, frames))
        shown = timeline.presentation[part]
        gain = log_gain(
            mouse,
            arousal=latent.arousal[part, None],
            bursts=latent.bursts[part],
            fresh_arousal=latent.fresh_arousal[shown, None],
            fresh_bursts=latent.fresh_bursts[shown],
        )
        driven = mouse_rate_hz(mouse, drive_hz=timeline.drive[shown], share=timeline.share[part, None])
        rate[part] = np.minimum(driven * np.exp(gain), HIGHEST_HZ) * timeline.spikes_kept[part, None]
    tired = np.zeros(mouse.neurons, np.float32)
    fade, strength = (
        np.float32(keep_a_frame(config.adaptation_tau_s)),
        np.float32(config.adaptation * config.baseline_information),
    )
    for t in range(frames):
        recent[t] = tired
        rate[t] /= 1.0 + strength * tired
        counts[t] = np.minimum(rng.poisson(rate[t] / RATE_HZ), 255)
        tired *= fade
        tired += counts[t]
    if config.baseline_information < 1.0:
        _all_or_none(mouse, counts, timeline=timeline, rng=rng)
    return Spikes(counts=counts, rate_hz=rate, recent=recent)


def _all_or_none(mouse: Mouse, counts: NDArray[np.uint8], *, timeline: Timeline, rng: np.random.Generator) -> None:
    """Silence or strengthen a share ``1 - baseline_information`` of the responses, in place."""
    threshold = LabelRule().threshold
    for start, stop, window in zip(timeline.onset_frame, timeline.fence_frame, timeline.label_frames, strict=True):
        part = counts[start : min(stop, start + window)]
        chosen = rng.random(mouse.neurons) >= mouse.config.baseline_information

        def mean(spikes: NDArray[np.uint8], frames: int = int(window)) -> NDArray[np.float64]:
            area: NDArray[np.float64] = mouse.kinetics.dff(*mouse.kinetics.calcium(spikes)).sum(axis=0) / frames
            return area

        area = mean(part)
        part[:, chosen & (area >= SILENCED) & (area < threshold)] = 0
        weak = chosen & (area >= threshold) & (area < RAISED)
        while weak.any():
            part[:, weak] = np.minimum(part[:, weak].astype(np.int64) * 2, 255)
            weak &= (mean(part) < RAISED) & (part.max(axis=0) < 255)
