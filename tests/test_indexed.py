"""Tests of trials by index: gathered windows equal those cut at once, bit for bit; nothing is read from elsewhere."""

from __future__ import annotations

import dataclasses
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import small_model  # noqa: F401  # one thread of torch
import torch
from indexed_recordings import SCALE, indexed, make_recording, same, sources
from small_recording import small_recording

from quantformer.config import F0_LEVELS
from quantformer.errors import DataError, RecordingError
from quantformer.labels import LabelRule
from quantformer.signal import SignalRecipe
from quantformer.tokens import UNKNOWN
from quantformer_training import indexed as module
from quantformer_training.examples import Examples, ExampleSource
from quantformer_training.fit import rows_of
from quantformer_training.indexed import IndexedPart, IndexedSource, SessionReader
from quantformer_training.splits import split_by_time
from quantformer_training.store import StoredSession, open_session, write_session
from quantformer_training.threads import computing_with
from quantformer_training.trials import real_moments


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExampleSource, IndexedPart]:
    return sources(make_recording(), tmp_path_factory.mktemp("store") / "one")


@pytest.mark.parametrize("lead", [0, 1, 10])
def test_gathered_rows_are_those_cut_at_once_bit_for_bit(both: tuple[ExampleSource, IndexedPart], lead: int) -> None:
    whole, part = both
    source = indexed(part)
    assert 0 < len(source) == len(whole) < whole.trials.valid.size, "some windows must be invalid here"
    same(source.at_lead(lead), whole.at_lead(lead))
    same(Examples.joined(list(source.batches(lead=lead, size=7))), whole.at_lead(lead))


def test_an_unknown_neuron_has_no_level(both: tuple[ExampleSource, IndexedPart]) -> None:
    neuron = np.where(both[1].neuron == 1, UNKNOWN, both[1].neuron)
    rows, plain = (indexed(dataclasses.replace(both[1], neuron=ids)).at_lead(3) for ids in (neuron, both[1].neuron))
    at = rows.neuron == UNKNOWN
    assert at.any()
    assert plain.level.any(1).all()
    assert not rows.level[at, :F0_LEVELS].any()
    assert torch.equal(rows.level[at, F0_LEVELS:], plain.level[at, F0_LEVELS:])
    assert torch.equal(rows.level[~at], plain.level[~at])


def test_an_even_choice_spans_the_rows(both: tuple[ExampleSource, IndexedPart]) -> None:
    whole, part = both
    few = indexed(part).at_lead(0, most=5)
    same(few, whole.at_lead(0, most=5))
    assert int(few.moment[0]) == 0
    assert int(few.moment[-1]) == int(whole.at_lead(0).moment[-1])


def test_plain_rows_agree(both: tuple[ExampleSource, IndexedPart]) -> None:
    whole, part = both
    ours, theirs = indexed(part).rows(), rows_of(whole.trials)
    for name in ("baseline", "f0", "neuron", "stimulus", "trial", "active", "response"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)


def test_drawn_rows_are_seeded_and_hide_frames(both: tuple[ExampleSource, IndexedPart]) -> None:
    source = indexed(both[1])
    one, again, other = (source.draw(40, np.random.default_rng(seed)) for seed in (3, 3, 4))
    same(one, again)
    assert not torch.equal(one.baseline, other.baseline)
    # The target is whole whatever was withheld; the input differs from it where frames were.
    plain = source.at_lead(0)
    columns = plain.moment.tolist(), plain.neuron.tolist(), plain.trace
    whole = {(moment, neuron): trace for moment, neuron, trace in zip(*columns, strict=True)}
    for row in range(len(one)):
        key = int(one.moment[row]), int(one.neuron[row])
        assert torch.equal(one.trace[row], whole[key])
    assert (one.baseline != one.trace[:, :96]).any(1).float().mean() > 0.8


@pytest.mark.parametrize("lead", [0, 10])
def test_whole_trials_hold_every_neuron_and_say_which_are_valid(
    both: tuple[ExampleSource, IndexedPart], lead: int
) -> None:
    """Of several trials at a time the last frames are withheld from every one."""
    source = indexed(both[1])
    found = list(source.trial_batches(lead=lead, size=6))
    rows, valid = Examples.joined([one for one, _ in found]), torch.cat([mask for _, mask in found])
    moments = len(both[1].trials.moments)
    assert torch.equal(rows.neuron.reshape(moments, 3), torch.arange(3).expand(moments, 3))
    assert torch.equal(valid.reshape(moments, 3), torch.from_numpy(both[1].trials.valid))
    assert not rows.baseline[~valid].any()
    assert not rows.response[~valid].any()
    assert not rows.level[~valid].any()
    same(rows.select(valid.nonzero().flatten()), source.at_lead(lead))
    drawn, usable = source.draw_trials(12, np.random.default_rng(0))
    assert len(drawn) == 12
    assert usable.any()


def test_several_sessions_keep_their_neurons_apart(tmp_path: Path, both: tuple[ExampleSource, IndexedPart]) -> None:
    _, other = sources(make_recording(seed=5), tmp_path / "two")
    shifted = dataclasses.replace(other, neuron=other.neuron + 3)
    pooled = indexed(both[1], shifted)
    rows = pooled.at_lead(0)
    assert len(pooled) == len(indexed(both[1])) + len(indexed(other))
    first = len(indexed(both[1]))
    same(rows.select(torch.arange(first)), indexed(both[1]).at_lead(0))
    assert int(rows.neuron[first:].min()) == 3
    plain = pooled.rows()
    assert set(plain.trial[:first]).isdisjoint(plain.trial[first:]), "trials of two sessions differ"
    with pytest.raises(RecordingError, match="whole trials were asked of 2 sessions"):
        pooled.draw_trials(4, np.random.default_rng(0))


