"""Tests of the ONNX graph: the same answers as PyTorch, for any number of neurons, stimuli and rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from quantformer.autoencoder import Autoencoder
from quantformer.bundle import load_bundle
from quantformer.config import ModelConfig
from quantformer.errors import BundleError
from quantformer.forecaster import Forecaster
from quantformer_training.export import GraphInputs, check_parity, export_graph, run_graph


def _inputs(*, neurons: int, stimuli: int, rows: int, d: int) -> GraphInputs:
    rng = np.random.default_rng(rows)
    return GraphInputs(
        baseline=rng.normal(0, 0.3, (neurons, 96)).astype(np.float32),
        neuron=rng.normal(0, 1, (neurons, 2, d)).astype(np.float32),
        stimulus=rng.normal(0, 1, (stimuli, 2, d)).astype(np.float32),
        row_neuron=rng.integers(0, neurons, rows),
        row_stimulus=rng.integers(0, stimuli, rows),
    )


@pytest.fixture(scope="module")
def forecaster() -> Forecaster:
    torch.manual_seed(1)
    config = ModelConfig(d=16, layers=2, heads=2, codes=8)
    teacher = Autoencoder(config).freeze()
    return Forecaster(config, teacher=teacher, signal_scale=0.3, code_patch=torch.randn(8, 16))


@pytest.fixture(scope="module")
def graph(forecaster: Forecaster) -> bytes:
    return export_graph(forecaster)


@pytest.mark.parametrize(("neurons", "stimuli", "rows"), [(1, 1, 1), (1, 3, 3), (5, 1, 5), (40, 8, 320)])
def test_onnx_agrees_with_torch(forecaster: Forecaster, graph: bytes, neurons: int, stimuli: int, rows: int) -> None:
    parity = check_parity(forecaster, graph, _inputs(neurons=neurons, stimuli=stimuli, rows=rows, d=16))
    assert parity.rows == rows


def test_a_row_does_not_depend_on_the_others(graph: bytes) -> None:
    inputs = _inputs(neurons=6, stimuli=3, rows=12, d=16)
    together = run_graph(graph, inputs)
    alone = GraphInputs(
        baseline=inputs.baseline,
        neuron=inputs.neuron,
        stimulus=inputs.stimulus,
        row_neuron=inputs.row_neuron[4:5],
        row_stimulus=inputs.row_stimulus[4:5],
    )
    for whole, single in zip(together, run_graph(graph, alone), strict=True):
        np.testing.assert_allclose(whole[4:5], single, atol=1e-5)


def test_parity_refuses_another_network(graph: bytes) -> None:
    torch.manual_seed(2)
    config = ModelConfig(d=16, layers=2, heads=2, codes=8)
    other = Forecaster(config, teacher=Autoencoder(config).freeze(), signal_scale=0.3, code_patch=torch.randn(8, 16))
    with pytest.raises(BundleError, match="differ"):
        check_parity(other, graph, _inputs(neurons=3, stimuli=2, rows=6, d=16))


def test_the_graph_names_no_place_on_the_exporting_machine(tiny_bundle_path: Path) -> None:
    graph = load_bundle(tiny_bundle_path).graph
    root = str(Path(__file__).resolve().parents[1]).encode()
    assert root not in graph
    assert b".py" not in graph
