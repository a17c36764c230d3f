"""The mean of a network's weights over its last steps: what fine-tuning validates and keeps.

Beyond the paper. A few hundred trials are a few dozen steps an epoch, each with a gradient that is mostly noise; weights that
are averaged have less of it at no cost in serving (Polyak and Juditsky 1992; docs/training.md says what it is worth). torch's
`AveragedModel` is a second network; what validates here asks the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

#: Share of the mean that a step leaves as it was, once there were many; before, the mean is over about a tenth of the steps.
LARGEST_DECAY = 0.99


class AveragedWeights:
    """Exponential mean of ``weights``, which training goes on changing. It begins at them, or at ``mean``, to which as many
    ``steps`` were added.
    """

    def __init__(self, weights: Sequence[nn.Parameter], *, mean: Sequence[Tensor] = (), steps: int = 0) -> None:
        self.weights, self.steps = weights, steps
        begun = zip(weights, mean or weights, strict=True)
        self.mean = [value.detach().to(weight.device, copy=True) for weight, value in begun]

    def add(self) -> None:
        """The weights after one more step."""
        self.steps += 1
        decay = min(LARGEST_DECAY, (self.steps + 1) / (self.steps + 10))
        move = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]  # torch's own
        move(self.mean, [weight.detach() for weight in self.weights], None)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The mean stands in the network's weights; after it they are as they were."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, mean in zip(self.weights, self.mean, strict=True):
            own = weight.detach().clone()
            weight.copy_(mean)
            mean.copy_(own)
