"""From a trained network to the ONNX graph of a bundle, with proof that both say the same."""

from __future__ import annotations

import io
import logging
import warnings
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from quantformer.config import LEVEL_QUANTITIES, TUNING_QUANTITIES, ModelConfig
from quantformer.errors import BundleError
from quantformer.forecaster import Forecaster, ServingGraph
from quantformer.manifest import Parity
from quantformer_training.lean import lean

INPUTS = ("baseline", "level", "neuron", "stimulus", "row_neuron", "row_stimulus")
OUTPUTS = ("logit", "response", "spread")
_EXPORTER_LOGS = tuple(logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir"))
#: Largest absolute difference in float32 between PyTorch and ONNX Runtime that a bundle may have.
TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True, eq=False)
class GraphInputs:
    """One call of the graph, as in `docs/architecture.md`."""

    baseline: NDArray[np.float32]
    level: NDArray[np.float32]
    neuron: NDArray[np.float32]
    stimulus: NDArray[np.float32]
    row_neuron: NDArray[np.int64]
    row_stimulus: NDArray[np.int64]

    def named(self) -> dict[str, NDArray[np.float32] | NDArray[np.int64]]:
        """Input name to array."""
        return {name: getattr(self, name) for name in INPUTS}


def example_inputs(
    config: ModelConfig, *, neurons: int = 3, stimuli: int = 2, rows: int = 6, features: int = 5, seed: int = 0
) -> GraphInputs:
    """Random inputs of the right shapes: ``rows`` questions about some neurons and stimuli."""
    rng = np.random.default_rng(seed)
    return GraphInputs(
        baseline=rng.normal(0, 0.2, (neurons, config.baseline_frames)).astype(np.float32),
        level=rng.normal(0, 0.3, (neurons, LEVEL_QUANTITIES)).astype(np.float32),
        neuron=rng.normal(0, 0.5, (neurons, 2, config.d + TUNING_QUANTITIES * features)).astype(np.float32),
        stimulus=rng.normal(0, 0.5, (stimuli, 2, config.d + features)).astype(np.float32),
        row_neuron=rng.integers(0, neurons, rows),
        row_stimulus=rng.integers(0, stimuli, rows),
    )


def export_graph(forecaster: Forecaster) -> bytes:
    """The serving graph as ONNX bytes, float32, arranged by `lean`, with N, S and B dynamic."""
    return export_arranged(lean(forecaster))


def export_arranged(forecaster: Forecaster) -> bytes:
    """The serving graph of a forecaster as it is, as ONNX bytes with N, S and B dynamic."""
    config = forecaster.config
    graph = ServingGraph(forecaster).eval()
    example = example_inputs(config)
    n, s, b = (torch.export.Dim(name, min=1) for name in ("N", "S", "B"))
    # The tuning's width differs between bundles of one network, so it stays free too.
    f = torch.export.Dim("F", min=1)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The exporter's own deprecations, and its notes on packages that are not needed, are not this project's to mend.
        warnings.simplefilter("ignore")
        levels = [log.level for log in _EXPORTER_LOGS]
        for log in _EXPORTER_LOGS:
            log.setLevel(logging.ERROR)
        program = torch.onnx.export(
            graph,
            tuple(torch.from_numpy(array) for array in example.named().values()),
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            dynamic_shapes=(
                {0: n},
                {0: n},
                {0: n, 2: config.d + TUNING_QUANTITIES * f},
                {0: s, 2: config.d + f},
                {0: b},
                {0: b},
            ),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    for log, level in zip(_EXPORTER_LOGS, levels, strict=True):
        log.setLevel(level)
    assert program is not None
    model = program.model_proto
    # The exporter records source lines and module paths; they are the exporting machine's and no part of the model.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        del value.metadata_props[:]
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for function in model.functions:
        for node in function.node:
            del node.metadata_props[:]
    onnx.checker.check_model(model)
    buffer.write(model.SerializeToString(deterministic=True))
    return buffer.getvalue()


def run_graph(
    graph: bytes, inputs: GraphInputs
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Run an exported graph once on the CPU: logit, response, spread."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    logit, response, spread = session.run(list(OUTPUTS), inputs.named())
    return logit, response, spread


def check_parity(forecaster: Forecaster, graph: bytes, inputs: GraphInputs) -> Parity:
    """Ask PyTorch and ONNX Runtime the same questions.

    Raises:
        BundleError: they differ by more than `TOLERANCE`.
    """
    with torch.no_grad():
        expected = ServingGraph(forecaster).eval()(*(torch.from_numpy(array) for array in inputs.named().values()))
    found = run_graph(graph, inputs)
    logit, response, spread = (
        float(np.abs(ours.numpy() - theirs).max(initial=0.0)) for ours, theirs in zip(expected, found, strict=True)
    )
    if not max(logit, response, spread) <= TOLERANCE:
        raise BundleError(
            f"PyTorch and ONNX Runtime differ by {logit:.2e} (logit), {response:.2e} (response), {spread:.2e} (spread); "
            f"at most {TOLERANCE:.0e} is allowed: the export is not to be trusted"
        )
    return Parity(
        rows=len(inputs.row_neuron), logit=logit, response=response, spread=spread, provider="CPUExecutionProvider"
    )
