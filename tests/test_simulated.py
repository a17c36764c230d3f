"""The simulated mouse: determinism, units, schedules, tuning, neuropil, the knob at zero."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from quantformer.activation_metrics import auroc
from quantformer.errors import RecordingError, UsageError
from quantformer.recording import Recording, StimulusTable
from quantformer.signal import onset_frames
from quantformer_training.simulated import (
    ALLEN_A,
    ALLEN_B,
    ALLEN_C,
    MouseConfig,
    Schedule,
    SimulatedSession,
    allen_spikes_session,
    session_from_spikes,
    short_schedule,
    short_session,
    simulate_session,
)

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@lru_cache(maxsize=4)
def session_of(config: MouseConfig, *, presentations: int = 82) -> SimulatedSession:
    return short_session(config, presentations=presentations)


def responses(recording: Recording) -> NDArray[np.float64]:
    """Mean dF/F (presentations, neurons) of the 60 frames after each onset."""
    trace = recording.corrected().astype(np.float64)
    onsets = onset_frames(recording.timestamps_s, recording.stimuli.onset_s)
    return np.stack([trace[f : f + 60].mean(axis=0) / trace[f - 60 : f].mean(axis=0) - 1.0 for f in onsets])


def test_equal_configs_make_equal_sessions_and_seeds_differ() -> None:
    config = MouseConfig(neurons=6, seed=3)
    one = short_session(config, presentations=10)
    two = short_session(config, presentations=10)
    other = short_session(MouseConfig(neurons=6, seed=4), presentations=10)
    np.testing.assert_array_equal(one.recording.fluorescence, two.recording.fluorescence)
    np.testing.assert_array_equal(one.recording.stimuli.onset_s, two.recording.stimuli.onset_s)
    np.testing.assert_array_equal(one.truth.spikes, two.truth.spikes)
    assert not np.array_equal(one.recording.fluorescence, other.recording.fluorescence)


def test_another_day_has_the_same_neurons_and_other_noise() -> None:
    config = MouseConfig(neurons=6, seed=3)
    monday = simulate_session(config, schedule=short_schedule(presentations=10), session="monday")
    tuesday = simulate_session(config, schedule=short_schedule(presentations=10), session="tuesday")
    assert monday.recording.neuron_ids == tuesday.recording.neuron_ids
    np.testing.assert_array_equal(monday.mouse.tuning.direction_deg, tuesday.mouse.tuning.direction_deg)
    assert not np.array_equal(monday.truth.spikes, tuesday.truth.spikes)


def test_shapes_units_and_origin() -> None:
    session = session_of(MouseConfig())
    recording, truth = session.recording, session.truth
    assert recording.provenance.origin == "simulated"
    assert recording.signal == "raw"
    assert recording.fluorescence.shape == truth.spikes.shape == truth.dff.shape == (recording.frames, 60)
    assert 29.8 < recording.rate_hz < 30.2
    assert np.diff(recording.timestamps_s).std() > 0
    assert 600 < recording.duration_s < 800
    assert (truth.dff >= 0).all()
    assert truth.rate_hz is not None
    counted = truth.spikes.sum() / (recording.duration_s * 60)
    assert counted == pytest.approx(truth.rate_hz.mean(), rel=0.05)
    assert set(recording.stimuli.sub_session.tolist()) == {0, 1, 2}


def test_about_five_percent_of_responses_are_active() -> None:
    active = responses(session_of(MouseConfig()).recording) >= 0.10
    assert 0.03 < active.mean() < 0.08


def test_rates_are_heavy_tailed() -> None:
    rates = session_of(MouseConfig()).truth.spikes.mean(axis=0)
    assert rates.mean() > 1.1 * np.median(rates)
    assert rates.max() > 3 * np.median(rates)


def test_preferred_direction_is_found_in_the_fluorescence() -> None:
    session = session_of(MouseConfig(active_fraction=0.15, evoked=3.0))
    table = session.recording.stimuli
    shown = table.features["blank"] == 0.0
    turn = np.deg2rad(table.features["direction_deg"][shown])
    area = responses(session.recording)[shown]
    mean = np.stack([area[turn == angle].mean(axis=0) for angle in np.unique(turn)])
    drive = session.mouse.tuning.drive_hz(table)[shown]
    expected = np.stack([drive[turn == angle].mean(axis=0) for angle in np.unique(turn)])
    driven = np.flatnonzero(expected.max(axis=0) > np.median(expected.max(axis=0)))
    similar = [np.corrcoef(mean[:, n], expected[:, n])[0, 1] for n in driven]
    assert np.median(similar) > 0.6
    rng = np.random.default_rng(0)
    shuffled = [np.corrcoef(rng.permutation(mean[:, n]), expected[:, n])[0, 1] for n in driven]
    assert np.median(shuffled) < 0.3


def test_the_true_neuropil_factor_removes_the_neuropil() -> None:
    session = session_of(MouseConfig())
    recording, truth = session.recording, session.truth
    assert recording.neuropil is not None
    without = truth.resting * (1.0 + truth.dff)
    raw = np.abs(np.median(recording.fluorescence - without, axis=0))
    corrected = np.abs(np.median(recording.corrected() - without, axis=0))
    assert (corrected < 0.05 * raw).all()
    left = recording.corrected() - without
    quiet = [abs(np.corrcoef(left[:, n], recording.neuropil[:, n])[0, 1]) for n in range(recording.neurons)]
    assert max(quiet) < 0.12


@pytest.mark.parametrize(
    ("schedule", "counts"),
    [
        (ALLEN_A, {"drifting_gratings": 628}),
        (ALLEN_B, {"static_gratings": 6000, "natural_scenes": 5950}),
        (ALLEN_C, {"locally_sparse_noise": 8880}),
    ],
)
def test_schedules_count_as_the_allen_sessions(schedule: Schedule, counts: dict[str, int]) -> None:
    table = schedule.table(np.random.default_rng(0))
    assert {name: table.category.count(name) for name in set(table.category)} == counts | {"spontaneous": 1}
    ends = table.onset_s + table.duration_s
    assert (ends[:-1] <= table.onset_s[1:] + 1e-9).all()
    for name in counts:
        assert set(table.sub_session[np.array(table.category) == name].tolist()) == {0, 1, 2}
    assert (np.diff(table.onset_s) > 0.2).all()
    assert table.onset_s[-1] + table.duration_s[-1] + 2.2 < schedule.duration_s


def test_drifting_gratings_are_balanced() -> None:
    table = ALLEN_A.table(np.random.default_rng(0))
    table = table.select(np.array(table.category) == "drifting_gratings")
    assert [int((table.sub_session == k).sum()) for k in range(3)] == [200, 200, 228]
    ids = [name for name in table.stimulus_id if "blank" not in name]
    assert len(set(ids)) == 40
    assert {ids.count(name) for name in set(ids)} == {15}
    assert len(table) - len(ids) == 28


def within_pairs(
    score: NDArray[np.float64], active: NDArray[np.bool_], pair: NDArray[np.intp]
) -> tuple[float, float, float]:
    """Mean AUROC within neuron x stimulus of (trials, neurons) scores, and its 95 % interval over the pairs."""
    found = []
    for n in range(active.shape[1]):
        for stimulus in np.unique(pair):
            value = auroc(score[pair == stimulus, n], active[pair == stimulus, n])
            if np.isfinite(value):
                found.append(value)
    mean, error = float(np.mean(found)), float(np.std(found) / np.sqrt(len(found)))
    return mean, mean - 1.96 * error, mean + 1.96 * error


def baseline_scores(recording: Recording) -> dict[str, tuple[float, float, float]]:
    """AUROC within neuron x stimulus of features of the baseline, and of a logistic regression on all of them."""
    trace = recording.corrected().astype(np.float64)
    onsets = onset_frames(recording.timestamps_s, recording.stimuli.onset_s)
    active = responses(recording) >= 0.10
    pair = np.unique(recording.stimuli.stimulus_id, return_inverse=True)[1].reshape(-1)
    f0 = np.stack([trace[f - 60 : f].mean(axis=0) for f in onsets])
    ratio = np.stack([trace[f - 5 : f].mean(axis=0) for f in onsets]) / f0 - 1.0
    features = {
        "last frames over F0": ratio,
        "F0 over its median": f0 / np.median(f0, axis=0),
        "rise over the baseline": np.stack(
            [trace[f - 48 : f].mean(axis=0) - trace[f - 96 : f - 48].mean(axis=0) for f in onsets]
        )
        / f0,
        "mean of all neurons' last frames": np.broadcast_to(ratio.mean(axis=1, keepdims=True), ratio.shape),
    }
    early = len(onsets) * 2 // 3
    columns = np.stack(list(features.values()), axis=-1)
    columns = (columns - columns.mean(axis=(0, 1))) / columns.std(axis=(0, 1))
    model = LogisticRegression(C=1.0).fit(columns[:early].reshape(-1, 4), active[:early].ravel())
    late = model.decision_function(columns[early:].reshape(-1, 4)).reshape(-1, active.shape[1])
    scores = {name: within_pairs(score, active, pair) for name, score in features.items()}
    return scores | {"logistic regression": within_pairs(late, active[early:], pair[early:])}


def test_at_zero_the_baseline_tells_nothing_beyond_neuron_and_stimulus() -> None:
    session = session_of(MouseConfig(neurons=100, baseline_information=0.0), presentations=162)
    active = responses(session.recording) >= 0.10
    assert 0.03 < active.mean() < 0.08
    for name, (mean, low, high) in baseline_scores(session.recording).items():
        assert low < 0.5 < high, f"{name}: {mean:.3f}, {low:.3f} to {high:.3f}"
        assert high - low < 0.06


def test_at_one_the_baseline_tells_something() -> None:
    scores = baseline_scores(session_of(MouseConfig()).recording)
    for name in ("last frames over F0", "logistic regression"):
        assert scores[name][1] > 0.52, f"{name}: {scores[name]}"


def test_scenes_and_noise_drive_the_neurons() -> None:
    mouse = session_of(MouseConfig()).mouse
    for schedule in (ALLEN_B, ALLEN_C):
        table = schedule.table(np.random.default_rng(0))
        drive = mouse.tuning.drive_hz(table)
        for name in set(table.category) - {"spontaneous"}:
            rows = np.array(table.category) == name
            blank = rows & np.array([label.endswith("/blank") for label in table.stimulus_id])
            assert (drive[rows].max(axis=0) > 0.05).mean() > 0.8
            assert (drive[blank] == 0).all()


def test_given_spikes_become_a_semi_synthetic_session() -> None:
    spikes = (np.random.default_rng(0).random((1200, 3)) < 0.02).astype(np.uint8)
    made = session_from_spikes(
        spikes, rate_hz=30.03, stimuli=StimulusTable.empty(), indicator="GCaMP6s", seed=1, source="test"
    )
    assert made.recording.provenance.origin == "semi-synthetic"
    np.testing.assert_array_equal(made.truth.spikes, spikes)
    first = int(np.flatnonzero(spikes[:, 0])[0])
    assert (made.truth.dff[:first, 0] == 0).all()
    assert made.truth.dff[first + 1 : first + 20, 0].max() > 0.03


def test_spikes_that_are_not_counts_are_refused() -> None:
    cases: list[NDArray[np.integer]] = [np.zeros((10, 2)), np.full((10, 2), -1), np.zeros(10, np.int64)]  # type: ignore[list-item]
    for wrong in cases:
        with pytest.raises(RecordingError, match="whole counts"):
            session_from_spikes(
                wrong, rate_hz=30.0, stimuli=StimulusTable.empty(), indicator="GCaMP6f", seed=0, source="test"
            )
    with pytest.raises(RecordingError, match="within 5 %"):
        session_from_spikes(
            np.zeros((10, 2), np.uint8),
            rate_hz=10.0,
            stimuli=StimulusTable.empty(),
            indicator="GCaMP6f",
            seed=0,
            source="test",
        )


@pytest.mark.parametrize(
    "wrong", [{"neurons": 0}, {"baseline_information": 1.5}, {"active_fraction": 0.0}, {"indicator": "OGB"}]
)
def test_senseless_configs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"expected|needs"):
        MouseConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_real_spikes_file_gives_242_neurons_and_628_onsets() -> None:
    path = DATA / "allen_511510667_session_a.npz"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside the checkout")
    recording = allen_spikes_session(path)
    assert recording.neurons == 242
    assert len(recording.stimuli) == 628
    assert np.bincount(recording.stimuli.sub_session).tolist() == [200, 200, 228]
    assert recording.provenance.origin == "semi-synthetic"
    onsets = onset_frames(recording.timestamps_s, recording.stimuli.onset_s)
    with np.load(path) as arrays:
        np.testing.assert_array_equal(onsets, arrays["onset_frame"])
