"""Sessions of the runtime: on which provider, with what options, and proof that what was asked is what runs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from quantformer.bundle import Bundle
from quantformer.errors import ProviderError
from quantformer.manifest import FORM_OF, Precision
from quantformer_service.part import part_of

Provider = Literal["auto", "cpu", "cuda"]
#: What is asked for: float32, the device's own form where the bundle has it (``auto``), or a form.
AskedPrecision = Literal["float32", "auto", "int8", "float16"]
#: The runtime's names of the providers.
RUNTIME_NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
#: Float32 means float32: with TF32 the GPU rounds the factors of every product to 10 bits. And a norm's sums are float32's
#: though what is normed is float16.
_CUDA_OPTIONS = {"use_tf32": "0", "enable_skip_layer_norm_strict_mode": "1"}
#: Launches of some hundred kernels are captured once and replayed as one.
_CAPTURE = {"enable_cuda_graph": "1"}


def open_session(
    bundle: Bundle,
    *,
    provider: Provider,
    threads: int = 1,
    captured: bool = False,
    outputs: Collection[str] | None = None,
) -> Any:
    """An onnxruntime session of the bundle's verified graph on the asked provider, or of what ``outputs`` need of it.

    ``auto`` is CUDA where the runtime lists it, else the CPU. A runtime that lists CUDA and does not run it is refused under
    ``auto`` too: a rig that silently became fifty times slower is found out too late. ``threads`` are the CPU threads of one
    run. ``captured``: on a GPU every run is a captured graph's, and so must be bound to tensors of fixed addresses there.

    Raises:
        ProviderError: the asked provider is not there, or is not the one that runs.
    """
    import onnxruntime

    name = _chosen(provider, onnxruntime.get_available_providers())
    if name == "cuda":
        # The gpu extra brings CUDA and cuDNN as Python packages, where the loader does not look by itself.
        onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # A thread that spins between frames would take the core that the loop needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    wanted = RUNTIME_NAMES[name]
    cuda = _CUDA_OPTIONS | _CAPTURE if captured else _CUDA_OPTIONS
    providers: list[Any] = [wanted] if name == "cpu" else [(wanted, cuda), RUNTIME_NAMES["cpu"]]
    try:
        graph = bundle.graph if outputs is None else part_of(bundle.graph, outputs)
        session = onnxruntime.InferenceSession(graph, sess_options=options, providers=providers)
    except Exception as error:
        # The runtime's own exceptions share no base class.
        raise ProviderError(f"the graph cannot be made ready on provider {name}: {error}; {_CURE[name]}") from error
    check_running(session.get_providers(), name=name)
    return session


def in_precision(bundle: Bundle, *, precision: AskedPrecision, provider: Provider) -> Bundle:
    """The bundle with the graph of the asked precision; ``auto`` is the form of the provider's device, or float32.

    Raises:
        BundleError: the bundle has no such form.
        ProviderError: the form is another device's, or the provider is not there.
    """
    if precision == "float32":
        return bundle.in_precision("float32")
    import onnxruntime

    name = _chosen(provider, onnxruntime.get_available_providers())
    form: Precision = FORM_OF[name]
    if precision == "auto":
        return bundle.in_precision(form if form in bundle.forms else "float32")
    if precision != form:
        raise ProviderError(f"precision {precision} is not for provider {name}, whose form is {form}; set that, or float32")
    return bundle.in_precision(precision)


def check_running(providers: list[str], *, name: str) -> None:
    """Hold what a session runs on, ``providers``, to what was asked.

    Raises:
        ProviderError: it is something else.
    """
    if not providers or providers[0] != RUNTIME_NAMES[name]:
        running = providers[0] if providers else "nothing"
        raise ProviderError(f"provider {name} was asked for, but {running} runs; {_CURE[name]}")


def _chosen(provider: Provider, there: list[str]) -> str:
    if provider == "auto":
        return "cuda" if RUNTIME_NAMES["cuda"] in there else "cpu"
    if RUNTIME_NAMES[provider] not in there:
        raise ProviderError(
            f"provider {provider} was asked for, this onnxruntime has {', '.join(there)}; "
            "install 'quantformer[gpu]' in place of 'quantformer[serve]', or set --provider cpu"
        )
    return provider


_CURE = {
    "cpu": "export the bundle again, or update onnxruntime",
    "cuda": "check the driver and the CUDA libraries, or set --provider cpu",
}
