"""The gateway process: REST and WebSocket in front of the engine. Nothing that happens here delays a frame."""

from __future__ import annotations

import asyncio
import importlib
import logging
import socket
import threading

from quantformer.bundle import load_bundle
from quantformer.errors import QuantformerError
from quantformer_service.engine_link import EngineLink
from quantformer_service.gpu import Gpu
from quantformer_service.predict_queue import PredictQueue
from quantformer_service.process import BusyPortError, announce, give_way, run_process
from quantformer_service.settings import Settings
from quantformer_service.supervisor import listen

_log = logging.getLogger(__name__)
#: Lower priority than the engine's, higher than the predictor's.
NICENESS = 12
_POLL_S = 0.05


def gateway(settings: Settings, stop: threading.Event) -> None:
    """Serve until ``stop`` is set.

    Raises:
        BusyPortError: the HTTP port is taken.
        BundleError: the bundle cannot be loaded.
    """
    give_way(NICENESS)
    try:
        listener = listen(settings.host, settings.http_port)
    except OSError as error:
        reason = error.strerror or str(error)
        raise BusyPortError(host=settings.host, port=settings.http_port, setting="http_port", reason=reason) from None
    asyncio.run(_serve(settings, stop, listener))


async def _serve(settings: Settings, stop: threading.Event, listener: socket.socket) -> None:
    bundle = load_bundle(settings.bundle)
    async with EngineLink(settings) as link, PredictQueue(settings) as predictions:
        # The slowest part of the start; the predictor starts meanwhile, and the engine is waited for.
        await asyncio.to_thread(importlib.import_module, "quantformer_service.http_server")
        from quantformer_service.api import Api
        from quantformer_service.http_server import HttpServer

        gpu = Gpu()
        gpu.start()
        server = HttpServer(
            Api(settings=settings, bundle=bundle, link=link, predictions=predictions, gpu=gpu), settings=settings
        )
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
