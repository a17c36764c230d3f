"""Calcium indicators: from spikes to the fluorescence change that they cause.

A spike raises calcium by a double exponential whose peak is one; the indicator answers with a slightly supralinear,
saturating change. The size and speed of one spike's change follow Chen et al., Nature 499 (2013), for GCaMP6f and 6s
in mouse visual cortex; the decay is longer than theirs for one spike, because bursts outlast single spikes and the
transients of real recordings (held against in docs/simulator.md) do too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

IndicatorName = Literal["GCaMP6f", "GCaMP6s"]


@dataclass(frozen=True, kw_only=True)
class Indicator:
    """One indicator's medians over neurons: time constants in seconds, ``spike_dff`` is dF/F at one spike's peak."""

    name: IndicatorName
    rise_s: float
    decay_s: float
    spike_dff: float


#: Exponent of the answer to calcium, and the calcium (in single-spike peaks) at which it is half saturated.
EXPONENT, HALF_SATURATION = 1.15, 40.0

INDICATORS: dict[IndicatorName, Indicator] = {
    "GCaMP6f": Indicator(name="GCaMP6f", rise_s=0.03, decay_s=0.35, spike_dff=0.14),
    "GCaMP6s": Indicator(name="GCaMP6s", rise_s=0.08, decay_s=1.2, spike_dff=0.35),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Kinetics:
    """Per-neuron indicator, each float64 ``(neurons,)``: the factors by which calcium's slow and fast part decay in one
    frame, the scale that makes one spike peak at one, and dF/F at one spike's peak.
    """

    keep_slow: NDArray[np.float64]
    keep_fast: NDArray[np.float64]
    scale: NDArray[np.float64]
    spike_dff: NDArray[np.float64]

    @classmethod
    def draw(cls, indicator: Indicator, *, neurons: int, rate_hz: float, rng: np.random.Generator) -> Kinetics:
        """Neurons differ: about 15 % in decay, about a factor of two in the size of a spike."""
        decay = indicator.decay_s * np.exp(0.15 * rng.standard_normal(neurons))
        slow = np.exp(-1.0 / (rate_hz * decay))
        fast = np.full(neurons, np.exp(-1.0 / (rate_hz * indicator.rise_s)))
        peak = np.log(np.log(slow) / np.log(fast)) / (np.log(fast) - np.log(slow))
        scale = 1.0 / (slow**peak - fast**peak)
        return cls(
            keep_slow=slow,
            keep_fast=fast,
            scale=scale,
            spike_dff=indicator.spike_dff * np.exp(1.0 * rng.standard_normal(neurons)),
        )

    def calcium(
        self, spikes: NDArray[np.integer], *, kept: NDArray[np.float64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Slow and fast part of calcium, each ``(frames, neurons)``, from counts a frame; nothing before the first.

        ``kept`` ``(frames,)`` multiplies what is left of both at a frame (the fence of `activity`).
        """
        slow, fast = np.empty(spikes.shape, np.float32), np.empty(spikes.shape, np.float32)
        now_slow, now_fast = np.zeros(spikes.shape[1]), np.zeros(spikes.shape[1])
        for t in range(len(spikes)):
            now_slow *= self.keep_slow
            now_fast *= self.keep_fast
            if kept is not None and kept[t] != 1.0:
                now_slow *= kept[t]
                now_fast *= kept[t]
            now_slow += spikes[t]
            now_fast += spikes[t]
            slow[t] = now_slow
            fast[t] = now_fast
        return slow, fast

    def dff(self, slow: NDArray[np.floating], fast: NDArray[np.floating]) -> NDArray[np.floating]:
        """Relative fluorescence change ``(..., neurons)`` of the two parts of calcium; same shape and type."""
        kind = slow.dtype.type
        peaks = np.maximum(self.scale.astype(kind) * (slow - fast), kind(0.0))
        raised = np.power(peaks, kind(EXPONENT))
        saturation = kind(1.0) + raised / kind(HALF_SATURATION**EXPONENT)
        change: NDArray[np.floating] = self.spike_dff.astype(kind) * raised / saturation
        return change
