"""What disturbs a service while it is measured, each in a process of its own that yields to the service (niceness 10)."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any, Literal

import msgspec

from quantformer_cli.benchmark.worker import Desk, work_as
from quantformer_client import AsyncRest, Connection, wire
from quantformer_client.errors import ClientError, ServiceError
from quantformer_client.transport import Subscriber

#: Requests under way at a time.
_FLOOD = 32
#: Connections of a churning client, spread over the phase.
CHURN = 1000
NICENESS = 10


class Disturbance(msgspec.Struct, frozen=True, kw_only=True):
    """The work; it lasts until the bench stops it, a ``churn`` of `CHURN` connections ``over_s`` seconds."""

    kind: Literal["gateway", "subscriber", "churn"]
    host: str
    http_port: int
    zmq_port: int
    pub_port: int
    token: str
    neuron: str
    stimulus: str
    baseline_frames: int
    over_s: float


def disturb(work: Disturbance, desk: Desk) -> dict[str, Any]:
    """Disturb; what was done, by name."""
    if hasattr(os, "nice"):
        # The load is the service's to bear; that its source shares the machine's cores with it is the bench's doing.
        os.nice(NICENESS)
    if work.kind == "gateway":
        return asyncio.run(_flood(work, desk))
    return _stall(work, desk) if work.kind == "subscriber" else _churn(work, desk)


async def _flood(work: Disturbance, desk: Desk) -> dict[str, Any]:
    """Status, bundle and stateless predictions as fast as they are answered; refusals count as answers."""
    rest = AsyncRest(host=work.host, port=work.http_port, token=work.token)
    counts = {"answered": 0, "refused": 0, "errors": 0}
    predict = {
        "neurons": [work.neuron],
        "stimuli": [wire.Stimulus(stimulus_id=work.stimulus)],
        "fluorescence": [[300.0 + step % 7 for step in range(work.baseline_frames)]],
        "unknown": "mark",
        "detail": "probability",
    }

    async def ask(number: int) -> None:
        turn = number
        while not desk.ended.is_set():
            turn += 1
            try:
                if turn % 3 == 0:
                    await rest.status()
                elif turn % 3 == 1:
                    await rest.bundle()
                else:
                    await rest.predict(**predict)  # type: ignore[arg-type]  # one dict of several types
                counts["answered"] += 1
            except ServiceError:
                counts["refused"] += 1
            except ClientError:
                counts["errors"] += 1

    await asyncio.to_thread(desk.ready)
    await asyncio.gather(*(ask(number) for number in range(_FLOOD)))
    await rest.close()
    return counts


def _stall(work: Disturbance, desk: Desk) -> dict[str, Any]:
    """Subscribe to every answer of every session, and never read one."""
    subscriber = Subscriber(host=work.host, port=work.pub_port)
    desk.ready()
    desk.ended.wait()
    subscriber.close()
    return {"subscribers": 1}


def _churn(work: Disturbance, desk: Desk) -> dict[str, Any]:
    """Connect, greet, disconnect, over and over."""
    counts = {"connections": 0, "errors": 0}
    desk.ready()
    start = time.monotonic()
    for number in range(CHURN):
        pause_s = start + number * work.over_s / CHURN - time.monotonic()
        if desk.ended.wait(max(0.0, pause_s)):
            break
        try:
            Connection(host=work.host, port=work.zmq_port, token=work.token, client="churn").close()
            counts["connections"] += 1
        except ClientError:
            counts["errors"] += 1
    desk.ended.wait()
    return counts


if __name__ == "__main__":
    work_as(Disturbance, disturb)
