"""Right before a frame is expected its whole way is walked once for nothing, so that the frame itself finds it walked.

In the 33 ms between two frames a core forgets: what the loop needs has left its caches, and the same code that takes 0.15 ms
when it ran a moment ago takes five times as long. What walks here is a loop of its own, with a session, window and question of
its own, no sockets, no recording and no results: nothing that a client sees, that is recorded or that is decided on.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantformer.bundle import Bundle
from quantformer_client import wire
from quantformer_service.engine_settings import EngineSettings
from quantformer_service.foretelling import SHORTEST_PERIOD_S
from quantformer_service.inference import Slot
from quantformer_service.loop import Loop
from quantformer_service.meter import Timing
from quantformer_service.session import Session
from quantformer_service.stream import Incoming, Peer
from quantformer_service.tap import Tap

_log = logging.getLogger(__name__)

#: A rehearsal begins so long before the next frame is expected, and is repeated every so often until it came, or is so late.
BEFORE_NS, APART_NS, AFTER_NS = 2_500_000, 1_000_000, 1_500_000
#: ROIs of the rehearsed session at most: what is to be kept is the way, whatever passes on it.
MOST_ROIS = 256
#: Longer than the loop ever sleeps.
_NEVER_NS = 1 << 62


class Rehearsal:
    """A loop that only rehearses. What it meets is logged, and ends it: frames are then served without.

    ``took`` is how long rehearsals took.
    """

    def __init__(self, settings: EngineSettings, bundle: Bundle) -> None:
        self.took = Timing()
        self._last_ns, self._over = 0, False
        self._frame, self._rate_hz = 0, bundle.recipe.rate_hz
        rois = list(bundle.manifest.neuron_ids[:MOST_ROIS])
        self._values = np.full(len(rois), 100.0, np.float32)
        self._port, self._peer = _Silence(), Peer()
        self._peer.authorized = True
        unrecorded = replace(settings, record="")
        self._loop = Loop(
            unrecorded,
            bundle,
            sockets=self._port,
            inference=_Failing(),
            tap=Tap(unrecorded, epoch=1),
            epoch=1,
            status=_unasked,
            welcome=_unasked,
        )
        self._loop.dispatcher.closed, self._loop.stands = None, True
        self._try(lambda: self._begin(bundle, rois))

    def _begin(self, bundle: Bundle, rois: list[str]) -> None:
        self._say(wire.Open(subject="rehearsal", rois=rois, rate_hz=self._rate_hz, unknown="mark"))
        for _ in range(bundle.recipe.baseline_frames):
            self._next_frame()
        category = bundle.manifest.stimulus_recipe.categories[0]
        self._say(wire.Standing(stimuli=[wire.Stimulus(category=category, features={})]))
        self.play()

    def follow(self, sessions: Iterable[Session], *, now_ns: int) -> int:
        """Rehearse if it is time to, for these sessions; returns when to ask again at the latest."""
        due_ns = self._due_ns(sessions, now_ns)
        if due_ns > now_ns:
            return due_ns
        begun_ns = time.perf_counter_ns()
        if not self._try(self.play):
            return _NEVER_NS
        took_ns = time.perf_counter_ns() - begun_ns
        self.took.add(took_ns)
        self._last_ns = now_ns + took_ns
        return self._last_ns + APART_NS

    def _try(self, what: Callable[[], None]) -> bool:
        try:
            what()
        except Exception:
            _log.exception("a rehearsal failed; frames are served without")
            self._over = True
        return not self._over

    def play(self) -> None:
        """Walk the way of one frame: it comes in, and a standing question is asked about it.

        Raises:
            RuntimeError: none was.
        """
        asked = self._loop.counters["questions_failed"]
        self._next_frame()
        self._loop.turn(0)
        if self._loop.counters["questions_failed"] == asked:
            raise RuntimeError(f"nothing was asked about a rehearsed frame; the last words were {self._port.sent!r}")

    def _due_ns(self, sessions: Iterable[Session], now_ns: int) -> int:
        earliest_ns = _NEVER_NS
        if self._over:
            return earliest_ns
        for session in sessions:
            expected_ns = session.next_frame_ns(now_ns)
            if expected_ns is None or now_ns > expected_ns + AFTER_NS or session.window.period_s < SHORTEST_PERIOD_S:
                continue
            earliest_ns = min(earliest_ns, max(expected_ns - BEFORE_NS, self._last_ns + APART_NS))
        return earliest_ns

    def _next_frame(self) -> None:
        self._frame += 1
        self._say(wire.Frame(number=self._frame, device_s=self._frame / self._rate_hz, fluorescence=self._values))

    def _say(self, body: wire.Body | wire.Frame) -> None:
        session = next(iter(self._loop.dispatcher.sessions), 0)
        self._port.coming.append(Incoming(peer=self._peer, data=wire.encode(body, session=session, epoch=0, sent_ns=0)))
        self._loop.turn(0)


class _Silence:
    """Sockets to nobody: what is said comes in, of what goes out the last is kept."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self.coming: deque[Incoming] = deque()
        self.sent = b""

    def poll(self, timeout_ms: int) -> Iterator[Incoming]:
        while self.coming:
            yield self.coming.popleft()

    def settle(self) -> bool:
        return False

    def send(self, peer: Peer, data: bytes | bytearray) -> None:
        self.sent = bytes(data)

    def publish(self, data: bytes | bytearray) -> None:
        """Nobody listens."""


class _Failing:
    """Inference that fails at once: what comes after it is too far from the frame to be kept warm."""

    def __init__(self) -> None:
        self._failed: deque[Slot] = deque()

    def submit(self, *slots: Slot) -> None:
        for slot in slots:
            slot.submitted_ns = time.perf_counter_ns()
            slot.failure = "rehearsed"
        self._failed.extend(slots)

    def collect(self) -> Slot | None:
        return self._failed.popleft() if self._failed else None

    def prepare(self, vectors: NDArray[Any], *, stimuli: int, rows: int, forecast: bool) -> None:
        """Nothing is to be made ready."""


def _unasked() -> Any:
    raise RuntimeError("a rehearsal asks for neither STATUS nor WELCOME")
