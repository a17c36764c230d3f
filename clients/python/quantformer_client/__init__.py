"""The light client of quantformer: numpy, pyzmq, httpx and msgspec, and nothing else.

Names are imported when first used, so that a program pays only for the transport that it uses.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantformer_client.errors import (
        AnswerTimeoutError,
        ClientError,
        ErrorCode,
        ServiceError,
        SessionLostError,
        UnreachableError,
        WireError,
    )

_HOME = {
    "AnswerTimeoutError": "errors",
    "ClientError": "errors",
    "ErrorCode": "errors",
    "ServiceError": "errors",
    "SessionLostError": "errors",
    "UnreachableError": "errors",
    "WireError": "errors",
}

__all__ = [
    "AnswerTimeoutError",
    "ClientError",
    "ErrorCode",
    "ServiceError",
    "SessionLostError",
    "UnreachableError",
    "WireError",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
