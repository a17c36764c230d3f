"""A real HTTP server that stores files as S3 does and misbehaves on request."""

from __future__ import annotations

import hashlib
import random
import re
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

SIGNATURE = b"\x89HDF\r\n\x1a\n"


def hdf5_like(size: int, *, seed: int = 0) -> bytes:
    """Bytes that begin as an HDF5 file does and repeat nowhere."""
    return (SIGNATURE + random.Random(seed).randbytes(size))[:size]


@dataclass
class Request:
    """What a client asked."""

    method: str
    path: str
    range: str | None
    if_range: str | None


@dataclass
class Fault:
    """What the server does instead, once. None of them: it answers as it should."""

    status: int = 0
    """Answer with this and no file."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers to send, in place of its own of the same name; an empty text leaves one out."""
    cut_after: int | None = None
    """Close the connection after so many bytes of this body."""
    stall_after: int | None = None
    """Send so many bytes and then nothing, until the server is closed."""
    body: bytes | None = None
    """Send these bytes under the header of the right ones."""
    ignore_range: bool = False
    then: Callable[[], None] = lambda: None
    """Done after the answer."""


class BucketServer:
    """Serves ``files`` (path to bytes) on a free port; ``faults`` of a path are used up, one a GET (or ``HEAD PATH``)."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.requests: list[Request] = []
        self.of_s3 = True
        self.closed = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("_Handler", (_Handler,), {"bucket": self}))
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def gets(self) -> list[Request]:
        """The requests for bodies so far."""
        return [request for request in self.requests if request.method == "GET"]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=10)


class _Handler(BaseHTTPRequestHandler):
    bucket: BucketServer
    protocol_version = "HTTP/1.1"
    timeout = 30

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in the standard library
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.lstrip("/")
        asked = Request(self.command, path, self.headers.get("Range"), self.headers.get("If-Range"))
        self.bucket.requests.append(asked)
        faults = self.bucket.faults.get(path if with_body else f"HEAD {path}", [])
        fault = faults.pop(0) if faults else Fault()
        content = self.bucket.files.get(path)
        if fault.status or content is None:
            self._send(fault.status or 404, {"Content-Length": "0"} | fault.headers, b"", fault)
            return
        etag = f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
        headers = {"ETag": etag, "Accept-Ranges": "bytes"} | ({"x-amz-request-id": "1"} if self.bucket.of_s3 else {})
        start, status = 0, 200
        found = re.fullmatch(r"bytes=(\d+)-", asked.range or "")
        if with_body and found and not fault.ignore_range and asked.if_range in (None, etag):
            start, status = int(found[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        headers["Content-Length"] = str(len(content) - start)
        body = (fault.body if fault.body is not None else content)[start:]
        self._send(status, headers | fault.headers, body if with_body else b"", fault)

    def _send(self, status: int, headers: dict[str, str], body: bytes, fault: Fault) -> None:
        self.close_connection = True
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body[: fault.cut_after if fault.stall_after is None else fault.stall_after])
            self.wfile.flush()
            if fault.stall_after is not None:
                self.bucket.closed.wait(timeout=60)
            self.connection.shutdown(socket.SHUT_WR)
        except OSError:  # the client left first
            pass
        fault.then()
