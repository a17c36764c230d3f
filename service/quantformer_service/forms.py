"""The JSON of predictions, and of what else the gateway says that is no message of the wire."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from quantformer_client import wire

Detail = Literal["forecast", "probability"]


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """dF/F of the response frames, ``[stimulus][roi][frame]``, with the ends of its interval; null where it is undefined."""

    response: list[Any]
    low: list[Any]
    high: list[Any]


class Stamps(msgspec.Struct, frozen=True, kw_only=True):
    """Nanoseconds of the engine's monotonic clock; deadline 0: none."""

    received: int
    window_ready: int
    submitted: int
    done: int
    published: int
    deadline: int


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """An ANSWER of the wire as JSON. Act only on ROIs that are ``valid``. ``rois`` is null where the session is gone."""

    type: Literal["prediction"] = "prediction"
    session: int
    epoch: int
    question: int
    asked: Literal["announced", "now", "standing"]
    phase: str
    stimuli: Sequence[str]
    onset_frame: int
    onset_s: float
    first_frame: int
    last_frame: int
    last_frame_s: float
    lead: int
    held: int
    late: bool
    out_of_phase: bool
    degraded: bool
    hypothetical: bool = False
    told_s: float | None = None
    source: Literal["none", "software", "photodiode", "daq"] = "none"
    uncertainty_s: float = 0.0
    display_latency_s: float = 0.0
    bundle: str
    stamps_ns: Stamps
    roi_index: list[int]
    rois: list[str] | None
    valid: list[bool]
    known: list[bool]
    validity: list[int]
    probability: list[Any]
    forecast: Forecast | None = None


class BestStimulus(msgspec.Struct, frozen=True, kw_only=True):
    """Which of ``stimuli`` would drive ``rois`` (null: all) most: now, or at an onset of that frame or time."""

    stimuli: wire.Stimuli
    rois: wire.RoiIds | None = None
    by: Literal["probability", "area"] = "probability"
    detail: Detail = "forecast"
    onset_frame: wire.Count | None = None
    onset_s: wire.Seconds | None = None
    within_s: wire.Positive | None = None


class BestStimuli(msgspec.Struct, frozen=True, kw_only=True):
    """The stimuli, the one that drives the ROIs most first. Choose by it only where none of the three flags is set, and
    where the list's ``rois``, those that are known and valid, are enough of those asked about.
    """

    session: int
    epoch: int
    question: int
    onset_frame: int
    last_frame: int
    lead: int
    late: bool
    out_of_phase: bool
    degraded: bool
    asked_rois: int
    by: Literal["probability", "area"]
    ranking: list[wire.Ranked]


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The gateway lives."""

    alive: bool = True


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """Whether forecasts can be had: ``engine`` is absent, warming, ready or stopping, ``predictor`` whether it is loaded."""

    ready: bool
    engine: str
    predictor: bool


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """Versions: of the software, the wire (major.minor) and this interface."""

    software: str
    wire: str
    interface: str = "v1"


class BundleFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The bundle that is served: its hash and its manifest."""

    hash: str
    manifest: dict[str, Any]


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine is doing, as in the wire's STATUS, and what the gateway counted."""

    ready: bool
    state: str
    epoch: int
    engine: str
    bundle: str
    provider: str
    uptime_s: float
    counters: dict[str, int]
    latency_ms: dict[str, float]
    sessions: list[wire.SessionStatus]
    gateway: dict[str, int]
    privileges: dict[str, str] = {}
    recording: wire.Recording | None = None
    precision: str = "float32"


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """An opened session. ``known`` holds one bool a ROI; ``roi_hash`` (as text: it has 64 bits) may go into frames."""

    session: int
    epoch: int
    roi_hash: str
    known: list[bool]
    buffer_frames: int
    interpolated: bool


class RefusedFrame(msgspec.Struct, frozen=True, kw_only=True):
    """A frame that the engine did not take, and why."""

    frame: int
    code: str
    message: str


class FramesTaken(msgspec.Struct, frozen=True, kw_only=True):
    """How many frames the engine took, and those that it refused."""

    accepted: int
    refused: list[RefusedFrame] = []


class FramesRefused(msgspec.Struct, frozen=True, kw_only=True):
    """Some frames were refused; ``error`` is the first refusal."""

    error: dict[str, str]
    accepted: int
    refused: list[RefusedFrame]


