"""The network as a whole: sizes prepared, pulses, several questions at a time, and how many threads are taken."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantformer.bundle import Bundle, load_bundle
from quantformer.config import LEVEL_QUANTITIES
from quantformer_service import network as networks
from quantformer_service.buffers import MOST_POPULATIONS, Bucket, Device, Results
from quantformer_service.network import Network, fastest
from quantformer_service.runtime import open_session


@pytest.fixture(scope="module")
def bundle(tiny_bundle_path: Path) -> Bundle:
    return load_bundle(tiny_bundle_path)


def question(bundle: Bundle) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    ids = bundle.manifest.neuron_ids
    return {
        "baseline": rng.normal(0, 0.3, (len(ids), 96)).astype(np.float32),
        "level": rng.normal(0, 0.3, (len(ids), LEVEL_QUANTITIES)).astype(np.float32),
        "neuron": bundle.neurons(ids, unknown="refuse").vectors,
        "stimulus": np.stack([bundle.stimulus("dir=000"), bundle.stimulus("dir=090")]),
        "row_neuron": np.tile(np.arange(len(ids)), 2),
        "row_stimulus": np.repeat(np.arange(2), len(ids)),
    }


def answered(network: Network, asked: dict[str, Any]) -> Results:
    population = network.place(asked["neuron"])
    population.baseline[:] = asked["baseline"]
    population.level[:] = asked["level"]
    return network.ask(population, **{name: asked[name] for name in ("stimulus", "row_neuron", "row_stimulus")})


@pytest.mark.skipif(sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs to choose from")
@pytest.mark.parametrize("threads", [0, 2])
def test_lanes_on_a_cpu_are_apart_until_the_network_is_closed(bundle: Bundle, threads: int) -> None:
    before = os.sched_getaffinity(0)
    network = Network(bundle, provider="cpu", threads=threads)
    found = os.sched_getaffinity(0)
    network.close()
    assert os.sched_getaffinity(0) == before
    assert found < before if network.threads > 1 else found == before


@pytest.mark.parametrize("device", [None, Device(padded=True), Device(lanes=2)])
def test_preparing_and_pulses_change_no_answer(bundle: Bundle, device: Device | None) -> None:
    asked = question(bundle)
    expected = open_session(bundle, provider="cpu").run(None, asked)
    network = Network(bundle, provider="cpu", threads=1, device=device)
    assert network.provider == "cpu"
    assert network.threads == (1 if device is None else device.lanes)
    for _ in range(2):
        network.prepare(asked["neuron"], stimuli=2, rows=24)
        network.pulse()
        found = answered(network, asked)
        for one, other in zip((found.logit, found.response, found.spread), expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6, rtol=1e-5)
    network.close()


def test_a_pulse_is_what_was_asked_last_where_that_is_little(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    network, asked = Network(bundle, provider="cpu", device=Device(padded=True, lanes=2)), question(bundle)
    ran: list[Sequence[Any]] = []
    monkeypatch.setattr(network._lanes, "run", ran.append)
    network.pulse()
    answered(network, asked)
    little = network._last
    assert little is not None
    network.pulse()
    monkeypatch.setattr(networks, "PULSE_ROWS", 8)
    answered(network, asked)
    network.pulse()
    assert len(ran[0]) == 1, "the probability alone"
    assert [list(runs) for runs in ran] == [list(ran[0]), list(little.runs), list(ran[0])]
    network.close()


def test_a_prepared_size_is_there_when_it_is_asked_for(bundle: Bundle) -> None:
    for device in (Device(), Device(padded=True)):
        network, asked = Network(bundle, provider="cpu", device=device), question(bundle)
        network.prepare(asked["neuron"], stimuli=2, rows=24)
        population = network.place(asked["neuron"])
        before = population.bucket(stimuli=2, rows=24)
        answered(network, asked)
        assert population.bucket(stimuli=2, rows=24) is before


def test_threads_are_measured_where_no_number_is_given(bundle: Bundle) -> None:
    network = Network(bundle, provider="cpu", threads=0)
    assert 1 <= network.threads <= (os.cpu_count() or 1)
    asked = question(bundle)
    expected = open_session(bundle, provider="cpu").run(None, asked)
    np.testing.assert_allclose(answered(network, asked).logit, expected[0], atol=1e-6, rtol=1e-5)
    network.close()


@pytest.mark.parametrize("device", [Device(), Device(lanes=2), Device(padded=True, lanes=2)])
def test_without_a_forecast_the_logits_are_the_same_bits(bundle: Bundle, device: Device) -> None:
    network, asked = Network(bundle, provider="cpu", device=device), question(bundle)
    whole = answered(network, asked)
    rows = {name: asked[name] for name in ("stimulus", "row_neuron", "row_stimulus")}
    network.prepare(asked["neuron"], stimuli=2, rows=24, forecast=False)
    population = network.place(asked["neuron"])
    population.baseline[:], population.level[:] = asked["baseline"], asked["level"]
    alone = network.ask(population, **rows, forecast=False)
    np.testing.assert_array_equal(alone.logit, whole.logit)
    assert whole.response is not None
    assert (alone.response, alone.spread) == (None, None)
    # One after the other, neither answers from what the other left.
    np.testing.assert_array_equal(network.ask(population, **rows).response, whole.response)
    network.close()


# --- several at a time ------------------------------------------------------------------------------------------------

DEVICES = [Device(), Device(lanes=2), Device(lanes=3), Device(padded=True), Device(padded=True, lanes=2)]


def of_a_session(bundle: Bundle, *, neurons: int, stimuli: int, seed: int) -> dict[str, Any]:
    """All neurons of a session, which may be larger than the bundle, and some stimuli."""
    rng, known = np.random.default_rng(seed), bundle.neurons(bundle.manifest.neuron_ids, unknown="refuse").vectors
    return {
        "baseline": rng.normal(0, 0.3, (neurons, 96)).astype(np.float32),
        "level": rng.normal(0, 0.3, (neurons, LEVEL_QUANTITIES)).astype(np.float32),
        "neuron": known[rng.integers(0, len(known), neurons)],
        "stimulus": np.stack([bundle.stimulus(f"dir={45 * k:03d}") for k in range(stimuli)]),
        "row_neuron": np.tile(np.arange(neurons), stimuli),
        "row_stimulus": np.repeat(np.arange(stimuli), neurons),
    }


def together(network: Network, asked: list[dict[str, Any]]) -> list[Results | Exception]:
    """What comes of questions that are begun one after the other and then ended."""
    found: dict[int, Results | Exception] = {}
    for number, one in enumerate(asked):

        def then(bucket: Bucket, error: Exception | None, number: int = number) -> None:
            found[number] = error or bucket.results()

        population = network.place(one["neuron"])
        population.baseline[:] = one["baseline"]
        population.level[:] = one["level"]
        rows = {name: one[name] for name in ("stimulus", "row_neuron", "row_stimulus")}
        try:
            network.begin(population, **rows, then=then)
        except ValueError as error:
            found[number] = error
    network.end()
    return [found[number] for number in range(len(asked))]


def bits(results: Results | Exception) -> bytes:
    assert isinstance(results, Results), results
    return results.logit.tobytes() + results.response.tobytes() + results.spread.tobytes()


def test_a_size_that_is_new_to_a_gpu_is_captured_when_nothing_else_runs(bundle: Bundle) -> None:
    network = Network(bundle, provider="cpu", device=Device(padded=True))
    old, new = (of_a_session(bundle, neurons=n, stimuli=1, seed=n) for n in (40, 300))
    expected = [bits(answered(network, old)), bits(answered(network, new))]
    network.close()
    network, ended = Network(bundle, provider="cpu", device=Device(padded=True)), []
    network.prepare(old["neuron"], stimuli=1, rows=40)
    populations = [network.place(one["neuron"]) for one in (old, new)]
    for number, (one, population) in enumerate(zip((old, new), populations, strict=True)):
        population.baseline[:], population.level[:] = one["baseline"], one["level"]
        rows = {name: one[name] for name in ("stimulus", "row_neuron", "row_stimulus")}

        def then(bucket: Bucket, error: Exception | None, number: int = number) -> None:
            assert error is None
            ended.append((number, bits(bucket.results())))

        network.begin(population, **rows, then=then)
    # On the one lane nothing is computed before `end`, but what was under way is, before the new size is captured.
    assert [number for number, _ in ended] == [0]
    network.end()
    assert ended == list(enumerate(expected))
    network.close()


@pytest.mark.parametrize("device", DEVICES)
def test_together_each_gets_bit_for_bit_what_it_gets_alone(bundle: Bundle, device: Device) -> None:
    sizes = [(241, 1), (3, 2), (300, 2), (24, 1), (1, 1), (24, 3)]
    asked = [of_a_session(bundle, neurons=n, stimuli=s, seed=seed) for seed, (n, s) in enumerate(sizes)]
    alone = Network(bundle, provider="cpu", device=device)
    expected = [bits(answered(alone, one)) for one in asked]
    alone.close()
    network = Network(bundle, provider="cpu", device=device)
    for order in (range(6), [5, 2, 0, 4, 1, 3], [2], [3, 5]):
        found = together(network, [asked[one] for one in order])
        assert [bits(one) for one in found] == [expected[one] for one in order]
    network.close()


@pytest.mark.parametrize("device", DEVICES)
def test_more_sessions_than_are_kept_take_no_tensors_from_a_question_under_way(bundle: Bundle, device: Device) -> None:
    """All of one size, so that each takes over another's tensors; and the last of another size."""
    sizes = [24] * (2 * MOST_POPULATIONS) + [3]
    asked = [of_a_session(bundle, neurons=n, stimuli=2, seed=seed) for seed, n in enumerate(sizes)]
    network = Network(bundle, provider="cpu", device=device)
    expected = [bits(answered(network, one)) for one in asked]
    rng = np.random.default_rng(0)
    for _ in range(12):
        order = rng.permutation(len(asked))[:MOST_POPULATIONS]
        found = together(network, [asked[one] for one in order])
        assert [bits(one) for one in found] == [expected[one] for one in order]
    network.close()


