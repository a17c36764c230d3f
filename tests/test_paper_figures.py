"""The paper's figures as printed, in our units, under names that our metrics have."""

from __future__ import annotations

import math
import re
from dataclasses import fields

import pytest

from quantformer.metrics import ActivationScores, ForecastScores
from quantformer_training.paper_figures import PAPER_TABLES, PAPER_TITLES, PaperValue

#: Not a score yet where `ForecastScores` has none.
MEAN_ABSOLUTE_ERRORS = {"mae", "normalised_mae"}


def values() -> list[tuple[str, str, str, PaperValue]]:
    return [
        (name, row, metric, value)
        for name, table in PAPER_TABLES.items()
        for row, cells in table.rows.items()
        for metric, value in cells.items()
    ]


def test_every_table_has_its_rows_and_columns() -> None:
    shape = {name: (len(table.rows), {len(row) for row in table.rows.values()}) for name, table in PAPER_TABLES.items()}
    assert shape == {
        "table1": (7, {4}), "table2": (7, {4}), "table3": (4, {4}), "table4": (2, {4}),
        "tableA2": (12, {5}), "tableA3": (12, {2}), "tableA4": (8, {5}),
    }  # fmt: skip


def test_the_names_are_those_of_our_metrics() -> None:
    ours = {found.name for scores in (ActivationScores, ForecastScores) for found in fields(scores)}
    assert {metric for _, _, metric, _ in values()} - MEAN_ABSOLUTE_ERRORS <= ours


@pytest.mark.parametrize(("table", "row", "metric", "mean", "sd"), [
    ("table1", "quantformer", "balanced_accuracy", 0.7739, 0.0388),
    ("table1", "quantformer", "f1", 0.6694, 0.0651),
    ("table1", "crossformer", "recall", 0.5149, 0.0903),
    ("table2", "quantformer", "normalised_mse", 0.247, 0.078),
    ("table2", "informer", "absolute_r", 0.302, 0.033),
    ("table3", "quantformer/baseline", "balanced_accuracy", 0.7588, 0.0408),
    ("table4", "quantformer/stimuli", "normalised_mse", 0.411, 0.578),
    ("tableA2", "quantformer/k=32", "normalised_ssim", 0.090, 0.086),
    ("tableA3", "quantformer/d=512", "f1", 0.3702, 0.3474),
    ("tableA4", "mean", "mse", 0.095, 0.341),
])  # fmt: skip
def test_known_figures(table: str, row: str, metric: str, mean: float, sd: float) -> None:
    found = PAPER_TABLES[table].rows[row][metric]
    assert (found.mean, found.sd) == pytest.approx((mean, sd))


def test_figures_are_printed_as_figures_and_in_the_range_of_their_metric() -> None:
    for table, row, metric, value in values():
        assert re.fullmatch(r"\d+\.\d+ ± (\d+\.\d+|-)\*{0,2}", value.printed), (table, row, metric)
        odd = (row, metric) == ("quantformer", "smape")
        if metric not in ("mse", "normalised_mse"):
            assert 0.0 <= value.mean <= 1.0 or odd, (table, row, metric)
        assert not odd or "1.55" in value.note
        assert not math.isnan(value.sd) or value.note
        assert value.stars in ("", "*", "**")


def test_only_competitors_of_the_first_two_tables_have_stars() -> None:
    starred = {(table, row) for table, row, _, value in values() if value.stars}
    assert {table for table, _ in starred} == {"table1", "table2"}
    assert "quantformer" not in {row for _, row in starred}


def test_the_search_repeats_the_model_that_it_chose() -> None:
    for name in ("tableA2", "tableA3"):
        rows = PAPER_TABLES[name].rows
        assert rows["quantformer/k=32"] == rows["quantformer/d=128"]


def test_every_row_has_a_title_of_its_own() -> None:
    assert PAPER_TITLES.keys() == {row for _, row, _, _ in values()}
    assert len(set(PAPER_TITLES.values())) == len(PAPER_TITLES)
