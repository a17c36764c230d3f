"""Tests of pre-training: which frames it reads, that it learns, and a file that is whole or refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_model import CONFIG, tiny_pretrained
from small_recording import small_recording

from quantformer.errors import DataError, RecordingError
from quantformer.labels import LabelRule
from quantformer.patches import to_patches
from quantformer.recording import Recording
from quantformer.signal import SignalRecipe
from quantformer_training.loop import LoopConfig, Progress, load_checkpoint, save_checkpoint
from quantformer_training.pretrain import (
    PRETRAINED,
    Pretrained,
    Windows,
    load_pretrained,
    mean_code_patches,
    pretrain,
    random_windows,
    save_pretrained,
    whole,
)
from quantformer_training.splits import Split, split_by_time

RECIPE, RULE = SignalRecipe(), LabelRule()
LOOP = LoopConfig(epochs=2, learning_rate=3e-3)


class Stopped(Exception):
    """An interruption."""


def quiet(progress: Progress) -> None:
    assert np.isfinite(progress.loss)


def windows(recording: Recording, *, split: Split | None = None, part: str = "train", count: int = 120, seed: int = 0) -> Windows:
    return random_windows(
        recording, split=split or whole(recording), part=part, count=count, recipe=RECIPE, rule=RULE, seed=seed
    )


def made_of(train: Windows, validation: Windows, *, loop: LoopConfig = LOOP, checkpoint: Path | None = None) -> Pretrained:
    return pretrain(
        train=train, validation=validation, config=CONFIG, loop=loop, report=quiet, checkpoint=checkpoint
    )


@pytest.fixture(scope="module")
def parts() -> tuple[Windows, Windows]:
    recording = small_recording()
    return windows(recording), windows(recording, count=40, seed=1)


def test_windows_are_those_of_trials_at_random_moments() -> None:
    recording = small_recording()
    found = windows(recording, count=100)
    assert found.dff.shape == (100, 160)
    assert found.dff.dtype == np.float32
    # F0 is the mean of the last 60 baseline frames, so dF/F there has mean zero.
    np.testing.assert_allclose(found.dff[:, 36:96].mean(1), 0.0, atol=1e-5)
    assert np.array_equal(found.active, found.dff[:, 96:156].mean(1, dtype=np.float64) >= 0.1)
    assert 0 < found.active.sum() < 100
    assert np.array_equal(windows(recording, count=100).dff, found.dff)
    assert not np.array_equal(windows(recording, count=100, seed=5).dff, found.dff)


@pytest.mark.parametrize("part", ["train", "validation"])
@pytest.mark.parametrize("rate_hz", [30.0, 45.0])
def test_windows_of_a_part_read_no_frame_of_another(part: str, rate_hz: float) -> None:
    recording = small_recording(rate_hz=rate_hz)
    split = split_by_time(recording, recipe=RECIPE, train_trials=30)
    inside = np.zeros(recording.frames, bool)
    for low, high in (*split.spans(part), *split.train):
        inside[low:high] = True
    changed = recording.fluorescence.copy()
    changed[~inside] = np.nan
    poisoned = dataclasses.replace(recording, fluorescence=changed)
    one, other = (windows(made, split=split, part=part) for made in (recording, poisoned))
    assert one.dff.tobytes() == other.dff.tobytes()
    assert len(one.dff) > 50


def test_a_part_too_short_for_a_window_is_named() -> None:
    recording = small_recording()
    with pytest.raises(RecordingError, match=r"small\.npz: no span of validation holds a window of 160 frames"):
        windows(recording, split=Split(train=((0, 900),), validation=((900, 1000),), test=()), part="validation")


def test_a_recording_without_a_usable_window_is_named_with_the_reason() -> None:
    recording = small_recording()
    dark = dataclasses.replace(recording, fluorescence=np.zeros_like(recording.fluorescence))
    with pytest.raises(RecordingError, match=r"small\.npz: none of 40 random windows of train is usable.*F0 at or below"):
        windows(dark)


def test_it_learns(parts: tuple[Windows, Windows]) -> None:
    seen: list[Progress] = []
    made = pretrain(
        train=parts[0], validation=parts[1], config=CONFIG, loop=dataclasses.replace(LOOP, epochs=12), report=seen.append
    )
    assert seen[-1].validation < 0.7 * seen[0].validation
    assert made.result.best_validation == min(progress.validation for progress in seen)
    assert made.signal_scale == pytest.approx(float(np.median(parts[0].dff.std(axis=1))))
    codes = made.autoencoder.codes(torch.from_numpy(parts[1].dff / made.signal_scale), patch_frames=16)
    assert len(torch.unique(codes)) >= 3, "one code for everything"
    # Encoder and codes are drawn to each other: without their losses the distance exceeds the encoder's own variance.
    patches = to_patches(torch.from_numpy(parts[1].dff / made.signal_scale), patch_frames=16)
    encoded = made.autoencoder.encoder(patches)
    distance = (encoded - made.autoencoder.codebook.codebook[codes]).square().mean()
    assert distance < 0.8 * encoded.var(dim=(0, 1)).mean()


def test_codes_stand_for_their_mean_patch(parts: tuple[Windows, Windows]) -> None:
    frozen = tiny_pretrained().autoencoder
    data = torch.from_numpy(parts[0].dff)
    codes = frozen.codes(data, patch_frames=16).flatten().numpy()
    patches = to_patches(data, patch_frames=16).flatten(0, 1).numpy()
    found = mean_code_patches(frozen, data, config=CONFIG)
    for code in range(CONFIG.codes):
        expected = patches[codes == code].mean(0) if (codes == code).any() else np.zeros(16)
        np.testing.assert_allclose(found[code].numpy(), expected, atol=1e-5)


def test_constant_traces_are_learned_from_without_harm() -> None:
    flat = Windows(dff=np.zeros((40, 160), np.float32), active=np.zeros(40, bool))
    made = made_of(flat, flat)
    assert made.signal_scale == 1.0
    assert np.isfinite(made.result.best_validation)


def test_an_interrupted_run_resumes_to_the_same_bits(parts: tuple[Windows, Windows], tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        pretrain(
            train=parts[0], validation=parts[1], config=CONFIG, loop=LOOP, report=stop, checkpoint=tmp_path / "p.pt"
        )
    resumed, straight = made_of(*parts, checkpoint=tmp_path / "p.pt"), made_of(*parts)
    for name, value in straight.autoencoder.state_dict().items():
        assert torch.equal(value, resumed.autoencoder.state_dict()[name]), name
    assert torch.equal(straight.code_patch, resumed.code_patch)
    assert straight.autoencoder.codebook.digest() == resumed.autoencoder.codebook.digest()


def test_a_checkpoint_of_other_windows_is_refused(parts: tuple[Windows, Windows], tmp_path: Path) -> None:
    made_of(*parts, checkpoint=tmp_path / "p.pt")
    train = Windows(dff=parts[0].dff[::-1].copy(), active=parts[0].active[::-1].copy())
    with pytest.raises(DataError, match="another configuration or data"):
        made_of(train, parts[1], checkpoint=tmp_path / "p.pt")


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    made = tiny_pretrained()
    save_pretrained(made, tmp_path)
    found = load_pretrained(tmp_path)
    assert (found.config, found.signal_scale, found.result) == (made.config, made.signal_scale, made.result)
    assert torch.equal(found.code_patch, made.code_patch)
    trace = torch.randn(3, 160)
    codes = found.autoencoder.codes(trace, patch_frames=16)
    assert torch.equal(codes, made.autoencoder.codes(trace, patch_frames=16))
    vectors = found.autoencoder.codebook.codebook[codes]
    assert torch.equal(found.autoencoder.decode(vectors), made.autoencoder.decode(vectors))
    assert not any(parameter.requires_grad for parameter in found.autoencoder.parameters())
    assert not found.autoencoder.training


def test_nothing_there_is_said_with_its_cure(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist; make it with 'quantformer pretrain"):
        load_pretrained(tmp_path)


HARMS: dict[str, dict[str, Any]] = {
    "no weights": {"autoencoder": {}},
    "weights of nothing": {"autoencoder": {"codebook.codebook": torch.zeros(8, 16)}},
    "other codebook": {"codebook_sha256": "0" * 64},
    "huge network": {"config": {"d": 10**9}},
    "other width": {"config": {"d": 32}},
    "a size of text": {"config": {"layers": "many"}},
    "an unknown size": {"config": {"colour": 3}},
    "too many layers": {"config": {"layers": 10**6}},
    "no scale": {"signal_scale": float("nan")},
    "negative scale": {"signal_scale": -1.0},
    "patches of another shape": {"code_patch": torch.zeros(8, 15)},
    "patches of text": {"code_patch": "none"},
    "an odd result": {"result": {"epoch": 3}},
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_file_that_contradicts_itself_is_refused(tmp_path: Path, harm: str) -> None:
    save_pretrained(tiny_pretrained(), tmp_path)
    state = load_checkpoint(tmp_path / PRETRAINED, fingerprint=PRETRAINED)
    for name, change in HARMS[harm].items():
        state[name] = {**state[name], **change} if name == "config" else change
    save_checkpoint(tmp_path / PRETRAINED, state, fingerprint=PRETRAINED)
    with pytest.raises(DataError, match=r"pretrained\.pt.*make it anew"):
        load_pretrained(tmp_path)


def test_a_checkpoint_of_training_is_not_a_pretrained_file(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / PRETRAINED, {}, fingerprint="something else")
    with pytest.raises(DataError, match="another configuration"):
        load_pretrained(tmp_path)
