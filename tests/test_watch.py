"""A watch on a real socket: what it hands over, and how often it reads an answer for nothing before the next one."""

from __future__ import annotations

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
            heard = {socket.recv() for _ in range(5)}
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


def test_told_that_an_answer_comes_soon_it_reads_the_last_one_again_for_nothing(reads: list[float]) -> None:
    with watched() as (publisher, watch):
        for number in range(30):
            publisher.send(wire.Soon())
            publisher.answer(number)
        came = [watch.next(5.0) for _ in range(30)]
        assert [answer.onset_frame for answer in came if isinstance(answer, wire.Answer)] == list(range(30))
        # Each answer, each SOON, and after all but the first, which has none before it, the answer before.
        assert len(reads) == 30 + 30 + 29


@pytest.mark.parametrize("asked", list(Asked))
def test_what_nobody_foretold_is_read_once(asked: Asked, reads: list[float]) -> None:
    with watched() as (publisher, watch):
        for number in range(20):
            publisher.answer(number, asked)
            assert isinstance(watch.next(5.0), wire.Answer)
            assert watch.next(0.01) is None
        assert len(reads) == 20


def test_what_is_told_of_another_session_is_not_heard(reads: list[float]) -> None:
    with watched() as (publisher, watch):
        publisher.answer(0)
        assert watch.next(5.0) is not None
        publisher.send(wire.Soon(), session=SESSION + 1)
        assert watch.next(0.1) is None
        assert len(reads) == 1


def test_decisions_and_the_end_come_between_as_ever() -> None:
    with watched() as (publisher, watch):
        publisher.answer(0)
        publisher.send(wire.Soon())
        publisher.send(DECISION)
        publisher.send(wire.Soon())
        publisher.send(wire.SessionLost(reason="idle"))
        assert isinstance(watch.next(5.0), wire.Answer)
        assert watch.next(5.0) == DECISION
        with pytest.raises(SessionLostError, match="session 7 ended: idle"):
            watch.next(5.0)


def test_what_is_read_for_nothing_is_not_handed_over_again() -> None:
    with watched() as (publisher, watch):
        for number in range(20):
            publisher.send(wire.Soon())
            publisher.answer(number)
        publisher.send(wire.Soon())
        found = [event.onset_frame for event in watch.events(idle_s=0.5) if isinstance(event, wire.Answer)]
    np.testing.assert_array_equal(found, np.arange(20))
