"""Reports: one page that needs nothing else, whatever text goes in, with pictures that say what they show."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_rows import oracle, simulated_rows

from quantformer.errors import DataError
from quantformer.metrics import reliability
from quantformer_training.comparison import MODEL, score_at_lead
from quantformer_training.figures import (
    ForecastPanel,
    forecast_panels,
    latency_histogram,
    reliability_diagram,
    skill_by_lead,
)
from quantformer_training.report import Facts, Picture, Report, Section, Table, Text, render, write_report

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"></svg>'


def page(text: str = "text", *, failed: bool = False) -> Report:
    table = Table(caption=text, columns=("", text), rows=((text, text), ("b", "1")), note=text, mark_first=True)
    parts = (Text(text=text), Facts(facts=[(text, text)]), table, Picture(svg=SVG, alt=text, caption=text))
    return Report(
        title=text,
        subtitle=text,
        banner=text,
        failed=failed,
        tiles=[(text, text)],
        sections=[Section(title=text, parts=parts)],
    )


class Page(HTMLParser):
    """What a browser would do with the page: which elements, what text, what it would fetch."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.sources: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text(min_size=1))
def test_text_stays_text(text: str) -> None:
    found = Page(render(page(text)))
    expected = Page(render(page("text")))
    assert found.tags == expected.tags
    assert found.open == []


def test_nothing_is_fetched_and_nothing_runs() -> None:
    found = Page(render(page('<script src="http://example.org/x.js"></script>')))
    assert "script" not in found.tags
    assert all(source.startswith("data:image/svg+xml;base64,") for source in found.sources)
    assert len(found.sources) == 1
    assert '<script src="http://example.org/x.js">' in found.text


def test_a_picture_comes_out_as_it_went_in() -> None:
    (source,) = Page(render(page())).sources
    assert base64.b64decode(source.partition(",")[2]) == SVG


def test_failure_is_marked() -> None:
    assert 'class="banner failed"' in render(page(failed=True))
    assert 'class="banner failed"' not in render(page(failed=False))


def test_a_row_of_another_width_is_refused() -> None:
    with pytest.raises(DataError, match="2 cells, there are 3 columns"):
        Table(caption="c", columns=("a", "b", "c"), rows=(("1", "2"),))


def test_writing_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_report(path, page("first"))
    write_report(path, page("second"))
    assert "second" in path.read_text(encoding="utf-8")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="choose another file"):
        write_report(tmp_path / "file" / "report.html", page())


def figures() -> dict[str, bytes]:
    rows, train = simulated_rows(trials=20, neurons=5, seed=3), simulated_rows(trials=20, neurons=5, seed=4)
    probability = oracle(rows).probability
    panel = ForecastPanel(
        title="n001, 90°",
        before=np.zeros(96),
        happened=np.ones(64),
        forecast=np.full(64, 0.5),
        low=np.zeros(64),
        high=np.ones(64),
        probability=0.25,
        active=True,
    )
    leads = [score_at_lead(probability, rows=rows, train=train, lead=lead) for lead in (0, 5)]
    return {
        "panels": forecast_panels([panel] * 5, rate_hz=30.0, level=0.8),
        "reliability": reliability_diagram({MODEL: reliability(probability, rows.active)}),
        "leads": skill_by_lead(leads, rate_hz=30.0),
        "latency": latency_histogram(np.array([3.0, 4.0, 9.0]), marks={"median": 4.0, "max": 9.0}, what="latency"),
    }


def test_figures_are_svg_that_refers_to_nothing_outside_with_units_on_their_axes() -> None:
    expected = {
        "panels": ("time from onset, s", "dF/F", "p = 0.25, active", "80 % interval"),
        "reliability": ("predicted probability", "observed fraction"),
        "leads": ("AUROC within neuron", "1 frame = 33 ms", "QuantFormer", "last 5 frames over F0"),
        "latency": ("latency, ms", "median 4.0 ms", "max 9.0 ms"),
    }
    for name, svg in figures().items():
        root = ElementTree.fromstring(svg)
        text = " ".join("".join(element.itertext()) for element in root.iter())
        for words in expected[name]:
            assert words in text, (name, words)
        for target in re.findall(rb'(?:href|src)="([^"]*)"', svg):
            assert target.startswith((b"#", b"data:")), (name, target)
        assert b"url(http" not in svg


def test_a_figure_of_the_same_numbers_is_the_same_file() -> None:
    assert figures() == figures()


def test_few_latencies_and_none_make_a_picture() -> None:
    for values in ([], [0.0], [5.0]):
        ElementTree.fromstring(latency_histogram(np.array(values), marks={}, what="latency"))
