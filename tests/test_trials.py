"""Tests of trials: what a window reads and never reads, guards with reasons, pseudo-onsets, labels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_recording import GRATING, small_recording

from quantformer.errors import RecordingError, SignalError
from quantformer.labels import LabelRule, evoked_area
from quantformer.recording import Recording, StimulusTable
from quantformer.signal import SignalRecipe, onset_frames
from quantformer.vocabulary import NOTHING, ONGOING
from quantformer_training.pretrain import whole
from quantformer_training.splits import Split, split_by_time
from quantformer_training.trials import Moments, TrialReader, moments_of, pseudo_moments, real_moments

RECIPE = SignalRecipe()


def reader_of(recording: Recording, split: Split | None = None, definition: str = "signed") -> TrialReader:
    rule = LabelRule(definition=definition)  # type: ignore[arg-type]
    return TrialReader(recording, split=split or whole(recording), recipe=RECIPE, rule=rule)


def moments_at(frames: list[int]) -> Moments:
    n = len(frames)
    return Moments(
        frame=np.array(frames, np.int64),
        trial=np.full(n, -1),
        pseudo=np.ones(n, bool),
        category=("",) * n,
        stimulus_id=("",) * n,
        features=({},) * n,
    )


def with_values(recording: Recording, frames: slice, value: float, neuron: int | slice = slice(None)) -> Recording:
    changed = recording.fluorescence.copy()
    changed[frames, neuron] = value
    return dataclasses.replace(recording, fluorescence=changed)


def test_a_trial_by_hand() -> None:
    recording = small_recording(neurons=2, trials=6)
    trials = reader_of(recording).read(real_moments(recording), part="train")
    assert len(trials.moments) == 6
    frame = int(trials.moments.frame[2])
    # NOTES, pitfall 10: the first frame whose stamp is not earlier than the onset.
    assert recording.timestamps_s[frame - 1] < recording.stimuli.onset_s[2] <= recording.timestamps_s[frame]
    trace = recording.fluorescence.astype(np.float64)
    f0 = trace[frame - 60 : frame].mean(0)
    np.testing.assert_allclose(trials.f0[2], f0, rtol=1e-12)
    np.testing.assert_allclose(trials.baseline[2].T, trace[frame - 96 : frame] / f0 - 1, atol=1e-6)
    np.testing.assert_allclose(trials.response[2].T, trace[frame : frame + 64] / f0 - 1, atol=1e-6)
    assert trials.active[2].tolist() == (trials.response[2, :, :60].mean(-1) >= 0.1).tolist()


def test_the_onset_frame_follows_the_stamps_not_the_rate() -> None:
    # NOTES, pitfall 10: 31 Hz, nominally 30; after ten minutes the nominal rate is 600 frames off.
    recording = small_recording(neurons=1, trials=200, rate_hz=31.0)
    moments = real_moments(recording)
    stamps, onset = recording.timestamps_s, recording.stimuli.onset_s
    for row in (0, 99, 199):
        frame = int(moments.frame[row])
        assert stamps[frame - 1] < onset[row] <= stamps[frame]
    assert abs(moments.frame[-1] - onset[-1] * 30.0) > 500


@settings(max_examples=25)
@given(data=st.data(), rate_hz=st.sampled_from([20.0, 24.7, 30.0, 45.0, 60.0]), jitter_s=st.sampled_from([0.0, 0.01]))
def test_a_baseline_never_reads_the_onset_frame_or_later(data: st.DataObject, rate_hz: float, jitter_s: float) -> None:
    recording = small_recording(neurons=2, trials=6, rate_hz=rate_hz, jitter_s=jitter_s)
    moments = real_moments(recording)
    row = data.draw(st.integers(0, len(moments) - 1))
    frame = int(moments.frame[row])
    values = data.draw(st.lists(st.sampled_from([np.nan, np.inf, 0.0, -1e6, 1e6]), min_size=1, max_size=4))
    changed = recording.fluorescence.copy()
    changed[frame:] = np.resize(np.array(values, np.float32), (len(changed) - frame, 1))
    # The guards come from training frames, which end before the onset here.
    split = Split(train=((0, frame),), validation=(), test=((0, recording.frames),))
    one = reader_of(recording, split)
    other = reader_of(dataclasses.replace(recording, fluorescence=changed), split)
    kept = [np.empty((2, 96), np.float32), np.empty((2, 96), np.float32)]
    (f0, valid), (f0_other, valid_other) = (
        reader.write(moments, row, out=out) for reader, out in zip((one, other), kept, strict=True)
    )
    assert kept[0].tobytes() == kept[1].tobytes()
    assert f0.tobytes() == f0_other.tobytes()
    np.testing.assert_array_equal(valid, valid_other)
    assert valid.all(), "nothing was compared"


@settings(max_examples=25)
@given(data=st.data(), rate_hz=st.sampled_from([20.0, 28.0, 30.0, 45.0, 60.0]), jitter_s=st.sampled_from([0.0, 0.015]))
def test_a_trial_reads_no_frame_outside_its_part(data: st.DataObject, rate_hz: float, jitter_s: float) -> None:
    recording = small_recording(neurons=1, trials=8, rate_hz=rate_hz, jitter_s=jitter_s)
    low = data.draw(st.integers(0, recording.frames // 3))
    high = data.draw(st.integers(2 * recording.frames // 3, recording.frames))
    split = Split(train=((low, high),), validation=(), test=())
    frames = moments_at(list(range(low, high, 7)))
    trials = reader_of(recording, split).read(frames, part="train")
    changed = recording.fluorescence.copy()
    changed[:low], changed[high:] = np.nan, np.nan
    again = reader_of(dataclasses.replace(recording, fluorescence=changed), split).read(frames, part="train")
    assert len(trials.moments) > 0
    np.testing.assert_array_equal(trials.moments.frame, again.moments.frame)
    assert again.valid.all()
    assert trials.baseline.tobytes() == again.baseline.tobytes()
    assert trials.response.tobytes() == again.response.tobytes()


@pytest.mark.parametrize("rate_hz", [20.0, 60.0])
def test_other_rates_are_brought_to_thirty(rate_hz: float) -> None:
    """A slow sine sampled at any rate gives the windows that it has at 30 Hz."""
    recording = small_recording(neurons=1, trials=6, rate_hz=rate_hz)
    stamps = recording.timestamps_s
    sine = (100.0 * (1.5 + np.sin(stamps)))[:, None].astype(np.float32)
    reader = reader_of(dataclasses.replace(recording, fluorescence=sine))
    trials = reader.read(real_moments(recording), part="train")
    assert len(trials.moments) == 6
    start = stamps[trials.moments.frame]
    before = 1.5 + np.sin(start[:, None] - np.arange(96, 0, -1) / 30.0)
    after = 1.5 + np.sin(start[:, None] + np.arange(64) / 30.0)
    f0 = before[:, 36:].mean(1, keepdims=True)
    # Linear interpolation errs by 1/8 of the squared step; the last grid point before the onset is held at 20 Hz.
    np.testing.assert_allclose(trials.response[:, 0], after / f0 - 1, atol=0.01)
    np.testing.assert_allclose(trials.baseline[:, 0, :-2], (before / f0 - 1)[:, :-2], atol=0.01)


def test_a_slow_recording_needs_an_explicit_choice() -> None:
    with pytest.raises(SignalError, match=r"below 15\.0 Hz"):
        reader_of(small_recording(neurons=1, trials=6, rate_hz=10.0))


def test_withheld_frames_never_influence() -> None:
    # NOTES, pitfall 8, bit for bit.
    recording = small_recording(neurons=3, trials=6)
    moments = real_moments(recording)
    split = Split(train=((0, 90),), validation=(), test=((0, recording.frames),))
    frame = int(moments.frame[3])
    for lead in range(1, 11):
        missing = np.zeros(96, bool)
        missing[96 - lead :] = True
        first, second = np.empty((3, 96), np.float32), np.empty((3, 96), np.float32)
        f0, valid = reader_of(recording, split).write(moments, 3, out=first, missing=missing)
        for value in (np.nan, 1e9):
            changed = with_values(recording, slice(frame - lead, None), value)
            f0_changed, _ = reader_of(changed, split).write(moments, 3, out=second, missing=missing)
            assert first.tobytes() == second.tobytes()
            assert f0.tobytes() == f0_changed.tobytes()
        assert valid.all()
        changed = with_values(recording, slice(frame - lead - 1, None), 1e4)
        reader_of(changed, split).write(moments, 3, out=second, missing=missing)
        assert first.tobytes() != second.tobytes(), "the last frame that is not withheld is not read either"


def test_withheld_frames_hold_the_last_value_and_stay_out_of_f0() -> None:
    recording = small_recording(neurons=1, trials=6)
    moments = real_moments(recording)
    missing = np.zeros(96, bool)
    missing[-4:] = True
    out = np.empty((1, 96), np.float32)
    f0, _ = reader_of(recording).write(moments, 0, out=out, missing=missing)
    frame = int(moments.frame[0])
    assert float(f0[0]) == pytest.approx(recording.fluorescence[frame - 60 : frame - 4, 0].mean(dtype=np.float64), rel=1e-9)
    assert np.ptp(out[0, -5:]) == 0.0


def test_rejects_are_counted_with_their_reasons() -> None:
    recording = small_recording(neurons=3, trials=6)
    frame = onset_frames(recording.timestamps_s, recording.stimuli.onset_s)
    recording = with_values(recording, slice(frame[1] - 70, frame[1] - 65), np.nan, neuron=0)
    recording = with_values(recording, slice(frame[3] - 60, frame[3]), -5.0, neuron=1)
    recording = with_values(recording, slice(frame[4] + 63, frame[4] + 64), np.inf, neuron=2)
    # Only the trials themselves are hit: their neighbours lie 90 frames away, their windows reach 96 back.
    split = Split(train=((int(frame[0]) - 95, recording.frames),), validation=(), test=())
    trials = reader_of(recording, split).read(real_moments(recording), part="train")
    assert trials.rejected["window outside the part"] == 1
    assert not trials.valid[0, 0]
    assert not trials.valid[2, 1]
    assert not trials.valid[3, 2]
    baselines = trials.rejected["F0 at or below its minimum, or baseline not finite"]
    assert baselines + trials.rejected["response not finite"] == int((~trials.valid).sum())
    assert trials.rejected["response not finite"] >= 1
    assert not trials.active[~trials.valid].any()
    assert not trials.response[~trials.valid].any()
    assert np.isfinite(trials.baseline).all()


def test_f0_near_zero_is_rejected_before_it_divides() -> None:
    recording = small_recording(neurons=2, trials=8)
    frame = int(onset_frames(recording.timestamps_s, recording.stimuli.onset_s)[4])
    dark = with_values(recording, slice(frame - 96, frame), 0.5, neuron=0)
    trials = reader_of(dark).read(real_moments(dark), part="train")
    assert not trials.valid[4, 0], "0.5 is less than a tenth of the neuron's median"
    assert trials.valid[4, 1]
    assert np.abs(trials.response).max() < 50


def test_neurons_without_signal_are_never_valid_and_harm_no_other() -> None:
    recording = small_recording(neurons=4, trials=6)
    for neuron, value in enumerate((np.nan, 0.0, -3.0)):
        recording = with_values(recording, slice(None), value, neuron=neuron)
    trials = reader_of(recording).read(real_moments(recording), part="train")
    assert trials.valid.sum(0).tolist() == [0, 0, 0, 6]
    assert np.isfinite(reader_of(recording).f0_minimum).all()


def test_a_constant_trace_is_a_valid_inactive_neuron() -> None:
    recording = with_values(small_recording(neurons=1, trials=6), slice(None), 70.0)
    trials = reader_of(recording).read(real_moments(recording), part="train")
    assert trials.valid.all()
    assert not trials.active.any()
    assert not trials.baseline.any()


def test_a_training_part_without_frames_is_refused_by_name() -> None:
    recording = small_recording(neurons=1, trials=6)
    with pytest.raises(RecordingError, match=r"small\.npz: the training part holds no frame"):
        reader_of(recording, Split(train=((0, 0),), validation=(), test=((0, 500),)))


def test_guards_come_from_training_frames_alone() -> None:
    recording = small_recording(neurons=2, trials=12)
    split = split_by_time(recording, recipe=RECIPE, train_trials=6)
    brighter = with_values(recording, slice(split.train[0][1], None), 1e6)
    plain, other = reader_of(recording, split), reader_of(brighter, split)
    np.testing.assert_array_equal(plain.f0_minimum, other.f0_minimum)
    np.testing.assert_array_equal(plain.usual_f0, other.usual_f0)
    np.testing.assert_array_equal(plain.usual_f0, np.median(recording.fluorescence[slice(*split.train[0])], axis=0))
    assert not np.array_equal(plain.usual_f0, reader_of(brighter).usual_f0), "the later frames would have been seen"


def test_the_usual_level_of_a_neuron_never_seen_or_below_zero_is_not_known() -> None:
    recording = small_recording(neurons=3, trials=6)
    dark = with_values(with_values(recording, slice(None), np.nan, neuron=0), slice(None), -5.0, neuron=1)
    assert reader_of(dark).usual_f0[:2].tolist() == [0.0, 0.0]
    assert reader_of(dark).usual_f0[2] == reader_of(recording).usual_f0[2] > 0


def test_epochs_are_not_presentations() -> None:
    recording = small_recording(neurons=1, trials=4)
    table = recording.stimuli
    named = dataclasses.replace(table, category=("spontaneous", *table.category[1:]))
    moments = real_moments(dataclasses.replace(recording, stimuli=named))
    assert moments.trial.tolist() == [1, 2, 3]


def test_pseudo_onsets_are_where_nothing_begins() -> None:
    recording = small_recording(neurons=1, trials=6, period_s=6.0)
    onsets = onset_frames(recording.timestamps_s, recording.stimuli.onset_s)
    asked = np.arange(96, recording.frames - 64)
    found = pseudo_moments(recording, asked, recipe=RECIPE)
    allowed = [f for f in asked if not ((onsets > f - 16) & (onsets < f + 64)).any()]
    assert found.frame.tolist() == allowed
    assert found.pseudo.all()
    for i in range(0, len(found), 5):
        stamp = recording.timestamps_s[found.frame[i]]
        shown = (recording.stimuli.onset_s <= stamp) & (stamp < recording.stimuli.onset_s + recording.stimuli.duration_s)
        if shown.any():
            row = int(np.flatnonzero(shown)[0])
            assert found.category[i] == ONGOING + GRATING
            assert found.stimulus_id[i] == ONGOING + recording.stimuli.stimulus_id[row]
            assert found.trial[i] == row
            assert found.features[i] == recording.stimuli.features_of(row)
        else:
            assert found.category[i] == found.stimulus_id[i] == NOTHING
            assert found.features[i] == {}
    assert {ONGOING + GRATING, NOTHING} == set(found.category), "one of the two kinds was never tested"


@given(
    st.lists(st.integers(0, 3000), min_size=1, max_size=12, unique=True).map(sorted),
    st.lists(st.integers(0, 3000), max_size=20),
)
def test_a_moment_is_of_the_presentation_that_is_nearest(onsets: list[int], frames: list[int]) -> None:
    count = len(onsets)
    presentations = Moments(
        frame=np.array(onsets, np.int64),
        trial=np.arange(count) + 5,
        pseudo=np.zeros(count, bool),
        category=(GRATING,) * count,
        stimulus_id=tuple(f"dir={i}" for i in range(count)),
        features=tuple({"direction": float(i)} for i in range(count)),
    )
    asked = np.array(frames, np.int64)
    found = moments_of(presentations, asked)
    assert found.frame.tolist() == frames
    assert found.pseudo.all()
    for i, frame in enumerate(frames):
        row = int(found.trial[i]) - 5
        assert abs(onsets[row] - frame) == min(abs(onset - frame) for onset in onsets)
        assert (found.stimulus_id[i], found.features[i]) == (f"dir={row}", {"direction": float(row)})
    assert len(moments_of(presentations.select(np.arange(0)), asked)) == 0


def test_inside_a_blank_nothing_goes_on() -> None:
    recording = small_recording(neurons=1, trials=4, period_s=6.0)
    table = recording.stimuli
    blank = dataclasses.replace(table, features={**table.features, "blank": np.array([0.0, 1.0, 0.0, 1.0])})
    found = pseudo_moments(
        dataclasses.replace(recording, stimuli=blank), np.arange(96, recording.frames - 64), recipe=RECIPE
    )
    ongoing = {int(trial) for trial, name in zip(found.trial, found.category, strict=True) if name != NOTHING}
    assert ongoing == {0, 2}


def test_evoked_labels_by_the_neurons_own_pseudo_onsets() -> None:
    recording = small_recording(neurons=3, trials=20, period_s=8.0)
    reader = reader_of(recording, definition="evoked")
    trials = reader.read(real_moments(recording), part="train")
    asked = pseudo_moments(recording, np.arange(0, recording.frames, 30), recipe=RECIPE)
    pseudo = reader_of(recording).read(asked, part="train")
    area = evoked_area(pseudo.baseline, pseudo.response, frames=60, decay_frames=30.0)
    mean = np.array([area[pseudo.valid[:, k], k].mean() for k in range(3)])
    sd = np.array([area[pseudo.valid[:, k], k].std() for k in range(3)])
    real = evoked_area(trials.baseline, trials.response, frames=60, decay_frames=30.0)
    np.testing.assert_array_equal(trials.active, ((real - mean) / sd >= 2.0) & trials.valid)
    assert 0 < trials.active.sum() < trials.active.size


def test_evoked_labels_of_short_stimuli_use_short_pseudo_onsets() -> None:
    # The mean over 15 frames varies more than that over 60; with the wrong one noise alone would be a response.
    recording = small_recording(neurons=2, trials=60, period_s=8.0)
    rng = np.random.default_rng(0)
    noise = (100.0 * (1.0 + rng.normal(0.0, 0.05, recording.fluorescence.shape))).astype(np.float32)
    table = dataclasses.replace(recording.stimuli, category=("static_gratings",) * 60)
    recording = dataclasses.replace(recording, fluorescence=noise, stimuli=table)
    trials = reader_of(recording, definition="evoked").read(real_moments(recording), part="train")
    # A z-score of 2 is passed by 2.3 % of noise; with the deviation of 60 frames it would be a sixth.
    assert trials.active.mean() < 0.08


def test_a_neuron_that_no_pseudo_onset_measured_has_no_evoked_response() -> None:
    recording = small_recording(neurons=2, trials=10, period_s=8.0)
    frame = int(onset_frames(recording.timestamps_s, recording.stimuli.onset_s)[5])
    seldom = with_values(recording, slice(0, frame - 96), np.nan, neuron=0)
    seldom = with_values(seldom, slice(frame + 64, None), np.nan, neuron=0)
    seldom = with_values(seldom, slice(frame, frame + 64), 1e4, neuron=0)
    trials = reader_of(seldom, definition="evoked").read(real_moments(seldom), part="train")
    assert trials.valid[:, 0].tolist() == [row == 5 for row in range(10)]
    assert not trials.active[:, 0].any()


def test_evoked_labels_need_pseudo_onsets() -> None:
    recording = small_recording(neurons=1, trials=30, period_s=0.5)
    first = int(onset_frames(recording.timestamps_s, recording.stimuli.onset_s)[0])
    crowded = Split(train=((first - 16, first + 400),), validation=(), test=())
    with pytest.raises(RecordingError, match=r"small\.npz: the training part has no usable pseudo-onset"):
        reader_of(recording, crowded, definition="evoked")


def test_a_recording_without_stimuli_has_no_moments() -> None:
    recording = dataclasses.replace(small_recording(neurons=1, trials=4), stimuli=StimulusTable.empty())
    assert len(real_moments(recording)) == 0
    found = pseudo_moments(recording, np.array([100, 200]), recipe=RECIPE)
    assert found.category == (NOTHING, NOTHING)
    assert found.trial.tolist() == [-1, -1]


def test_chosen_trials_keep_everything_that_is_known_of_them() -> None:
    trials = reader_of(small_recording()).read(real_moments(small_recording()), part="train")
    index = np.array([5, 0, 2])
    chosen = trials.select(index)
    assert chosen.moments.frame.tolist() == [int(trials.moments.frame[i]) for i in index]
    for name, known in vars(trials).items():
        if name not in ("moments", "rejected"):
            np.testing.assert_array_equal(getattr(chosen, name), known[index], err_msg=name)
            assert name == "valid" or len(np.unique(known)) > 1, f"every {name} is alike: nothing is tested"
