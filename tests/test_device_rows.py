"""Tests of drawing on a device: the rows are those that `IndexedSource` draws, whatever is withheld or not valid."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import small_model
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from indexed_recordings import indexed, make_recording, same, sources

from quantformer_training import device_rows as module
from quantformer_training.device_rows import DeviceRows, Traces, bytes_on_device, drawn_on
from quantformer_training.finetune import draw_epoch
from quantformer_training.indexed import IndexedPart, IndexedSource

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[IndexedPart]:
    """Of three sessions, each with windows that are not valid."""
    directory = tmp_path_factory.mktemp("store")
    return [sources(make_recording(seed=seed), directory / str(seed))[1] for seed in range(3)]


def on_cpu(*sources: IndexedSource) -> list[DeviceRows]:
    traces = Traces(sources, device=CPU)
    return [DeviceRows(source, device=CPU, traces=traces) for source in sources]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chosen=st.lists(st.integers(0, 2), min_size=1, max_size=4), count=st.integers(1, 400), seed=st.integers(0, 2**32),
    lost=st.sampled_from([0.0, 0.1, 0.7]), piece=st.sampled_from([32, 96, 1 << 18]),
)  # fmt: skip
def test_rows_are_those_of_the_source_bit_for_bit(
    chosen: list[int], count: int, seed: int, lost: float, piece: int, parts: list[IndexedPart],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Sessions may come twice; beyond training's own leads and gaps any frame may be lost, so that F0 is not known."""
    monkeypatch.setattr(module, "_PIECE", piece)
    source = indexed(*(parts[number] for number in chosen))
    choose = source.chosen

    def chosen_with_losses(count: int, rng: np.random.Generator) -> tuple[object, np.ndarray]:
        index, missing = choose(count, rng)
        return index, missing | (np.random.default_rng(seed).random(missing.shape) < lost)

    monkeypatch.setattr(source, "chosen", chosen_with_losses)
    (rows,) = on_cpu(source)
    same(rows.draw(count, np.random.default_rng(seed)), source.draw(count, np.random.default_rng(seed)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_rows_drawn_on_a_gpu_are_those_of_the_source(parts: list[IndexedPart]) -> None:
    """But for the last bits: it divides by a number as it multiplies."""
    source = indexed(*parts)
    (rows,) = drawn_on(CUDA, source)
    drawn = vars(rows.draw(1000, np.random.default_rng(4)))
    for name, tensor in vars(source.draw(1000, np.random.default_rng(4))).items():
        assert drawn[name].is_cuda
        torch.testing.assert_close(drawn[name].cpu(), tensor, rtol=1e-6, atol=1e-6)


def test_an_epoch_drawn_on_the_device_is_the_same(parts: list[IndexedPart]) -> None:
    both = indexed(parts[0], parts[1]), indexed(parts[1], parts[2])
    config = small_model.tiny_training()
    one, order = draw_epoch(*both, 3, config=config, seed=1, device=CPU)
    other, same_order = draw_epoch(*on_cpu(*both), 3, config=config, seed=1, device=CPU)
    same(one, other)
    assert torch.equal(order, same_order)


def test_a_session_of_several_parts_is_placed_once(parts: list[IndexedPart]) -> None:
    one, both = indexed(parts[0]), indexed(parts[0], parts[0])
    trace = parts[0].trials.session.traces
    assert Traces([one, both], device=CPU).samples.shape == (trace.size,)
    assert bytes_on_device([both]) - bytes_on_device([one]) == bytes_on_device([one]) - trace.nbytes > 0


def test_validation_is_the_sources(parts: list[IndexedPart]) -> None:
    source = indexed(parts[0])
    (rows,) = on_cpu(source)
    assert len(rows) == len(source)
    same(rows.at_lead(5, most=7), source.at_lead(5, most=7))


def test_a_gpu_draws_what_fits_half_of_its_free_memory(
    parts: list[IndexedPart], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source, placed = indexed(parts[0]), object()
    monkeypatch.setattr(module, "Traces", lambda sources, *, device: None)
    monkeypatch.setattr(module, "DeviceRows", lambda source, *, device, traces: placed)
    wanted = bytes_on_device([source])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * wanted, 80e9))
    assert drawn_on(CUDA, source) == (placed,)
    assert drawn_on(CPU, source) == (source,)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * wanted - 2, 80e9))
    with caplog.at_level(logging.WARNING):
        assert drawn_on(CUDA, source) == (source,)
    assert "rows are drawn on the CPU" in caplog.text


def test_what_is_in_memory_already_is_drawn_from_there(parts: list[IndexedPart], tmp_path: Path) -> None:
    whole, _ = sources(make_recording(), tmp_path / "one")
    assert drawn_on(CUDA, indexed(parts[0]), whole)[1] is whole
