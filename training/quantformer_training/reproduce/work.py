"""The jobs of a plan: auto-encoders first, then contests, side by side, each stored as it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from quantformer_training.contest import Entry, contest
from quantformer_training.explain.gallery import Gallery
from quantformer_training.jobs import Job, Outcome, run_all
from quantformer_training.machine import machine, software
from quantformer_training.pretrain import PRETRAINED
from quantformer_training.pretrain_cohort import pretrain_cohort
from quantformer_training.reproduce.figures import draw, drawn
from quantformer_training.reproduce.pace import Pace
from quantformer_training.reproduce.plan import (
    DRAWN_BESIDE,
    MODELS_GROUP,
    PlannedContest,
    Pretraining,
    in_jobs,
    is_ablation,
    pretrainings,
)
from quantformer_training.run_store import Run, RunKey

if TYPE_CHECKING:
    from quantformer_training.reproduce.execute import Execution

#: "Model" of the runs that are pre-trainings.
AUTOENCODER = "autoencoder"
#: Folder of the figures in ``out``, and the name of their job.
FIGURES = "figures"


@dataclass(frozen=True, kw_only=True)
class Step:
    """A job that ended, or none yet: ``done`` of ``total`` models and auto-encoders are there, ``left_s`` seconds are left
    (NaN where that is not known yet).
    """

    name: str
    failure: str
    done: int
    total: int
    left_s: float


@dataclass(frozen=True, kw_only=True)
class Executed:
    """All planned runs, failed ones among them, and the auto-encoders'; ``made`` of them now, the others before.

    ``gallery`` are the figures, or None with the reason in ``gallery_failure``, or None where none were asked for;
    ``others`` how the other jobs ended, by name.
    """

    runs: tuple[Run, ...]
    pretraining: tuple[Run, ...]
    made: int
    gallery: Gallery | None = None
    gallery_failure: str = ""
    others: Mapping[str, Outcome] = field(default_factory=dict)

    def joined(self, more: Executed) -> Executed:
        """The same with the runs of ``more``."""
        return replace(
            self,
            runs=(*self.runs, *more.runs),
            pretraining=(*self.pretraining, *more.pretraining),
            made=self.made + more.made,
        )


def contest_here(*, device: str, **arguments: Any) -> tuple[list[Entry], str, dict[str, str]]:
    """A contest, and the machine and software that it ran on: on a cluster, others than the caller's."""
    entries = contest(device=device, **arguments)
    return entries, machine(gpu=device != "cpu"), software()


def pretrain_here(*, device: str, **arguments: Any) -> tuple[dict[str, float], str, dict[str, str]]:
    """As `contest_here`, for an auto-encoder."""
    figures = pretrain_cohort(device=device, **arguments)
    return figures, machine(gpu=device != "cpu"), software()


def needs_of(planned: PlannedContest, models: Sequence[str]) -> tuple[Pretraining, ...]:
    """The auto-encoders that these of its models start from."""
    return planned.needs if any(map(is_ablation, models)) else (planned.pretraining,)


