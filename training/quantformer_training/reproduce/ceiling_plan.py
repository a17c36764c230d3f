"""Which ceiling study belongs to a reproduction, and keeping it: made once, then read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from quantformer.errors import UnavailableError
from quantformer_training.contest import BRAINLM_FINETUNED, MODELS
from quantformer_training.effort import Effort
from quantformer_training.reproduce.ceiling import STARTS, CeilingStudy, Share, ceiling_study
from quantformer_training.reproduce.plan import CLASSICAL, COSTLY, is_ablation
from quantformer_training.run_store import fingerprint

#: Name of the job, and how the folders in ``out`` begin.
CEILING = "ceiling"
_KEPT, _SCHEMA = "ceiling.json", 1
_CLASSICAL = ("logistic", "boosted_trees", "ridge", "neuron_mean", *STARTS.values())
_NETWORKS = tuple(name for name in MODELS if name not in (*CLASSICAL, BRAINLM_FINETUNED) and not is_ablation(name))


@dataclass(frozen=True, kw_only=True)
class CeilingPlan:
    """A mouse of ``neurons`` shown ``presentations`` in each of three sub-sessions, the filter's ``particles``, and the models
    that are asked.
    """

    neurons: int
    presentations: int
    particles: int
    models: tuple[str, ...]

    @property
    def left_out(self) -> tuple[str, ...]:
        """Networks of the study that are not asked."""
        return tuple(name for name in _NETWORKS if name not in self.models)

    def mark(self, *, effort: Effort, seed: int, versions: Mapping[str, str]) -> str:
        """The fingerprint of the study: of all that it follows from."""
        config = {"effort": asdict(effort), "seed": seed, **asdict(self)}
        return fingerprint(config=config, data="simulated", software=versions)


#: By the effort's preset.
CEILING_PLANS: Mapping[str, CeilingPlan] = MappingProxyType(
    {
        **dict.fromkeys(
            ("small", "recording"),
            CeilingPlan(
                neurons=24,
                presentations=240,
                particles=256,
                models=(*(name for name in _NETWORKS if name not in COSTLY), *_CLASSICAL),
            ),
        ),
        "paper": CeilingPlan(neurons=48, presentations=480, particles=512, models=(*_NETWORKS, *_CLASSICAL)),
    }
)


def folder(mark: str) -> str:
    """The folder in ``out`` of the study with this fingerprint."""
    return f"{CEILING}-{mark[:16]}"


def make(
    *, plan: CeilingPlan, effort: Effort, seed: int, directory: str, mark: str, device: str = "cpu"
) -> CeilingStudy:
    """Make the study in ``directory`` and keep it there, unless a model failed: then it is made again when it is asked for.
    ``device`` as in `ceiling_study`.

    Raises:
        UnavailableError: it cannot be written, or as `ceiling_study`.
    """
    study = ceiling_study(directory=directory, effort=effort, seed=seed, device=device, **asdict(plan))
    if not study.failures:
        keep(study, Path(directory), mark=mark)
    return study


def keep(study: CeilingStudy, directory: Path, *, mark: str) -> None:
    """Write the study aside, then rename.

    Raises:
        UnavailableError: it cannot be written.
    """
    text = json.dumps(_without_nan({"schema": _SCHEMA, "made_with": mark, **asdict(study)}), allow_nan=False, indent=1)
    aside = directory / f"{_KEPT}.part"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        aside.write_text(text)
        aside.replace(directory / _KEPT)
    except OSError as error:
        raise UnavailableError(
            f"{directory} cannot be written ({error.strerror or error}); make room, then run the same command again"
        ) from error


def kept(directory: Path, *, mark: str) -> CeilingStudy | None:
    """The study that `keep` left in a directory, if it was made with this fingerprint and is whole."""
    try:
        entry: dict[str, Any] = json.loads((directory / _KEPT).read_text())
        if entry["schema"] != _SCHEMA or entry["made_with"] != mark:
            return None
        return CeilingStudy(
            trials=int(entry["trials"]),
            neurons=int(entry["neurons"]),
            activation=tuple(map(_share, entry["activation"])),
            forecast=tuple(map(_share, entry["forecast"])),
            start={task: _number(loss) for task, loss in entry["start"].items()},
            ceiling={task: _number(loss) for task, loss in entry["ceiling"].items()},
            failures={},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _share(entry: dict[str, Any]) -> Share:
    lead, low, high = map(_number, entry["lead"])
    if entry["model"] not in MODELS:
        raise ValueError(f"{entry['model']!r} is no model of the study")
    return Share(model=entry["model"], lead=(lead, low, high), **{name: _number(entry[name]) for name in _NUMBERS})


_NUMBERS = ("loss", "share", "low", "high")


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _without_nan(value: Any) -> Any:
    """NaN as null, which JSON has."""
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
