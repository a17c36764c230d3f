"""A bench as one HTML page that needs nothing else: no network, no script, light or dark as the reader has it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from quantformer.errors import DataError
from quantformer_cli.benchmark.charts import Curve, growth_svg, histogram_svg, stages_svg
from quantformer_cli.benchmark.growth import AXES, grown, isolation
from quantformer_cli.benchmark.results import FIGURES, Document, Result
from quantformer_cli.benchmark.text import cells, facts, milliseconds, summary_line

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2529; --grey: #5b6a70; --line: #dde4e7; --page: #fff; --mark: #f2f7f9;
  --accent: #0a6c8f; --k0: #0a6c8f; --k1: #b3541e; --k2: #3d7a3a; --k3: #7a4fa3; --k4: #a3261e; --k5: #4a5b63; --k6: #8a6d00; }
@media (prefers-color-scheme: dark) { :root { --ink: #dfe6e9; --grey: #9fb0b7; --line: #35444b; --page: #141a1d;
  --mark: #1d272c; --accent: #5fb8d8; --k0: #5fb8d8; --k1: #e69a5f; --k2: #86c77f; --k3: #c39be6; --k4: #f0958d; --k5: #a9bac2;
  --k6: #d9bc4a; } }
body { margin: 0 auto; max-width: 68rem; padding: 2rem 1.5rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line); }
p { max-width: 52rem; }
.failed { color: var(--k4); }
.note { color: var(--grey); font-size: .86rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0 .3rem; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td { white-space: nowrap; }
thead th { color: var(--grey); font-weight: 600; }
tbody th { font-weight: 400; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; font-size: .9rem; }
dt { color: var(--grey); } dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: .8rem 0 1.6rem; } figcaption { color: var(--grey); font-size: .86rem; max-width: 52rem; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--ink); font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; }
.axis, .grid { stroke: var(--line); fill: none; } .linear { stroke: var(--grey); stroke-dasharray: 2 5; fill: none; }
.line { fill: none; stroke-width: 1.8; }
.line.c0 { stroke: var(--k0); } .line.c1 { stroke: var(--k1); } .line.c2 { stroke: var(--k2); } .line.c3 { stroke: var(--k3); }
.dot.c0, .key.c0, .s0 { fill: var(--k0); } .dot.c1, .key.c1, .s1 { fill: var(--k1); } .dot.c2, .key.c2, .s2 { fill: var(--k2); }
.dot.c3, .key.c3, .s3 { fill: var(--k3); } .s4 { fill: var(--k4); } .s5 { fill: var(--k5); } .s6 { fill: var(--k6); }
@media print { body { max-width: none; padding: 0; } figure { break-inside: avoid; } }
"""
#: Curves of a condition's histogram.
DRAWN = {"overhead": "overhead", "corrected": "due until in hand", "inference": "inference", "bare": "bare run"}


def write_page(path: Path, document: Document) -> None:
    """Write the page.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        path.write_text(render(document), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}; choose another file") from None


def render(document: Document) -> str:
    """The whole page."""
    told = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts(document))
    notes = "".join(f'<p class="note">Not measured: {escape(note)}</p>' for note in document.notes)
    sections = "".join(_section(one) for one in document.results)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Nothing may be fetched, whatever text found its way in.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>quantformer bench</title><style>{_STYLE}</style></head><body><main><h1>quantformer bench</h1>"
        f"<dl>{told}</dl>{notes}{_growth(document.results)}{_isolation(document.results)}{sections}</main></body></html>\n"
    )


def _section(one: Result) -> str:
    title = f"<h2>{escape(one.condition.label)}: {one.kind}</h2>"
    if one.failed:
        return f'<section>{title}<p class="failed">{escape(one.failed)}</p></section>'
    rows = "".join(
        f'<tr><th scope="row">{escape(words)}</th>'
        + "".join(f"<td>{cell}</td>" for cell in [*cells(one.figures[name]), str(one.figures[name].count)])
        + "</tr>"
        for name, words in FIGURES.items()
        if name in one.figures
    )
    curves = {words: one.figures[name].counts for name, words in DRAWN.items() if name in one.figures}
    histogram = _figure(histogram_svg(curves), "Share of frames by duration, over all rounds; the axis is logarithmic.")
    caption = (
        "Where the time went, from the moment a frame was due until the answer was in the client's hand: means of the answers "
        "in the middle (40th to 60th percentile of the whole way) and of the slowest hundredth."
    )
    stages = _figure(stages_svg({f"{name} answers": means for name, means in one.stages.items()}), caption)
    return (
        f'<section>{title}<p class="note">{escape(summary_line(one))}</p><div class="scroll"><table><thead><tr>'
        '<th scope="col">ms</th><th scope="col">p50</th><th scope="col">p99</th><th scope="col">p99.9</th>'
        f'<th scope="col">max</th><th scope="col">mean</th><th scope="col">n</th></tr></thead><tbody>{rows}</tbody></table></div>'
        f"{histogram}{stages}</section>"
    )


def _growth(results: Sequence[Result]) -> str:
    parts = []
    for axis in AXES:
        lines = grown(results, axis=axis)
        if lines:
            curves = [Curve(name=DRAWN[line.figure], points=line.points) for line in lines]
            powers = ", ".join(f"{DRAWN[line.figure]} {line.words}" for line in lines)
            caption = f"p50 against {axis}; dotted, linear growth. Power of the size: {powers} (1 is linear)."
            parts.append(_figure(growth_svg(curves, along=axis), caption))
    return f"<section><h2>How cost grows</h2>{''.join(parts)}</section>" if parts else ""


def _isolation(results: Sequence[Result]) -> str:
    rows = isolation(results)
    if not rows:
        return ""
    body = "".join(
        f'<tr><th scope="row">{escape(row.disturb)}</th><td>{escape(FIGURES[row.figure])}</td><td>{milliseconds(row.quiet)}</td>'
        f"<td>{milliseconds(row.disturbed)}</td><td>{'-' if row.ratio is None else f'{row.ratio:.2f}'}</td></tr>"
        for row in rows
    )
    return (
        "<section><h2>Isolation</h2><p>p99 in ms against the quiet phases of the same run, which took turns with the disturbed "
        'ones.</p><div class="scroll"><table><thead><tr><th scope="col">disturbance</th><th scope="col">figure</th>'
        '<th scope="col">quiet</th><th scope="col">disturbed</th><th scope="col">ratio</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div></section>"
    )


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>" if svg else ""
