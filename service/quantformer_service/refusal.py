"""A request or frame that the engine turns down: a code for programs, a message for people."""

from __future__ import annotations

from quantformer_client.wire import ErrorCode


class Refusal(Exception):
    """Becomes an ERROR to the sender and a count; it changes nothing else."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
