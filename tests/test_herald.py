"""The herald: when it tells the engine that a frame comes, and over a real socket that it does."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from quantformer_client import wire
from quantformer_client.herald import BEFORE_S, Herald, next_moment

#: Frames by which the next one is expected.
COUNT = 8
FRAME = wire.Frame(number=0, device_s=0.0, fluorescence=np.ones(3, np.float32))
PERIODS = st.floats(0.009, 0.4)


@given(PERIODS, st.floats(0.0, 1e6), st.floats(-0.9, 3.9))
def test_it_tells_a_millisecond_before_each_frame(period_s: float, begun_s: float, passed: float) -> None:
    sent_s = [begun_s + number * period_s for number in range(COUNT)]
    after_s = sent_s[-1] + passed * period_s
    moment_s = next_moment(sent_s, after_s=after_s)
    assert moment_s is not None
    assert moment_s > after_s
    frames = (moment_s + BEFORE_S - sent_s[-1]) / period_s
    assert frames == pytest.approx(round(frames), abs=1e-3)
    assert frames > 0.99
    # No frame is passed over.
    assert frames == pytest.approx(1) or moment_s - period_s <= after_s + 1e-6


@given(PERIODS, st.integers(0, COUNT - 1), st.floats(0.0, 0.9))
def test_one_frame_that_was_late_moves_nothing(period_s: float, which: int, late: float) -> None:
    sent_s = [number * period_s for number in range(COUNT)]
    sent_s[which] += late * period_s
    moment_s = next_moment(sent_s, after_s=sent_s[-1])
    on_time_s = COUNT * period_s - BEFORE_S
    assert moment_s is not None
    # Where the last one was so late that the next is due already, it tells of the one after.
    expected_s = on_time_s if on_time_s > sent_s[-1] else on_time_s + period_s
    assert moment_s == pytest.approx(expected_s, abs=1e-6)


@pytest.mark.parametrize("period_s", [0.0, 0.0033, 0.6])
def test_where_frames_have_no_rhythm_or_need_no_telling_it_is_silent(period_s: float) -> None:
    assert next_moment([number * period_s for number in range(COUNT)], after_s=0.0) is None


def test_it_waits_for_some_frames_and_for_none_that_stay_away() -> None:
    sent_s = [number / 30 for number in range(COUNT)]
    assert next_moment(sent_s[1:], after_s=0.0) is None
    assert next_moment(sent_s, after_s=sent_s[-1] + 3.9 / 30) is not None
    assert next_moment(sent_s, after_s=sent_s[-1] + 4.1 / 30) is None


@pytest.fixture
def router() -> Iterator[tuple[zmq.Socket[bytes], int]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context.socket(zmq.ROUTER) as socket:
        yield socket, socket.bind_to_random_port("tcp://127.0.0.1")
    context.destroy(0)


def heard(socket: zmq.Socket[bytes]) -> int:
    """SOON messages that came by now."""
    count = 0
    while socket.poll(0):
        assert isinstance(wire.decode(socket.recv_multipart()[-1]).body, wire.Soon)
        count += 1
    return count


def test_the_engine_is_told_about_once_a_frame_until_frames_end(router: tuple[zmq.Socket[bytes], int]) -> None:
    socket, port = router
    herald = Herald(port=port)
    time.sleep(0.3)
    assert heard(socket) == 0
    for _ in range(40):
        herald.sent(FRAME)
        time.sleep(0.05)
    # From the ninth on; a machine that is held up may lose some, or tell of one twice.
    assert 10 <= heard(socket) <= 48
    time.sleep(0.5)
    heard(socket)
    time.sleep(0.3)
    assert heard(socket) == 0
    herald.close()


def test_the_last_frame_is_written_again_with_each(
    router: tuple[zmq.Socket[bytes], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    socket, port = router
    written: list[wire.Frame] = []
    encode = wire.Frame.encode
    monkeypatch.setattr(wire.Frame, "encode", lambda frame, **header: written.append(frame) or encode(frame, **header))
    herald = Herald(port=port)
    for number in range(30):
        herald.sent(msgspec.structs.replace(FRAME, number=number))
        time.sleep(0.05)
    herald.close()
    assert len(written) >= heard(socket) >= 1
    # The last of the frames by which the next one is expected, or a later one.
    assert {frame.number for frame in written} <= set(range(COUNT - 1, 30))


def test_an_engine_that_is_away_costs_nothing(router: tuple[zmq.Socket[bytes], int]) -> None:
    socket, port = router
    socket.close(0)
    herald = Herald(port=port)
    for _ in range(20):
        herald.sent(FRAME)
        time.sleep(0.02)
    herald.close()
    herald.close()
