"""What each table needs: planned once, the paper's grid or a part of it, and nothing of a mouse's that was not shown."""

from __future__ import annotations

import pytest
from small_recording import GRATING

from quantformer.errors import UsageError
from quantformer_training.contest import BRAINLM_FINETUNED, LEADS, MODELS
from quantformer_training.effort import EFFORTS
from quantformer_training.reproduce.names import TABLES, asked_tables
from quantformer_training.reproduce.plan import (
    CLASSICAL,
    EXTENTS,
    PlannedContest,
    in_jobs,
    is_ablation,
    models_of,
    plan,
    pretrainings,
    search_variants,
)
from quantformer_training.run_data import MostTrials

EFFORT, EXTENT = EFFORTS["small"], EXTENTS["small"]
SHOWN = {"a": (GRATING, "natural_scenes"), "b": (GRATING,), "c": ("natural_scenes", GRATING)}


def planned(
    *tables: str, preset: str = "small", shown: dict[str, tuple[str, ...]] = SHOWN
) -> tuple[PlannedContest, ...]:
    return plan(tables, shown=shown, effort=EFFORTS[preset], extent=EXTENTS[preset])


def test_all_is_every_table_in_the_reports_order() -> None:
    assert asked_tables(["all"]) == TABLES
    assert asked_tables(["table2", "ours"]) == ("ours", "table2")


@pytest.mark.parametrize(("name", "near"), [("tabel1", "table1"), ("A2", "tableA2"), ("figure", "figures"), ("", "")])
def test_an_unknown_table_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"there is no table '{name}'; the nearest is '{near}"):
        asked_tables(["table1", name])


def test_tables_share_their_runs() -> None:
    together = planned("ours", "table1", "table2", "tableA4")
    assert together == planned("ours")
    places = [(one.mouse, one.category) for one in together if one.group == "models"]
    assert sorted(places) == sorted((mouse, category) for mouse, shown in SHOWN.items() for category in shown)
    assert [one.category for one in together if one.group == "pooled"] == [GRATING, "natural_scenes"]
    (first, *_) = together
    assert first.models == tuple(name for name in MODELS if not is_ablation(name) and name != BRAINLM_FINETUNED)
    assert len(pretrainings(together)) == 1


def test_published_weights_are_fine_tuned_where_the_user_has_them_and_a_table_has_their_row() -> None:
    def models(*tables: str, brainlm: bool) -> set[str]:
        made = plan(tables, shown=SHOWN, effort=EFFORT, extent=EXTENT, brainlm=brainlm)
        return {name for one in made for name in one.models}

    for tables in (("ours",), ("table1",), ("table2",), ("tableA4",)):
        assert models(*tables, brainlm=True) - models(*tables, brainlm=False) == {BRAINLM_FINETUNED}
        assert {"brainlm", BRAINLM_FINETUNED} <= {name for table in tables for name in models_of(table)}
    assert models("table3", "table4", "tableA2", brainlm=True) == models("table3", "table4", "tableA2", brainlm=False)


def test_a_table_of_one_task_needs_no_model_of_the_other() -> None:
    assert "ridge" not in models_of("table1")
    assert "logistic" in models_of("table1")
    assert "logistic" not in models_of("table2")
    assert models_of("table2") == models_of("tableA4")
    assert {"quantformer", "lstm"} < set(models_of("table1")) & set(models_of("table2"))


def test_the_ablation_is_on_gratings_and_alone_needs_the_plain_auto_encoder() -> None:
    contests = planned("table3")
    assert {(one.mouse, one.category) for one in contests} == {(mouse, GRATING) for mouse in SHOWN}
    assert all(one.plain is not None and not one.plain.quantized for one in contests)
    assert all(one.plain is None for one in planned("table1"))
    # Where there are no gratings, whatever there is.
    (only,) = planned("table3", shown={"a": ("natural_scenes",)})
    assert only.category == "natural_scenes"


