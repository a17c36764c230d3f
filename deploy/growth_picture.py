"""Draw how cost grows, docs/growth.svg, from files of `quantformer bench` that vary neurons, stimuli or sessions.

    python deploy/measure_engine.py --part growth --out reports/engine
    python deploy/growth_picture.py reports/engine/growth-neurons.json reports/engine/growth-stimuli.json \\
        reports/engine/growth-sessions.json

Below each axis stands the fit: cost = fixed + factor x size ** power, by least squares of relative errors. Equal files give
equal bytes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path

from quantformer.errors import DataError
from quantformer_cli.benchmark.charts import Curve, growth_svg
from quantformer_cli.benchmark.growth import AXES, Fitted, Grown, grown
from quantformer_cli.benchmark.page import DRAWN
from quantformer_cli.benchmark.results import Document, read_document

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "growth.svg"
WIDTH, LINE = 920, 20
STYLE = """svg{background:#fff}text{fill:#1c2529;font:12px system-ui,sans-serif}.note{fill:#5b6a70}
.axis,.grid{stroke:#dde4e7;fill:none}.linear{stroke:#5b6a70;stroke-dasharray:2 5;fill:none}.line{fill:none;stroke-width:1.8}
.line.c0{stroke:#0a6c8f}.line.c1{stroke:#b3541e}.line.c2{stroke:#3d7a3a}.line.c3{stroke:#7a4fa3}.dot.c0,.key.c0{fill:#0a6c8f}
.dot.c1,.key.c1{fill:#b3541e}.dot.c2,.key.c2{fill:#3d7a3a}.dot.c3,.key.c3{fill:#7a4fa3}"""


def statement(line: Grown) -> str:
    """How one figure grows, as a sentence."""
    name, fit = DRAWN[line.figure], line.fitted
    if fit is None:
        return f"{name}: too few sizes for a fit"
    if not fit.factor_us:
        return f"{name}: {fit.fixed_us / 1e3:.3g} ms at every size (to {100 * fit.error:.0f} %); it does not grow"
    # To one place: what is measured does not tell 1.04 from 0.97.
    verdict = "linear or better" if round(fit.power, 1) <= 1.0 else "more than linear"
    return f"{name}: {_formula(fit)} (to {100 * fit.error:.0f} %); {verdict}"


def _formula(fit: Fitted) -> str:
    return f"{fit.fixed_us / 1e3:.3g} ms + {fit.factor_us:.3g} us x size ^ {fit.power:.2f}"


def picture(documents: Sequence[Document]) -> str:
    """All axes along which the documents vary, one below the other.

    Raises:
        ValueError: they vary along none.
    """
    parts, top = [], 8
    for document in documents:
        for axis in AXES:
            lines = grown(document.results, axis=axis)
            if not lines:
                continue
            curves = [Curve(name=DRAWN[line.figure], points=line.points) for line in lines]
            chart = growth_svg(curves, along=axis)
            height = round(float(chart.partition('viewBox="0 0 920 ')[2].partition('"')[0]))
            parts.append(chart.replace("<svg ", f'<svg y="{top}" width="{WIDTH}" height="{height}" ', 1))
            top += height + LINE
            machine, pace = document.machine, document.pace
            about = (
                f"p50 of {pace.frames} frames at {pace.rate_hz:g} Hz, {document.service.preset} network, {machine.processor}, "
                f"{machine.usable_cores} cores, {document.service.provider}, {document.date_utc[:10]}; dotted: linear"
            )
            for text in (about, *(statement(line) for line in lines)):
                parts.append(f'<text class="note" x="64" y="{top}">{escape(text)}</text>')
                top += LINE
            top += LINE
    if not parts:
        raise ValueError("no file varies neurons, stimuli or sessions; give those of deploy/measure_engine.py --part growth")
    about = escape("how cost grows with neurons, stimuli and sessions")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" role="img" aria-label="{about}">'
        f"<style>{STYLE}</style>{''.join(parts)}</svg>\n"
    )


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="what 'quantformer bench --json' wrote")
    parser.add_argument("--out", type=Path, default=PICTURE, help="default: docs/growth.svg")
    asked = parser.parse_args()
    try:
        asked.out.write_text(picture([read_document(file) for file in asked.files]), encoding="utf-8")
    except (OSError, ValueError, DataError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
