"""Properties of spike trains that simulated ones should share, resampled over neurons and minutes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

#: Frames of a bin (about a second) and bins of a block that is resampled as a whole.
BIN, BLOCK = 30, 60
LAGS_S = (1, 2, 5)

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class SpikeSample:
    """Counts ``(blocks, bins, neurons)`` in bins of 30 frames, and around onsets the counts of the second ``before`` and
    the mean a second of the two ``after``, ``(trials, neurons)``.
    """

    counts: Floats
    before: Floats
    after: Floats

    @classmethod
    def of(cls, spikes: NDArray[np.integer], *, onset: NDArray[np.int64]) -> SpikeSample:
        """From spikes ``(frames, neurons)``, of which at most one a frame counts, as inferred trains have them."""
        blocks = len(spikes) // (BIN * BLOCK)
        single = np.minimum(spikes, 1).astype(np.uint8)
        counts = single[: blocks * BIN * BLOCK].reshape(blocks, BLOCK, BIN, -1).sum(axis=2, dtype=np.float64)
        before = np.stack([single[f - BIN : f].sum(axis=0, dtype=np.float64) for f in onset])
        after = np.stack([single[f : f + 2 * BIN].sum(axis=0, dtype=np.float64) / 2.0 for f in onset])
        return cls(counts=counts, before=before, after=after)

    def resampled(self, rng: np.random.Generator) -> SpikeSample:
        """Blocks, trials and neurons drawn with replacement."""
        block, trial = (
            rng.integers(0, len(self.counts), len(self.counts)),
            rng.integers(0, len(self.before), len(self.before)),
        )
        neuron = rng.integers(0, self.counts.shape[2], self.counts.shape[2])
        return replace(
            self,
            counts=self.counts[block][:, :, neuron],
            before=self.before[trial][:, neuron],
            after=self.after[trial][:, neuron],
        )


def spike_properties(of: SpikeSample) -> dict[str, float]:
    """Every property by name."""
    flat = of.counts.reshape(-1, of.counts.shape[2])
    rate = flat.mean(axis=0)
    spoken = rate > 0
    found = {
        "spikes, rate in Hz": float(rate.mean()),
        "spikes, rate over neurons, sd of log": float(np.log(rate[spoken]).std()),
        "spikes, rate after an onset over rate before": float(of.after.mean() / of.before.mean()),
    }
    variance = flat.var(axis=0)
    found["spikes, Fano factor of a second"] = float(np.median(variance[spoken] / rate[spoken]))
    centred = of.counts - rate
    for lag in LAGS_S:
        product = (centred[:, lag:] * centred[:, :-lag]).mean(axis=(0, 1))
        found[f"spikes, autocorrelation of counts, {lag} s"] = float(np.mean(product[spoken] / variance[spoken]))
    scaled = (flat - rate)[:, spoken] / np.sqrt(variance[spoken])
    correlation = scaled.T @ scaled / len(scaled)
    # A neuron drawn twice is no pair.
    other = np.triu(np.abs(correlation) < 1.0 - 1e-9, k=1)
    found["spikes, pairwise correlation of a second's counts"] = float(correlation[other].mean())
    population = of.counts.mean(axis=2) - flat.mean()
    lagged = (population[:, 1:] * population[:, :-1]).mean()
    found["spikes, autocorrelation of the population's counts, 1 s"] = float(lagged / (population**2).mean())
    return found
