"""The proof at the start: what answers as float32 does on the CPU serves, what does not is refused, whatever is wrong."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from quantformer.bundle import Bundle, load_bundle
from quantformer.errors import ProviderError
from quantformer.manifest import FormName, Precision
from quantformer_service.buffers import Device, Results
from quantformer_service.inference import Inference
from quantformer_service.network import Network
from quantformer_service.proof import ANY_FORM, MARGIN, SAME_GRAPH, prove

DEVICES = [Device(), Device(lanes=2), Device(padded=True, lanes=2)]


@pytest.fixture(scope="module")
def bundle(lowered_bundle_path: Path) -> Bundle:
    return load_bundle(lowered_bundle_path)


def with_form(bundle: Bundle, name: FormName, graph: bytes, *, agreed: float = 0.001) -> Bundle:
    """The bundle with another graph as its form, which is said to have been off by ``agreed`` on validation rows."""
    form = bundle.manifest.forms[name]
    agreement = msgspec.structs.replace(form.agreement, logit=agreed, response=agreed, spread=agreed)
    manifest = msgspec.structs.replace(
        bundle.manifest, forms={**bundle.manifest.forms, name: msgspec.structs.replace(form, agreement=agreement)}
    )
    return Bundle(
        path=bundle.path,
        digest=bundle.hash,
        manifest=manifest,
        vectors=bundle.vectors,
        graph=bundle.in_precision("float32").graph,
        forms={name: graph},
        precision=name,
    )


def harmed(bundle: Bundle) -> bytes:
    """The float32 graph with one matrix of its transformer negated."""
    model = onnx.load_from_string(bundle.in_precision("float32").graph)
    weight = next(
        one for one in model.graph.initializer if one.name.endswith("encoder.transformer.blocks.0.expand.weight")
    )
    weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))
    whole: bytes = model.SerializeToString()
    return whole


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", get_args(Precision))
def test_every_form_passes_on_every_device(bundle: Bundle, precision: Precision, device: Device) -> None:
    asked = bundle.in_precision(precision)
    network = Network(asked, provider="cpu", device=device)
    found = {one.name: one for one in prove(network, asked)}
    assert set(found) == {"logit", "response", "spread", "logit alone"}
    assert all(one.allowed == (SAME_GRAPH if precision == "float32" else MARGIN * 0.1) for one in found.values())
    # A lower precision rounds; the same precision adds in another order at most.
    assert found["logit"].found > 1e-6 if precision != "float32" else found["logit"].found <= 1e-6
    network.close()


def test_a_graph_that_answers_otherwise_is_refused_with_how_far_off_it_is(bundle: Bundle) -> None:
    wrong = with_form(bundle, "float16", harmed(bundle))
    network = Network(wrong, provider="cpu", threads=1)
    with pytest.raises(
        ProviderError, match=rf"cpu in float16 .*logit off by \d.* \(allowed {ANY_FORM:.2g}\).*; set precision"
    ):
        prove(network, wrong)
    network.close()


@pytest.mark.parametrize("output", ["logit", "response", "spread"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_answer_that_is_not_a_number_is_refused(
    bundle: Bundle, output: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = bundle.in_precision("float32")
    network = Network(asked, provider="cpu", threads=1)
    real = network.ask

    def ask(*given: Any, **named: Any) -> Results:
        found = real(*given, **named)
        if getattr(found, output) is not None:
            getattr(found, output).flat[-1] = value
        return found

    monkeypatch.setattr(network, "ask", ask)
    with pytest.raises(ProviderError, match=rf"^[^,]*{output} off by (nan|inf)"):
        prove(network, asked)
    network.close()


def test_a_device_that_answers_the_question_before_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A captured graph that is replayed with what its tensors held when it was captured."""
    asked = bundle.in_precision("float32")
    network = Network(asked, provider="cpu", threads=1)
    said: list[Results] = []
    real = network.ask

    def ask(*given: Any, **named: Any) -> Results:
        said.append(real(*given, **named))
        return said[0]

    monkeypatch.setattr(network, "ask", ask)
    with pytest.raises(ProviderError, match="logit off by"):
        prove(network, asked)
    network.close()


def test_a_wrong_probability_alone_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = bundle.in_precision("float32")
    network = Network(asked, provider="cpu", threads=1)
    real = network.ask

    def ask(*given: Any, forecast: bool, **named: Any) -> Results:
        found = real(*given, forecast=forecast, **named)
        return found if forecast else Results(logit=found.logit + 1, response=None, spread=None)

    monkeypatch.setattr(network, "ask", ask)
    with pytest.raises(ProviderError, match=r"does: logit alone off by 1"):
        prove(network, asked)
    network.close()


def test_an_engine_of_a_wrong_form_never_becomes_ready(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for graph, right in ((harmed(bundle), False), (bundle.forms["int8"], True)):
        ended = threading.Event()
        asked = with_form(bundle, "int8", graph, agreed=0.1 if right else 0.001)
        inference = Inference(asked, provider="cpu", threads=1, on_done=ended.set)
        inference.start()
        assert ended.wait(60)
        assert inference.ready.is_set() is right
        assert isinstance(inference.failure, ProviderError) is not right
        assert inference.stop(60)
    assert "cpu in int8 against float32 on the CPU: logit off by" in caplog.text
