"""A report as one HTML page that needs nothing else: no network, no script, pictures inside.

A `Report` is sections of `Text`, `Table` and `Picture`; everything that enters as text is escaped.
"""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from quantformer.errors import DataError

#: The one accent colour, shared with the pictures.
ACCENT = "#0a6c8f"

_STYLE = f"""
:root {{ color-scheme: light; }}
body {{ margin: 0 auto; max-width: 68rem; padding: 2rem 1.5rem 4rem; background: #fff; color: #1c2529;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; }}
h1 {{ font-size: 1.7rem; margin: 0 0 .3rem; }}
h2 {{ font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-top: .8rem; border-top: 1px solid #dde4e7; }}
p {{ max-width: 50rem; }}
.banner {{ border-left: 4px solid {ACCENT}; padding: .4rem .9rem; background: #f2f7f9; max-width: none; }}
.banner.failed {{ border-color: #b3261e; background: #fdf3f2; }}
.tiles {{ display: flex; flex-wrap: wrap; gap: .7rem; margin: 1.2rem 0; }}
.tile {{ border: 1px solid #dde4e7; border-radius: 6px; padding: .55rem .9rem; min-width: 7.5rem; }}
.tile b {{ display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }}
.tile span {{ color: #5b6a70; font-size: .82rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; margin: .6rem 0 .3rem; font-size: .86rem; font-variant-numeric: tabular-nums; }}
caption {{ text-align: left; font-weight: 600; padding: .5rem 0 .35rem; }}
th, td {{ text-align: left; padding: .28rem .8rem .28rem 0; border-bottom: 1px solid #e7edef; vertical-align: top; }}
thead th {{ color: #5b6a70; font-weight: 600; vertical-align: bottom; }}
tbody th {{ font-weight: 400; min-width: 7rem; }}
tr.first {{ background: #f2f7f9; }}
tr.first th, tr.first td {{ font-weight: 600; }}
td.short {{ white-space: nowrap; }}
.note {{ color: #5b6a70; font-size: .82rem; margin: .2rem 0 1.2rem; }}
figure {{ margin: .8rem 0 1.6rem; }}
figure img {{ max-width: 100%; height: auto; }}
figcaption {{ color: #5b6a70; font-size: .86rem; max-width: 50rem; }}
code {{ background: #f2f5f6; padding: .1rem .3rem; border-radius: 3px; overflow-wrap: anywhere; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; font-size: .9rem; }}
dt {{ color: #5b6a70; }} dd {{ margin: 0; overflow-wrap: anywhere; }}
@media print {{ body {{ max-width: none; padding: 0; }} h2 {{ break-after: avoid; }} figure {{ break-inside: avoid; }} }}
"""


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Names with their values."""

    facts: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells of text; the first column names the rows. ``mark_first`` sets the first row off from the others."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    mark_first: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise DataError(f"table {self.caption!r}: a row has {len(row)} cells, there are {len(self.columns)} columns")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An SVG document with the words that stand for it where it cannot be seen, and what it shows."""

    svg: bytes
    alt: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and what stands under it."""

    title: str
    parts: Sequence[Text | Facts | Table | Picture]


@dataclass(frozen=True, kw_only=True)
class Report:
    """``banner`` is the verdict in a sentence, ``tiles`` the few numbers to see first."""

    title: str
    subtitle: str
    banner: str
    failed: bool
    tiles: Sequence[tuple[str, str]]
    sections: Sequence[Section]


def render(report: Report) -> str:
    """The whole page."""
    tiles = "".join(f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in report.tiles)
    sections = "".join(
        f"<section><h2>{escape(section.title)}</h2>{''.join(part_html(part) for part in section.parts)}</section>"
        for section in report.sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Nothing may be fetched, whatever text found its way in.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
        f"<title>{escape(report.title)}</title><style>{_STYLE}</style></head><body><main>"
        f"<h1>{escape(report.title)}</h1><p>{escape(report.subtitle)}</p>"
        f'<p class="banner{" failed" if report.failed else ""}">{escape(report.banner)}</p>'
        f'<div class="tiles">{tiles}</div>{sections}</main></body></html>\n'
    )


def write_report(path: Path, report: Report) -> None:
    """Write the page aside, then move it into place; folders are made.

    Raises:
        DataError: the file cannot be written.
    """
    write_page(path, render(report))


def write_page(path: Path, html: str) -> None:
    """Write a page that is already rendered, as `write_report`."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(html, encoding="utf-8", errors="backslashreplace")
        aside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise DataError(f"the report cannot be written to {path}: {error.strerror}; choose another file") from None


def part_html(part: Text | Facts | Table | Picture) -> str:
    """One part of a page, escaped."""
    if isinstance(part, Text):
        return f"<p>{escape(part.text)}</p>"
    if isinstance(part, Facts):
        return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in part.facts) + "</dl>"
    if isinstance(part, Table):
        return _table(part)
    data = base64.b64encode(part.svg).decode("ascii")
    return (
        f'<figure><img alt="{escape(part.alt)}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{escape(part.caption)}</figcaption></figure>"
    )


def _cell(text: str) -> str:
    """What is short stays on its line; a sentence may be broken."""
    return '<td class="short">' if len(text) < 24 else "<td>"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.columns)
    rows = []
    for index, row in enumerate(table.rows):
        cells = "".join(f"{_cell(cell)}{escape(cell)}</td>" for cell in row[1:])
        first = ' class="first"' if table.mark_first and index == 0 else ""
        rows.append(f'<tr{first}><th scope="row">{escape(row[0])}</th>{cells}</tr>')
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<div class="scroll"><table><caption>{escape(table.caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{note}"
    )
