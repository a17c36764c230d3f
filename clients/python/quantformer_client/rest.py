"""The REST interface, sync and async, with the same methods; every answer is the service's JSON as a dict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar

import httpx
import msgspec

from quantformer_client import wire
from quantformer_client.errors import AnswerTimeoutError, ErrorCode, ServiceError, SessionLostError, UnreachableError

Json = dict[str, Any]
R = TypeVar("R")
Detail = Literal["forecast", "probability"]


class _Api(ABC, Generic[R]):
    """Every operation, once; ``R`` is what sending gives: JSON, or something to await."""

    @abstractmethod
    def _send(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        content: bytes | None = None,
        query: Mapping[str, Any] | None = None,
        accept: Sequence[int] = (),
    ) -> R:
        """Send one request."""

    def health(self) -> R:
        """Whether the gateway lives."""
        return self._send("GET", "/v1/health")

    def ready(self) -> R:
        """Whether the engine answers; a service that is not ready is no error here: read ``ready``."""
        return self._send("GET", "/v1/ready", accept=(503,))

    def version(self) -> R:
        """Versions of the software, the wire and the interface."""
        return self._send("GET", "/v1/version")

    def bundle(self) -> R:
        """The manifest of the bundle that is served, and its hash."""
        return self._send("GET", "/v1/bundle")

    def status(self) -> R:
        """What the engine is doing, with its counters and sessions."""
        return self._send("GET", "/v1/status", accept=(503,))

    def open(self, session: wire.Open) -> R:
        """Open a session; ``session`` in the answer is its id."""
        return self._send("POST", "/v1/sessions", json=session)

    def describe(self, session: int) -> R:
        """A session: what was declared, and where it stands."""
        return self._send("GET", f"/v1/sessions/{session}")

    def close_session(self, session: int) -> R:
        """Close a session."""
        return self._send("DELETE", f"/v1/sessions/{session}")

    def frames(self, session: int, frames: Iterable[wire.Frame]) -> R:
        """Send frames, as the wire's bytes."""
        body = b"".join(wire.with_length(frame.encode(session=session)) for frame in frames)
        return self._send("POST", f"/v1/sessions/{session}/frames", content=body)

    def frames_json(self, session: int, frames: Iterable[Mapping[str, Any]]) -> R:
        """Send frames as JSON: ``number``, ``device_s``, ``fluorescence``, and ``neuropil``, ``motion`` where there are."""
        return self._send("POST", f"/v1/sessions/{session}/frames", json={"frames": list(frames)})

    def onset(self, session: int, onset: wire.Onset, *, wait_s: float = 0.0, detail: Detail = "forecast") -> R:
        """Ask about an onset; with ``wait_s`` the answer is the prediction, if it comes within that time."""
        query = {"wait_s": wait_s, "detail": detail} if wait_s else None
        return self._send("POST", f"/v1/sessions/{session}/onsets", json=onset, query=query)

    def best(
        self,
        session: int,
        stimuli: Sequence[wire.Stimulus],
        *,
        rois: Sequence[str] | None = None,
        by: Literal["probability", "area"] = "probability",
    ) -> R:
        """Which of ``stimuli`` would drive ``rois`` (None: all) most if it came now: ``ranking``, the best one first."""
        body = {"stimuli": list(stimuli), "rois": None if rois is None else list(rois), "by": by}
        return self._send("POST", f"/v1/sessions/{session}/best", json=body)

    def standing(self, session: int, question: wire.Standing) -> R:
        """Ask a standing question."""
        return self._send("POST", f"/v1/sessions/{session}/standing", json=question)

    def clear_standing(self, session: int, question: int) -> R:
        """End a standing question."""
        return self._send("DELETE", f"/v1/sessions/{session}/standing/{question}")

    def stimulation(self, session: int, delivered: wire.Stimulation) -> R:
        """Tell that light was delivered."""
        return self._send("POST", f"/v1/sessions/{session}/stimulations", json=delivered)

    def acquisition(self, session: int, event: Literal["start", "abort", "stop"]) -> R:
        """Tell that acquisition started, was aborted or stopped."""
        return self._send("POST", f"/v1/sessions/{session}/acquisition", json={"event": event})

    def prediction(self, session: int, *, question: int = 0, detail: Detail = "forecast") -> R:
        """The latest prediction, of one question or of any (0)."""
        query = {"question": question, "detail": detail}
        return self._send("GET", f"/v1/sessions/{session}/prediction", query=query)

    def rules(self, session: int) -> R:
        """The trigger's rules."""
        return self._send("GET", f"/v1/sessions/{session}/rules")

    def set_rule(self, session: int, rule: wire.Rule) -> R:
        """Add a rule, or replace the one of that name."""
        return self._send("POST", f"/v1/sessions/{session}/rules", json=rule)

    def remove_rule(self, session: int, name: str) -> R:
        """Remove a rule."""
        return self._send("DELETE", f"/v1/sessions/{session}/rules", query={"rule": name})

    def trigger(self, session: int) -> R:
        """The trigger's state."""
        return self._send("GET", f"/v1/sessions/{session}/trigger")

    def arm(self, session: int, *, lease_s: float = 2.0) -> R:
        """Arm the trigger; ``lease`` in the answer is what `heartbeat` renews."""
        return self._send("POST", f"/v1/sessions/{session}/trigger/arm", json={"lease_s": lease_s})

    def heartbeat(self, session: int, *, lease: int) -> R:
        """Renew the lease."""
        return self._send("POST", f"/v1/sessions/{session}/trigger/heartbeat", json={"lease": lease})

    def disarm(self, session: int) -> R:
        """Disarm the trigger."""
        return self._send("POST", f"/v1/sessions/{session}/trigger/disarm")

    def stop(self, session: int = 0, *, reason: str = "") -> R:
        """Emergency stop of one session, or of all (0)."""
        path = f"/v1/sessions/{session}/trigger/stop" if session else "/v1/stop"
        return self._send("POST", path, json={"reason": reason})

    def predict(
        self,
        *,
        neurons: Sequence[str],
        stimuli: Sequence[wire.Stimulus],
        fluorescence: Sequence[Sequence[float]],
        unknown: Literal["refuse", "mark"] = "refuse",
        detail: Detail = "forecast",
    ) -> R:
        """Predict without a session: ``fluorescence`` is corrected, one row of baseline frames a neuron."""
        body = {
            "neurons": list(neurons),
            "stimuli": list(stimuli),
            "fluorescence": [list(map(float, row)) for row in fluorescence],
            "unknown": unknown,
            "detail": detail,
        }
        return self._send("POST", "/v1/predict", json=body)


