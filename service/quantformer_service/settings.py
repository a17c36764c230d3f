"""Every setting of the command line and the service: one table, and where each value came from.

A value is taken from the command-line flag, else from the environment (``QUANTFORMER_HTTP_PORT``), else from a TOML
file (``quantformer.toml`` in the working directory, or ``--config FILE``), else it is the default. Standard library
only: the light command line imports this without any extra.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_type_hints

from quantformer.errors import UsageError

ENVIRONMENT_PREFIX = "QUANTFORMER_"
CONFIG_FILE = "quantformer.toml"


def _setting(
    default: Any,
    *,
    unit: str = "",
    help: str,  # noqa: A002 - the word argparse and readers know
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    secret: bool = False,
) -> Any:
    """A field of `Settings` with what a reader and a check need to know about it."""
    facts = {"unit": unit, "help": help, "low": low, "high": high, "choices": choices, "secret": secret}
    return field(default=default, metadata=facts)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The table. One field a setting; `table` turns it into rows."""

    bundle: str = _setting("", help="directory of the bundle to serve")
    host: str = _setting("127.0.0.1", help="address that every port listens on; anything but loopback wants a token")
    http_port: int = _setting(7410, help="port of REST and WebSocket", low=1, high=65535)
    zmq_port: int = _setting(7411, help="port of the ZeroMQ ROUTER: frames, events, control, polls", low=1, high=65535)
    pub_port: int = _setting(7412, help="port of the ZeroMQ PUB: predictions and decisions", low=1, high=65535)
    tcp_port: int = _setting(7413, help="port of the same messages over plain TCP", low=1, high=65535)
    token: str = _setting("", help="bearer token that REST and WebSocket demand; empty: none", secret=True)
    provider: str = _setting(
        "auto", help="execution provider; auto takes CUDA where onnxruntime has it", choices=("auto", "cpu", "cuda")
    )
    precision: str = _setting(
        "float32",
        help="what the engine computes in; auto takes the device's form where the bundle has it: int8 (CPU), float16 (CUDA)",
        choices=("float32", "auto", "int8", "float16"),
    )
    threads: int = _setting(
        0, unit="threads", help="threads of one inference on the CPU; 0: what is fastest at the start", low=0, high=256
    )
    reorder_frames: int = _setting(
        8, unit="frames", help="after which one that is missing is not waited for any more", low=1, high=64
    )
    history_s: float = _setting(
        10.0, unit="s", help="frames kept beyond a window, for onsets that are told late", low=0.0, high=120.0
    )
    sessions: int = _setting(8, unit="sessions", help="open at one time", low=1, high=256)
    session_idle_s: float = _setting(
        600.0, unit="s", help="idle time after which a session makes way for a new one", low=1.0, high=86400.0
    )
    indicator_tau_s: float = _setting(
        0.7, unit="s", help="decay time constant of the indicator after stimulation", low=0.01, high=30.0
    )
    decay_constants: float = _setting(
        5.0, unit="tau", help="time constants that a stimulated neuron stays invalid", low=0.0, high=100.0
    )
    record: str = _setting("", help="directory that every session is recorded in; empty: nothing is recorded")
    record_sync_s: float = _setting(
        0.5, unit="s", help="longest time between a record's arrival and its safety on the disk", low=0.01, high=10.0
    )
    record_stall_s: float = _setting(
        2.0, unit="s", help="time without an acknowledged record after which triggers disarm", low=0.1, high=600.0
    )
    pin_cpus: str = _setting(
        "", help="CPUs for the engine alone, such as 2,3: the first for its loop, the others for inference; empty: any"
    )
    realtime: str = _setting(
        "off", help="real-time priority (SCHED_FIFO) of the engine's threads", choices=("off", "on")
    )
    lock_memory: str = _setting("off", help="keep the engine's memory from being paged out", choices=("off", "on"))
    stay_awake: str = _setting(
        "on",
        help="while frames come, keep the machine's cores out of idle states that take long to leave, where the user may",
        choices=("off", "on"),
    )
    max_body_bytes: int = _setting(
        4_194_304, unit="bytes", help="largest HTTP body or WebSocket message that is read", low=1024, high=1 << 30
    )
    stream_queue: int = _setting(
        64, unit="messages", help="held for one slow WebSocket client before the oldest is dropped", low=1, high=65536
    )
    engine_queue: int = _setting(
        64, unit="requests", help="open from the gateway to the engine before it answers 429", low=1, high=65536
    )
    predict_rows: int = _setting(4096, unit="rows", help="most neurons x stimuli of one stateless predict", low=1)
    predict_queue: int = _setting(8, unit="requests", help="stateless predicts that wait before 429", low=1, high=1024)
    predict_timeout_s: float = _setting(
        30.0, unit="s", help="longest time of one stateless predict", low=0.1, high=600.0
    )
    request_timeout_s: float = _setting(
        5.0, unit="s", help="longest wait of the gateway for the engine's answer", low=0.01, high=600.0
    )
    shutdown_s: float = _setting(5.0, unit="s", help="time for a graceful end before a kill", low=0.1, high=60.0)
    restart_limit: int = _setting(
        5, unit="restarts", help="of one process within restart_window_s before serve gives up", low=0, high=1000
    )
    restart_window_s: float = _setting(60.0, unit="s", help="span in which restarts count", low=1.0, high=86400.0)
    log: str = _setting("text", help="form of the log on stderr", choices=("text", "json"))
    log_level: str = _setting(
        "info", help="least severe record that is logged", choices=("debug", "info", "warning", "error")
    )

    def environment(self) -> dict[str, str]:
        """The settings as environment variables, for a child process; `Settings.from_environment` reads them back."""
        return {row.environment: str(getattr(self, row.name)) for row in table()}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """The settings that a parent process handed down; no file is read."""
        return resolve(environment=os.environ if environment is None else environment, folder=None).settings


