"""The paper's figures: our model trained on each category of one mouse, and what it does, drawn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from quantformer.errors import DataError, QuantformerError
from quantformer_training.accelerator import one_process
from quantformer_training.calibrate import calibrate
from quantformer_training.effort import Effort
from quantformer_training.explain.chosen import MOST_ROWS, Competitor
from quantformer_training.explain.gallery import DrawnFigure, Explained, Gallery, draw_all
from quantformer_training.finetune import finetune
from quantformer_training.loop import Progress
from quantformer_training.pretrain import load_pretrained
from quantformer_training.run_data import RunData
from quantformer_training.store import open_session
from quantformer_training.threads import one_thread

_INDEX = "figures.json"


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What figures are drawn from: store directories by category, all of one mouse, and an auto-encoder's directory;
    ``competitors`` by category and name, from their own runs.

    ``mark`` is the digest of all that they follow from.
    """

    sessions: dict[str, str]
    pretrained: str
    effort: Effort
    seed: int
    mark: str
    competitors: Mapping[str, Mapping[str, Competitor]] = field(default_factory=dict)


def draw(*, drawing: Drawing, out: str, device: str = "cpu") -> Gallery:
    """Train on each category, on ``device`` (``cpu`` or ``cuda``), and draw every figure into ``out``.

    Raises:
        DataError: no category could be used.
        UsageError: the device is not known. UnavailableError: ``cuda`` was asked for and torch sees no GPU.
    """
    pretrained, effort = load_pretrained(Path(drawing.pretrained)), drawing.effort.seeded(drawing.seed)
    directory, accelerator = Path(out), one_process(device=device, precision=effort.gpu_precision)
    explained: dict[str, Explained] = {}
    unusable: dict[str, str] = {}
    with one_thread():
        for category, path in drawing.sessions.items():
            session = open_session(Path(path))
            try:
                data = RunData.read(session, category=category, most=effort.most)
                sources = data.sources(pretrained.signal_scale)
                model = finetune(
                    pretrained,
                    vocabulary=data.vocabulary,
                    real=sources.train,
                    pseudo=sources.pseudo,
                    moments=sources.moments,
                    validation=sources.validation,
                    config=effort.finetuning,
                    report=_silent,
                    accelerator=accelerator,
                )
                model.to(accelerator.device)
                seconds = sum(stop - start for start, stop in data.members[0].split.validation) / session.rate_hz
                calibrated = calibrate(model, sources.validation, seconds=seconds)
                model.forecaster.weigh(calibrated.spread_weights)
                # What is drawn looks into the network, on the CPU.
                model.to(torch.device("cpu"))
            except QuantformerError as error:
                unusable[category] = str(error)
                continue
            explained[category] = Explained(
                model=model,
                interval=calibrated.interval,
                train=sources.train.at_lead(0, most=MOST_ROWS),
                test=sources.test.at_lead(0, most=MOST_ROWS),
                competitors=drawing.competitors.get(category, {}),
            )
        if not explained:
            raise DataError("; ".join(unusable.values()))
        gallery = draw_all(
            directory,
            pretrained=pretrained,
            categories=explained,
            origin=session.provenance.origin,
            source=f"mouse {session.provenance.subject}",
            rate_hz=session.rate_hz,
            seed=drawing.seed,
        )
    gallery = Gallery(figures=gallery.figures, left_out={**unusable, **gallery.left_out})
    _remember(gallery, directory, drawing.mark)
    return gallery


def drawn(directory: Path, mark: str) -> Gallery | None:
    """What `draw` left in a directory, if it was made with this mark and is whole."""
    try:
        index: dict[str, Any] = json.loads((directory / _INDEX).read_text())
        if index["made_with"] != mark:
            return None
        figures = []
        for entry in index["figures"]:
            svg, png = (directory / Path(entry.pop(kind)).name for kind in ("svg", "png"))
            if _digest(svg, png) != entry.pop("sha256"):
                return None
            figures.append(DrawnFigure(svg=svg, png=png, **entry))
        return Gallery(figures=tuple(figures), left_out=index["left_out"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _remember(gallery: Gallery, directory: Path, mark: str) -> None:
    figures = [
        {**asdict(figure), "svg": figure.svg.name, "png": figure.png.name, "sha256": _digest(figure.svg, figure.png)}
        for figure in gallery.figures
    ]
    aside = directory / f"{_INDEX}.part"
    aside.write_text(json.dumps({"made_with": mark, "figures": figures, "left_out": dict(gallery.left_out)}, indent=1))
    aside.replace(directory / _INDEX)


def _digest(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def _silent(progress: Progress) -> None:
    """Runs of a study report as a whole."""
