"""Properties of recordings: each finds what was put into a made-up one."""

from __future__ import annotations

import numpy as np
import pytest

from quantformer.recording import Provenance, Recording, StimulusTable
from quantformer_training.properties import Sample, properties, sample


def made(*, shared: float = 0.0, neurons: int = 12, seed: int = 0) -> tuple[Recording, np.ndarray]:
    """Flat traces at 100 with white noise of 5, slow waves, and events of a half dF/F at a third of 90 onsets."""
    rng = np.random.default_rng(seed)
    frames = 9_500
    trace = 100.0 + 5.0 * rng.standard_normal((frames, neurons))
    onset = np.arange(120, 120 + 90 * 100, 100)
    for f in onset:
        together = rng.random() < 1 / 3
        each = rng.random(neurons) < 1 / 3
        trace[f : f + 60] += 50.0 * np.where(rng.random(neurons) < shared, together, each)
    recording = Recording(
        fluorescence=trace.astype(np.float32),
        timestamps_s=np.arange(frames) / 30.0,
        neuron_ids=tuple(str(n) for n in range(neurons)),
        stimuli=StimulusTable.empty(),
        provenance=Provenance(origin="simulated", source="test"),
        signal="corrected",
    )
    return recording, onset


def cut(recording: Recording, onset: np.ndarray) -> Sample:
    return sample(recording, real=onset, pseudo=onset + 70, condition=np.arange(len(onset)) % 4, train_trials=60)


def test_properties_find_what_was_put_in() -> None:
    recording, onset = made()
    found = properties(cut(recording, onset))
    assert found["active fraction, real onsets"] == pytest.approx(1 / 3, abs=0.05)
    # Half of the next event lies in a pseudo-onset's window, most of its own in F0: active is only "next and not own".
    assert found["active fraction, pseudo-onsets"] == pytest.approx(2 / 9, abs=0.05)
    assert found["noise of one frame, dF/F"] == pytest.approx(0.05, rel=0.05)
    for name, value in found.items():
        if name.startswith(("pooled AUROC", "within-neuron AUROC")):
            assert value == pytest.approx(0.5, abs=0.12), name
    assert found["pairwise noise correlation"] == pytest.approx(0.0, abs=0.05)
    lags = [found[f"autocorrelation of dF/F, lag {lag}"] for lag in (1, 5, 15, 30)]
    assert lags == sorted(lags, reverse=True)


def test_shared_events_show_as_noise_correlation() -> None:
    recording, onset = made(shared=0.8)
    assert properties(cut(recording, onset))["pairwise noise correlation"] > 0.4


def test_resampling_keeps_the_shapes_and_moves_the_values() -> None:
    recording, onset = made()
    of = cut(recording, onset)
    rng = np.random.default_rng(0)
    drawn = [properties(of.resampled(rng))["active fraction, real onsets"] for _ in range(50)]
    assert of.resampled(rng).area.shape == of.area.shape
    assert np.std(drawn) > 0.005
    assert np.mean(drawn) == pytest.approx(1 / 3, abs=0.05)
