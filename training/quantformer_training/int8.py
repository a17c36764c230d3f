"""The serving graph in int8, for a CPU. Inputs and outputs stay float32.

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

import onnx
from numpy.typing import NDArray

from quantformer_training.export import GraphInputs

_PRODUCTS = ("Gemm", "MatMul")


def maps(model: Any, *, d: int) -> list[Any]:
    """The products with a weight matrix of at least ``d`` rows and columns, and at most 4 ``d``: what gives the answers is
    narrower, and what corrects a forecast reads ten tokens at once.
    """
    return [node for node, shape in _weighted(model) if d <= min(shape) and max(shape) <= 4 * d]


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


def _weighted(model: Any) -> Iterable[tuple[Any, tuple[int, ...]]]:
    """Products with a matrix that is part of the model, and its shape."""
    shapes = {one.name: tuple(one.dims) for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in _PRODUCTS and len(shapes.get(node.input[1], ())) == 2:
            yield node, shapes[node.input[1]]


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
