"""The serving graph in lower precision: int8 for a CPU, float16 for a GPU. Inputs and outputs stay float32.

Lowered is what most of the arithmetic is: the linear maps inside the transformers, by `maps`. The rest (embeddings, log-odds,
codes and their distances, heads, shortcuts, spread) stays float32, for range and for the little that it costs.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from quantformer_training.export import GraphInputs

_PRODUCTS = ("Gemm", "MatMul")


def maps(model: Any, *, d: int) -> list[Any]:
    """The products with a weight matrix that has at least ``d`` rows and ``d`` columns."""
    return [node for node, shape in _weighted(model) if min(shape) >= d]


def int8_graph(graph: bytes, *, d: int, calibration: Sequence[GraphInputs]) -> bytes:
    """The graph with `maps` in int8: weights a column, inputs (unsigned) with one scale a map, sums in int32.

    Input ranges are the least and greatest on the ``calibration`` rows. They are fixed, not found a run: what a neuron is
    answered must not depend on which others are asked beside it. Weights have 7 bits, since without VNNI two products of 8 bits
    overflow the 16 that they are added in.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Rows(CalibrationDataReader):  # type: ignore[misc]  # the library ships no types
        def __init__(self) -> None:
            self._left: Iterator[GraphInputs] = iter(calibration)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            found = next(self._left, None)
            return None if found is None else dict(found.named())

    model = onnx.load_from_string(graph)
    chosen = [node.name for node in maps(model, d=d)]
    with tempfile.TemporaryDirectory() as folder, _quiet():
        written = Path(folder) / "int8.onnx"
        quantize_static(
            model,
            written,
            Rows(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            nodes_to_quantize=chosen,
            op_types_to_quantize=list(_PRODUCTS),
            extra_options={"OpTypesToExcludeOutputQuantization": list(_PRODUCTS)},
        )
        return _serialized(onnx.load(written))


def float16_graph(graph: bytes, *, d: int) -> bytes:
    """The graph with its transformers in float16: `maps`, and what lies on a way from one to another within a transformer.

    Layer norms keep their statistics in float32 (the operation's stash type), and so do sums of products and softmax in the
    CUDA provider's kernels; what passes between operations is float16.
    """
    model = onnx.load_from_string(graph)
    lowered = _between(model, maps(model, d=d), stops={node.name for node, shape in _weighted(model) if min(shape) < d})
    weights = {one.name: one for one in model.graph.initializer}
    types = {one.name: one.type.tensor_type for one in (*model.graph.input, *model.graph.value_info)}
    half: dict[str, str] = {}  # of a float32 value, its name in float16
    single: dict[str, str] = {}  # of a float16 value, its name in float32
    inside: set[str] = set()
    nodes = []
    for node in model.graph.node:
        low = node.name in lowered
        for i, name in enumerate(node.input):
            if low and name not in inside and name not in half:
                if name in weights and weights[name].data_type == onnx.TensorProto.FLOAT:
                    half[name] = name + "/float16"
                    values = onnx.numpy_helper.to_array(weights[name]).astype(np.float16)
                    model.graph.initializer.append(onnx.numpy_helper.from_array(values, half[name]))
                elif name in types and types[name].elem_type == onnx.TensorProto.FLOAT:
                    half[name] = name + "/float16"
                    nodes.append(_cast(name, half[name], onnx.TensorProto.FLOAT16))
            if not low and name in inside and name not in single:
                single[name] = name + "/float32"
                nodes.append(_cast(name, single[name], onnx.TensorProto.FLOAT))
            node.input[i] = (half if low else single).get(name, name)
        if low:
            inside.update(node.output)
            for name in node.output:
                types[name].elem_type = onnx.TensorProto.FLOAT16
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    left = [one for one in model.graph.initializer if one.name in used]
    for field, kept in ((model.graph.initializer, left), (model.graph.node, nodes)):
        copies = [type(one).FromString(one.SerializeToString()) for one in kept]
        del field[:]
        field.extend(copies)
    return _serialized(model)


def _cast(name: str, to: str, kind: int) -> Any:
    return onnx.helper.make_node("Cast", [name], [to], name=to, to=kind)


def _weighted(model: Any) -> Iterable[tuple[Any, tuple[int, ...]]]:
    """Products with a matrix that is part of the model, and its shape."""
    shapes = {one.name: tuple(one.dims) for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in _PRODUCTS and len(shapes.get(node.input[1], ())) == 2:
            yield node, shapes[node.input[1]]


def _between(model: Any, nodes: Sequence[Any], *, stops: set[str]) -> set[str]:
    """Names of these nodes and of all on a way from one to another that does not pass a stop. Nodes are in order of use."""
    names = {node.name for node in nodes}
    after: set[str] = set()
    before: set[str] = set()
    values: set[str] = set()
    for node in model.graph.node:
        if node.name not in stops and not values.isdisjoint(node.input):
            after.add(node.name)
        if node.name in names | after:
            values.update(node.output)
    values = set()
    for node in reversed(model.graph.node):
        if node.name not in stops and not values.isdisjoint(node.output):
            before.add(node.name)
        if node.name in names | before:
            values.update(node.input)
    return names | (after & before)


def _serialized(model: Any) -> bytes:
    onnx.checker.check_model(model)
    written: bytes = model.SerializeToString(deterministic=True)
    return written


@contextmanager
def _quiet() -> Iterator[None]:
    """The library's advice on preprocessing is not for the one who exports."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
