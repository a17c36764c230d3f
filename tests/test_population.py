"""What the other neurons did before an onset: causal, from training statistics, and what it says it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from quantformer.errors import DataError, RecordingError
from quantformer_training.population import COLUMNS, COMPONENTS, WINDOWS, Population

FRAMES, NEURONS = 900, 8
SPANS = ((0, 300), (350, 600))
#: Columns by what they are, in the order of the windows.
MEAN, PARTS, SPEED = slice(0, 2), slice(2, 2 + 2 * COMPONENTS), slice(2 + 2 * COMPONENTS, COLUMNS)


def recorded(seed: int = 0, *, neurons: int = NEURONS) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Traces that share latent activity, and a running speed."""
    rng = np.random.default_rng(seed)
    latent = np.cumsum(rng.normal(0, 1, (FRAMES, 3)), axis=0)
    trace = 300 + 5 * latent @ rng.normal(0, 1, (3, neurons)) + rng.normal(0, 4, (FRAMES, neurons))
    return trace.astype(np.float32), np.abs(rng.normal(3, 2, FRAMES)).astype(np.float32)


def population(trace: NDArray[np.float32], speed: NDArray[np.float32] | None = None, *, rate_hz: float = 30.0) -> Population:
    return Population(trace, spans=SPANS, rate_hz=rate_hz, running_speed_cm_s=speed)


def z_scored(trace: NDArray[np.float32]) -> NDArray[np.float64]:
    training = np.concatenate([trace[a:b] for a, b in SPANS]).astype(np.float64)
    return np.asarray((trace - np.median(training, axis=0)) / training.std(axis=0))


