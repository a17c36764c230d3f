"""Random neuron-trials in memory, as a source: what networks are tried on where no recording is needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from quantformer.config import LEVEL_QUANTITIES, TUNING_QUANTITIES
from quantformer_training.examples import Examples, even
from quantformer_training.networks import NetworkConfig

NEURONS, WIDTH, IDS = 5, 3, 2


def network_config(outputs: int = 1, *, d: int = 16, layers: int = 2, dropout: float = 0.0) -> NetworkConfig:
    """A tiny network for `random_rows`."""
    return NetworkConfig(
        neurons=NEURONS, feature_width=WIDTH, stimulus_ids=IDS, outputs=outputs, d=d, layers=layers, heads=2, dropout=dropout
    )


def random_rows(trials: int, *, seed: int = 0) -> Examples:
    """Whole trials of `NEURONS` neurons that have something to learn.

    The last frames of the baseline go on into the response, which one of two stimuli raises; half of the neurons have no id
    row and half of the moments no stimulus id, so that unknown ones are asked about too.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = trials * NEURONS
    neuron = torch.arange(NEURONS).repeat(trials)
    stimulus = torch.randint(-1, IDS, (trials,), generator=generator).repeat_interleave(NEURONS)
    baseline = torch.randn(rows, 96, generator=generator)
    baseline[:, -10:] += 2.0 * torch.randn(rows, 1, generator=generator)
    end = baseline[:, -10:].mean(1, keepdim=True)
    raised = (stimulus == 0).float()[:, None] * 2.0
    response = end * torch.linspace(1.0, 0.0, 64) + raised + 0.3 * torch.randn(rows, 64, generator=generator)
    return Examples(
        baseline=baseline,
        trace=torch.cat([baseline, response], dim=1),
        response=response * 0.2,
        active=response.mean(1) > 0.8,
        neuron=torch.where(neuron == NEURONS - 1, -1, neuron),
        features=torch.nn.functional.one_hot(stimulus + 1, WIDTH).float(),
        stimulus=stimulus,
        level=torch.randn(rows, LEVEL_QUANTITIES, generator=generator),
        tuning=torch.randn(rows, TUNING_QUANTITIES, generator=generator),
        population_tuning=torch.zeros(rows, TUNING_QUANTITIES),
        moment=torch.arange(trials).repeat_interleave(NEURONS),
    )


class RandomSource:
    """A `TrialSource` of given whole trials; ``valid`` bool ``[B]`` says which rows count."""

    neurons = NEURONS

    def __init__(self, rows: Examples, valid: Tensor | None = None) -> None:
        self.valid = torch.ones(len(rows), dtype=torch.bool) if valid is None else valid
        self.rows = zeroed(rows, self.valid)

    def __len__(self) -> int:
        return int(self.valid.sum())

    def draw(self, count: int, rng: np.random.Generator) -> Examples:
        known = np.flatnonzero(self.valid.numpy())
        return self.rows.select(torch.from_numpy(rng.choice(known, min(count, len(known)), replace=False)))

    def at_lead(self, lead: int, *, most: int | None = None) -> Examples:
        rows = _late(self.rows.select(self.valid), lead)
        return rows.select(torch.from_numpy(even(len(rows), most)))

    def batches(self, *, lead: int, size: int) -> Iterator[Examples]:
        every = self.at_lead(lead)
        for start in range(0, len(every), size):
            yield every.select(torch.arange(start, min(start + size, len(every))))

    def draw_trials(self, count: int, rng: np.random.Generator) -> tuple[Examples, Tensor]:
        trials = len(self.rows) // NEURONS
        chosen = rng.choice(trials, min(trials, max(1, round(count / NEURONS))), replace=False)
        index = torch.from_numpy((chosen[:, None] * NEURONS + np.arange(NEURONS)).ravel())
        return self.rows.select(index), self.valid[index]

    def trial_batches(self, *, lead: int, size: int) -> Iterator[tuple[Examples, Tensor]]:
        step = max(1, size // NEURONS) * NEURONS
        for start in range(0, len(self.rows), step):
            index = torch.arange(start, min(start + step, len(self.rows)))
            yield _late(self.rows.select(index), lead), self.valid[index]


def zeroed(rows: Examples, valid: Tensor) -> Examples:
    """The rows with traces of zeros where they are not valid."""
    keep = valid[:, None]
    return replace(
        rows,
        baseline=rows.baseline * keep,
        trace=rows.trace * keep,
        response=rows.response * keep,
        active=rows.active & valid,
    )


def _late(rows: Examples, lead: int) -> Examples:
    baseline = rows.baseline.clone()
    if lead:
        baseline[:, -lead:] = baseline[:, -lead - 1 : -lead]
    return replace(rows, baseline=baseline)
