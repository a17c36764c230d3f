"""Everything that can be set about the engine process."""

from __future__ import annotations

from dataclasses import dataclass, fields

from quantformer.errors import UsageError
from quantformer_service.runtime import AskedPrecision, Provider
from quantformer_service.settings import Settings

_LOOPBACK = ("127.", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class SessionLimits:
    """What one session may use; the same as in `EngineSettings`, ``stimulation_decay_s`` is how long a ROI stays invalid."""

    reorder_frames: int = 8
    standing: int = 8
    pending: int = 64
    question_rows: int = 65_536
    history_s: float = 10.0
    stimulation_decay_s: float = 3.5


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Defaults and units. Fields that `Settings` has too are taken from it; a port of 0 means any free one."""

    #: Address of all ports.
    host: str = "127.0.0.1"
    #: Port of the ZeroMQ ROUTER, of the ZeroMQ PUB, and of the same messages over TCP.
    zmq_port: int = 7411
    pub_port: int = 7412
    tcp_port: int = 7413
    #: What HELLO must carry; empty: nothing. PUB cannot ask for it.
    token: str = ""
    #: Execution provider, what it computes in, and CPU threads of one inference (0: what is fastest at the start).
    provider: Provider = "auto"
    precision: AskedPrecision = "float32"
    threads: int = 0
    #: Frames after which one that is missing is not waited for any more.
    reorder_frames: int = 8
    #: Sessions at a time; at that number the one idle for longest, and for more than this many s, makes way.
    sessions: int = 8
    session_idle_s: float = 600.0
    #: Standing questions, and onset questions that wait for their frames, of one session.
    standing_questions: int = 8
    pending_questions: int = 64
    #: Onset questions that wait for inference, of all sessions.
    ready_questions: int = 256
    #: ROIs x stimuli of one question.
    question_rows: int = 65_536
    #: Seconds of frames kept beyond a window, for onsets that are told late.
    history_s: float = 10.0
    #: Decay time constant of the indicator in s, and how many of them a stimulated neuron stays invalid.
    indicator_tau_s: float = 0.7
    decay_constants: float = 5.0
    #: Directory of recordings (empty: none), and seconds without an acknowledged record before triggers disarm.
    record: str = ""
    record_stall_s: float = 2.0
    #: Messages kept for one slow subscriber, and for one slow ZeroMQ client, before newer ones are dropped.
    pub_queue: int = 64
    client_queue: int = 256
    #: TCP connections at a time, and bytes kept for one that does not read before it is closed.
    tcp_clients: int = 64
    tcp_backlog_bytes: int = 33_554_432
    #: CPUs of the loop (the first) and of inference (the others); real-time priority; memory that is not paged out; cores
    #: that do not sleep deeply while frames come.
    pin_cpus: str = ""
    realtime: str = "off"
    lock_memory: str = "off"
    stay_awake: str = "on"
    #: Seconds for a graceful end.
    shutdown_s: float = 5.0

    def __post_init__(self) -> None:
        if not self.token and not self.host.startswith(_LOOPBACK):
            raise UsageError(
                f"host {self.host} is reachable from other machines and no token is set; set one, or use 127.0.0.1"
            )

    @classmethod
    def of(cls, settings: Settings) -> EngineSettings:
        """The engine's part of the service's settings."""
        given = {item.name: getattr(settings, item.name) for item in fields(cls) if hasattr(settings, item.name)}
        return cls(**given)

    @property
    def limits(self) -> SessionLimits:
        """What one session may use."""
        return SessionLimits(
            reorder_frames=self.reorder_frames,
            standing=self.standing_questions,
            pending=self.pending_questions,
            question_rows=self.question_rows,
            history_s=self.history_s,
            stimulation_decay_s=self.indicator_tau_s * self.decay_constants,
        )