@pytest.mark.parametrize("device", DEVICES)
def test_one_that_asks_about_what_is_not_there_is_refused_and_the_others_are_answered(
    bundle: Bundle, device: Device
) -> None:
    asked = [of_a_session(bundle, neurons=n, stimuli=2, seed=n) for n in (24, 12, 30)]
    network = Network(bundle, provider="cpu", device=device)
    expected = [bits(answered(network, one)) for one in asked]
    broken = {**asked[1], "row_neuron": asked[1]["row_neuron"] + 5}
    first, second, third = together(network, [asked[0], broken, asked[2]])
    assert isinstance(second, ValueError)
    assert [bits(first), bits(third)] == [expected[0], expected[2]]
    assert [bits(one) for one in together(network, asked)] == expected
    network.close()


@pytest.mark.parametrize(
    ("seconds", "taken"),
    [
        ({1: 1.0}, 1),
        ({1: 1.0, 2: 0.6, 4: 0.4}, 4),
        ({1: 1.0, 2: 0.96, 4: 0.97}, 1),
        ({1: 1.0, 2: 0.5, 4: 0.49, 8: 0.7}, 2),
    ],
)
def test_a_thread_that_helps_little_is_left_to_the_loop(seconds: dict[int, float], taken: int) -> None:
    assert fastest(seconds) == taken
