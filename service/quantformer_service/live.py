"""The WebSocket of predictions and decisions: a bounded queue a client, oldest dropped first, counted and told."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from quantformer_client import wire
from quantformer_client.errors import WireError
from quantformer_service import forms
from quantformer_service.engine_link import EngineLink

_log = logging.getLogger(__name__)
RoiIds = Callable[[int], Awaitable[list[str] | None]]
_ENGINE_LOST = "the engine ended, and with it every session; open a new one when /v1/ready says so"


class Published:
    """One published message, made JSON at most once for all clients that want the same detail."""

    def __init__(self, header: wire.Header | None, data: bytes) -> None:
        self.header, self._data = header, data
        self._texts: dict[forms.Detail, str] = {}

    def concerns(self, session: int | None) -> bool:
        """Whether a client that watches ``session`` (None: all) is to see it."""
        return session is None or self.header is None or self.header.session in (0, session)

    async def text(self, detail: forms.Detail, roi_ids: RoiIds) -> str:
        """The JSON."""
        if detail not in self._texts:
            self._texts[detail] = msgspec.json.encode(await self._form(detail, roi_ids)).decode()
        return self._texts[detail]

    async def _form(self, detail: forms.Detail, roi_ids: RoiIds) -> msgspec.Struct:
        if self.header is None:
            return forms.Lost(session=None, reason=_ENGINE_LOST)
        body, head = wire.decode(self._data, header=self.header).body, self.header
        if isinstance(body, wire.Answer):
            return forms.prediction(head, body, roi_ids=await roi_ids(head.session), detail=detail)
        if isinstance(body, wire.Decision):
            return forms.DecisionMade(session=head.session, epoch=head.epoch, decision=body)
        if isinstance(body, wire.Trigger):
            return forms.TriggerChanged(session=head.session, epoch=head.epoch, trigger=body)
        reason = body.reason if isinstance(body, wire.SessionLost | wire.Bye) else type(body).__name__
        return forms.Lost(session=head.session or None, reason=reason)


class LiveClient:
    """One WebSocket: a queue of at most ``room`` messages between the engine's pace and the client's."""

    def __init__(
        self, socket: WebSocket, *, room: int, session: int | None, detail: forms.Detail, roi_ids: RoiIds
    ) -> None:
        self._socket, self._session, self._detail, self._roi_ids = socket, session, detail, roi_ids
        self._queue: deque[Published | forms.Complaint] = deque()
        self._room = room
        self._arrived = asyncio.Event()
        self._dropped = self._total = 0

    def offer(self, item: Published | forms.Complaint) -> None:
        """Queue a message; the oldest one goes when there is no room."""
        if isinstance(item, Published) and not item.concerns(self._session):
            return
        if len(self._queue) >= self._room:
            self._queue.popleft()
            self._dropped += 1
            self._total += 1
        self._queue.append(item)
        self._arrived.set()

    async def run(self) -> None:
        """Send until the client leaves."""
        sending = asyncio.create_task(self._send())
        try:
            while True:
                message = await self._socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                found = f"{len(message.get('text') or message.get('bytes') or b'')} characters"
                self.offer(forms.Complaint(code="unexpected", message=f"found {found}; this stream takes no messages"))
        except (WebSocketDisconnect, RuntimeError):
            return
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
                await sending

    async def _send(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._queue:
                item = self._queue.popleft()
                if self._dropped:
                    note = forms.Dropped(count=self._dropped, total=self._total)
                    self._dropped = 0
                    await self._socket.send_text(msgspec.json.encode(note).decode())
                try:
                    text = (
                        await item.text(self._detail, self._roi_ids)
                        if isinstance(item, Published)
                        else msgspec.json.encode(item).decode()
                    )
                except WireError as error:
                    _log.error("the engine published bytes that are no message: %s", error)
                    continue
                await self._socket.send_text(text)


class Live:
    """Every WebSocket client, and what they are all told."""

    def __init__(self, link: EngineLink, *, room: int, roi_ids: RoiIds) -> None:
        self._link, self._room, self._roi_ids = link, room, roi_ids
        self._clients: set[LiveClient] = set()
        self._end: Callable[[], Any] | None = None

    async def serve(self, socket: WebSocket, *, session: int | None, detail: forms.Detail) -> None:
        """Serve one client until it leaves."""
        await socket.accept()
        client = LiveClient(socket, room=self._room, session=session, detail=detail, roi_ids=self._roi_ids)
        if not self._clients:
            self._end = self._link.listen(self._tell)
        self._clients.add(client)
        try:
            await client.run()
        finally:
            self._clients.discard(client)
            if not self._clients and self._end is not None:
                self._end()

    def _tell(self, header: wire.Header | None, data: bytes) -> None:
        published = Published(header, data)
        for client in self._clients:
            client.offer(published)
