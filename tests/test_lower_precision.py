"""Tests of the graph in lower precision: nearly the same answers, and float32 where it matters."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from tiny_bundle import random_forecaster

from quantformer.config import ModelConfig
from quantformer.forecaster import Forecaster
from quantformer.layers import Block
from quantformer_training.export import GraphInputs, example_inputs, export_graph, run_graph
from quantformer_training.float16 import float16_graph
from quantformer_training.int8 import int8_graph, maps

#: Wider than a patch and than the codes, so that maps from and to these are not taken for the transformers' own.
CONFIG = ModelConfig(d=32, layers=2, heads=2, codes=8)
FLOAT, FLOAT16, INT8 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8


def asked(seed: int, rows: int = 48) -> GraphInputs:
    return example_inputs(CONFIG, neurons=12, stimuli=3, rows=rows, seed=seed)


@pytest.fixture(scope="module")
def forecaster() -> Forecaster:
    """One whose attention has biases: float16 leaves those of the keys out and moves those of the values."""
    made = random_forecaster(CONFIG, seed=3)
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, Block):
                module.query_key_value.bias.normal_(0, 0.3)
    return made


@pytest.fixture(scope="module")
def graph(forecaster: Forecaster) -> bytes:
    return export_graph(forecaster)


@pytest.fixture(scope="module")
def int8(graph: bytes) -> bytes:
    return int8_graph(graph, d=CONFIG.d, calibration=[asked(seed) for seed in range(1, 5)])


@pytest.fixture(scope="module")
def float16(forecaster: Forecaster) -> bytes:
    return float16_graph(forecaster)


def test_the_maps_are_those_of_the_transformers_and_the_first_of_the_codes(graph: bytes) -> None:
    # Query, key, value, out, expand and contract of three transformers.
    assert len(maps(onnx.load_from_string(graph), d=CONFIG.d)) == 6 * CONFIG.layers * 3 + 1


@pytest.mark.parametrize(("form", "logit", "response"), [("int8", 0.06, 0.02), ("float16", 5e-3, 2e-3)])
def test_a_form_answers_nearly_as_float32(
    request: pytest.FixtureRequest, graph: bytes, form: str, logit: float, response: float
) -> None:
    expected, found = run_graph(graph, asked(0)), run_graph(request.getfixturevalue(form), asked(0))
    assert np.std(expected[0]) > 2 * logit, "every answer is alike: nothing is tested"
    assert 0 < np.abs(found[0] - expected[0]).max() < logit
    assert 0 < np.abs(found[1] - expected[1]).max() < response
    assert np.abs(found[2] - expected[2]).max() < response
    assert all(one.dtype == np.float32 for one in found)


@pytest.mark.parametrize("form", ["int8", "float16"])
def test_a_rows_answer_does_not_depend_on_the_others(request: pytest.FixtureRequest, form: str) -> None:
    """Not even on one whose baseline is absurd: a range found a run would."""
    low, inputs = request.getfixturevalue(form), asked(0, rows=8)
    baseline = inputs.baseline.copy()
    baseline[0] = 1e4
    inputs = dataclasses.replace(inputs, baseline=baseline, row_neuron=np.array([0, 1, 2, 3, 4, 5, 6, 7]))
    alone = dataclasses.replace(inputs, row_neuron=inputs.row_neuron[4:5], row_stimulus=inputs.row_stimulus[4:5])
    for whole, single in zip(run_graph(low, inputs), run_graph(low, alone), strict=True):
        # Sums in another order may fall on the other side of a rounding.
        np.testing.assert_allclose(whole[4:5], single, atol=0.02)


def test_int8_weights_are_int8_and_keep_clear_of_overflow(graph: bytes, int8: bytes) -> None:
    weights = [one for one in onnx.load_from_string(int8).graph.initializer if one.data_type == INT8 and len(one.dims) == 2]
    # Both tasks' encoders begin as copies of one, and what is alike is stored once.
    assert len(weights) == len({node.input[1] for node in maps(onnx.load_from_string(graph), d=CONFIG.d)})
    for one in weights:
        assert np.abs(onnx.numpy_helper.to_array(one).astype(int)).max() <= 64
    # Three bytes less a weight, but for scales and for nodes that round.
    assert len(graph) - len(int8) > 1.5 * sum(int(np.prod(one.dims)) for one in weights)


def test_the_same_calibration_makes_the_same_bytes(graph: bytes, int8: bytes) -> None:
    assert int8_graph(graph, d=CONFIG.d, calibration=[asked(seed) for seed in range(1, 5)]) == int8


def test_float16_is_the_transformers_and_nothing_else(float16: bytes) -> None:
    model = onnx.load_from_string(float16)
    held = {one.name: one.data_type for one in model.graph.initializer}
    weighted = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in held]
    lowered = [node for node in weighted if held[node.input[1]] == FLOAT16]
    # Query, key, value, out, expand and contract of three transformers.
    assert len(lowered) == 6 * CONFIG.layers * 3
    assert {held[node.input[1]] for node in model.graph.node if node.op_type == "Gemm"} == {FLOAT}
    fused = [node.op_type for node in model.graph.node if node.domain == "com.microsoft"]
    assert {name: fused.count(name) for name in set(fused)} == {
        "FusedMatMul": 2 * CONFIG.layers * 3, "SkipLayerNormalization": 2 * CONFIG.layers * 3, "BiasGelu": CONFIG.layers * 3,
    }  # fmt: skip
    given = {one.name for one in model.graph.input}
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    # Into each transformer and out of it.
    assert len(casts) == 2 * 3
    assert not any(given & set(node.input) for node in casts), "an input is rounded before anything is computed of it"
    assert [one.type.tensor_type.elem_type for one in model.graph.output] == [FLOAT] * 3
