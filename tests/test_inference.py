"""The inference thread against the offline functions and the runtime called directly."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from quantformer.bundle import Bundle, load_bundle
from quantformer.config import F0_LEVELS, POPULATION_LEVELS
from quantformer.errors import ProviderError
from quantformer.population_level import joined_level
from quantformer.signal import f0_level, read_baseline, window_on_grid
from quantformer_service.buffers import Device
from quantformer_service.inference import Inference, Slot, write_input
from quantformer_service.network import Network
from quantformer_service.runtime import open_session

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def bundle(tiny_bundle_path: Path) -> Bundle:
    return load_bundle(tiny_bundle_path)


def filled(bundle: Bundle, *, rows: int = 96, seed: int = 0, neurons: int = 4) -> Slot:
    rng = np.random.default_rng(seed)
    slot = Slot()
    slot.room(rows, neurons)[:] = rng.lognormal(5, 0.2, (rows, neurons))
    slot.observed = np.ones(rows, np.bool_)
    known = bundle.neurons(bundle.manifest.neuron_ids[:neurons], unknown="refuse")
    slot.neuron, slot.f0_minimum, slot.usual_f0 = known.vectors, known.f0_minimum, known.usual_f0
    slot.population = known.population
    slot.stimulus = np.stack([bundle.stimulus("dir=000"), bundle.stimulus("dir=090")])
    slot.row_neuron = np.tile(np.arange(neurons), 2)
    slot.row_stimulus = np.repeat(np.arange(2), neurons)
    return slot


def computed(inference: Inference, woken: threading.Event, slot: Slot) -> Slot:
    inference.submit(slot)
    end = time.monotonic() + PATIENCE_S
    while (done := inference.collect()) is None:
        assert woken.wait(max(0.0, end - time.monotonic()))
        woken.clear()
    return done


def test_a_slot_comes_back_with_what_the_runtime_says_of_its_window(bundle: Bundle) -> None:
    woken = threading.Event()
    inference = Inference(bundle, provider="cpu", threads=1, on_done=woken.set)
    inference.start()
    assert inference.ready.wait(PATIENCE_S)
    assert inference.provider == "cpu"
    slot = filled(bundle)
    window = slot.values.copy()
    slot.observed[-3:] = False
    done = computed(inference, woken, slot)
    assert done is slot
    assert done.failure is None
    baseline = read_baseline(window, recipe=bundle.recipe, f0_minimum=slot.f0_minimum, observed=slot.observed)
    assert done.baseline.tobytes() == baseline.dff.tobytes()
    np.testing.assert_array_equal(done.f0, baseline.f0)
    told = slot.population.of(window, observed=slot.observed)
    level = joined_level(f0_level(baseline.f0, bundle.vectors.usual_f0[:4]), told)
    np.testing.assert_array_equal(done.level, level)
    assert told.all()
    assert np.ptp(done.level[:, :F0_LEVELS], axis=0).min() > 0.01
    direct = open_session(bundle, provider="cpu", threads=1)
    logit, response, spread = direct.run(
        ["logit", "response", "spread"],
        {
            "baseline": baseline.dff,
            "level": level,
            "neuron": slot.neuron,
            "stimulus": slot.stimulus,
            "row_neuron": slot.row_neuron,
            "row_stimulus": slot.row_stimulus,
        },
    )
    np.testing.assert_allclose(done.probability, bundle.probability(logit), atol=1e-6)
    assert done.response is not None
    assert done.scale is not None
    np.testing.assert_allclose(done.response, response, atol=1e-5)
    np.testing.assert_allclose(done.scale, bundle.interval_scale(spread), atol=1e-5)
    assert 0 < slot.submitted_ns <= slot.done_ns
    assert inference.stop(PATIENCE_S)


def test_a_forecast_is_written_to_where_the_loop_told_bit_for_bit(bundle: Bundle) -> None:
    woken = threading.Event()
    inference = Inference(bundle, provider="cpu", threads=1, on_done=woken.set)
    inference.start()
    assert inference.ready.wait(PATIENCE_S)
    alone = computed(inference, woken, filled(bundle))
    assert not alone.in_place
    told = filled(bundle)
    told.places = places = np.full((8, 64), np.nan, np.float32), np.full(8, np.nan, np.float32)
    done = computed(inference, woken, told)
    assert done.in_place
    for place, found, expected in zip(
        places, (done.response, done.scale), (alone.response, alone.scale), strict=True
    ):
        assert found is place
        assert expected is not None
        assert place.tobytes() == expected.tobytes()
    # Without a forecast nothing is written, whatever was told.
    told = filled(bundle)
    told.places, told.forecast = done.places, False
    assert not computed(inference, woken, told).in_place
    assert inference.stop(PATIENCE_S)


def test_a_brighter_neuron_gets_another_answer_for_the_same_dff_an_unknown_one_does_not(bundle: Bundle) -> None:
    woken = threading.Event()
    inference = Inference(bundle, provider="cpu", threads=1, on_done=woken.set)
    inference.start()
    assert inference.ready.wait(PATIENCE_S)
    answers = {}
    for brightness in (1.0, 2.0):
        slot = filled(bundle)
        slot.values *= np.float32(brightness)
        mixed = bundle.neurons([*bundle.manifest.neuron_ids[:3], "stranger"], unknown="mark")
        slot.neuron, slot.f0_minimum, slot.usual_f0 = mixed.vectors, mixed.f0_minimum, mixed.usual_f0
        # Nobody takes part in the population's level, which would tell the stranger too.
        slot.population = dataclasses.replace(mixed.population, loading=np.zeros((4, POPULATION_LEVELS)))
        answers[brightness] = computed(inference, woken, slot)
    one, two = answers.values()
    assert one.baseline.tobytes() == two.baseline.tobytes()
    assert not one.level[3].any()
    assert not two.level[3].any()
    assert one.level[:3, :F0_LEVELS].all()
    stranger = one.row_neuron == 3
    np.testing.assert_array_equal(one.probability[stranger], two.probability[stranger])
    # In the same batch the stranger's rows agree to the last bit, so any difference is the level's.
    assert (one.probability != two.probability)[~stranger].all()
    assert inference.stop(PATIENCE_S)


def test_what_one_neuron_does_moves_the_answer_about_another(bundle: Bundle) -> None:
    """By the population's level alone: its own window is the same."""
    woken = threading.Event()
    inference = Inference(bundle, provider="cpu", threads=1, on_done=woken.set)
    inference.start()
    assert inference.ready.wait(PATIENCE_S)

    def brightened(frames: slice) -> Slot:
        slot = filled(bundle)
        slot.values[frames, 3] *= np.float32(1.5)
        return computed(inference, woken, slot)

    plain, now, earlier = brightened(slice(0)), brightened(slice(-30, None)), brightened(slice(0, -30))
    others = plain.row_neuron != 3
    assert (now.probability != plain.probability)[others].all()
    np.testing.assert_array_equal(now.level[:3, :F0_LEVELS], plain.level[:3, :F0_LEVELS])
    assert (now.level[:, F0_LEVELS:] != plain.level[:, F0_LEVELS:]).any()
    # What was more than a second ago is not in it.
    np.testing.assert_array_equal(earlier.level[:3], plain.level[:3])
    np.testing.assert_array_equal(earlier.probability[others], plain.probability[others])
    assert inference.stop(PATIENCE_S)


