"""A made checkpoint in the layout of BrainLM's first published model: tiny, with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from quantformer_training.networks.brainlm_checkpoint import CONFIG, WEIGHTS


def published(directory: Path, **changes: Tensor | None) -> Path:
    """A tiny checkpoint in the layout of BrainLM's first published model; ``changes`` replace or remove tensors."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "vit.embeddings.cls_token": (1, 1, 8),
        "vit.embeddings.signal_embedding_projection.weight": (8, 20),
        "vit.embeddings.signal_embedding_projection.bias": (8,),
        "vit.embeddings.xyz_embedding_projection.weight": (8, 3),
        "vit.layernorm.weight": (8,),
        "vit.layernorm.bias": (8,),
        "decoder.mask_token": (1, 1, 8),
    }
    for layer in range(2):
        prefix = f"vit.encoder.layer.{layer}"
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= {f"{prefix}.{name}.weight": (8, 8), f"{prefix}.{name}.bias": (8,)}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{prefix}.{name}.weight": (8,), f"{prefix}.{name}.bias": (8,)}
        shapes |= {f"{prefix}.intermediate.dense.weight": (24, 8), f"{prefix}.intermediate.dense.bias": (24,)}
        shapes |= {f"{prefix}.output.dense.weight": (8, 24), f"{prefix}.output.dense.bias": (8,)}
        shapes[f"{prefix}.attention.self.conv.weight"] = (2, 1, 65, 1)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name, change in changes.items():
        if change is None:
            del tensors[name]
        else:
            tensors[name] = change
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / WEIGHTS)
    sizes = {
        "model_type": "brainlm_mae", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 24, "timepoint_patching_size": 20, "conv_kernel_size": 65,
    }  # fmt: skip
    (directory / CONFIG).write_text(json.dumps(sizes))
    return directory
