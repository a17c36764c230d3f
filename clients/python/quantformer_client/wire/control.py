"""Control messages: JSON payloads, one class a type. Absent fields take their default, unknown fields are ignored."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

from quantformer_client.wire.header import ID_LIMIT, MAJOR, MAX_ROIS, MessageType

Text = Annotated[str, msgspec.Meta(max_length=256)]
LongText = Annotated[str, msgspec.Meta(max_length=4096)]
Count = Annotated[int, msgspec.Meta(ge=0, le=ID_LIMIT)]
Nanoseconds = Annotated[int, msgspec.Meta(ge=-(1 << 62), le=1 << 62)]
Probability = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Positive = Annotated[float, msgspec.Meta(gt=0.0, le=1e9)]
NotNegative = Annotated[float, msgspec.Meta(ge=0.0, le=1e9)]
Seconds = Annotated[float, msgspec.Meta(ge=-1e12, le=1e12)]
Finite = Annotated[float, msgspec.Meta(ge=-1e30, le=1e30)]
Factor = Annotated[float, msgspec.Meta(ge=0.0, le=10.0)]
RoiIds = Annotated[list[Text], msgspec.Meta(min_length=1, max_length=MAX_ROIS)]


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """What every control message is; `message_type` is its number on the wire."""

    message_type: ClassVar[MessageType]


class Nested(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a control message."""


# --- the connection ---------------------------------------------------------------------------------------------------


class Hello(Body, frozen=True, kw_only=True):
    """A client's first message: the range of major wire versions that it speaks, and the token where one is set."""

    message_type = MessageType.HELLO
    oldest: Count = MAJOR
    newest: Count = MAJOR
    client: Text = ""
    token: Text = ""


class Welcome(Body, frozen=True, kw_only=True):
    """The engine's answer to HELLO; its epoch is in the header. ``bundle`` is the bundle's SHA-256 in hex.

    ``privileges`` says of pinning, real-time priority, locked memory and cores that stay awake whether each was granted or
    refused, and why; ``precision`` in what the graph computes.
    """

    message_type = MessageType.WELCOME
    version: Count
    minor: Count
    engine: Text
    bundle: Text
    provider: Text
    rate_hz: Positive
    baseline_frames: Count
    response_frames: Count
    phases: list[Text]
    largest_message: Count
    privileges: dict[Text, Text] = {}
    precision: Text = "float32"


class Bye(Body, frozen=True, kw_only=True):
    """The sender leaves; the engine sends it to say that it stops."""

    message_type = MessageType.BYE
    reason: Text = ""


class Ping(Body, frozen=True, kw_only=True):
    """Asks for the engine's clock."""

    message_type = MessageType.PING


class Pong(Body, frozen=True, kw_only=True):
    """The engine's `perf_counter_ns` at receiving the PING and at sending this; the header's `sent_ns` echoes the PING's."""

    message_type = MessageType.PONG
    received_ns: Nanoseconds
    replied_ns: Nanoseconds


class Soon(Body, frozen=True, kw_only=True):
    """What is waited for comes in a moment, a frame to the engine or an answer to subscribers; nobody replies.

    It asks for nothing and changes nothing: who takes it, and the way to him, are awake when the other comes.
    """

    message_type = MessageType.SOON


class GetStatus(Body, frozen=True, kw_only=True):
    """Asks for STATUS."""

    message_type = MessageType.GET_STATUS


class SessionStatus(Nested, frozen=True, kw_only=True):
    """One session in STATUS: its id, what it is, and what happened in it by name."""

    session: Count
    subject: Text
    state: Text
    rois: Count
    rate_hz: float
    last_frame: Count
    trigger: Text
    counters: dict[str, int]


class Recording(Nested, frozen=True, kw_only=True):
    """The recording in STATUS: the ``file`` that is written, how many ``records`` were made in this epoch and how many of
    them are on the disk, what waits to come there and for how long, and how many were ``lost`` because too many waited.

    ``trouble`` says why what happens now may not be recorded: while it is not empty, no trigger can be armed.
    """

    file: Text
    trouble: LongText
    records: Count
    acknowledged: Count
    waiting_bytes: Count
    waiting_s: float
    lost: Count


