"""Properties of spike trains: a Poisson process has none of the structure, a bursting one does."""

from __future__ import annotations

import numpy as np
import pytest

from quantformer_training.spike_properties import SpikeSample, spike_properties

ONSET = np.arange(120, 35_000, 90)


def test_poisson_trains_have_no_structure() -> None:
    rng = np.random.default_rng(0)
    found = spike_properties(SpikeSample.of((rng.random((36_000, 20)) < 0.02).astype(np.uint8), onset=ONSET))
    assert found["spikes, rate in Hz"] == pytest.approx(0.6, rel=0.05)
    assert found["spikes, Fano factor of a second"] == pytest.approx(0.98, abs=0.08)
    assert found["spikes, rate after an onset over rate before"] == pytest.approx(1.0, abs=0.1)
    assert abs(found["spikes, pairwise correlation of a second's counts"]) < 0.02
    assert abs(found["spikes, autocorrelation of counts, 1 s"]) < 0.02


def test_shared_bursts_and_responses_show() -> None:
    rng = np.random.default_rng(0)
    chance = np.full((36_000, 20), 0.01)
    chance += 0.06 * np.repeat(rng.random(36_000 // 90) < 0.2, 90)[:, None]
    for f in ONSET:
        chance[f : f + 60] += 0.03
    found = spike_properties(SpikeSample.of((rng.random(chance.shape) < chance).astype(np.uint8), onset=ONSET))
    assert found["spikes, rate after an onset over rate before"] > 1.5
    assert found["spikes, Fano factor of a second"] > 1.1
    assert found["spikes, pairwise correlation of a second's counts"] > 0.1
    assert found["spikes, autocorrelation of counts, 1 s"] > 0.1


def test_at_most_one_spike_a_frame_counts() -> None:
    many = SpikeSample.of(np.full((1_800, 1), 7, np.uint8), onset=np.array([60]))
    assert (many.counts == 30.0).all()
