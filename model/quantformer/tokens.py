"""The learnable [NEURON] and [STIM] vectors of one task while it trains; a bundle stores them as plain arrays."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Row that stands for a neuron the model has no vector for.
UNKNOWN = -1


class TaskTokens(nn.Module):
    """Vectors of one task (sections 3.4.1 and 3.4.2: each task learns its own).

    A neuron's vector is the shared unknown vector plus its own offset, so that weight decay pulls every neuron towards
    what is known of neurons in general, and a neuron that was never seen has a trained vector. A stimulus' vector is
    ``W . features`` plus an offset of its id.
    """

    def __init__(self, *, neurons: int, feature_width: int, stimulus_ids: int, d: int) -> None:
        super().__init__()
        self.unknown = nn.Parameter(torch.randn(d) * 0.02)
        self.offset = nn.Parameter(torch.zeros(neurons, d))
        self.weight = nn.Parameter(torch.randn(feature_width, d) * 0.02)
        self.stimulus_offset = nn.Parameter(torch.zeros(stimulus_ids, d))

    def neuron(self, row: Tensor) -> Tensor:
        """Vectors ``[B, d]`` of neuron rows int64 ``[B]``; -1 asks for the unknown vector."""
        known = (row >= 0)[:, None].to(self.offset.dtype)
        # index_select: the gradient of indexing sorts the rows on a GPU.
        return self.unknown + known * self.offset.index_select(0, row.clamp_min(0))

    def stimulus(self, features: Tensor, row: Tensor) -> Tensor:
        """Vectors ``[B, d]`` of encoded features ``[B, width]`` and id rows int64 ``[B]`` (-1: no id)."""
        vector: Tensor = features @ self.weight
        if len(self.stimulus_offset):
            known = (row >= 0)[:, None].to(vector.dtype)
            vector = vector + known * self.stimulus_offset.index_select(0, row.clamp_min(0))
        return vector
