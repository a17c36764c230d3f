"""The gateway process: REST and WebSocket in front of the engine. Nothing that happens here delays a frame."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections.abc import Iterator

import uvicorn

from quantformer.bundle import load_bundle
from quantformer.errors import QuantformerError
from quantformer_service.api import Api, build
from quantformer_service.engine_link import EngineLink
from quantformer_service.gpu import Gpu
from quantformer_service.predict_queue import PredictQueue
from quantformer_service.process import BusyPortError, announce, run_process
from quantformer_service.settings import Settings
from quantformer_service.supervisor import listen

_log = logging.getLogger(__name__)
#: Lower priority than the engine's, higher than the predictor's.
NICENESS = 5
_GRACE_S = 1
_POLL_S = 0.05


class _Server(uvicorn.Server):
    """uvicorn without signal handlers: `process` decides when this process ends."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def gateway(settings: Settings, stop: threading.Event) -> None:
    """Serve until ``stop`` is set.

    Raises:
        BusyPortError: the HTTP port is taken.
        BundleError: the bundle cannot be loaded.
    """
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    try:
        listener = listen(settings.host, settings.http_port)
    except OSError as error:
        reason = error.strerror or str(error)
        raise BusyPortError(host=settings.host, port=settings.http_port, setting="http_port", reason=reason) from None
    asyncio.run(_serve(settings, stop, listener))


async def _serve(settings: Settings, stop: threading.Event, listener: socket.socket) -> None:
    bundle = load_bundle(settings.bundle)
    async with EngineLink(settings) as link, PredictQueue(settings) as predictions:
        gpu = Gpu()
        gpu.start()
        api = Api(settings=settings, bundle=bundle, link=link, predictions=predictions, gpu=gpu)
        config = uvicorn.Config(
            build(api, settings=settings),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws_max_size=settings.max_body_bytes,
            timeout_graceful_shutdown=_GRACE_S,
        )
        server = _Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        told = False
        while not stop.is_set() and not serving.done():
            if not told and server.started and link.welcome is not None and predictions.ready.is_set():
                told = True
                announce(endpoints=_endpoints(settings))
            await asyncio.sleep(_POLL_S)
        server.should_exit = True
        await serving
        gpu.stop()
        if not stop.is_set():
            raise QuantformerError("the HTTP server ended by itself; its log says why")


def _endpoints(settings: Settings) -> dict[str, str]:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"{host}:{settings.http_port}"
    return {"rest": f"http://{address}/v1", "stream": f"ws://{address}/v1/stream"}


if __name__ == "__main__":
    run_process("gateway", gateway)
