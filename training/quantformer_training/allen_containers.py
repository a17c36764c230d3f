"""Which Allen Visual Coding experiments there are: the paper's eleven containers, and the bucket's own list of all.

A container is one field of view of one mouse, imaged in three sessions: A (drifting gratings), B (static gratings and
natural scenes), C or its successor C2 (locally sparse noise). The list is the array of ``OphysExperiment`` records that
the Allen warehouse returns, which the bucket keeps as ``ophys_experiments.json`` and allensdk's cache writes under the
same name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantformer.errors import DataError, UsageError

#: Container: its experiments of sessions A, B and C, as the paper uses them (``Mouse 1`` to ``Mouse 11``).
CONTAINERS: Mapping[int, tuple[int, int, int]] = {
    511507650: (502115959, 501794235, 500855614),
    511510667: (501574836, 501498760, 501773889),
    511510675: (510214538, 509962140, 509729072),
    511510699: (502608215, 502810282, 502974807),
    511510718: (510514474, 510345479, 510174759),
    511510779: (503109347, 503019786, 502634578),
    511510855: (510517131, 510705057, 509644421),
    511510989: (501729039, 501567237, 501788003),
    526481129: (527048992, 528480613, 526768996),
    536323956: (540684467, 541048140, 539515366),
    543677425: (545446482, 544507627, 543677427),
}
SESSIONS = ("A", "B", "C")
#: What the list calls a session before its letter.
SESSION_PREFIX = "three_session_"
#: The whole collection has 1518 experiments in a list of some 6 MB; more than this is not that list.
MOST_EXPERIMENTS = 100_000
MOST_LIST_BYTES = 256 * 2**20
#: Identifiers of the warehouse are positive and shorter than this.
MOST_ID = 10**12


@dataclass(frozen=True, kw_only=True)
class AllenExperiment:
    """One session of one container. ``session`` is A, B, C or C2; None: not known."""

    id: int
    container: int | None = None
    session: str | None = None
    cre_line: str | None = None
    area: str | None = None
    depth_um: int | None = None
    failed: bool = False


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which experiments are wanted; an empty part asks for nothing in particular.

    ``containers`` and ``experiments`` are ids, ``sessions`` letters (C stands for C2 too), ``cre_lines`` driver lines as
    ``Cux2-CreERT2``, ``areas`` acronyms as ``VISp``, ``depths_um`` imaging depths in micrometres.
    """

    containers: tuple[int, ...] = ()
    experiments: tuple[int, ...] = ()
    sessions: tuple[str, ...] = ()
    cre_lines: tuple[str, ...] = ()
    areas: tuple[str, ...] = ()
    depths_um: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, ids in (("container", self.containers), ("experiment", self.experiments)):
            for number in ids:
                if not 0 < number < MOST_ID:
                    raise UsageError(f"{name} {number}: an id is a whole number from 1 to {MOST_ID - 1}")

    @property
    def by_description(self) -> bool:
        """Whether cre line, area or depth is asked for, which only the list knows."""
        return bool(self.cre_lines or self.areas or self.depths_um)

    @property
    def needs_list(self) -> bool:
        """Whether the list of all experiments has to be read to answer this."""
        known = {one for three in CONTAINERS.values() for one in three}
        foreign = set(self.containers) - set(CONTAINERS)
        return self.by_description or bool(foreign) or bool(self.sessions and set(self.experiments) - known)


def paper_experiments() -> tuple[AllenExperiment, ...]:
    """The paper's 33 experiments, container by container, without what only the list knows."""
    return tuple(
        AllenExperiment(id=experiment, container=container, session=session)
        for container, three in CONTAINERS.items()
        for session, experiment in zip(SESSIONS, three, strict=True)
    )


def choose(choice: Choice, *, listed: Sequence[AllenExperiment] | None = None) -> tuple[AllenExperiment, ...]:
    """The experiments asked for, each once; the paper's eleven containers where nothing names others.

    ``listed`` is the list of all (`read_experiments`), needed if ``choice.needs_list``. Experiments of failed containers
    are left out unless their container or they themselves are named.

    Raises:
        UsageError: nothing fits, or a container or experiment is not in the list.
    """
    known = {one.id: one for one in paper_experiments()} | {one.id: one for one in listed or ()}
    for number in choice.containers:
        if all(one.container != number for one in known.values()):
            raise UsageError(f"container {number} is not in the list of experiments")
    absent = [number for number in choice.experiments if number not in known]
    if absent and listed is not None:
        raise UsageError(f"experiment {absent[0]} is not in the list of experiments")
    named = [known.get(number, AllenExperiment(id=number)) for number in choice.experiments]
    named += [one for one in known.values() if one.container in choice.containers]
    if choice.containers or choice.experiments:
        candidates = named
    elif choice.by_description:
        candidates = [one for one in known.values() if not one.failed]
    else:
        candidates = [known[one.id] for one in paper_experiments()]
    found = {one.id: one for one in candidates if _fits(one, choice)}
    if not found:
        raise UsageError(_nothing_fits(candidates, choice))
    return tuple(found.values())


