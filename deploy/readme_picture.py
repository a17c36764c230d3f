"""The README's picture anew: the forecasts that a run of `quantformer demo` drew into its report.

    quantformer demo --report reports/demo.html
    python deploy/readme_picture.py reports/demo.html

Equal numbers give equal bytes; another seed, machine or version gives other numbers.
"""

from __future__ import annotations

import argparse
import base64
import re
import sys
from pathlib import Path

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "forecast.svg"
#: The report's figure of forecasts is told by its alternative text.
FIGURE = re.compile(r'<img alt="[^"]*forecast with interval[^"]*" src="data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)"')


def picture_of(report: str) -> bytes:
    """The SVG of the forecasts in a demo's report.

    Raises:
        ValueError: the page has not exactly one.
    """
    found = FIGURE.findall(report)
    if len(found) != 1:
        raise ValueError(f"{len(found)} figures of forecasts, expected one: give the report of 'quantformer demo'")
    return base64.b64decode(found[0])


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="what 'quantformer demo --report' wrote")
    report = parser.parse_args().report
    try:
        PICTURE.write_bytes(picture_of(report.read_text()))
    except (OSError, ValueError) as error:
        sys.exit(f"{report}: {error}")


if __name__ == "__main__":
    main()
