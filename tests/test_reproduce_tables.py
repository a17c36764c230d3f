"""From hand-made runs to tables: which rows, whose figures beside them, and what is said of the places that were lost."""

from __future__ import annotations

import math

import pytest
from small_recording import GRATING
from tiny_study import TINY

from quantformer_training.reproduce.pace import Pace
from quantformer_training.reproduce.tables import places_left_out, tables_of
from quantformer_training.result_formats import markdown
from quantformer_training.result_tables import ResultTable
from quantformer_training.run_store import Run, RunKey

SCORES = {
    "balanced_accuracy": 0.7, "f1": 0.6, "normalised_mse": 0.02, "normalised_mae": 0.1, "normalised_smape": 0.6,
    "normalised_ssim": 0.1, "absolute_r": 0.3, "log_loss_skill": 0.2, "mse": 0.01, "calibration_slope": 0.8,
    "calibration_intercept": -0.1, "crps": 0.05, "interval_coverage": 0.7, "active_fraction": 0.15,
}  # fmt: skip


def run(
    model: str, *, group: str = "models", mouse: str = "m0", category: str = GRATING, variant: str = "", task: str = "both",
    failure: str = "",
) -> Run:  # fmt: skip
    return Run(
        key=RunKey(table=group, mouse=mouse, category=category, model=model, task=task, variant=variant),
        fingerprint="f",
        origin="semi-synthetic",
        metrics={} if failure else {name: value + 0.01 * len(mouse) for name, value in SCORES.items()},
        seconds=1.0,
        machine="m",
        versions={"numpy": "2"},
        date="2026-01-01T00:00:00+00:00",
        failure=failure,
    )


def only(name: str, runs: list[Run]) -> ResultTable:
    (table,) = tables_of(name, runs, effort=TINY)
    return table


def rows(table: ResultTable) -> dict[str, str]:
    return {row.key: row.title for row in table.rows}


RUNS = [
    *(run(model, mouse=mouse) for mouse in ("m0", "m1") for model in ("quantformer", "quantformer_paper", "lstm")),
    *(run(model, mouse=mouse, task="activation") for mouse in ("m0", "m1") for model in ("logistic",)),
    *(run(model, mouse=mouse, task="forecast") for mouse in ("m0", "m1") for model in ("neuron_mean",)),
    *(run(f"ablation_{step}", mouse=mouse) for mouse in ("m0", "m1") for step in ("baseline", "tokens", "autoencoder")),
    run("quantformer", group="left_out", variant="subjects"),
    run("quantformer_paper", group="left_out", variant="stimuli", mouse="m1"),
    run("quantformer", group="search", variant="k=4"),
    run("quantformer", group="search", variant="d=32"),
    run("quantformer", group="pooled", mouse="pooled"),
    *(
        run(model, group="labels", variant=label)
        for label in ("absolute", "evoked")
        for model in ("quantformer", "logistic")
    ),
]


def test_every_title_says_what_the_data_are() -> None:
    for name in ("ours", "table1", "table2", "table3", "table4", "tableA2", "tableA3", "tableA4"):
        tables = tables_of(name, RUNS, effort=TINY)
        assert tables
        assert all(table.title.endswith("(semi-synthetic data)") for table in tables)


def test_a_table_shows_the_models_of_its_task_with_the_papers_figures() -> None:
    first, second = only("table1", RUNS), only("table2", RUNS)
    assert {"quantformer", "quantformer_paper", "lstm", "logistic"} < set(rows(first))
    assert "neuron_mean" not in rows(first)
    assert "neuron_mean" in rows(second)
    assert "logistic" not in rows(second)
    assert not [key for key in rows(first) if key.startswith("ablation")]
    assert first.reference == "quantformer"
    # Both of our designs stand beside the paper's; a model of the paper without runs keeps its row.
    by_key = {row.key: row for row in first.rows}
    for key in ("quantformer", "quantformer_paper"):
        paper = by_key[key].cells["balanced_accuracy"].paper
        assert paper is not None
        assert paper.printed == "77.39 ± 03.88"
    assert by_key["brainlm_finetuned"].cells["balanced_accuracy"].places == 0
    mean = next(row for row in only("tableA4", RUNS).rows if row.key == "neuron_mean")
    assert mean.cells["mse"].paper is not None


def test_the_ablation_ends_with_the_papers_design() -> None:
    table = only("table3", [*RUNS, run("quantformer", category="natural_scenes")])
    assert list(rows(table)) == [
        "quantformer", "quantformer/baseline", "quantformer/learnable_tokens", "quantformer/autoencoder",
        "quantformer/quantization",
    ]  # fmt: skip
    assert table.reference == "quantformer/quantization"
    assert {row.cells["f1"].places for row in table.rows} == {2}


