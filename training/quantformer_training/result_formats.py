"""A `ResultTable` as Markdown for people, and as CSV or JSON lines, one record a row and metric, for programs."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Sequence

from quantformer_training.result_columns import Column
from quantformer_training.result_tables import Cell, ResultTable

Value = str | float | int | bool | None
#: What Markdown would read as more than text.
_MARKS = re.compile(r"([\\|*_<>`\[\]])")


def cell_text(cell: Cell, column: Column, *, most: int, missing: str = "") -> str:
    """Mean ± standard deviation with its stars; the number of pairs where it is below ``most``. Without a score, what its row
    is ``missing`` for, or a dash.
    """
    if cell.places == 0:
        return missing or "–"
    spread = f" ± {column.number(cell.sd)}" if math.isfinite(cell.sd) else ""
    fewer = f" (n = {cell.places})" if cell.places < most else ""
    return f"{column.number(cell.mean)}{spread}{cell.stars}{fewer}"


def verdict_text(cell: Cell) -> str:
    """How the row stands to the reference, or nothing where they were not compared."""
    return "" if cell.difference is None or cell.places == 0 else cell.difference.verdict


def interval_text(cell: Cell, column: Column) -> str:
    """The 95 % interval of the difference to the reference in the units of the column, or nothing where there is none."""
    if cell.difference is None or math.isnan(cell.difference.low):
        return ""
    low, high = (column.number(value) if value < 0 else f"+{column.number(value)}" for value in
                 (cell.difference.low, cell.difference.high))  # fmt: skip
    return f"{low} to {high}"


def most_places(table: ResultTable) -> int:
    """The pairs of mouse and category of the fullest cell."""
    return max((cell.places for row in table.rows for cell in row.cells.values()), default=0)


def has_paper(table: ResultTable, column: Column) -> bool:
    """Whether the paper prints this metric in this table."""
    return any(row.cells[column.metric].paper is not None for row in table.rows)


def markdown(table: ResultTable) -> str:
    """A heading, the table with the paper's column beside each of ours, the footnotes."""
    most = most_places(table)
    head, lines = [""], list[list[str]]()
    for column in table.columns:
        head += [column.heading, "paper"] if has_paper(table, column) else [column.heading]
    for row in table.rows:
        cells: list[str] = [plain(row.title) + (" (reference)" if row.key == table.reference else "")]
        for column in table.columns:
            cell = row.cells[column.metric]
            score, verdict = plain(cell_text(cell, column, most=most, missing=row.missing)), verdict_text(cell)
            cells.append((f"**{score}**" if cell.best else score) + (f", {verdict}" if verdict else ""))
            if has_paper(table, column):
                cells.append("" if cell.paper is None else plain(cell.paper.printed))
        lines.append(cells)
    chance = ["chance"]
    for column in table.columns:
        chance += [column.number(table.chance[column.metric])] + ([""] if has_paper(table, column) else [])
    text = [f"### {plain(table.title)}", "", f"Data: {plain(table.origin)}.", ""]
    text += [_line([plain(name) for name in head]), _line(["---"] * len(head))]
    text += [_line(line) for line in [*lines, chance]]
    text += ["", *(f"- {plain(note)}" for note in table.notes), ""]
    return "\n".join(text)


def records(table: ResultTable) -> list[dict[str, Value]]:
    """One record a row and metric; a number that is not finite is None."""
    found = list[dict[str, Value]]()
    for row in table.rows:
        for column in table.columns:
            cell = row.cells[column.metric]
            difference, better, paper = cell.difference, cell.better, cell.paper
            found.append(
                {
                    "table": table.name,
                    "row": row.key,
                    "title": row.title,
                    "metric": column.metric,
                    "higher_is_better": column.higher_is_better,
                    "mean": _finite(cell.mean),
                    "sd": _finite(cell.sd),
                    "pairs": cell.places,
                    "best": cell.best,
                    "chance": _finite(table.chance[column.metric]),
                    "reference": table.reference,
                    "difference": None if difference is None else _finite(difference.difference),
                    "low": None if difference is None else _finite(difference.low),
                    "high": None if difference is None else _finite(difference.high),
                    "missing": row.missing,
                    "verdict": verdict_text(cell),
                    "compared_pairs": None if difference is None else difference.pairs,
                    "left_out": None if difference is None else difference.left_out,
                    "mice": None if difference is None else difference.mice,
                    "wilcoxon_p": None if better is None else better.p,
                    "wilcoxon_p_holm": _finite(cell.p_holm),
                    "wilcoxon_smallest_p": None if better is None else better.smallest_p,
                    "wilcoxon_equal_pairs": None if better is None else better.zeros,
                    "wilcoxon_method": "" if better is None else better.method,
                    "paper_mean": None if paper is None else paper.mean,
                    "paper_sd": None if paper is None else _finite(paper.sd),
                    "paper_printed": "" if paper is None else paper.printed,
                    "paper_note": "" if paper is None else paper.note,
                    "origin": table.origin,
                }
            )
    return found


def csv_text(table: ResultTable) -> str:
    """The records as CSV with a head line; what is undefined is empty."""
    found = records(table)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(found[0]) if found else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return stream.getvalue()


def json_lines(table: ResultTable) -> str:
    """The records, one JSON object a line."""
    return "".join(json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n" for record in records(table))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def plain(text: str) -> str:
    """Text with nothing in it that Markdown reads as more."""
    return _MARKS.sub(r"\\\1", " ".join(text.split()))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
