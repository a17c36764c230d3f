"""Making the runs that a plan needs and the store does not have: auto-encoders first, then contests, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from quantformer_training.cohort import Cohort
from quantformer_training.contest import MODELS, Entry, contest
from quantformer_training.explain.gallery import Gallery
from quantformer_training.jobs import Job, Outcome, Workers, run_all
from quantformer_training.planned_runs import machine, software
from quantformer_training.pretrain import PRETRAINED
from quantformer_training.pretrain_cohort import pretrain_cohort
from quantformer_training.reproduce.figures import Drawing, draw, drawn
from quantformer_training.reproduce.pace import Pace
from quantformer_training.reproduce.plan import (
    POOLED,
    Extent,
    PlannedContest,
    Pretraining,
    in_jobs,
    is_ablation,
    pretrainings,
)
from quantformer_training.run_store import Run, RunKey, RunStore, fingerprint

#: Group of the runs that are pre-trainings, and their "model".
PRETRAINING_GROUP, AUTOENCODER = "pretraining", "autoencoder"
#: Folders in ``out``.
AUTOENCODERS, FIGURES = "pretrained", "figures"


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


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where and how: the cohort's sessions lie in ``recordings``, everything made goes to ``out``."""

    cohort: Cohort
    recordings: Path
    out: Path
    extent: Extent
    seed: int
    workers: Workers = "local"
    processes: int = 1
    #: Versions of what figures depend on.
    versions: Mapping[str, str] = field(default_factory=software)

    @cached_property
    def store(self) -> RunStore:
        """The runs in ``out``."""
        return RunStore(self.out)

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
        work = _Work(self, contests, figures_from, others, report)
        work.pretrain()
        work.compete()
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
        config = {
            "effort": asdict(planned.effort),
            "pretraining": [self.pretraining_mark(one) for one in _needs(planned, (model,))],
        }
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

    def drawing(self, pretraining: Pretraining) -> Drawing:
        """What figures are drawn from: the mouse with the most categories, or the first of several."""
        by_mouse = categories_shown(self.cohort)
        mouse = max(by_mouse, key=lambda name: len(by_mouse[name]))
        sessions = {name: self.cohort.session_with(mouse=mouse, category=name) for name in by_mouse[mouse]}
        config = {"effort": asdict(pretraining.effort), "pretraining": self.pretraining_mark(pretraining), "mouse": mouse}
        return Drawing(
            sessions={name: str(self.recordings / one.name) for name, one in sessions.items() if one is not None},
            pretrained=str(self.directory(pretraining)),
            effort=pretraining.effort,
            seed=self.seed,
            mark=fingerprint(config=config, data=self.cohort.fingerprint, software=self.versions),
        )

    def every_session(self) -> tuple[str, ...]:
        """The directories of all sessions."""
        return tuple(str(self.recordings / session.name) for session in self.cohort.sessions)


def categories_shown(cohort: Cohort) -> dict[str, tuple[str, ...]]:
    """The stimulus categories of each mouse."""
    return {
        mouse: tuple(name for name in cohort.categories if cohort.session_with(mouse=mouse, category=name) is not None)
        for mouse in cohort.mice
    }


def contest_here(**arguments: Any) -> tuple[list[Entry], str, dict[str, str]]:
    """A contest, and the machine and software that it ran on: on a cluster, others than the caller's."""
    entries = contest(**arguments)
    return entries, machine(), software()


def pretrain_here(**arguments: Any) -> tuple[dict[str, float], str, dict[str, str]]:
    """As `contest_here`, for an auto-encoder."""
    figures = pretrain_cohort(**arguments)
    return figures, machine(), software()


def _needs(planned: PlannedContest, models: Sequence[str]) -> tuple[Pretraining, ...]:
    """The auto-encoders that these of its models start from."""
    return planned.needs if any(map(is_ablation, models)) else (planned.pretraining,)


class _Work:
    """One call of `Execution.run`."""

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
        needed = dict.fromkeys(one for planned, models in self._missing for one in _needs(planned, models))
        if figures_from is not None:
            self.gallery = drawn(execution.out / FIGURES, execution.drawing(figures_from).mark)
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
                    "without_category": one.without_category, "quantized": one.quantized,
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
        jobs = [*self._others.values(), *self._figure_jobs()]
        by_name = {}
        for planned, models in self._missing:
            needs = _needs(planned, models)
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
                        "plain": plain, "effort": planned.effort, "seed": self._here.seed,
                    },
                )
            )  # fmt: skip

        def keep(outcome: Outcome) -> None:
            if outcome.name in self._others:
                self.others[outcome.name] = outcome
                self._ended(outcome, [outcome.name])
            elif outcome.name == FIGURES:
                self._keep_figures(outcome)
            else:
                self._keep(outcome, *by_name[outcome.name])

        self._run(jobs, keep)

    def runs(self) -> tuple[Run, ...]:
        """Every planned run, in the plan's order."""
        stored = {run.key: run for run in self._here.store.runs()}
        return tuple(stored[self._here.key(planned, model)] for planned in self._contests for model in planned.models)

    def pretraining(self) -> tuple[Run, ...]:
        """The runs of the plan's auto-encoders that the store knows."""
        stored = {run.key: run for run in self._here.store.runs()}
        keys = [self._here.pretraining_key(one) for one in pretrainings(self._contests)]
        return tuple(stored[key] for key in keys if key in stored)

    def _finished(self, planned: PlannedContest, model: str) -> Run | None:
        return self._here.store.finished(self._here.key(planned, model), fingerprint=self._here.mark(planned, model))

    def _trained(self, one: Pretraining) -> bool:
        """Known to the store, and still on the disk."""
        known = self._here.store.finished(
            self._here.pretraining_key(one), fingerprint=self._here.pretraining_mark(one)
        )
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
        arguments = {"drawing": self._here.drawing(source), "out": str(self._here.out / FIGURES)}
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
        _, where, versions = (None, machine(), self._here.versions) if outcome.failed else outcome.value
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
