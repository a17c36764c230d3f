"""The engine's clock as seen from this process: offset, how uncertain it is, and how fast it drifts, from PING and PONG.

Both sides stamp with their own monotonic clock. Of a PING that left at t0, came in at t1, was replied to at t2 and was back
at t3, the engine's clock is ahead of this one by ((t1 - t0) + (t2 - t3)) / 2, and the truth lies within half the time on the
way, (t3 - t0) - (t2 - t1), of that. The smallest of several such halves is the uncertainty.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

#: Measurements that are remembered for the drift.
REMEMBERED = 64


@dataclass(frozen=True, kw_only=True)
class Ping:
    """One PING and its PONG, in ns: this process's clock at ``sent_ns`` and ``returned_ns``, the engine's between."""

    sent_ns: int
    received_ns: int
    replied_ns: int
    returned_ns: int

    @property
    def offset_ns(self) -> int:
        """The engine's clock less this one."""
        return ((self.received_ns - self.sent_ns) + (self.replied_ns - self.returned_ns)) // 2

    @property
    def way_ns(self) -> int:
        """Time on the way, there and back."""
        return max(0, (self.returned_ns - self.sent_ns) - (self.replied_ns - self.received_ns))


@dataclass(frozen=True, kw_only=True)
class ClockOffset:
    """The engine's clock less this one, ``offset_ns``, at the moment ``at_ns`` of this one, right within
    ``uncertainty_ns``; and of a clock measured before, the ``drift``, by how much the offset grows, in seconds a second,
    right within ``drift_uncertainty`` (None: measured once only).
    """

    offset_ns: int
    uncertainty_ns: int
    at_ns: int
    drift: float | None = None
    drift_uncertainty: float | None = None

    def to_engine(self, local_ns: int) -> int:
        """A moment of this process's `time.perf_counter_ns` on the engine's clock."""
        return local_ns + self.offset_ns + round((self.drift or 0.0) * (local_ns - self.at_ns))

    def to_local(self, engine_ns: int) -> int:
        """A moment of the engine's clock, as in an answer's stamps, on this process's `time.perf_counter_ns`."""
        return engine_ns - self.offset_ns - round((self.drift or 0.0) * (engine_ns - self.offset_ns - self.at_ns))


class Clock:
    """Measurements of one engine's clock; a new epoch begins them anew."""

    def __init__(self) -> None:
        self._epoch = 0
        self._offsets: deque[ClockOffset] = deque(maxlen=REMEMBERED)

    def measured(self, pings: list[Ping], *, epoch: int) -> ClockOffset:
        """The offset that these pings tell, with the drift since the first measurement that is remembered.

        Raises:
            ValueError: there is no ping.
        """
        if not pings:
            raise ValueError("no ping was given; an offset needs at least one")
        if epoch != self._epoch:
            self._epoch = epoch
            self._offsets.clear()
        best = min(pings, key=lambda ping: ping.way_ns)
        now = ClockOffset(
            offset_ns=best.offset_ns,
            uncertainty_ns=(best.way_ns + 1) // 2,
            at_ns=(best.sent_ns + best.returned_ns) // 2,
        )
        drift = drift_uncertainty = None
        # Of all that are remembered, the one that tells the drift best: uncertainties count less the longer ago.
        for before in self._offsets:
            apart_ns = now.at_ns - before.at_ns
            if apart_ns <= 0:
                continue
            uncertainty = (now.uncertainty_ns + before.uncertainty_ns) / apart_ns
            if drift_uncertainty is None or uncertainty < drift_uncertainty:
                drift, drift_uncertainty = (now.offset_ns - before.offset_ns) / apart_ns, uncertainty
        self._offsets.append(now)
        return ClockOffset(
            offset_ns=now.offset_ns,
            uncertainty_ns=now.uncertainty_ns,
            at_ns=now.at_ns,
            drift=drift,
            drift_uncertainty=drift_uncertainty,
        )
