"""A frame's way is walked before the frame, and nobody sees it."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from test_session import session_of

from quantformer.bundle import Bundle, load_bundle
from quantformer_client import wire
from quantformer_service.engine_settings import EngineSettings
from quantformer_service.rehearsal import AFTER_NS, APART_NS, BEFORE_NS, Rehearsal
from quantformer_service.session import Session

MS = 1_000_000


@pytest.fixture(scope="module")
def bundle(tiny_bundle_path: Path) -> Bundle:
    return load_bundle(tiny_bundle_path)


@pytest.fixture
def rehearsal(bundle: Bundle, tmp_path: Path) -> Rehearsal:
    # What would keep it from walking, or make it seen: a token, a recording, no room for another session.
    return Rehearsal(EngineSettings(host="0.0.0.0", token="secret", record=str(tmp_path), sessions=1), bundle)


def played(rehearsal: Rehearsal) -> int:
    return sum(rehearsal.took.snapshot().counts)


def acquiring(bundle: Bundle, *, rate_hz: float, at_ns: int) -> Session:
    """A session whose last of three frames came in at that moment."""
    session = session_of(bundle, rate_hz=rate_hz)
    for number in range(3):
        frame = wire.Frame(number=number, device_s=number / rate_hz, fluorescence=np.full(3, 100.0, np.float32))
        session.frame(frame, received_ns=at_ns)
    return session


def test_it_is_played_around_the_moment_at_which_a_frame_is_expected(bundle: Bundle, rehearsal: Rehearsal) -> None:
    session = acquiring(bundle, rate_hz=30.0, at_ns=0)
    expected_ns = session.next_frame_ns(1)
    assert expected_ns is not None
    assert expected_ns == pytest.approx(33.3 * MS, abs=MS / 10)
    begin_ns = expected_ns - BEFORE_NS
    # Long before it says when; then it plays, and again only after a while; when the frame is overdue no more.
    assert rehearsal.follow([session], now_ns=10 * MS) == begin_ns
    assert played(rehearsal) == 0
    again_ns = rehearsal.follow([session], now_ns=begin_ns)
    assert played(rehearsal) == 1
    assert rehearsal.follow([session], now_ns=again_ns - 1) == again_ns
    assert played(rehearsal) == 1
    overdue_ns = expected_ns + AFTER_NS + 1
    assert rehearsal.follow([session], now_ns=overdue_ns) > overdue_ns + 1000 * MS
    assert played(rehearsal) == 1


def test_of_several_sessions_the_first_to_have_a_frame_decides(bundle: Bundle, rehearsal: Rehearsal) -> None:
    late, early = acquiring(bundle, rate_hz=30.0, at_ns=20 * MS), acquiring(bundle, rate_hz=30.0, at_ns=0)
    expected_ns = early.next_frame_ns(21 * MS)
    assert expected_ns is not None
    assert rehearsal.follow([late, early], now_ns=21 * MS) == expected_ns - BEFORE_NS


def test_nothing_is_played_for_fast_frames_or_where_none_is_to_come(bundle: Bundle, rehearsal: Rehearsal) -> None:
    stopped = acquiring(bundle, rate_hz=30.0, at_ns=0)
    stopped.acquisition("stop")
    silent = acquiring(bundle, rate_hz=30.0, at_ns=-100 * MS)
    fast = acquiring(bundle, rate_hz=200.0, at_ns=30 * MS)
    for sessions in ([], [stopped], [silent], [fast], [session_of(bundle)]):
        assert rehearsal.follow(sessions, now_ns=33 * MS) > 1000 * 33 * MS
    assert played(rehearsal) == 0


def test_a_rehearsal_that_fails_is_told_once_and_is_the_last(
    bundle: Bundle, rehearsal: Rehearsal, caplog: pytest.LogCaptureFixture
) -> None:
    session = acquiring(bundle, rate_hz=30.0, at_ns=0)
    rehearsal._loop.stands = False
    with caplog.at_level(logging.ERROR):
        for now_ns in (33 * MS, 33 * MS + 2 * APART_NS):
            assert rehearsal.follow([session], now_ns=now_ns) > 1000 * MS
    assert caplog.text.count("a rehearsal failed") == 1
    assert played(rehearsal) == 0


def test_one_that_cannot_begin_is_told_and_over(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    session = acquiring(bundle, rate_hz=30.0, at_ns=0)
    with caplog.at_level(logging.ERROR):
        unable = Rehearsal(EngineSettings(question_rows=1), bundle)
    assert "a rehearsal failed" in caplog.text
    assert unable.follow([session], now_ns=33 * MS) > 1000 * MS
    assert played(unable) == 0


def test_it_leaves_no_trace_where_recordings_lie(rehearsal: Rehearsal, tmp_path: Path) -> None:
    for _ in range(100):
        rehearsal.play()
    assert list(tmp_path.iterdir()) == []
