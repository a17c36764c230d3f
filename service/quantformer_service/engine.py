"""The real-time process: one loop thread with sockets, windows, decisions and publishing, and one inference thread.

``python -m quantformer_service.engine`` runs it as a child of the supervisor (see `quantformer_service.process`).
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version

import msgspec
import numpy as np

from quantformer.bundle import Bundle, load_bundle
from quantformer.errors import UsageError
from quantformer_client import wire
from quantformer_client.wire import ErrorCode
from quantformer_service import timeslice
from quantformer_service.awake import Awake
from quantformer_service.dispatch import new_id
from quantformer_service.engine_settings import EngineSettings
from quantformer_service.garbage import Garbage
from quantformer_service.inference import Inference
from quantformer_service.loop import Loop
from quantformer_service.privileges import Privileges
from quantformer_service.process import announce, run_process
from quantformer_service.provenance import Provenance, provenance
from quantformer_service.rehearsal import Rehearsal
from quantformer_service.runtime import in_precision
from quantformer_service.session import Session
from quantformer_service.settings import Settings
from quantformer_service.stream import Sockets
from quantformer_service.tap import Tap
from quantformer_service.trigger import Disarmed, TriggerState

_log = logging.getLogger(__name__)

#: Longest sleep of the loop in ns: how soon a wish to stop is seen.
_LONGEST_SLEEP_NS = 50_000_000
#: How often METRICS is published and garbage looked for, in ns; the time before the next frame that this needs; and how
#: long it is put off where there is never so much, as at hundreds of frames a second.
_CHORES_EVERY_NS = 1_000_000_000
_CHORES_SPARE_NS = 2_000_000
_CHORES_PUT_OFF_NS = 4_000_000_000
#: Seconds that a thread may hold the interpreter while another wants it; Python's own 5 ms is a sixth of a frame.
_SWITCH_S = 0.0005
#: Seconds that the last records have to reach the recorder.
_LINGER_S = 0.5
#: Seconds between the last word and the end of the connections, for clients to read it: ZeroMQ with IMMEDIATE, which a client
#: uses so that nothing waits for an engine that is away, forgets what was not read when its connection ends.
_FAREWELL_S = 0.25


class Engine:
    """Answers questions about streams of frames. Construction binds the ports; `run` is the loop. ``awake`` is told what comes.

    Raises:
        BusyPortError: a port is taken.
    """

    def __init__(self, settings: EngineSettings, bundle: Bundle, *, awake: Awake | None = None) -> None:
        self._settings, self._bundle = settings, bundle
        self._awake = awake or Awake(asked=False)
        self.epoch = new_id()
        self._started_ns = time.perf_counter_ns()
        self._sockets = Sockets(settings)
        self.endpoints = self._sockets.endpoints
        self._inference = Inference(
            bundle, provider=settings.provider, threads=settings.threads, on_done=self._sockets.wake
        )
        self._tap = Tap(settings, epoch=self.epoch)
        self._loop = Loop(
            settings,
            bundle,
            sockets=self._sockets,
            inference=self._inference,
            tap=self._tap,
            epoch=self.epoch,
            status=self._status,
            welcome=self._welcome,
        )
        self._garbage = Garbage()
        self._rehearsal: Rehearsal | None = None
        self._chores_ns = 0
        #: What its threads were granted.
        self.privileges: Mapping[str, str] = {}
        self._state = "warming"
        try:
            self._version = version("quantformer")
        except PackageNotFoundError:  # run from a source tree that is not installed
            self._version = "unknown"

    def run(self, stop: threading.Event, *, on_ready: Callable[[], None] = lambda: None) -> None:
        """Serve until ``stop`` is set, then disarm, answer what is pending, flush and close.

        Raises:
            ProviderError: the asked execution provider is not the one that runs.
        """
        self._inference.start()
        try:
            while not stop.is_set():
                self._turn()
                if self._state == "warming" and self._inference.ready.is_set():
                    self._rehearsal = Rehearsal(self._settings, self._bundle)
                    on_ready()
                    if self._tap.on:
                        self._tap.begin(msgspec.json.encode(self._made_with()))
                    self._garbage.start()
                    self._state, self._loop.stands, self._loop.dispatcher.closed = "ready", True, None
                if self._inference.failure is not None:
                    raise self._inference.failure
            self._end()
        finally:
            if self._state != "warming":
                self._garbage.end()
            self._inference.stop(0.5)
            self._sockets.close()
            self._tap.close(linger_s=_LINGER_S)

    @property
    def facts(self) -> dict[str, object]:
        """What the parent is told once the engine is ready."""
        return {
            "endpoints": self.endpoints,
            "epoch": self.epoch,
            "bundle": self._bundle.hash,
            "provider": self._inference.provider,
            "precision": self._bundle.precision,
            "privileges": self._granted,
        }

    def _made_with(self) -> Provenance:
        return provenance(
            self._settings,
            self._bundle,
            provider=self._inference.provider,
            threads=self._inference.threads,
            epoch=self.epoch,
        )

    # --- the loop -----------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        now_ns = time.perf_counter_ns()
        until_ns = now_ns + _LONGEST_SLEEP_NS
        if self._rehearsal is not None and self._loop.idle:
            sessions = self._loop.dispatcher.sessions.values()
            until_ns = min(until_ns, self._rehearsal.follow(sessions, now_ns=now_ns))
            tell_ns = self._loop.foretelling.before_frames(sessions, now_ns=now_ns)
            until_ns = until_ns if tell_ns is None else min(until_ns, tell_ns)
        self._loop.turn(until_ns)
        now_ns = time.perf_counter_ns()
        if self._tap.tick(now_ns):
            self._follow_recording(now_ns)
        if now_ns >= self._chores_ns:
            self._do_chores()

    def _do_chores(self) -> None:
        """What has time: METRICS, garbage, whether cores may sleep, while nothing is under way and the next frame is not near."""
        now_ns = time.perf_counter_ns()
        spare_ns = self._spare_ns(now_ns)
        if spare_ns < _CHORES_SPARE_NS and now_ns < self._chores_ns + _CHORES_PUT_OFF_NS:
            return
        self._chores_ns = now_ns + _CHORES_EVERY_NS
        self._loop.publish(self._metrics(), session=0)
        self._garbage.collect(max(spare_ns, _CHORES_SPARE_NS))
        if self._state == "ready":
            self._awake.follow(self._loop.dispatcher.counters["frames"], now_ns=now_ns)

    def _spare_ns(self, now_ns: int) -> int:
        """Time for which the loop will surely not be wanted: 0 while a question is under way."""
        if not self._loop.idle:
            return 0
        frames = [session.next_frame_ns(now_ns) for session in self._loop.dispatcher.sessions.values()]
        moments = [one - now_ns for one in (*frames, self._loop.next_begin_ns()) if one is not None]
        return min(moments, default=_LONGEST_SLEEP_NS)

    # --- what it is ---------------------------------------------------------------------------------------------------

    def _follow_recording(self, now_ns: int) -> None:
        """The recording got into trouble, or out of it: tell, and in trouble let nothing fire."""
        trouble = self._tap.trouble
        if trouble:
            self._loop.counters["recording_troubles"] += 1
            _log.error("recording: %s; every trigger is disarmed until it is well", trouble)
            for session in self._loop.dispatcher.sessions.values():
                self._disarm(session, Disarmed.RECORDER, now_ns=now_ns)
        else:
            _log.info("recording: all is well")
        self._loop.publish(self._status(), session=0)

    def _disarm(self, session: Session, reason: Disarmed, *, now_ns: int) -> None:
        """Take an armed trigger's lease; an emergency stop stays one."""
        if session.trigger.state == TriggerState.ARMED:
            session.trigger.disarm(reason)
            self._loop.publish(session.trigger.describe(now_ns=now_ns), session=session.number)

    @property
    def _granted(self) -> dict[str, str]:
        """What the process was granted and refused, by setting."""
        return {**self.privileges, "stay_awake": self._awake.outcome}

    def _welcome(self) -> wire.Welcome:
        recipe = self._bundle.recipe
        return wire.Welcome(
            version=wire.MAJOR,
            minor=wire.MINOR,
            engine=f"quantformer {self._version}",
            bundle=self._bundle.hash,
            provider=self._inference.provider,
            rate_hz=recipe.rate_hz,
            baseline_frames=recipe.baseline_frames,
            response_frames=recipe.response_frames,
            phases=sorted(self._bundle.phases),
            largest_message=wire.MAX_MESSAGE,
            privileges=self._granted,
            precision=self._bundle.precision,
        )

    def _status(self) -> wire.Status:
        latency = {}
        if self._loop.latency_ms:
            values = np.array(self._loop.latency_ms)
            p50, p99 = np.percentile(values, [50, 99])
            latency = {"p50": float(p50), "p99": float(p99), "max": float(values.max())}
        return wire.Status(
            state=self._state,
            engine=f"quantformer {self._version}",
            bundle=self._bundle.hash,
            provider=self._inference.provider,
            uptime_s=(time.perf_counter_ns() - self._started_ns) / 1e9,
            counters=dict(self._loop.counters + self._loop.dispatcher.counters + self._sockets.counters),
            latency_ms=latency,
            sessions=[session.status() for session in self._loop.dispatcher.sessions.values()],
            privileges=self._granted,
            recording=self._tap.status(time.perf_counter_ns()),
            precision=self._bundle.precision,
        )

    def _metrics(self) -> wire.Metrics:
        sessions = self._loop.dispatcher.sessions.values()
        happened = self._loop.dispatcher.ended.copy()
        for session in sessions:
            happened.update(session.counters)
        # Frames are counted by the engine and by their session: once is enough.
        happened.pop("frames", None)
        gauges: dict[str, float] = {
            "uptime_s": (time.perf_counter_ns() - self._started_ns) / 1e9,
            "sessions": len(sessions),
            "armed": sum(session.trigger.state == TriggerState.ARMED for session in sessions),
            "onsets_pending": sum(len(session.docket.pending) for session in sessions),
            "questions_waiting": self._loop.waiting,
            "questions_under_way": self._loop.under_way,
            "inference_threads": self._inference.threads,
        }
        recording = self._tap.status(time.perf_counter_ns())
        if recording is not None:
            gauges |= {
                "recorder_waiting_bytes": recording.waiting_bytes,
                "recorder_waiting_s": recording.waiting_s,
                "recorder_lost": recording.lost,
                "recorder_trouble": int(bool(recording.trouble)),
            }
        loop = self._loop
        histograms = loop.meter.histograms()
        if self._rehearsal is not None:
            histograms["rehearsal"] = self._rehearsal.took.snapshot()
        return wire.Metrics(
            state=self._state,
            engine=f"quantformer {self._version}",
            bundle=self._bundle.hash,
            provider=self._inference.provider,
            counters=dict(
                loop.counters + loop.dispatcher.counters + self._sockets.counters + loop.meter.counters + happened
            ),
            gauges=gauges,
            histograms=histograms,
        )

    def _end(self) -> None:
        """Disarm, answer every pending onset question from the frames that are there, flush, and leave time to read it."""
        self._state, self._loop.stands, self._rehearsal = "stopping", False, None
        self._loop.dispatcher.closed = (ErrorCode.STOPPING, "the engine stops; ask the next one")
        for session in self._loop.dispatcher.sessions.values():
            self._disarm(session, Disarmed.STOPPING, now_ns=time.perf_counter_ns())
        self._loop.flush()
        end_ns = time.perf_counter_ns() + int(0.7 * self._settings.shutdown_s * 1e9)
        while not self._loop.idle and time.perf_counter_ns() < end_ns:
            self._turn()
        for session in self._loop.dispatcher.sessions.values():
            self._loop.publish(wire.SessionLost(reason="the engine stops"), session=session.number)
        self._loop.publish(wire.Bye(reason="the engine stops"), session=0)
        time.sleep(min(_FAREWELL_S, 0.1 * self._settings.shutdown_s))