def test_leaving_out_covers_every_mouse_and_category_with_an_auto_encoder_each() -> None:
    contests = [one for one in planned("table4", preset="paper") if one.group == "left_out"]
    mice = {(one.mouse, one.category, one.pretraining.without_mouse) for one in contests if one.variant == "subjects"}
    assert mice == {(mouse, category, mouse) for mouse, shown in SHOWN.items() for category in shown}
    stimuli = [one for one in contests if one.variant == "stimuli"]
    assert all(one.pretraining.without_category == one.category for one in stimuli)
    assert len(stimuli) == 5
    assert len(pretrainings(contests)) == 5
    # What is left must be something.
    assert [one.variant for one in planned("table4", shown={"a": SHOWN["a"]}) if one.group == "left_out"] == [
        "stimuli"
    ] * 2
    # Each is compared with the same model from which nothing was left out.
    whole = {(one.mouse, one.category) for one in planned("table4") if one.group == "models"}
    assert {(one.mouse, one.category) for one in planned("table4") if one.group == "left_out"} <= whole


def test_the_search_varies_one_size_and_shares_the_default() -> None:
    contests = planned("tableA2", "tableA3")
    assert contests == planned("tableA3")
    search = {one.variant: one.effort.model for one in contests if one.group == "search"}
    assert set(search) == {"k=4", "k=16", "k=128", "d=32", "d=128"}
    default = EFFORT.model
    assert all((model.codes == default.codes) != (model.d == default.d) for model in search.values())
    assert {one.mouse for one in contests} == {"a"}
    assert set(search_variants(EFFORT, EXTENT)) - set(search) == {"k=32", "d=64"}
    paper = [one for one in planned("tableA2", preset="paper") if one.group == "search"]
    assert {one.mouse for one in paper} == set(SHOWN)
    assert len({one.variant for one in paper}) == 7 + 3


def test_every_preset_has_an_extent_and_one_for_recordings_is_small_networks_on_everything() -> None:
    assert set(EXTENTS) == set(EFFORTS) == {"small", "recording", "paper"}
    small, recording = EFFORTS["small"], EFFORTS["recording"]
    assert recording.model == small.model
    assert recording.most == MostTrials()
    assert recording.budget.epochs > small.budget.epochs
    # The small search, with nothing left out of it.
    whole = EXTENTS["recording"]
    assert (whole.codes, whole.widths) == (EXTENT.codes, EXTENT.widths)
    assert (whole.search_mice, whole.subject_categories, whole.stimulus_mice) == (None, None, None)
    search = [one for one in planned("tableA3", preset="recording") if one.group == "search"]
    assert {one.mouse for one in search} == set(SHOWN)
    assert {one.variant for one in search} == {"k=4", "k=16", "k=128", "d=32", "d=128"}
    left_out = [one for one in planned("table4", preset="recording") if one.group == "left_out"]
    assert sum(one.variant == "subjects" for one in left_out) == 5
    assert sum(one.variant == "stimuli" for one in left_out) == 5
    assert all(one.effort == recording for one in left_out)


def test_skill_is_told_at_no_lead_and_at_a_sixth_and_a_third_of_a_second() -> None:
    assert LEADS == (0, 5, 10)


def test_jobs_keep_classical_models_together_and_ablations_apart() -> None:
    models = [*MODELS]
    jobs = in_jobs(models, extent=EXTENT)
    assert sorted(name for job in jobs for name in job) == sorted(models)
    for job in jobs:
        kinds = {(name in CLASSICAL, is_ablation(name)) for name in job}
        assert len(kinds) == 1
        assert set(job) <= CLASSICAL or len(job) <= EXTENT.networks_a_job
    assert sum(set(job) <= CLASSICAL for job in jobs) == 1
    assert in_jobs([], extent=EXTENT) == []


def test_the_small_preset_spares_the_costly_networks_outside_the_ablated_category() -> None:
    shown = {"m": ("static_gratings", "drifting_gratings")}
    small = plan(["table1"], shown=shown, effort=EFFORTS["small"], extent=EXTENTS["small"])
    whole = plan(["table1"], shown=shown, effort=EFFORTS["paper"], extent=EXTENTS["paper"])
    models = {one.category: set(one.models) for one in small}
    assert models["drifting_gratings"] - models["static_gratings"] == {"autoformer", "informer"}
    assert {frozenset(one.models) for one in whole} == {frozenset(models["drifting_gratings"])}
