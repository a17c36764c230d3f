"""Tests of the way from a fitted model to a bundle: the engine is told exactly what training was."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from small_fit import fitted, packed, silent, tiny_config
from small_recording import GRATING, small_recording

from quantformer.bundle import Bundle, load_bundle
from quantformer.config import F0_LEVELS
from quantformer.errors import BundleError
from quantformer.population_level import joined_level
from quantformer.recording import Recording, StimulusTable
from quantformer.signal import SignalRecipe, f0_level, onset_frames
from quantformer.vocabulary import NOTHING, ONGOING
from quantformer_training import packing
from quantformer_training.calibrate import probability
from quantformer_training.export import GraphInputs, run_graph
from quantformer_training.fit import fingerprint, fit
from quantformer_training.packing import _phases, seen_ranges, vectors_of, write_fitted
from quantformer_training.splits import Split, split_by_time
from quantformer_training.trials import Trials


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return packed()


def level_of(trials: Trials, usual_f0: np.ndarray) -> np.ndarray:
    """Of every neuron at every moment, one after the other."""
    own = f0_level(trials.f0, usual_f0).reshape(trials.f0.size, -1)
    return joined_level(own, np.repeat(trials.population, trials.f0.shape[1], axis=0))


def asked(bundle: Bundle, *, unknown: bool = False) -> tuple[GraphInputs, np.ndarray]:
    """The test part as the engine would ask it, and which rows are valid."""
    trials = fitted().real["test"]
    n, neurons = trials.valid.shape
    ids = [f"stranger {i}" for i in range(neurons)] if unknown else bundle.manifest.neuron_ids
    known = bundle.neurons(ids, unknown="mark")
    assert known.known.all() != unknown
    inputs = GraphInputs(
        baseline=trials.baseline.reshape(n * neurons, -1),
        level=level_of(trials, known.usual_f0),
        neuron=np.tile(known.vectors, (n, 1, 1)),
        stimulus=np.stack([bundle.stimulus(name) for name in trials.moments.stimulus_id]),
        row_neuron=np.arange(n * neurons),
        row_stimulus=np.repeat(np.arange(n), neurons),
    )
    return inputs, trials.valid.reshape(-1)


@pytest.mark.parametrize("unknown", [False, True])
def test_the_graph_on_the_bundles_vectors_is_the_model_that_was_trained(bundle: Bundle, unknown: bool) -> None:
    made = fitted()
    rows = made.source(made.real["test"]).at_lead(0)
    if unknown:
        nobody = torch.full_like(rows.neuron, -1)
        level = torch.cat([torch.zeros(len(rows), F0_LEVELS), rows.level[:, F0_LEVELS:]], dim=1)
        rows = dataclasses.replace(rows, neuron=nobody, tuning=rows.population_tuning, level=level)
    expected = made.model.predict(rows)
    inputs, valid = asked(bundle, unknown=unknown)
    logit, response, spread = run_graph(bundle.graph, inputs)
    np.testing.assert_allclose(logit[valid], expected.logit, atol=1e-4)
    np.testing.assert_allclose(response[valid], expected.response, atol=1e-4)
    np.testing.assert_allclose(spread[valid], expected.spread, atol=1e-4)
    assert np.ptp(expected.logit) > 0.1, "every answer is alike: nothing is tested"


def test_pseudo_onsets_are_asked_as_they_were_trained(bundle: Bundle) -> None:
    made = fitted()
    trials = made.pseudo["test"]
    expected = made.model.predict(made.source(trials).at_lead(0))
    moments = trials.moments
    stimuli = [
        bundle.stimulus(NOTHING)
        if category == NOTHING
        else bundle.stimulus_from_features(category=category, features=features)
        for category, features in zip(moments.category, moments.features, strict=True)
    ]
    n, neurons = trials.valid.shape
    known = bundle.neurons(bundle.manifest.neuron_ids, unknown="refuse")
    logit, _, _ = run_graph(
        bundle.graph,
        GraphInputs(
            baseline=trials.baseline.reshape(n * neurons, -1),
            level=level_of(trials, known.usual_f0),
            neuron=np.tile(known.vectors, (n, 1, 1)),
            stimulus=np.stack(stimuli),
            row_neuron=np.arange(n * neurons),
            row_stimulus=np.repeat(np.arange(n), neurons),
        ),
    )
    np.testing.assert_allclose(logit[trials.valid.reshape(-1)], expected.logit, atol=1e-4)
    assert {name.startswith(ONGOING) for name in moments.category} == {True, False}


def test_the_manifest_says_what_was_done(bundle: Bundle) -> None:
    made, manifest = fitted(), bundle.manifest
    assert (manifest.d, manifest.codes, manifest.preset) == (64, 32, "small")
    assert manifest.signal == SignalRecipe()
    assert manifest.signal_scale == pytest.approx(made.pretrained.signal_scale)
    assert manifest.codebook_sha256 == made.model.forecaster.teacher.codebook.digest()
    assert manifest.label.definition == "signed"
    assert manifest.label.frames == {GRATING: 60, NOTHING: 60}
    assert manifest.neuron_ids == made.reader.recording.neuron_ids
    assert manifest.calibration == made.calibrated.calibration
    assert manifest.interval == made.calibrated.interval
    assert manifest.thresholds == made.calibrated.thresholds
    assert manifest.skill_by_lead == made.calibrated.skill_by_lead
    assert manifest.parity.rows == 4 * 5
    assert max(manifest.parity.logit, manifest.parity.response, manifest.parity.spread) <= 1e-4
    assert manifest.metrics == {"auroc": 0.75}, "what is undefined is left out, for JSON has no NaN"
    assert manifest.provenance["source"] == "small.npz"
    assert manifest.provenance["recording_sha256"] == fingerprint(made.reader.recording)
    assert manifest.provenance["test_frames"] == str(made.split.test)
    assert set(manifest.stimuli) == {NOTHING, "dir=000", "dir=090", "dir=180", "dir=270"}
    assert manifest.stimuli["dir=090"].features == {"direction_deg": 90.0}


def test_probabilities_are_calibrated_as_in_training(bundle: Bundle) -> None:
    logit = np.linspace(-8.0, 8.0, 33, dtype=np.float32)
    np.testing.assert_allclose(bundle.probability(logit), probability(logit, bundle.manifest.calibration), atol=1e-6)


def test_guards_are_those_of_training(bundle: Bundle) -> None:
    made = fitted()
    train = made.real["train"]
    found = bundle.neurons(bundle.manifest.neuron_ids, unknown="refuse")
    np.testing.assert_array_equal(found.f0_minimum, made.reader.f0_minimum)
    np.testing.assert_array_equal(found.usual_f0, made.reader.usual_f0)
    assert (found.usual_f0 > 0).all()
    np.testing.assert_array_equal(found.f0_range, np.stack([train.f0.min(0), train.f0.max(0)], axis=1))


def test_ranges_leave_invalid_windows_out() -> None:
    train = fitted().real["train"]
    valid = train.valid.copy()
    valid[3], valid[:, 2] = False, False
    f0, noise = seen_ranges(dataclasses.replace(train, valid=valid))
    assert f0[2].tolist() == noise[2].tolist() == [0.0, 0.0]
    rest = np.delete(train.f0[:, 0], 3)
    assert f0[0].tolist() == [rest.min(), rest.max()]
    step = np.abs(np.diff(np.delete(train.baseline[:, 0], 3, axis=0), axis=-1)).mean(-1)
    np.testing.assert_allclose(noise[0], [step.min(), step.max()], rtol=1e-5)


def test_sizes_are_those_of_the_network_and_not_those_that_its_preset_has_today(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a model that was fitted before a preset changed; here a small one is said to be the paper's."""
    monkeypatch.setattr(packing, "export_graph", lambda _: bundle.graph)  # that of this very fit
    renamed = dataclasses.replace(fitted(), config=dataclasses.replace(fitted().config, preset="paper"))
    made = write_fitted(renamed, tmp_path / "renamed")
    assert made.manifest.preset == "paper"
    assert (made.manifest.d, made.manifest.codes) == (64, 32) != (renamed.config.model.d, renamed.config.model.codes)
    assert dict(made.forms) == dict(bundle.forms)


