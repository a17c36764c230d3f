"""The last frames of one session, each stored twice so that any stretch of them is one contiguous view.

Frame ``n`` lies in rows ``n % capacity`` and ``n % capacity + capacity``. A frame is *observed* when it arrived and is
clean; every other row holds the last observed value before it, as `quantformer.signal.hold_missing` does offline.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantformer_client.wire import ErrorCode
from quantformer_service.refusal import Refusal

#: Stamps that jitter less than this, in seconds, count as regular.
_REGULAR_S = 1e-6
#: Frames whose stamps estimate the period.
_PERIOD_FRAMES = 32
#: No period is taken for shorter than this, in s, whatever the stamps say.
_SHORTEST_S = 1e-4
#: Contaminated stretches that are remembered for frames still to come.
MOST_MARKS = 256


@dataclass(frozen=True, kw_only=True)
class Added:
    """What taking a frame did: ``gap`` frames were missing before it, or it filled a hole (``reordered``)."""

    gap: int = 0
    reordered: bool = False


#: What most frames do.
_NEXT = Added()


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A contaminated stretch: frame numbers ``[first, last]``, or exposures that touch ``[start_s, end_s]``."""

    first: int = 0
    last: int = -1
    start_s: float = math.inf
    end_s: float = -math.inf


class FrameWindow:
    """A ring of ``capacity`` frames of ``neurons`` values. Times are seconds on the microscope's clock.

    ``period_s`` is the declared frame period, used until stamps tell a better one.
    """

    def __init__(self, *, neurons: int, capacity: int, reorder_frames: int, period_s: float) -> None:
        self.neurons, self.capacity, self.reorder_frames = neurons, capacity, reorder_frames
        self._declared_s = period_s
        self._values = np.zeros((2 * capacity, neurons), np.float32)
        #: The same memory, both rows of a frame at one index.
        self._twice = self._values.reshape(2, capacity, neurons)
        self._stamps = np.zeros(2 * capacity, np.float64)
        #: Of each frame, once; the stamps again, as plain numbers: one of an array's takes its time.
        self._at_s, self._received_ns, self._arrived = [0.0] * capacity, [0] * capacity, [False] * capacity
        self._observed = np.zeros(2 * capacity, np.bool_)
        self._marks: list[Mark] = []
        self.reset()

    def reset(self) -> None:
        """Forget every frame and mark: an acquisition began."""
        self._first = 0
        self.last = -1
        self._marks.clear()
        self._period_s: float | None = None

    @property
    def empty(self) -> bool:
        """Whether no frame has been received since the reset."""
        return self.last < 0

    @property
    def oldest(self) -> int:
        """Number of the oldest frame held."""
        return max(self._first, self.last - self.capacity + 1)

    @property
    def last_s(self) -> float:
        """Stamp of the last frame; NaN when empty."""
        return math.nan if self.last < 0 else self._at_s[self.last % self.capacity]

    @property
    def period_s(self) -> float:
        """Mean period of the last frames; the declared one until there are two."""
        if self._period_s is None:
            self._period_s = self._mean_period_s()
        return self._period_s

    @property
    def jitter_s(self) -> float:
        """Greatest deviation of the last frames' periods from their mean; infinite until there are three."""
        count = min(_PERIOD_FRAMES, self.last - self.oldest + 1)
        if count < 3:
            return math.inf
        row = self.last % self.capacity + self.capacity
        steps = np.diff(self._stamps[row - count + 1 : row + 1])
        return float(np.abs(steps - self.period_s).max())

    def received_ns(self, number: int) -> int:
        """When a held frame came in."""
        return self._received_ns[number % self.capacity]

    def add(self, number: int, *, device_s: float, values: NDArray[np.float32], received_ns: int) -> Added:
        """Take one frame of values ``(neurons,)``.

        Raises:
            Refusal: it was received already, is older than the reorder window, or its stamp is out of order.
        """
        if self.empty:
            self._first = self.last = number
            self._put(number, values, device_s=device_s, received_ns=received_ns)
            return _NEXT
        if number > self.last:
            before_s = self.last_s
            if device_s <= before_s:
                raise Refusal(
                    ErrorCode.BAD_TIME,
                    f"frame {number} at {device_s} s, the frame before it at {before_s} s; stamps must increase",
                )
            gap = number - self.last - 1
            if gap:
                self._fill(number, gap=gap, device_s=device_s, received_ns=received_ns)
            self.last = number
            self._put(number, values, device_s=device_s, received_ns=received_ns)
            return Added(gap=gap) if gap else _NEXT
        self._check_hole(number, device_s=device_s)
        self._put(number, values, device_s=device_s, received_ns=received_ns)
        self._rehold(number + 1)
        return Added(reordered=True)

    def mark(self, mark: Mark) -> int:
        """Leave a contaminated stretch out, of frames held and of those still to come; returns how many were held.

        Raises:
            Refusal: too many stretches are marked already.
        """
        if not self.empty:
            oldest_s = self.stamp_of(self.oldest)
            self._marks = [one for one in self._marks if one.last >= self.oldest or one.end_s >= oldest_s]
        if len(self._marks) >= MOST_MARKS:
            raise Refusal(
                ErrorCode.QUEUE_FULL,
                f"{len(self._marks)} stretches of frames are marked, the most there may be; tell of light when it comes",
            )
        self._marks.append(mark)
        if self.empty:
            return 0
        spoilt = [
            n for n in range(self.oldest, self.last + 1) if self._observed[n % self.capacity] and self._in(mark, n)
        ]
        for number in spoilt:
            self._write(number, self._before(number), observed=False)
        if spoilt:
            self._rehold(spoilt[0])
        return len(spoilt)

    def stamp_of(self, number: int) -> float:
        """A frame's stamp, or for one still to come the stamp that the period predicts; NaN when empty."""
        if self.oldest <= number <= self.last:
            return self._at_s[number % self.capacity]
        return self.last_s + (number - self.last) * self.period_s

    def frame_at(self, onset_s: float) -> int:
        """The onset frame: first held one whose stamp is not earlier, else the one that the period predicts.

        Raises:
            Refusal: the onset lies before the frames held.
        """
        start = self.oldest % self.capacity
        stamps = self._stamps[start : start + self.last - self.oldest + 1]
        if onset_s <= stamps[0]:
            raise Refusal(
                ErrorCode.ONSET_BEFORE_BUFFER,
                f"the onset at {onset_s:.3f} s lies before the frames held, which begin at {stamps[0]:.3f} s",
            )
        if onset_s <= stamps[-1]:
            found = int(np.searchsorted(stamps, onset_s, side="left"))
            # The stamp of a frame that never came is interpolated: its rounding must not decide.
            never_came = not self._arrived[(start + found - 1) % self.capacity]
            return self.oldest + found - int(never_came and stamps[found - 1] >= onset_s - _REGULAR_S)
        return self.last + max(1, math.ceil((onset_s - self.last_s - _REGULAR_S) / self.period_s))

    def ready_at(self, onset_s: float) -> bool:
        """Whether the last frame before this onset has surely come in: nothing is left to wait for.

        Where stamps jitter, an onset that falls within the jitter of the next frame's stamp waits for that frame.
        """
        if self.empty:
            return False
        slack = _REGULAR_S if self.jitter_s < _REGULAR_S else -self.jitter_s
        return onset_s <= max(self.last_s, self.last_s + self.period_s + slack)

    def view(self, first: int, stop: int) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_]]:
        """Values ``(frames, neurons)``, stamps and observed of held frames ``[first, stop)``, as views."""
        start = first % self.capacity
        rows = slice(start, start + stop - first)
        return self._values[rows], self._stamps[rows], self._observed[rows]

    def _mean_period_s(self) -> float:
        count = min(_PERIOD_FRAMES, self.last - self.oldest + 1)
        if count < 2:
            return self._declared_s
        row, first = self.last % self.capacity, (self.last - count + 1) % self.capacity
        return max((self._at_s[row] - self._at_s[first]) / (count - 1), _SHORTEST_S)

    def _check_hole(self, number: int, *, device_s: float) -> None:
        row = number % self.capacity
        if number >= self.oldest and self._arrived[row]:
            raise Refusal(ErrorCode.DUPLICATE_FRAME, f"frame {number} was received already; send each frame once")
        limit = max(self.oldest, self.last - self.reorder_frames + 1)
        if number < limit or number == self._first:
            raise Refusal(
                ErrorCode.FRAME_TOO_OLD,
                f"frame {number} came after frame {self.last}; out of order frames are taken from {limit} on",
            )
        before_s, after_s = self._at_s[(number - 1) % self.capacity], self._at_s[(number + 1) % self.capacity]
        if not before_s < device_s < after_s:
            raise Refusal(
                ErrorCode.BAD_TIME,
                f"frame {number} at {device_s} s, its neighbours at {before_s} s and {after_s} s; stamps must increase",
            )

    def _fill(self, number: int, *, gap: int, device_s: float, received_ns: int) -> None:
        """Hold the last frame in the ``gap`` frames before ``number``."""
        before_s = self.last_s
        held = self._values[self.last % self.capacity].copy()
        # Of a jump beyond the ring, only the part that stays in it is filled.
        for missing in range(max(self.last + 1, number - self.capacity + 1), number):
            share = (missing - self.last) / (gap + 1)
            self._stamp(missing, before_s + share * (device_s - before_s), received_ns=received_ns, arrived=False)
            self._write(missing, held, observed=False)

    def _put(self, number: int, values: NDArray[np.float32], *, device_s: float, received_ns: int) -> None:
        self._stamp(number, device_s, received_ns=received_ns, arrived=True)
        clean = not self._marks or not any(self._in(mark, number) for mark in self._marks)
        self._write(number, values if clean else self._before(number), observed=clean)

    def _stamp(self, number: int, device_s: float, *, received_ns: int, arrived: bool) -> None:
        row = number % self.capacity
        self._stamps[row] = self._stamps[row + self.capacity] = device_s
        self._at_s[row], self._received_ns[row], self._arrived[row] = device_s, received_ns, arrived
        self._period_s = None

    def _write(self, number: int, values: NDArray[np.float32] | float, *, observed: bool) -> None:
        row = number % self.capacity
        self._twice[:, row] = values
        self._observed[row] = self._observed[row + self.capacity] = observed

    def _before(self, number: int) -> NDArray[np.float32] | float:
        """The value to hold in a frame that is not observed; NaN where the ring does not reach back to one."""
        return self._values[(number - 1) % self.capacity] if number > self.oldest else math.nan

    def _rehold(self, start: int) -> None:
        for number in range(start, self.last + 1):
            if not self._observed[number % self.capacity]:
                self._write(number, self._before(number), observed=False)

    def _in(self, mark: Mark, number: int) -> bool:
        if mark.first <= number <= mark.last:
            return True
        stamp = self._at_s[number % self.capacity]
        return stamp <= mark.end_s and stamp + self.period_s > mark.start_s
