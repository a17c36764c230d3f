"""One run of a study: parts, evenly chosen presentations, whose pseudo-onsets, and recordings with something wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_model  # noqa: F401  # one thread of torch
from small_recording import GRATING, small_recording

from quantformer.errors import RecordingError
from quantformer.recording import Recording, StimulusTable
from quantformer.vocabulary import NOTHING, ONGOING
from quantformer_training.fit import MOMENT_STRIDE
from quantformer_training.run_data import MostTrials, RunData, split_of
from quantformer_training.splits import PARTS
from quantformer_training.store import StoredSession, write_session

SCENES = "natural_scenes"
ALL = MostTrials()


def stored(directory: Path, recording: Recording | None = None, *, name: str = "s", **changed: object) -> StoredSession:
    made = recording if recording is not None else small_recording(**changed)  # type: ignore[arg-type]
    return write_session(made, directory / name)


def two_categories(*, sub_sessions: int = 3, period_s: float = 5.0) -> Recording:
    """Gratings in sub-sessions, and a scene halfway between a grating and the next."""
    made = small_recording(trials=48, period_s=2 * period_s, sub_sessions=sub_sessions)
    table = made.stimuli
    n = len(table)
    scenes = StimulusTable.build(
        onset_s=np.concatenate([table.onset_s, table.onset_s + period_s]),
        duration_s=np.full(2 * n, 2.0),
        category=[GRATING] * n + [SCENES] * n,
        stimulus_id=[*table.stimulus_id, *(f"scene={i % 4}" for i in range(n))],
        features={"direction_deg": np.concatenate([table.features["direction_deg"], np.full(n, np.nan)])},
        sub_session=np.concatenate([table.sub_session, np.full(n, -1)]),
    )
    frames = made.frames + int(30 * period_s)
    return replace(
        made,
        stimuli=scenes,
        timestamps_s=np.arange(frames) / 30.0,
        fluorescence=np.pad(made.fluorescence, ((0, frames - made.frames), (0, 0)), mode="wrap"),
    )


def damaged(recording: Recording, change: Callable[[np.ndarray], None]) -> Recording:
    traces = recording.fluorescence.copy()
    change(traces)
    return replace(recording, fluorescence=traces)


def finite(run: RunData) -> int:
    """Everything that networks and classical models are given is a number; how many test rows there are."""
    sources = run.sources(0.2)
    for source in vars(sources).values():
        if not len(source):
            continue
        for name, tensor in vars(source.at_lead(5)).items():
            assert bool(np.isfinite(tensor.numpy()).all()), name
        rows = source.rows()
        assert np.isfinite(rows.f0).all()
    return len(sources.test)


def test_three_sub_sessions_split_and_fewer_split_by_time(tmp_path: Path) -> None:
    subs = stored(tmp_path, trials=48, sub_sessions=3, pause_s=8.0)
    by_sub = split_of(subs, category=GRATING)
    onset = subs.stimuli.onset_s * 30
    third = onset[subs.stimuli.sub_session == 2]
    assert by_sub.test == ((int(third[0]) - 96, int(third[-1]) + 64),)
    assert len(by_sub.train) == 2
    two = stored(tmp_path, trials=48, sub_sessions=2, name="two")
    by_time = split_of(two, category=GRATING)
    assert by_time.train[0][0] == 0
    assert by_time.test == ((int(np.ceil(two.stimuli.onset_s[32] * 30)) - 96, two.frames),), "two thirds come first"


def test_the_chronological_split_counts_the_category_alone(tmp_path: Path) -> None:
    session = stored(tmp_path, two_categories())
    split = split_of(session, category=SCENES)
    scenes = session.stimuli.onset_s[[name == SCENES for name in session.stimuli.category]]
    assert abs(split.test[0][0] - (scenes[32] * 30 - 96)) <= 1


def test_presentations_are_spread_evenly(tmp_path: Path) -> None:
    session = stored(tmp_path, trials=120)
    whole = RunData.read(session, category=GRATING, most=ALL).members[0]
    some = RunData.read(session, category=GRATING, most=MostTrials(train=8, validation=6, test=10)).members[0]
    for part, most in (("train", 8), ("validation", 6), ("test", 10)):
        every, chosen = whole.real[part].moments.frame, some.real[part].moments.frame
        assert most - 2 <= len(chosen) <= most, "but for windows that reach out of the part"
        assert set(chosen) <= set(every)
        steps = np.diff(chosen)
        assert steps.max() - steps.min() <= np.diff(every).max(), f"{part}: {steps}"
        # First to last, not the beginning alone.
        assert chosen[-1] - chosen[0] >= 0.8 * (every[-1] - every[0])
    assert some.test_share == pytest.approx(len(some.real["test"].moments) / 40, rel=0.05)


def test_minutes_are_those_of_the_presentations_that_were_read(tmp_path: Path) -> None:
    session = stored(tmp_path, trials=120)
    all_of_it = RunData.read(session, category=GRATING, most=ALL)
    start, stop = all_of_it.members[0].split.test[0]
    assert all_of_it.minutes == pytest.approx((stop - start) / 30 / 60 * all_of_it.members[0].test_share)
    half = RunData.read(session, category=GRATING, most=MostTrials(test=20))
    assert half.minutes == pytest.approx(all_of_it.minutes * 0.5, rel=0.06)


def test_pseudo_onsets_of_another_category_never_enter(tmp_path: Path) -> None:
    session = stored(tmp_path, two_categories())
    run = RunData.read(session, category=GRATING, most=ALL)
    member = run.members[0]
    assert set(member.pseudo.moments.category) == {ONGOING + GRATING, NOTHING}
    assert set(member.control.moments.category) <= {ONGOING + GRATING, NOTHING}
    assert len(member.control.moments) > 0
    scenes = session.stimuli.onset_s[[name == SCENES for name in session.stimuli.category]] * 30
    for moments in (member.pseudo.moments, member.control.moments):
        for frame in moments.frame:
            assert not ((scenes <= frame) & (frame < scenes + 60)).any(), "inside a scene"
            assert not ((scenes > frame) & (scenes < frame + 64)).any(), "a scene begins in its response"
    for part in PARTS:
        assert set(member.real[part].moments.category) == {GRATING}
    assert all(name.startswith("dir=") for name in run.vocabulary.stimulus_ids)


def test_moments_are_anywhere_in_training_and_told_what_their_presentation_is(tmp_path: Path) -> None:
    session = stored(tmp_path, two_categories())
    run = RunData.read(session, category=GRATING, most=ALL)
    member, made = run.members[0], run.sources(0.2)
    real, anywhere = member.real["train"].moments, member.moments.moments
    spans = [np.arange(low + 96, high - 63) for low, high in member.split.train]
    whole = np.concatenate(spans)
    assert set(anywhere.frame) <= set(whole)
    assert np.diff(anywhere.frame).min() == MOMENT_STRIDE
    assert len(anywhere) == pytest.approx(len(whole) / MOMENT_STRIDE, abs=len(spans))
    # Onsets begin in the responses of some of them, which no pseudo-onset may have.
    begins = (real.frame[:, None] > anywhere.frame) & (real.frame[:, None] < anywhere.frame + 64)
    assert begins.any(0).mean() > 0.1
    train, moments = made.train.parts[0], made.moments.parts[0]
    for i, frame in enumerate(anywhere.frame):
        own = int(np.abs(real.frame - frame).argmin())
        np.testing.assert_array_equal(moments.tuning[i], train.tuning[own])
        np.testing.assert_array_equal(moments.population_tuning[i], train.population_tuning[own])
    # Nothing is missing from what is drawn of them, in rows or whole trials; of onsets' baselines much is.
    rng = np.random.default_rng(0)
    assert made.train.chosen(600, rng)[1].any()
    assert not made.moments.chosen(600, rng)[1].any()
    whole_trials, _ = made.moments.draw_trials(60, rng)
    assert (whole_trials.baseline[:, -1] != whole_trials.baseline[:, -2]).all()
    some = RunData.read(session, category=GRATING, most=MostTrials(moments=10))
    assert 0 < len(some.members[0].moments.moments) <= 10
    none = RunData.read(session, category=GRATING, most=MostTrials(moments=0))
    assert len(none.sources(0.2).moments) == 0


def test_parts_share_no_frame(tmp_path: Path) -> None:
    member = RunData.read(stored(tmp_path, trials=60, sub_sessions=3), category=GRATING, most=ALL).members[0]
    read = {part: set[int]() for part in PARTS}
    for part, trials in [
        *member.real.items(),
        ("train", member.pseudo),
        ("train", member.moments),
        ("test", member.control),
    ]:
        for frame in trials.moments.frame:
            read[part] |= set(range(frame - 96, frame + 64))
    assert not read["train"] & read["validation"]
    assert not read["train"] & read["test"]
    assert not read["validation"] & read["test"]


def test_a_category_that_was_not_shown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=f"s has no stimuli of category '{SCENES}'; it has {GRATING}"):
        RunData.read(stored(tmp_path, trials=12), category=SCENES, most=ALL)


def test_too_few_presentations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="5 presentations"):
        RunData.read(stored(tmp_path, trials=5), category=GRATING, most=ALL)


def test_a_part_without_a_usable_trial_is_refused_with_the_reasons(tmp_path: Path) -> None:
    recording = small_recording(trials=48)
    session = stored(tmp_path, recording)
    start = split_of(session, category=GRATING).test[0][0]

    def dark(traces: np.ndarray) -> None:
        traces[start:] = np.nan

    with pytest.raises(RecordingError, match=r"night: no usable trial of drifting_gratings in the test part.*not finite': \d\d"):
        RunData.read(stored(tmp_path, damaged(recording, dark), name="night"), category=GRATING, most=ALL)


@pytest.mark.parametrize("level", [1.0, 0.0])
def test_one_class_alone_is_refused(tmp_path: Path, level: float) -> None:
    """Constant traces answer to nothing; traces of zeros have no F0."""
    recording = small_recording(trials=48)
    flat = replace(recording, fluorescence=np.full_like(recording.fluorescence, level))
    expected = "inactive; a comparison needs both" if level else "no usable trial"
    with pytest.raises(RecordingError, match=expected):
        RunData.read(stored(tmp_path, flat), category=GRATING, most=ALL)


def test_one_neuron_is_enough(tmp_path: Path) -> None:
    assert finite(RunData.read(stored(tmp_path, trials=48, neurons=1), category=GRATING, most=ALL)) > 5


@pytest.mark.parametrize("value", [0.0, 1e-30, np.nan, -5.0, 7.0])
def test_a_neuron_that_says_nothing_costs_nobody_else_a_row(tmp_path: Path, value: float) -> None:
    """No light, nearly none, none measured, less than none, or always the same."""
    recording = small_recording(trials=48, neurons=3)

    def silence(traces: np.ndarray) -> None:
        traces[:, 1] = value

    run = RunData.read(stored(tmp_path, damaged(recording, silence)), category=GRATING, most=ALL)
    finite(run)
    whole = RunData.read(stored(tmp_path, recording, name="whole"), category=GRATING, most=ALL).sources(0.2).test
    rows, expected = run.sources(0.2).test.rows(), whole.rows()
    for neuron in (0, 2):
        np.testing.assert_array_equal(rows.response[rows.neuron == neuron], expected.response[expected.neuron == neuron])
    assert not rows.active[rows.neuron == 1].any()
    if not value > 0:
        assert not (rows.neuron == 1).any(), "without F0 there is no dF/F"


def test_runs_of_nothing_cost_their_trials_only(tmp_path: Path) -> None:
    recording = small_recording(trials=48, neurons=3)

    def gaps(traces: np.ndarray) -> None:
        for trial in (3, 17, 40):
            onset = int((5.0 + 3.0 * trial) * 30)
            traces[onset - 10 : onset + 5, 2] = np.nan

    whole = RunData.read(stored(tmp_path, recording), category=GRATING, most=ALL)
    run = RunData.read(stored(tmp_path, damaged(recording, gaps), name="gaps"), category=GRATING, most=ALL)
    finite(run)
    lost = sum(
        int((whole.members[0].real[part].valid & ~run.members[0].real[part].valid).sum()) for part in PARTS
    )
    assert 3 <= lost <= 9, "and neighbours whose windows reach into them"
    for part in PARTS:
        np.testing.assert_array_equal(run.members[0].real[part].valid[:, :2], whole.members[0].real[part].valid[:, :2])


def test_a_neuron_that_appears_in_the_test_part_alone_is_asked_about_with_numbers(tmp_path: Path) -> None:
    recording = small_recording(trials=48, neurons=3)
    start = split_of(stored(tmp_path, recording), category=GRATING).test[0][0]

    def late(traces: np.ndarray) -> None:
        traces[:start, 1] = np.nan

    run = RunData.read(stored(tmp_path, damaged(recording, late), name="late"), category=GRATING, most=ALL)
    finite(run)
    assert (run.sources(0.2).test.rows().neuron == 1).any()


@pytest.fixture(scope="module")
def mice(tmp_path_factory: pytest.TempPathFactory) -> list[RunData]:
    directory = tmp_path_factory.mktemp("mice")
    runs = []
    for number, neurons in enumerate((2, 3)):
        # Neurons of both are called n000, n001 ...
        made = small_recording(trials=48, neurons=neurons, seed=number, start_s=6.0, period_s=4.5)
        made = replace(made, provenance=replace(made.provenance, subject=f"m{number}"))
        runs.append(RunData.read(write_session(made, directory / f"m{number}"), category=GRATING, most=ALL))
    return runs


def test_pooled_mice_keep_neurons_trials_and_tuning_apart(mice: list[RunData]) -> None:
    pooled = RunData.pooled(mice)
    assert pooled.vocabulary.neuron_ids == ("m0/n000", "m0/n001", "m1/n000", "m1/n001", "m1/n002")
    assert pooled.minutes == pytest.approx(mice[0].minutes + mice[1].minutes)
    together, alone = pooled.sources(0.2), [run.sources(0.2) for run in mice]
    for part in ("train", "pseudo", "validation", "test", "control"):
        rows = getattr(together, part).rows()
        first = rows.neuron < 2
        assert set(rows.neuron[first]) == {0, 1}
        assert set(rows.neuron[~first]) == {2, 3, 4}
        assert set(rows.trial[first]).isdisjoint(rows.trial[~first]), part
        joined, apart = getattr(together, part).at_lead(0), [getattr(one, part).at_lead(0) for one in alone]
        cut = len(apart[0])
        for name in ("baseline", "response", "active", "level"):
            both = np.concatenate([getattr(one, name).numpy() for one in apart])
            np.testing.assert_array_equal(getattr(joined, name).numpy(), both, err_msg=f"{part} {name}")
        # The regressions are the mouse's own, whatever the vocabulary they are written in.
        np.testing.assert_allclose(joined.tuning[:cut], apart[0].tuning, atol=1e-5)
        np.testing.assert_allclose(joined.tuning[cut:], apart[1].tuning, atol=1e-5)


def test_one_mouse_has_no_part_in_the_tuning_of_another(mice: list[RunData]) -> None:
    changed = replace(mice[1].members[0], real=dict(mice[1].members[0].real))
    train = changed.real["train"]
    other = replace(changed, real={**changed.real, "train": replace(train, values=train.values + 3.0)})
    before = RunData.pooled(mice).sources(0.2).test.at_lead(0)
    after = RunData.pooled([mice[0], replace(mice[1], members=(other,))]).sources(0.2).test.at_lead(0)
    first = before.neuron.numpy() < 2
    np.testing.assert_array_equal(before.tuning[first], after.tuning[first])
    assert not np.array_equal(before.tuning[~first], after.tuning[~first])


def test_moments_before_the_first_presentation_are_nobodys_trial(tmp_path: Path) -> None:
    """They have number -1, which is not the last presentation of the mouse before."""
    runs = []
    for number in range(2):
        made = small_recording(trials=48, seed=number, start_s=12.0, period_s=6.0)
        made = replace(made, provenance=replace(made.provenance, subject=f"m{number}"))
        runs.append(RunData.read(stored(tmp_path, made, name=f"m{number}"), category=GRATING, most=ALL))
    assert (runs[1].members[0].pseudo.moments.trial == -1).any(), "otherwise nothing is tested"
    rows = RunData.pooled(runs).sources(0.2).pseudo.rows()
    assert set(rows.trial[rows.neuron < 3]).isdisjoint(rows.trial[rows.neuron >= 3])
