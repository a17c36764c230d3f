"""What the neurons together did in the last second, in two numbers: the level of their population.

The paper's model reads one neuron at a time. But neurons share states (arousal, running, bursts), and where the others stand
tells how this one will answer beyond what its own trace does. Each neuron's *activity* is its mean fluorescence over the
last second against its usual one, in units of its noise, as a signed logarithm, so that no burst of one cell drowns the others;
the level is where the activities lie along their two leading components in training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantformer.config import F0_LEVELS, LEVEL_QUANTITIES, POPULATION_LEVELS
from quantformer.signal import LARGEST_LEVEL

#: Frames that the level is read from: the last ones that were observed.
POPULATION_FRAMES = 30

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class PopulationLevel:
    """How some neurons' fluorescence becomes the level of their population.

    ``usual_f0`` and ``noise`` float64 ``(neurons,)``, in the units of the fluorescence; ``usual_activity`` ``(neurons,)`` and
    ``loading`` ``(neurons, POPULATION_LEVELS)``. A neuron whose loading is zero takes no part, and one that is not there counts
    as one that does what it usually does.
    """

    usual_f0: Floats
    noise: Floats
    usual_activity: Floats
    loading: Floats

    @classmethod
    def of_nobody(cls) -> PopulationLevel:
        """Of no neurons."""
        none = np.zeros(0)
        return cls(usual_f0=none, noise=none, usual_activity=none, loading=np.zeros((0, POPULATION_LEVELS)))

    def of(self, window: NDArray[np.float32], *, observed: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """Level ``(POPULATION_LEVELS,)`` just after a window ``(frames, neurons)`` of corrected fluorescence, of which the
        frames ``observed`` (default: all) were measured.
        """
        return self.of_recent(recent_fluorescence(window, observed=observed))

    def of_recent(self, recent: Floats) -> NDArray[np.float32]:
        """Levels ``(..., POPULATION_LEVELS)`` of `recent_fluorescence` ``(..., neurons)``, clipped at `LARGEST_LEVEL`.

        A value that is not finite counts as the usual one; nobody took part: zeros.
        """
        away = activity(recent, usual_f0=self.usual_f0, noise=self.noise) - self.usual_activity
        level = np.einsum("...n,np->...p", np.where(np.isfinite(away), away, 0.0), self.loading)
        clipped: NDArray[np.float32] = np.clip(level, -LARGEST_LEVEL, LARGEST_LEVEL).astype(np.float32)
        return clipped


def recent_fluorescence(window: NDArray[np.float32], *, observed: NDArray[np.bool_] | None = None) -> Floats:
    """Mean ``(neurons,)`` of the last `POPULATION_FRAMES` observed frames of ``(frames, neurons)``, or of as many as there
    are; NaN where there is none.
    """
    seen = window if observed is None or observed.all() else window[observed]
    tail = seen[-POPULATION_FRAMES:]
    # As in `signal.baseline_f0`, float32 values add up exactly in float64, whatever the order.
    with np.errstate(invalid="ignore"):  # a client may send infinities of either sign
        total: Floats = tail.sum(0, dtype=np.float64)
    return total / len(tail) if len(tail) else np.full(window.shape[1], np.nan)


def activity(recent: Floats, *, usual_f0: Floats, noise: Floats) -> Floats:
    """Signed logarithm ``(..., neurons)`` of how many times its noise a neuron's recent fluorescence lies above its usual one;
    NaN where there is no noise to measure with.
    """
    with np.errstate(all="ignore"):
        away = np.where(noise > 0.0, (recent - usual_f0) / noise, np.nan)
    return np.sign(away) * np.log1p(np.abs(away))


def joined_level(f0: NDArray[np.float32], population: NDArray[np.float32]) -> NDArray[np.float32]:
    """The network's ``level`` ``(neurons, LEVEL_QUANTITIES)``: each neuron's own ``(neurons, F0_LEVELS)`` and that of the
    population, ``(POPULATION_LEVELS,)`` for all or ``(neurons, POPULATION_LEVELS)``.
    """
    level = np.empty((len(f0), LEVEL_QUANTITIES), np.float32)
    level[:, :F0_LEVELS], level[:, F0_LEVELS:] = f0, population
    return level
