"""The bench's client over HTTP: frames by POST; answers from the WebSocket, or by POST with a wait and by polls (REST)."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import msgspec

from quantformer_cli.benchmark.load import FLOW, GRACE_S, PATIENCE_S, POLL_S, Load, Questioner, Stamps
from quantformer_cli.benchmark.worker import Desk
from quantformer_client import AsyncRest
from quantformer_client.errors import ClientError, ErrorCode, ServiceError

_KINDS = {"announced": 1, "now": 2, "standing": 3}
_STANDING = _KINDS["standing"]
#: asyncio's timer counts whole ms; the rest of a wait is spent turning the loop.
_TURN_S = 2e-3
#: An onset's POST waits for its answer so long, in s; the service allows 15.
_WAIT_S = 15.0


class _StampsNs(msgspec.Struct, frozen=True):
    received: int
    window_ready: int
    submitted: int
    done: int
    published: int


class _Heard(msgspec.Struct, frozen=True):
    """What is read of a prediction, or of another message of the stream."""

    type: str = ""
    asked: str = ""
    onset_frame: int = 0
    last_frame: int = 0
    late: bool = False
    stamps_ns: _StampsNs | None = None


def run_http(load: Load, desk: Desk, stamps: Stamps) -> dict[str, Any]:
    """One client's whole run."""
    return asyncio.run(_HttpClient(load, stamps).run(desk))


class _HttpClient:
    """Everything in one event loop; frames one after the other, questions beside them."""

    def __init__(self, load: Load, stamps: Stamps) -> None:
        self._load, self._stamps, self._ask = load, stamps, Questioner(load)
        self._rest = AsyncRest(host=load.host, port=load.http_port, token=load.token, timeout_s=PATIENCE_S)
        self._session = self._question = 0
        self._errors: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._socket: Any = None
        self._heard_now = 0

    async def run(self, desk: Desk) -> dict[str, Any]:
        """Fill the window, warm up, wait for the word, send the paced frames, hear the last answers."""
        load, stamps = self._load, self._stamps
        listening: asyncio.Task[None] | None = None
        try:
            manifest = (await self._rest.bundle())["manifest"]
            self._session = int((await self._rest.open(self._ask.opening()))["session"])
            if load.transport == "websocket":
                listening = asyncio.create_task(self._listen(await self._connect()))
            signal = manifest["signal"]
            filled = self._ask.fill(baseline_frames=signal["baseline_frames"], rate_hz=signal["rate_hz"])
            # The gateway reads at most some MiB of body at once, however wide a frame is.
            at_once = max(1, min(FLOW, (2 << 20) // (4 * len(load.rois) + 80)))
            for first in range(0, filled, at_once):
                batch = [self._ask.frame(number) for number in range(first, min(first + at_once, filled))]
                await self._rest.frames(self._session, batch)
            await self._warm_up()
            stamps.first = filled
            await asyncio.to_thread(desk.ready)
            stamps.begin(time.perf_counter_ns())
            polling = self._ask.stands and load.transport == "rest"
            poller = asyncio.create_task(self._poll()) if polling else None
            for frame in range(load.frames):
                await self._until(stamps.due_ns(frame))
                stamps.sent_ns[frame] = time.perf_counter_ns()
                await self._guarded(self._rest.frames(self._session, [self._ask.frame(filled + frame)]))
                last = self._ask.probed(frame)
                if last is not None:
                    stamps.probed.append(last)
                    self._spawn(self._announce(filled + last + 1))
            await self._finish()
            if poller is not None:
                poller.cancel()
            for task in self._tasks:
                task.cancel()
            closed = await self._rest.close_session(self._session)
            return {"filled": filled, "counters": closed["counters"], "refused": dict(self._errors)}
        finally:
            if listening is not None:
                listening.cancel()
            if self._socket is not None:
                await self._socket.close()
            await self._rest.close()

    async def _connect(self) -> Any:
        from websockets.asyncio.client import connect

        load = self._load
        host = f"[{load.host}]" if ":" in load.host else load.host
        detail = "probability" if load.questions == "none" else load.detail
        query = f"session={self._session}&detail={detail}" + (f"&token={load.token}" if load.token else "")
        address = f"ws://{host}:{load.http_port}/v1/stream?{query}"
        self._socket = await connect(address, max_size=1 << 30, proxy=None, compression=None)
        return self._socket

    async def _listen(self, socket: Any) -> None:
        async for text in socket:
            self._note(msgspec.json.decode(text, type=_Heard), time.perf_counter_ns())

    def _note(self, heard: _Heard, got_ns: int) -> None:
        if heard.type != "prediction" or heard.stamps_ns is None:
            return
        self._heard_now += heard.asked == "now"
        ns = msgspec.structs.astuple(heard.stamps_ns)
        self._stamps.add(
            asked=_KINDS[heard.asked],
            onset_frame=heard.onset_frame,
            last_frame=heard.last_frame,
            late=heard.late,
            got_ns=got_ns,
            stamps=ns,
        )

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: Any) -> None:
        try:
            await work
        except ServiceError as error:
            self._errors[error.code] += 1
        except ClientError as error:
            self._errors[type(error).__name__] += 1

    async def _announce(self, number: int | None) -> None:
        wait_s = 0.0 if self._load.transport == "websocket" else _WAIT_S
        found = await self._rest.onset(self._session, self._ask.onset(number), wait_s=wait_s, detail=self._load.detail)
        if wait_s:
            self._note(msgspec.convert(found, _Heard), time.perf_counter_ns())

    async def _warm_up(self) -> None:
        end = time.monotonic() + PATIENCE_S
        if self._ask.announces:
            for count in range(1, 4):
                await self._announce(None)
                while self._heard_now < count:
                    await self._nap(end)
        if self._ask.stands:
            self._question = int((await self._rest.standing(self._session, self._ask.standing()))["question"])
            while not self._stamps.rows:
                if self._load.transport == "rest":
                    await self._poll_once()
                await self._nap(end)

    async def _nap(self, end: float) -> None:
        if time.monotonic() > end:
            raise TimeoutError(f"no answer within {PATIENCE_S:g} s")
        await asyncio.sleep(0.01)

    async def _poll(self) -> None:
        while True:
            await self._guarded(self._poll_once())
            await asyncio.sleep(POLL_S)

    async def _poll_once(self) -> None:
        try:
            found = await self._rest.prediction(self._session, question=self._question, detail=self._load.detail)
        except ServiceError as error:
            if error.code == ErrorCode.NO_ANSWER_YET:
                return
            raise
        self._note(msgspec.convert(found, _Heard), time.perf_counter_ns())

    async def _until(self, moment_ns: int) -> None:
        while (left_s := (moment_ns - time.perf_counter_ns()) / 1e9) > 0:
            await asyncio.sleep(max(0.0, left_s - _TURN_S))

    async def _finish(self) -> None:
        stamps, last = self._stamps, self._load.frames - 1
        kinds = [(1, stamps.probed[-1])] if stamps.probed else []
        kinds += [(_STANDING, last)] if self._ask.stands else []
        end = time.monotonic() + GRACE_S
        while time.monotonic() < end and not all(stamps.answered(asked=asked, frame=frame) for asked, frame in kinds):
            await asyncio.sleep(0.005)
        stamps.ended_ns = time.perf_counter_ns()
