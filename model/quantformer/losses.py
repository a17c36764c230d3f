"""Training losses with the paper's equation beside each."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def reconstruction_loss(
    reconstructed: Tensor, target: Tensor, *, masked: Tensor, active: Tensor, alpha: float = 2.0, beta: float = 0.0
) -> Tensor:
    """Equation 2: ``(1 + a beta) (alpha MSE(masked) + MSE(unmasked))``, mean over the batch.

    ``reconstructed`` and ``target`` are patches ``[B, P, frames]``, ``masked`` bool ``[B, P]``, ``active`` bool ``[B]``.
    A trial without masked (or without unmasked) patches contributes nothing to that part.
    """
    error = (reconstructed - target).square().mean(-1)
    inside = masked.to(error.dtype)
    masked_error = (error * inside).sum(1) / inside.sum(1).clamp_min(1.0)
    unmasked_error = (error * (1.0 - inside)).sum(1) / (1.0 - inside).sum(1).clamp_min(1.0)
    weight = 1.0 + beta * active.to(error.dtype)
    return (weight * (alpha * masked_error + unmasked_error)).mean()


def code_loss(logits: Tensor, codes: Tensor) -> Tensor:
    """Equation 4, averaged over tokens: cross-entropy of ``[B, P, K]`` logits against int64 ``[B, P]`` codes."""
    # Averaged by itself: a GPU adds up inside the cross-entropy with one of its processors.
    return functional.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none").mean()


def activation_loss(logit: Tensor, active: Tensor) -> Tensor:
    """Binary cross-entropy of ``[B]`` logits against ``[B]`` labels (section 3.4.1), or a teacher's probabilities."""
    return functional.binary_cross_entropy_with_logits(logit, active.to(logit.dtype))


def shape_loss(forecast: Tensor, response: Tensor, *, epsilon: float = 1e-4) -> Tensor:
    """One minus the mean Pearson correlation a trace of dF/F ``[B, frames]``; ``epsilon`` in (dF/F)^2 quiets flat ones."""
    ours = forecast - forecast.mean(1, keepdim=True)
    theirs = response - response.mean(1, keepdim=True)
    norm = ((ours.square().sum(1) + epsilon) * (theirs.square().sum(1) + epsilon)).sqrt()
    return 1.0 - ((ours * theirs).sum(1) / norm).mean()