def test_a_bundle_is_never_overwritten(bundle: Bundle) -> None:
    before = {file.name: file.read_bytes() for file in bundle.path.iterdir()}
    with pytest.raises(BundleError, match="exists; a bundle is never overwritten"):
        write_fitted(fitted(), bundle.path)
    assert {file.name: file.read_bytes() for file in bundle.path.iterdir()} == before
    assert [file.name for file in bundle.path.parent.iterdir()] == ["bundle"]


def test_a_stimulus_that_no_part_holds_is_still_in_the_bundle(tmp_path: Path) -> None:
    """A direction shown once, in a trial that the border between two parts cuts."""
    recording = small_recording(neurons=2)
    split = split_by_time(recording, recipe=SignalRecipe(), train_trials=28)
    held = {row for part in ("train", "validation", "test") for row in _rows(recording, split, part)}
    lost = min(set(range(40)) - held)
    names = list(recording.stimuli.stimulus_id)
    names[lost] = "zz last"
    named = dataclasses.replace(recording, stimuli=dataclasses.replace(recording.stimuli, stimulus_id=tuple(names)))
    made = write_fitted(fit(named, split=split, config=tiny_config(), report=silent), tmp_path / "bundle")
    assert made.manifest.stimuli["zz last"].id_row == 4
    assert np.isfinite(made.stimulus("zz last")).all()


def _rows(recording: Recording, split: Split, part: str) -> list[int]:
    frame = onset_frames(recording.timestamps_s, recording.stimuli.onset_s)
    return np.flatnonzero(split.inside(part, frame - 96, frame + 64)).tolist()


def test_phases_are_the_moments_at_which_stimuli_began() -> None:
    def phases(onset: list[float], blank: list[float]) -> list[str]:
        n = len(onset)
        table = StimulusTable.build(
            onset_s=onset, duration_s=[2.0] * n, category=[GRATING] * n, stimulus_id=["a"] * n, features={"blank": blank}
        )
        return _phases(dataclasses.replace(small_recording(neurons=1), stimuli=table))

    assert phases([5.0, 8.0], [0.0, 0.0]) == ["between", "onset"]
    assert phases([5.0, 7.0], [0.0, 0.0]) == ["onset", "stimulus"]
    assert phases([5.0, 7.0], [1.0, 0.0]) == ["blank", "onset"]
    assert phases([5.0, 30.0], [0.0, 0.0]) == ["onset", "spontaneous"]
    assert phases([5.0], [0.0]) == ["onset"]


def test_vectors_are_float32_and_whole() -> None:
    vectors = vectors_of(fitted())
    in_float64 = ("f0_minimum", "usual_f0", "noise", "usual_activity", "loading", "f0_range", "noise_range")
    for name, array in vectors.tensors().items():
        assert array.dtype == (np.float64 if name in in_float64 else np.float32), name
        assert np.isfinite(array).all(), name


def test_what_was_written_loads_alike(bundle: Bundle) -> None:
    again = load_bundle(bundle.path)
    assert again.hash == bundle.hash
    assert again.manifest == bundle.manifest
    assert again.graph == bundle.graph