def grid(frames: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    frame, neuron = np.meshgrid(frames, np.arange(NEURONS), indexing="ij")
    return frame.ravel(), neuron.ravel()


def test_the_mean_is_over_the_other_neurons() -> None:
    trace, _ = recorded()
    activity = z_scored(trace)
    frame, neuron = grid([700, 120, 700, 31])
    found = population(trace).context(frame=frame, neuron=neuron)
    assert found.shape == (len(frame), COLUMNS)
    assert found.dtype == np.float32
    for row, (f, k) in enumerate(zip(frame, neuron, strict=True)):
        others = np.delete(activity, k, axis=1)
        expected = [others[max(f - window, 0) : f].mean() for window in WINDOWS]
        assert found[row, MEAN] == pytest.approx(expected, abs=1e-5)


def test_components_are_those_of_training_activity() -> None:
    trace, _ = recorded()
    activity = z_scored(trace)
    fitted = PCA(n_components=COMPONENTS).fit(np.concatenate([activity[a:b] for a, b in SPANS]))
    frames = [100, 500, 850]
    found = population(trace).context(frame=np.array(frames), neuron=np.zeros(3, int))[:, PARTS]
    sign = np.sign(fitted.components_.sum(axis=1))
    for row, f in enumerate(frames):
        for number, window in enumerate(WINDOWS):
            score = fitted.transform(activity[f - window : f].mean(axis=0)[None])[0] * sign
            count = 550
            expected = score / np.sqrt(fitted.explained_variance_ * (count - 1) / count)
            assert found[row, number :: len(WINDOWS)] == pytest.approx(expected, abs=1e-3)


@settings(max_examples=30)
@given(st.integers(45, FRAMES), st.integers(0, 10), st.integers(0, NEURONS - 1), st.sampled_from([30.0, 20.0, 15.0]))
def test_nothing_at_or_after_the_withheld_frames_is_read(frame: int, lead: int, neuron: int, rate_hz: float) -> None:
    # Fails where a window ends one frame late: the frame before the cut does change the answer.
    trace, speed = recorded()
    fitted = population(trace, speed, rate_hz=rate_hz)
    asked: dict[str, Any] = {"frame": np.array([frame]), "neuron": np.array([neuron]), "lead": lead}
    before = fitted.context(**asked)
    cut = frame - int(np.ceil(lead * rate_hz / 30.0))
    changed, faster = trace.copy(), speed.copy()
    changed[cut:], faster[cut:] = 1e6, 1e6
    # The statistics stay those of training; only what is read at the onset differs.
    fitted.trace, fitted.running = changed, faster
    assert np.array_equal(fitted.context(**asked), before)
    changed[cut - 1], faster[cut - 1] = 1e6, 1e6
    after = fitted.context(**asked)
    assert (after[0, MEAN] != before[0, MEAN]).all()
    assert (after[0, SPEED] != before[0, SPEED]).all()


def test_statistics_are_of_training_frames_alone() -> None:
    trace, speed = recorded()
    frame, neuron = grid([200, 500])
    before = population(trace, speed).context(frame=frame, neuron=neuron)
    trace[600:], speed[600:] = trace[600:] * 7.0, 50.0
    trace[300:350] += 900.0
    assert np.array_equal(population(trace, speed).context(frame=frame, neuron=neuron), before)
    trace[100:110] += 900.0
    assert not np.allclose(population(trace, speed).context(frame=frame, neuron=neuron), before)


def test_running_speed_is_in_training_standard_deviations() -> None:
    trace, speed = recorded()
    training = np.concatenate([speed[a:b] for a, b in SPANS]).astype(np.float64)
    scaled = (speed - training.mean()) / training.std()
    frame = np.array([80, 640])
    found = population(trace, speed).context(frame=frame, neuron=np.zeros(2, int), lead=3)
    for row, f in enumerate(frame):
        assert found[row, SPEED] == pytest.approx([scaled[f - 3 - w : f - 3].mean() for w in WINDOWS], abs=1e-5)
    assert (population(trace).context(frame=frame, neuron=np.zeros(2, int))[:, SPEED] == 0).all()


def test_broken_neurons_harm_no_other() -> None:
    trace, speed = recorded()
    frame, neuron = grid([200, 500])
    whole = population(trace[:, :6]).context(frame=frame[neuron < 6], neuron=neuron[neuron < 6])
    trace[:, 6], trace[:, 7] = 5.0, np.nan
    speed[150:220] = np.nan
    found = population(trace, speed).context(frame=frame, neuron=neuron)
    assert np.isfinite(found).all()
    kept = found[neuron < 6]
    # Two silent neurons lower the mean by their share and change no component.
    assert kept[:, MEAN] == pytest.approx(whole[:, MEAN] * 5 / 7, abs=1e-5)
    assert kept[:, PARTS] == pytest.approx(whole[:, PARTS], abs=1e-3)


@pytest.mark.parametrize("neurons", [1, 2])
def test_a_small_population_has_zeros_where_nothing_is(neurons: int) -> None:
    trace, _ = recorded(neurons=neurons)
    found = population(trace).context(frame=np.array([400]), neuron=np.array([0]))
    assert found.shape == (1, COLUMNS)
    assert (found[:, 2 + 2 * neurons :] == 0).all()
    assert (found[:, 2 : 2 + 2 * neurons] != 0).all()
    assert ((found[:, MEAN] == 0) == (neurons == 1)).all()


def test_rows_come_in_the_asked_order_whatever_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    trace, speed = recorded()
    rng = np.random.default_rng(3)
    frame, neuron = rng.integers(50, FRAMES, 200), rng.integers(0, NEURONS, 200)
    whole = population(trace, speed).context(frame=frame, neuron=neuron)
    monkeypatch.setattr("quantformer_training.population._CHUNK", 7)
    pieces = population(trace, speed)
    assert pieces.context(frame=frame, neuron=neuron) == pytest.approx(whole, abs=1e-4)
    alone = pieces.context(frame=frame[5:6], neuron=neuron[5:6])
    assert alone[0] == pytest.approx(whole[5], abs=1e-4)
    assert pieces.context(frame=frame[:0], neuron=neuron[:0]).shape == (0, COLUMNS)


def test_what_cannot_be_is_refused() -> None:
    trace, speed = recorded()
    with pytest.raises(RecordingError, match="training frames"):
        Population(trace, spans=((5, 5),), rate_hz=30.0)
    with pytest.raises(RecordingError, match=r"running speed has shape \(3,\), expected \(900,\)"):
        Population(trace, spans=SPANS, rate_hz=30.0, running_speed_cm_s=speed[:3])
    fitted = population(trace)
    for frame, lead in ((0, 0), (5, 5), (FRAMES + 1, 0)):
        with pytest.raises(DataError, match="at least one frame before it"):
            fitted.context(frame=np.array([frame]), neuron=np.array([0]), lead=lead)
