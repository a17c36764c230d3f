"""Subscribers are told right before an answer, so that it finds them, and the way to them, awake."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from weakref import WeakKeyDictionary

from quantformer_client import wire
from quantformer_service.session import Session

#: So long before an answer is expected, in ns, subscribers are told. The loop sleeps whole ms: it may be one less.
BEFORE_NS = 1_500_000
#: And again every so often until it is there, so many times at most.
APART_NS, MOST = 1_000_000, 8
#: Answers of a session by which the next one is expected: as soon as the quickest quarter of them.
REMEMBERED, QUICKEST = 8, 4
#: Frames that come faster than this keep every way awake by themselves; the rehearsal's, too.
SHORTEST_PERIOD_S = 0.008


class Foretelling:
    """Publishes SOON (``publish``, as `Loop.publish`) when an answer of a session is `BEFORE_NS` away: while inference is at
    work on it, or, where that takes less, before the frame that it is asked about.
    """

    def __init__(self, publish: Callable[..., None]) -> None:
        self._publish = publish
        self._took_ns: WeakKeyDictionary[Session, deque[int]] = WeakKeyDictionary()
        #: When each is told next, and how many times more.
        self._due: dict[Session, tuple[int, int]] = {}
        #: The last frame at which it was told that an answer about the next one comes soon.
        self._told: WeakKeyDictionary[Session, int] = WeakKeyDictionary()

    def asked(self, session: Session, *, now_ns: int) -> None:
        """Inference was given a question of this session."""
        took_ns = self._expected_ns(session)
        if took_ns > BEFORE_NS:
            self._due[session] = now_ns + took_ns - BEFORE_NS, MOST

    def answered(self, session: Session, *, took_ns: int) -> None:
        """An answer of this session was published so long after its window was ready."""
        self._took_ns.setdefault(session, deque(maxlen=REMEMBERED)).append(took_ns)
        self._due.pop(session, None)

    @property
    def next_ns(self) -> int | None:
        """When `tell` has something to tell; None while it has not."""
        return min((due_ns for due_ns, _ in self._due.values()), default=None)

    def tell(self, now_ns: int) -> None:
        """Tell the subscribers of each session whose answer is near now."""
        for session, (due_ns, left) in list(self._due.items()):
            if due_ns > now_ns:
                continue
            if left > 1:
                self._due[session] = now_ns + APART_NS, left - 1
            else:
                del self._due[session]
            self._publish(wire.Soon(), session=session.number)

    def before_frames(self, sessions: Iterable[Session], *, now_ns: int) -> int | None:
        """Tell where the answer to the next frame comes so quickly after it; returns when to ask again, None: not at all."""
        earliest_ns: int | None = None
        for session in sessions:
            took_ns = self._expected_ns(session)
            frame_ns = session.next_frame_ns(now_ns) if 0 < took_ns <= BEFORE_NS and session.docket.asks else None
            last = session.window.last
            if frame_ns is None or self._told.get(session) == last:
                continue
            due_ns = frame_ns + took_ns - BEFORE_NS
            if due_ns <= now_ns:
                self._told[session] = last
                self._publish(wire.Soon(), session=session.number)
            elif earliest_ns is None or due_ns < earliest_ns:
                earliest_ns = due_ns
        return earliest_ns

    def _expected_ns(self, session: Session) -> int:
        """How long the next answer will take; 0 where nothing tells, or nobody need be told."""
        took_ns = self._took_ns.get(session)
        if took_ns is None or session.window.period_s < SHORTEST_PERIOD_S:
            return 0
        return sorted(took_ns)[len(took_ns) // QUICKEST]
