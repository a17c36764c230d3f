"""The leading components of a population's training activity, along which its level is told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quantformer.config import POPULATION_LEVELS
from quantformer.population_level import POPULATION_FRAMES, PopulationLevel, activity

#: Windows of training that the components are of, at most, spread evenly.
MOST_WINDOWS = 2000
#: A median absolute difference of successive frames times this is the standard deviation of normal noise.
_TO_DEVIATION = 1.0 / (0.6745 * np.sqrt(2.0))
#: A component with less than this share of the variance of the first is rounding.
_LEAST_VARIANCE = 1e-9

Floats = NDArray[np.float64]


def population_level(
    trace: NDArray[np.float32], *, spans: Sequence[tuple[int, int]], usual_f0: Floats, rate_hz: float
) -> PopulationLevel:
    """How the level of this population is told, from training frames alone.

    ``trace`` ``(frames, neurons)`` is corrected fluorescence, ``spans`` are the training part's ``[start, stop)``, and
    ``usual_f0`` ``(neurons,)``, in the same units, is 0 for a neuron that was never seen. The components are those of the
    activity in windows of a second, each with a standard deviation of 1 there and of the sign in which its loadings add up to
    more than zero. A neuron that was never seen, that does not vary, or that is not finite in a fifth of the windows, takes no
    part.
    """
    length = max(1, round(POPULATION_FRAMES * rate_hz / 30.0))
    stops = np.concatenate([np.arange(0), *(np.arange(low + length, high + 1) for low, high in spans)])
    stops = stops[np.linspace(0, len(stops) - 1, min(len(stops), MOST_WINDOWS)).round().astype(np.int64)]
    neurons = trace.shape[1]
    noise, usual = np.zeros(neurons), np.zeros(neurons)
    active = np.zeros((len(stops), neurons))
    for one in range(neurons):
        frames = trace[:, one].astype(np.float64)
        steps = np.concatenate([np.zeros(0), *(np.abs(np.diff(frames[low:high])) for low, high in spans)])
        steps = steps[np.isfinite(steps)]
        if usual_f0[one] <= 0.0 or not len(steps) or not len(stops):
            continue
        noise[one] = np.median(steps) * _TO_DEVIATION
        total = np.concatenate([[0.0], np.cumsum(np.where(np.isfinite(frames), frames, 0.0))])
        broken = np.concatenate([[0], np.cumsum(~np.isfinite(frames))])
        recent = (total[stops] - total[stops - length]) / length
        recent[broken[stops] > broken[stops - length]] = np.nan
        found = activity(recent, usual_f0=usual_f0[one], noise=noise[one])
        heard = np.isfinite(found)
        if heard.mean() >= 0.8:
            usual[one] = found[heard].mean()
            active[:, one] = np.where(heard, found - usual[one], 0.0)
    return PopulationLevel(usual_f0=usual_f0, noise=noise, usual_activity=usual, loading=_loading(active))


def _loading(active: Floats) -> Floats:
    """Loadings ``(neurons, POPULATION_LEVELS)`` of centred activity ``(windows, neurons)``."""
    loading = np.zeros((active.shape[1], POPULATION_LEVELS))
    if len(active) < 2:
        return loading
    _, size, direction = np.linalg.svd(active, full_matrices=False)
    there = np.flatnonzero(size[:POPULATION_LEVELS] ** 2 > _LEAST_VARIANCE * max(float(size[0]) ** 2, 1e-300))
    deviation = size[there] / np.sqrt(len(active))
    sign = np.where(direction[there].sum(axis=1) < 0.0, -1.0, 1.0)
    loading[:, there] = (direction[there] * (sign / deviation)[:, None]).T
    # To the decomposition's rounding, a neuron that takes no part has a loading.
    loading[~active.any(axis=0)] = 0.0
    return loading