def test_a_session_is_written_whole_and_read_back(tmp_path: Path) -> None:
    recording = make_recording()
    made = write_session(recording, tmp_path / "s")
    np.testing.assert_array_equal(made.corrected(), recording.corrected())
    assert not made.corrected().flags.owndata, "mapped, not read"
    assert made.stimuli.category == recording.stimuli.category
    assert made.stimuli.features_of(3) == recording.stimuli.features_of(3)
    assert made.provenance.origin == recording.provenance.origin
    assert made.rate_hz == recording.rate_hz
    assert open_session(tmp_path / "s").fingerprint == made.fingerprint
    other = write_session(dataclasses.replace(recording, fluorescence=recording.fluorescence + 1), tmp_path / "t")
    assert other.fingerprint != made.fingerprint


@pytest.mark.parametrize("broken", ["session.json", "traces.npy", "stimuli.npz", "timestamps.npy"])
def test_a_damaged_session_is_refused(tmp_path: Path, broken: str) -> None:
    write_session(make_recording(), tmp_path / "s")
    path = tmp_path / "s" / broken
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(DataError, match="remove it to rebuild"):
        open_session(tmp_path / "s")


def test_windows_outside_the_recording_are_refused(tmp_path: Path) -> None:
    session: StoredSession = write_session(make_recording(), tmp_path / "s")
    for neuron, start in ((0, -1), (0, session.frames - 159), (3, 0)):
        with pytest.raises(DataError, match="outside"):
            session.windows(np.array([neuron]), np.array([start]), frames=160)
    last = session.windows(np.array([2]), np.array([session.frames - 160]), frames=160)
    np.testing.assert_array_equal(last[0], session.traces[2, -160:])


def test_a_recording_off_the_rate_is_refused(tmp_path: Path) -> None:
    recording = make_recording()
    slow = dataclasses.replace(recording, timestamps_s=recording.timestamps_s * 1.5)
    with pytest.raises(RecordingError, match="frame for frame"):
        SessionReader(
            write_session(slow, tmp_path / "s"),
            split=split_by_time(recording, recipe=SignalRecipe(), train_trials=16),
            recipe=SignalRecipe(),
            rule=LabelRule(),
        )


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_rows_are_the_same_in_pieces_and_on_several_threads(
    both: tuple[ExampleSource, IndexedPart], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    _, other = sources(make_recording(seed=5), tmp_path / "two")
    for parts in ((both[1],), (both[1], other)):
        source = indexed(*parts)
        whole = source.draw(1000, np.random.default_rng(3))
        monkeypatch.setattr(module, "_PIECE", 32)
        with computing_with(threads):
            same(source.draw(1000, np.random.default_rng(3)), whole)
        monkeypatch.undo()
    assert not [one for one in threading.enumerate() if one.name.startswith("gathering")]


def test_groups_that_miss_the_same_frames_are_what_each_would_be_alone(
    both: tuple[ExampleSource, IndexedPart],
) -> None:
    source = indexed(both[1])
    gaps = [np.zeros(96, bool) for _ in range(3)]
    gaps[1][-4:] = True
    gaps[2][[10, 40, 41]] = True
    chosen = [gaps[number] for number in (1, 0, 2, 1, 1, 0, 2)]
    together = source._whole(np.arange(7), missing=np.stack(chosen))[0]
    for place, missing in enumerate(chosen):
        alone = source._whole(np.array([place]), missing=missing[None])[0]
        same(alone, together.select(torch.arange(3 * place, 3 * place + 3)))


def test_no_more_windows_are_in_memory_than_a_chunk_of_moments_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording, recipe = small_recording(neurons=100, trials=24, period_s=4.0), SignalRecipe()
    reader = SessionReader(
        write_session(recording, tmp_path / "s"),
        split=split_by_time(recording, recipe=recipe, train_trials=20),
        recipe=recipe,
        rule=LabelRule(),
    )
    moments, peaks = real_moments(recording), {}
    for chunk in (1, 64):
        monkeypatch.setattr(module, "_CHUNK", chunk)
        tracemalloc.start()
        found = reader.read(moments, part="train")
        peaks[chunk] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    windows = found.valid.size * recipe.window_frames * found.values.itemsize
    assert found.valid.size >= 1000
    assert peaks[1] < windows / 2 < windows < peaks[64]


def test_plain_rows_are_cut_in_pieces(both: tuple[ExampleSource, IndexedPart], monkeypatch: pytest.MonkeyPatch) -> None:
    source = IndexedSource([both[1]] * 40, signal_scale=SCALE, recipe=SignalRecipe())
    found, peaks = [], []
    for piece in (32, len(source)):
        monkeypatch.setattr(module, "_PIECE", piece)
        tracemalloc.start()
        found.append(source.rows())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    for name, column in vars(found[0]).items():
        np.testing.assert_array_equal(column, getattr(found[1], name), err_msg=name)
    held = sum(column.nbytes for column in vars(found[0]).values() if column is not None)
    assert peaks[0] < 1.5 * held < peaks[1]
