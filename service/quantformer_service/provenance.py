"""What a recording was made with: software, machine, bundle, settings. The first record of each of its files."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import msgspec

from quantformer.bundle import Bundle
from quantformer.errors import RecordingError
from quantformer.manifest import Precision
from quantformer_client import wire
from quantformer_service.engine_settings import EngineSettings

#: What an answer's bits depend on, beside the bundle, and what else a reader may want to know.
PACKAGES = ("quantformer", "onnxruntime", "onnxruntime-gpu", "numpy", "pyzmq", "msgspec")


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """``settings`` are the engine's own without its token; ``bundle`` the SHA-256; ``processor`` the CPU's model;
    ``threads`` those that a question's rows were shared out to; ``precision`` that of the graph that was asked.
    """

    epoch: int
    bundle: str
    provider: str
    threads: Annotated[int, msgspec.Meta(ge=0, le=4096)]
    precision: Precision = "float32"
    wire: str
    python: str
    packages: dict[str, str]
    system: str
    host: str
    processor: str
    cores: int
    settings: dict[str, str | int | float | bool | None]

    @property
    def arithmetic(self) -> tuple[str, ...]:
        """What must be the same for answers to be the same bit for bit, beside the bundle and the shape of a run."""
        runtime = self.packages.get("onnxruntime", "") or self.packages.get("onnxruntime-gpu", "")
        return (
            f"provider {self.provider}",
            self.precision,
            f"onnxruntime {runtime}",
            f"numpy {self.packages.get('numpy', '')}",
            self.processor,
            f"{self.threads} threads",
        )

    def engine_settings(self) -> EngineSettings:
        """The engine's settings as far as they decide what sessions do. No port is bound and no token asked by them.

        Raises:
            RecordingError: one of them is not of its type.
        """
        wanted = EngineSettings()
        given: dict[str, object] = {}
        for name, default in asdict(wanted).items():
            value = self.settings.get(name, default)
            if isinstance(default, float) and type(value) is int:
                value = float(value)
            if type(value) is not type(default):
                raise RecordingError(
                    f"the recording's setting {name} is {value!r}, expected {type(default).__name__}; it is damaged or "
                    "of another version"
                )
            given[name] = value
        given |= {"host": wanted.host, "token": "", "record": ""}
        return EngineSettings(**given)  # type: ignore[arg-type]  # each was compared with its default's type


def provenance(settings: EngineSettings, bundle: Bundle, *, provider: str, threads: int, epoch: int) -> Provenance:
    """What this process is."""
    return Provenance(
        epoch=epoch,
        bundle=bundle.hash,
        provider=provider,
        threads=threads,
        precision=bundle.precision,
        wire=f"{wire.MAJOR}.{wire.MINOR}",
        python=platform.python_version(),
        packages={name: found for name in PACKAGES if (found := _version(name))},
        system=platform.platform(),
        host=platform.node(),
        processor=_processor(),
        cores=os.cpu_count() or 1,
        settings={name: value for name, value in asdict(settings).items() if name != "token"},
    )


def read_provenance(data: bytes) -> Provenance:
    """Read the first record.

    Raises:
        RecordingError: it is not what `provenance` makes.
    """
    try:
        return msgspec.json.decode(data, type=Provenance)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise RecordingError(f"the recording's first record does not say what it was made with: {error}") from error


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    """The processor's model, or its architecture where the system does not say."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
