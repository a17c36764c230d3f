"""The REST interface: a handler for each of `operations.OPERATIONS`, and the application that they make."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from fastapi import FastAPI, Query, WebSocket
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from quantformer import __version__
from quantformer.bundle import Bundle
from quantformer.manifest import render_manifest
from quantformer_client import wire
from quantformer_client.errors import ErrorCode, WireError
from quantformer_service import forms
from quantformer_service.door import Door
from quantformer_service.engine_link import EngineLink, expected
from quantformer_service.exposition import CONTENT_TYPE, gpu_gauges, render
from quantformer_service.gpu import Gpu
from quantformer_service.http_body import BINARY, JSON, read_bytes, read_frames, read_json
from quantformer_service.http_errors import STATUS, HttpRefusalError, refusal_response
from quantformer_service.live import Live
from quantformer_service.operations import OPERATIONS, components, openapi_of
from quantformer_service.predict_queue import PredictQueue
from quantformer_service.predictor import Predict
from quantformer_service.settings import Settings

_log = logging.getLogger(__name__)
Body = TypeVar("Body", bound=msgspec.Struct)
#: Frames that go to the engine before it is waited for; the microscope's own take their turn between them.
_FRAMES_AT_ONCE = 16
#: The engine's STATUS is asked for at most this often, however many ask here, seconds.
_STATUS_AGE_S = 0.25
_SESSIONS_REMEMBERED = 64
_LONGEST_WAIT_S = 15.0

Detail = Annotated[Literal["forecast", "probability"], Query(description="probability leaves the forecast out")]
Wait = Annotated[float, Query(ge=0.0, le=_LONGEST_WAIT_S, description="seconds to wait for the prediction; 0: do not")]
Question = Annotated[int, Query(ge=0, lt=1 << 63, description="id of a question; 0: any")]
RuleName = Annotated[str, Query(description="the rule's name", min_length=1, max_length=64)]
Watched = Annotated[int | None, Query(description="id of a session; absent: all")]


class Api:
    """The handlers; each of them is one of `OPERATIONS`."""

    def __init__(
        self, *, settings: Settings, bundle: Bundle, link: EngineLink, predictions: PredictQueue, gpu: Gpu | None = None
    ) -> None:
        self._settings, self._link, self._predictions, self._gpu = settings, link, predictions, gpu
        self._bundle = forms.BundleFacts(
            hash=bundle.hash, manifest=msgspec.json.decode(render_manifest(bundle.manifest))
        )
        self._rate_hz = bundle.recipe.rate_hz
        self._status: tuple[float, wire.Header, wire.Status] | None = None
        self._status_lock = asyncio.Lock()
        self._rois: dict[tuple[int, int], list[str]] = {}
        self.live = Live(link, room=settings.stream_queue, roi_ids=self._roi_ids)

    # --- the service ------------------------------------------------------------------------------------------------------

    async def health(self) -> Response:
        """Always the same, while the gateway can answer."""
        return _json(forms.Health())

    async def ready(self) -> Response:
        """200 or 503, with which part is missing."""
        try:
            state = (await self._fresh_status())[1].state
        except HttpRefusalError as error:
            state = error.code if error.code != "engine_unavailable" else "absent"
        predictor = self._predictions.ready.is_set()
        ready = state == "ready" and predictor
        return _json(forms.Ready(ready=ready, engine=state, predictor=predictor), status=200 if ready else 503)

    async def version(self) -> Response:
        """Versions."""
        return _json(forms.Version(software=__version__, wire=f"{wire.MAJOR}.{wire.MINOR}"))

    async def bundle(self) -> Response:
        """Hash and manifest."""
        return _json(self._bundle)

    async def status(self) -> Response:
        """The engine's STATUS, and the gateway's counters."""
        header, status = await self._fresh_status()
        fields = {name: getattr(status, name) for name in status.__struct_fields__}
        gateway = {**self._link.counters, **self._predictions.counters}
        ready = status.state == "ready" and self._predictions.ready.is_set()
        return _json(forms.ServiceStatus(ready=ready, epoch=header.epoch, gateway=gateway, **fields))

    async def metrics(self, _request: Request) -> Response:
        """What the engine published last, for Prometheus; nothing is asked of the engine."""
        sensors = gpu_gauges(self._gpu.read() if self._gpu is not None else None)
        counted = {**self._link.counters, **self._predictions.counters}
        page = render(self._link.metrics, gateway=counted, gauges=sensors)
        return Response(page, media_type=CONTENT_TYPE)

    async def stop_all(self, request: Request) -> Response:
        """Emergency stop of every session."""
        return await self._ask(await self._json(request, wire.Stop), expect=wire.Accepted)

    async def predict(self, request: Request) -> Response:
        """Stateless prediction."""
        return _json(await self._predictions.predict(await self._json(request, Predict)))

    # --- the session ------------------------------------------------------------------------------------------------------

    async def open(self, request: Request) -> Response:
        """OPEN."""
        asked = await self._json(request, wire.Open)
        header, opened = await self._link.ask(asked, expect=wire.Opened)
        self._remember(header.epoch, header.session, asked.rois)
        found = forms.Session(
            session=header.session,
            epoch=header.epoch,
            roi_hash=str(header.roi_hash),
            known=opened.known,
            buffer_frames=opened.buffer_frames,
            interpolated=opened.interpolated,
        )
        return _json(found, status=201)

    async def describe(self, session: int) -> Response:
        """DESCRIBE."""
        return await self._ask(wire.Describe(), expect=wire.Description, session=session)

    async def close(self, session: int) -> Response:
        """CLOSE."""
        return await self._ask(wire.Close(), expect=wire.Closed, session=session)

    async def frames(self, request: Request, session: int) -> Response:
        """FRAMEs, then a PING: its PONG comes after every refusal."""
        data = await self._bytes(request)
        # Decoding a body of many frames must not hold up the WebSockets and heartbeats of others.
        frames = await asyncio.to_thread(lambda: list(read_frames(request, data)))
        _session(session)
        refused: list[forms.RefusedFrame] = []
        with self._link.converse() as talk:
            for start in range(0, len(frames), _FRAMES_AT_ONCE):
                batch = frames[start : start + _FRAMES_AT_ONCE]
                now = time.perf_counter_ns()
                talk.send_bytes([one.encode(session=session, request=talk.request, sent_ns=now) for one in batch])
                talk.send(wire.Ping())
                refused += await self._refusals(talk.receive)
                if refused and refused[0].code == ErrorCode.SESSION_LOST:
                    raise HttpRefusalError(refused[0].code, refused[0].message)
        accepted = len(frames) - len(refused)
        if not refused:
            return _json(forms.FramesTaken(accepted=accepted))
        first = {"code": refused[0].code, "message": refused[0].message}
        body = forms.FramesRefused(error=first, accepted=accepted, refused=refused)
        return _json(body, status=STATUS.get(refused[0].code, 502))

    async def _refusals(self, receive: Callable[[float], Awaitable[wire.Message]]) -> list[forms.RefusedFrame]:
        found: list[forms.RefusedFrame] = []
        while True:
            message = await receive(self._settings.request_timeout_s)
            if not isinstance(message.body, wire.Error):
                return found
            if message.body.refused != wire.MessageType.FRAME:
                raise HttpRefusalError(message.body.code, message.body.message)
            found.append(
                forms.RefusedFrame(frame=message.header.frame, code=message.body.code, message=message.body.message)
            )

    async def stimulation(self, request: Request, session: int) -> Response:
        """STIMULATION."""
        return await self._ask(
            await self._json(request, wire.Stimulation), expect=wire.Accepted, session=session, status=202
        )

    async def acquisition(self, request: Request, session: int) -> Response:
        """ACQUISITION."""
        return await self._ask(
            await self._json(request, wire.Acquisition), expect=wire.Accepted, session=session, status=202
        )

    # --- questions --------------------------------------------------------------------------------------------------------

    async def onset(self, request: Request, session: int, wait_s: Wait = 0.0, detail: Detail = "forecast") -> Response:
        """ONSET, and with ``wait_s`` its ANSWER."""
        asked = await self._json(request, wire.Onset)
        _session(session)
        with self._link.converse() as talk:
            talk.send(asked, session=session)
            _, accepted = expected(await talk.receive(self._settings.request_timeout_s), wire.Accepted)
            if wait_s == 0:
                return _json(accepted, status=202)
            try:
                header, answer = expected(await talk.receive(wait_s), wire.Answer)
            except HttpRefusalError as error:
                if error.code != "engine_timeout":
                    raise
                return _json(accepted, status=202)
        return _json(forms.prediction(header, answer, roi_ids=await self._roi_ids(session), detail=detail))

    async def best(self, request: Request, session: int) -> Response:
        """A hypothetical ONSET of several stimuli, and its ANSWER as a ranked list."""
        asked = await self._json(request, forms.BestStimulus)
        _session(session)
        onset = wire.Onset(
            stimuli=asked.stimuli,
            rois=asked.rois,
            onset_frame=asked.onset_frame,
            onset_s=asked.onset_s,
            within_s=asked.within_s,
            detail="forecast" if asked.by == "area" else asked.detail,
            hypothetical=True,
        )
        with self._link.converse() as talk:
            talk.send(onset, session=session)
            expected(await talk.receive(self._settings.request_timeout_s), wire.Accepted)
            header, answer = expected(await talk.receive(_LONGEST_WAIT_S), wire.Answer)
        return _json(forms.ranked(header, answer, by=asked.by, rate_hz=self._rate_hz))

    async def standing(self, request: Request, session: int) -> Response:
        """STANDING."""
        return await self._ask(
            await self._json(request, wire.Standing), expect=wire.Accepted, session=session, status=201
        )

    async def clear_standing(self, session: int, question: int) -> Response:
        """CLEAR_STANDING."""
        if not 0 < question < 1 << 63:
            raise HttpRefusalError(ErrorCode.UNKNOWN_QUESTION, f"question {question} is not there; ids are positive")
        return await self._ask(wire.ClearStanding(question=question), expect=wire.Accepted, session=session)

    async def prediction(
        self, request: Request, session: int, question: Question = 0, detail: Detail = "forecast"
    ) -> Response:
        """POLL; as JSON, or as the wire's bytes where those are accepted."""
        _session(session)
        header, answer = await self._link.ask(wire.Poll(question=question), expect=wire.Answer, session=session)
        if BINARY in request.headers.get("accept", ""):
            data = answer.encode(session=header.session, epoch=header.epoch, sent_ns=header.sent_ns)
            return Response(data, media_type=BINARY)
        return _json(forms.prediction(header, answer, roi_ids=await self._roi_ids(session), detail=detail))

    # --- the trigger ------------------------------------------------------------------------------------------------------

    async def rules(self, session: int) -> Response:
        """LIST_RULES."""
        return await self._ask(wire.ListRules(), expect=wire.Rules, session=session)

    async def set_rule(self, request: Request, session: int) -> Response:
        """SET_RULE."""
        rule = await self._json(request, wire.Rule)
        return await self._ask(wire.SetRule(rule=rule), expect=wire.Accepted, session=session)

    async def remove_rule(self, session: int, rule: RuleName) -> Response:
        """REMOVE_RULE."""
        return await self._ask(wire.RemoveRule(rule=rule), expect=wire.Accepted, session=session)

    async def trigger(self, session: int) -> Response:
        """GET_TRIGGER."""
        return await self._ask(wire.GetTrigger(), expect=wire.Trigger, session=session)

    async def arm(self, request: Request, session: int) -> Response:
        """ARM."""
        return await self._ask(await self._json(request, wire.Arm), expect=wire.Trigger, session=session)

    async def heartbeat(self, request: Request, session: int) -> Response:
        """HEARTBEAT."""
        return await self._ask(await self._json(request, wire.Heartbeat), expect=wire.Trigger, session=session)

    async def disarm(self, request: Request, session: int) -> Response:
        """DISARM."""
        return await self._ask(await self._json(request, wire.Disarm), expect=wire.Trigger, session=session)

    async def stop(self, request: Request, session: int) -> Response:
        """STOP."""
        return await self._ask(await self._json(request, wire.Stop), expect=wire.Accepted, session=_session(session))

    # --- what they share --------------------------------------------------------------------------------------------------

    async def _ask(
        self, body: wire.Body, *, expect: type[Body], session: int | None = None, status: int = 200
    ) -> Response:
        number = 0 if session is None else _session(session)
        return _json((await self._link.ask(body, expect=expect, session=number))[1], status=status)

    async def _bytes(self, request: Request) -> bytes:
        return await read_bytes(
            request, limit=self._settings.max_body_bytes, timeout_s=self._settings.request_timeout_s
        )

    async def _json(self, request: Request, kind: type[Body]) -> Body:
        return read_json(request, await self._bytes(request), kind)

    async def _fresh_status(self) -> tuple[wire.Header, wire.Status]:
        async with self._status_lock:
            known = self._status
            if known is not None and time.monotonic() - known[0] < _STATUS_AGE_S and known[1].epoch == self._link.epoch:
                return known[1], known[2]
            header, status = await self._link.ask(wire.GetStatus(), expect=wire.Status)
            self._status = (time.monotonic(), header, status)
            return header, status

    async def _roi_ids(self, session: int) -> list[str] | None:
        key = (self._link.epoch, session)
        if key not in self._rois:
            try:
                header, found = await self._link.ask(wire.Describe(), expect=wire.Description, session=session)
            except HttpRefusalError:
                return None
            self._remember(header.epoch, session, found.rois)
            return found.rois
        return self._rois[key]

    def _remember(self, epoch: int, session: int, rois: list[str]) -> None:
        while len(self._rois) >= _SESSIONS_REMEMBERED:
            del self._rois[next(iter(self._rois))]
        self._rois[epoch, session] = rois


