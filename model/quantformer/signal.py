"""Signal processing, once: training and the engine call these same functions on ``(frames, neurons)`` arrays.

What makes a baseline takes tensors of torch as well, on any device: a training run on a GPU draws its rows there.

A trial is 160 real frames ``[f - 96, f + 64)`` around the onset frame ``f``, which is the first frame whose time stamp
is not earlier than the onset. A forecast reads ``f - 96 .. f - 1``; frame ``f`` itself is never read. F0 is the mean of
the observed frames among ``f - 60 .. f - 1``, accumulated in float64 (paper section 4.2 for the lengths).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantformer.errors import SignalError

#: Rates in Hz that are used frame for frame; other rates are interpolated onto the model's grid.
FRAME_FOR_FRAME_HZ = (28.5, 31.5)
#: Below this rate in Hz a recording is used only by explicit choice.
LOWEST_HZ = 15.0
#: Bound of `f0_level`.
LARGEST_LEVEL = 3.0
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class SignalRecipe:
    """How a baseline becomes the network's input; travels in the bundle. Lengths in frames at ``rate_hz``."""

    baseline_frames: int = 96
    response_frames: int = 64
    f0_frames: int = 60
    minimum_f0_frames: int = 30
    rate_hz: float = 30.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.rate_hz) and self.rate_hz > 0):
            raise SignalError(f"rate_hz is {self.rate_hz}; a positive number was expected")
        if not 0 < self.minimum_f0_frames <= self.f0_frames <= self.baseline_frames or self.response_frames <= 0:
            raise SignalError(
                "expected 0 < minimum_f0_frames <= f0_frames <= baseline_frames and response_frames > 0, "
                f"found {self.minimum_f0_frames}, {self.f0_frames}, {self.baseline_frames}, {self.response_frames}"
            )

    @property
    def window_frames(self) -> int:
        """Frames of a whole trial: baseline and response."""
        return self.baseline_frames + self.response_frames


@dataclass(frozen=True, kw_only=True, eq=False)
class Baseline:
    """The network's input for one onset: ``dff`` float32 ``(neurons, baseline_frames)``, ``f0`` float64 ``(neurons,)``,
    ``valid`` bool ``(neurons,)``. Rows that are not valid hold zeros.
    """

    dff: NDArray[np.float32]
    f0: NDArray[np.float64]
    valid: NDArray[np.bool_]


def subtract_neuropil(
    fluorescence: NDArray[np.float32], *, neuropil: NDArray[np.float32], factor: NDArray[np.float32]
) -> NDArray[np.float32]:
    """``fluorescence - factor * neuropil`` in float32; ``(neurons,)`` or ``(frames, neurons)`` against ``(neurons,)``."""
    return fluorescence - factor * neuropil


def onset_frames(timestamps_s: NDArray[np.float64], onset_s: NDArray[np.float64]) -> NDArray[np.int64]:
    """First frame whose stamp is not earlier than each onset; ``len(timestamps_s)`` where there is none yet."""
    return np.searchsorted(timestamps_s, onset_s, side="left").astype(np.int64)


def _of_kind(array: Any) -> Any:
    """The module whose kind of array this is, numpy or torch: below only what both call by one name is asked of it."""
    return np if isinstance(array, np.ndarray) else sys.modules["torch"]


