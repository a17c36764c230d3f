"""Refusals over HTTP: each code of the wire, and the gateway's own, with its status and its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec
from starlette.responses import Response

from quantformer_client.errors import ErrorCode

#: Status of every code that the engine or the wire gives.
STATUS: Mapping[str, int] = MappingProxyType(
    {
        ErrorCode.BAD_MAGIC: 400,
        ErrorCode.UNSUPPORTED_VERSION: 400,
        ErrorCode.UNKNOWN_TYPE: 400,
        ErrorCode.TRUNCATED: 400,
        ErrorCode.LENGTH_MISMATCH: 400,
        ErrorCode.WRONG_FORMAT: 400,
        ErrorCode.UNEXPECTED: 400,
        ErrorCode.UNAUTHORIZED: 401,
        ErrorCode.NO_SESSION: 404,
        ErrorCode.SESSION_LOST: 404,
        ErrorCode.UNKNOWN_QUESTION: 404,
        ErrorCode.NO_ANSWER_YET: 404,
        ErrorCode.UNKNOWN_RULE: 404,
        ErrorCode.NOT_ACQUIRING: 409,
        ErrorCode.DUPLICATE_FRAME: 409,
        ErrorCode.FRAME_TOO_OLD: 409,
        ErrorCode.WINDOW_NOT_READY: 409,
        ErrorCode.ONSET_BEFORE_BUFFER: 409,
        ErrorCode.STOPPED: 409,
        ErrorCode.NOT_ARMED: 409,
        ErrorCode.NOT_RECORDING: 409,
        ErrorCode.OVERSIZED: 413,
        ErrorCode.BAD_PAYLOAD: 422,
        ErrorCode.BAD_SESSION: 422,
        ErrorCode.UNKNOWN_NEURON: 422,
        ErrorCode.WRONG_NEURON_COUNT: 422,
        ErrorCode.WRONG_ROI_MAP: 422,
        ErrorCode.MISSING_NEUROPIL: 422,
        ErrorCode.BAD_TIME: 422,
        ErrorCode.ONSET_TOO_FAR: 422,
        ErrorCode.UNKNOWN_STIMULUS: 422,
        ErrorCode.UNKNOWN_ROI: 422,
        ErrorCode.BAD_QUESTION: 422,
        ErrorCode.BAD_RULE: 422,
        ErrorCode.TOO_MANY_SESSIONS: 429,
        ErrorCode.QUEUE_FULL: 429,
        ErrorCode.INFERENCE_FAILED: 500,
        ErrorCode.INTERNAL: 500,
        ErrorCode.NOT_READY: 503,
        ErrorCode.STOPPING: 503,
        # The gateway's own.
        "bad_json": 400,
        "foreign_origin": 403,
        "not_found": 404,
        "method_not_allowed": 405,
        "request_timeout": 408,
        "unsupported_media_type": 415,
        "too_many_rows": 422,
        "busy": 429,
        "engine_unavailable": 503,
        "engine_timeout": 504,
        "predict_failed": 500,
    }
)
#: Seconds after which it makes sense to ask again, for the statuses that pass by themselves.
_RETRY_AFTER = {429: "1", 503: "1"}


class RefusalBody(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request was refused: ``code`` for programs, ``message`` for people."""

    code: str
    message: str


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON of every error."""

    error: RefusalBody


class HttpRefusalError(Exception):
    """A request that cannot be served; ``code`` decides the status."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message

    def response(self) -> Response:
        """The answer."""
        return refusal_response(self.code, self.message)


def refusal_response(code: str, message: str, *, status: int | None = None) -> Response:
    """The typed JSON of a refusal. A code of a newer engine, without a status here, is a 502."""
    number = STATUS.get(code, 502) if status is None else status
    headers = {}
    if number in _RETRY_AFTER:
        headers["retry-after"] = _RETRY_AFTER[number]
    if number == 401:
        headers["www-authenticate"] = "Bearer"
    body = msgspec.json.encode(Refused(error=RefusalBody(code=code, message=message)))
    return Response(body, status_code=number, media_type="application/json", headers=headers)
