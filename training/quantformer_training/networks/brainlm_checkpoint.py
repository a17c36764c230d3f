"""BrainLM's own published encoder, from a directory that the user has; nothing is downloaded and nothing unpickled.

Its weights are licensed CC BY-NC-ND 4.0 (model card of huggingface.co/vandijklab/brainlm): not for commercial use, and what
is fine-tuned from them may not be passed on. They are published as ``pytorch_model.bin``, which is a pickle; docs/competitors.md
has the one line that makes ``model.safetensors`` of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quantformer.errors import DataError
from quantformer_training.networks.brainlm import BrainLMSeries, EncoderSizes
from quantformer_training.networks.network import CompetitorNetwork, NetworkConfig, NetworkSpec

LICENCE = "CC BY-NC-ND 4.0"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
#: Sizes in ``config.json`` and the largest that is believed: BrainLM's largest model has 650 M parameters.
_SIZES: Mapping[str, tuple[str, int]] = MappingProxyType(
    {
        "d": ("hidden_size", 2048), "layers": ("num_hidden_layers", 48), "heads": ("num_attention_heads", 64),
        "hidden": ("intermediate_size", 8192), "points": ("timepoint_patching_size", 1024),
        "kernel": ("conv_kernel_size", 1025),
    }
)  # fmt: skip
#: Our names of a block's modules, and those of the published tensors.
_BLOCK: Mapping[str, str] = MappingProxyType(
    {
        "query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value",
        "convolution": "attention.self.conv", "attention_out": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm", "expand": "intermediate.dense", "contract": "output.dense",
        "norm": "output.LayerNorm",
    }
)  # fmt: skip
_LARGEST_CONFIG = 1_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class BrainLMCheckpoint:
    """A published encoder: its sizes, its weights under our names, and the SHA-256 of both files together."""

    sizes: EncoderSizes
    weights: Mapping[str, Tensor]
    digest: str

    def make(self, config: NetworkConfig) -> CompetitorNetwork:
        """A network with this encoder; context, decoder and head are new."""
        series = BrainLMSeries(config, self.sizes)
        series.encoder.load_state_dict(dict(self.weights))
        return CompetitorNetwork(config, series)


def load_brainlm(directory: Path) -> BrainLMCheckpoint:
    """Read ``config.json`` and the encoder of ``model.safetensors``.

    Raises:
        DataError: a file is absent or damaged, a size is no size, or a tensor is missing, of another shape or not finite.
    """
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise DataError(
                f"{directory / name} does not exist; BrainLM's weights ({LICENCE}, not for commercial use) are yours to get from "
                f"huggingface.co/vandijklab/brainlm, and docs/competitors.md says how to make {WEIGHTS} of them"
            )
    sizes = _sizes(directory / CONFIG)
    weights = {}
    expected = _expected(sizes)
    path = directory / WEIGHTS
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            known = set(file.keys())
            for ours, (theirs, shape) in expected.items():
                if theirs not in known:
                    raise DataError(
                        f"{path} has no tensor {theirs!r}; expected BrainLM's model of 13 M parameters (the ViTMAE ones of "
                        "111 M and 650 M are other networks), or weights of that layout"
                    )
                found = tuple(file.get_slice(theirs).get_shape())
                if found != shape:
                    raise DataError(
                        f"{path}: tensor {theirs!r} is {found}, by {CONFIG} it is {shape}; take both files from one checkpoint"
                    )
                weights[ours] = file.get_tensor(theirs).to(torch.float32)
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} is not a safetensors file, or damaged ({reason}); make it anew") from None
    broken = [expected[ours][0] for ours, tensor in weights.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise DataError(f"{path}: tensor {broken[0]!r} holds numbers that are not finite; make the file anew")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update((directory / CONFIG).read_bytes())
    return BrainLMCheckpoint(sizes=sizes, weights=weights, digest=digest.hexdigest())


def finetuned_brainlm(directory: Path) -> NetworkSpec:
    """The paper's BrainLM-ft: the published encoder, fine-tuned.

    Raises:
        DataError: as `load_brainlm`.
    """
    checkpoint = load_brainlm(directory)
    return NetworkSpec(
        title="BrainLM (fine-tuned)", source=f"own code; weights of the user, {LICENCE}", make=checkpoint.make
    )


def _sizes(path: Path) -> EncoderSizes:
    if path.stat().st_size > _LARGEST_CONFIG:
        raise DataError(f"{path} has {path.stat().st_size} bytes; a configuration has a few thousand")
    try:
        found: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({type(error).__name__}); take it from the checkpoint anew") from None
    if not isinstance(found, dict):
        raise DataError(f"{path} holds no object; take it from the checkpoint anew")
    sizes = {}
    for ours, (theirs, most) in _SIZES.items():
        value = found.get(theirs)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise DataError(f"{path}: {theirs} is {value!r}; expected a whole number from 1 to {most}")
        sizes[ours] = value
    if sizes["d"] % sizes["heads"] or sizes["kernel"] % 2 == 0:
        raise DataError(
            f"{path}: hidden_size {sizes['d']}, num_attention_heads {sizes['heads']}, conv_kernel_size {sizes['kernel']}; "
            "expected a width that the heads share and an odd kernel"
        )
    return EncoderSizes(**sizes)


def _expected(sizes: EncoderSizes) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Our name of every tensor of an encoder, with the published name and its shape."""
    d, hidden = sizes.d, sizes.hidden
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "cls_token": ("vit.embeddings.cls_token", (1, 1, d)),
        "project.weight": ("vit.embeddings.signal_embedding_projection.weight", (d, sizes.points)),
        "project.bias": ("vit.embeddings.signal_embedding_projection.bias", (d,)),
        "norm.weight": ("vit.layernorm.weight", (d,)),
        "norm.bias": ("vit.layernorm.bias", (d,)),
    }
    widths = {"expand": (hidden, d), "contract": (d, hidden), "attention_norm": (d,), "norm": (d,)}
    for layer in range(sizes.layers):
        for ours, theirs in _BLOCK.items():
            name, published = f"blocks.{layer}.{ours}", f"vit.encoder.layer.{layer}.{theirs}"
            if ours == "convolution":
                expected[f"{name}.weight"] = (f"{published}.weight", (sizes.heads, 1, sizes.kernel, 1))
                continue
            shape = widths.get(ours, (d, d))
            expected[f"{name}.weight"] = (f"{published}.weight", shape)
            expected[f"{name}.bias"] = (f"{published}.bias", shape[:1])
    return expected
