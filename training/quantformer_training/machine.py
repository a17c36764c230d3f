"""What a figure was made with: the machine, and the versions of the software."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from quantformer_training.jobs import cores

#: What figures depend on beside configuration and data.
PACKAGES = ("quantformer", "torch", "numpy", "scipy", "scikit-learn")


def software(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of ``packages``."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that is not installed
            found[package] = "not installed"
    return found


def processor() -> str:
    """The processor's model, or its architecture where the system does not say."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line for line in cpuinfo.read_text(errors="replace").splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return name


def machine(*, gpu: bool = True) -> str:
    """The machine in a few words: processor, cores, and GPU where torch is loaded and sees one. A figure that was made without
    a ``gpu`` does not name it.
    """
    words = f"{processor()}, {cores()} of {os.cpu_count()} cores, {platform.system()}"
    torch = sys.modules.get("torch")
    if gpu and torch is not None and torch.cuda.is_available():
        words += f", {torch.cuda.get_device_name(0)}"
    return words
