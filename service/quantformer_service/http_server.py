"""The gateway's HTTP server: the application of `api` on a socket that listens already.

What this module imports takes most of a second; `gateway` imports it while the predictor starts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import uvicorn

from quantformer_service.api import Api, build
from quantformer_service.settings import Settings

_GRACE_S = 1


class HttpServer(uvicorn.Server):
    """uvicorn without signal handlers: `process` decides when this process ends."""

    def __init__(self, api: Api, *, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                build(api, settings=settings),
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                lifespan="off",
                ws_max_size=settings.max_body_bytes,
                timeout_graceful_shutdown=_GRACE_S,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take none."""
        yield
