"""One frozen TOML file a run: what each verb of training may be told, checked once, and written back as it was used."""

from __future__ import annotations

import dataclasses
import difflib
import math
import platform
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

import msgspec
import numpy as np
import torch

import quantformer
from quantformer.config import PRESETS
from quantformer.errors import UnavailableError, UsageError
from quantformer_training.accelerator import Accelerator, accelerator_of
from quantformer_training.fit import FitConfig
from quantformer_training.loop import CHECKPOINT_S, LoopConfig
from quantformer_training.toml_text import render_toml

if TYPE_CHECKING:
    from quantformer_training.effort import Effort

#: What a run was made of, beside its outputs: a TOML file that the same verb takes again.
RUN_FILE = "run.toml"
#: Table of `RUN_FILE` that says what it was made with; passed over when it is read.
MADE_WITH = "made_with"
#: Fields of training's own configurations that are said elsewhere (the run's ``preset`` and ``seed``) or not at all.
_ELSEWHERE = frozenset({"seed", "preset", "stop_after"})

Run = TypeVar("Run", bound="PretrainRun | FinetuneRun | EvaluateRun | ExportRun")
C = TypeVar("C")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where and how a network trains: `accelerator_of`'s wishes, threads a process on the CPU, and the seconds between
    checkpoints inside an epoch.
    """

    device: str = "cpu"
    precision: str = "float32"
    processes: int = 1
    nodes: int = 1
    threads: int = 1
    checkpoint_s: float = CHECKPOINT_S

    def __post_init__(self) -> None:
        if self.threads < 1 or not self.checkpoint_s >= 0:
            raise UsageError(
                f"threads = {self.threads} and checkpoint_s = {self.checkpoint_s}; expected at least 1, and 0 or more seconds"
            )

    def only_plain(self, verb: str) -> None:
        """Refuse what only pre-training and fine-tuning can do.

        Raises:
            UsageError: anything but threads is asked for.
        """
        if self != Machine(threads=self.threads):
            raise UsageError(
                f"{verb} trains in one CPU process in float32; of [machine] only threads is for it, the rest for pretrain and "
                "finetune"
            )

    def accelerator(self) -> Accelerator:
        """Start what is asked for; as `accelerator_of`."""
        return accelerator_of(
            device=self.device, precision=self.precision, processes=self.processes, nodes=self.nodes
        )


@dataclass(frozen=True, kw_only=True)
class PretrainRun:
    """``quantformer pretrain``: ``windows`` of the ``recordings`` in batches of ``batch``, into the directory ``out``."""

    recordings: tuple[str, ...] = ()
    out: str = ""
    rate_hz: float | None = None
    preset: str = "small"
    seed: int = 0
    windows: int = 32_000
    batch: int = 128
    tensorboard: bool = True
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(epochs=12, learning_rate=1e-3))
    machine: Machine = Machine()

    @classmethod
    def of_preset(cls, preset: str) -> PretrainRun:
        """``paper`` is the paper's schedule (section 4.2) at its size; ``small`` minutes on two cores."""
        if preset == "paper":
            effort = _paper()
            return cls(preset=preset, windows=1_000_000, batch=effort.pretraining_batch, loop=effort.pretraining)
        return cls()

    def seeded(self) -> PretrainRun:
        """The same run with its seed where training looks for it."""
        return replace(self, loop=replace(self.loop, seed=self.seed))