class Work:
    """One call of `Execution.run`: what is missing, what was done, and how it ended."""

    def __init__(
        self,
        execution: Execution,
        contests: Sequence[PlannedContest],
        figures_from: Pretraining | None,
        others: Sequence[Job],
        report: Callable[[Step], None],
    ) -> None:
        self._here, self._contests, self._report = execution, contests, report
        self._figures_from, self.gallery_failure = figures_from, ""
        self.gallery: Gallery | None = None
        self._others, self.others = {job.name: job for job in others}, dict[str, Outcome]()
        self._failed: dict[Pretraining, str] = {}
        self._pace = Pace()
        for other in execution.store.runs():
            # Another seed of it takes as long.
            if other.key.seed != execution.seed and not other.failure:
                self._pace.took(other.key.model, other.seconds)
        self.made = 0
        self._missing: list[tuple[PlannedContest, tuple[str, ...]]] = []
        self._done = 0
        for planned in contests:
            known = {name: self._finished(planned, name) for name in planned.models}
            for name, run in known.items():
                if run is not None:
                    self._done += 1
                    self._pace.took(name, run.seconds)
            models = tuple(name for name, run in known.items() if run is None)
            self._missing += [(planned, some) for some in in_jobs(models, extent=execution.extent)]
        needed = dict.fromkeys(one for planned, models in self._missing for one in needs_of(planned, models))
        if figures_from is not None:
            # Runs that are still to come will stand in them.
            if not self._coming():
                self.gallery = drawn(execution.out / FIGURES, execution.drawing_mark(figures_from))
            needed |= {} if self.gallery else {figures_from: None}
        self._untrained = [one for one in needed if not self._trained(one)]
        # What is left, as kinds of work, for the time that it takes.
        self._left = [AUTOENCODER for _ in self._untrained]
        self._left += [model for _, models in self._missing for model in models]
        self._left += self._others
        self._left += [FIGURES] if figures_from is not None and self.gallery is None else []
        self._total = self._done + len(self._left)

    def pretrain(self) -> None:
        """Train the auto-encoders that missing runs start from; those of the directory that are whole stay."""
        self._say("", "")
        by_name = {f"pre-training, {one.title}": one for one in self._untrained}
        jobs = [
            Job(
                name=name,
                function=pretrain_here,
                arguments={
                    "sessions": self._here.every_session(), "effort": one.effort, "seed": self._here.seed,
                    "out": str(self._here.directory(one)), "without_mouse": one.without_mouse,
                    "without_category": one.without_category, "quantized": one.quantized, "device": self._here.device,
                },
            )
            for name, one in by_name.items()
        ]  # fmt: skip

        def keep(outcome: Outcome) -> None:
            one = by_name[outcome.name]
            if outcome.failed:
                self._failed[one] = f"its pre-training failed ({outcome.failure})"
            self._store(
                self._here.pretraining_key(one), outcome, mark=self._here.pretraining_mark(one),
                metrics={} if outcome.failed else outcome.value[0],
            )  # fmt: skip
            self._pace.took(AUTOENCODER, outcome.seconds)
            self._ended(outcome, [AUTOENCODER])

        self._run(jobs, keep)

    def compete(self) -> None:
        """Run the contests; those whose auto-encoder failed are put down as failed."""
        jobs = [*self._others.values()]
        by_name = {}
        for planned, models in self._missing:
            needs = needs_of(planned, models)
            lost = [self._failed[one] for one in needs if one in self._failed]
            where = ", ".join(filter(None, (planned.group, planned.mouse, planned.category, planned.variant)))
            name = f"{where}: {', '.join(models)}"
            if lost:
                self._keep(Outcome(name=name, failure=lost[0]), planned, models)
                continue
            by_name[name] = planned, models
            plain = str(self._here.directory(needs[1])) if len(needs) > 1 else ""
            jobs.append(
                Job(
                    name=name,
                    function=contest_here,
                    arguments={
                        "sessions": self._here.sessions(planned), "mouse": planned.mouse, "category": planned.category,
                        "models": models, "pretrained": str(self._here.directory(planned.pretraining)),
                        "plain": plain, "brainlm": str(self._here.brainlm or ""), "label": planned.label,
                        "effort": planned.effort, "seed": self._here.seed, "device": self._here.device,
                    },
                )
            )  # fmt: skip

        def keep(outcome: Outcome) -> None:
            if outcome.name in self._others:
                self.others[outcome.name] = outcome
                self._ended(outcome, [outcome.name])
            else:
                self._keep(outcome, *by_name[outcome.name])

        self._run(jobs, keep)

    def illustrate(self) -> None:
        """Draw the figures, where they are missing: last, for the others' forecasts stand in them."""
        self._run(self._figure_jobs(), self._keep_figures)

    def runs(self) -> tuple[Run, ...]:
        """Every planned run, in the plan's order."""
        stored = {run.key: run for run in self._here.store.runs()}
        return tuple(stored[self._here.key(planned, model)] for planned in self._contests for model in planned.models)

    def pretraining(self) -> tuple[Run, ...]:
        """The runs of the plan's auto-encoders that the store knows."""
        stored = {run.key: run for run in self._here.store.runs()}
        keys = [self._here.pretraining_key(one) for one in pretrainings(self._contests)]
        return tuple(stored[key] for key in keys if key in stored)

    def _coming(self) -> bool:
        """Whether a run is missing that is drawn beside ours."""
        return any(
            planned.group == MODELS_GROUP
            and planned.mouse == self._here.drawn_mouse
            and not set(DRAWN_BESIDE).isdisjoint(models)
            for planned, models in self._missing
        )

    def _finished(self, planned: PlannedContest, model: str) -> Run | None:
        return self._here.store.finished(self._here.key(planned, model), fingerprint=self._here.mark(planned, model))

    def _trained(self, one: Pretraining) -> bool:
        """Known to the store, and still on the disk."""
        known = self._here.store.finished(self._here.pretraining_key(one), fingerprint=self._here.pretraining_mark(one))
        return known is not None and (self._here.directory(one) / PRETRAINED).is_file()

    def _run(self, jobs: Sequence[Job], keep: Callable[[Outcome], None]) -> None:
        run_all(jobs, workers=self._here.workers, processes=self._here.processes, report=keep)

    def _figure_jobs(self) -> list[Job]:
        source = self._figures_from
        if source is None or self.gallery is not None:
            return []
        if source in self._failed:
            self._keep_figures(Outcome(name=FIGURES, failure=self._failed[source]))
            return []
        out, device = str(self._here.out / FIGURES), self._here.device
        arguments = {"drawing": self._here.drawing(source), "out": out, "device": device}
        return [Job(name=FIGURES, function=draw, arguments=arguments)]

    def _keep_figures(self, outcome: Outcome) -> None:
        self.gallery, self.gallery_failure = outcome.value, outcome.failure
        self._pace.took(FIGURES, outcome.seconds)
        self._ended(outcome, [FIGURES])

    def _keep(self, outcome: Outcome, planned: PlannedContest, models: Sequence[str]) -> None:
        entries: dict[str, Entry] = {} if outcome.failed else {entry.model: entry for entry in outcome.value[0]}
        # Reading the data is shared by the job's models.
        shared = max(0.0, outcome.seconds - sum(entry.seconds for entry in entries.values())) / len(models)
        for model in models:
            entry = entries.get(model)
            self._store(
                self._here.key(planned, model),
                outcome,
                mark=self._here.mark(planned, model),
                metrics={} if entry is None else entry.metrics,
                # The time of a job that failed is that of all its models.
                seconds=outcome.seconds / len(models) if entry is None else entry.seconds,
                failure=outcome.failure if entry is None else entry.failure,
                arrays=None if entry is None or entry.failure else entry.arrays,
            )
            if entry is not None and not entry.failure:
                self._pace.took(model, entry.seconds + shared)
        failures = [f"{model}: {entry.failure}" for model, entry in entries.items() if entry.failure]
        self._ended(outcome, models, failure="; ".join(failures))

    def _store(
        self,
        key: RunKey,
        outcome: Outcome,
        *,
        mark: str,
        metrics: Mapping[str, float],
        seconds: float | None = None,
        failure: str | None = None,
        arrays: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        here = None, machine(gpu=self._here.device != "cpu"), self._here.versions
        _, where, versions = here if outcome.failed else outcome.value
        run = Run(
            key=key,
            fingerprint=mark,
            origin=self._here.cohort.origin,
            metrics=metrics,
            seconds=outcome.seconds if seconds is None else seconds,
            machine=where,
            versions=versions,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            failure=outcome.failure if failure is None else failure,
        )
        self._here.store.add(run, arrays)
        self.made += 1

    def _ended(self, outcome: Outcome, kinds: Sequence[str], *, failure: str = "") -> None:
        for kind in kinds:
            self._left.remove(kind)
        self._done += len(kinds)
        self._say(outcome.name, outcome.failure or failure)

    def _say(self, name: str, failure: str) -> None:
        left_s = self._pace.left_s(self._left, processes=self._here.processes)
        self._report(Step(name=name, failure=failure, done=self._done, total=self._total, left_s=left_s))
