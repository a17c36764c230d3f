"""`reproduce`: from recordings to tables, figures and pages in one call."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quantformer.errors import DataError
from quantformer_training.cohort import Cohort
from quantformer_training.contest import BRAINLM_FINETUNED
from quantformer_training.effort import Effort
from quantformer_training.jobs import Job
from quantformer_training.networks.brainlm_checkpoint import LICENCE
from quantformer_training.report import Table
from quantformer_training.reproduce.ceiling import CeilingStudy
from quantformer_training.reproduce.ceiling_plan import CEILING, CeilingPlan, folder, kept, make
from quantformer_training.reproduce.ceiling_tables import ceiling_tables
from quantformer_training.reproduce.execute import Execution, categories_shown
from quantformer_training.reproduce.pages import Reproduction, write_pages
from quantformer_training.reproduce.plan import Pretraining, models_of, plan
from quantformer_training.reproduce.tables import tables_of
from quantformer_training.reproduce.within import within_recordings
from quantformer_training.reproduce.work import FIGURES, Executed, Step
from quantformer_training.significance import MINIMUM_MICE
from quantformer_training.store import StoredSession


@dataclass(frozen=True, kw_only=True)
class Reproduced:
    """What there is now: ``files``, the page first; of ``runs`` planned, ``made`` in this call (auto-encoders among them)
    and ``failed``.
    """

    files: tuple[Path, ...]
    runs: int
    made: int
    failed: int


def reproduce(
    tables: Sequence[str],
    *,
    execution: Execution,
    effort: Effort,
    command: str,
    facts: Sequence[tuple[str, str]] = (),
    ceiling: CeilingPlan | None = None,
    seeds: int = 1,
    report: Callable[[Step], None],
) -> Reproduced:
    """Make the runs that ``tables`` (of `names.TABLES`) need and are not there yet, and write everything to ``execution.out``.

    Every run is made with each of ``seeds`` seeds from the execution's on; figures and the ceiling study with the first.
    ``command`` is how to do it again, ``facts`` what else the pages tell of how it was made; ``ceiling`` is the study that
    follows our table, where there is to be one.

    Raises:
        DataError: the cohort has no stimuli, or is of several origins, or BrainLM's weights cannot be used.
        UnavailableError: ``out`` cannot be written, or Ray cannot be used.
    """
    cohort = execution.cohort
    origin, shown = cohort.origin, categories_shown(cohort)
    if not any(shown.values()):
        raise DataError(f"none of the {len(cohort.sessions)} recordings has a stimulus category; a table needs one")
    # Read before anything is trained: a folder that cannot be used is told at once.
    weights = _weights(tables, execution)
    contests = plan(tables, shown=shown, effort=effort, extent=execution.extent, brainlm=execution.brainlm is not None)
    wanted = (
        None if ceiling is None or "ours" not in tables else _Ceiling.of(ceiling, execution=execution, effort=effort)
    )
    steps = _Steps(report, seeds=seeds)
    executed = execution.run(
        contests,
        figures_from=Pretraining(effort=effort) if FIGURES in tables else None,
        others=wanted.jobs if wanted else (),
        report=steps.of(execution.seed),
    )
    used = [execution.seed + number for number in range(seeds)]
    for seed in used[1:]:
        executed = executed.joined(replace(execution, seed=seed).run(contests, report=steps.of(seed)))
    made = Reproduction(
        origin=f"{origin} ({len(cohort.mice)} {'mouse' if len(cohort.mice) == 1 else 'mice'}, {len(cohort.sessions)} recordings)",
        facts=[("seed" if seeds == 1 else "seeds", ", ".join(map(str, used))), ("preset", effort.preset), *facts, *weights],
        command=command,
        tables={name: tables_of(name, executed.runs, effort=effort) for name in tables if name != FIGURES},
        runs=executed.runs,
        pretraining=executed.pretraining,
        left_out={**cohort.left_out, **_only_pretrained_on(cohort)},
        within=within_recordings(executed.runs, execution.store)
        if "ours" in tables and len(cohort.mice) < MINIMUM_MICE
        else [],
        more=wanted.tables(executed) if wanted else [],
        more_failures=wanted.failures(executed) if wanted else {},
        gallery=executed.gallery,
        gallery_failure=executed.gallery_failure,
    )
    files = write_pages(made, execution.out)
    return Reproduced(
        files=tuple(files),
        runs=len(executed.runs),
        made=executed.made,
        failed=sum(bool(run.failure) for run in executed.runs),
    )


class _Steps:
    """The steps of one seed after another as steps of the whole, each taken to be as long as the one that runs."""

    def __init__(self, report: Callable[[Step], None], *, seeds: int) -> None:
        self._report, self._left = report, seeds
        self._before = self._total = 0

    def of(self, seed: int) -> Callable[[Step], None]:
        """What the seed that begins now is to report to."""
        began = time.monotonic()
        self._before, self._left = self._before + self._total, self._left - 1
        before, later = self._before, self._left

        def report(step: Step) -> None:
            self._total = step.total
            # A seed whose runs were all there says nothing of the others.
            there = not step.name and step.done == step.total
            each_s = math.nan if there else time.monotonic() - began + step.left_s
            whole = replace(
                step,
                name=f"seed {seed}, {step.name}" if step.name and (before or later) else step.name,
                done=before + step.done,
                total=before + step.total * (1 + later),
                left_s=step.left_s + later * each_s if later else step.left_s,
            )
            self._report(whole)

        return report


def _weights(tables: Sequence[str], execution: Execution) -> list[tuple[str, str]]:
    """What the pages say of BrainLM's published weights, where a table has their row: the licence, or that it is absent."""
    digest = execution.brainlm_digest
    if not any(BRAINLM_FINETUNED in models_of(name) for name in tables if name != FIGURES):
        return []
    if not digest:
        return [("BrainLM, fine-tuned", "absent: its published weights were not given (--brainlm DIR)")]
    terms = f"{LICENCE}: not for commercial use, and what is fine-tuned from them may not be passed on"
    return [("BrainLM, fine-tuned", f"from the user's copy of the published weights ({terms}), SHA-256 {digest[:16]}")]