def test_a_failed_run_is_told_and_the_thread_goes_on(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    woken = threading.Event()
    inference = Inference(bundle, provider="cpu", threads=1, on_done=woken.set)
    inference.start()
    assert inference.ready.wait(PATIENCE_S)
    broken = filled(bundle)
    broken.row_neuron = np.full(8, 99)
    assert computed(inference, woken, broken).failure is not None
    assert "inference failed" in caplog.text
    slot = filled(bundle)
    slot.forecast = False
    done = computed(inference, woken, slot)
    assert (done.failure, done.response, done.scale) == (None, None, None)
    assert done.probability.shape == (8,)
    assert inference.stop(PATIENCE_S)


def test_the_threads_lanes_and_order_of_questions_change_no_answer(bundle: Bundle) -> None:
    """Two sessions in turn, prepared or not, alone or split: a slot's answer is its own."""
    answers: dict[int, list[np.ndarray]] = {}
    for threads in (1, 3):
        woken = threading.Event()
        inference = Inference(bundle, provider="cpu", threads=threads, on_done=woken.set)
        inference.start()
        assert inference.ready.wait(PATIENCE_S)
        assert inference.threads == threads
        slots = [filled(bundle, seed=seed, neurons=4 + 8 * (seed % 2)) for seed in range(5)]
        for slot in slots:
            inference.prepare(slot.neuron, stimuli=2, rows=len(slot.row_neuron), forecast=slot.forecast)
        found = []
        for slot in (*slots, *slots[::-1]):
            done = computed(inference, woken, slot)
            assert done.failure is None
            assert done.response is not None
            found.append((done.probability, done.response, done.baseline))
        for one, again in zip(found[:5], found[:4:-1], strict=True):
            for first, second in zip(one, again, strict=True):
                assert first.tobytes() == second.tobytes()
        answers[threads] = [np.concatenate([one[0], one[1].ravel()]) for one in found]
        assert inference.stop(PATIENCE_S)
    for alone, split in zip(answers[1], answers[3], strict=True):
        np.testing.assert_allclose(alone, split, atol=1e-6)


def test_an_answer_is_its_own_memory_and_the_baseline_is_kept_where_it_is_asked_for(bundle: Bundle) -> None:
    woken = threading.Event()
    inference = Inference(bundle, provider="cpu", threads=1, on_done=woken.set)
    inference.start()
    assert inference.ready.wait(PATIENCE_S)
    first = computed(inference, woken, filled(bundle))
    assert first.response is not None
    kept = first.response.copy(), first.probability.copy(), first.baseline.copy(), first.level.copy()
    without = filled(bundle, seed=1)
    without.neuron, without.keep_baseline = first.neuron, False
    second = computed(inference, woken, without)
    assert second.baseline.size == 0
    for before, now in zip(kept, (first.response, first.probability, first.baseline, first.level), strict=True):
        assert before.tobytes() == now.tobytes()
    assert inference.stop(PATIENCE_S)


# --- batches ----------------------------------------------------------------------------------------------------------


def started(bundle: Bundle, *, threads: int) -> tuple[Inference, threading.Event]:
    woken = threading.Event()
    inference = Inference(bundle, provider="cpu", threads=threads, on_done=woken.set)
    inference.start()
    assert inference.ready.wait(PATIENCE_S)
    return inference, woken


def collected(inference: Inference, woken: threading.Event, count: int) -> list[Slot]:
    """As many slots as come back, in the order in which they do."""
    found: list[Slot] = []
    end = time.monotonic() + PATIENCE_S
    while len(found) < count:
        if (done := inference.collect()) is not None:
            found.append(done)
        else:
            assert woken.wait(max(0.0, end - time.monotonic()))
            woken.clear()
    return found


def bits(slot: Slot) -> tuple[bytes, ...]:
    assert slot.failure is None
    assert slot.response is not None
    assert slot.scale is not None
    parts = (slot.probability, slot.response, slot.scale, slot.baseline, slot.level, slot.f0, slot.usable)
    return tuple(part.tobytes() for part in parts)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_questions_that_share_a_batch_get_bit_for_bit_the_answers_of_questions_alone(
    bundle: Bundle, threads: int
) -> None:
    inference, woken = started(bundle, threads=threads)
    slots = [filled(bundle, seed=seed, neurons=neurons) for seed, neurons in enumerate([12, 3, 12, 7, 1, 4])]
    slots[3].observed[-5:] = False
    alone = [bits(computed(inference, woken, slot)) for slot in slots]
    assert {slot.cost_before for slot in slots} == {0}
    for order in (slots, slots[::-1], slots[2:5]):
        inference.submit(*order)
        assert collected(inference, woken, len(order)) == order
        assert order[-1].cost_before == sum(slot.cost for slot in order[:-1])
        assert len({slot.submitted_ns for slot in order}) == 1
        assert all(slot.submitted_ns <= slot.done_ns for slot in order)
        assert [bits(slot) for slot in order] == [alone[slots.index(slot)] for slot in order]
    assert inference.stop(PATIENCE_S)


@pytest.mark.parametrize("threads", [1, 3])
def test_two_questions_of_one_session_each_read_their_own_window(bundle: Bundle, threads: int) -> None:
    inference, woken = started(bundle, threads=threads)
    slots = [filled(bundle, seed=seed, neurons=12) for seed in range(6)]
    for one, other in ((0, 1), (0, 3), (2, 5)):
        slots[other].neuron = slots[one].neuron
    alone = [bits(computed(inference, woken, slot)) for slot in slots]
    inference.submit(*slots)
    assert collected(inference, woken, len(slots)) == slots
    assert [bits(slot) for slot in slots] == alone
    # 0 | 1, 2 | 3, 4, 5: a batch ends before the second of a session.
    assert [slot.cost_before for slot in slots] == [0, 0, 24, 0, 24, 48]
    assert inference.stop(PATIENCE_S)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_question_that_fails_fails_alone_and_each_goes_back_in_its_turn(
    bundle: Bundle, threads: int, at: int, caplog: pytest.LogCaptureFixture
) -> None:
    inference, woken = started(bundle, threads=threads)
    slots = [filled(bundle, seed=seed) for seed in range(3)]
    alone = [bits(computed(inference, woken, slot)) for slot in slots]
    whole = slots[at].row_neuron
    for broken in (np.full(8, 99), np.full(7, 0)):
        slots[at].row_neuron = broken
        inference.submit(*slots)
        assert collected(inference, woken, 3) == slots
        assert [slot.failure is not None for slot in slots] == [one == at for one in range(3)]
        assert [bits(slot) for slot in slots if slot is not slots[at]] == [*alone[:at], *alone[at + 1 :]]
        assert "inference failed" in caplog.text
        caplog.clear()
    slots[at].row_neuron = whole
    inference.submit(*slots)
    assert [bits(slot) for slot in collected(inference, woken, 3)] == alone
    assert inference.stop(PATIENCE_S)


def test_what_comes_while_a_batch_is_computed_is_the_next_batch(bundle: Bundle) -> None:
    """The first batch is held up in its middle, where it is handed back, until more has come."""
    woken, go_on = threading.Event(), threading.Event()
    slots = [filled(bundle, seed=seed) for seed in range(5)]

    def on_done() -> None:
        woken.set()
        if slots[0].done_ns:
            assert go_on.wait(PATIENCE_S)

    inference = Inference(bundle, provider="cpu", threads=1, on_done=on_done)
    inference.start()
    assert inference.ready.wait(PATIENCE_S)
    inference.submit(slots[0], slots[1])
    assert collected(inference, woken, 1) == slots[:1]
    inference.submit(slots[2])
    inference.submit(slots[3], slots[4])
    go_on.set()
    assert collected(inference, woken, 4) == slots[1:]
    assert [slot.cost_before for slot in slots] == [0, 8, 0, 8, 16]
    assert inference.stop(PATIENCE_S)


def test_what_was_submitted_before_the_end_is_answered(bundle: Bundle) -> None:
    inference, _ = started(bundle, threads=2)
    slots = [filled(bundle, seed=seed) for seed in range(20)]
    for slot in slots:
        slot.neuron = slots[0].neuron
    inference.submit(*slots)
    assert inference.stop(PATIENCE_S)
    assert [inference.collect() for _ in slots] == slots
    assert inference.collect() is None


def test_a_preparation_that_fails_is_logged_and_the_thread_goes_on(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    woken = threading.Event()
    inference = Inference(bundle, provider="cpu", threads=1, on_done=woken.set)
    inference.start()
    assert inference.ready.wait(PATIENCE_S)
    inference.prepare(np.zeros((3, 2, 7), np.float32), stimuli=1, rows=3, forecast=True)
    end = time.monotonic() + PATIENCE_S
    while "could not be made ready" not in caplog.text:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert computed(inference, woken, filled(bundle)).failure is None
    assert inference.stop(PATIENCE_S)


def test_no_pulse_begins_when_the_next_question_is_due(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    inference, woken = started(bundle, threads=1)
    network = Network(bundle, provider="cpu", device=Device(padded=True))
    clock_ms, pulses = [0], list[int]()
    monkeypatch.setattr(network, "pulse", lambda: pulses.append(clock_ms[0]))
    monkeypatch.setattr("quantformer_service.inference.time.perf_counter_ns", lambda: clock_ms[0] * 1_000_000)
    for clock_ms[0] in (10_000, 10_033):
        assert computed(inference, woken, filled(bundle)).failure is None
    for clock_ms[0] in range(10_034, 10_075):
        inference._use_idle_time(network)
    assert sorted({*range(10_034, 10_075)}.difference(pulses)) == [10_065, 10_066]
    network.close()
    assert inference.stop(PATIENCE_S)


def test_a_provider_that_is_not_there_ends_the_warm_up(bundle: Bundle) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this runtime has CUDA")
    woken = threading.Event()
    inference = Inference(bundle, provider="cuda", threads=1, on_done=woken.set)
    inference.start()
    assert woken.wait(PATIENCE_S)
    assert isinstance(inference.failure, ProviderError)
    assert not inference.ready.is_set()


def test_at_another_rate_the_window_is_the_interpolated_one_over_observed_frames(bundle: Bundle) -> None:
    rate, rows = 20.0, 80
    slot = filled(bundle, rows=rows)
    slot.stamps = np.arange(rows) / rate
    slot.anchor_s, slot.interpolated = rows / rate, True
    slot.observed[30:33] = False
    baseline = np.empty((4, 96), np.float32)
    write_input(slot, bundle.recipe, out=baseline)
    seen = slot.observed
    grid = window_on_grid(
        slot.values[seen], timestamps_s=slot.stamps[seen], onset_s=slot.anchor_s, recipe=bundle.recipe
    )
    times = slot.anchor_s - np.arange(96, 0, -1) / 30.0
    # Without a sample for more than one and a half periods: from 29/20 s + 75 ms until the sample at 33/20 s.
    observed = ~((times > 29 / rate + 0.075) & (times < 33 / rate))
    assert (~observed).sum() == 4
    expected = read_baseline(grid, recipe=bundle.recipe, f0_minimum=slot.f0_minimum, observed=observed)
    assert baseline.tobytes() == expected.dff.tobytes()
    told = slot.population.of(grid, observed=observed)
    np.testing.assert_array_equal(slot.level, joined_level(f0_level(expected.f0, slot.usual_f0), told))
    assert told.any()


def test_memory_is_reused_from_question_to_question() -> None:
    slot = Slot()
    first = slot.room(96, 50)
    assert np.shares_memory(first, slot.room(96, 20))
    assert slot.room(96, 60).shape == (96, 60)
