"""Every REST operation as data: address, what goes in and comes out, examples, and the errors it can end in.

`api` has a handler of each name; the OpenAPI page is made of this table, so neither can lack what the other has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from quantformer_client import wire
from quantformer_client.errors import ErrorCode
from quantformer_service import forms
from quantformer_service.http_body import BINARY, JSON, Frames, JsonFrame
from quantformer_service.http_errors import STATUS, RefusalBody, Refused
from quantformer_service.predictor import Predict, Predicted

_ENGINE = ("busy", "engine_unavailable", "engine_timeout", ErrorCode.NOT_READY, ErrorCode.STOPPING)
_SESSION = (ErrorCode.SESSION_LOST, *_ENGINE)
_BODY = ("bad_json", "unsupported_media_type", ErrorCode.OVERSIZED, "request_timeout", ErrorCode.BAD_PAYLOAD)
_DOOR = (ErrorCode.UNAUTHORIZED, "foreign_origin", "busy")
_ASKING = (
    ErrorCode.UNKNOWN_STIMULUS,
    ErrorCode.UNKNOWN_ROI,
    ErrorCode.BAD_QUESTION,
    ErrorCode.WINDOW_NOT_READY,
    ErrorCode.QUEUE_FULL,
)
_FRAME = (
    ErrorCode.WRONG_NEURON_COUNT,
    ErrorCode.WRONG_ROI_MAP,
    ErrorCode.MISSING_NEUROPIL,
    ErrorCode.DUPLICATE_FRAME,
    ErrorCode.FRAME_TOO_OLD,
    ErrorCode.BAD_TIME,
    ErrorCode.NOT_ACQUIRING,
    ErrorCode.BAD_MAGIC,
    ErrorCode.TRUNCATED,
    ErrorCode.UNEXPECTED,
)


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation. ``example`` and ``result`` are instances of what goes in and comes out (None: nothing does)."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    handler: str
    summary: str
    example: msgspec.Struct | None = None
    result: msgspec.Struct | None = None
    status: int = 200
    errors: Sequence[str] = ()
    binary_body: str = ""
    binary_result: str = ""
    status_also: Mapping[int, msgspec.Struct] | None = None


_STAMPS = forms.Stamps(received=9_000, window_ready=9_100, submitted=9_200, done=9_900, published=9_950, deadline=0)
PREDICTION = forms.Prediction(
    session=1, epoch=1763798400, question=4, asked="announced", phase="onset", stimuli=["dir=045"], onset_frame=900,
    onset_s=30.01, first_frame=804, last_frame=897, last_frame_s=29.9, lead=2, held=2, late=False, out_of_phase=False,
    degraded=False, bundle="9f2c" * 16, stamps_ns=_STAMPS, roi_index=[0, 1], rois=["n000", "n001"], valid=[True, True],
    known=[True, True], validity=[3, 3], probability=[[0.07, 0.61]], forecast=None,
)  # fmt: skip
_RULE = wire.Rule(rule="two-of-three", rois=["n000", "n001", "n002"], threshold=0.6, at_least=2)
_TRIGGER = wire.Trigger(state="armed", lease=7, lease_left_s=1.9, fired=3, refused={"late": 1})
_DESCRIPTION = wire.Description(
    subject="mouse-7", rois=["n000", "n001"], known=[True, True], rate_hz=30.0, signal=wire.SignalDeclaration(),
    interpolated=False, state="streaming", phase="between", last_frame=899, buffer_frames=300, standing=[5],
    counters={"frames": 900},
)  # fmt: skip
_STATUS = forms.ServiceStatus(
    ready=True, state="ready", epoch=1763798400, engine="0.1.0", bundle="9f2c" * 16, provider="cpu", uptime_s=12.5,
    counters={"frames": 900}, latency_ms={"p50": 3.1, "p99": 4.4, "max": 6.0},
    sessions=[
        wire.SessionStatus(
            session=1, subject="mouse-7", state="streaming", rois=2, rate_hz=30.0, last_frame=899, trigger="disarmed",
            counters={"frames": 900},
        )
    ],
    gateway={"refused_busy": 0},
)  # fmt: skip

OPERATIONS: tuple[Operation, ...] = (
    Operation(method="GET", path="/v1/health", handler="health", summary="Whether the gateway lives", result=forms.Health()),
    Operation(
        method="GET", path="/v1/ready", handler="ready", summary="Whether forecasts can be had",
        result=forms.Ready(ready=True, engine="ready", predictor=True), errors=_DOOR,
        status_also={503: forms.Ready(ready=False, engine="warming", predictor=True)},
    ),
    Operation(
        method="GET", path="/v1/version", handler="version", summary="Versions of software, wire and interface",
        result=forms.Version(software="0.1.0", wire=f"{wire.MAJOR}.{wire.MINOR}"), errors=_DOOR,
    ),
    Operation(
        method="GET", path="/v1/bundle", handler="bundle", summary="The bundle that is served: hash and manifest",
        result=forms.BundleFacts(hash="9f2c" * 16, manifest={"format": "quantformer-bundle", "schema": 1}), errors=_DOOR,
    ),
    Operation(
        method="GET", path="/v1/status", handler="status", summary="What the engine is doing, with counters and sessions",
        result=_STATUS, errors=(*_DOOR, *_ENGINE),
    ),
    Operation(
        method="POST", path="/v1/sessions", handler="open", summary="Open a session", status=201,
        example=wire.Open(subject="mouse-7", rois=["n000", "n001"], rate_hz=30.0),
        result=forms.Session(
            session=1, epoch=1763798400, roi_hash="1234567890123456789", known=[True, True], buffer_frames=300, interpolated=False
        ),
        errors=(*_DOOR, *_BODY, *_ENGINE, ErrorCode.UNKNOWN_NEURON, ErrorCode.BAD_SESSION, ErrorCode.TOO_MANY_SESSIONS),
    ),
    Operation(
        method="GET", path="/v1/sessions/{session}", handler="describe", summary="Describe a session",
        result=_DESCRIPTION, errors=(*_DOOR, ErrorCode.BAD_PAYLOAD, *_SESSION),
    ),
    Operation(
        method="DELETE", path="/v1/sessions/{session}", handler="close", summary="Close a session",
        result=wire.Closed(counters={"frames": 900}), errors=(*_DOOR, ErrorCode.BAD_PAYLOAD, *_SESSION),
    ),
    Operation(
        method="POST", path="/v1/sessions/{session}/frames", handler="frames",
        summary="Send frames; the answer comes when the engine has taken them",
        example=Frames(frames=[JsonFrame(number=0, device_s=0.0, fluorescence=[120.5, 98.25])]),
        binary_body="FRAME messages of the wire, each behind its length (u32), as over TCP",
        result=forms.FramesTaken(accepted=1), errors=(*_DOOR, *_BODY, *_SESSION, *_FRAME),
    ),
    Operation(
        method="POST", path="/v1/sessions/{session}/onsets", handler="onset",
        summary="Ask about an onset: announced by frame or time, or now; with wait_s the prediction is awaited", status=202,
        example=wire.Onset(stimuli=[wire.Stimulus(stimulus_id="dir=045")], onset_s=30.01, within_s=0.9),
        result=wire.Accepted(question=4), status_also={200: PREDICTION},
        errors=(*_DOOR, *_BODY, *_SESSION, *_ASKING, ErrorCode.ONSET_BEFORE_BUFFER, ErrorCode.ONSET_TOO_FAR,
                ErrorCode.INFERENCE_FAILED),
    ),
    Operation(
        method="POST", path="/v1/sessions/{session}/best", handler="best",
        summary="Which of several stimuli would drive these ROIs most: a ranked list; nothing is told, nothing fires",
        example=forms.BestStimulus(
            stimuli=[wire.Stimulus(stimulus_id="dir=045"), wire.Stimulus(stimulus_id="dir=090")], rois=["n000", "n001"]
        ),
        result=forms.BestStimuli(
            session=1, epoch=1763798400, question=6, onset_frame=900, last_frame=899, lead=0, late=False, out_of_phase=False,
            degraded=False, asked_rois=2, by="probability",
            ranking=[wire.Ranked(stimulus="dir=090", probability=0.55, area=0.31, rois=2),
                     wire.Ranked(stimulus="dir=045", probability=0.34, area=0.12, rois=2)],
        ),
        errors=(*_DOOR, *_BODY, *_SESSION, *_ASKING, ErrorCode.ONSET_BEFORE_BUFFER, ErrorCode.ONSET_TOO_FAR,
                ErrorCode.INFERENCE_FAILED),
    ),
    Operation(
        method="POST", path="/v1/sessions/{session}/standing", handler="standing",
        summary="Ask, after every frame, what would follow a stimulus that came next", status=201,
        example=wire.Standing(stimuli=[wire.Stimulus(stimulus_id="dir=045")]), result=wire.Accepted(question=5),
        errors=(*_DOOR, *_BODY, *_SESSION, *_ASKING),
    ),
    Operation(
        method="DELETE", path="/v1/sessions/{session}/standing/{question}", handler="clear_standing",
        summary="End a standing question", result=wire.Accepted(),
        errors=(*_DOOR, ErrorCode.BAD_PAYLOAD, *_SESSION, ErrorCode.UNKNOWN_QUESTION),
    ),
    Operation(
        method="POST", path="/v1/sessions/{session}/stimulations", handler="stimulation",
        summary="Tell that light was delivered", status=202,
        example=wire.Stimulation(rois=["n000"], first_frame=910, last_frame=912), result=wire.Accepted(),
        errors=(*_DOOR, *_BODY, *_SESSION, ErrorCode.UNKNOWN_ROI),
    ),
    Operation(
        method="POST", path="/v1/sessions/{session}/acquisition", handler="acquisition",
        summary="Tell that acquisition started, was aborted or stopped", status=202,
        example=wire.Acquisition(event="start"), result=wire.Accepted(), errors=(*_DOOR, *_BODY, *_SESSION),
    ),
    Operation(
        method="GET", path="/v1/sessions/{session}/prediction", handler="prediction",
        summary="The latest prediction, of one question or of any", result=PREDICTION,
        binary_result="the ANSWER message of the wire, where the request accepts application/octet-stream",
        errors=(*_DOOR, ErrorCode.BAD_PAYLOAD, *_SESSION, ErrorCode.NO_ANSWER_YET, ErrorCode.UNKNOWN_QUESTION),
    ),
    Operation(
        method="GET", path="/v1/sessions/{session}/rules", handler="rules", summary="The trigger's rules",
        result=wire.Rules(rules=[_RULE]), errors=(*_DOOR, ErrorCode.BAD_PAYLOAD, *_SESSION),
    ),
    Operation(
        method="POST", path="/v1/sessions/{session}/rules", handler="set_rule",
        summary="Add a rule, or replace the one of that name", example=wire.SetRule(rule=_RULE).rule, result=wire.Accepted(),
        errors=(*_DOOR, *_BODY, *_SESSION, ErrorCode.BAD_RULE, ErrorCode.UNKNOWN_ROI, ErrorCode.UNKNOWN_STIMULUS),
    ),
    Operation(
        method="DELETE", path="/v1/sessions/{session}/rules", handler="remove_rule", summary="Remove the rule named in the query",
        result=wire.Accepted(), errors=(*_DOOR, ErrorCode.BAD_PAYLOAD, *_SESSION, ErrorCode.UNKNOWN_RULE),
    ),
    Operation(
        method="GET", path="/v1/sessions/{session}/trigger", handler="trigger", summary="The trigger's state",
        result=_TRIGGER, errors=(*_DOOR, ErrorCode.BAD_PAYLOAD, *_SESSION),
    ),
    Operation(
        method="POST", path="/v1/sessions/{session}/trigger/arm", handler="arm", summary="Arm the trigger for a lease",
        example=wire.Arm(lease_s=2.0), result=_TRIGGER,
        errors=(*_DOOR, *_BODY, *_SESSION, ErrorCode.STOPPED, ErrorCode.NOT_RECORDING),
    ),
    Operation(
        method="POST", path="/v1/sessions/{session}/trigger/heartbeat", handler="heartbeat", summary="Renew the lease",
        example=wire.Heartbeat(lease=7), result=_TRIGGER, errors=(*_DOOR, *_BODY, *_SESSION, ErrorCode.NOT_ARMED),
    ),
    Operation(
        method="POST", path="/v1/sessions/{session}/trigger/disarm", handler="disarm",
        summary="Disarm the trigger; also the way out of an emergency stop",
        result=wire.Trigger(state="disarmed"), errors=(*_DOOR, *_BODY, *_SESSION),
    ),
    Operation(
        method="POST", path="/v1/sessions/{session}/trigger/stop", handler="stop", summary="Emergency stop of one session",
        example=wire.Stop(reason="the animal moves"), result=wire.Accepted(), errors=(*_DOOR, *_BODY, *_SESSION),
    ),
    Operation(
        method="POST", path="/v1/stop", handler="stop_all", summary="Emergency stop of every session",
        example=wire.Stop(reason="the animal moves"), result=wire.Accepted(), errors=(*_DOOR, *_BODY, *_ENGINE),
    ),
    Operation(
        method="POST", path="/v1/predict", handler="predict", summary="Predict without a session, at low priority",
        example=Predict(neurons=["n000"], stimuli=[wire.Stimulus(stimulus_id="dir=045")], fluorescence=[[100.0] * 96],
                        detail="probability"),
        result=Predicted(bundle="9f2c" * 16, stimuli=("dir=045",), neurons=["n000"], known=[True], valid=[True],
                         probability=[[0.07]]),
        errors=(*_DOOR, *_BODY, ErrorCode.NOT_READY, ErrorCode.STOPPING, "too_many_rows", ErrorCode.UNKNOWN_NEURON,
                ErrorCode.UNKNOWN_STIMULUS, ErrorCode.BAD_QUESTION, "predict_failed"),
    ),
)  # fmt: skip


def openapi_of(operation: Operation) -> dict[str, Any]:
    """The operation's ``requestBody`` and ``responses``, with examples."""
    extra: dict[str, Any] = {}
    if operation.example is not None:
        content: dict[str, Any] = {JSON: _media(operation.example)}
        if operation.binary_body:
            content[BINARY] = {"schema": {"type": "string", "format": "binary", "description": operation.binary_body}}
        required = any(field.required for field in msgspec.structs.fields(operation.example))
        extra["requestBody"] = {"required": required, "content": content}
    responses: dict[str, Any] = {}
    for status, result in {operation.status: operation.result, **(operation.status_also or {})}.items():
        assert result is not None
        responses[str(status)] = {"description": _first_line(type(result)), "content": {JSON: _media(result)}}
    if operation.binary_result:
        schema = {"type": "string", "format": "binary", "description": operation.binary_result}
        responses[str(operation.status)]["content"][BINARY] = {"schema": schema}
    for code in dict.fromkeys(operation.errors):
        entry = responses.setdefault(
            str(STATUS[code]),
            {"description": "", "content": {JSON: {"schema": _reference(Refused), "examples": {}}}},
        )
        media = entry["content"][JSON]
        # A status that also carries a result of its own (a service that is not ready) keeps that as its first example.
        examples = media.setdefault("examples", {})
        if "example" in media:
            examples["result"] = {"value": media.pop("example")}
            media["schema"] = {"anyOf": [media["schema"], _reference(Refused)]}
        example = Refused(error=RefusalBody(code=code, message="what was found, what was expected, what to do"))
        examples[str(code)] = {"value": msgspec.to_builtins(example)}
        entry["description"] = ", ".join(filter(None, [entry["description"], str(code)]))
    return {**extra, "responses": responses}


def components() -> dict[str, Any]:
    """The JSON schemas of everything that goes in or comes out."""
    shown: list[msgspec.Struct | None] = []
    for one in OPERATIONS:
        shown += [one.example, one.result, *(one.status_also or {}).values()]
    streamed = (forms.Dropped, forms.Lost, forms.DecisionMade, forms.TriggerChanged, forms.Complaint)
    kinds = {found.__class__ for found in shown if found is not None} | {*streamed, Refused, forms.FramesRefused}
    ordered = sorted(kinds, key=str)
    return msgspec.json.schema_components(ordered, ref_template="#/components/schemas/{name}")[1]


def _media(example: msgspec.Struct) -> dict[str, Any]:
    return {"schema": _reference(type(example)), "example": msgspec.to_builtins(example)}


def _reference(kind: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _first_line(kind: type) -> str:
    return (kind.__doc__ or kind.__name__).partition("\n")[0]
