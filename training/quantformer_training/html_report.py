"""Tables and figures of a reproduction as one HTML page: no network, no script, light or dark as the reader has it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from quantformer.errors import DataError
from quantformer_training.report import Facts, Table, Text, part_html, write_page
from quantformer_training.result_formats import cell_text, has_paper, interval_text, most_places, verdict_text
from quantformer_training.result_tables import ResultTable

PNG = b"\x89PNG\r\n\x1a\n"

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2529; --grey: #5b6a70; --line: #dde4e7; --page: #fff; --mark: #f2f7f9;
  --accent: #0a6c8f; --good: #1a6b3c; --bad: #a3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #dfe6e9; --grey: #9fb0b7; --line: #35444b; --page: #141a1d;
  --mark: #1d272c; --accent: #5fb8d8; --good: #7fd0a0; --bad: #f0958d; } }
body { margin: 0 auto; max-width: 76rem; padding: 2rem 1.5rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line); }
p, li { max-width: 52rem; }
a { color: var(--accent); }
.banner { border-left: 4px solid var(--accent); padding: .4rem .9rem; background: var(--mark); max-width: none; }
nav ol { columns: 2; font-size: .92rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0 .3rem; font-size: .86rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .5rem 0 .35rem; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td { white-space: nowrap; }
thead th { color: var(--grey); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 400; min-width: 8rem; }
tr.reference { background: var(--mark); }
td small { display: block; color: var(--grey); }
td.paper { color: var(--grey); }
.ahead { color: var(--good); } .behind { color: var(--bad); }
.note, .notes { color: var(--grey); font-size: .82rem; margin: .2rem 0 1.2rem; padding-left: 1.1rem; }
.note { padding-left: 0; }
figure { margin: .8rem 0 1.6rem; }
figure img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption { color: var(--grey); font-size: .86rem; max-width: 52rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; font-size: .9rem; }
dt { color: var(--grey); } dd { margin: 0; overflow-wrap: anywhere; }
@media print { body { max-width: none; padding: 0; } h2 { break-after: avoid; } figure { break-inside: avoid; } }
"""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A PNG or SVG file in ``data``, with the words that stand for it where it cannot be seen, and what it shows.

    Raises:
        DataError: ``data`` is neither.
    """

    data: bytes
    alt: str
    caption: str

    def __post_init__(self) -> None:
        if not self.data.startswith(PNG) and b"<svg" not in self.data[:2048]:
            raise DataError(f"figure {self.alt!r} begins with {self.data[:8]!r}, expected a PNG or SVG file")

    @property
    def media_type(self) -> str:
        """Told from the content."""
        return "image/png" if self.data.startswith(PNG) else "image/svg+xml"


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """A heading, listed in the table of contents, and what stands under it."""

    title: str
    parts: Sequence[Text | Facts | Table | ResultTable | Figure]


@dataclass(frozen=True, kw_only=True)
class ResultsPage:
    """``summary`` is what was found, in a sentence or two; ``origin`` what the data are, and never empty."""

    title: str
    summary: str
    origin: str
    chapters: Sequence[Chapter]

    def __post_init__(self) -> None:
        if not self.origin:
            raise DataError(
                f"page {self.title!r} does not say whether its data are simulated, semi-synthetic or measured"
            )


def render_results(page: ResultsPage) -> str:
    """The whole page."""
    contents = "".join(
        f'<li><a href="#part-{number}">{escape(chapter.title)}</a></li>'
        for number, chapter in enumerate(page.chapters, 1)
    )
    chapters = "".join(
        f'<section id="part-{number}"><h2>{escape(chapter.title)}</h2>{"".join(_part(part) for part in chapter.parts)}</section>'
        for number, chapter in enumerate(page.chapters, 1)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Nothing may be fetched, whatever text found its way in.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
        f"<title>{escape(page.title)}</title><style>{_STYLE}</style></head><body><main>"
        f'<h1>{escape(page.title)}</h1><p class="banner">{escape(page.summary)}</p><p>Data: {escape(page.origin)}.</p>'
        f'<nav aria-label="Contents"><ol>{contents}</ol></nav>{chapters}</main></body></html>\n'
    )


def write_results(path: Path, page: ResultsPage) -> None:
    """Write the page aside, then move it into place; folders are made.

    Raises:
        DataError: the file cannot be written.
    """
    write_page(path, render_results(page))


def _part(part: Text | Facts | Table | ResultTable | Figure) -> str:
    if isinstance(part, ResultTable):
        return _result_table(part)
    if isinstance(part, Figure):
        data = base64.b64encode(part.data).decode("ascii")
        return (
            f'<figure><img alt="{escape(part.alt)}" src="data:{part.media_type};base64,{data}">'
            f"<figcaption>{escape(part.caption)}</figcaption></figure>"
        )
    return part_html(part)


def _result_table(table: ResultTable) -> str:
    most = most_places(table)
    head, body = ['<th scope="col">model</th>'], []
    chance = ['<th scope="row">chance</th>']
    for column in table.columns:
        head.append(f'<th scope="col">{escape(column.heading)}</th>')
        chance.append(f"<td>{escape(column.number(table.chance[column.metric]))}</td>")
        if has_paper(table, column):
            head.append('<th scope="col">paper</th>')
            chance.append("<td></td>")
    for row in table.rows:
        own = row.key == table.reference
        cells = [f'<th scope="row">{escape(row.title)}{" (reference)" if own else ""}</th>']
        for column in table.columns:
            cell = row.cells[column.metric]
            score, verdict = escape(cell_text(cell, column, most=most, missing=row.missing)), verdict_text(cell)
            score = f"<b>{score}</b>" if cell.best else score
            if verdict:
                mark = verdict if verdict in ("ahead", "behind") else "even"
                score += f'<small class="{mark}">{escape(verdict)}</small><small>{escape(interval_text(cell, column))}</small>'
            cells.append(f"<td>{score}</td>")
            if has_paper(table, column):
                cells.append(f'<td class="paper">{"" if cell.paper is None else escape(cell.paper.printed)}</td>')
        reference = ' class="reference"' if own else ""
        body.append(f"<tr{reference}>{''.join(cells)}</tr>")
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return (
        f'<div class="scroll"><table><caption>{escape(table.title)} · Data: {escape(table.origin)}</caption>'
        f"<thead><tr>{''.join(head)}</tr></thead><tbody>{''.join(body)}<tr>{''.join(chance)}</tr></tbody></table></div>"
        f'<ul class="notes">{notes}</ul>'
    )