class Status(Body, frozen=True, kw_only=True):
    """What the engine is doing. ``state`` is warming, ready or stopping; ``latency_ms`` is window ready to published.

    ``recording`` is None where nothing is recorded. The engine also publishes STATUS when the recording gets into trouble
    or out of it.
    """

    message_type = MessageType.STATUS
    state: Text
    engine: Text
    bundle: Text
    provider: Text
    uptime_s: float
    counters: dict[str, int]
    latency_ms: dict[str, float]
    sessions: list[SessionStatus]
    privileges: dict[Text, Text] = {}
    recording: Recording | None = None
    precision: Text = "float32"


class Histogram(Nested, frozen=True, kw_only=True):
    """``counts[i]`` times lay above ``bounds_s[i - 1]`` and at or below ``bounds_s[i]``; the last above every bound."""

    bounds_s: list[float]
    counts: list[Count]
    sum_s: float


class Metrics(Body, frozen=True, kw_only=True):
    """Published about once a second: what was counted and measured since the engine started.

    ``counters`` and ``histograms`` only grow within an epoch; ``gauges`` are as they are now. Times are in seconds.
    """

    message_type = MessageType.METRICS
    state: Text
    engine: Text
    bundle: Text
    provider: Text
    counters: dict[Text, Count]
    gauges: dict[Text, float]
    histograms: dict[Text, Histogram]


class Error(Body, frozen=True, kw_only=True):
    """A refusal: ``code`` for programs, ``message`` for people, and the type of what was refused (0: unreadable).

    The header's `request` and `frame` are those of the refused message.
    """

    message_type = MessageType.ERROR
    code: Text
    message: LongText
    refused: Count = 0


class Accepted(Body, frozen=True, kw_only=True):
    """A request was taken. ``question`` is the id of the question or standing question that it made (0: none)."""

    message_type = MessageType.ACCEPTED
    question: Count = 0


# --- the session ------------------------------------------------------------------------------------------------------


class SignalDeclaration(Nested, frozen=True, kw_only=True):
    """What the numbers in FRAME are.

    ``offset`` (digitiser units) is subtracted from F and from the neuropil; ``neuropil_factor`` is one number or one a
    ROI; with ``corrected`` F is used as it comes and no neuropil is expected. ``stamp`` is the moment of the exposure that
    a frame's device time means; the engine moves it to the start.
    """

    extractor: Text = "unknown"
    units: Text = "arbitrary"
    offset: Finite = 0.0
    corrected: bool = True
    neuropil_factor: Factor | list[Factor] = 0.7
    motion_corrected: bool = False
    stamp: Literal["start", "middle", "end"] = "start"


class Open(Body, frozen=True, kw_only=True):
    """Open a session. ``unknown`` says what becomes of ROI ids that the bundle does not know, or whose
    ``match_confidence`` is below ``minimum_confidence``: refuse the session, or serve them marked as unknown.
    """

    message_type = MessageType.OPEN
    subject: Text
    rois: RoiIds
    rate_hz: Positive
    signal: SignalDeclaration = SignalDeclaration()
    unknown: Literal["refuse", "mark"] = "refuse"
    match_confidence: list[Probability] | None = None
    minimum_confidence: Probability = 0.5
    accept_slow: bool = False


class Opened(Body, frozen=True, kw_only=True):
    """The session is open; its id is in the header, and in `roi_hash` the hash that FRAMEs may carry."""

    message_type = MessageType.OPENED
    known: list[bool]
    buffer_frames: Count
    interpolated: bool


class Close(Body, frozen=True, kw_only=True):
    """Close the session in the header."""

    message_type = MessageType.CLOSE


class Closed(Body, frozen=True, kw_only=True):
    """The session is closed; what happened in it by name."""

    message_type = MessageType.CLOSED
    counters: dict[str, int]


class Describe(Body, frozen=True, kw_only=True):
    """Ask what the session in the header is."""

    message_type = MessageType.DESCRIBE


