"""Markdown, CSV and JSON lines of a table: readable again, with the same numbers."""

from __future__ import annotations

import csv
import io
import json

import pytest
from markdown_it import MarkdownIt
from result_runs import study_table

from quantformer_training.result_formats import csv_text, json_lines, markdown, records


def parsed(text: str) -> list[list[str]]:
    """Cells of a Markdown table as a reader sees them; ** stands for bold."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    rows: list[list[str]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and token.level == 4:
            marks = {"strong_open": "**", "strong_close": "**"}
            rows[-1].append("".join(marks.get(child.type, child.content) for child in token.children or []))
    return rows


def test_markdown_is_a_table_with_the_paper_beside_ours() -> None:
    text = markdown(study_table())
    head, *rows = parsed(text)
    assert head == [
        "", "balanced accuracy, % ↑", "paper", "|r| ↑", "normalised MSE ↓", "recall, % ↑", "paper"
    ]  # fmt: skip
    assert {len(row) for row in rows} == {7}
    by_name = {row[0]: row for row in rows}
    assert by_name["LSTM | mean"][2] == "61.53 ± 12.75*"
    assert by_name["LSTM | mean"][1].endswith("* (n = 12), behind")
    assert by_name["Informer"][1] == by_name["Informer"][4] == "not run"
    assert "- “not run”, no run of ours was asked for, or could be had: " in text
    assert by_name["chance"][1] == "50.00"
    assert by_name["QuantFormer (reference)"][2] == "77.39 ± 03.88"
    assert sum(row[1].startswith("**") for row in rows) == 1
    assert "Data: simulated (7 mice)." in text
    assert "ridge \\<own\\>" in text
    assert text.count("\n- ") == len(study_table().notes)


def test_csv_and_json_lines_hold_the_same_records() -> None:
    table = study_table()
    lines = [json.loads(line) for line in json_lines(table).splitlines()]
    assert lines == records(table)
    assert len(lines) == len(table.rows) * len(table.columns)
    rows = list(csv.DictReader(io.StringIO(csv_text(table))))
    for line, row in zip(lines, rows, strict=True):
        assert {key: "" if value is None else str(value) for key, value in line.items()} == row
    (lstm,) = (line for line in lines if (line["row"], line["metric"]) == ("lstm", "balanced_accuracy"))
    assert lstm["origin"] == "simulated (7 mice)"
    assert lstm["verdict"] == "behind"
    assert lstm["low"] < lstm["difference"] < lstm["high"] < 0
    assert lstm["wilcoxon_p"] <= lstm["wilcoxon_p_holm"] < 0.01
    assert lstm["paper_mean"] == pytest.approx(0.6153)
    (absent,) = (line for line in lines if (line["row"], line["metric"]) == ("informer", "recall"))
    assert absent["mean"] is None
