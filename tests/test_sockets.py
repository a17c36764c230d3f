"""The engine's sockets by themselves: waking the loop, and messages beside it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

import pytest
import zmq
from engine_process import PATIENCE_S

from quantformer_service.engine_settings import EngineSettings
from quantformer_service.stream import Sockets

PATIENCE_MS = int(PATIENCE_S * 1000)


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    made = Sockets(EngineSettings(zmq_port=0, pub_port=0, tcp_port=0))
    yield made
    made.close()


def test_a_wake_ends_every_poll_until_it_is_settled(sockets: Sockets) -> None:
    assert not sockets.settle()
    for _ in range(3):
        sockets.wake()
    # Each would else wait for a minute, and the test for all of them.
    for _ in range(3):
        assert list(sockets.poll(PATIENCE_MS)) == []
    assert sockets.settle()
    assert not sockets.settle()
    # Nothing is left of it: this one waits in vain, and there is nothing to settle.
    assert list(sockets.poll(1)) == []
    assert not sockets.settle()


def test_wakes_from_another_thread_are_never_lost(sockets: Sockets) -> None:
    """What each tells of is collected as the loop does: before it is settled, and after."""
    times, done = 500, deque[int]()
    collected: list[int] = []
    room = threading.Semaphore()

    def wake() -> None:
        for number in range(times):
            room.acquire()
            done.append(number)
            sockets.wake()

    def collect() -> None:
        while done:
            collected.append(done.popleft())
            room.release()

    thread = threading.Thread(target=wake)
    thread.start()
    while len(collected) < times:
        assert list(sockets.poll(PATIENCE_MS)) == []
        collect()
        assert sockets.settle(), "the poll ended by its time: a wake was lost"
        collect()
    thread.join()
    assert collected == list(range(times))


def test_messages_are_taken_in_the_same_poll_as_a_wake(sockets: Sockets) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.connect(sockets.endpoints["zmq"])
        for number in range(200):
            dealer.send(bytes([number]))
            sockets.wake()
        taken: list[bytes] = []
        while len(taken) < 200:
            taken += [incoming.data for incoming in sockets.poll(PATIENCE_MS)]
        assert taken == [bytes([number]) for number in range(200)]
        assert sockets.settle()
