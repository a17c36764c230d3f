"""From light to pulse on a rig, by a loopback: how long acquisition, extraction, this software and the SLM take.

The rig flashes, its frames go through its own extraction to the service, and the first answer that has read the flash's frame
makes this program order the pulse, as a controller would.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import msgspec
import numpy as np

from quantformer_cli.diagnosis.rig import Line, Rig, RigError, await_rig
from quantformer_client import Answer, Controller
from quantformer_client.errors import ClientError
from quantformer_client.watch import Watch

#: The parts of the way, in order; they add up to ``total``.
PARTS = ("acquisition", "extraction", "ours", "slm")
WORDS = {
    "acquisition": "acquisition: light until the exposure of the first frame after it ends",
    "extraction": "extraction: until that frame goes to the service",
    "ours": "ours: until the pulse is ordered",
    "slm": "SLM: until the pulse is seen",
    "total": "light to pulse",
    "inference": "of ours: inference",
    "engine": "of ours: the engine beside inference",
}
#: A flash whose pulse is not seen within this is lost, in s.
_PATIENCE_S = 5.0
_CLOCKS = 30
#: Pause between flashes in s, at random, so that they meet every phase of a frame.
_PAUSE_S = (0.3, 0.8)


class Flash(msgspec.Struct, frozen=True, kw_only=True):
    """One flash, in ms: `PARTS` and `WORDS` by name."""

    k: int
    parts: dict[str, float]


class Looped(msgspec.Struct, frozen=True, kw_only=True):
    """The measurement: flashes that came through, how many did not, and how far the boundaries of ``ours`` may be off by the
    two clocks, in ms.
    """

    flashes: list[Flash]
    lost: int
    uncertainty_ms: float


@dataclass(kw_only=True, eq=False)
class _Flight:
    """A flash under way; times in s on the rig's clock, ns on ours."""

    k: int
    light_s: float | None = None
    frame: int | None = None
    end_s: float = 0.0
    sent_s: float = 0.0
    ordered_ns: int = 0
    answer: Answer | None = None
    pulse_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Clock:
    """The rig's clock by ours at one moment: ``rig_s`` when ours was ``ours_ns``, known to within ``uncertainty_s``."""

    ours_ns: int
    rig_s: float
    uncertainty_s: float