class Description(Body, frozen=True, kw_only=True):
    """A session: what OPEN said, and where it stands."""

    message_type = MessageType.DESCRIPTION
    subject: Text
    rois: RoiIds
    known: list[bool]
    rate_hz: Positive
    signal: SignalDeclaration
    interpolated: bool
    state: Text
    phase: Text
    last_frame: Count
    buffer_frames: Count
    standing: list[Count]
    counters: dict[str, int]


class SessionLost(Body, frozen=True, kw_only=True):
    """Published when a session ends that its client did not close. Open a new one."""

    message_type = MessageType.SESSION_LOST
    reason: LongText = ""


# --- the stream of events ---------------------------------------------------------------------------------------------


class Acquisition(Body, frozen=True, kw_only=True):
    """The microscope started, aborted or stopped acquiring. Start empties the window; frame numbers may begin anew."""

    message_type = MessageType.ACQUISITION
    event: Literal["start", "abort", "stop"]


class Stimulation(Body, frozen=True, kw_only=True):
    """Light was delivered to ``rois`` (None: to all). Its frames, of every ROI, never enter F0 or a baseline.

    Either frames ``[first_frame, last_frame]``, or ``start_s`` and ``duration_s`` on the microscope's clock. With
    ``blanked`` False the frames themselves are clean and are kept; the ROIs stay invalid for the decay either way.
    """

    message_type = MessageType.STIMULATION
    rois: RoiIds | None = None
    first_frame: Count | None = None
    last_frame: Count | None = None
    start_s: Seconds | None = None
    duration_s: NotNegative | None = None
    blanked: bool = True


class Stimulus(Nested, frozen=True, kw_only=True):
    """A stimulus, by registered id, or by category and features."""

    stimulus_id: Text | None = None
    category: Text | None = None
    features: dict[Text, Finite] = {}

    @property
    def label(self) -> str:
        """The id, or the category with its features."""
        if self.stimulus_id is not None:
            return self.stimulus_id
        return f"{self.category}(" + ", ".join(f"{name}={value:g}" for name, value in self.features.items()) + ")"


Stimuli = Annotated[list[Stimulus], msgspec.Meta(min_length=1, max_length=256)]


class Onset(Body, frozen=True, kw_only=True):
    """Ask about an onset: announced by ``onset_frame`` or ``onset_s`` (microscope's clock, s), or now with neither.

    ``within_s`` is the deadline: seconds from the engine's receipt of this message until an answer must be out, from the
    frames then there. ``display_latency_s`` is added to ``onset_s``. ``stimuli`` are alternatives, answered together.
    ``duration_s`` tells how long the stimulus lasts, for the phase of later standing questions. ``source`` says where
    the time came from and ``uncertainty_s`` how far it may be off; the answer repeats both. A ``hypothetical`` onset is
    asked about, not told: no phase begins with it, and no rule fires on its answer.
    """

    message_type = MessageType.ONSET
    stimuli: Stimuli
    onset_frame: Count | None = None
    onset_s: Seconds | None = None
    within_s: Positive | None = None
    duration_s: NotNegative | None = None
    source: Literal["photodiode", "daq", "software"] = "software"
    uncertainty_s: NotNegative = 0.0
    display_latency_s: Seconds = 0.0
    rois: RoiIds | None = None
    detail: Literal["forecast", "probability"] = "forecast"
    baseline: bool = False
    hypothetical: bool = False


class Standing(Body, frozen=True, kw_only=True):
    """Ask after every frame k what would follow if one of ``stimuli`` came at frame k + 1. Latest wins."""

    message_type = MessageType.STANDING
    stimuli: Stimuli
    rois: RoiIds | None = None
    detail: Literal["forecast", "probability"] = "forecast"
    baseline: bool = False


class ClearStanding(Body, frozen=True, kw_only=True):
    """End one standing question of the session."""

    message_type = MessageType.CLEAR_STANDING
    question: Count


class Poll(Body, frozen=True, kw_only=True):
    """Ask for the latest ANSWER of the session, of one question or of any (0)."""

    message_type = MessageType.POLL
    question: Count = 0


# --- the trigger ------------------------------------------------------------------------------------------------------