def build(api: Api, *, settings: Settings) -> FastAPI:
    """The application: the operations, the WebSocket, the errors and the OpenAPI page."""
    app = FastAPI(
        title="quantformer", version=__version__, openapi_url="/v1/openapi.json", docs_url=None, redoc_url=None
    )
    for one in OPERATIONS:
        about = openapi_of(one)
        app.add_api_route(
            one.path,
            getattr(api, one.handler),
            methods=[one.method],
            summary=one.summary,
            operation_id=one.handler,
            status_code=one.status,
            response_model=None,
            responses={int(status): entry for status, entry in about.pop("responses").items()},
            openapi_extra=about,
        )

    async def stream(socket: WebSocket, session: Watched = None, detail: Detail = "forecast") -> None:
        try:
            if session is not None:
                await api.describe(session)
        except (HttpRefusalError, WireError) as error:
            await socket.send_denial_response(refusal_response(error.code, str(error)))
            return
        await api.live.serve(socket, session=session, detail=detail)

    app.add_api_websocket_route("/v1/stream", stream)
    app.add_route("/metrics", api.metrics, include_in_schema=False)
    app.add_middleware(Door, settings=settings)
    _add_errors(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend the page
    return app


def _add_errors(app: FastAPI) -> None:
    async def refused(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HttpRefusalError)
        return error.response()

    async def unencodable(_request: Request, error: Exception) -> Response:
        assert isinstance(error, WireError)
        return refusal_response(error.code, str(error))

    async def invalid(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return refusal_response(ErrorCode.BAD_PAYLOAD, _found(error.errors()))

    async def elsewhere(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, f"http_{error.status_code}")
        text = f"{request.method} {request.url.path[:100]}: {error.detail}; see /v1/openapi.json"
        return refusal_response(code, text, status=error.status_code)

    async def unforeseen(request: Request, error: Exception) -> Response:
        _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return refusal_response(
            ErrorCode.INTERNAL, f"an error that nobody foresaw ({type(error).__name__}); see the log"
        )

    async def invalid_stream(socket: WebSocket, error: Exception) -> None:
        assert isinstance(error, WebSocketRequestValidationError)
        await socket.send_denial_response(refusal_response(ErrorCode.BAD_PAYLOAD, _found(error.errors())))

    handlers: Iterable[tuple[type[Exception], Any]] = [
        (WebSocketRequestValidationError, invalid_stream),
        (HttpRefusalError, refused),
        (WireError, unencodable),
        (RequestValidationError, invalid),
        (HTTPException, elsewhere),
        (Exception, unforeseen),
    ]
    for kind, handler in handlers:
        app.add_exception_handler(kind, handler)


def _found(errors: Iterable[Any]) -> str:
    """What was wrong with the path or the query."""
    lines = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}, found {one['input']!r}" for one in errors)
    return "; ".join(lines)[:500]


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        page = get_openapi(
            title=app.title,
            version=app.version,
            description="Sessions, frames, predictions and the trigger. `/v1/stream` is a WebSocket: docs/rest.md.",
            routes=app.routes,
        )
        schemas = page.setdefault("components", {}).setdefault("schemas", {})
        schemas.update(components())
        page["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        page["security"] = [{"token": []}, {}]
        app.openapi_schema = page
    return app.openapi_schema


def _session(session: int) -> int:
    """A session's id from a path.

    Raises:
        HttpRefusalError: it cannot be one. 0 means every session to some messages, and must not be reached by accident.
    """
    if not 0 < session < 1 << 64:
        raise HttpRefusalError(
            ErrorCode.SESSION_LOST, f"session {session} is not there; ids are positive: open a session"
        )
    return session


def _json(body: msgspec.Struct, *, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status_code=status, media_type=JSON)
