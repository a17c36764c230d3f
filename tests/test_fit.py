"""Tests of the whole way from a recording to a fitted model, and of what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_fit import fitted, silent, tiny_config
from small_model import tiny_pretrained
from small_recording import GRATING, small_recording

from quantformer.config import PRESETS
from quantformer.errors import DataError, RecordingError, UsageError
from quantformer.recording import Recording
from quantformer.signal import SignalRecipe, onset_frames
from quantformer.vocabulary import NOTHING, ONGOING
from quantformer_training.examples import ExampleSource
from quantformer_training.fit import MOST_STIMULUS_IDS, FitConfig, Fitted, fingerprint, fit, rows_of, vocabulary_of
from quantformer_training.loop import Progress
from quantformer_training.packing import vectors_of, write_fitted
from quantformer_training.pretrain import save_pretrained
from quantformer_training.simulated import MouseConfig, short_session
from quantformer_training.splits import Split, split_by_sub_session, split_by_time

RECIPE = SignalRecipe()


class Stopped(Exception):
    """An interruption."""


def fit_of(recording: Recording, *, split: Split | None = None, train_trials: int = 28, **more: Any) -> Fitted:
    split = split or split_by_time(recording, recipe=RECIPE, train_trials=train_trials)
    return fit(recording, split=split, config=tiny_config(), report=silent, **more)


def with_values(
    recording: Recording, value: float | np.ndarray, *, neuron: int | slice = slice(None), frames: slice = slice(None)
) -> Recording:
    changed = recording.fluorescence.copy()
    changed[frames, neuron] = value
    return dataclasses.replace(recording, fluorescence=changed)


def weights(made: Fitted) -> bytes:
    modules = [made.model.forecaster, *made.model.tokens]
    return b"".join(value.numpy().tobytes() for part in modules for value in part.state_dict().values())


def test_every_part_is_there() -> None:
    made = fitted()
    assert set(made.real) == set(made.pseudo) == {"train", "validation", "test"}
    assert all(trials.valid.any() for trials in made.real.values())
    assert made.model.forecaster.config == PRESETS["small"]
    assert made.tuning.neuron.shape == (4, 10, made.vocabulary.recipe.tuning_width + 4)
    assert 0.0 < made.calibrated.thresholds["default"] < 1.0
    answer = made.model.predict(made.source(made.real["test"]).at_lead(0))
    assert np.isfinite(answer.logit).all()
    assert np.isfinite(answer.response).all()
    assert (answer.spread >= 0).all()


def test_the_test_part_decides_nothing() -> None:
    made = fitted()
    recording = made.reader.recording
    start = made.split.test[0][0]
    rng = np.random.default_rng(0)
    noise = rng.uniform(50.0, 200.0, (recording.frames - start, 4)).astype(np.float32)
    other = fit(with_values(recording, noise, frames=slice(start, None)), split=made.split, config=made.config, report=silent)
    assert weights(other) == weights(made)
    assert other.calibrated.calibration == made.calibrated.calibration
    assert other.calibrated.thresholds == made.calibrated.thresholds
    assert other.tuning.neuron.tobytes() == made.tuning.neuron.tobytes()


def test_validation_decides_and_does_not_train() -> None:
    """Other values in the validation part: the same networks after the same number of epochs, another calibration."""
    recording = small_recording()
    split = split_by_time(recording, recipe=RECIPE, train_trials=28)
    low, high = split.validation[0]
    rng = np.random.default_rng(1)
    gain = rng.uniform(0.5, 1.5, (high - low, 1)).astype(np.float32)
    changed = with_values(recording, recording.fluorescence[low:high] * gain, frames=slice(low, high))
    one, other = (fit_of(made, split=split) for made in (recording, changed))
    for made in (one, other):
        told = made.model.forecaster.spread_weights
        assert told.tolist() == pytest.approx(made.calibrated.spread_weights)
        # What is no weight of a network, but how much validation says that forecasts err.
        told.zero_()
    assert weights(one) == weights(other)
    assert one.calibrated.calibration != other.calibrated.calibration
    assert one.calibrated.spread_weights != other.calibrated.spread_weights


def test_training_is_told_nothing_of_its_own_presentation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Otherwise the network would learn to trust numbers that contain the answer."""
    told: list[dict[str, ExampleSource]] = []

    def spy(*arguments: object, **given: ExampleSource) -> None:
        told.append(given)
        raise Stopped

    monkeypatch.setattr("quantformer_training.fit.finetune", spy)
    save_pretrained(tiny_pretrained(PRESETS["small"]), tmp_path)
    # Six seconds apart, so that no other presentation's windows hold the changed frames.
    recording = small_recording(period_s=6.0)
    frame = int(onset_frames(recording.timestamps_s, recording.stimuli.onset_s)[4])
    # A small change: the strength of the regression, one of five for all neurons together, must not jump.
    after = slice(frame, frame + 64)
    changed = with_values(recording, recording.fluorescence[after] * np.float32(1.02), frames=after)
    for made in (recording, changed):
        with pytest.raises(Stopped):
            fit_of(made, pretrained=tmp_path)
    for kind in ("real", "pseudo", "moments"):
        one, other = told[0][kind], told[1][kind]
        own = one.trials.moments.trial == 4
        assert own.any()
        assert one.tuning[own].tobytes() == other.tuning[own].tobytes()
        assert one.population_tuning[own].tobytes() == other.population_tuning[own].tobytes()
        assert not np.array_equal(one.tuning[~own], other.tuning[~own])