@dataclass(frozen=True, kw_only=True)
class Row:
    """One setting as data. ``kind`` is `str`, `int` or `float`; ``low`` and ``high`` are inclusive."""

    name: str
    kind: Callable[[str], str | int | float]
    default: str | int | float
    unit: str
    help: str
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    secret: bool

    @property
    def flag(self) -> str:
        """The command-line flag."""
        return "--" + self.name.replace("_", "-")

    @property
    def environment(self) -> str:
        """The environment variable."""
        return ENVIRONMENT_PREFIX + self.name.upper()

    @property
    def expects(self) -> str:
        """In words, what a value must be."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        noun = {str: "text", int: "a whole number", float: "a number"}[self.kind]  # type: ignore[index]  # no field is of another type
        unit = f" of {self.unit}" if self.unit else ""
        if self.low is None:
            return noun + unit
        return f"{noun}{unit} from {self.low:.10g} " + ("up" if self.high is None else f"to {self.high:.10g}")

    def read(self, value: object, *, source: str) -> str | int | float:
        """Turn a flag's, variable's or file's value into the setting's type.

        Raises:
            UsageError: it is of another type, out of range or not among the choices.
        """
        wrong = UsageError(f"{source}: found {'***' if self.secret else repr(value)}, expected {self.expects}")
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise wrong
        if isinstance(value, str) and self.kind is not str:
            try:
                value = self.kind(value)
            except ValueError:
                raise wrong from None
        if self.kind is float and isinstance(value, int):
            value = float(value)
        if type(value) is not self.kind or (self.choices and value not in self.choices):
            raise wrong
        if not isinstance(value, str):
            below = self.low is not None and not value >= self.low
            above = self.high is not None and not value <= self.high
            if below or above:
                raise wrong
        return value


def table() -> tuple[Row, ...]:
    """Every setting, in the order in which it is shown."""
    kinds = get_type_hints(Settings)
    defaults = vars(Settings())
    return tuple(Row(name=f.name, kind=kinds[f.name], default=defaults[f.name], **f.metadata) for f in fields(Settings))


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """Settings, and for each name where its value came from."""

    settings: Settings
    sources: Mapping[str, str]


def resolve(
    *,
    flags: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    config: Path | None = None,
    folder: Path | None = Path(),
) -> Resolved:
    """Find every setting's value: flag > environment > TOML file > default.

    ``flags`` holds those that were given; ``environment`` defaults to the process's own; ``config`` must exist where it
    is named; without one, ``quantformer.toml`` in ``folder`` is read if it is there (``folder`` None: no file at all).

    Raises:
        UsageError: an unknown key (with the nearest known one), a value that does not fit, an unreadable file.
    """
    rows = {row.name: row for row in table()}
    values: dict[str, Any] = {name: row.default for name, row in rows.items()}
    sources = dict.fromkeys(rows, "default")
    path, found = _read_file(config, folder)
    for name, value in found.items():
        row = _known(name, rows, shown=f"{path}: {name}", spell=str)
        values[row.name], sources[row.name] = row.read(value, source=f"{path}: {name}"), f"file {path}"
    for variable, value in sorted((os.environ if environment is None else environment).items()):
        if variable.startswith(ENVIRONMENT_PREFIX):
            key = variable.removeprefix(ENVIRONMENT_PREFIX)
            name = key.lower() if key.isupper() else key
            row = _known(name, rows, shown=f"environment variable {variable}", spell=_variable)
            values[row.name], sources[row.name] = row.read(value, source=variable), f"environment {variable}"
    for name, value in (flags or {}).items():
        row = _known(name, rows, shown=f"flag --{name}", spell=_flag)
        values[row.name], sources[row.name] = row.read(value, source=row.flag), f"flag {row.flag}"
    return Resolved(settings=Settings(**values), sources=MappingProxyType(sources))


def _variable(name: str) -> str:
    return ENVIRONMENT_PREFIX + name.upper()


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _known(name: str, rows: Mapping[str, Row], *, shown: str, spell: Callable[[str], str]) -> Row:
    if name in rows:
        return rows[name]
    near = difflib.get_close_matches(name, rows, n=1, cutoff=0.0)[0]
    raise UsageError(f"{shown} is not a setting; the nearest is {spell(near)} ('quantformer config show' lists all)")


def _read_file(config: Path | None, folder: Path | None) -> tuple[Path, Mapping[str, object]]:
    path = config if config is not None else (folder or Path()) / CONFIG_FILE
    if config is None and (folder is None or not path.is_file()):
        return path, {}
    try:
        return path, tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read: {error.strerror}; give a readable TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from None
