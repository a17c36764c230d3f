"""The clock of the engine: within the stated uncertainty, whatever the way and the drift."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quantformer_client.clock import Clock, ClockOffset, Ping

WAY = st.integers(0, 50_000_000)


def pinged(*, at_ns: int, there_ns: int, held_ns: int, back_ns: int, offset_ns: int, drift: float = 0.0) -> Ping:
    """A ping at this moment of the local clock, with the engine's at ``local * (1 + drift) + offset``."""

    def engine(local_ns: int) -> int:
        return local_ns + offset_ns + round(drift * local_ns)

    received_ns = at_ns + there_ns
    return Ping(
        sent_ns=at_ns,
        received_ns=engine(received_ns),
        replied_ns=engine(received_ns + held_ns),
        returned_ns=received_ns + held_ns + back_ns,
    )


@given(
    offset=st.integers(-(10**15), 10**15),
    ways=st.lists(st.tuples(WAY, WAY, WAY), min_size=1, max_size=10),
)
def test_the_true_offset_lies_within_the_uncertainty(offset: int, ways: list[tuple[int, int, int]]) -> None:
    pings = [
        pinged(at_ns=10**9 * k, there_ns=there, held_ns=held, back_ns=back, offset_ns=offset)
        for k, (there, held, back) in enumerate(ways)
    ]
    found = Clock().measured(pings, epoch=1)
    assert abs(found.offset_ns - offset) <= found.uncertainty_ns + 1
    assert found.uncertainty_ns == min((there + back + 1) // 2 for there, _, back in ways)
    assert found.drift is None
    assert abs(found.to_local(found.to_engine(123_456_789)) - 123_456_789) <= 1


@example(drift=1e-4, offset=0, ways=[(0, 575004), (615002, 0)])
@example(drift=1e-4, offset=0, ways=[(0, 0), (585887, 5)])
@example(drift=1e-4, offset=0, ways=[(0, 10**6), (10**6, 0)])
@example(drift=-1e-4, offset=0, ways=[(10**6, 0), (0, 10**6)])
@given(
    drift=st.floats(-1e-4, 1e-4),
    offset=st.integers(-(10**12), 10**12),
    ways=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), min_size=2, max_size=30),
)
def test_the_true_drift_lies_within_its_uncertainty(drift: float, offset: int, ways: list[tuple[int, int]]) -> None:
    clock = Clock()
    for k, (there, back) in enumerate(ways):
        ping = pinged(at_ns=60 * 10**9 * k, there_ns=there, held_ns=1000, back_ns=back, offset_ns=offset, drift=drift)
        found = clock.measured([ping], epoch=1)
    assert found.drift is not None
    assert found.drift_uncertainty is not None
    # At each of two measurements, a minute apart at least: rounding of the stamps, and what the drift does to half a round trip.
    slack = 2 * (2 + 1e-4 * max(there + back + 1000 for there, back in ways) / 2) / (60 * 10**9)
    assert abs(found.drift - drift) <= found.drift_uncertainty + slack
    an_hour_later = found.at_ns + 3600 * 10**9
    error_ns = abs(found.to_engine(an_hour_later) - (an_hour_later + offset + round(drift * an_hour_later)))
    assert error_ns <= 3600 * 10**9 * (found.drift_uncertainty + slack) + found.uncertainty_ns + 1000
    # There and back the drift is taken of two clocks that differ by it.
    assert abs(found.to_local(found.to_engine(an_hour_later)) - an_hour_later) <= 2 + 3600 * 10**9 * found.drift**2


def test_a_new_epoch_has_a_clock_of_its_own() -> None:
    clock = Clock()
    for epoch, offset in ((1, 5), (1, 5), (2, 10**9)):
        ping = pinged(at_ns=epoch, there_ns=1, held_ns=1, back_ns=1, offset_ns=offset)
        found = clock.measured([ping], epoch=epoch)
    assert found.drift is None
    assert found.offset_ns == 10**9


def test_no_ping_is_no_measurement() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Clock().measured([], epoch=1)


def test_conversion_uses_the_drift() -> None:
    found = ClockOffset(offset_ns=100, uncertainty_ns=1, at_ns=0, drift=0.5, drift_uncertainty=0.0)
    assert found.to_engine(1000) == 1600
