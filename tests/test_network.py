"""The network as a whole: sizes prepared, pulses, and how many threads are taken."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantformer.bundle import Bundle, load_bundle
from quantformer_service.buffers import Device, Results
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
        "level": rng.normal(0, 0.3, (len(ids), 2)).astype(np.float32),
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
