"""A thread that tells the engine right before each frame that one comes, so that the frame finds the way to it awake."""

from __future__ import annotations

import contextlib
import math
import statistics
import threading
import time
from collections.abc import Sequence
from itertools import pairwise

import zmq

from quantformer_client import wire
from quantformer_client.transport import ZMQ_PORT, zmq_address

#: So long before a frame is expected to be sent the engine is told.
BEFORE_S = 0.001
#: Frames by which the next one is expected; faster ones keep the way awake themselves, slower ones have no rhythm.
_REMEMBERED, _SHORTEST_S, _LONGEST_S = 8, 0.008, 0.5
#: Where none is expected, it is looked again after this long; and none is, so many periods after the last.
_LOOK_S, _MISSED = 0.1, 4


class Herald:
    """Sends SOON a millisecond before the next frame, as far as the frames before tell when that is.

    In the 33 ms between two frames cores and threads on the way fall asleep, and waking them takes longer than all the rest.
    SOON goes another way than frames, by a connection of its own: nothing waits for it, and it is lost where the engine is away.
    This side, too, forgets how a frame is written: with each SOON the last one is written again, for nothing.
    """

    def __init__(self, *, host: str = "127.0.0.1", port: int = ZMQ_PORT) -> None:
        self._address, self._ipv6 = zmq_address(host, port), ":" in host
        self._sent_s: tuple[float, ...] = ()
        self._last: wire.Frame | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="herald", daemon=True)
        self._thread.start()

    def sent(self, frame: wire.Frame) -> None:
        """This frame was sent."""
        self._last = frame
        # Replaced as a whole: the thread reads it meanwhile.
        self._sent_s = (*self._sent_s[1 - _REMEMBERED :], time.perf_counter())

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        soon = wire.encode(wire.Soon())
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        with socket:
            socket.set(zmq.IPV6, self._ipv6)
            socket.set(zmq.LINGER, 0)
            socket.set(zmq.IMMEDIATE, 1)
            socket.set(zmq.SNDHWM, 1)
            socket.connect(self._address)
            told_s = -math.inf
            while True:
                moment_s = next_moment(self._sent_s, after_s=max(told_s, time.perf_counter()))
                if self._stop.wait(_LOOK_S if moment_s is None else max(0.0, moment_s - time.perf_counter())):
                    return
                if moment_s is not None:
                    # Told once for a frame, which may still be a while off.
                    told_s = moment_s + BEFORE_S
                    with contextlib.suppress(zmq.Again):
                        socket.send(soon, zmq.NOBLOCK)
                    if self._last is not None:
                        wire.encode(self._last)


def next_moment(sent_s: Sequence[float], *, after_s: float) -> float | None:
    """When the engine is next told, later than ``after_s``; None where no frame is expected. Times are in seconds.

    Each of the last frames says when the next one comes, and the median of what they say counts, so that one that was late
    moves nothing.
    """
    if len(sent_s) < _REMEMBERED:
        return None
    period_s = statistics.median(after - before for before, after in pairwise(sent_s))
    if not _SHORTEST_S <= period_s <= _LONGEST_S or after_s > sent_s[-1] + _MISSED * period_s:
        return None
    count = len(sent_s)
    expected_s = statistics.median(one + (count - place) * period_s for place, one in enumerate(sent_s))
    moment_s = expected_s - BEFORE_S
    return moment_s + max(0, math.floor((after_s - moment_s) / period_s) + 1) * period_s
