"""What every process of the service does at its beginning and at its end.

A process is started by its parent as ``python -m quantformer_service.<name>`` with three promises:

- *stdin* is a pipe that only the parent holds. When it closes, by wish or because the parent died, the process ends: at
  its own pace within ``shutdown_s``, then at once. This works alike on Linux, macOS and Windows, where there is no
  SIGTERM, and needs no polling of the parent's id.
- *stdout* carries one JSON line when the process is ready, or one that says why it failed, and nothing else. The log
  goes to stderr.
- *environment* carries the settings (`Settings.environment`).

It ends with status 0 when it was asked to end, else with the `exit_code` of what went wrong.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from quantformer.errors import QuantformerError
from quantformer_service import logs
from quantformer_service.settings import Settings

_log = logging.getLogger(__name__)


class BusyPortError(QuantformerError):
    """A port of the service is taken."""

    def __init__(self, *, host: str, port: int, setting: str, reason: str) -> None:
        flag = "--" + setting.replace("_", "-")
        super().__init__(
            f"port {port} on {host} cannot be listened on ({reason}); "
            f"end the program that holds it, or choose another with {flag}"
        )


def run_process(name: str, body: Callable[[Settings, threading.Event], None]) -> NoReturn:
    """Run ``body(settings, stop)`` as the process ``name``; it returns soon after ``stop`` is set."""
    stop = threading.Event()
    if threading.current_thread() is threading.main_thread():
        # Ctrl-C reaches every process of a terminal; only the supervisor decides what it means.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    try:
        settings = Settings.from_environment()
        logs.configure(form=settings.log, level=settings.log_level, process=name)
        threading.Thread(target=_watch, args=(stop, settings.shutdown_s), name="lifeline", daemon=True).start()
        body(settings, stop)
    except QuantformerError as error:
        _tell(failed=str(error))
        sys.exit(error.exit_code)
    except Exception:
        _log.exception("%s ends: an error that nobody foresaw", name)
        sys.exit(1)
    sys.exit(0)


def give_way(niceness: int) -> None:
    """Let the calling thread, and those that it starts from now on, yield to the engine: run less where cores are few, and, on
    Linux, never take a core from what runs on it by waking up (SCHED_BATCH), but at the scheduler's next tick.
    """
    if hasattr(os, "nice"):
        os.nice(niceness)
    if hasattr(os, "SCHED_BATCH"):
        with contextlib.suppress(OSError):  # a sandbox may forbid it: niceness is left
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def announce(**facts: object) -> None:
    """Tell the parent that this process is ready, with facts such as its endpoints."""
    _tell(ready=True, **facts)


def _tell(**facts: object) -> None:
    with contextlib.suppress(OSError):  # the parent died: the watch ends this process
        os.write(1, json.dumps(facts).encode() + b"\n")


def _watch(stop: threading.Event, shutdown_s: float) -> None:
    # os.read and not sys.stdin: a daemon thread inside a buffered read would hold its lock while the interpreter ends.
    try:
        while os.read(0, 4096):
            pass
    except OSError:
        pass
    stop.set()
    # If the process is still there after this long, it hangs, and nobody may be left to kill it.
    threading.Event().wait(shutdown_s)
    os._exit(1)
