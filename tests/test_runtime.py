"""The runtime's sessions: the provider that was asked for is the one that runs, or the reason why not."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from quantformer.bundle import Bundle, load_bundle
from quantformer.errors import BundleError, ProviderError
from quantformer_service.runtime import check_running, in_precision, open_session

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture(scope="module")
def bundle(tiny_bundle_path: Path) -> Bundle:
    return load_bundle(tiny_bundle_path)


@pytest.mark.skipif(HAS_CUDA, reason="this runtime has CUDA")
def test_where_the_runtime_has_no_cuda_auto_is_the_cpu_and_cuda_is_refused(bundle: Bundle) -> None:
    for provider in ("auto", "cpu"):
        assert open_session(bundle, provider=provider).get_providers() == ["CPUExecutionProvider"]
    with pytest.raises(ProviderError, match=r"provider cuda was asked for.*quantformer\[gpu\].*--provider cpu"):
        open_session(bundle, provider="cuda")


def test_a_session_that_fell_back_is_refused() -> None:
    check_running(["CUDAExecutionProvider", "CPUExecutionProvider"], name="cuda")
    check_running(["CPUExecutionProvider"], name="cpu")
    with pytest.raises(ProviderError, match=r"cuda was asked for, but CPUExecutionProvider runs.*--provider cpu"):
        check_running(["CPUExecutionProvider"], name="cuda")
    with pytest.raises(ProviderError, match="nothing runs"):
        check_running([], name="cpu")


def test_a_graph_that_the_runtime_does_not_take_is_refused_with_its_words(bundle: Bundle) -> None:
    broken = Bundle(
        path=bundle.path, digest=bundle.hash, manifest=bundle.manifest, vectors=bundle.vectors, graph=bundle.graph[:500]
    )
    for outputs in (None, ["logit"]):
        with pytest.raises(ProviderError, match="cannot be made ready on provider cpu"):
            open_session(broken, provider="cpu", outputs=outputs)


def test_each_run_computes_on_the_callers_thread_and_no_thread_spins(bundle: Bundle) -> None:
    options = open_session(bundle, provider="cpu", threads=1).get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_the_precision_is_what_was_asked_or_the_reason_why_not(bundle: Bundle, lowered_bundle_path: Path) -> None:
    lowered = load_bundle(lowered_bundle_path)
    assert in_precision(lowered, precision="float32", provider="cpu").precision == "float32"
    for asked in ("auto", "int8"):
        found = in_precision(lowered, precision=asked, provider="cpu")
        assert found.precision == "int8"
        assert found.graph == lowered.forms["int8"]
    assert in_precision(bundle, precision="auto", provider="cpu").precision == "float32"
    with pytest.raises(BundleError, match="has no int8 graph"):
        in_precision(bundle, precision="int8", provider="cpu")
    with pytest.raises(ProviderError, match="float16 is not for provider cpu, whose form is int8"):
        in_precision(lowered, precision="float16", provider="cpu")
