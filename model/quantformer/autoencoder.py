"""Pre-training: a masked auto-encoder with a quantised bottleneck (paper section 3.3)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantformer.config import ModelConfig
from quantformer.layers import Transformer
from quantformer.patches import PatchEmbedding, from_patches, to_patches
from quantformer.quantizer import FrozenCodebook, QuantizedResult, Quantizer, unquantized


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction:
    """``patches`` ``[B, P, frames]``; ``masked`` bool ``[B, P]``; what the quantiser did."""

    patches: Tensor
    masked: Tensor
    quantization: QuantizedResult


class Encoder(nn.Module):
    """Patch embedding, learned [MASK] token and transformer; the same in pre-training and downstream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embedding = PatchEmbedding(patch_frames=config.patch_frames, patches=config.patches, d=config.d)
        self.mask_token = nn.Parameter(torch.randn(config.d) * 0.02)
        self.transformer = Transformer(config)

    def masked_tokens(self, tokens: Tensor, masked: Tensor) -> Tensor:
        """Replace the tokens at ``masked`` bool ``[B, P]`` by [MASK] and its position."""
        placeholder = self.mask_token + self.embedding.position[: tokens.shape[1]]
        return torch.where(masked[..., None], placeholder, tokens)

    def forward(self, patches: Tensor, masked: Tensor | None = None) -> Tensor:
        """Encode ``[B, P, frames]`` to ``[B, P, d]``."""
        tokens = self.embedding(patches)
        if masked is not None:
            tokens = self.masked_tokens(tokens, masked)
        encoded: Tensor = self.transformer(tokens)
        return encoded


class Decoder(nn.Module):
    """Transformer from code vectors back to patches, ``[B, P, d]`` to ``[B, P, frames]``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(config.patches, config.d) * 0.02)
        self.transformer = Transformer(config)
        self.project = nn.Linear(config.d, config.patch_frames)

    def forward(self, code_vectors: Tensor, read: slice = slice(None)) -> Tensor:
        """Decode the patches ``read`` of a trial."""
        decoded: Tensor = self.project(self.transformer(code_vectors + self.position, read))
        return decoded


class Autoencoder(nn.Module):
    """Encoder, quantiser and decoder, ignoring neuron identity and stimulus as section 3.3 asks.

    Not ``quantized``, the decoder is given the encoder's output itself: the standard auto-encoder of the paper's Table 3.
    """

    def __init__(self, config: ModelConfig, *, quantized: bool = True) -> None:
        super().__init__()
        self.config, self.quantized = config, quantized
        self.encoder = Encoder(config)
        self.quantizer = Quantizer(codes=config.codes, d=config.d)
        self.decoder = Decoder(config)

    def forward(self, trace: Tensor, masked: Tensor | None = None) -> Reconstruction:
        """Reconstruct whole trials ``[B, frames]``; ``masked`` is drawn by equation 3 where it is not given."""
        patches = to_patches(trace, patch_frames=self.config.patch_frames)
        if masked is None:
            masked = torch.rand(patches.shape[:2], device=trace.device) < self.config.mask_probability
        encoded = self.encoder(patches, masked)
        quantization = self.quantizer(encoded) if self.quantized else unquantized(encoded)
        return Reconstruction(patches=self.decoder(quantization.quantized), masked=masked, quantization=quantization)

    def freeze(self) -> FrozenAutoencoder:
        """What downstream training needs of it, as a copy with nothing left that could move."""
        encoder, decoder = copy.deepcopy(self.encoder), copy.deepcopy(self.decoder)
        return FrozenAutoencoder(encoder=encoder, codebook=self.quantizer.freeze(), decoder=decoder)


class FrozenAutoencoder(nn.Module):
    """The pre-trained encoder as teacher, the folded codebook and the decoder; all frozen, always in eval mode."""

    def __init__(self, *, encoder: Encoder, codebook: FrozenCodebook, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.codebook, self.decoder = encoder, codebook, decoder
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> FrozenAutoencoder:
        """Stay in eval mode, whatever the module around this one is told: targets must not drift."""
        super().train(False)
        return self

    def codes(self, trace: Tensor, *, patch_frames: int) -> Tensor:
        """Target codes int64 ``[B, P]`` of whole trials ``[B, frames]`` (section 3.4.2)."""
        codes: Tensor = self.codebook(self.encoder(to_patches(trace, patch_frames=patch_frames)))
        return codes

    def decode(self, code_vectors: Tensor, read: slice = slice(None)) -> Tensor:
        """Traces ``[B, frames]`` of the patches ``read``, from the code vectors ``[B, P, d]`` of all."""
        return from_patches(self.decoder(code_vectors, read))
