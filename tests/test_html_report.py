"""The page of a reproduction: whole in itself, escaped, and as a real browser shows it."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from matplotlib.figure import Figure as Drawing
from result_runs import study_table

from quantformer.errors import DataError
from quantformer_training.html_report import PNG, Chapter, Figure, ResultsPage, render_results, write_results
from quantformer_training.report import Facts, Table, Text

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"></svg>'
TABLE = study_table()


def page(text: str = "text") -> ResultsPage:
    parts = (
        Text(text=text),
        Facts(facts=[(text, text)]),
        Table(caption=text, columns=("", text), rows=((text, "1"),)),
        replace(TABLE, title=text, origin=text or "none", notes=(text,)),
        Figure(data=SVG, alt=text, caption=text),
        Figure(data=PNG + b"0", alt=text, caption=text),
    )
    return ResultsPage(
        title=text, summary=text, origin="simulated", chapters=[Chapter(title=text, parts=parts), Chapter(title="b", parts=())]
    )


class Page(HTMLParser):
    """What a browser would do with the page: elements, text, what it would fetch, where its links lead."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.sources: list[str] = []
        self.links: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name == "href"]
        self.sources += [value or "" for name, value in attrs if name in ("src", "srcset", "data", "action", "background")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@hypothesis_settings(max_examples=30)
@given(st.text(min_size=1))
def test_text_stays_text(text: str) -> None:
    found = Page(render_results(page(text)))
    assert found.tags == Page(render_results(page())).tags
    assert found.open == []


def test_nothing_is_fetched_and_nothing_runs() -> None:
    html = render_results(page('"><script src="http://example.org/x.js"></script>'))
    found = Page(html)
    assert "script" not in found.tags
    assert "link" not in found.tags
    assert [source.partition(";")[0] for source in found.sources] == ["data:image/svg+xml", "data:image/png"]
    style = html[html.index("<style>") : html.index("</style>")]
    assert not re.search(r"url\(|@import|@font-face", style)
    assert "default-src 'none'" in html


def test_the_table_of_contents_leads_to_every_chapter() -> None:
    found = Page(render_results(page()))
    assert found.links == ["#part-1", "#part-2"]
    assert [link[1:] for link in found.links] == found.ids


def test_a_result_table_shows_all_that_it_has() -> None:
    html = render_results(ResultsPage(title="t", summary="s", origin="simulated", chapters=[Chapter(title="c", parts=[TABLE])]))
    text = Page(html).text
    for words in ("QuantFormer (reference)", "61.53 ± 12.75*", "behind", "Data: simulated (7 mice)", "50.00", *TABLE.notes):
        assert words in text, words
    assert re.search(r'<small class="behind">behind</small><small>-1\d\.\d\d to -\d+\.\d\d</small>', html)
    assert "prefers-color-scheme: dark" in html


def test_a_page_says_what_its_data_are() -> None:
    with pytest.raises(DataError, match="does not say whether"):
        replace(page(), origin="")


def test_only_pictures_are_pictures() -> None:
    with pytest.raises(DataError, match="expected a PNG or SVG"):
        Figure(data=b"GIF89a", alt="a", caption="c")


def test_writing_replaces_and_leaves_nothing_aside(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_results(path, page("first"))
    write_results(path, page("second"))
    assert "second" in path.read_text(encoding="utf-8")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_a_browser_shows_it(tmp_path: Path) -> None:
    """Chromium, where there is one: it lays the page out, takes the pictures in and complains of nothing."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    drawing = Drawing(figsize=(2, 1))
    drawing.subplots().plot([0, 1])
    for kind in ("svg", "png"):
        drawing.savefig(tmp_path / f"drawing.{kind}")
    figures = [Figure(data=(tmp_path / f"drawing.{kind}").read_bytes(), alt="a", caption="c") for kind in ("svg", "png")]
    whole = ResultsPage(
        title="Reproduction", summary="s", origin="simulated", chapters=[Chapter(title="c", parts=[TABLE, *figures])]
    )
    write_results(tmp_path / "report.html", whole)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    address = (tmp_path / "report.html").as_uri()
    shown = subprocess.run(
        [*command, "--enable-logging=stderr", "--dump-dom", address], capture_output=True, text=True, timeout=120, check=True
    )
    assert "QuantFormer (reference)" in shown.stdout
    assert not re.search(r"CONSOLE.*(error|refused|violates)", shown.stderr, re.IGNORECASE)
    subprocess.run(
        [*command, f"--screenshot={tmp_path / 'page.png'}", "--window-size=1200,900", address],
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    assert (tmp_path / "page.png").stat().st_size > 10_000
