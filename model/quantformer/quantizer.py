"""Vector quantisation after Huh et al. 2023 (paper section 3.3, equation 1).

Their three remedies: the codebook is an affine image of raw code vectors, so that all codes move with the encoder's
distribution; a synchronised update lets a share ``nu`` of the task gradient reach the chosen codes; codes that nothing
chooses are replaced. `Quantizer` learns; `FrozenCodebook` is what remains when pre-training ends.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedResult:
    """``codes`` int64 ``[B, P]``; ``quantized`` ``[B, P, d]``, straight-through; ``loss``, a scalar; ``perplexity``."""

    codes: Tensor
    quantized: Tensor
    loss: Tensor
    perplexity: Tensor


def nearest_codes(encoded: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest code, equation 1: ``argmin(|e|^2 - 2 z.e)`` in float32. ``[B, P, d]`` to int64 ``[B, P]``.

    Float32 whatever the network's precision, autocast included: in half precision near-ties fall differently on
    different devices.
    """
    with torch.autocast(encoded.device.type, enabled=False):
        codebook = codebook.float()
        return (codebook.square().sum(-1) - 2.0 * encoded.float() @ codebook.T).argmin(-1)


def unquantized(encoded: Tensor) -> QuantizedResult:
    """The encoder's output as it is: no code, no loss."""
    none = torch.zeros(encoded.shape[:-1], dtype=torch.int64, device=encoded.device)
    zero = encoded.new_zeros(())
    return QuantizedResult(codes=none, quantized=encoded, loss=zero, perplexity=zero + 1.0)


class FrozenCodebook(nn.Module):
    """A codebook that can no longer change: the affine map is folded in, nothing is replaced, its hash is fixed."""

    codebook: Tensor

    def __init__(self, codebook: Tensor) -> None:
        super().__init__()
        self.register_buffer("codebook", codebook.detach().clone().float())

    def forward(self, encoded: Tensor) -> Tensor:
        """Codes int64 ``[B, P]`` of ``[B, P, d]``."""
        return nearest_codes(encoded, self.codebook)

    def digest(self) -> str:
        """SHA-256 of the codebook's bytes; equal before and after any training that must not move it."""
        return hashlib.sha256(self.codebook.cpu().contiguous().numpy().tobytes()).hexdigest()


class Quantizer(nn.Module):
    """A codebook of ``codes`` vectors of width ``d`` that learns.

    ``affine_lr`` multiplies the learning rate of the affine map; ``sync_nu`` is the share of the task gradient given
    to the codes; ``commitment`` weighs the commitment loss against the codebook loss; unused codes are replaced every
    ``replace_every`` training steps by encoder outputs of the current batch.
    """

    usage: Tensor
    steps: Tensor

    def __init__(
        self,
        *,
        codes: int,
        d: int,
        affine_lr: float = 10.0,
        sync_nu: float = 0.2,
        commitment: float = 0.9,
        replace_every: int = 20,
    ) -> None:
        super().__init__()
        self.affine_lr, self.sync_nu, self.commitment, self.replace_every = (
            affine_lr,
            sync_nu,
            commitment,
            replace_every,
        )
        self.raw = nn.Parameter(torch.randn(codes, d))
        self.affine_scale = nn.Parameter(torch.zeros(d))
        self.affine_bias = nn.Parameter(torch.zeros(d))
        self.register_buffer("usage", torch.zeros(codes))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def codebook(self) -> Tensor:
        """The codes after their affine map ``[codes, d]``: the only form in which they are ever compared or decoded."""
        return (1.0 + self.affine_lr * self.affine_scale) * self.raw + self.affine_lr * self.affine_bias

    def forward(self, encoded: Tensor) -> QuantizedResult:
        """Quantise ``[B, P, d]``; in training mode also count usage and replace dead codes."""
        if self.training:
            self._replace_dead(encoded)
        codebook = self.codebook()
        codes = nearest_codes(encoded, codebook)
        chosen = nn.functional.embedding(codes, codebook)
        # Both losses compare the encoder's output with the chosen code itself. On the straight-through output the two
        # would be equal by construction and the encoder's commitment gradient would vanish.
        pull_encoder = (encoded - chosen.detach()).square().mean()
        pull_codes = (encoded.detach() - chosen).square().mean()
        straight_through = encoded + (chosen - encoded).detach()
        quantized = straight_through + self.sync_nu * (chosen - chosen.detach())
        counts = torch.bincount(codes.flatten(), minlength=codebook.shape[0]).to(self.usage.dtype)
        if self.training:
            self.usage += counts
        share = counts / counts.sum()
        perplexity = torch.exp(-(share * torch.log(share.clamp_min(1e-10))).sum())
        loss = self.commitment * pull_encoder + (1.0 - self.commitment) * pull_codes
        return QuantizedResult(codes=codes, quantized=quantized, loss=loss, perplexity=perplexity)

    def freeze(self) -> FrozenCodebook:
        """The codebook with its affine map folded in, as a buffer that training cannot reach."""
        return FrozenCodebook(self.codebook())

    @torch.no_grad()
    def _replace_dead(self, encoded: Tensor) -> None:
        """Start from encoder outputs; later, every ``replace_every`` steps, replace the codes that nothing chose."""
        first = int(self.steps) == 0
        if first or int(self.steps) % self.replace_every == 0:
            dead = torch.nonzero(self.usage == 0).flatten()
            outputs = encoded.detach().flatten(0, -2).float()
            picks = torch.randint(len(outputs), (len(dead),), device=outputs.device)
            # The raw vector whose affine image is the chosen encoder output.
            scale = 1.0 + self.affine_lr * self.affine_scale
            self.raw[dead] = (outputs[picks] - self.affine_lr * self.affine_bias) / scale
            self.usage.zero_()
        self.steps += 1
