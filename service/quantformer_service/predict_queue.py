"""The gateway's side of stateless prediction: a bounded queue before one low-priority process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from types import TracebackType
from typing import Self

import msgspec

from quantformer_service.http_errors import HttpRefusalError
from quantformer_service.predictor import LENGTH, Predict, Predicted, Reply
from quantformer_service.settings import Settings

_log = logging.getLogger(__name__)
_PAUSE_S = 1.0


class PredictQueue:
    """Runs the process, starts it again when it died, and lets `predict_queue` requests wait for it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._waiting: asyncio.Queue[tuple[bytes, asyncio.Future[Reply]]] = asyncio.Queue(settings.predict_queue)
        self._process: asyncio.subprocess.Process | None = None
        #: Whether the process has loaded the bundle.
        self.ready = asyncio.Event()
        self.counters = {"predict_busy": 0, "predict_restarts": 0}

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._serve())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        while not self._waiting.empty():
            self._settle(self._waiting.get_nowait()[1], HttpRefusalError("stopping", "the service is stopping"))

    async def predict(self, asked: Predict) -> Predicted:
        """Wait in the queue, then for the prediction.

        Raises:
            HttpRefusalError: too many rows, the queue is full, or the process refuses or fails.
        """
        rows = len(asked.neurons) * len(asked.stimuli)
        if rows > self._settings.predict_rows:
            raise HttpRefusalError(
                "too_many_rows",
                f"{len(asked.neurons)} neurons x {len(asked.stimuli)} stimuli are {rows} rows, at most "
                f"{self._settings.predict_rows} are taken (--predict-rows); ask in parts",
            )
        if not self.ready.is_set():
            raise HttpRefusalError("not_ready", "the process that predicts is loading the bundle; ask again in a second")
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        try:
            self._waiting.put_nowait((msgspec.json.encode(asked), future))
        except asyncio.QueueFull:
            self.counters["predict_busy"] += 1
            raise HttpRefusalError(
                "busy", f"{self._settings.predict_queue} predictions are waiting (--predict-queue); ask again in a second"
            ) from None
        reply = await future
        if reply.predicted is None:
            failed = reply.failed
            raise HttpRefusalError(failed.code if failed else "internal", failed.message if failed else "an empty reply")
        return reply.predicted

    async def _serve(self) -> None:
        """Keep a process, one request at a time."""
        while True:
            try:
                await self._run_process()
            except (OSError, asyncio.IncompleteReadError, msgspec.MsgspecError) as error:
                _log.error("the predictor ended (%s); starting it again in %g s", error, _PAUSE_S)
                self.counters["predict_restarts"] += 1
            finally:
                self.ready.clear()
                if self._process is not None and self._process.returncode is None:
                    self._process.kill()
                    await self._process.wait()
            await asyncio.sleep(_PAUSE_S)

    async def _run_process(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "quantformer_service.predictor",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **self._settings.environment()},
        )
        await self._read(self._process)
        self.ready.set()
        while True:
            request, future = await self._waiting.get()
            if future.done():  # the client left while it waited
                continue
            try:
                assert self._process.stdin is not None
                self._process.stdin.write(LENGTH.pack(len(request)) + request)
                await self._process.stdin.drain()
                reply = await asyncio.wait_for(self._read(self._process), self._settings.predict_timeout_s)
            except TimeoutError:
                self._settle(future, HttpRefusalError("predict_failed", "the prediction took too long (--predict-timeout-s)"))
                raise OSError(f"no reply within {self._settings.predict_timeout_s:g} s") from None
            except (OSError, asyncio.IncompleteReadError):
                self._settle(future, HttpRefusalError("predict_failed", "the process that predicts ended; ask again"))
                raise
            except asyncio.CancelledError:
                self._settle(future, HttpRefusalError("stopping", "the service is stopping"))
                raise
            if not future.done():
                future.set_result(reply)

    @staticmethod
    def _settle(future: asyncio.Future[Reply], error: Exception) -> None:
        if not future.done():
            future.set_exception(error)

    @staticmethod
    async def _read(process: asyncio.subprocess.Process) -> Reply:
        assert process.stdout is not None
        (length,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
        return msgspec.json.decode(await process.stdout.readexactly(length), type=Reply)