def hold_missing(fluorescence: NDArray[np.float32], observed: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Fill frames that were not observed with the last observed value ``(frames, neurons)``; before the first, NaN.

    ``observed`` is ``(frames,)``, or ``(frames, neurons)`` where each neuron has its own.
    """
    kind = _of_kind(fluorescence)
    if observed.ndim == 1:
        last = np.maximum.accumulate(np.where(observed, np.arange(len(observed)), -1))
        held = fluorescence[np.maximum(last, 0)]
    else:
        frame = kind.arange(len(observed), device=observed.device)[:, None]
        last = kind.where(observed, frame, -1)
        last = np.maximum.accumulate(last) if kind is np else last.cummax(0).values
        held = fluorescence[last.clip(0), kind.arange(last.shape[1], device=last.device)]
    held[last < 0] = np.nan
    return held


def baseline_f0(
    window: NDArray[np.float32], *, recipe: SignalRecipe, observed: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """F0 ``(neurons,)`` of a window ``(baseline_frames, neurons)`` that ends just before the onset frame.

    Mean in float64 of the observed frames among the last ``f0_frames``; NaN for every neuron where fewer than
    ``minimum_f0_frames`` of them were observed.
    """
    kind = _of_kind(window)
    tail = window[-recipe.f0_frames :]
    if observed is not None and observed.ndim == 2:
        seen = observed[-recipe.f0_frames :]
        count = seen.sum(0)
        enough = kind.where(count >= recipe.minimum_f0_frames, count, np.nan)
        each: NDArray[np.float64] = kind.where(seen, tail, 0.0).sum(0, dtype=kind.float64) / enough
        return each
    if observed is not None and not observed[-recipe.f0_frames :].all():
        tail = tail[observed[-recipe.f0_frames :]]
        if len(tail) < recipe.minimum_f0_frames:
            return np.full(window.shape[1], np.nan)
    # numpy adds in an order that depends on memory layout and on the number of columns. The sum is the same all the
    # same: 60 float32 values add up exactly in float64 while the largest is less than 2**23 times the smallest.
    mean: NDArray[np.float64] = tail.sum(0, dtype=kind.float64) / len(tail)
    return mean


def delta_f(window: NDArray[np.float32], f0: NDArray[np.float64], *, out: NDArray[np.float32]) -> None:
    """Write dF/F of ``(frames, neurons)`` into ``out`` ``(neurons, frames)``: ``window / f0 - 1`` in float32."""
    kind = _of_kind(window)
    kind.divide(window.T, kind.asarray(f0, dtype=kind.float32)[:, None], out=out)
    kind.subtract(out, 1.0, out=out)


def write_baseline(
    window: NDArray[np.float32],
    *,
    recipe: SignalRecipe,
    out: NDArray[np.float32],
    f0_minimum: NDArray[np.float64] | float = 0.0,
    observed: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Turn corrected fluorescence ``(baseline_frames, neurons)`` into dF/F in ``out`` ``(neurons, baseline_frames)``.

    Returns F0 ``(neurons,)`` and which neurons are valid: every value finite and F0 above ``f0_minimum`` (per neuron or
    one for all, same units; never below zero). Invalid rows of ``out`` are zeros. This is the one way into the network.

    Raises:
        SignalError: the window has not ``baseline_frames`` frames.
    """
    if window.shape[0] != recipe.baseline_frames:
        raise SignalError(f"the window has {window.shape[0]} frames, the recipe wants {recipe.baseline_frames}")
    kind = _of_kind(window)
    f0 = baseline_f0(window, recipe=recipe, observed=observed)
    with np.errstate(invalid="ignore"):
        valid = (f0 > f0_minimum) & (f0 > 0.0) & (f0 < _LARGEST)
    with np.errstate(all="ignore"):
        delta_f(window, kind.where(valid, f0, 1.0), out=out)
    finite = kind.isfinite(out)
    if not finite.all():
        valid &= finite.all(1)
    if not valid.all():
        out[~valid] = 0.0
    return f0, valid


def read_baseline(
    window: NDArray[np.float32],
    *,
    recipe: SignalRecipe,
    f0_minimum: NDArray[np.float64] | float = 0.0,
    observed: NDArray[np.bool_] | None = None,
) -> Baseline:
    """`write_baseline` into a new array."""
    out = np.empty((window.shape[1], recipe.baseline_frames), np.float32)
    f0, valid = write_baseline(window, recipe=recipe, out=out, f0_minimum=f0_minimum, observed=observed)
    return Baseline(dff=out, f0=f0, valid=valid)


def f0_level(f0: NDArray[np.float64], usual: NDArray[np.float64]) -> NDArray[np.float32]:
    """Where F0 stands against the neuron's usual fluorescence: ``log(f0 / usual)`` and ``usual / f0 - 1``, ``(neurons, 2)``.

    dF/F alone does not tell whether a baseline is quiet; the second number is the dF/F of a return to the usual level. Both
    are clipped to +-3, and 0 for a neuron whose usual level (same units; 0 where it is not known) or F0 is not positive and
    finite.
    """
    kind = _of_kind(f0)
    known = (usual > 0) & (f0 > 0) & kind.isfinite(usual) & kind.isfinite(f0)
    ratio = kind.where(known, usual, 1.0) / kind.where(known, f0, 1.0)
    level = kind.stack([-kind.log(ratio), ratio - 1.0], -1)
    clipped: NDArray[np.float32] = kind.asarray(kind.clip(level, -LARGEST_LEVEL, LARGEST_LEVEL), dtype=kind.float32)
    return clipped


def needs_interpolation(rate_hz: float, *, accept_slow: bool = False) -> bool:
    """Whether a rate is interpolated to the model's 30 Hz grid (True) or used frame for frame (False).

    Raises:
        SignalError: the rate is below 15 Hz and ``accept_slow`` was not given.
    """
    if not np.isfinite(rate_hz) or rate_hz <= 0:
        raise SignalError(f"the frame rate is {rate_hz} Hz; a positive number was expected")
    if rate_hz < LOWEST_HZ and not accept_slow:
        raise SignalError(f"{rate_hz:.2f} Hz is below {LOWEST_HZ} Hz: forecasts at such rates need an explicit choice")
    low, high = FRAME_FOR_FRAME_HZ
    return not low <= rate_hz <= high


def window_on_grid(
    samples: NDArray[np.float32],
    *,
    timestamps_s: NDArray[np.float64],
    onset_s: float,
    recipe: SignalRecipe,
) -> NDArray[np.float32]:
    """Interpolate ``(frames, neurons)`` samples onto the ``baseline_frames`` grid points before an onset.

    The grid is ``onset_s - k / rate_hz`` for ``k = baseline_frames .. 1``. Only samples earlier than the onset are read:
    linear between two of them, the last one held after it.

    Raises:
        SignalError: the samples do not reach back to the first grid point.
    """
    before = int(np.searchsorted(timestamps_s, onset_s, side="left"))
    grid = onset_s - np.arange(recipe.baseline_frames, 0, -1) / recipe.rate_hz
    if before == 0 or timestamps_s[0] > grid[0]:
        found = f"the samples at {timestamps_s[0]:.3f} s" if before else "there is no sample before the onset"
        raise SignalError(
            f"the window begins {grid[0]:.3f} s on the recording's clock, {found}; "
            "wait until enough frames have been received"
        )
    stamps, values = timestamps_s[:before], samples[:before]
    left = np.clip(np.searchsorted(stamps, grid, side="right") - 1, 0, before - 1)
    right = np.minimum(left + 1, before - 1)
    span = stamps[right] - stamps[left]
    weight = np.where(span > 0, (grid - stamps[left]) / np.where(span > 0, span, 1.0), 0.0)
    weight = np.clip(weight, 0.0, 1.0).astype(np.float32)[:, None]
    interpolated: NDArray[np.float32] = values[left] * (np.float32(1.0) - weight) + values[right] * weight
    return interpolated
