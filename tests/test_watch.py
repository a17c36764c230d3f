"""A watch on a real socket: what it hands over, and how often it reads an answer for nothing before the next one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import numpy as np
import pytest
import zmq
from golden_messages import BODIES

from quantformer_client import SessionLostError, Watch, wire
from quantformer_client.wire import Asked

(STANDING,) = (body for body in BODIES if isinstance(body, wire.Answer))
(DECISION,) = (body for body in BODIES if isinstance(body, wire.Decision))
SESSION = 7


class Publisher:
    """What the engine's PUB port publishes, message by message."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket

    def send(self, body: wire.Body | wire.Answer, *, session: int = SESSION) -> None:
        self._socket.send(wire.encode(body, session=session))

    def answer(self, number: int, asked: Asked = Asked.STANDING) -> None:
        self.send(msgspec.structs.replace(STANDING, onset_frame=number, asked=asked))


@contextmanager
def watched() -> Iterator[tuple[Publisher, Watch]]:
    """A publisher and a watch that hears it."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context.socket(zmq.XPUB) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        with Watch(port=port, session=SESSION) as watch:
            heard = {socket.recv() for _ in range(4)}
            assert b"\x01" + wire.subscription(wire.MessageType.ANSWER, session=SESSION) in heard
            yield Publisher(socket), watch
    context.destroy(0)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When a message was read, whatever for."""
    found: list[float] = []
    decode = wire.decode

    def counted(data: bytes) -> wire.Message:
        found.append(time.perf_counter())
        return decode(data)

    monkeypatch.setattr(wire, "decode", counted)
    return found


def stream(publisher: Publisher, *, count: int, period_s: float) -> threading.Thread:
    """Answers to a standing question, one a period, from a thread."""

    def run() -> None:
        begun_s = time.perf_counter()
        for number in range(count):
            time.sleep(max(0.0, begun_s + number * period_s - time.perf_counter()))
            publisher.answer(number)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_every_answer_is_handed_over_once_and_read_again_before_the_next(reads: list[float]) -> None:
    with watched() as (publisher, watch):
        thread = stream(publisher, count=30, period_s=0.05)
        came = [watch.next(5.0) for _ in range(30)]
        thread.join()
        assert [answer.onset_frame for answer in came if isinstance(answer, wire.Answer)] == list(range(30))
        # From the eighth on the next one is expected.
        assert 5 <= len(reads) - 30 <= 10 * 22
        before = len(reads)
        assert watch.next(0.3) is None
        assert 1 <= len(reads) - before <= 10
        # It did not come, and is waited for no more.
        before = len(reads)
        assert watch.next(0.2) is None
        assert len(reads) == before


@pytest.mark.parametrize("asked", [Asked.ANNOUNCED, Asked.NOW])
def test_answers_that_nobody_can_expect_are_read_once(asked: Asked, reads: list[float]) -> None:
    with watched() as (publisher, watch):
        for number in range(20):
            publisher.answer(number, asked)
            assert isinstance(watch.next(5.0), wire.Answer)
            assert watch.next(0.01) is None
        assert len(reads) == 20


def test_answers_that_come_in_a_row_are_read_once(reads: list[float]) -> None:
    with watched() as (publisher, watch):
        for number in range(50):
            publisher.answer(number)
        assert [watch.next(5.0) is None for _ in range(50)] == [False] * 50
        assert watch.next(0.1) is None
        assert len(reads) == 50


def test_decisions_and_the_end_come_between_as_ever(reads: list[float]) -> None:
    with watched() as (publisher, watch):
        thread = stream(publisher, count=12, period_s=0.03)
        assert all(isinstance(watch.next(5.0), wire.Answer) for _ in range(12))
        thread.join()
        publisher.send(DECISION)
        assert watch.next(5.0) == DECISION
        publisher.send(wire.SessionLost(reason="idle"))
        with pytest.raises(SessionLostError, match="session 7 ended: idle"):
            watch.next(5.0)
    assert len(reads) > 14


def test_what_is_read_for_nothing_is_not_handed_over_again() -> None:
    with watched() as (publisher, watch):
        thread = stream(publisher, count=20, period_s=0.02)
        found = [event.onset_frame for event in watch.events(idle_s=0.5) if isinstance(event, wire.Answer)]
        thread.join()
    np.testing.assert_array_equal(found, np.arange(20))
