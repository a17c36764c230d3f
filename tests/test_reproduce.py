"""Tables from recordings, start to report: real training on two tiny mice, resumed, cut, and with data that cannot be used."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from brainlm_files import published
from small_recording import GRATING
from tiny_study import EXTENT, SCARCE, SCENES, TINY, tiny_cohort

from quantformer.errors import DataError
from quantformer_training.cohort import Cohort
from quantformer_training.jobs import Job
from quantformer_training.machine import machine
from quantformer_training.reproduce.execute import Execution
from quantformer_training.reproduce.plan import PlannedContest, Pretraining
from quantformer_training.reproduce.reproduction import _weights, reproduce
from quantformer_training.reproduce.work import Executed, Step
from quantformer_training.run_store import RunStore

#: Seconds that a process gets before the test gives up on it.
PATIENCE_S = 120.0


def execution(
    cohort: Cohort, out: Path, *, processes: int = 1, brainlm: Path | None = None, device: str = "cpu"
) -> Execution:
    return Execution(
        cohort=cohort,
        recordings=out / "recordings",
        out=out,
        extent=EXTENT,
        seed=0,
        processes=processes,
        brainlm=brainlm,
        device=device,
    )


def contest(*models: str, mouse: str = "m0", category: str = GRATING) -> PlannedContest:
    return PlannedContest(
        group="models", mouse=mouse, category=category, models=models, pretraining=Pretraining(effort=TINY)
    )


def test_a_table_from_start_to_report_and_nothing_is_run_twice(tmp_path: Path) -> None:
    cohort, steps = tiny_cohort(tmp_path / "recordings", scarce=True), list[Step]()
    made = reproduce(
        ["table3"], execution=execution(cohort, tmp_path), effort=TINY, report=steps.append,
        command="quantformer reproduce table3",
    )  # fmt: skip
    assert (made.runs, made.made, made.failed) == (10, 12, 0)
    assert (steps[0].done, steps[-1].done, steps[-1].total, steps[-1].left_s) == (0, 12, 12, 0.0)
    page = (tmp_path / "report.html").read_text()
    assert "Table 3: ablation (simulated data)" in page
    assert "quantformer reproduce table3" in page
    assert "://" not in page
    text = (tmp_path / "summary.md").read_text()
    for said in (
        "Data: simulated (2 mice, 2 recordings)",
        "seed: 0",
        "machine",
        "77.66 ± 3.78",
        "minutes of pre-training",
    ):
        assert said in text
    records = [json.loads(line) for line in (tmp_path / "tables" / "table3.jsonl").read_text().splitlines()]
    rows = {record["row"]: record for record in records if record["metric"] == "balanced_accuracy"}
    assert list(rows) == [
        "quantformer", "quantformer/baseline", "quantformer/learnable_tokens", "quantformer/autoencoder",
        "quantformer/quantization",
    ]  # fmt: skip
    assert rows["quantformer/baseline"]["reference"] == "quantformer/quantization"
    assert rows["quantformer/baseline"]["paper_mean"] == pytest.approx(0.7588)
    assert all(record["mean"] is not None and record["pairs"] == 2 for record in rows.values())

    lines = (tmp_path / "runs.jsonl").read_bytes()
    steps.clear()
    again = reproduce(
        ["table3"], execution=execution(cohort, tmp_path), effort=TINY, command="again", report=steps.append
    )
    assert (again.made, [step.name for step in steps]) == (0, [""])
    assert (tmp_path / "runs.jsonl").read_bytes() == lines

    steps.clear()
    both = reproduce(
        ["table3"], execution=execution(cohort, tmp_path), effort=TINY, command="both", seeds=2, report=steps.append
    )
    assert (both.runs, both.made, both.failed) == (20, 12, 0)
    assert (tmp_path / "runs.jsonl").read_bytes().startswith(lines)
    assert all(step.name.startswith("seed 1, ") for step in steps if step.name)
    assert [(step.done, step.total) for step in (steps[0], steps[-1])] == [(10, 20), (22, 22)]
    assert math.isnan(steps[0].left_s), "a seed that was there says nothing of the next"
    assert steps[1].left_s > 0.0, "its like was seen with the seed before"
    assert steps[-1].left_s == 0.0
    assert "seeds: 0, 1" in (tmp_path / "summary.md").read_text()
    by_seed = [
        {run.key.model: run.metrics["log_loss"] for run in execution(cohort, tmp_path).store.runs() if "log_loss" in run.metrics
         and (run.key.seed, run.key.mouse) == (seed, "m0")}
        for seed in (0, 1)
    ]  # fmt: skip
    assert by_seed[0].keys() == by_seed[1].keys()
    assert all(by_seed[0][model] != by_seed[1][model] for model in by_seed[0])
    (record,) = (
        one for one in map(json.loads, (tmp_path / "tables" / "table3.jsonl").read_text().splitlines())
        if (one["row"], one["metric"]) == ("quantformer", "balanced_accuracy")
    )  # fmt: skip
    assert record["pairs"] == 2, "a seed is no new animal"


@pytest.mark.slow
def test_what_is_left_out_and_what_is_searched_over_become_tables_that_say_what_is_missing(tmp_path: Path) -> None:
    cohort = tiny_cohort(tmp_path / "recordings", scenes=True)
    here = execution(cohort, tmp_path)
    made = reproduce(
        ["table4", "tableA2", "tableA3"], execution=here, effort=TINY, command="", report=lambda step: None
    )
    assert {run.key: run.failure for run in here.store.runs() if run.failure} == {}
    assert made.failed == 0
    # Each mouse and each category left out once, and the sizes that differ from the default.
    left_out = {
        (run.key.mouse, run.key.category, run.key.variant) for run in here.store.runs() if run.key.table == "left_out"
    }
    assert left_out == {
        ("m0", GRATING, "subjects"),
        ("m1", GRATING, "subjects"),
        ("m0", GRATING, "stimuli"),
        ("m0", SCENES, "stimuli"),
    }
    assert {run.key.variant for run in here.store.runs() if run.key.table == "search"} == {"k=4", "d=32"}
    ours = {
        "table4": {"quantformer", "quantformer_paper"} | {
            f"quantformer{design}/{kind}" for design in ("", "_paper") for kind in ("subjects", "stimuli")
        },
        "tableA2": {f"quantformer{design}/{size}" for design in ("", "_paper") for size in ("k=4", "k=8", "d=16", "d=32")},
    }  # fmt: skip
    ours["tableA3"] = ours["tableA2"]
    for name, rows in ours.items():
        records = [json.loads(line) for line in (tmp_path / "tables" / f"{name}.jsonl").read_text().splitlines()]
        assert {record["row"] for record in records if not record["missing"]} == rows
        assert {record["missing"] for record in records} == ({""} if name == "table4" else {"", "not run"})
        undefined = {record["metric"] for record in records if record["row"] in rows and record["mean"] is None}
        assert undefined <= {"f1"}, name
    text = (tmp_path / "tables" / "tableA2.md").read_text()
    assert "| K = 512 | not run | 0.027 ± 0.016 |" in text
    assert "no run of ours was asked for, or could be had: K = 16, K = 32" in text


@pytest.mark.slow
def test_our_table_on_one_recording_has_intervals_over_its_trials_and_the_figures_are_drawn_once(
    tmp_path: Path,
) -> None:
    cohort = tiny_cohort(tmp_path / "recordings", mice=1)
    here = execution(cohort, tmp_path, brainlm=published(tmp_path / "brainlm"))
    made = reproduce(["ours", "table2", "figures"], execution=here, effort=TINY, command="", report=lambda step: None)
    # Gratings without a rest leave no pseudo-onset, from which the third meaning of active takes its scale.
    failed = [run for run in here.store.runs() if run.failure]
    assert {(run.key.table, run.key.variant) for run in failed} == {("labels", "evoked")}
    assert all("no usable pseudo-onset" in run.failure for run in failed)
    assert made.failed == len(failed)
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/svg+xml") == len(list((tmp_path / "figures").glob("*.svg"))) > 0
    assert "Within one recording: m0, drifting gratings" in page
    text = (tmp_path / "summary.md").read_text()
    assert "### Within one recording" in text
    assert "Table 2: forecasting, gradient-normalised, paper-compatible (simulated data)" in text
    # The paper's BrainLM-ft beside ours, and on which terms.
    assert "CC BY-NC-ND 4.0: not for commercial use" in text
    records = [json.loads(line) for line in (tmp_path / "tables" / "table2.jsonl").read_text().splitlines()]
    (finetuned,) = (one for one in records if (one["row"], one["metric"]) == ("brainlm_finetuned", "normalised_mse"))
    assert finetuned["mean"] is not None
    assert finetuned["paper_mean"] == 0.457
    lines = [json.loads(line) for line in (tmp_path / "tables" / "ours_within.jsonl").read_text().splitlines()]
    assert {"lstm", "ridge", "logistic"} < {line["model"] for line in lines}

    # The others' forecasts stand in them.
    (drawn_examples,) = (tmp_path / "figures").glob("forecasts_*.svg")
    for title in ("Crossformer", "LSTM", "ridge on baseline, F0 and mean responses", "BrainLM, fine-tuned"):
        assert f">{title}<" in drawn_examples.read_text(), title
    assert "Of the others, over all rows that they were tested on: Crossformer MSE" in text
    tables = {path.stem for path in (tmp_path / "tables").glob("ours*.md")}
    assert {"ours_interval", "ours_label_signed", "ours_label_absolute"} <= tables

    # The figures are there: what draws them is not even started.
    drawn = {path: path.stat().st_mtime_ns for path in (tmp_path / "figures").iterdir()}
    steps = list[Step]()
    again = execution(cohort, tmp_path, brainlm=tmp_path / "brainlm")
    assert reproduce(["figures"], execution=again, effort=TINY, command="", report=steps.append).made == 0
    assert [step.name for step in steps] == [""]
    assert drawn == {path: path.stat().st_mtime_ns for path in (tmp_path / "figures").iterdir()}


def test_only_what_another_effort_touches_is_made_again(tmp_path: Path) -> None:
    cohort, here = tiny_cohort(tmp_path / "recordings"), execution
    classical, wanted = ("base_rate", "neuron_mean"), contest("quantformer", "base_rate")
    first = here(cohort, tmp_path).run([wanted], report=lambda step: None)
    assert first.made == 3
    # A model more: the auto-encoder and the others stay.
    second = here(cohort, tmp_path).run([contest("quantformer", *classical)], report=lambda step: None)
    assert (second.made, len(second.runs)) == (1, 3)
    # Another budget changes every run of it, but not the auto-encoder.
    spent = replace(wanted, pretraining=Pretraining(effort=replace(TINY, classical_rows=200)))
    third = here(cohort, tmp_path).run([spent], report=lambda step: None)
    assert third.made == 2
    # A lost auto-encoder is made again only where something missing starts from it.
    (tmp_path / "pretrained" / next((tmp_path / "pretrained").iterdir()).name / "pretrained.pt").unlink()
    assert here(cohort, tmp_path).run([spent], report=lambda step: None).made == 0
    assert here(cohort, tmp_path).run([contest("last_frames")], report=lambda step: None).made == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_device_reaches_every_job_and_is_no_part_of_what_a_run_follows_from(tmp_path: Path) -> None:
    cohort, missing = tiny_cohort(tmp_path / "recordings", mice=1), "0 are seen; use device 'cpu'"
    figures = Pretraining(effort=TINY)

    def made(device: str) -> Executed:
        here = execution(cohort, tmp_path, device=device)
        return here.run([contest("base_rate")], figures_from=figures, report=lambda step: None)

    untrained = made("cuda")
    assert missing in untrained.pretraining[0].failure
    assert untrained.runs[0].failure.startswith("its pre-training failed (")
    # Where the auto-encoder is there, the contest and the figures ask for the GPU themselves.
    execution(cohort, tmp_path).run([contest("zero")], report=lambda step: None)
    refused = made("cuda")
    assert [missing in run.failure for run in (*refused.runs, *refused.pretraining)] == [True, False]
    assert missing in refused.gallery_failure
    cpu = execution(cohort, tmp_path).run([contest("base_rate")], report=lambda step: None)
    assert (cpu.made, cpu.runs[0].failure, cpu.runs[0].machine) == (1, "", machine(gpu=False))
    # What one device made is not made again for the other.
    again = execution(cohort, tmp_path, device="cuda").run([contest("base_rate")], report=lambda step: None)
    assert (again.made, again.runs[0].date) == (0, cpu.runs[0].date)


def test_published_weights_are_one_more_model_and_other_weights_another_run(tmp_path: Path) -> None:
    cohort = tiny_cohort(tmp_path / "recordings", mice=1)
    wanted = contest("brainlm_finetuned")
    without = execution(cohort, tmp_path)
    (refused,) = without.run([wanted], report=lambda step: None).runs
    assert "needs the published weights, which are not part of this project" in refused.failure
    assert _weights(["table1"], without) == [
        ("BrainLM, fine-tuned", "absent: its published weights were not given (--brainlm DIR)")
    ]
    here = execution(cohort, tmp_path, brainlm=published(tmp_path / "brainlm"))
    (made,) = here.run([wanted], report=lambda step: None).runs
    assert made.failure == ""
    assert made.metrics["mse"] > 0
    ((name, said),) = _weights(["ours"], here)
    assert name == "BrainLM, fine-tuned"
    assert said.startswith("from the user's copy of the published weights (CC BY-NC-ND 4.0: not for commercial use")
    assert _weights(["table3", "figures"], here) == [], "no row of theirs"
    assert execution(cohort, tmp_path, brainlm=tmp_path / "brainlm").run([wanted], report=lambda step: None).made == 0
    weights = {"vit.layernorm.bias": torch.full((8,), 0.5)}
    other = execution(cohort, tmp_path, brainlm=published(tmp_path / "other", **weights))
    assert other.run([wanted], report=lambda step: None).made == 1
    with pytest.raises(DataError, match=r"config\.json does not exist"):
        reproduce(["table1"], execution=execution(cohort, tmp_path, brainlm=tmp_path), effort=TINY, command="",
                  report=lambda step: None)  # fmt: skip


def test_what_cannot_be_used_is_left_out_with_its_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    cohort = tiny_cohort(tmp_path / "recordings", scarce=True)
    wanted = [contest("base_rate", mouse="m1", category=SCARCE), contest("base_rate", mouse="m1")]
    # Nothing but gratings can train an auto-encoder here.
    lost = Pretraining(effort=TINY, without_category=GRATING)
    wanted.append(replace(contest("base_rate"), group="left_out", variant="stimuli", pretraining=lost))
    told = list[Step]()
    found = execution(cohort, tmp_path, processes=1).run(wanted, report=told.append)
    scarce, usable, untrained = found.runs
    assert "2 presentations" in scarce.failure
    assert usable.failure == ""
    assert usable.metrics["log_loss"] > 0
    assert untrained.failure.startswith("its pre-training failed (no session is left")
    assert sum(bool(step.failure) for step in told) == 3
    assert {run.key.mouse: bool(run.failure) for run in found.pretraining} == {"all": True}


def test_other_jobs_run_beside_the_contests_and_may_fail(tmp_path: Path) -> None:
    cohort, told = tiny_cohort(tmp_path / "recordings"), list[Step]()
    others = [Job(name="made", function=dict, arguments={"a": 1}), Job(name="len", function=len)]
    found = execution(cohort, tmp_path).run([contest("base_rate")], others=others, report=told.append)
    assert found.others["made"].value == {"a": 1}
    assert "TypeError" in found.others["len"].failure
    assert [run.failure for run in found.runs] == [""]
    assert (told[-1].done, told[-1].total) == (4, 4)


def test_a_second_recording_of_the_same_stimuli_is_said_to_be_pre_trained_on_only(tmp_path: Path) -> None:
    cohort = tiny_cohort(tmp_path / "recordings")
    sessions = [replace(one, provenance=replace(one.provenance, subject="m0")) for one in cohort.sessions]
    cohort = Cohort(sessions=tuple(sessions), left_out={"bad.npz": "not a recording"})
    reproduce([], execution=execution(cohort, tmp_path), effort=TINY, command="", report=lambda step: None)
    text = (tmp_path / "summary.md").read_text()
    assert "- recording session-1: an earlier recording of the mouse has the same categories" in text
    assert "- recording bad.npz: not a recording" in text
    assert "session-0" not in text


def test_a_cohort_without_stimulus_categories_is_refused(tmp_path: Path) -> None:
    cohort = tiny_cohort(tmp_path / "recordings", mice=1)
    spontaneous = replace(cohort.sessions[0].stimuli, category=("spontaneous",) * 48)
    cohort = Cohort(sessions=(replace(cohort.sessions[0], stimuli=spontaneous),), left_out={})
    with pytest.raises(DataError, match="none of the 1 recordings has a stimulus category"):
        reproduce(["table1"], execution=execution(cohort, tmp_path), effort=TINY, command="", report=lambda step: None)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_ends_every_process_and_what_was_finished_stays(tmp_path: Path, processes: int) -> None:
    tiny_cohort(tmp_path / "recordings")
    program = [sys.executable, str(Path(__file__).with_name("tiny_reproduction.py")), str(tmp_path), str(processes)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    with subprocess.Popen(
        program, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        assert process.stdout is not None
        # The auto-encoder is there and the contests have begun.
        assert any("pre-training" in line for line in process.stdout)
        workers = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(PATIENCE_S) == 130, rest
    kept = RunStore(tmp_path).runs()
    assert [run.key.table for run in kept][:1] == ["pretraining"]
    assert not any(run.failure for run in kept)
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE_S)
    assert not alive