def test_generalisation_is_compared_with_nothing_left_out() -> None:
    table = only("table4", RUNS)
    assert set(rows(table)) == {
        "quantformer", "quantformer_paper", "quantformer/subjects", "quantformer_paper/stimuli", "quantformer/stimuli",
    }  # fmt: skip
    assert table.reference == "quantformer"
    assert rows(table)["quantformer_paper/stimuli"] == "QuantFormer, the paper's design, stimuli left out"


def test_the_search_shows_the_default_under_both_sizes() -> None:
    table = only("tableA3", RUNS)
    ours = [row.key for row in table.rows if row.cells["f1"].places]
    assert ours == ["quantformer/k=4", "quantformer/k=8", "quantformer/d=16", "quantformer/d=32"]
    assert table.reference == "quantformer/k=8"
    assert rows(table)["quantformer/d=32"] == "d = 32"


def test_our_tables_tell_how_far_calibration_is_off_and_pooled_mice_apart() -> None:
    tables = {table.name: table for table in tables_of("ours", RUNS, effort=TINY)}
    assert list(tables) == [
        "ours_activation", "ours_forecast", "ours_interval", "ours_label_signed", "ours_label_absolute",
        "ours_label_evoked", "ours_pooled",
    ]  # fmt: skip
    cells = next(row for row in tables["ours_activation"].rows if row.key == "quantformer").cells
    assert cells["calibration_slope_off"].mean == pytest.approx(1 - 0.82)
    assert cells["calibration_intercept_off"].mean == pytest.approx(0.08)
    assert tables["ours_pooled"].reference == ""
    (ours,) = (row for row in tables["ours_interval"].rows if row.key == "quantformer")
    assert ours.cells["interval_coverage_off"].mean == pytest.approx(0.8 - 0.72)


def test_each_meaning_of_active_has_its_own_table_with_its_base_rate_on_the_places_where_all_were_run() -> None:
    tables = {table.name: table for table in tables_of("ours", RUNS, effort=TINY)}
    for label in ("signed", "absolute", "evoked"):
        table = tables[f"ours_label_{label}"]
        assert f"the label {label}" in table.title
        assert set(rows(table)) == {"quantformer", "logistic"}
        assert table.reference == "quantformer"
        assert {row.cells["log_loss_skill"].places for row in table.rows} == {1}
        assert table.notes[0] == "Base rate: 17.0 % of the test rows are active by this label (mean over runs)."
    assert not any("label" in table.name for table in tables_of("ours", RUNS[:6], effort=TINY))


def test_a_row_without_runs_says_why() -> None:
    table = only("table1", [*RUNS, run("informer", failure="out of memory")])
    missing = {row.key: row.missing for row in table.rows}
    assert missing["quantformer"] == missing["logistic"] == ""
    assert missing["informer"] == "failed"
    assert missing["brainlm_finetuned"] == missing["autoformer"] == "not run"
    text = markdown(table)
    assert "| Informer | failed | 60.77 ± 07.13\\* |" in text
    assert "| BrainLM, fine-tuned | not run | 62.31 ± 14.67\\* |" in text
    assert "- “failed”, every run of ours failed: Informer." in text
    assert "A dash: " in text, "no run tells an AUROC"


def test_a_place_that_no_model_could_use_is_one_note_and_no_rows() -> None:
    lost = [run(model, category="static_gratings", failure="no usable trial") for model in ("quantformer", "lstm")]
    single = run("informer", failure="out of memory")
    table = only("table1", [*RUNS, *lost, single])
    said = [note for note in table.notes if "no usable trial" in note]
    assert said == ["Left out, m0, static_gratings, every model: no usable trial"]
    assert any("out of memory" in note for note in table.notes)
    assert places_left_out([*lost, single, run("lstm")]) == {("m0", "static_gratings"): "no usable trial"}


def test_without_runs_that_ended_there_is_no_table_and_without_the_reference_no_comparison() -> None:
    assert tables_of("table1", [], effort=TINY) == []
    assert tables_of("table1", [run("lstm", failure="lost")], effort=TINY) == []
    table = only("table1", [run("quantformer", failure="lost"), run("lstm")])
    assert table.reference == ""


def test_the_time_left_comes_from_what_its_like_took() -> None:
    pace = Pace()
    assert math.isnan(pace.left_s(["lstm"], processes=1))
    pace.took("lstm", 10.0)
    pace.took("lstm", 20.0)
    pace.took("ridge", 1.0)
    assert pace.left_s(["lstm", "lstm", "ridge"], processes=2) == pytest.approx(15.5)
    assert pace.left_s(["informer"], processes=1) == pytest.approx(8.0)
    assert pace.left_s([], processes=1) == 0.0