@dataclass(frozen=True, kw_only=True)
class FinetuneRun:
    """``quantformer finetune``: one ``recording`` (with ``stimuli``, a CSV file, where it has none of its own) from the
    directory ``pretrained`` to a fitted model in ``out``.

    The first ``train`` presentations train (0: two thirds); with ``category`` instead, that category's three sub-sessions
    as in the paper. Without ``pretrained`` the auto-encoder learns from the recording's own training part, and from the
    ``unlabelled`` recordings. ``teachers`` are fitted models of the same presentations, of any size, that it learns from too.
    """

    recording: str = ""
    out: str = ""
    stimuli: str = ""
    rate_hz: float | None = None
    pretrained: str = ""
    unlabelled: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    preset: str = "small"
    seed: int = 0
    train: int = 0
    category: str = ""
    tensorboard: bool = True
    fit: FitConfig = field(default_factory=FitConfig.full)
    machine: Machine = Machine()

    @classmethod
    def of_preset(cls, preset: str) -> FinetuneRun:
        """``paper`` is the paper's schedule (section 4.2) at its size; ``small`` minutes on two cores."""
        return cls(preset=preset, fit=_fit_of(preset))

    def seeded(self) -> FinetuneRun:
        """The same run with seed and preset where training looks for them."""
        return replace(self, fit=_seeded(self.fit, preset=self.preset, seed=self.seed))


@dataclass(frozen=True, kw_only=True)
class EvaluateRun:
    """``quantformer evaluate``: of a ``fitted`` directory its test part; of a ``recording`` models of ``seeds`` seeds and
    ``folds`` rolling-origin folds of ``fold_seeds`` seeds each. With ``out`` the tables and figures are kept there.
    """

    fitted: str = ""
    recording: str = ""
    stimuli: str = ""
    rate_hz: float | None = None
    out: str = ""
    pretrained: str = ""
    preset: str = "small"
    train: int = 0
    seeds: int = 5
    folds: int = 3
    fold_seeds: int = 2
    fit: FitConfig = field(default_factory=FitConfig.full)
    machine: Machine = Machine()

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.folds < 0 or self.fold_seeds < 1:
            raise UsageError(
                f"seeds = {self.seeds}, folds = {self.folds}, fold_seeds = {self.fold_seeds}; seeds and fold_seeds want at "
                "least 1, folds at least 0"
            )
        self.machine.only_plain("evaluate")

    @classmethod
    def of_preset(cls, preset: str) -> EvaluateRun:
        """As `FinetuneRun.of_preset`."""
        return cls(preset=preset, fit=_fit_of(preset))

    def config(self, seed: int) -> FitConfig:
        """The fit of one seed."""
        return _seeded(self.fit, preset=self.preset, seed=seed)

    def seeded(self) -> EvaluateRun:
        """The same run with its preset where training looks for it."""
        return replace(self, fit=self.config(0))


@dataclass(frozen=True, kw_only=True)
class ExportRun:
    """``quantformer export``: a ``fitted`` directory to the bundle ``out``."""

    fitted: str = ""
    out: str = ""

    @classmethod
    def of_preset(cls, preset: str) -> ExportRun:
        """There is nothing to choose."""
        return cls()

    def seeded(self) -> ExportRun:
        """The same."""
        return self


#: Keys whose values are paths, taken from the run file's own directory.
_PATHS = ("recordings", "unlabelled", "teachers", "recording", "stimuli", "pretrained", "fitted", "out")


def read_run(kind: type[Run], path: Path | None, *, flags: Mapping[str, object] | None = None) -> Run:
    """The run that a TOML file describes, with the ``flags`` that were given (``loop.epochs`` reaches into a table).

    What neither says is the default of the ``preset``. Paths in the file are relative to it, those of flags to the working
    directory; all come out absolute.

    Raises:
        UsageError: the file cannot be read, a key is unknown (the nearest is named), or a value does not fit.
    """
    told: dict[str, Any] = {}
    if path is not None:
        try:
            told = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"--run {path} cannot be read: {error.strerror}; give a readable TOML file") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is not TOML: {error}") from None
        told.pop(MADE_WITH, None)
    given: dict[str, Any] = {}
    for name, value in (flags or {}).items():
        table, _, key = name.rpartition(".")
        (given.setdefault(table, {}) if table else given)[key] = value
    preset = given.get("preset", told.get("preset", "small"))
    if preset not in PRESETS:
        raise UsageError(f"preset is {preset!r}, expected one of {', '.join(PRESETS)}")
    run = kind.of_preset(preset)
    for source, folder, tables in ((str(path), path.parent if path else Path(), told), ("the command line", Path(), given)):
        run = _overlaid(run, {name: _absolute(name, value, folder) for name, value in tables.items()}, source=source)
    return run.seeded()  # type: ignore[return-value]  # each kind returns its own