class Rule(Nested, frozen=True, kw_only=True):
    """Fire when at least ``at_least`` of ``rois`` have a probability of ``threshold`` or more in an answer.

    ``stimulus`` is the label of the alternative to look at (None: the first). ``asked`` chooses answers to onset
    questions, to standing questions, or both. ``max_age_s`` is the greatest age of the last frame read at the decision.
    """

    rule: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    rois: RoiIds
    threshold: Probability
    at_least: Annotated[int, msgspec.Meta(ge=1, le=MAX_ROIS)] = 1
    stimulus: Text | None = None
    asked: Literal["onset", "standing", "any"] = "any"
    refractory_s: NotNegative = 1.0
    max_age_s: Positive = 0.2


class SetRule(Body, frozen=True, kw_only=True):
    """Add a rule to the session, or replace the one of that name."""

    message_type = MessageType.SET_RULE
    rule: Rule


class RemoveRule(Body, frozen=True, kw_only=True):
    """Remove a rule by name."""

    message_type = MessageType.REMOVE_RULE
    rule: Text


class ListRules(Body, frozen=True, kw_only=True):
    """Ask for RULES."""

    message_type = MessageType.LIST_RULES


class Rules(Body, frozen=True, kw_only=True):
    """The session's rules."""

    message_type = MessageType.RULES
    rules: list[Rule]


class Arm(Body, frozen=True, kw_only=True):
    """Arm the session's trigger for ``lease_s`` seconds; each HEARTBEAT renews the lease."""

    message_type = MessageType.ARM
    lease_s: Annotated[float, msgspec.Meta(gt=0.0, le=60.0)] = 2.0


class Heartbeat(Body, frozen=True, kw_only=True):
    """Renew the lease whose number TRIGGER gave."""

    message_type = MessageType.HEARTBEAT
    lease: Count


class Disarm(Body, frozen=True, kw_only=True):
    """Disarm; also the way out of an emergency stop."""

    message_type = MessageType.DISARM


class Stop(Body, frozen=True, kw_only=True):
    """Emergency stop of the session in the header, or of every session (0). Nothing fires until DISARM, then ARM."""

    message_type = MessageType.STOP
    reason: Text = ""


class GetTrigger(Body, frozen=True, kw_only=True):
    """Ask for TRIGGER."""

    message_type = MessageType.GET_TRIGGER


class Trigger(Body, frozen=True, kw_only=True):
    """The trigger's state: disarmed, armed or stopped; the lease's number and what is left of it; what it did.

    ``reason`` says what disarmed it last: asked, lease (it ran out), recorder (it was in trouble), stopping (the engine);
    empty where nothing has, or it is not disarmed.
    """

    message_type = MessageType.TRIGGER
    state: Text
    lease: Count = 0
    lease_left_s: float = 0.0
    fired: Count = 0
    refused: dict[str, int] = {}
    reason: Text = ""


class Decision(Body, frozen=True, kw_only=True):
    """One decision on one answer. ``reason`` is ``fired`` or the one reason why not. Times are the engine's monotonic ns.

    ``value`` is the ``at_least``-th highest probability (None: an answer without a usable one), ``rois`` those at or
    above the threshold, ``age_s`` the age of the last frame read when it was decided.
    """

    message_type = MessageType.DECISION
    rule: Text
    fired: bool
    reason: Text
    question: Count
    onset_frame: Count
    last_frame: Count
    threshold: Probability
    at_least: Count
    output: Text
    rois: list[Text] = []
    value: float | None = None
    age_s: float | None = None
    received_ns: Nanoseconds = 0
    done_ns: Nanoseconds = 0
    decided_ns: Nanoseconds = 0


BODIES: tuple[type[Body], ...] = (
    Hello,
    Welcome,
    Bye,
    Ping,
    Pong,
    Soon,
    GetStatus,
    Status,
    Error,
    Accepted,
    Metrics,
    Open,
    Opened,
    Close,
    Closed,
    Describe,
    Description,
    SessionLost,
    Acquisition,
    Stimulation,
    Onset,
    Standing,
    ClearStanding,
    Poll,
    SetRule,
    RemoveRule,
    ListRules,
    Rules,
    Arm,
    Heartbeat,
    Disarm,
    Stop,
    GetTrigger,
    Trigger,
    Decision,
)
