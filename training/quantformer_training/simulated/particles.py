"""Many possible states of every neuron at once: moved forward by the simulator's own rules, weighed by what is measured.

A bootstrap particle filter (Gordon, Salmond & Smith 1993) a neuron, all neurons together. Spikes are proposed from a
rate raised where the next frames are bright, and the weight corrects for it, since a rare spike is otherwise never drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantformer_training.simulated.activity import HIGHEST_HZ, Timeline, keep_a_frame, log_gain, mouse_rate_hz
from quantformer_training.simulated.mouse import RATE_HZ, Mouse
from quantformer_training.simulated.optics import DRIFT_TAU_S, noise_variance

SLOW, FAST, RECENT, AROUSAL, BURSTS, FRESH_AROUSAL, FRESH_BURSTS, DRIFT = range(8)
#: Frames after a frame in which its spikes show most.
LOOK = 3
#: A single frame further than this many standard deviations off counts as this far: motion is not in the filter's model.
FARTHEST = 5.0

Floats = NDArray[np.float32]


class Dynamics:
    """The simulator's rules for states float32 ``(8, particles, neurons)``, one frame at a time."""

    def __init__(self, mouse: Mouse, *, timeline: Timeline) -> None:
        config = mouse.config
        self.mouse, self.timeline = mouse, timeline
        self.keep = np.zeros((8, 1, 1), np.float32)
        self.keep[[AROUSAL, BURSTS, DRIFT], 0, 0] = [
            keep_a_frame(tau) for tau in (config.arousal_tau_s, config.burst_tau_s, DRIFT_TAU_S)
        ]
        self.step = np.sqrt(1.0 - self.keep**2)
        self.fade = np.float32(keep_a_frame(config.adaptation_tau_s))
        self.strength = np.float32(config.adaptation * config.baseline_information)
        self.keep_slow = mouse.kinetics.keep_slow.astype(np.float32)
        self.keep_fast = mouse.kinetics.keep_fast.astype(np.float32)

    def start(self, particles: int, rng: np.random.Generator) -> Floats:
        """States before the first frame: quiet calcium, the rest in its stationary distribution."""
        states = rng.standard_normal((8, particles, self.mouse.neurons), np.float32)
        states[[SLOW, FAST, RECENT]] = 0.0
        return states

    def wander(self, states: Floats, *, frame: int, rng: np.random.Generator) -> None:
        """Move what needs no spikes to ``frame``, in place."""
        for which in (AROUSAL, BURSTS, DRIFT):
            states[which] *= self.keep[which]
            states[which] += self.step[which] * rng.standard_normal(states[which].shape, np.float32)
        timeline, known = self.timeline, self.mouse.config.baseline_information
        if known < 1.0 and frame and timeline.presentation[frame] != timeline.presentation[frame - 1]:
            states[FRESH_AROUSAL] = rng.standard_normal(states[0].shape, np.float32)
            states[FRESH_BURSTS] = rng.standard_normal(states[0].shape, np.float32)

    def expected(self, states: Floats, *, frame: int) -> Floats:
        """Expected spikes ``(particles, neurons)`` of a frame."""
        timeline = self.timeline
        driven = mouse_rate_hz(
            self.mouse,
            drive_hz=timeline.drive[timeline.presentation[frame]],
            share=timeline.share[frame : frame + 1],
        )
        gain = log_gain(
            self.mouse,
            arousal=states[AROUSAL],
            bursts=states[BURSTS],
            fresh_arousal=states[FRESH_AROUSAL],
            fresh_bursts=states[FRESH_BURSTS],
        )
        rate = np.minimum(driven.astype(np.float32) * np.exp(gain), np.float32(HIGHEST_HZ))
        scale = np.float32(timeline.spikes_kept[frame] / RATE_HZ)
        answer: Floats = scale * rate / (np.float32(1.0) + self.strength * states[RECENT])
        return answer

    def spike(self, states: Floats, spikes: NDArray[np.integer], *, frame: int) -> None:
        """Let calcium decay, add the frame's spikes, in place."""
        kept = np.float32(self.timeline.calcium_kept[frame])
        states[SLOW] *= self.keep_slow * kept
        states[FAST] *= self.keep_fast * kept
        states[RECENT] *= self.fade
        for which in (SLOW, FAST, RECENT):
            states[which] += spikes

    def dff(self, states: Floats) -> Floats:
        """Noise-free dF/F ``(particles, neurons)``."""
        change: Floats = self.mouse.kinetics.dff(states[SLOW], states[FAST]).astype(np.float32, copy=False)
        return change

    def path(self, states: Floats, *, frame: int, frames: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """``1 + dF/F`` of each of the ``frames`` from ``frame`` on, mean over one future a particle ``(frames, neurons)``."""
        states = states.copy()
        shown = range(frame, min(frame + frames, len(self.timeline.share)))
        made = np.empty((len(shown), states.shape[2]))
        for k, t in enumerate(shown):
            self.wander(states, frame=t, rng=rng)
            self.spike(states, rng.poisson(self.expected(states, frame=t)), frame=t)
            made[k] = 1.0 + self.dff(states).mean(axis=0, dtype=np.float64)
        return made

    def glow(self, states: Floats, *, frame: int, frames: int, rng: np.random.Generator) -> Floats:
        """Mean of ``1 + dF/F`` over the ``frames`` from ``frame`` on, for one future a particle ``(particles, neurons)``."""
        states = states.copy()
        total = np.zeros_like(states[0])
        for t in range(frame, min(frame + frames, len(self.timeline.share))):
            self.wander(states, frame=t, rng=rng)
            self.spike(states, rng.poisson(self.expected(states, frame=t)), frame=t)
            total += self.dff(states)
        mean: Floats = np.float32(1.0) + total / np.float32(frames)
        return mean


@dataclass(frozen=True, kw_only=True, eq=False)
class Belief:
    """Equally likely states ``(8, particles, neurons)`` of every neuron, each given its own fluorescence so far."""

    states: Floats

    @property
    def arousal(self) -> NDArray[np.float64]:
        """Mean of the shared state as each neuron sees it ``(neurons,)``."""
        mean: NDArray[np.float64] = self.states[AROUSAL].mean(axis=0, dtype=np.float64)
        return mean

    @property
    def bursts(self) -> NDArray[np.float64]:
        """Mean of each neuron's own state ``(neurons,)``."""
        mean: NDArray[np.float64] = self.states[BURSTS].mean(axis=0, dtype=np.float64)
        return mean


class Filter:
    """Reads corrected fluorescence ``(frames, neurons)`` frame by frame; knows the mouse's parameters, no truth."""

    def __init__(
        self, dynamics: Dynamics, trace: Floats, *, bleached: Floats, particles: int, rng: np.random.Generator
    ) -> None:
        self.dynamics, self.trace, self.rng = dynamics, trace, rng
        mouse = dynamics.mouse
        # What bleaching leaves of the resting fluorescence is a known curve; drift is part of the state.
        self.rest = (mouse.resting * bleached[:, None]).astype(np.float32)
        self.under = (mouse.neuropil_factor * mouse.neuropil_level).astype(np.float32)
        self.states = dynamics.start(particles, rng)
        self.logs = np.zeros(self.states.shape[1:], np.float32)
        self.frame = 0

    def belief(self, frame: int) -> Belief:
        """Read on until before ``frame``: what is known at an onset there."""
        while self.frame < frame:
            self._read(self.frame, ahead=min(self.frame + 1 + LOOK, frame))
            self.frame += 1
        self._resample(np.arange(self.states.shape[2]))
        return Belief(states=self.states.copy())

    def _read(self, t: int, *, ahead: int) -> None:
        dynamics, states = self.dynamics, self.states
        dynamics.wander(states, frame=t, rng=self.rng)
        expected = np.maximum(dynamics.expected(states, frame=t), np.float32(1e-7))
        level = self.rest[t] * np.exp(np.float32(dynamics.mouse.config.drift) * states[DRIFT])
        proposed = expected
        if ahead > t + 1:
            bright = self.trace[t + 1 : ahead].mean(axis=0) / level - 1.0
            left = dynamics.dff(states) * dynamics.keep_slow ** ((ahead - t) / 2 + 0.5)
            size = dynamics.mouse.kinetics.spike_dff.astype(np.float32)
            proposed = expected + 0.4 * np.clip((bright - left) / size - 0.4, 0.0, 4.0)
        spikes = self.rng.poisson(proposed)
        self.logs += spikes * np.log(expected / proposed) - (expected - proposed)
        dynamics.spike(states, spikes, frame=t)
        seen = level * (1.0 + dynamics.dff(states))
        spread = np.sqrt(noise_variance(dynamics.mouse, light=seen + self.under))
        off = np.clip((self.trace[t] - seen) / spread, -FARTHEST, FARTHEST)
        self.logs -= np.float32(0.5) * off * off
        self.logs -= np.log(spread)
        weights = np.exp(self.logs - self.logs.max(axis=0))
        weights /= weights.sum(axis=0)
        self._resample(np.flatnonzero((weights**2).sum(axis=0) * len(weights) > 2.0))

    def _resample(self, columns: NDArray[np.intp]) -> None:
        """Draw particles by weight (systematic) for some neurons, whose weights are then equal again."""
        if not len(columns):
            return
        weights = np.exp((self.logs[:, columns] - self.logs[:, columns].max(axis=0)).astype(np.float64))
        bounds = np.cumsum(weights, axis=0) / weights.sum(axis=0)
        count = len(weights)
        at = (np.arange(count)[:, None] + self.rng.random(len(columns))) / count
        chosen = np.stack([np.searchsorted(bounds[:, k], at[:, k]) for k in range(len(columns))], axis=1)
        chosen = np.minimum(chosen, count - 1)
        self.states[:, :, columns] = np.take_along_axis(self.states[:, :, columns], chosen[None], axis=1)
        self.logs[:, columns] = 0.0