def require(run: Run, *names: str) -> None:
    """Refuse a run that leaves out what it cannot do without.

    Raises:
        UsageError: a key is empty.
    """
    for name in names:
        if not getattr(run, name):
            raise UsageError(f"no {name} was given; say it on the command line or in a run file (--run FILE): docs/running.md")


def write_run(run: PretrainRun | FinetuneRun | EvaluateRun | ExportRun, path: Path) -> None:
    """Write every value that the run had, and the versions that it was made with, as `read_run` reads it.

    Raises:
        UnavailableError: it cannot be written.
    """
    tables = _tables(run)
    tables[MADE_WITH] = {
        "quantformer": quantformer.__version__, "torch": torch.__version__, "numpy": np.__version__,
        "python": platform.python_version(), "machine": platform.machine(),
    }  # fmt: skip
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(path.name + ".partial")
        aside.write_text(render_toml(tables), encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise UnavailableError(f"{path} cannot be written ({error.strerror}); make room or choose another place") from error


def _fit_of(preset: str) -> FitConfig:
    full = FitConfig.full()
    if preset != "paper":
        return full
    effort = _paper()
    return replace(
        full,
        preset=preset,
        pretraining=effort.pretraining,
        finetuning=effort.finetuning,
        pretraining_batch=effort.pretraining_batch,
    )


def _paper() -> Effort:
    """What the study of the paper's tables spends: one schedule for both."""
    from quantformer_training.effort import EFFORTS  # brings every competitor, which small runs do without

    return EFFORTS["paper"]


def _seeded(fit: FitConfig, *, preset: str, seed: int) -> FitConfig:
    tasks = {name: replace(getattr(fit.finetuning, name), seed=seed) for name in ("activation", "forecast")}
    return replace(
        fit,
        preset=preset,
        seed=seed,
        pretraining=replace(fit.pretraining, seed=seed),
        finetuning=replace(fit.finetuning, **tasks),
    )


def _overlaid(config: C, told: Mapping[str, Any], *, source: str, within: str = "") -> C:
    """A configuration with the told values in place of its own; tables reach into those that it holds."""
    hidden = _ELSEWHERE if within else frozenset()
    names = [f.name for f in dataclasses.fields(config) if f.name not in hidden]  # type: ignore[arg-type]
    hints, changes = get_type_hints(type(config)), dict[str, Any]()
    for name, value in told.items():
        shown = f"{source}: {within}{name}"
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
            raise UsageError(f"{shown} is not a key; the nearest is {within + near!r} (docs/running.md lists all)")
        own = getattr(config, name)
        if dataclasses.is_dataclass(own):
            if not isinstance(value, Mapping):
                raise UsageError(f"{shown} is {value!r}, expected a table: [{within}{name}]")
            changes[name] = _overlaid(own, value, source=source, within=f"{within}{name}.")
            continue
        try:
            made: Any = msgspec.convert(value, hints[name])
        except msgspec.ValidationError as error:
            raise UsageError(f"{shown} is {value!r}: {error}") from None
        if isinstance(made, float) and not math.isfinite(made):
            raise UsageError(f"{shown} is {value!r}, expected a finite number")
        changes[name] = made
    return replace(config, **changes)  # type: ignore[type-var]


def _absolute(name: str, value: Any, folder: Path) -> Any:
    if name not in _PATHS:
        return value
    if isinstance(value, list | tuple):
        return [_absolute(name, part, folder) for part in value]
    return str((folder / value).resolve()) if isinstance(value, str | Path) and str(value) else value


def _tables(config: object, *, within: bool = False) -> dict[str, Any]:
    """The fields of a configuration as tables; those that are None have no place in TOML."""
    hidden = _ELSEWHERE if within else frozenset()
    found: dict[str, Any] = {}
    for f in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, f.name)
        if value is not None and f.name not in hidden:
            found[f.name] = _tables(value, within=True) if dataclasses.is_dataclass(value) else value
    return found
