"""What every HTTP request and WebSocket passes first: token, origin, host, and a place among those under way."""

from __future__ import annotations

import hmac
from ipaddress import ip_address
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from quantformer_service.http_errors import HttpRefusalError
from quantformer_service.settings import Settings

#: Requests and WebSockets under way at one time.
MOST_REQUESTS, MOST_SOCKETS = 128, 64
_OPEN_TO_ALL = frozenset({"/v1/health"})


class Door:
    """ASGI middleware. A web page of another site must not arm a laser: foreign origins are refused, and on loopback so
    are host names that are not this machine's (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self._app, self._token = app, settings.token.encode()
        self._hosts = {"localhost", "127.0.0.1", "[::1]", settings.host} if _loopback(settings.host) else None
        self._under_way = {"http": 0, "websocket": 0}
        self._most = {"http": MOST_REQUESTS, "websocket": MOST_SOCKETS}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        kind = scope["type"]
        if kind not in self._under_way:
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except HttpRefusalError as error:
            await error.response()(scope, receive, send)
            return
        self._under_way[kind] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._under_way[kind] -= 1

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._hosts is not None and _name(host) not in self._hosts:
            raise HttpRefusalError("foreign_origin", f"the request is for host {host[:64]!r}, this service is local only")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise HttpRefusalError("foreign_origin", f"a page of {origin[:64]!r} may not use this service at {host[:64]!r}")
        if self._token and scope["path"] not in _OPEN_TO_ALL and not self._bears_token(scope, headers):
            raise HttpRefusalError("unauthorized", "the request bears not this service's token: 'Authorization: Bearer TOKEN'")
        kind = scope["type"]
        if self._under_way[kind] >= self._most[kind]:
            raise HttpRefusalError("busy", f"{self._most[kind]} requests are under way; ask again in a second")

    def _bears_token(self, scope: Scope, headers: Headers) -> bool:
        scheme, _, found = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            found = ""
        if scope["type"] == "websocket" and not found:  # a browser's WebSocket cannot set headers
            found = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        return hmac.compare_digest(found.encode("utf-8", "surrogateescape"), self._token)


def _name(host: str) -> str:
    """A Host header without its port."""
    return host if host.endswith("]") else host.rpartition(":")[0] or host


def _loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