@pytest.mark.parametrize("epochs", [0, 1])
def test_moments_are_read_only_where_they_are_learned_from(
    epochs: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[ExampleSource] = []

    def spy(*arguments: object, moments: ExampleSource, **more: object) -> None:
        told.append(moments)
        raise Stopped

    monkeypatch.setattr("quantformer_training.fit.finetune", spy)
    save_pretrained(tiny_pretrained(PRESETS["small"]), tmp_path)
    recording, config = small_recording(), tiny_config()
    config = dataclasses.replace(config, finetuning=dataclasses.replace(config.finetuning, moment_epochs=epochs))
    split = split_by_time(recording, recipe=RECIPE, train_trials=28)
    with pytest.raises(Stopped):
        fit(recording, split=split, config=config, report=silent, pretrained=tmp_path)
    assert (len(told[0].trials.moments) > 0) == (epochs > 0)


def test_a_refit_learns_from_validation_too() -> None:
    recording = small_recording()
    split = split_by_time(recording, recipe=RECIPE, train_trials=28)
    stages: list[tuple[str, int]] = []
    made = fit(
        recording, split=split, config=tiny_config(epochs=2, refit=True),
        report=lambda progress: stages.append((progress.stage, progress.epochs)),
    )  # fmt: skip
    assert made.split.train == (*split.train, *split.validation)
    assert made.split.test == split.test
    assert len(made.real["train"].moments) > len(fit_of(recording, split=split).real["train"].moments)
    names = list(dict.fromkeys(name for name, _ in stages))
    assert names == [
        "pre-training",
        *("activation at moments", "activation", "forecast at moments", "forecast"),
        *("refit activation at moments", "refit activation", "refit forecast at moments", "refit forecast"),
    ]


def test_a_fit_is_repeatable_and_the_seed_matters() -> None:
    recording = small_recording()
    split = split_by_time(recording, recipe=RECIPE, train_trials=28)
    one, same = (fit_of(recording, split=split) for _ in range(2))
    other = fit(recording, split=split, config=tiny_config(seed=1), report=silent)
    assert weights(one) == weights(same)
    assert weights(one) != weights(other)


@pytest.mark.parametrize("stage", ["pre-training", "activation", "refit forecast"])
def test_an_interrupted_fit_resumes_to_the_same_bits(tmp_path: Path, stage: str) -> None:
    recording = small_recording()
    split = split_by_time(recording, recipe=RECIPE, train_trials=28)
    config = tiny_config(epochs=2, refit=True)

    def stop(progress: Progress) -> None:
        if progress.stage == stage:
            raise Stopped

    with pytest.raises(Stopped):
        fit(recording, split=split, config=config, report=stop, checkpoints=tmp_path)
    resumed = fit(recording, split=split, config=config, report=silent, checkpoints=tmp_path)
    assert weights(resumed) == weights(fit(recording, split=split, config=config, report=silent))


def test_checkpoints_of_another_split_are_refused(tmp_path: Path) -> None:
    # Its networks may have learned from frames that are now the test.
    recording = small_recording()
    save_pretrained(tiny_pretrained(PRESETS["small"]), tmp_path / "teacher")
    common: dict[str, Any] = {"pretrained": tmp_path / "teacher", "checkpoints": tmp_path / "runs"}
    fit_of(recording, train_trials=30, **common)
    with pytest.raises(DataError, match="another configuration or data"):
        fit_of(recording, train_trials=29, **common)


def test_checkpoints_of_another_recording_are_refused(tmp_path: Path) -> None:
    save_pretrained(tiny_pretrained(PRESETS["small"]), tmp_path / "teacher")
    common: dict[str, Any] = {"pretrained": tmp_path / "teacher", "checkpoints": tmp_path / "runs"}
    fit_of(small_recording(), **common)
    with pytest.raises(DataError, match="another configuration or data"):
        fit_of(small_recording(seed=1), **common)


def test_a_given_teacher_is_used_as_it_is(tmp_path: Path) -> None:
    teacher = tiny_pretrained(PRESETS["small"])
    save_pretrained(teacher, tmp_path)
    made = fit_of(small_recording(), pretrained=tmp_path)
    assert made.model.forecaster.teacher.codebook.digest() == teacher.autoencoder.codebook.digest()
    assert made.pretrained.signal_scale == teacher.signal_scale


def test_a_teacher_of_another_size_is_refused(tmp_path: Path) -> None:
    save_pretrained(tiny_pretrained(), tmp_path)
    with pytest.raises(UsageError, match=r"d=16.*the preset 'small' is .*d=64"):
        fit_of(small_recording(), pretrained=tmp_path)


def test_unlabelled_recordings_lend_windows() -> None:
    recording, other = small_recording(), small_recording(neurons=2, seed=9)
    short = other.between(0, 150)
    split = split_by_time(recording, recipe=RECIPE, train_trials=28)
    config = dataclasses.replace(tiny_config(), unlabelled_windows=100)
    alone = fit(recording, split=split, config=config, report=silent)
    lent = fit(recording, split=split, config=config, report=silent, unlabelled=[other, short])
    assert alone.pretrained.autoencoder.codebook.digest() != lent.pretrained.autoencoder.codebook.digest()


def test_one_neuron_is_enough() -> None:
    made = fit_of(small_recording(neurons=1))
    assert made.model.predict(made.source(made.real["test"]).at_lead(0)).logit.shape == (made.real["test"].valid.sum(),)


@pytest.mark.parametrize("value", [np.nan, 0.0, -2.0, 50.0], ids=["nan", "zero", "negative", "constant"])
def test_a_neuron_without_signal_stops_nobody(value: float) -> None:
    made = fit_of(with_values(small_recording(), value, neuron=1))
    assert made.real["train"].valid[:, 1].any() == (value == 50.0)
    vectors = vectors_of(made)
    assert all(np.isfinite(array).all() for array in vectors.tensors().values())
    if value != 50.0:
        # What is known of a silent neuron is what is known of neurons in general.
        silent_one, stranger = vectors.of_neurons(np.array([1, -1]))
        np.testing.assert_allclose(silent_one, stranger, atol=1e-6)


def test_nan_in_places_costs_only_the_windows_that_hold_it() -> None:
    recording = small_recording(neurons=2)
    made = fit_of(with_values(recording, np.nan, neuron=0, frames=slice(600, 640)))
    train = made.real["train"]
    assert 0 < (~train.valid[:, 0]).sum() < 6
    assert train.valid[:, 1].all()
    assert sum(train.rejected[reason] for reason in train.rejected if reason != "window outside the part") == (~train.valid).sum()


def test_a_part_without_a_usable_trial_is_named() -> None:
    recording = small_recording()
    start = split_by_time(recording, recipe=RECIPE, train_trials=28).test[0][0]
    with pytest.raises(RecordingError, match=r"small\.npz: no usable trial in the test part.*F0 at or below"):
        fit_of(with_values(recording, np.nan, frames=slice(start, None)))


@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_part_with_one_class_is_named(part: str) -> None:
    recording = small_recording()
    split = split_by_time(recording, recipe=RECIPE, train_trials=28)
    low, high = split.spans(part)[0]
    with pytest.raises(RecordingError, match=rf"small\.npz: every one of the \d+ neuron-trials of the {part} part is inactive"):
        fit_of(with_values(recording, 100.0, frames=slice(low, high)))


def test_a_recording_without_stimuli_is_refused_by_name() -> None:
    recording = small_recording()
    table = recording.stimuli.select(np.zeros(40, bool))
    with pytest.raises(RecordingError, match=r"small\.npz: no usable trial in the train part"):
        fit_of(
            dataclasses.replace(recording, stimuli=table),
            split=Split(train=((0, 900),), validation=((900, 1800),), test=((1800, 2700),)),
        )


@pytest.mark.parametrize("rate_hz", [20.0, 60.0])
def test_other_rates_are_fitted(rate_hz: float) -> None:
    made = fit_of(small_recording(rate_hz=rate_hz))
    assert made.reader.interpolated
    assert np.isfinite(made.model.predict(made.source(made.real["test"]).at_lead(0)).logit).all()


def test_the_vocabulary_of_a_recording() -> None:
    found = vocabulary_of(small_recording())
    assert found.stimulus_ids == ("dir=000", "dir=090", "dir=180", "dir=270")
    assert set(found.recipe.categories) == {GRATING, ONGOING + GRATING, NOTHING}
    recording = small_recording(neurons=1, trials=MOST_STIMULUS_IDS + 1, period_s=0.3)
    many = dataclasses.replace(recording.stimuli, stimulus_id=tuple(f"s{i}" for i in range(MOST_STIMULUS_IDS + 1)))
    assert vocabulary_of(dataclasses.replace(recording, stimuli=many)).stimulus_ids == ()


def test_plain_rows_name_stimuli_alike_in_every_part() -> None:
    made = fitted()
    rows = {part: rows_of(made.real[part]) for part in ("train", "test")}
    names: dict[str, int] = {}
    for part, found in rows.items():
        for trial, stimulus in zip(found.trial, found.stimulus, strict=True):
            name = made.reader.recording.stimuli.stimulus_id[trial]
            assert names.setdefault(name, stimulus) == stimulus, part
    assert len(set(names.values())) == len(names) == 4


def test_the_fingerprint_sees_every_part_of_a_recording() -> None:
    recording = small_recording()
    table = recording.stimuli
    changes = [
        recording,
        with_values(recording, 1.0, neuron=0, frames=slice(5, 6)),
        dataclasses.replace(recording, timestamps_s=recording.timestamps_s + 1e-6),
        dataclasses.replace(recording, stimuli=dataclasses.replace(table, onset_s=table.onset_s + 1e-6)),
        dataclasses.replace(recording, stimuli=dataclasses.replace(table, stimulus_id=("x", *table.stimulus_id[1:]))),
        dataclasses.replace(
            recording, stimuli=dataclasses.replace(table, features={"direction_deg": table.features["direction_deg"] + 1})
        ),
        dataclasses.replace(recording, neuropil=np.ones_like(recording.fluorescence)),
    ]
    assert len({fingerprint(changed) for changed in changes}) == len(changes)
    assert fingerprint(small_recording()) == fingerprint(recording)


def test_the_budgets_in_use() -> None:
    assert FitConfig.quick().model == FitConfig.full().model == PRESETS["small"]
    assert FitConfig.quick(seed=3).finetuning.activation.seed == 3
    assert FitConfig.full(seed=3).pretraining.seed == 3


@pytest.mark.slow
def test_a_simulated_session_from_end_to_end(tmp_path: Path) -> None:
    session = short_session(MouseConfig(neurons=4, seed=0, active_fraction=0.2), presentations=14)
    recording = session.recording
    split = split_by_sub_session(recording, recipe=RECIPE, category=GRATING)
    made = fit(recording, split=split, config=tiny_config(), report=silent)
    bundle = write_fitted(made, tmp_path / "bundle")
    assert bundle.manifest.neuron_ids == recording.neuron_ids
    assert set(bundle.manifest.stimuli) == {NOTHING, *recording.stimuli.stimulus_id}
