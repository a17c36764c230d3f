"""The recordings of a study: what is left out and why, what is read again, who is whom."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_recording import GRATING, small_recording
from tiny_study import stored_cohort

from quantformer.errors import DataError, UsageError
from quantformer.recording import Origin, Recording, StimulusTable
from quantformer_training.arrays import save_recording
from quantformer_training.cohort import Cohort, recorded_cohort, simulated_cohort
from quantformer_training.store import write_session


def saved(
    path: Path, *, subject: str = "unknown", seed: int = 0, origin: Origin = "measured", stimuli: StimulusTable | None = None
) -> Path:
    made = small_recording(trials=8, seed=seed)
    made = replace(made, provenance=replace(made.provenance, subject=subject, origin=origin, source=path.name))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_recording(made if stimuli is None else replace(made, stimuli=stimuli), path)
    return path


def read(tmp_path: Path, *paths: Path) -> Cohort:
    return recorded_cohort(paths, tmp_path / "store", say=lambda words: None)


def test_files_that_cannot_be_used_are_left_out_with_the_reason(tmp_path: Path) -> None:
    good = [saved(tmp_path / "a.npz", subject="a"), saved(tmp_path / "b.npz", subject="b")]
    broken = tmp_path / "broken.npz"
    broken.write_bytes(good[0].read_bytes()[:100])
    (tmp_path / "text.txt").write_text("hello")
    still = saved(tmp_path / "still.npz", stimuli=StimulusTable.empty())
    cohort = read(tmp_path, good[0], broken, tmp_path / "text.txt", still, tmp_path / "absent.npz", good[1])
    assert cohort.mice == ("a", "b")
    assert cohort.categories == (GRATING,)
    assert set(cohort.left_out) == {"broken.npz", "text.txt", "still.npz", "absent.npz"}
    assert "no presentations" in cohort.left_out["still.npz"]
    assert "no recording" in cohort.left_out["text.txt"]
    assert all(cohort.left_out.values())


def test_no_usable_file_is_an_error_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(DataError, match=r"text\.txt: .* no recording"):
        read(tmp_path, tmp_path / "text.txt")
    with pytest.raises(DataError, match="no file was found"):
        read(tmp_path)


def test_the_second_call_reads_the_store_and_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", subject="a")
    first, status = read(tmp_path, path), path.stat()
    # Nothing a reader could use, but size and time of before: whoever opens it fails.
    path.write_bytes(b"\0" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert read(tmp_path, path).fingerprint == first.fingerprint
    saved(path, subject="a", seed=1)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    assert read(tmp_path, path).fingerprint != first.fingerprint


def test_a_damaged_store_is_left_out_and_says_what_to_do(tmp_path: Path) -> None:
    paths = saved(tmp_path / "a.npz", subject="a"), saved(tmp_path / "b.npz", subject="b")
    place = tmp_path / "store" / read(tmp_path, *paths).sessions[0].name
    (place / "session.json").write_text("{")
    cohort = read(tmp_path, *paths)
    assert cohort.mice == ("b",)
    assert "remove it to rebuild it" in cohort.left_out["a.npz"]


def test_files_of_one_name_are_two_recordings_and_unnamed_animals_two_mice(tmp_path: Path) -> None:
    cohort = read(tmp_path, saved(tmp_path / "one" / "rec.npz"), saved(tmp_path / "two" / "rec.npz", seed=1))
    assert len(set(cohort.mice)) == 2
    assert len({session.fingerprint for session in cohort.sessions}) == 2
    for folder in ("one", "two"):
        (tmp_path / folder / "bad.npz").write_bytes(b"hello")
    cohort = read(tmp_path, *(tmp_path / folder / name for folder in ("one", "two") for name in ("rec.npz", "bad.npz")))
    assert len(cohort.left_out) == 2, "neither reason hides the other"
    assert saved(tmp_path / "alone.npz").stem in read(tmp_path, tmp_path / "alone.npz").mice


def test_a_file_that_is_given_twice_is_one_session(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", subject="a")
    assert len(read(tmp_path, path, tmp_path / "." / "a.npz", path).sessions) == 1


def test_two_sessions_of_a_mouse_are_one_mouse(tmp_path: Path) -> None:
    other = small_recording(trials=8, seed=1)
    scenes = replace(other.stimuli, category=("natural_scenes",) * 8)
    paths = [
        saved(tmp_path / "s1.npz", subject="m"),
        saved(tmp_path / "s2.npz", subject="m", stimuli=scenes),
        saved(tmp_path / "s3.npz", subject="m", seed=2),
    ]
    cohort = read(tmp_path, *paths)
    assert cohort.mice == ("m",)
    assert cohort.categories == (GRATING, "natural_scenes")
    assert cohort.session_with(mouse="m", category="natural_scenes") is cohort.sessions[1]
    assert cohort.session_with(mouse="m", category=GRATING) is cohort.sessions[0], "the first that has it"
    assert cohort.session_with(mouse="m", category="static_gratings") is None
    assert cohort.session_with(mouse="other", category=GRATING) is None


def test_epochs_are_no_category(tmp_path: Path) -> None:
    table = small_recording(trials=8).stimuli
    spontaneous = replace(table, category=("spontaneous",) * 2 + (GRATING,) * 6)
    assert read(tmp_path, saved(tmp_path / "a.npz", stimuli=spontaneous)).categories == (GRATING,)


def test_origins_are_not_mixed(tmp_path: Path) -> None:
    measured = saved(tmp_path / "a.npz", subject="a")
    assert read(tmp_path, measured).origin == "measured"
    mixed = read(tmp_path, measured, saved(tmp_path / "b.npz", subject="b", origin="simulated"))
    with pytest.raises(DataError, match="measured, simulated; give data of one origin"):
        _ = mixed.origin
    with pytest.raises(DataError, match="none"):
        _ = Cohort(sessions=(), left_out={}).origin


def with_stimuli(recording: Recording, **columns: Any) -> Recording:
    return replace(recording, stimuli=replace(recording.stimuli, **columns))


@pytest.mark.parametrize(
    "change",
    [
        lambda one: with_stimuli(one, category=("natural_scenes",) * 8),
        lambda one: with_stimuli(one, sub_session=np.zeros(8, np.int16)),
        lambda one: with_stimuli(one, onset_s=one.stimuli.onset_s + 0.1),
        lambda one: with_stimuli(one, stimulus_id=("x",) * 8),
        lambda one: replace(one, neuron_ids=("a", "b", "c")),
        lambda one: replace(one, provenance=replace(one.provenance, subject="else")),
        lambda one: replace(one, fluorescence=one.fluorescence + 1),
    ],
)
def test_the_fingerprint_tells_everything_that_a_figure_depends_on(
    tmp_path: Path, change: Callable[[Recording], Recording]
) -> None:
    recording = small_recording(trials=8)
    write_session(recording, tmp_path / "a")
    write_session(change(recording), tmp_path / "b")
    write_session(recording, tmp_path / "again")
    one, other, same = (stored_cohort([tmp_path / name]).fingerprint for name in ("a", "b", "again"))
    assert one == same != other


def test_simulated_mice_that_are_there_are_read(tmp_path: Path) -> None:
    for session in "ABC":
        write_session(small_recording(trials=8), tmp_path / f"simulated-3-2-00-{session}")
    said: list[str] = []
    cohort = simulated_cohort(tmp_path, mice=1, neurons=2, seed=3, say=said.append)
    assert [one.name[-1] for one in cohort.sessions] == ["A", "B", "C"]
    assert said == []


@pytest.mark.slow
def test_simulated_mice_are_the_same_each_time(tmp_path: Path) -> None:
    said: list[str] = []
    first = simulated_cohort(tmp_path / "a", mice=1, neurons=2, seed=3, say=said.append)
    assert said == ["simulating mouse 1 of 1"]
    assert first.origin == "simulated"
    elsewhere = simulated_cohort(tmp_path / "b", mice=2, neurons=2, seed=3, say=said.append)
    np.testing.assert_array_equal(elsewhere.sessions[0].traces, first.sessions[0].traces)
    assert [one.fingerprint for one in elsewhere.sessions[:3]] == [one.fingerprint for one in first.sessions]
    assert len(elsewhere.mice) == 2
    assert elsewhere.sessions[3].fingerprint != elsewhere.sessions[0].fingerprint, "another mouse"


@pytest.mark.parametrize(("mice", "neurons"), [(0, 3), (1, 0), (-1, 3)])
def test_no_mouse_or_no_neuron_is_refused(tmp_path: Path, mice: int, neurons: int) -> None:
    with pytest.raises(UsageError, match="at least one of each"):
        simulated_cohort(tmp_path, mice=mice, neurons=neurons, seed=0, say=print)
    assert not list(tmp_path.iterdir())


def test_a_file_of_spikes_is_seen_through_the_indicator_and_named_semi_synthetic(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    onset = np.arange(200, 200 + 90 * 12, 90)
    path = tmp_path / "spikes.npz"
    np.savez(
        path,
        spikes=rng.integers(0, 2, (3, 1800)).astype(np.uint8),
        cell_ids=np.arange(3),
        onset_frame=onset,
        length_frames=np.full(12, 60),
        rate_hz=30.0,
    )
    made = recorded_cohort([path], tmp_path / "store", say=lambda _: None)
    assert made.origin == "semi-synthetic"
    assert made.sessions[0].neurons == 3
