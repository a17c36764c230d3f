"""From calcium to what the microscope writes: bleaching, drift, motion, neuropil, photons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from quantformer_training.simulated.activity import keep_a_frame, wander
from quantformer_training.simulated.mouse import RATE_HZ, Mouse, stream

#: Standard deviation of the electronics, relative to the brightness, and of the neuropil's own slow fluctuation.
READ_NOISE, NEUROPIL_WANDER = 0.02, 0.07
#: Standard deviation and time constant of the wobble in depth, as a share of the light.
JITTER, JITTER_TAU_S = 0.005, 2.0
DRIFT_TAU_S, NEUROPIL_TAU_S, BLEACH_TAU_S = 60.0, 1.0, 900.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """``fluorescence`` and ``neuropil`` as measured, float32 ``(frames, neurons)``; ``resting`` float32, the same shape:
    the neuropil-free fluorescence without calcium, motion included; ``noise`` float32 ``(frames, neurons)``: the standard
    deviation of the measured fluorescence; ``motion`` float32 ``(frames,)``: the relative loss of light.
    """

    fluorescence: NDArray[np.float32]
    neuropil: NDArray[np.float32]
    resting: NDArray[np.float32]
    noise: NDArray[np.float32]
    motion: NDArray[np.float32]


def photograph(
    mouse: Mouse, *, dff: NDArray[np.float32], arousal: NDArray[np.float32], seed: int, session: str
) -> Images:
    """Photograph a session whose calcium causes ``dff`` float32 ``(frames, neurons)``.

    The neuropil follows the population's own mean response, hence the stimulus, and arousal ``(frames,)``.
    """
    config = mouse.config
    frames, neurons = dff.shape
    left = bleached(mouse, frames=frames)
    drift_rng = stream(seed, session, "drift")
    wander = _slow(drift_rng, frames=frames, columns=neurons, tau_s=DRIFT_TAU_S)
    motion = _motion(stream(seed, session, "motion"), frames=frames, per_minute=config.motion_per_minute)
    resting = (mouse.resting * left[:, None]).astype(np.float32)
    resting *= np.exp(config.drift * wander, dtype=np.float32)
    resting *= np.maximum(1.0 - mouse.motion_weight * motion[:, None], 0.2).astype(np.float32)

    neuropil_rng = stream(seed, session, "neuropil")
    common = lfilter([0.03], [1.0, -0.97], np.minimum(dff, 1.0).mean(axis=1))
    own = _slow(neuropil_rng, frames=frames, columns=neurons, tau_s=NEUROPIL_TAU_S)
    shared = _slow(neuropil_rng, frames=frames, columns=1, tau_s=NEUROPIL_TAU_S)
    swing = NEUROPIL_WANDER * (0.5 * own + shared + 0.5 * arousal[:, None]) + 0.6 * common[:, None]
    neuropil = (mouse.neuropil_level * left[:, None] * (1.0 - 0.3 * motion[:, None]) * (1.0 + swing)).astype(np.float32)

    clean = resting * (1.0 + dff) + mouse.neuropil_factor.astype(np.float32) * neuropil
    noise = np.sqrt(
        mouse.photon_gain * np.maximum(clean, 0.0) + (READ_NOISE * config.brightness) ** 2, dtype=np.float32
    )
    photons = stream(seed, session, "photons")
    measured = clean + noise * photons.standard_normal(clean.shape, np.float32)
    # The neuropil's ring has many times the soma's pixels, hence little noise of its own.
    neuropil += np.float32(0.1) * noise * photons.standard_normal(clean.shape, np.float32)
    return Images(fluorescence=measured, neuropil=neuropil, resting=resting, noise=noise, motion=motion)


def bleached(mouse: Mouse, *, frames: int) -> NDArray[np.float64]:
    """Share of the light ``(frames,)`` that bleaching leaves."""
    return 1.0 - mouse.config.bleaching * (1.0 - np.exp(-np.arange(frames) / (RATE_HZ * BLEACH_TAU_S)))


def noise_variance(mouse: Mouse, *, light: NDArray[np.floating]) -> NDArray[np.floating]:
    """Variance of one frame's fluorescence at this expected light (soma and neuropil): photons and electronics."""
    gain = light.dtype.type(mouse.photon_gain)
    floor = light.dtype.type((READ_NOISE * mouse.config.brightness) ** 2)
    variance: NDArray[np.floating] = gain * np.maximum(light, light.dtype.type(0.0)) + floor
    return variance


def _slow(rng: np.random.Generator, *, frames: int, columns: int, tau_s: float) -> NDArray[np.float32]:
    return wander(rng, shape=(frames, columns), keep=keep_a_frame(tau_s))


def _motion(rng: np.random.Generator, *, frames: int, per_minute: float) -> NDArray[np.float32]:
    """Loss of light by movement out of focus, the same for every neuron up to its weight: a small wobble all the time,
    and 5 to 20 % for 0.1 to 0.6 s now and then.
    """
    loss = np.zeros(frames)
    for start in np.sort(rng.integers(0, frames, rng.poisson(per_minute * frames / (60.0 * RATE_HZ)))):
        length, depth = int(rng.integers(3, 19)), rng.uniform(0.05, 0.2)
        bump = depth * np.sin(np.pi * (np.arange(length) + 1) / (length + 1))
        part = loss[start : start + length]
        np.maximum(part, bump[: len(part)], out=part)
    wobble = JITTER * _slow(rng, frames=frames, columns=1, tau_s=JITTER_TAU_S)[:, 0]
    moved: NDArray[np.float32] = loss.astype(np.float32) + wobble
    return moved
