"""Where training batches come from: one recording's trials in memory, or windows gathered by index from a trace store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from torch import Tensor

from quantformer_training.examples import Examples


class RowSource(Protocol):
    """Neuron-trials of one part (train, validation or test). Every network is trained and asked through this."""

    def __len__(self) -> int:
        """Valid neuron-trials."""
        ...

    def draw(self, count: int, rng: np.random.Generator) -> Examples:
        """About ``count`` random neuron-trials (all, where there are fewer), with random leads and gaps."""
        ...

    def at_lead(self, lead: int, *, most: int | None = None) -> Examples:
        """Every valid row in order, the last ``lead`` frames withheld; with ``most``, an even choice of so many."""
        ...


class TrialSource(RowSource, Protocol):
    """A source of one or several recordings that can also be asked for whole trials, and piece by piece."""

    @property
    def neurons(self) -> int:
        """Neurons of a trial; of whole trials only a source of one recording can be asked."""
        ...

    def batches(self, *, lead: int, size: int) -> Iterator[Examples]:
        """Every valid row once, in order, the last ``lead`` frames withheld; at most ``size`` rows a batch."""
        ...

    def draw_trials(self, count: int, rng: np.random.Generator) -> tuple[Examples, Tensor]:
        """Random whole trials of about ``count`` rows together: for each trial every neuron of the recording, in order, so
        that ``[B, ...]`` reshapes to ``[trials, neurons, ...]``; and which rows are valid, bool ``[B]``. Invalid rows
        hold zeros.
        """
        ...

    def trial_batches(self, *, lead: int, size: int) -> Iterator[tuple[Examples, Tensor]]:
        """Every trial once, in order, in the form of `draw_trials`; valid rows come in the order of `batches`."""
        ...
