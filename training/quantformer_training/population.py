"""What the rest of the field and the animal did just before an onset: the cue that a univariate forecast never sees.

A baseline that is given this and beats the network says that forecasting each neuron from its own trace is the limit, not
the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from quantformer.errors import DataError, RecordingError

#: Windows that end with the last frame that may be read, in frames at 30 Hz.
WINDOWS = (5, 30)
#: Principal components of the population.
COMPONENTS = 5
#: Columns of a context: the mean of the other neurons, the components and running speed, each over both windows.
COLUMNS = len(WINDOWS) * (1 + COMPONENTS + 1)
#: Frames (and distinct onsets) that are in memory in float64 at a time.
_CHUNK = 4096

Floats = NDArray[np.float64]


class Population:
    """The population of one recording, with every statistic from training frames.

    Each neuron's activity is its fluorescence less its training median over its training standard deviation. The components
    are those of training activity, largest first, each scaled to a standard deviation of 1 and of the sign in which its
    loadings add up to more than zero; those of two recordings have nothing in common but their rank.

    Raises:
        RecordingError: shapes do not agree, or the spans hold no frame.
    """

    def __init__(
        self,
        trace: NDArray[np.float32],
        *,
        spans: Sequence[tuple[int, int]],
        rate_hz: float,
        running_speed_cm_s: NDArray[np.float32] | None = None,
    ) -> None:
        """``trace`` ``(frames, neurons)`` is corrected fluorescence; ``spans`` are the training part's ``[start, stop)``."""
        if trace.ndim != 2 or not any(stop > start for start, stop in spans):
            raise RecordingError(
                f"a population needs traces (frames, neurons) and training frames; found shape {trace.shape}, spans {spans}"
            )
        if running_speed_cm_s is not None and running_speed_cm_s.shape != (len(trace),):
            raise RecordingError(f"running speed has shape {running_speed_cm_s.shape}, expected ({len(trace)},)")
        self.trace, self.running, self.rate_hz = trace, running_speed_cm_s, rate_hz
        training = np.concatenate([trace[start:stop] for start, stop in spans])
        usual, scale = _centre_and_scale(training)
        #: A neuron without a training frame, or that never varies, says nothing: its activity is zero throughout.
        heard = np.isfinite(usual) & (scale > 0)
        self._usual, self._scale = np.where(heard, usual, np.nan), np.where(heard, scale, 1.0)
        self._components, self._mean = self._principal(training)
        self._speed = (0.0, 1.0)
        if running_speed_cm_s is not None:
            speed = np.concatenate([running_speed_cm_s[start:stop] for start, stop in spans]).astype(np.float64)
            speed = speed[np.isfinite(speed)]
            self._speed = (float(speed.mean()), float(speed.std()) or 1.0) if len(speed) else (0.0, 1.0)

    def context(self, *, frame: NDArray[np.integer], neuron: NDArray[np.integer], lead: int = 0) -> NDArray[np.float32]:
        """Context ``(rows, COLUMNS)`` of rows that ask about ``neuron`` (column of the traces) at onset ``frame``.

        The windows end ``lead`` frames (at 30 Hz) before the onset frame: nothing at or after it is read. The mean is over
        the other neurons; the components include the neuron itself. Without running speed its columns are zero, as are those
        of components that a small population does not have. Values that are not finite count as the usual ones.

        Raises:
            DataError: an onset frame has no frame before its lead, or lies beyond the recording.
        """
        withheld = int(np.ceil(lead * self.rate_hz / 30.0)) if lead else 0
        frames, which = np.unique(np.asarray(frame, np.int64), return_inverse=True)
        if len(frames) and (frames[0] - withheld < 1 or frames[-1] > len(self.trace)):
            raise DataError(
                f"contexts were asked at frames {frames[0]} to {frames[-1]} with {withheld} withheld of a recording with "
                f"{len(self.trace)}; each needs at least one frame before it"
            )
        made = np.zeros((len(which), COLUMNS), np.float32)
        others = max(self.trace.shape[1] - 1, 1)
        for number, window in enumerate(WINDOWS):
            length = max(1, round(window * self.rate_hz / 30.0))
            for low in range(0, len(frames), _CHUNK):
                stops = frames[low : low + _CHUNK] - withheld
                rows = np.flatnonzero((which >= low) & (which < low + _CHUNK))
                at = which[rows] - low
                activity = np.stack([self._activity(self.trace[max(stop - length, 0) : stop]) for stop in stops])
                own = activity[at, np.asarray(neuron)[rows]]
                columns = [(activity.sum(axis=1)[at] - own) / others, ((activity - self._mean) @ self._components)[at]]
                columns.append(self._running(stops, length)[at])
                made[rows, number :: len(WINDOWS)] = np.column_stack(columns)
        return made

    def _activity(self, window: NDArray[np.float32]) -> Floats:
        """Mean activity ``(neurons,)`` over the frames of a window."""
        activity = (window - self._usual) / self._scale
        mean: Floats = np.where(np.isfinite(activity), activity, 0.0).mean(axis=0)
        return mean

    def _running(self, stops: NDArray[np.int64], length: int) -> Floats:
        if self.running is None:
            return np.zeros(len(stops))
        mean, scale = self._speed
        speeds = [(self.running[max(stop - length, 0) : stop].astype(np.float64) - mean) / scale for stop in stops]
        return np.array([np.where(np.isfinite(speed), speed, 0.0).mean() for speed in speeds])

    def _principal(self, training: NDArray[np.float32]) -> tuple[Floats, Floats]:
        """Directions ``(neurons, COMPONENTS)`` with unit variance over the training frames, and the mean activity."""
        neurons = training.shape[1]
        total, gram = np.zeros(neurons), np.zeros((neurons, neurons))
        for part in _pieces(training):
            activity = (part - self._usual) / self._scale
            activity = np.where(np.isfinite(activity), activity, 0.0)
            total += activity.sum(axis=0)
            gram += activity.T @ activity
        mean = total / len(training)
        variance, direction = np.linalg.eigh(gram / len(training) - np.outer(mean, mean))
        variance, direction = variance[::-1][:COMPONENTS], direction[:, ::-1][:, :COMPONENTS]
        there = variance > 1e-9 * max(float(variance[0]), 1e-300)
        sign = np.where(direction.sum(axis=0) < 0, -1.0, 1.0)
        components = np.zeros((neurons, COMPONENTS))
        components[:, : len(there)] = direction * np.where(there, sign / np.sqrt(np.where(there, variance, 1.0)), 0.0)
        return components, mean


def _pieces(traces: NDArray[np.float32]) -> Iterator[Floats]:
    for start in range(0, len(traces), _CHUNK):
        yield traces[start : start + _CHUNK].astype(np.float64)


def _centre_and_scale(training: NDArray[np.float32]) -> tuple[Floats, Floats]:
    """Median and standard deviation a neuron over its finite frames; NaN where it has none."""
    neurons = training.shape[1]
    centre, scale = np.full(neurons, np.nan), np.full(neurons, np.nan)
    for one in range(neurons):
        values = training[:, one].astype(np.float64)
        values = values[np.isfinite(values)]
        if len(values):
            centre[one], scale[one] = np.median(values), values.std()
    return centre, scale
