"""The part of a graph that some outputs need: what it holds, what it answers, and bytes that are no graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.utils
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import write_tiny_bundle

from quantformer.bundle import Bundle, load_bundle
from quantformer.manifest import FORM_OF
from quantformer_service.part import part_of


@st.composite
def graphs(draw: st.DrawFn) -> tuple[bytes, list[str]]:
    """A model whose nodes read inputs, constants or what earlier nodes made, and the outputs that are wanted of it."""
    inputs, constants = ["x", "y"], [f"c{i}" for i in range(draw(st.integers(0, 3)))]
    there, nodes = [*inputs, *constants], []
    for number in range(draw(st.integers(1, 12))):
        made = [f"v{number}"]
        read = draw(st.lists(st.sampled_from(there), min_size=2, max_size=2))
        nodes.append(helper.make_node(draw(st.sampled_from(["Add", "Mul", "Sub"])), read, made, name=f"n{number}"))
        there += made
    outputs = draw(st.lists(st.sampled_from([name for name in there if name[0] == "v"]), min_size=1, unique=True))
    wanted = draw(st.lists(st.sampled_from(outputs), min_size=1, unique=True))

    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B"])

    graph = helper.make_graph(
        nodes, "g", [value(name) for name in inputs], [value(name) for name in outputs],
        initializer=[numpy_helper.from_array(np.array([i + 2.0], np.float32), name) for i, name in enumerate(constants)],
        value_info=[value(name) for name in there if name[0] == "v" and name not in outputs],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString(), wanted


@settings(max_examples=60)
@given(graphs())
def test_the_part_holds_what_its_outputs_need_and_answers_as_the_whole(asked: tuple[bytes, list[str]]) -> None:
    whole, wanted = asked
    part = part_of(whole, wanted)
    model, expected = onnx.load_from_string(part), onnx.load_from_string(whole)
    onnx.checker.check_model(model, full_check=True)
    kept = onnx.utils.Extractor(expected).extract_model([one.name for one in expected.graph.input], wanted).graph
    for field in ("node", "initializer", "input"):
        assert {one.name for one in getattr(model.graph, field)} == {one.name for one in getattr(kept, field)}, field
    assert {one.name for one in model.graph.output} == set(wanted)
    feed = {"x": np.array([0.5, -2.0], np.float32), "y": np.array([3.0, 0.25], np.float32)}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    sessions = [onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"]) for graph in (whole, part)]
    for one, other in zip(*(session.run(wanted, feed) for session in sessions), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path: Path = tmp_path_factory.mktemp("part") / "bundle"
    write_tiny_bundle(path, forms=("int8", "float16"))
    return load_bundle(path)


def test_of_every_form_the_probability_needs_less_than_half_the_weights(bundle: Bundle) -> None:
    for form in ("float32", *FORM_OF.values()):
        graph = bundle.in_precision(form).graph
        weights = [
            sum(numpy_helper.to_array(one).size for one in onnx.load_from_string(model).graph.initializer)
            for model in (part_of(graph, ["logit"]), graph)
        ]
        assert weights[0] < weights[1] / 2
        # Graphs within nodes are not looked into.
        assert not {"If", "Loop", "Scan"} & {node.op_type for node in onnx.load_from_string(graph).graph.node}


def test_all_outputs_are_the_whole_graph(bundle: Bundle) -> None:
    part = onnx.load_from_string(part_of(bundle.graph, ["logit", "response", "spread"]))
    assert part.graph.node == onnx.load_from_string(bundle.graph).graph.node


def test_an_output_that_is_not_there_is_named(bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="model has outputs logit, response, spread, not colour"):
        part_of(bundle.graph, ["colour"])


@settings(max_examples=200)
@given(noise=st.binary(max_size=200))
def test_bytes_that_are_no_model_are_refused(noise: bytes) -> None:
    with pytest.raises(ValueError, match="model"):
        part_of(noise, ["logit"])


@settings(max_examples=40)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_model_that_is_cut_short_is_refused(bundle: Bundle, share: float) -> None:
    with pytest.raises(ValueError, match="model"):
        part_of(bundle.graph[: int(share * len(bundle.graph))], ["logit"])