@dataclass(frozen=True, kw_only=True)
class _Ceiling:
    """The ceiling study of a reproduction: what an earlier call kept, or the job that makes it."""

    plan: CeilingPlan
    before: CeilingStudy | None
    jobs: tuple[Job, ...]

    @classmethod
    def of(cls, plan: CeilingPlan, *, execution: Execution, effort: Effort) -> _Ceiling:
        mark = plan.mark(effort=effort, seed=execution.seed, versions=execution.versions)
        directory = execution.out / folder(mark)
        arguments = {
            "plan": plan, "effort": effort, "seed": execution.seed, "directory": str(directory), "mark": mark,
            "device": execution.device,
        }  # fmt: skip
        before = kept(directory, mark=mark)
        return cls(
            plan=plan, before=before, jobs=() if before else (Job(name=CEILING, function=make, arguments=arguments),)
        )

    def tables(self, executed: Executed) -> list[Table]:
        study = self._study(executed)
        return [] if study is None else ceiling_tables(study, plan=self.plan)

    def failures(self, executed: Executed) -> dict[str, str]:
        """Why there is no study, or which of its models are missing."""
        study = self._study(executed)
        if study is None:
            return {CEILING: executed.others[CEILING].failure}
        return {f"{CEILING}, {model}": reason for model, reason in study.failures.items()}

    def _study(self, executed: Executed) -> CeilingStudy | None:
        if self.before is not None:
            return self.before
        found: CeilingStudy | None = executed.others[CEILING].value
        return found


def _only_pretrained_on(cohort: Cohort) -> dict[str, str]:
    """Sessions that no run reads because an earlier one of the mouse was shown the same categories."""
    reason = "an earlier recording of the mouse has the same categories; this one only lends windows to pre-training"
    return {session.name: reason for session in cohort.sessions if _repeats(cohort, session)}


def _repeats(cohort: Cohort, session: StoredSession) -> bool:
    """Whether every category of a session is in an earlier one of its mouse."""
    mouse = session.provenance.subject
    categories = set(session.stimuli.category) & set(cohort.categories)
    return bool(categories) and all(
        cohort.session_with(mouse=mouse, category=category) is not session for category in categories
    )
