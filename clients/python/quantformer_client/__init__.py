"""The light client of quantformer: numpy, pyzmq, httpx and msgspec, and nothing else.

::

    with Microscope(subject="mouse-7", rois=ids, rate_hz=30.0) as scope:
        scope.frame(number=0, device_s=0.0, fluorescence=values)

Names are imported when first used, so that a program pays only for the transport that it uses.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantformer_client.clock import ClockOffset
    from quantformer_client.connection import Connection
    from quantformer_client.controller import Best, Controller
    from quantformer_client.errors import (
        AnswerTimeoutError,
        ClientError,
        ErrorCode,
        ServiceError,
        SessionLostError,
        UnreachableError,
        WireError,
    )
    from quantformer_client.microscope import Microscope
    from quantformer_client.player import Disturbance, Played, Player, Presentation
    from quantformer_client.rest import AsyncRest, Rest
    from quantformer_client.transport import Subscriber, TcpTransport, ZmqTransport
    from quantformer_client.watch import Watch
    from quantformer_client.wire import Answer, Decision, Rule, SignalDeclaration, Stimulus

_HOME = {
    "Best": "controller",
    "ClockOffset": "clock",
    "Connection": "connection",
    "Controller": "controller",
    "Watch": "watch",
    "AnswerTimeoutError": "errors",
    "ClientError": "errors",
    "ErrorCode": "errors",
    "ServiceError": "errors",
    "SessionLostError": "errors",
    "UnreachableError": "errors",
    "WireError": "errors",
    "Microscope": "microscope",
    "Disturbance": "player",
    "Played": "player",
    "Player": "player",
    "Presentation": "player",
    "AsyncRest": "rest",
    "Rest": "rest",
    "Subscriber": "transport",
    "TcpTransport": "transport",
    "ZmqTransport": "transport",
    "Answer": "wire",
    "Decision": "wire",
    "Rule": "wire",
    "SignalDeclaration": "wire",
    "Stimulus": "wire",
}

__all__ = [
    "Answer",
    "AnswerTimeoutError",
    "AsyncRest",
    "Best",
    "ClientError",
    "ClockOffset",
    "Connection",
    "Controller",
    "Decision",
    "Disturbance",
    "ErrorCode",
    "Microscope",
    "Played",
    "Player",
    "Presentation",
    "Rest",
    "Rule",
    "ServiceError",
    "SessionLostError",
    "SignalDeclaration",
    "Stimulus",
    "Subscriber",
    "TcpTransport",
    "UnreachableError",
    "Watch",
    "WireError",
    "ZmqTransport",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
