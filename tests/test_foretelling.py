"""When subscribers are told that an answer comes soon."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_session import session_of

from quantformer.bundle import Bundle, load_bundle
from quantformer_client import wire
from quantformer_service.foretelling import APART_NS, BEFORE_NS, MOST, REMEMBERED, Foretelling
from quantformer_service.session import Session

MS = 1_000_000


@pytest.fixture(scope="module")
def bundle(tiny_bundle_path: Path) -> Bundle:
    return load_bundle(tiny_bundle_path)


class Told:
    """A `Foretelling`, and the sessions whose subscribers were told."""

    def __init__(self) -> None:
        self.sessions: list[int] = []
        self.foretelling = Foretelling(self._publish)

    def _publish(self, body: wire.Body, *, session: int) -> None:
        assert isinstance(body, wire.Soon)
        self.sessions.append(session)

    def answers(self, session: Session, *took_ms: float) -> None:
        for one in took_ms:
            self.foretelling.answered(session, took_ns=round(one * MS))


def acquiring(bundle: Bundle, *, rate_hz: float = 30.0, at_ns: int = 0) -> Session:
    """A session whose last of three frames came in at that moment, and that asks about each."""
    session = session_of(bundle, rate_hz=rate_hz)
    session.docket.stand(wire.Standing(stimuli=[wire.Stimulus(stimulus_id="dir=000")]), number=1)
    frame(session, at_ns=at_ns, count=3, rate_hz=rate_hz)
    return session


def frame(session: Session, *, at_ns: int, count: int = 1, rate_hz: float = 30.0) -> None:
    for number in range(session.window.last + 1, session.window.last + 1 + count):
        body = wire.Frame(number=number, device_s=number / rate_hz, fluorescence=np.full(3, 100.0, np.float32))
        session.frame(body, received_ns=at_ns)


def test_while_inference_is_at_work_subscribers_are_told_shortly_before_it_ends(bundle: Bundle) -> None:
    told, session = Told(), acquiring(bundle)
    told.foretelling.asked(session, now_ns=0)
    # Nothing tells yet how long one takes.
    assert told.foretelling.next_ns is None
    told.answers(session, 10.0, 10.0, 9.0, 11.0, 30.0)
    told.foretelling.asked(session, now_ns=100 * MS)
    due_ns = told.foretelling.next_ns
    assert due_ns == 110 * MS - BEFORE_NS
    told.foretelling.tell(due_ns - 1)
    assert told.sessions == []
    told.foretelling.tell(due_ns)
    assert told.sessions == [session.number]
    # And again until it is there, or has been told of often enough.
    assert told.foretelling.next_ns == due_ns + APART_NS
    for now_ns in range(due_ns, due_ns + 100 * MS, MS // 4):
        told.foretelling.tell(now_ns)
    assert told.sessions == [session.number] * MOST
    assert told.foretelling.next_ns is None


def test_the_last_answers_count_and_an_answer_that_was_quicker_is_told_of_no_more(bundle: Bundle) -> None:
    told, session = Told(), acquiring(bundle)
    told.answers(session, *[100.0] * 20, *[5.0] * REMEMBERED)
    told.foretelling.asked(session, now_ns=0)
    assert told.foretelling.next_ns == 5 * MS - BEFORE_NS
    told.answers(session, 2.0)
    told.foretelling.tell(50 * MS)
    assert told.sessions == []


def test_each_session_has_its_own_time(bundle: Bundle) -> None:
    told, quick, slow = Told(), acquiring(bundle), acquiring(bundle)
    quick.number, slow.number = 5, 6
    told.answers(quick, 4.0)
    told.answers(slow, 8.0)
    for session in (slow, quick):
        told.foretelling.asked(session, now_ns=0)
    assert told.foretelling.next_ns == 4 * MS - BEFORE_NS
    told.foretelling.tell(5 * MS)
    assert told.sessions == [5]
    told.answers(quick, 4.5)
    told.foretelling.tell(8 * MS)
    assert told.sessions == [5, 6]


def test_where_answers_are_quicker_than_that_they_are_told_before_the_frame_and_once(bundle: Bundle) -> None:
    told, session = Told(), acquiring(bundle)
    told.answers(session, 1.0)
    told.foretelling.asked(session, now_ns=0)
    assert told.foretelling.next_ns is None
    frame_ns = session.next_frame_ns(1)
    assert frame_ns is not None
    due_ns = told.foretelling.before_frames([session], now_ns=10 * MS)
    assert due_ns == frame_ns + MS - BEFORE_NS
    assert told.foretelling.before_frames([session], now_ns=due_ns) is None
    assert told.foretelling.before_frames([session], now_ns=due_ns + MS // 2) is None
    assert told.sessions == [session.number]
    frame(session, at_ns=frame_ns)
    again_ns = told.foretelling.before_frames([session], now_ns=frame_ns + MS)
    assert again_ns is not None
    assert told.foretelling.before_frames([session], now_ns=again_ns) is None
    assert told.sessions == [session.number] * 2


def test_nobody_is_told_where_nothing_is_asked_or_no_frame_comes_or_they_come_fast(bundle: Bundle) -> None:
    told = Told()
    unasked, silent, stopped, fast = (acquiring(bundle, rate_hz=200.0 if one == 3 else 30.0) for one in range(4))
    unasked.docket.clear(1)
    stopped.acquisition("stop")
    sessions = {30 * MS: [unasked, stopped], 200 * MS: [silent], 4 * MS: [fast]}
    for session in (unasked, silent, stopped, fast):
        told.answers(session, 1.0)
    for now_ns, some in sessions.items():
        assert told.foretelling.before_frames(some, now_ns=now_ns) is None
    told.answers(fast, *[4.0] * REMEMBERED)
    told.foretelling.asked(fast, now_ns=0)
    assert told.foretelling.next_ns is None
    assert told.sessions == []
