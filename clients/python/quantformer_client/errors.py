"""Every error that the client raises on purpose.

::

    ClientError
    ├── WireError                bytes that are not a message of this protocol
    ├── ServiceError             the engine refused a request; `code` says why
    │   └── SessionLostError     the engine restarted or closed the session: open a new one
    ├── UnreachableError         nothing answers at that address
    └── AnswerTimeoutError       no answer within the time that the caller allowed

A message says what was found, what was expected and what to do about it.
"""

from __future__ import annotations

from enum import StrEnum


class ErrorCode(StrEnum):
    """Why a message or a request was refused; the text of `ERROR.code` on the wire."""

    # The bytes themselves.
    BAD_MAGIC = "bad_magic"
    UNSUPPORTED_VERSION = "unsupported_version"
    UNKNOWN_TYPE = "unknown_type"
    TRUNCATED = "truncated"
    LENGTH_MISMATCH = "length_mismatch"
    OVERSIZED = "oversized"
    WRONG_FORMAT = "wrong_format"
    BAD_PAYLOAD = "bad_payload"
    # The connection.
    UNAUTHORIZED = "unauthorized"
    NOT_READY = "not_ready"
    UNEXPECTED = "unexpected"
    STOPPING = "stopping"
    # The session.
    NO_SESSION = "no_session"
    SESSION_LOST = "session_lost"
    TOO_MANY_SESSIONS = "too_many_sessions"
    BAD_SESSION = "bad_session"
    UNKNOWN_NEURON = "unknown_neuron"
    NOT_ACQUIRING = "not_acquiring"
    # A frame.
    WRONG_NEURON_COUNT = "wrong_neuron_count"
    WRONG_ROI_MAP = "wrong_roi_map"
    MISSING_NEUROPIL = "missing_neuropil"
    DUPLICATE_FRAME = "duplicate_frame"
    FRAME_TOO_OLD = "frame_too_old"
    BAD_TIME = "bad_time"
    # A question.
    ONSET_BEFORE_BUFFER = "onset_before_buffer"
    ONSET_TOO_FAR = "onset_too_far"
    WINDOW_NOT_READY = "window_not_ready"
    UNKNOWN_STIMULUS = "unknown_stimulus"
    UNKNOWN_ROI = "unknown_roi"
    BAD_QUESTION = "bad_question"
    QUEUE_FULL = "queue_full"
    UNKNOWN_QUESTION = "unknown_question"
    NO_ANSWER_YET = "no_answer_yet"
    # The trigger.
    BAD_RULE = "bad_rule"
    UNKNOWN_RULE = "unknown_rule"
    STOPPED = "stopped"
    NOT_ARMED = "not_armed"
    NOT_RECORDING = "not_recording"
    # The engine itself.
    INFERENCE_FAILED = "inference_failed"
    INTERNAL = "internal"


class ClientError(Exception):
    """Root of the tree; `exit_code` is what the command line ends with."""

    exit_code = 1


class WireError(ClientError):
    """Bytes that are not a message of this protocol; `code` says in which way."""

    exit_code = 3

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class ServiceError(ClientError):
    """The engine refused a request. `code` is an `ErrorCode`, or a newer engine's text; `request` is the request's id."""

    def __init__(self, code: str, message: str, *, request: int = 0) -> None:
        super().__init__(f"{message} [{code}]")
        self.code = code
        self.request = request


class SessionLostError(ServiceError):
    """The engine does not know this session: it restarted, or the session was closed. Open a new one."""


class UnreachableError(ClientError):
    """Nothing answers at that address."""

    exit_code = 4


class AnswerTimeoutError(ClientError):
    """No answer came within the time that the caller allowed."""