class Dropped(msgspec.Struct, frozen=True, kw_only=True):
    """Over a WebSocket: messages that were dropped because the client reads too slowly, since the last such note and ever."""

    type: Literal["dropped"] = "dropped"
    count: int
    total: int


class Lost(msgspec.Struct, frozen=True, kw_only=True):
    """Over a WebSocket: a session, or with ``session`` null the engine with all sessions, ended; open a new one."""

    type: Literal["session_lost"] = "session_lost"
    session: int | None
    reason: str


class DecisionMade(msgspec.Struct, frozen=True, kw_only=True):
    """Over a WebSocket: the trigger decided on an answer."""

    type: Literal["decision"] = "decision"
    session: int
    epoch: int
    decision: wire.Decision


class TriggerChanged(msgspec.Struct, frozen=True, kw_only=True):
    """Over a WebSocket: the trigger's state changed."""

    type: Literal["trigger"] = "trigger"
    session: int
    epoch: int
    trigger: wire.Trigger


class Complaint(msgspec.Struct, frozen=True, kw_only=True):
    """Over a WebSocket: the client sent something that is not understood; the stream goes on."""

    type: Literal["error"] = "error"
    code: str
    message: str


def prediction(
    header: wire.Header, answer: wire.Answer, *, roi_ids: Sequence[str] | None, detail: Detail
) -> Prediction:
    """The JSON form of an answer; ``roi_ids`` are those of the whole session."""
    forecast = None
    low, high = (answer.low, answer.high) if detail == "forecast" else (None, None)
    if answer.response is not None and low is not None and high is not None:
        forecast = Forecast(response=answer.response.tolist(), low=low.tolist(), high=high.tolist())
    index = answer.rois.tolist()
    return Prediction(
        session=header.session,
        epoch=header.epoch,
        question=answer.question,
        asked=answer.asked.name.lower(),  # type: ignore[arg-type]  # the names of `wire.Asked` are the literal's
        phase=answer.phase.name.lower(),
        stimuli=answer.stimuli,
        onset_frame=answer.onset_frame,
        onset_s=answer.onset_s,
        first_frame=answer.first_frame,
        last_frame=answer.last_frame,
        last_frame_s=answer.last_frame_s,
        lead=answer.lead,
        held=answer.held,
        late=bool(answer.flags & wire.Flags.LATE),
        out_of_phase=bool(answer.flags & wire.Flags.OUT_OF_PHASE),
        degraded=bool(answer.flags & wire.Flags.DEGRADED),
        hypothetical=bool(answer.flags & wire.Flags.HYPOTHETICAL),
        told_s=None if math.isnan(answer.told_s) else answer.told_s,
        source=answer.source.name.lower(),  # type: ignore[arg-type]  # the names of `wire.Source` are the literal's
        uncertainty_s=answer.uncertainty_s,
        display_latency_s=answer.display_latency_s,
        bundle=answer.bundle.hex(),
        stamps_ns=Stamps(
            received=answer.received_ns,
            window_ready=answer.window_ready_ns,
            submitted=answer.submitted_ns,
            done=answer.done_ns,
            published=answer.published_ns,
            deadline=answer.deadline_ns,
        ),
        roi_index=index,
        rois=None if roi_ids is None else [roi_ids[row] for row in index],
        valid=answer.valid.tolist(),
        known=answer.known.tolist(),
        validity=answer.validity.tolist(),
        probability=_table(answer.probability),
        forecast=forecast,
    )


def ranked(
    header: wire.Header, answer: wire.Answer, *, by: Literal["probability", "area"], rate_hz: float
) -> BestStimuli:
    """The ranked list of an answer with alternatives."""
    return BestStimuli(
        session=header.session,
        epoch=header.epoch,
        question=answer.question,
        onset_frame=answer.onset_frame,
        last_frame=answer.last_frame,
        lead=answer.lead,
        late=bool(answer.flags & wire.Flags.LATE),
        out_of_phase=bool(answer.flags & wire.Flags.OUT_OF_PHASE),
        degraded=bool(answer.flags & wire.Flags.DEGRADED),
        asked_rois=len(answer.rois),
        by=by,
        ranking=wire.ranking(answer, rate_hz=rate_hz, by=by),
    )


def _table(array: NDArray[np.float32]) -> list[Any]:
    rows: list[Any] = array.tolist()
    return rows
