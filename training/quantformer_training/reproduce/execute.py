"""Making the runs that a plan needs and the store does not have: where things lie, and what each follows from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from quantformer.labels import LabelRule
from quantformer_training.cohort import Cohort
from quantformer_training.contest import BRAINLM_FINETUNED, MODELS
from quantformer_training.explain.chosen import Competitor, ForecastScore
from quantformer_training.jobs import Job, Workers
from quantformer_training.machine import software
from quantformer_training.networks.brainlm_checkpoint import load_brainlm
from quantformer_training.reproduce.figures import Drawing
from quantformer_training.reproduce.plan import (
    DRAWN_BESIDE,
    MODELS_GROUP,
    POOLED,
    Extent,
    PlannedContest,
    Pretraining,
)
from quantformer_training.reproduce.work import AUTOENCODER, Executed, Step, Work, needs_of
from quantformer_training.run_store import Run, RunKey, RunStore, fingerprint

#: Group of the runs that are pre-trainings.
PRETRAINING_GROUP = "pretraining"
#: Folder of the auto-encoders in ``out``.
AUTOENCODERS = "pretrained"


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where and how: the cohort's sessions lie in ``recordings``, everything made goes to ``out``; ``brainlm`` is the folder
    of BrainLM's published weights, where the user has them. Networks train on ``device``, ``cpu`` or ``cuda``: like the
    machine it is told of a run, and no part of what the run follows from.
    """

    cohort: Cohort
    recordings: Path
    out: Path
    extent: Extent
    seed: int
    workers: Workers = "local"
    processes: int = 1
    device: str = "cpu"
    brainlm: Path | None = None
    #: Versions of what figures depend on.
    versions: Mapping[str, str] = field(default_factory=software)

    @cached_property
    def store(self) -> RunStore:
        """The runs in ``out``."""
        return RunStore(self.out)

    @cached_property
    def brainlm_digest(self) -> str:
        """SHA-256 of those weights, "" where there are none.

        Raises:
            DataError: as `load_brainlm`.
        """
        return "" if self.brainlm is None else load_brainlm(self.brainlm).digest

    def run(
        self,
        contests: Sequence[PlannedContest],
        *,
        figures_from: Pretraining | None = None,
        others: Sequence[Job] = (),
        report: Callable[[Step], None],
    ) -> Executed:
        """Make what is missing; ``report`` is told of every job that ended, once its runs are on the disk.

        Figures are drawn where an auto-encoder to draw them from is given. ``others`` are run beside the contests, whatever
        they are; what they return is theirs to keep.

        Raises:
            UnavailableError: the disk is full, or Ray cannot be used.
        """
        work = Work(self, contests, figures_from, others, report)
        work.pretrain()
        work.compete()
        work.illustrate()
        return Executed(
            runs=work.runs(),
            pretraining=work.pretraining(),
            made=work.made,
            gallery=work.gallery,
            gallery_failure=work.gallery_failure,
            others=work.others,
        )

    def key(self, planned: PlannedContest, model: str) -> RunKey:
        """The key of a model's run."""
        return RunKey(
            table=planned.group, mouse=planned.mouse, category=planned.category, model=model, task=MODELS[model].tasks,
            variant=planned.variant, seed=self.seed,
        )  # fmt: skip

    def mark(self, planned: PlannedContest, model: str) -> str:
        """The fingerprint of a model's run."""
        config: dict[str, Any] = {
            "effort": asdict(planned.effort),
            "pretraining": [self.pretraining_mark(one) for one in needs_of(planned, (model,))],
        }
        if planned.label != LabelRule().definition:
            config["label"] = planned.label
        if model == BRAINLM_FINETUNED:
            config["weights"] = self.brainlm_digest
        return fingerprint(config=config, data=self.cohort.fingerprint, software=self.versions)

    def pretraining_key(self, pretraining: Pretraining) -> RunKey:
        """The key under which the cost and quality of an auto-encoder are kept."""
        return RunKey(
            table=PRETRAINING_GROUP,
            mouse=f"all but {pretraining.without_mouse}" if pretraining.without_mouse else "all",
            category=f"all but {pretraining.without_category}" if pretraining.without_category else "all",
            model=AUTOENCODER if pretraining.quantized else f"{AUTOENCODER}_plain",
            task="both",
            variant=pretraining.variant,
            seed=self.seed,
        )

    def pretraining_mark(self, pretraining: Pretraining) -> str:
        """The fingerprint of an auto-encoder."""
        effort = pretraining.effort
        config = {
            "model": asdict(effort.model), "loop": asdict(effort.pretraining), "windows": effort.pretraining_windows,
            "batch": effort.pretraining_batch, "without": [pretraining.without_mouse, pretraining.without_category],
            "quantized": pretraining.quantized, "seed": self.seed,
        }  # fmt: skip
        return fingerprint(config=config, data=self.cohort.fingerprint, software=self.versions)

    def directory(self, pretraining: Pretraining) -> Path:
        """Where an auto-encoder is kept: by what it is made from, so that another never takes its place."""
        return self.out / AUTOENCODERS / self.pretraining_mark(pretraining)[:16]

    def sessions(self, planned: PlannedContest) -> tuple[str, ...]:
        """The directories of the sessions that a contest reads."""
        mice = self.cohort.mice if planned.mouse == POOLED else (planned.mouse,)
        found = [self.cohort.session_with(mouse=mouse, category=planned.category) for mouse in mice]
        return tuple(str(self.recordings / session.name) for session in found if session is not None)

    @property
    def drawn_mouse(self) -> str:
        """Whose figures are drawn: the mouse with the most categories, or the first of several."""
        by_mouse = categories_shown(self.cohort)
        return max(by_mouse, key=lambda name: len(by_mouse[name]))

    def drawn_beside(self, pretraining: Pretraining) -> dict[str, dict[str, Run]]:
        """Runs of `DRAWN_BESIDE` on that mouse, by category and model: those that are there."""
        mouse, found = self.drawn_mouse, dict[str, dict[str, Run]]()
        for category in categories_shown(self.cohort)[mouse]:
            planned = PlannedContest(
                group=MODELS_GROUP, mouse=mouse, category=category, models=DRAWN_BESIDE, pretraining=pretraining
            )
            for model in DRAWN_BESIDE:
                run = self.store.finished(self.key(planned, model), fingerprint=self.mark(planned, model))
                if run is not None:
                    found.setdefault(category, {})[model] = run
        return found

    def drawing_mark(self, pretraining: Pretraining) -> str:
        """The fingerprint of the figures."""
        beside = self.drawn_beside(pretraining)
        config = {
            "effort": asdict(pretraining.effort), "pretraining": self.pretraining_mark(pretraining),
            "mouse": self.drawn_mouse,
            "beside": [[category, model, run.fingerprint] for category, runs in beside.items() for model, run in runs.items()],
        }  # fmt: skip
        return fingerprint(config=config, data=self.cohort.fingerprint, software=self.versions)

    def drawing(self, pretraining: Pretraining) -> Drawing:
        """What figures are drawn from.

        Raises:
            DataError: the arrays of a run that is drawn beside ours were altered.
        """
        mouse = self.drawn_mouse
        sessions = {
            name: self.cohort.session_with(mouse=mouse, category=name) for name in categories_shown(self.cohort)[mouse]
        }
        return Drawing(
            sessions={name: str(self.recordings / one.name) for name, one in sessions.items() if one is not None},
            pretrained=str(self.directory(pretraining)),
            effort=pretraining.effort,
            seed=self.seed,
            mark=self.drawing_mark(pretraining),
            competitors={
                category: {MODELS[model].title: told for model, run in runs.items() for told in self._competitor(run)}
                for category, runs in self.drawn_beside(pretraining).items()
            },
        )

    def _competitor(self, run: Run) -> list[Competitor]:
        """None of a run that was made before its forecasts were kept."""
        arrays = self.store.arrays(run)
        if "shown_row" not in arrays:
            return []
        score = ForecastScore(mse=run.metrics["mse"], r=run.metrics["r"])
        rows, forecasts = tuple(arrays["shown_row"].tolist()), arrays["shown_forecast"].astype(np.float64)
        return [Competitor(rows=rows, forecasts=forecasts, score=score)]

    def every_session(self) -> tuple[str, ...]:
        """The directories of all sessions."""
        return tuple(str(self.recordings / session.name) for session in self.cohort.sessions)


def categories_shown(cohort: Cohort) -> dict[str, tuple[str, ...]]:
    """The stimulus categories of each mouse."""
    return {
        mouse: tuple(name for name in cohort.categories if cohort.session_with(mouse=mouse, category=name) is not None)
        for mouse in cohort.mice
    }