def _fits(one: AllenExperiment, choice: Choice) -> bool:
    session = one.session.removesuffix("2") if one.session else None
    return (
        (not choice.sessions or one.session in choice.sessions or session in choice.sessions)
        and (not choice.cre_lines or one.cre_line in choice.cre_lines)
        and (not choice.areas or one.area in choice.areas)
        and (not choice.depths_um or one.depth_um in choice.depths_um)
    )


def _nothing_fits(candidates: Iterable[AllenExperiment], choice: Choice) -> str:
    """Says what there is of each thing that was asked for, since a misspelt name is the usual reason."""
    rows = list(candidates)
    asked: dict[str, tuple[Sequence[object], set[Any]]] = {
        "session": (choice.sessions, {one.session for one in rows}),
        "cre line": (choice.cre_lines, {one.cre_line for one in rows}),
        "area": (choice.areas, {one.area for one in rows}),
        "depth": (choice.depths_um, {one.depth_um for one in rows}),
    }
    parts = [
        f"{name} {' or '.join(map(str, wanted))} (there are {', '.join(map(str, sorted(have - {None}, key=str)))})"
        for name, (wanted, have) in asked.items()
        if wanted
    ]
    return f"no experiment has {' and '.join(parts)}"


def read_experiments(source: bytes | Path) -> tuple[AllenExperiment, ...]:
    """The list of all experiments, from its JSON text or a file of it.

    An array of records, or the warehouse's answer ``{"success": true, "msg": [...]}``. Of each record are read ``id``,
    ``experiment_container_id``, ``stimulus_name``, ``imaging_depth``, ``targeted_structure.acronym``,
    ``experiment_container.failed`` and, from ``specimen.donor.transgenic_lines``, the first ``driver`` with ``Cre`` in its
    name; other keys are passed over.

    Raises:
        DataError: the text is no such list, with the record and key that are wrong.
    """
    where = str(source) if isinstance(source, Path) else "the list of experiments"
    try:
        if isinstance(source, Path) and source.stat().st_size > MOST_LIST_BYTES:
            raise DataError(f"{where} has {source.stat().st_size} bytes; a list has at most {MOST_LIST_BYTES}")
        loaded = json.loads(source.read_bytes() if isinstance(source, Path) else source)
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}") from error
    records = loaded.get("msg") if isinstance(loaded, dict) else loaded
    if not isinstance(records, list) or not 0 < len(records) <= MOST_EXPERIMENTS:
        raise DataError(f"{where} holds no array of 1 to {MOST_EXPERIMENTS} experiments")
    return tuple(_experiment(record, where=f"{where}: record {row}") for row, record in enumerate(records))


def _experiment(record: Any, *, where: str) -> AllenExperiment:
    donor = _inner(_inner(record, "specimen", where=where), "donor", where=where)
    lines = donor.get("transgenic_lines") or []
    if not isinstance(lines, list):
        raise DataError(f"{where}: specimen.donor.transgenic_lines is a {type(lines).__name__}, expected an array")
    drivers = [
        line.get("name")
        for line in lines
        if isinstance(line, dict) and line.get("transgenic_line_type_name") == "driver" and "Cre" in str(line.get("name"))
    ]
    number = _number(record, "id", where=where)
    if number is None:
        raise DataError(f"{where} has no id")
    stimulus = _text(record.get("stimulus_name"))
    return AllenExperiment(
        id=number,
        container=_number(record, "experiment_container_id", where=where),
        session=stimulus.removeprefix(SESSION_PREFIX) if stimulus else None,
        cre_line=_text(drivers[0]) if drivers else None,
        area=_text(_inner(record, "targeted_structure", where=where).get("acronym")),
        depth_um=_number(record, "imaging_depth", where=where),
        failed=_inner(record, "experiment_container", where=where).get("failed") is True,
    )


def _inner(record: Any, key: str, *, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise DataError(f"{where} is a {type(record).__name__}, expected an object")
    found = record.get(key)
    if found is not None and not isinstance(found, dict):
        raise DataError(f"{where}: {key} is a {type(found).__name__}, expected an object")
    return found or {}


def _number(record: dict[str, Any], key: str, *, where: str) -> int | None:
    found = record.get(key)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int) or not 0 < found < MOST_ID:
        raise DataError(f"{where}: {key} is {str(found)[:40]!r}, expected a whole number from 1 to {MOST_ID - 1}")
    return found


def _text(found: Any) -> str | None:
    """Short printable text; it is shown on a terminal and kept in the manifest."""
    return found if isinstance(found, str) and 0 < len(found) <= 200 and found.isprintable() else None
