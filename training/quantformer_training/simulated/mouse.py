"""A simulated mouse: what is set, and what is drawn from it once for its neurons."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantformer.errors import UsageError
from quantformer_training.simulated.indicator import INDICATORS, IndicatorName, Kinetics
from quantformer_training.simulated.tuning import Tuning

RATE_HZ = 30.0


@dataclass(frozen=True, kw_only=True)
class MouseConfig:
    """What is chosen about a mouse. Two equal configs make bit for bit the same mouse and sessions.

    ``baseline_information`` is the knob, 0 to 1: how much the frames before an onset tell about the response beyond
    neuron and stimulus. At 0 nothing (docs/simulator.md says what is switched off), at 1 as much as in real recordings.
    ``active_fraction`` is the share of active responses to drifting gratings that the rates are calibrated to.

    Latent state: ``arousal_tau_s`` and ``arousal_depth`` of the shared log gain; ``burst_tau_s`` and ``burst_depth`` of
    each neuron's own, of which ``burst_sharing`` is the correlation between two neurons; ``adaptation`` per recent spike
    and ``adaptation_tau_s``. ``evoked`` scales the stimulus drive against the spontaneous rate.

    Optics: ``brightness`` is the resting fluorescence's median in arbitrary units, ``shot_noise`` the standard deviation
    of one frame's dF/F there; ``drift`` and ``bleaching`` are relative, ``motion_per_minute`` counts transients,
    ``neuropil`` is the neuropil's level relative to the brightness.
    """

    neurons: int = 60
    seed: int = 0
    indicator: IndicatorName = "GCaMP6f"
    baseline_information: float = 1.0
    active_fraction: float = 0.05
    arousal_tau_s: float = 10.0
    arousal_depth: float = 0.6
    burst_tau_s: float = 1.5
    burst_depth: float = 2.0
    burst_sharing: float = 0.12
    adaptation: float = 0.1
    adaptation_tau_s: float = 2.0
    evoked: float = 0.3
    brightness: float = 240.0
    shot_noise: float = 0.05
    drift: float = 0.04
    bleaching: float = 0.08
    motion_per_minute: float = 1.0
    neuropil: float = 0.6

    def __post_init__(self) -> None:
        if self.neurons < 1 or self.seed < 0:
            raise UsageError(
                f"a mouse needs at least one neuron and a seed from 0, found {self.neurons} and {self.seed}"
            )
        if self.indicator not in INDICATORS:
            raise UsageError(f"unknown indicator {self.indicator!r}; expected one of {', '.join(INDICATORS)}")
        if not 0.0 <= self.baseline_information <= 1.0:
            raise UsageError(
                f"baseline_information is {self.baseline_information}, expected 0 (nothing) to 1 (as real)"
            )
        if not 0.0 < self.active_fraction < 0.5:
            raise UsageError(f"active_fraction is {self.active_fraction}, expected more than 0 and less than 0.5")


@dataclass(frozen=True, kw_only=True, eq=False)
class Mouse:
    """The neurons of one mouse; per-neuron arrays are ``(neurons,)`` float64.

    ``rate_scale`` multiplies every rate and is what calibration finds. ``spontaneous_hz`` and the tuning's drive are
    before it; ``suppressed`` is the share of the spontaneous rate that is lost while a stimulus is on. ``resting``
    fluorescence and ``neuropil_level`` are in arbitrary units, as is ``photon_gain`` (variance per unit of fluorescence).
    """

    config: MouseConfig
    neuron_ids: tuple[str, ...]
    tuning: Tuning
    kinetics: Kinetics
    rate_scale: float
    spontaneous_hz: NDArray[np.float64]
    suppressed: NDArray[np.float64]
    arousal_weight: NDArray[np.float64]
    resting: NDArray[np.float64]
    neuropil_level: NDArray[np.float64]
    neuropil_factor: NDArray[np.float64]
    motion_weight: NDArray[np.float64]
    photon_gain: float

    @property
    def neurons(self) -> int:
        """Number of neurons."""
        return len(self.neuron_ids)


def stream(seed: int, *names: str) -> np.random.Generator:
    """The random stream of one component: independent of every other name's, the same wherever it is asked for."""
    return np.random.default_rng(np.random.SeedSequence([seed, *(zlib.crc32(name.encode()) for name in names)]))


def draw_neurons(config: MouseConfig) -> Mouse:
    """Draw the neurons, with ``rate_scale`` 1; `calibrated_mouse` is what sessions use."""
    count = config.neurons
    rates, optics = stream(config.seed, "rates"), stream(config.seed, "optics")
    resting = config.brightness * np.exp(0.35 * optics.standard_normal(count))
    return Mouse(
        config=config,
        neuron_ids=tuple(f"sim{config.seed}-{k:03d}" for k in range(count)),
        tuning=Tuning.draw(neurons=count, rng=stream(config.seed, "tuning")),
        kinetics=Kinetics.draw(
            INDICATORS[config.indicator], neurons=count, rate_hz=RATE_HZ, rng=stream(config.seed, "kinetics")
        ),
        rate_scale=1.0,
        spontaneous_hz=np.exp(0.65 * rates.standard_normal(count)),
        # Many neurons fall silent under a grating: over the population of `allen_511510667` the rate falls by a fifth.
        suppressed=rates.beta(2.0, 1.0, count),
        arousal_weight=np.clip(1.0 + 0.5 * rates.standard_normal(count), -0.5, 2.5),
        resting=resting,
        neuropil_level=config.neuropil * config.brightness * np.exp(0.25 * optics.standard_normal(count)),
        neuropil_factor=np.clip(0.7 + 0.08 * optics.standard_normal(count), 0.4, 1.0),
        motion_weight=np.clip(1.0 + 0.4 * optics.standard_normal(count), 0.0, 2.0),
        # Shot noise is given at the median neuron: soma and neuropil light together.
        photon_gain=(config.shot_noise * config.brightness) ** 2 / (config.brightness * (1.0 + 0.7 * config.neuropil)),
    )
