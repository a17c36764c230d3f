"""`reproduce`: from recordings to tables, figures and pages in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantformer.errors import DataError
from quantformer_training.effort import Effort
from quantformer_training.reproduce.execute import FIGURES, Execution, Step, categories_shown
from quantformer_training.reproduce.pages import Reproduction, write_pages
from quantformer_training.reproduce.plan import Pretraining, plan
from quantformer_training.reproduce.tables import tables_of


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
    report: Callable[[Step], None],
) -> Reproduced:
    """Make the runs that ``tables`` (of `plan.TABLES`) need and are not there yet, and write everything to ``execution.out``.

    ``command`` is how to do it again, ``facts`` what else the pages tell of how it was made.

    Raises:
        DataError: the cohort has no stimuli, or is of several origins.
        UnavailableError: ``out`` cannot be written, or Ray cannot be used.
    """
    cohort = execution.cohort
    origin, shown = cohort.origin, categories_shown(cohort)
    if not any(shown.values()):
        raise DataError(f"none of the {len(cohort.sessions)} recordings has a stimulus category; a table needs one")
    contests = plan(tables, shown=shown, effort=effort, extent=execution.extent)
    executed = execution.run(
        contests, figures_from=Pretraining(effort=effort) if FIGURES in tables else None, report=report
    )
    made = Reproduction(
        origin=f"{origin} ({len(cohort.mice)} {'mouse' if len(cohort.mice) == 1 else 'mice'}, {len(cohort.sessions)} recordings)",
        facts=[("seed", str(execution.seed)), ("preset", effort.preset), *facts],
        command=command,
        tables={name: tables_of(name, executed.runs, effort=effort) for name in tables if name != FIGURES},
        runs=executed.runs,
        pretraining=executed.pretraining,
        left_out=cohort.left_out,
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
