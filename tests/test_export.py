"""Tests of the ONNX graph: the same answers as PyTorch, for any number of neurons, stimuli and rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from quantformer.autoencoder import Autoencoder
from quantformer.bundle import load_bundle
from quantformer.config import ModelConfig
from quantformer.errors import BundleError
from quantformer.forecaster import Forecaster
from quantformer_training.export import INPUTS, GraphInputs, check_parity, example_inputs, export_graph, run_graph

CONFIG = ModelConfig(d=16, layers=2, heads=2, codes=8)


@pytest.fixture(scope="module")
def forecaster() -> Forecaster:
    torch.manual_seed(1)
    teacher = Autoencoder(CONFIG).freeze()
    return Forecaster(CONFIG, teacher=teacher, signal_scale=0.3)


@pytest.fixture(scope="module")
def graph(forecaster: Forecaster) -> bytes:
    return export_graph(forecaster)


@pytest.mark.parametrize(("neurons", "stimuli", "rows"), [(1, 1, 1), (1, 3, 3), (5, 1, 5), (40, 8, 320)])
def test_onnx_agrees_with_torch(forecaster: Forecaster, graph: bytes, neurons: int, stimuli: int, rows: int) -> None:
    parity = check_parity(forecaster, graph, example_inputs(CONFIG, neurons=neurons, stimuli=stimuli, rows=rows))
    assert parity.rows == rows


def test_a_row_does_not_depend_on_the_others(graph: bytes) -> None:
    inputs = example_inputs(CONFIG, neurons=6, stimuli=3, rows=12)
    together = run_graph(graph, inputs)
    alone = GraphInputs(
        baseline=inputs.baseline,
        level=inputs.level,
        neuron=inputs.neuron,
        stimulus=inputs.stimulus,
        row_neuron=inputs.row_neuron[4:5],
        row_stimulus=inputs.row_stimulus[4:5],
    )
    for whole, single in zip(together, run_graph(graph, alone), strict=True):
        np.testing.assert_allclose(whole[4:5], single, atol=1e-5)


def test_the_graph_asks_for_what_is_documented(graph: bytes) -> None:
    found = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]).get_inputs()
    assert tuple(one.name for one in found) == INPUTS
    assert {one.name: (one.type, one.shape[1:]) for one in found}["level"] == ("tensor(float)", [4])


def test_parity_refuses_another_network(graph: bytes) -> None:
    torch.manual_seed(2)
    other = Forecaster(CONFIG, teacher=Autoencoder(CONFIG).freeze(), signal_scale=0.3)
    with pytest.raises(BundleError, match="differ"):
        check_parity(other, graph, example_inputs(CONFIG, neurons=3, stimuli=2, rows=6))


def test_the_graph_names_no_place_on_the_exporting_machine(tiny_bundle_path: Path) -> None:
    graph = load_bundle(tiny_bundle_path).graph
    root = str(Path(__file__).resolve().parents[1]).encode()
    assert root not in graph
    assert b".py" not in graph