def _address(host: str, port: int) -> str:
    # A service that listens on every address is asked on this machine's own.
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _request(json: object, content: bytes | None) -> dict[str, Any]:
    if content is not None:
        return {"content": content, "headers": {"content-type": "application/octet-stream"}}
    if json is not None:
        return {"content": msgspec.json.encode(json), "headers": {"content-type": "application/json"}}
    return {}


def _read(response: httpx.Response, accept: Sequence[int]) -> Json:
    if response.is_success or response.status_code in accept:
        if not response.content:
            return {}
        found: Json = msgspec.json.decode(response.content)
        return found
    try:
        refused = msgspec.json.decode(response.content, type=dict[str, Any])["error"]
        code, message = str(refused["code"]), str(refused["message"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        code, message = f"http_{response.status_code}", response.text[:300] or response.reason_phrase
    raise (SessionLostError if code == ErrorCode.SESSION_LOST else ServiceError)(code, message)


def _unreachable(error: httpx.HTTPError, address: str) -> UnreachableError | AnswerTimeoutError:
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return AnswerTimeoutError(
            f"no answer from {address} in time ({type(error).__name__}); is the service overloaded?"
        )
    return UnreachableError(f"nothing answers at {address} ({error}); is 'quantformer serve' running?")


def _options(host: str, port: int, token: str, timeout_s: float) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    # The service is on this machine or in this laboratory: a proxy of the environment has no part in it.
    return {"base_url": _address(host, port), "headers": headers, "timeout": timeout_s, "trust_env": False}


class Rest(_Api[Json]):
    """A client that waits.

    Every method raises `ServiceError` (`SessionLostError` for an unknown session) where the service refuses,
    `UnreachableError` where nothing answers and `AnswerTimeoutError` where no answer comes in time.
    """

    def __init__(self, *, host: str = "127.0.0.1", port: int = 7410, token: str = "", timeout_s: float = 30.0) -> None:
        self._client = httpx.Client(**_options(host, port, token, timeout_s))

    def _send(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        content: bytes | None = None,
        query: Mapping[str, Any] | None = None,
        accept: Sequence[int] = (),
    ) -> Json:
        try:
            response = self._client.request(method, path, params=query, **_request(json, content))
        except httpx.HTTPError as error:
            raise _unreachable(error, str(self._client.base_url)) from None
        return _read(response, accept)

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncRest(_Api[Awaitable[Json]]):
    """The same methods, each to be awaited."""

    def __init__(self, *, host: str = "127.0.0.1", port: int = 7410, token: str = "", timeout_s: float = 30.0) -> None:
        self._client = httpx.AsyncClient(**_options(host, port, token, timeout_s))

    async def _send(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        content: bytes | None = None,
        query: Mapping[str, Any] | None = None,
        accept: Sequence[int] = (),
    ) -> Json:
        try:
            response = await self._client.request(method, path, params=query, **_request(json, content))
        except httpx.HTTPError as error:
            raise _unreachable(error, str(self._client.base_url)) from None
        return _read(response, accept)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