def serve(settings: Settings, stop: threading.Event) -> None:
    """Body of the process: load the bundle, bind, warm up, announce, serve.

    Raises:
        UsageError: no bundle is named. BundleError, BusyPortError, ProviderError: see there.
    """
    if not settings.bundle:
        raise UsageError("no bundle is named; give one with --bundle DIR")
    engine_settings = EngineSettings.of(settings)
    bundle = in_precision(
        load_bundle(settings.bundle), precision=engine_settings.precision, provider=engine_settings.provider
    )
    # Before any other thread is there: those of ZeroMQ and of inference begin with what this one has.
    if refused := timeslice.shorten():
        _log.info("short time slices are not to be had: %s", refused)
    awake = Awake(asked=engine_settings.stay_awake == "on")
    engine = Engine(engine_settings, bundle, awake=awake)
    privileges = Privileges(engine_settings)
    sys.setswitchinterval(_SWITCH_S)
    # The inference thread, and whatever threads the runtime starts in it, take over what this thread has when they begin.
    privileges.before_inference()

    def ready() -> None:
        engine.privileges = privileges.when_ready()
        for name, outcome in engine.privileges.items():
            _log.log(logging.WARNING if outcome.startswith("refused") else logging.INFO, "%s: %s", name, outcome)
        # No warning: it is asked for by default, and not every user may.
        _log.info("stay_awake: %s", awake.outcome)
        announce(**engine.facts)

    engine.run(stop, on_ready=ready)


if __name__ == "__main__":
    run_process("engine", serve)
