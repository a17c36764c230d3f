"""What a reproduction leaves for people: each table in three formats, one HTML page, and a summary in Markdown."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quantformer.errors import UnavailableError
from quantformer_training.contest import MODELS
from quantformer_training.explain.gallery import Gallery
from quantformer_training.html_report import Chapter, Figure, ResultsPage, write_results
from quantformer_training.report import Facts, Table, Text
from quantformer_training.reproduce.tables import places_left_out
from quantformer_training.reproduce.within import Within, within_lines, within_tables
from quantformer_training.reproduce.work import FIGURES
from quantformer_training.result_formats import csv_text, json_lines, markdown, plain
from quantformer_training.result_tables import ResultTable
from quantformer_training.run_store import Run

TABLES_FOLDER = "tables"
#: Differences on single recordings, where there are too few mice for an interval over them.
WITHIN = "ours_within"
SUMMARY, REPORT = "summary.md", "report.html"
_NO_TABLE = (
    "There is nothing to show: no run of this table ended well (what was left out is listed), or the data has too few mice and "
    "stimulus categories for it (leaving one out takes two)."
)
_CHAPTERS = {
    "ours": "Our table",
    "table1": "Table 1, classification",
    "table2": "Table 2, forecasting",
    "table3": "Table 3, ablation",
    "table4": "Table 4, generalisation",
    "tableA2": "Table A-2, K and d for forecasting",
    "tableA3": "Table A-3, K and d for classification",
    "tableA4": "Table A-4, un-normalised",
}


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """Everything that was made: ``tables`` by the name asked for, ``left_out`` recordings with their reason; ``facts``
    are how it was made (command, data, seeds, preset), in words; ``within`` are differences on single recordings,
    ``more`` plain tables to follow ours, ``more_failures`` what is missing of them, with the reason.
    """

    origin: str
    facts: Sequence[tuple[str, str]]
    command: str
    tables: Mapping[str, Sequence[ResultTable]]
    runs: Sequence[Run]
    pretraining: Sequence[Run]
    left_out: Mapping[str, str]
    within: Sequence[Within]
    more: Sequence[Table] = ()
    more_failures: Mapping[str, str] = field(default_factory=dict)
    gallery: Gallery | None = None
    gallery_failure: str = ""


def write_pages(made: Reproduction, out: Path) -> list[Path]:
    """Write all of it to ``out`` and return the files, the page first; what was there from before is replaced.

    Raises:
        UnavailableError: a file cannot be written.
    """
    files = [out / REPORT, out / SUMMARY]
    texts = {out / SUMMARY: summary(made)}
    for tables in made.tables.values():
        for table in tables:
            for suffix, text in (("md", markdown(table)), ("csv", csv_text(table)), ("jsonl", json_lines(table))):
                texts[out / TABLES_FOLDER / f"{table.name}.{suffix}"] = text
    if made.within:
        texts[out / TABLES_FOLDER / f"{WITHIN}.jsonl"] = within_lines(made.within)
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(path.name + ".part")
            aside.write_text(text)
            aside.replace(path)
    except OSError as error:
        raise UnavailableError(
            f"{out} cannot be written ({error.strerror or error}); make room, then run the same command again"
        ) from error
    write_results(out / REPORT, _page(made))
    return [*files, *(path for path in texts if path not in files)]


def summary(made: Reproduction) -> str:
    """The summary: how it was made, what was left out, every table."""
    lines = ["# Reproduction", "", f"Data: {made.origin}.", "", f"    {made.command}", ""]
    lines += [f"- {name}: {value}" for name, value in (*made.facts, *_cost(made))]
    left_out = _left_out(made)
    lines += ["", "## Left out", "", *(f"- {name}: {reason}" for name, reason in left_out.items())]
    if not left_out:
        lines += ["Nothing."]
    for name, tables in made.tables.items():
        lines += ["", f"## {_CHAPTERS[name]}", "", *(markdown(table) for table in tables)]
        if not tables:
            lines += [_NO_TABLE]
        lines += [_markdown(table) for table in (_plain_tables(made) if name == "ours" else ())]
    if made.gallery is not None:
        lines += ["", "## Figures", ""]
        lines += [f"- [{figure.title}]({FIGURES}/{figure.svg.name}). {figure.caption}" for figure in made.gallery.figures]
    return "\n".join([*lines, ""])


def _page(made: Reproduction) -> ResultsPage:
    chapters = [Chapter(title="How it was made", parts=[Facts(facts=(("command", made.command), *made.facts, *_cost(made)))])]
    for name, tables in made.tables.items():
        parts: list[Text | Facts | Table | ResultTable | Figure] = [*tables]
        parts += _plain_tables(made) if name == "ours" else []
        chapters.append(
            Chapter(title=_CHAPTERS[name], parts=parts or [Text(text=_NO_TABLE)])
        )
    if made.gallery is not None:
        figures = [
            Figure(
                data=figure.svg.read_bytes(),
                alt=figure.title,
                caption=f"{figure.title} (paper: figure {figure.paper}). {figure.caption}",
            )
            for figure in made.gallery.figures
        ]
        chapters.append(Chapter(title="Figures", parts=figures))
    left_out = _left_out(made)
    table = Table(
        caption="Left out", columns=("what", "why"), rows=[(name, reason) for name, reason in left_out.items()]
    )
    chapters.append(Chapter(title="Left out", parts=[table] if left_out else [Text(text="Nothing.")]))
    chapters.append(Chapter(title="Cost", parts=[_model_costs(made), *_pretraining(made)]))
    return ResultsPage(
        title="The paper's tables and figures, and ours", summary=_finding(made), origin=made.origin, chapters=chapters
    )


def _finding(made: Reproduction) -> str:
    """One sentence on the first table: where the reference stands on each headline figure."""
    tables = [table for tables in made.tables.values() for table in tables if table.reference]
    ended = sum(not run.failure for run in made.runs)
    words = f"{ended} of {len(made.runs)} runs ended well."
    if not tables:
        return words
    table = tables[0]
    column = table.columns[0]
    verdicts = [row.cells[column.metric].difference for row in table.rows]
    counts = [sum(found is not None and found.verdict == word for found in verdicts)
              for word in ("behind", "not distinguishable", "ahead")]  # fmt: skip
    (reference,) = (row for row in table.rows if row.key == table.reference)
    return (
        f"{words} {table.title}, {column.title}: {reference.title} {column.number(reference.cells[column.metric].mean)}; "
        f"{counts[0]} of the other models are behind, {counts[1]} not distinguishable, {counts[2]} ahead."
    )


def _plain_tables(made: Reproduction) -> list[Table]:
    """What follows our table."""
    return [*made.more, *within_tables(made.within)]


def _markdown(table: Table) -> str:
    """A plain table; nothing in it comes from a file but names of mice and categories."""
    lines = [f"### {plain(table.caption)}", ""]
    cells = (table.columns, ["---"] * len(table.columns), *table.rows)
    lines += ["| " + " | ".join(map(plain, line)) + " |" for line in cells]
    return "\n".join([*lines, "", *([f"- {plain(table.note)}", ""] if table.note else [])])


def _cost(made: Reproduction) -> list[tuple[str, str]]:
    runs = [*made.runs, *made.pretraining]
    if not runs:
        return []
    spent, before = sum(run.seconds for run in made.runs), sum(run.seconds for run in made.pretraining)
    software = sorted({f"{name} {number}" for run in runs for name, number in run.versions.items()})
    return [
        ("machine", "; ".join(sorted({run.machine for run in runs}))),
        ("software", ", ".join(software)),
        ("cost", f"{before / 60:.1f} minutes of pre-training, {spent / 60:.1f} minutes of runs, side by side or not"),
        ("date", f"{min(run.date for run in runs)} to {max(run.date for run in runs)}"),
    ]


def _left_out(made: Reproduction) -> dict[str, str]:
    """Recordings, then whole places, then single runs, each with the reason."""
    found = {f"recording {name}": reason for name, reason in made.left_out.items()}
    lost = places_left_out(made.runs)
    found |= {f"{mouse}, {category}, every model": reason for (mouse, category), reason in lost.items()}
    found |= {
        str(run.key): run.failure
        for run in (*made.pretraining, *made.runs)
        if run.failure and (run.key.mouse, run.key.category) not in lost
    }
    found |= made.more_failures
    if made.gallery is not None:
        found |= {f"figure {name}": reason for name, reason in made.gallery.left_out.items()}
    if made.gallery_failure:
        found["figures"] = made.gallery_failure
    return found


def _model_costs(made: Reproduction) -> Table:
    """Mean seconds of a run and parameters trained, by row."""
    seconds: dict[str, list[float]] = defaultdict(list)
    parameters: dict[str, list[float]] = defaultdict(list)
    for run in made.runs:
        if not run.failure and not run.key.variant:
            seconds[run.key.model].append(run.seconds)
            parameters[run.key.model].append(run.metrics.get("parameters", math.nan))
    rows = [
        (
            card.title,
            str(len(seconds[model])),
            f"{sum(seconds[model]) / len(seconds[model]):.1f}",
            "–" if any(map(math.isnan, parameters[model])) else f"{sum(parameters[model]) / len(parameters[model]):,.0f}",
        )
        for model, card in MODELS.items()
        if model in seconds
    ]
    names = ("model", "runs", "seconds a run", "parameters")
    return Table(caption="Training and answering, every task of the model", columns=names, rows=rows)


def _pretraining(made: Reproduction) -> list[Table]:
    rows = [
        (
            ", ".join(filter(None, (run.key.model.replace("_", " "), run.key.variant))),
            run.key.mouse,
            run.key.category,
            run.failure or "; ".join(f"{name} {value:.4g}" for name, value in run.metrics.items()),
        )
        for run in made.pretraining
    ]
    return [Table(caption="Pre-training", columns=("what", "mice", "categories", "figures"), rows=rows)] if rows else []
