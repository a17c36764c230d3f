"""Cutting a trace into patches and putting it together again (paper section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def to_patches(trace: Tensor, *, patch_frames: int) -> Tensor:
    """``[B, T]`` to ``[B, T / patch_frames, patch_frames]``; nothing is padded."""
    return trace.reshape(trace.shape[0], -1, patch_frames)


def from_patches(patches: Tensor) -> Tensor:
    """``[B, P, patch_frames]`` to ``[B, P * patch_frames]``."""
    return patches.flatten(1)


class PatchEmbedding(nn.Module):
    """Linear projection of patches to tokens with learned positions: ``[B, P, patch_frames]`` to ``[B, P, d]``."""

    def __init__(self, *, patch_frames: int, patches: int, d: int) -> None:
        super().__init__()
        self.project = nn.Linear(patch_frames, d)
        self.position = nn.Parameter(torch.randn(patches, d) * 0.02)

    def forward(self, patches: Tensor) -> Tensor:
        """Embed the first ``P`` patches of a trial."""
        embedded: Tensor = self.project(patches) + self.position[: patches.shape[1]]
        return embedded
