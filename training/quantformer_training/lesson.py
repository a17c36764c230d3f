"""What a fit on a run learns from and is asked: sources for networks, rows with the population's doings for classical models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from quantformer_training.effort import Effort
from quantformer_training.indexed import IndexedSource
from quantformer_training.population import Population
from quantformer_training.rows import Rows
from quantformer_training.run_data import RunData, RunSources


@dataclass(frozen=True, kw_only=True, eq=False)
class Lesson:
    """What a fit learns from, and what it is asked then: networks read ``sources``, classical models rows."""

    sources: RunSources
    known: Rows
    validation: Rows
    test: Rows
    control: Rows | None

    @classmethod
    def of(cls, data: RunData, *, signal_scale: float, effort: Effort) -> Lesson:
        """Of a run's parts as they are."""
        sources, context = data.sources(signal_scale), _context_of(data)
        return cls(
            sources=sources,
            known=context(sources.train, effort.classical_rows),
            validation=context(sources.validation, None),
            test=context(sources.test, None),
            control=context(sources.control, None) if len(sources.control) else None,
        )


def _context_of(data: RunData) -> Callable[[IndexedSource, int | None], Rows]:
    """Rows with what the population did, where the run is of one session."""
    population = None
    if len(data.members) == 1:
        session = data.members[0].session
        population = Population(
            session.corrected(),
            spans=data.members[0].split.train,
            rate_hz=session.rate_hz,
            running_speed_cm_s=session.running_speed_cm_s,
        )

    def rows(source: IndexedSource, most: int | None) -> Rows:
        plain = source.rows(most=most)
        if population is None:
            return plain
        frame, neuron = source.places(most=most)
        return replace(plain, context=population.context(frame=frame, neuron=neuron))

    return rows
