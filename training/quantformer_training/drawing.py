"""One style for every picture, and pictures as bytes that depend on nothing but what is drawn: no date, no path."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from quantformer_training.report import ACCENT

INK, GREY, LIGHT = "#1c2529", "#7d8b91", "#c9d3d7"
#: Colours for what stands beside the model, told apart by people of every colour vision (after Okabe and Ito).
OTHERS = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7d8b91", "#000000")
#: From nothing to much, in the accent colour.
SHADES = LinearSegmentedColormap.from_list("quantformer", ["#f4f8f9", "#9cc4d2", ACCENT, "#06303f"])

# The type of matplotlib's own keys is a list of all of them.
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: smaller, and it can be searched
    "svg.hashsalt": "quantformer",
    "font.family": "sans-serif",
    "font.sans-serif": ["Liberation Sans", "Arial", "Helvetica", "DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


@contextmanager
def style() -> Iterator[None]:
    """Draw, and save, in the one style inside."""
    with matplotlib.rc_context(_STYLE):
        yield


def svg(figure: Figure) -> bytes:
    """An SVG document; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with style():
        nothing = {"Date": None, "Creator": None, "Type": None, "Format": None}
        figure.savefig(buffer, format="svg", metadata=nothing)
    return buffer.getvalue()


def png(figure: Figure, *, dots_per_inch: int = 150) -> bytes:
    """A PNG image without a word of text in it."""
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="png", dpi=dots_per_inch, metadata={"Software": None})
    return buffer.getvalue()
