"""The network arranged for a runtime: the answers of the network as it was trained, from less work."""

from __future__ import annotations

from collections import Counter

import onnx
import pytest
import torch
from small_model import tiny_forecaster
from torch import nn

from quantformer.config import ModelConfig
from quantformer.forecaster import Forecaster, ServingGraph
from quantformer_training.export import example_inputs, export_graph
from quantformer_training.lean import LeanBlock, LeanTransformer, lean

CONFIG = ModelConfig(d=24, layers=2, heads=3, codes=8)


@torch.no_grad()
def as_if_trained(config: ModelConfig) -> Forecaster:
    """No norm at one and zero, no bias at zero, and answers that differ from row to row."""
    made = tiny_forecaster(config, seed=3)
    for parameter in made.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


@pytest.fixture(scope="module")
def forecaster() -> Forecaster:
    return as_if_trained(CONFIG)


@pytest.mark.parametrize("layers", [1, 3])
@torch.no_grad()
def test_the_answers_are_the_networks(layers: int) -> None:
    config = ModelConfig(d=24, layers=layers, heads=3, codes=8, patch_frames=8, baseline_frames=48, response_frames=32)
    network = as_if_trained(config)
    inputs = [
        torch.from_numpy(array) for array in example_inputs(config, neurons=7, stimuli=3, rows=20).named().values()
    ]
    for expected, found in zip(ServingGraph(network)(*inputs), ServingGraph(lean(network))(*inputs), strict=True):
        assert expected.std() > 2e-4
        torch.testing.assert_close(found, expected, atol=5e-6, rtol=1e-5)


def test_the_network_itself_is_left_as_it_is(forecaster: Forecaster) -> None:
    before = {name: value.clone() for name, value in forecaster.state_dict().items()}
    made = lean(forecaster)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    assert before.keys() == forecaster.state_dict().keys()
    for name, value in forecaster.state_dict().items():
        assert torch.equal(value, before[name]), name


@torch.no_grad()
def test_the_last_layer_is_computed_for_the_tokens_that_are_read_and_no_others(forecaster: Forecaster) -> None:
    rows = 5
    seen: dict[str, list[int]] = {}

    def note(name: str, module: nn.Module) -> None:
        module.register_forward_pre_hook(lambda module, given: seen.setdefault(name, []).append(len(given[0]) // rows))

    made = lean(forecaster)
    parts = {"activation": made.activation.encoder, "response": made.response.encoder, "decoder": made.teacher.decoder}
    for name, part in parts.items():
        assert isinstance(part.transformer, LeanTransformer)
        for block in part.transformer.blocks:
            assert isinstance(block, LeanBlock)
            for linear in ("query", "key", "expand"):
                note(f"{name} {linear}", getattr(block, linear))
    arrays = example_inputs(CONFIG, neurons=4, stimuli=2, rows=rows).named().values()
    ServingGraph(made)(*(torch.from_numpy(array) for array in arrays))
    for linear, last in (("query", (1, 10, 4)), ("key", (9, 12, 10)), ("expand", (1, 10, 4))):
        for name, length, read in zip(parts, (9, 12, 10), last, strict=True):
            assert seen[f"{name} {linear}"] == [length] * (CONFIG.layers - 1) + [read]


def test_a_reading_that_it_was_not_made_for_is_refused(forecaster: Forecaster) -> None:
    made = LeanTransformer(forecaster.teacher.decoder.transformer, length=10, read=slice(6, None))
    with pytest.raises(AssertionError, match="asked for"):
        made(torch.zeros(1, 10, CONFIG.d), slice(None))


def test_every_linear_map_of_tokens_is_exported_as_one_product_with_its_bias(forecaster: Forecaster) -> None:
    model = onnx.load_from_string(export_graph(forecaster))
    counted = Counter(node.op_type for node in model.graph.node)
    layers = 3 * CONFIG.layers
    # Six products a layer, and the maps into and out of the transformers.
    assert counted["Gemm"] >= 6 * layers
    # Attention's own two products a layer, and the little that is not a linear map with a bias.
    assert 2 * layers <= counted["MatMul"] <= 2 * layers + 12
    assert counted["Split"] == 0
    assert counted["Softmax"] == layers + 1