class Loop:
    """Flashes one after the other. Answers and the rig's lines come in two threads; the one that completes the condition
    for the pulse orders it at once.
    """

    def __init__(self, rig: Callable[[Callable[[Line, int], None]], Rig], watch: Watch) -> None:
        self._lock, self._changed = threading.Lock(), threading.Event()
        self._flight: _Flight | None = None
        self._newest: Answer | None = None
        self._clock: tuple[int, int, float] | None = None
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self._watch = watch
        self.rig = rig(self._hear)
        self._watcher = threading.Thread(target=self._listen, name="answers", daemon=True)
        self._watcher.start()

    def run(self, *, flashes: int, seed: int, say: Callable[[str], None]) -> Looped:
        """So many flashes, between two looks at the clocks.

        Raises:
            RigError: the rig ended, reports an error, or no flash came through.
        """
        rng = np.random.default_rng(seed)
        before = self._ask_clock(0)
        flights, lost = [], 0
        for k in range(1, flashes + 1):
            time.sleep(float(rng.uniform(*_PAUSE_S)))
            flight = self._flash(k)
            lost += flight is None
            flights += [] if flight is None else [flight]
            if k % 10 == 0:
                say(f"{k} of {flashes} flashes, {lost} lost")
        after = self._ask_clock(_CLOCKS)
        if not flights:
            raise RigError(
                f"none of {flashes} flashes came through: expected LIGHT, FRAME and PULSE lines for each, and frames in the "
                "service's session; check the lines in, and that the session is acquiring"
            )
        found = [Flash(k=one.k, parts=budget(one, before=before, after=after)) for one in flights]
        uncertainty_ms = 1e3 * max(before.uncertainty_s, after.uncertainty_s)
        return Looped(flashes=found, lost=lost, uncertainty_ms=uncertainty_ms)

    def close(self) -> None:
        """End the threads and the conversation."""
        self._stop.set()
        self._watcher.join()
        self.rig.close()

    # --- the two threads ------------------------------------------------------------------------------------------------

    def _hear(self, line: Line, now_ns: int) -> None:
        if line.word == "CLOCK":
            self._clock = (line.k, now_ns, line.times_s[0])
            self._changed.set()
            return
        with self._lock:
            flight = self._flight
            if flight is None or line.k != flight.k:
                return  # of a flash that was given up
            if line.word == "LIGHT":
                flight.light_s = line.times_s[0]
            elif line.word == "FRAME":
                flight.frame = line.number
                flight.end_s, flight.sent_s = line.times_s
                self._order()
            else:
                flight.pulse_s = line.times_s[0]
                self._changed.set()

    def _listen(self) -> None:
        try:
            while not self._stop.is_set():
                event = self._watch.next(0.1)
                if isinstance(event, Answer):
                    with self._lock:
                        self._newest = event
                        self._order()
        except Exception as error:
            self._failure = error

    def _order(self) -> None:
        """Order the pulse where an answer has read the frame; the caller holds the lock."""
        flight, answer = self._flight, self._newest
        if flight is None or flight.frame is None or flight.ordered_ns or answer is None:
            return
        if answer.last_frame >= flight.frame:
            flight.ordered_ns = self.rig.say(f"PULSE {flight.k}")
            flight.answer = answer

    # --- one flash ------------------------------------------------------------------------------------------------------

    def _flash(self, k: int) -> _Flight | None:
        flight = _Flight(k=k)
        with self._lock:
            self._flight = flight
        self._changed.clear()
        self.rig.say(f"FLASH {k}")
        end = time.monotonic() + _PATIENCE_S
        while flight.pulse_s is None and time.monotonic() < end:
            self._changed.wait(0.05)
            self._check()
        with self._lock:
            self._flight = None
        return None if flight.pulse_s is None or flight.light_s is None else flight

    def _ask_clock(self, first: int) -> Clock:
        best: Clock | None = None
        for k in range(first, first + _CLOCKS):
            self._clock = None
            self._changed.clear()
            sent_ns = self.rig.say(f"CLOCK {k}")
            end = time.monotonic() + _PATIENCE_S
            while (found := self._clock) is None or found[0] != k:
                self._check()
                if time.monotonic() > end:
                    raise RigError(f"the rig did not answer CLOCK {k} within {_PATIENCE_S:g} s; expected 'CLOCK {k} t'")
                self._changed.wait(0.05)
                self._changed.clear()
            half_s = (found[1] - sent_ns) / 2e9
            if best is None or half_s < best.uncertainty_s:
                best = Clock(ours_ns=(sent_ns + found[1]) // 2, rig_s=found[2], uncertainty_s=half_s)
        assert best is not None
        return best

    def _check(self) -> None:
        failure = self.rig.failure or self._failure
        if failure is not None:
            raise failure


def budget(flight: _Flight, *, before: Clock, after: Clock) -> dict[str, float]:
    """Where the time of a flash went, in ms."""
    assert flight.light_s is not None
    assert flight.pulse_s is not None
    assert flight.answer is not None
    ordered_s = on_rig(flight.ordered_ns, before=before, after=after)
    answer = flight.answer
    inference_ns = answer.done_ns - answer.submitted_ns
    seconds = {
        "acquisition": flight.end_s - flight.light_s,
        "extraction": flight.sent_s - flight.end_s,
        "ours": ordered_s - flight.sent_s,
        "slm": flight.pulse_s - ordered_s,
        "total": flight.pulse_s - flight.light_s,
        "inference": inference_ns / 1e9,
        "engine": (answer.published_ns - answer.received_ns - inference_ns) / 1e9,
    }
    return {name: 1e3 * value for name, value in seconds.items()}


def on_rig(moment_ns: int, *, before: Clock, after: Clock) -> float:
    """A moment of our clock on the rig's, in s; its rate is that between the two looks."""
    span_ns = after.ours_ns - before.ours_ns
    rate = (after.rig_s - before.rig_s) * 1e9 / span_ns if span_ns else 1.0
    return before.rig_s + rate * (moment_ns - before.ours_ns) / 1e9


def measure_loop(
    address: str,
    controller: Callable[[], Controller],
    *,
    stimulus: str,
    flashes: int,
    seed: int,
    say: Callable[[str], None],
) -> Looped:
    """Wait for the rig, ask a standing question about its session, flash, and take everything down again.

    Raises:
        RigError: see `Loop.run`. ClientError: the service does not answer, or has not one session.
    """
    connection = await_rig(address, say=say)
    with connection, controller() as control:
        question = control.standing([stimulus])
        with control.watch() as watch:
            loop = Loop(lambda hear: Rig(connection, hear), watch)
            try:
                return loop.run(flashes=flashes, seed=seed, say=say)
            finally:
                with suppress(ClientError):  # the session may be gone, with the rig or before it
                    control.clear_standing(question)
                loop.close()
