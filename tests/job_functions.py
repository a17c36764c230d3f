"""What the jobs of the tests do; processes of their own import it by name."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from quantformer.errors import DataError


def double(*, number: float) -> float:
    return 2 * number


def fail(*, text: str) -> None:
    raise ValueError(text)


def refuse() -> None:
    raise DataError("mouse-3.npz has no drifting gratings; choose another category")


def leave() -> None:
    sys.exit("the run had enough")


def die(*, name: str) -> None:
    os.kill(os.getpid(), getattr(signal, name))
    time.sleep(60)


def process_and_threads() -> tuple[int, str, int]:
    import torch

    return os.getpid(), os.environ.get("OMP_NUM_THREADS", ""), torch.get_num_threads()


def process() -> int:
    return os.getpid()


def memory_used_again() -> int:
    """Pages that the system had to clear for blocks of 40 MB, taken and freed 20 times after a first one."""
    import resource

    import numpy as np

    def faults() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    np.ones(5_000_000)
    before = faults()
    for _ in range(20):
        np.ones(5_000_000)
    return faults() - before


def unsendable() -> Any:
    return threading.Lock()


def mark_and_wait(*, path: str) -> None:
    """Say which process it is, then go on for longer than any test lasts."""
    aside = Path(path + ".new")
    aside.write_text(str(os.getpid()))
    aside.replace(path)
    time.sleep(600)


def die_first(*, path: str) -> str:
    """Die when asked for the first time, as where a machine is lost; answer the second time."""
    if Path(path).exists():
        return "second start"
    Path(path).write_text("first start")
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"
