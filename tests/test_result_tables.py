"""Tables of results: means over pairs and not over seeds, both tests, chance, the paper beside, nothing left unsaid."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from result_runs import CATEGORIES, TITLES, run, study_runs, study_table
from scipy.stats import wilcoxon

from quantformer.errors import DataError, UsageError
from quantformer_training.result_columns import COLUMNS, columns
from quantformer_training.result_tables import ResultRow, ResultTable, result_table


def row(table: ResultTable, key: str) -> ResultRow:
    (found,) = (row for row in table.rows if row.key == key)
    return found


def small(runs: list, metrics: list[str], reference: str = "quantformer") -> ResultTable:  # type: ignore[type-arg]
    return result_table(
        runs, name="t", title="T", columns=columns(metrics), reference=reference, titles=TITLES, resamples=500
    )


def test_means_and_spreads_are_over_pairs_of_mouse_and_category() -> None:
    # Three seeds of one mouse weigh as much as one seed of the other.
    runs = [run(mouse="a", seed=seed, auroc=value) for seed, value in enumerate((0.6, 0.7, 0.8))]
    runs.append(run(mouse="b", seed=0, auroc=0.9))
    cell = small(runs, ["auroc"]).rows[0].cells["auroc"]
    assert cell.mean == pytest.approx(0.8)
    assert cell.sd == pytest.approx(np.std([0.7, 0.9], ddof=1))
    assert cell.places == 2


def test_rows_are_compared_with_the_reference_by_both_tests() -> None:
    table = study_table()
    runs = [found for found in study_runs() if not found.failure]
    by_place = {
        model: {
            (m, c): np.mean([r.metrics["balanced_accuracy"] for r in runs
                             if (r.key.model, r.key.mouse, r.key.category) == (model, m, c)])
            for m in {r.key.mouse for r in runs} - {"mouse-8"} for c in CATEGORIES
        }
        for model in ("quantformer", "lstm")
    }  # fmt: skip
    lost = [by_place["quantformer"][place] - by_place["lstm"][place] for place in by_place["lstm"]]
    cell = row(table, "lstm").cells["balanced_accuracy"]
    assert cell.better is not None
    assert cell.difference is not None
    assert cell.better.p == pytest.approx(wilcoxon(lost, alternative="greater", method="exact").pvalue)
    assert cell.stars == "*"
    assert cell.difference.difference == pytest.approx(-np.mean(lost))
    assert (cell.difference.verdict, cell.difference.pairs, cell.difference.left_out) == ("behind", 12, 1)
    assert cell.p_holm == pytest.approx(2 * cell.better.p)  # two rows have a test
    even = row(table, "ridge").cells["balanced_accuracy"]
    assert even.difference is not None
    assert even.difference.verdict == "not distinguishable"
    own = row(table, "quantformer").cells["balanced_accuracy"]
    assert (own.difference, own.better, own.stars) == (None, None, "")
    assert math.isnan(own.p_holm)


def test_lower_is_better_where_it_is() -> None:
    table = study_table()
    lost = row(table, "lstm").cells["normalised_mse"]
    assert lost.difference is not None
    assert lost.difference.difference > 0
    assert lost.difference.verdict == "behind"
    best = [found.key for found in table.rows if found.cells["normalised_mse"].best]
    assert best in (["quantformer"], ["ridge"])


def test_runs_of_two_tasks_make_one_row() -> None:
    runs = [run(mouse="a", auroc=0.7), run(mouse="a", r=0.2)]
    runs[1] = replace(runs[1], key=replace(runs[1].key, task="forecast"))
    found = small(runs, ["auroc", "r"]).rows[0]
    assert (found.cells["auroc"].mean, found.cells["r"].mean) == (0.7, 0.2)
    with pytest.raises(DataError, match="two runs tell auroc"):
        small([*runs, replace(runs[0], key=replace(runs[0].key, task="both2"))], ["auroc"])


def test_chance_is_known_or_measured() -> None:
    chance = study_table().chance
    assert chance["balanced_accuracy"] == 0.5
    assert chance["absolute_r"] == pytest.approx(0.25)
    assert math.isnan(chance["normalised_mse"])


def test_the_paper_stands_beside_and_its_own_rows_are_there() -> None:
    table = study_table()
    assert [found.key for found in table.rows] == [
        "quantformer", "ridge", "lstm", "informer", "autoformer", "brainlm", "brainlm_finetuned", "crossformer"
    ]  # fmt: skip
    paper = row(table, "informer").cells["balanced_accuracy"].paper
    assert paper is not None
    assert paper.printed == "60.77 ± 07.13*"
    assert row(table, "informer").cells["balanced_accuracy"].places == 0
    assert row(table, "ridge").cells["balanced_accuracy"].paper is None


def test_variants_are_rows() -> None:
    runs = [run(mouse=mouse, variant=v, auroc=0.5) for mouse in "ab" for v in ("k=4", "k=8")]
    assert [found.key for found in small(runs, ["auroc"], "quantformer/k=4").rows] == ["quantformer/k=4", "quantformer/k=8"]


def test_the_footnotes_say_what_must_be_said() -> None:
    notes = "\n".join(study_table().notes)
    for words in (
        "simulated (7 mice)",
        "seeds 0, 1",
        "Left out, 1 run: no presentations of natural_scenes (table1, mouse-9",
        "balanced accuracy: pairs left out of the comparison because a score is undefined: lstm 1",
        "Cost: 150 s of runs, median 2.0 s a run; the most for lstm",
        "Machine: two cores.",
        "torch 2.13",
        "Paper: Table 1",
        "* p < 0.01",
        "fewer than three mice",
    ):
        assert words in notes, words
    # What is doubtful in a column that is not shown is not told.
    assert "00.04" not in notes
    recall = "brainlm, recall: printed ± 02.83"
    assert recall in notes
    assert "cannot give p below" not in notes
    assert "cannot give p below 0.062" in "\n".join(study_table(mice=2).notes)


def test_mixed_origins_are_told_apart() -> None:
    runs = [run(mouse="a", auroc=0.5), replace(run(mouse="b", auroc=0.6), origin="measured")]
    assert small(runs, ["auroc"]).origin == "measured (1 mouse), simulated (1 mouse)"


def test_a_table_of_nothing_or_against_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="no run to make a table of"):
        small([], ["auroc"])
    with pytest.raises(DataError, match="'quantformer' has no run"):
        small([run(failure="x"), run(model="lstm", auroc=0.5)], ["auroc"])
    with pytest.raises(UsageError, match="no column for the metric 'auroc2'"):
        columns(["auroc2"])


def test_all_failed_without_a_reference_is_still_a_table() -> None:
    table = small([run(failure="too dark")], ["auroc"], "")
    assert table.rows[0].cells["auroc"].places == 0
    assert "too dark" in "\n".join(table.notes)


def test_numbers_are_shown_in_the_units_of_their_column() -> None:
    assert COLUMNS["balanced_accuracy"].number(0.77394) == "77.39"
    assert COLUMNS["mse"].number(0.04567) == "0.0457"
    assert COLUMNS["r"].number(math.nan) == "–"
    assert COLUMNS["mse"].heading == "MSE, (dF/F)² ↓"
    assert COLUMNS["f1"].heading == "F1, % ↑"
