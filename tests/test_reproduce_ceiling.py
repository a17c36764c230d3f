"""Shares of the way to the ceiling: where they begin and end, what is said of them, and that a study is made once."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_study import EXTENT, TINY, tiny_cohort

from quantformer.errors import DataError
from quantformer_training.contest import BRAINLM_FINETUNED, MODELS
from quantformer_training.effort import EFFORTS
from quantformer_training.reproduce.ceiling import STARTS, CeilingStudy, Share, ceiling_study, shares_of
from quantformer_training.reproduce.ceiling_plan import CEILING_PLANS, CeilingPlan, folder, keep, kept
from quantformer_training.reproduce.ceiling_tables import ceiling_tables
from quantformer_training.reproduce.execute import Execution, categories_shown
from quantformer_training.reproduce.plan import is_ablation, plan
from quantformer_training.reproduce.reproduction import reproduce
from quantformer_training.reproduce.work import Step
from quantformer_training.run_store import Run

PLAN = CeilingPlan(neurons=4, presentations=40, particles=64, models=("quantformer", "logistic", *STARTS.values()))
TRIALS = np.repeat(np.arange(30), 4)


def rows(seed: int, *, mean: float) -> np.ndarray:
    """Losses of rows about ``mean``; trials differ."""
    rng = np.random.default_rng(seed)
    return mean + 0.1 * rng.standard_normal(30)[TRIALS] + 0.1 * rng.standard_normal(len(TRIALS))


START, TOP = rows(0, mean=2.0), rows(0, mean=1.0)


def shares(**losses: np.ndarray) -> dict[str, Share]:
    return {one.model: one for one in shares_of(losses, start=START, top=TOP, trial=TRIALS, seed=0)}


def study(*, failures: dict[str, str] | None = None, top: np.ndarray = TOP) -> CeilingStudy:
    losses = {"quantformer": rows(1, mean=1.5), "lstm": rows(2, mean=1.8)}
    found = {
        task: shares_of({**losses, start: START}, start=START, top=top, trial=TRIALS, seed=0)
        for task, start in STARTS.items()
    }
    return CeilingStudy(
        trials=30, neurons=4, activation=found["activation"], forecast=found["forecast"],
        start=dict.fromkeys(STARTS, float(START.mean())), ceiling=dict.fromkeys(STARTS, float(top.mean())),
        failures=failures or {},
    )  # fmt: skip


def test_the_start_has_a_share_of_zero_and_the_ceiling_of_one() -> None:
    found = shares(rate=START, ceiling=TOP, half=(START + TOP) / 2, worse=START + 0.5)
    assert list(found) == ["ceiling", "half", "rate", "worse"]
    for name, share in (("rate", 0.0), ("ceiling", 1.0), ("half", 0.5), ("worse", -0.5)):
        one = found[name]
        # The same in every resample, as start and ceiling are drawn with it.
        assert (one.share, one.low, one.high) == pytest.approx((share, share, share), abs=0.02), name


@settings(max_examples=30)
@given(mean=st.floats(0.5, 3.0), seed=st.integers(1, 1000))
def test_an_interval_contains_its_share_and_the_lead_is_a_difference(mean: float, seed: int) -> None:
    found = shares(one=rows(seed, mean=mean), other=rows(seed + 1, mean=1.5))
    first, second = found.values()
    for one in (first, second):
        assert one.low < one.share < one.high
        assert one.lead[1] <= one.lead[0] <= one.lead[2]
    assert first.loss <= second.loss
    assert first.lead[0] == pytest.approx(first.share - second.share)
    assert second.lead[0] == pytest.approx(-first.lead[0])
    words = {first.verdict, second.verdict}
    assert words in ({"ahead", "behind"}, {"not distinguishable"})


def test_the_first_is_compared_with_the_second_and_the_others_with_the_first() -> None:
    half = rows(1, mean=1.5)
    found = shares(third=rows(2, mean=1.9), second=half + 1e-3 * rows(3, mean=0.0), first=half)
    assert list(found) == ["first", "second", "third"]
    assert found["first"].lead[0] == pytest.approx(found["first"].share - found["second"].share)
    assert found["third"].lead[0] == pytest.approx(found["third"].share - found["first"].share)
    assert (found["first"].verdict, found["second"].verdict, found["third"].verdict) == (
        "not distinguishable", "not distinguishable", "behind"
    )  # fmt: skip
    ahead = shares(first=half, second=half + 0.1)
    assert (ahead["first"].verdict, ahead["second"].verdict) == ("ahead", "behind")
    # Paired: the difference is known far better than either share.
    one = ahead["first"]
    assert one.lead[2] - one.lead[1] < 0.5 * (one.high - one.low)


def test_where_the_ceiling_is_not_below_the_start_there_is_no_share() -> None:
    losses = {"worse": START + 0.1, "rate": START}
    found = shares_of(losses, start=START, top=START + 0.2, trial=TRIALS, seed=0)
    assert [one.model for one in found] == ["rate", "worse"]
    assert all(math.isnan(one.share) and math.isnan(one.low) and one.verdict == "not distinguishable" for one in found)
    # Below on the whole, but not in many of the resamples: a share, and no interval.
    unsure = START - 0.02 + 0.3 * np.random.default_rng(1).standard_normal(30)[TRIALS]
    unsure += START.mean() - 0.02 - unsure.mean()
    (one, _) = shares_of(losses, start=START, top=unsure, trial=TRIALS, seed=0)
    assert math.isfinite(one.share)
    assert math.isnan(one.low)
    text = " ".join(
        cell for table in ceiling_tables(study(top=START + 0.2), plan=PLAN) for row in table.rows for cell in row
    )
    assert "nan" not in text
    assert "There are no shares" in ceiling_tables(study(top=START + 0.2), plan=PLAN)[0].note


def test_the_tables_say_how_they_were_made() -> None:
    activation, forecast = ceiling_tables(study(), plan=PLAN)
    assert activation.columns[1].startswith("log-loss")
    assert forecast.columns[1].startswith("MSE")
    for table in (activation, forecast):
        first, *models = table.rows
        assert first[0].startswith("ceiling")
        assert [row[0] for row in models][:2] == [MODELS["quantformer"].title, MODELS["lstm"].title]
        assert models[-1][2] == "0.0 %"
        assert models[0][4].endswith("), ahead")
        assert models[1][4].endswith("), behind")
        for said in (
            "Simulated",
            "one mouse",
            "4 neurons",
            "30 test trials",
            "64 particles",
            "approximation from below",
        ):
            assert said in table.note
    assert "Without" in activation.note, "networks that were not asked are named"
    whole = ceiling_tables(study(), plan=CEILING_PLANS["paper"])[0]
    assert "Without" not in whole.note


def test_presets_ask_every_network_or_every_one_but_the_costly() -> None:
    networks = {name for name, card in MODELS.items() if card.tasks == "both" and not is_ablation(name)}
    # A study of simulated mice asks for nobody's files.
    networks -= {BRAINLM_FINETUNED}
    assert networks < set(CEILING_PLANS["paper"].models)
    assert networks - set(CEILING_PLANS["small"].models) == {"autoformer", "informer"}
    assert set(CEILING_PLANS) == set(EFFORTS)
    assert CEILING_PLANS["small"].left_out == ("autoformer", "informer")
    for one in CEILING_PLANS.values():
        assert set(one.models) <= set(MODELS)
        assert set(STARTS.values()) < set(one.models)


def test_a_study_is_kept_and_only_for_what_it_was_made_from(tmp_path: Path) -> None:
    made = study(top=START - 0.01 + 0.3 * np.random.default_rng(1).standard_normal(30)[TRIALS])
    keep(made, tmp_path / "new", mark="a")
    again = kept(tmp_path / "new", mark="a")
    assert repr(again) == repr(made), "NaN among the numbers too"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["ceiling.json"]
    assert kept(tmp_path / "new", mark="b") is None
    assert kept(tmp_path, mark="a") is None
    path = tmp_path / "new" / "ceiling.json"
    whole = path.read_text()
    oracle = json.loads(whole)
    oracle["forecast"][0]["model"] = "oracle"
    for text in (whole[:-20], "[]", "null", json.dumps({**json.loads(whole), "schema": 2}), json.dumps(oracle)):
        path.write_text(text)
        assert kept(tmp_path / "new", mark="a") is None, text[:40]


def test_whatever_it_follows_from_makes_another_study() -> None:
    mark = PLAN.mark(effort=TINY, seed=0, versions={"numpy": "2"})
    assert mark == PLAN.mark(effort=TINY, seed=0, versions={"numpy": "2"})
    others = {
        replace(PLAN, neurons=5).mark(effort=TINY, seed=0, versions={"numpy": "2"}),
        replace(PLAN, presentations=41).mark(effort=TINY, seed=0, versions={"numpy": "2"}),
        replace(PLAN, particles=65).mark(effort=TINY, seed=0, versions={"numpy": "2"}),
        replace(PLAN, models=PLAN.models[1:]).mark(effort=TINY, seed=0, versions={"numpy": "2"}),
        PLAN.mark(effort=replace(TINY, classical_rows=299), seed=0, versions={"numpy": "2"}),
        PLAN.mark(effort=TINY, seed=1, versions={"numpy": "2"}),
        PLAN.mark(effort=TINY, seed=0, versions={"numpy": "3"}),
    }
    assert len(others - {mark}) == 7


def execution_with_our_table(out: Path) -> Execution:
    """Three mice of which every run of our table is there: nothing is left to train but the study."""
    cohort = tiny_cohort(out / "recordings", mice=3)
    here = Execution(cohort=cohort, recordings=out / "recordings", out=out, extent=EXTENT, seed=0, versions={})
    for planned in plan(["ours"], shown=categories_shown(cohort), effort=TINY, extent=EXTENT):
        for model in planned.models:
            here.store.add(
                Run(
                    key=here.key(planned, model), fingerprint=here.mark(planned, model), origin="simulated",
                    metrics={"log_loss_skill": 0.3, "mse": 0.01, "f1": 0.5}, seconds=1.0, machine="m", versions={},
                    date="2026-01-01T00:00:00+00:00",
                )
            )  # fmt: skip
    return here


def our_table(here: Execution, ceiling: CeilingPlan, *, table: str = "ours") -> list[Step]:
    steps = list[Step]()
    reproduce([table], execution=here, effort=TINY, command="", ceiling=ceiling, report=steps.append)
    return steps


def test_a_kept_study_follows_our_table_without_a_job(tmp_path: Path) -> None:
    here = execution_with_our_table(tmp_path)
    mark = PLAN.mark(effort=TINY, seed=0, versions={})
    keep(study(), tmp_path / folder(mark), mark=mark)
    assert [step.name for step in our_table(here, PLAN)] == [""]
    for name in ("summary.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert text.count("How much of what could be known") == 2, name
    # Another table has nothing to do with it.
    assert [step.name for step in our_table(here, replace(PLAN, neurons=0), table="table1")] == [""]
    assert "How much of what could be known" not in (tmp_path / "summary.md").read_text()


def test_a_study_that_fails_is_left_out_with_its_reason_and_tried_again(tmp_path: Path) -> None:
    here = execution_with_our_table(tmp_path)
    for _ in range(2):
        steps = our_table(here, replace(PLAN, neurons=0))
        assert [(step.name, bool(step.failure)) for step in steps] == [("", False), ("ceiling", True)]
        summary = (tmp_path / "summary.md").read_text()
        assert f"- ceiling: {steps[-1].failure}" in summary
        assert "How much of what could be known" not in summary


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_study_trains_where_the_runs_do(tmp_path: Path) -> None:
    (_, last) = our_table(replace(execution_with_our_table(tmp_path), device="cuda"), PLAN)
    assert (last.name, "0 are seen; use device 'cpu'" in last.failure) == ("ceiling", True)


@pytest.mark.slow
def test_the_first_call_makes_the_study_and_the_second_reads_it(tmp_path: Path) -> None:
    here = execution_with_our_table(tmp_path)
    assert [(step.name, step.failure) for step in our_table(here, PLAN)] == [("", ""), ("ceiling", "")]
    (path,) = tmp_path.glob("ceiling-*/ceiling.json")
    made, pages = path.read_bytes(), (tmp_path / "summary.md").read_text().partition("### How much")[2]
    found = kept(path.parent, mark=PLAN.mark(effort=TINY, seed=0, versions={}))
    assert found is not None
    assert {one.model for one in found.activation} == {"quantformer", "logistic", STARTS["activation"]}
    assert {one.model for one in found.forecast} == {"quantformer", STARTS["forecast"]}
    for task, model in STARTS.items():
        (start,) = (one for one in getattr(found, task) if one.model == model)
        assert start.share == 0.0
        assert found.ceiling[task] < found.start[task] == pytest.approx(start.loss)
    assert [step.name for step in our_table(here, PLAN)] == [""]
    assert path.read_bytes() == made
    assert (tmp_path / "summary.md").read_text().partition("### How much")[2] == pages


@pytest.mark.slow
def test_models_that_fail_are_told_and_one_that_is_a_start_is_missed(tmp_path: Path) -> None:
    # The ablation needs an auto-encoder that the study does not have.
    fewer = replace(PLAN, particles=8, models=("ablation_autoencoder", *STARTS.values()))
    here = execution_with_our_table(tmp_path)
    assert [(step.name, step.failure) for step in our_table(here, fewer)] == [("", ""), ("ceiling", "")]
    summary = (tmp_path / "summary.md").read_text()
    assert "- ceiling, ablation_autoencoder: ablation_autoencoder needs an auto-encoder" in summary
    assert summary.count("How much of what could be known") == 2
    assert not list(tmp_path.glob("ceiling-*/ceiling.json")), "made again, as a run that failed"
    with pytest.raises(DataError, match="neuron_stimulus_mean, from which shares of the forecast are counted"):
        ceiling_study(
            directory=str(tmp_path / "new"), effort=TINY, models=(STARTS["activation"],), seed=0, neurons=4,
            presentations=40, particles=8,
        )  # fmt: skip
