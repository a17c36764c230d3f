"""Pre-training on a study: training frames alone, without whom it was told to leave out, and once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_model  # noqa: F401  # one thread of torch
import torch
from small_recording import GRATING, small_recording
from tiny_study import TINY

from quantformer.errors import DataError, UsageError
from quantformer.recording import Recording, StimulusTable
from quantformer_training.pretrain import PRETRAINED, load_pretrained
from quantformer_training.pretrain_cohort import FIGURES, pretrain_cohort, training_split
from quantformer_training.run_data import split_of
from quantformer_training.store import StoredSession, write_session

SCENES = "natural_scenes"


def interleaved(*, trials: int = 48, scenes_until: int = 48) -> Recording:
    """Gratings, every block of six followed by one of six scenes: each category's spans reach over the other's."""
    made = small_recording(trials=trials, period_s=6.0)
    category = tuple((GRATING, SCENES)[i // 6 % 2 if i < scenes_until else 0] for i in range(trials))
    table = made.stimuli
    stimuli = StimulusTable.build(
        onset_s=table.onset_s,
        duration_s=table.duration_s,
        category=category,
        stimulus_id=table.stimulus_id,
        features={"direction_deg": table.features["direction_deg"]},
    )
    return replace(made, stimuli=stimuli)


def stored(directory: Path, recording: Recording, *, subject: str = "m0", name: str = "s") -> StoredSession:
    named = replace(recording, provenance=replace(recording.provenance, subject=subject))
    return write_session(named, directory / name)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_pretrained(directory).autoencoder.state_dict()


def same(one: Path, other: Path) -> bool:
    found, expected = weights(one), weights(other)
    return all(torch.equal(found[name], expected[name]) for name in expected)


def frames_of(spans: tuple[tuple[int, int], ...], frames: int) -> np.ndarray:
    inside = np.zeros(frames, bool)
    for low, high in spans:
        inside[low:high] = True
    return inside


def made(*sessions: StoredSession, root: Path, out: Path, **options: object) -> dict[str, float]:
    return pretrain_cohort(
        sessions=tuple(str(root / one.name) for one in sessions), effort=TINY, out=str(out), seed=0, **options  # type: ignore[arg-type]
    )


def test_training_spans_hold_no_frame_of_any_categorys_later_parts(tmp_path: Path) -> None:
    session = stored(tmp_path, interleaved())
    split = training_split(session)
    train = frames_of(split.train, session.frames)
    assert train.sum() > 600
    for category in (GRATING, SCENES):
        theirs = split_of(session, category=category)
        for part in ("validation", "test"):
            assert not (train & frames_of(theirs.spans(part), session.frames)).any(), f"{part} of {category}"
        validation = frames_of(split.validation, session.frames)
        assert not (validation & frames_of(theirs.test, session.frames)).any()


@pytest.mark.parametrize("part", ["validation", "test"])
def test_what_happens_in_later_parts_of_any_category_changes_nothing(tmp_path: Path, part: str) -> None:
    recording = interleaved()
    session = stored(tmp_path, recording)
    out = made(session, root=tmp_path, out=tmp_path / "a")
    later = np.zeros(session.frames, bool)
    for category in (GRATING, SCENES):
        later |= frames_of(split_of(session, category=category).spans(part), session.frames)
    traces = recording.fluorescence.copy()
    traces[later] *= np.random.default_rng(1).uniform(1.0, 2.0, traces[later].shape).astype(np.float32)
    changed = stored(tmp_path, replace(recording, fluorescence=traces), name="changed")
    after = made(changed, root=tmp_path, out=tmp_path / "b")
    # One epoch: validation has nothing to choose, it is told.
    assert same(tmp_path / "a", tmp_path / "b")
    assert (out["validation"] == after["validation"]) is (part == "test")
    traces[~later] *= 1.1
    traces[: int(training_split(session).train[0][1])][::7] *= 1.2
    made(stored(tmp_path, replace(recording, fluorescence=traces), name="else"), root=tmp_path, out=tmp_path / "c")
    assert not same(tmp_path / "a", tmp_path / "c"), "training frames do change it"


def test_a_mouse_that_is_left_out_has_no_part_in_it(tmp_path: Path) -> None:
    first = stored(tmp_path, small_recording(trials=48), name="one")
    others = [
        stored(tmp_path, small_recording(trials=48, seed=seed), subject="m1", name=f"two-{seed}") for seed in (1, 2, 3)
    ]
    made(first, *others[:2], root=tmp_path, out=tmp_path / "a", without_mouse="m1")
    made(first, others[2], root=tmp_path, out=tmp_path / "b", without_mouse="m1")
    assert same(tmp_path / "a", tmp_path / "b")
    made(first, others[2], root=tmp_path, out=tmp_path / "c")
    assert not same(tmp_path / "a", tmp_path / "c")
    with pytest.raises(DataError, match="no session is left to pre-train on without mouse 'm1'"):
        made(*others, root=tmp_path, out=tmp_path / "d", without_mouse="m1")


def test_a_category_that_is_left_out_has_no_part_in_it(tmp_path: Path) -> None:
    """Its presentations lie inside the spans of the other, too."""
    recording = interleaved()
    session = stored(tmp_path, recording)
    made(session, root=tmp_path, out=tmp_path / "a", without_category=SCENES)
    traces = recording.fluorescence.copy()
    for onset in recording.stimuli.onset_s[[name == SCENES for name in recording.stimuli.category]]:
        start = int(np.ceil(onset * 30))
        traces[start : start + 64] *= 1.7
    changed = stored(tmp_path, replace(recording, fluorescence=traces), name="changed")
    # The guards' medians are of training frames, and those are the same.
    made(changed, root=tmp_path, out=tmp_path / "b", without_category=SCENES)
    assert same(tmp_path / "a", tmp_path / "b")
    made(changed, root=tmp_path, out=tmp_path / "c")
    made(session, root=tmp_path, out=tmp_path / "d")
    assert not same(tmp_path / "c", tmp_path / "d")
    with pytest.raises(DataError, match=f"category '{GRATING}'"):
        made(
            stored(tmp_path, small_recording(trials=48), name="gratings"),
            root=tmp_path, out=tmp_path / "e", without_category=GRATING,
        )  # fmt: skip


def test_the_later_parts_of_a_category_that_is_left_out_stay_unread(tmp_path: Path) -> None:
    """Tests of other studies are on them: with it or without it, they are no training frames."""
    # Scenes are soon over, and their test part begins where gratings still train.
    session = stored(tmp_path, interleaved(scenes_until=24))
    train = frames_of(training_split(session, without_category=SCENES).train, session.frames)
    assert train.any()
    for part in ("validation", "test"):
        assert not (train & frames_of(split_of(session, category=SCENES).spans(part), session.frames)).any()


def test_the_same_call_trains_once_and_another_anew(tmp_path: Path) -> None:
    session, out = stored(tmp_path, small_recording(trials=48)), tmp_path / "a"
    first = made(session, root=tmp_path, out=out)
    written = (out / PRETRAINED).stat().st_mtime_ns
    assert made(session, root=tmp_path, out=out) == first
    assert (out / PRETRAINED).stat().st_mtime_ns == written
    assert first["windows"] == TINY.pretraining_windows
    before = weights(out)
    for options in ({"quantized": False}, {"without_mouse": "m9"}):
        made(session, root=tmp_path, out=out, **options)
        assert (out / PRETRAINED).stat().st_mtime_ns != written
        written = (out / PRETRAINED).stat().st_mtime_ns
    pretrain_cohort(sessions=(str(tmp_path / session.name),), effort=TINY, out=str(out), seed=1)
    assert any(not torch.equal(value, before[name]) for name, value in weights(out).items())


def test_a_call_that_was_interrupted_does_not_pass_for_the_one_before(tmp_path: Path) -> None:
    session, out = stored(tmp_path, small_recording(trials=48)), tmp_path / "a"
    made(session, root=tmp_path, out=out)
    with pytest.raises(DataError):
        # Ends after the old figures have lost their meaning.
        made(session, root=tmp_path, out=out, without_mouse="m0")
    assert not (out / FIGURES).exists()
    figures = made(session, root=tmp_path, out=out)
    (out / FIGURES).write_text('{"windows": ')
    assert made(session, root=tmp_path, out=out)["validation"] == figures["validation"]
    assert json.loads((out / FIGURES).read_text())["windows"] == figures["windows"]


def test_a_device_that_is_not_known_is_refused(tmp_path: Path) -> None:
    session = stored(tmp_path, small_recording(trials=48))
    with pytest.raises(UsageError, match="device is 'tpu', expected one of cpu, cuda"):
        made(session, root=tmp_path, out=tmp_path / "a", device="tpu")
    assert not (tmp_path / "a").exists()


def test_sessions_that_cannot_be_used_are_passed_over(tmp_path: Path) -> None:
    good = stored(tmp_path, small_recording(trials=48))
    made(good, root=tmp_path, out=tmp_path / "a")
    few = stored(tmp_path, small_recording(trials=3), name="few")
    recording = small_recording(trials=48)
    dark = stored(tmp_path, replace(recording, fluorescence=np.full_like(recording.fluorescence, np.nan)), name="dark")
    slow = stored(tmp_path, replace(recording, timestamps_s=recording.timestamps_s * 3.0), name="slow")
    for number, other in enumerate((few, dark, slow)):
        made(good, other, root=tmp_path, out=tmp_path / f"b{number}")
        assert same(tmp_path / "a", tmp_path / f"b{number}"), other.name
        with pytest.raises(DataError, match="no session is left"):
            made(other, root=tmp_path, out=tmp_path / "c")
