"""Tests of adding neurons to a bundle: the network is untouched, and the new neurons are known by their own trials."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import GRATING, NEURONS

from quantformer.bundle import load_bundle
from quantformer.errors import BundleError, RecordingError
from quantformer.recording import Provenance, Recording, StimulusTable
from quantformer_training.extending import extend


def _recording(*, responds_to: float = 90.0, trials: int = 48) -> Recording:
    """Two new neurons; the first answers one direction with a dF/F of about 1, the second never."""
    rng = np.random.default_rng(0)
    frames = 100 + 200 * trials
    stamps = np.arange(frames) / 30.0
    direction = np.tile(np.arange(0, 360, 45.0), trials // 8 + 1)[:trials]
    onset = 100 + 200 * np.arange(trials)
    fluorescence = 100.0 + rng.normal(0, 1, (frames, 2))
    for frame in onset[direction == responds_to]:
        fluorescence[frame : frame + 64, 0] += 100.0
    return Recording(
        fluorescence=fluorescence.astype(np.float32),
        timestamps_s=stamps,
        neuron_ids=("new-a", "new-b"),
        stimuli=StimulusTable.build(
            onset_s=stamps[onset],
            duration_s=np.full(trials, 2.0),
            category=[GRATING] * trials,
            stimulus_id=[f"dir={int(angle):03d}" for angle in direction],
            features={"direction_deg": direction},
        ),
        provenance=Provenance(origin="simulated", source="test"),
    )


def test_an_extended_bundle_keeps_the_network_and_learns_the_new_tuning(tiny_bundle_path: Path, tmp_path: Path) -> None:
    old = load_bundle(tiny_bundle_path)
    new = extend(old, _recording(), path=tmp_path / "extended")
    assert new.onnx_path.read_bytes() == old.onnx_path.read_bytes()
    before = old.neurons(NEURONS, unknown="refuse").vectors
    np.testing.assert_array_equal(new.neurons(NEURONS, unknown="refuse").vectors, before)
    rows = new.neurons(["new-a", "new-b"], unknown="refuse")
    assert rows.known.all()
    recording = _recording()
    np.testing.assert_array_equal(rows.usual_f0, np.median(recording.fluorescence, axis=0).astype(np.float64))
    np.testing.assert_array_equal(new.vectors.usual_f0[:-2], old.vectors.usual_f0)
    assert not rows.population.loading.any(), "the network knows the level of its own population alone"
    assert (rows.population.noise > 0).all()
    np.testing.assert_array_equal(new.vectors.loading[:-2], old.vectors.loading)
    assert new.manifest.provenance["extended_from"] == old.hash
    d = new.manifest.d
    features = {angle: new.stimulus(f"dir={angle:03d}")[0, d:] for angle in (0, 90)}
    width = features[0].size  # the second quantity is the rate at a stimulus
    rate = {
        (neuron, angle): float(rows.vectors[neuron, 0, d + width : d + 2 * width] @ features[angle])
        for neuron in (0, 1)
        for angle in (0, 90)
    }
    # Six trials against a mean neuron that counts for ten: the pull leaves about a third of the difference.
    assert rate[0, 90] - rate[0, 0] > rate[1, 90] - rate[1, 0] + 0.2


def test_a_neuron_already_there_is_refused(tiny_bundle_path: Path, tmp_path: Path) -> None:
    recording = replace(_recording(), neuron_ids=(NEURONS[0], "new-b"))
    with pytest.raises(BundleError, match=NEURONS[0]):
        extend(load_bundle(tiny_bundle_path), recording, path=tmp_path / "extended")
    assert list(tmp_path.iterdir()) == []


def test_a_recording_without_usable_presentations_is_refused(tiny_bundle_path: Path, tmp_path: Path) -> None:
    recording = replace(_recording(), fluorescence=np.full((100 + 200 * 48, 2), np.nan, np.float32))
    with pytest.raises(RecordingError, match="no usable presentation"):
        extend(load_bundle(tiny_bundle_path), recording, path=tmp_path / "extended")
