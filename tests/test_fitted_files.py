"""Tests of fitted models on disk: what is loaded answers as what was saved, and what does not belong together is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_fit import fitted, packed
from small_recording import small_recording

from quantformer.errors import DataError
from quantformer_training.arrays import save_recording
from quantformer_training.fit import Fitted
from quantformer_training.fitted_files import FACTS, WEIGHTS, RecordingFile, is_fitted, load_fitted, save_fitted
from quantformer_training.loop import load_checkpoint, save_checkpoint
from quantformer_training.packing import write_fitted


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    made = fitted()
    # The recording that `fitted` learned from.
    save_recording(small_recording(neurons=4, period_s=5.0), folder / "small.npz")
    save_fitted(made, folder / "run", recording=RecordingFile(path=str(folder / "small.npz")))
    return folder / "run"


@pytest.fixture(scope="module")
def loaded(saved: Path) -> Fitted:
    return load_fitted(saved)


def test_what_is_loaded_answers_to_the_bit_as_what_was_saved(loaded: Fitted) -> None:
    made = fitted()
    for part in ("validation", "test"):
        ours = loaded.model.predict(loaded.source(loaded.real[part]).at_lead(3))
        theirs = made.model.predict(made.source(made.real[part]).at_lead(3))
        for name, value in vars(theirs).items():
            assert np.array_equal(getattr(ours, name), value), (part, name)
    assert len(ours.logit) > 10


def test_everything_else_comes_back_too(loaded: Fitted) -> None:
    made = fitted()
    assert (loaded.config, vars(loaded.split), loaded.vocabulary.neuron_ids) == (
        made.config, vars(made.split), made.vocabulary.neuron_ids,
    )  # fmt: skip
    assert vars(loaded.calibrated) == vars(made.calibrated)
    assert loaded.model.results == made.model.results
    assert loaded.pretrained.result == made.pretrained.result
    for trials in ("real", "pseudo"):
        for part, expected in getattr(made, trials).items():
            found = getattr(loaded, trials)[part]
            assert np.array_equal(found.baseline, expected.baseline)
            assert np.array_equal(found.active, expected.active)


def test_it_is_exported_as_the_one_in_memory(loaded: Fitted, tmp_path: Path) -> None:
    assert write_fitted(loaded, tmp_path / "one").manifest.files == packed().manifest.files


def test_a_directory_is_told_from_others(saved: Path, tmp_path: Path) -> None:
    assert is_fitted(saved)
    assert not is_fitted(tmp_path)
    with pytest.raises(DataError, match=r"fitted\.json cannot be read.*made by 'quantformer finetune'"):
        load_fitted(tmp_path)


def edit(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))


HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights of another run": (lambda d: save_checkpoint(d / WEIGHTS, {}, fingerprint=WEIGHTS), "not the file that"),
    "no weights": (lambda d: (d / WEIGHTS).unlink(), "is missing"),
    "no auto-encoder": (lambda d: (d / "pretrained.pt").unlink(), "does not exist"),
    "a newer schema": (lambda d: edit(d / FACTS, lambda f: f.update(schema=99)), "schema is 99.*update quantformer"),
    "an older schema": (lambda d: edit(d / FACTS, lambda f: f.update(schema=2)), "schema is 2, .* 'quantformer finetune' again"),
    "another format": (lambda d: edit(d / FACTS, lambda f: f.update(format="x")), "format is 'x'"),
    "an unknown field": (lambda d: edit(d / FACTS, lambda f: f.update(colour=3)), "unknown field `colour`"),
    "a missing field": (lambda d: edit(d / FACTS, lambda f: f.pop("split")), "missing required field `split`"),
    "a strength that is none": (lambda d: edit(d / FACTS, lambda f: f.update(tuning_strengths=[1, -1])), "strengths are"),
    "text": (lambda d: (d / FACTS).write_text("dear reader"), "does not describe a fitted model"),
    "other neurons": (
        lambda d: edit(d / FACTS, lambda f: f["vocabulary"].update(neuron_ids=["a"])),  # type: ignore[attr-defined]
        "does not fit fitted.json",
    ),
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_does_not_belong_together_is_refused(saved: Path, tmp_path: Path, harm: str) -> None:
    shutil.copytree(saved, tmp_path / "run")
    do, says = HARMS[harm]
    do(tmp_path / "run")
    with pytest.raises(DataError, match=says):
        load_fitted(tmp_path / "run")


def test_a_flipped_bit_of_a_weight_is_refused(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "run")
    content = bytearray((tmp_path / "run" / WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 4
    (tmp_path / "run" / WEIGHTS).write_bytes(content)
    with pytest.raises(DataError, match="not the file that"):
        load_fitted(tmp_path / "run")


def test_another_recording_is_refused_and_one_that_moved_is_found(saved: Path, loaded: Fitted, tmp_path: Path) -> None:
    save_recording(small_recording(neurons=4, period_s=5.0, seed=1), tmp_path / "other.npz")
    with pytest.raises(DataError, match=r"other\.npz is not the recording that"):
        load_fitted(saved, recording=RecordingFile(path=str(tmp_path / "other.npz")))
    shutil.copy(saved.parent / "small.npz", tmp_path / "moved.npz")
    moved = load_fitted(saved, recording=RecordingFile(path=str(tmp_path / "moved.npz")))
    assert np.array_equal(moved.reader.trace, loaded.reader.trace)


def test_nothing_in_the_files_is_code(saved: Path) -> None:
    state = load_checkpoint(saved / WEIGHTS, fingerprint=WEIGHTS)
    assert set(state) == {"schema", "fingerprint", "forecaster", "tokens", "tuning", "population_tuning"}
    assert all(isinstance(value, torch.Tensor) for value in state["forecaster"].values())
    assert dataclasses.asdict(RecordingFile(path="a")).keys() == json.loads((saved / FACTS).read_text())["recording"].keys()
