"""The demo's checks: each of them fails when what it asks for did not happen."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_rows import oracle, simulated_rows

from quantformer.bundle import load_bundle
from quantformer.recording import Provenance, Recording, StimulusTable
from quantformer_cli.demo_recording import Plan
from quantformer_cli.demo_scores import Agreement, Scores
from quantformer_cli.demo_stream import Heard, Streamed
from quantformer_cli.demo_summary import Outcome, as_json, checks
from quantformer_client import wire
from quantformer_client.player import Played
from quantformer_training.comparison import Baselines, compare_with_baselines, score_at_lead
from quantformer_training.splits import Split

FRAMES, ONSETS = 900, (200, 400, 600)


def answer(bundle: bytes, *, lead: int = 0, late: bool = False) -> Heard:
    one = wire.Answer(
        question=1, asked=wire.Asked.ANNOUNCED, phase=wire.Phase.ONSET, stimuli=("a",), onset_frame=200, onset_s=1.0,
        first_frame=104, last_frame=199, last_frame_s=0.9, lead=lead, held=lead, received_ns=1, window_ready_ns=2,
        submitted_ns=3, done_ns=4, published_ns=5, deadline_ns=6, bundle=bundle, rois=np.zeros(1, np.uint32),
        validity=np.ones(1, np.uint8), probability=np.full((1, 1), 0.5, np.float32),
        flags=wire.Flags.LATE if late else wire.Flags(0),
    )  # fmt: skip
    return Heard(answer=one, heard_ns=7)


@pytest.fixture(scope="module")
def good(tiny_bundle_path: Path) -> Outcome:
    bundle = load_bundle(tiny_bundle_path)
    recording = Recording(
        fluorescence=np.ones((FRAMES, 2), np.float32),
        timestamps_s=np.arange(FRAMES) / 30.0,
        neuron_ids=("a", "b"),
        stimuli=StimulusTable.empty(),
        provenance=Provenance(origin="simulated", source="test"),
    )
    whole = ((0, FRAMES),)
    rows, train = simulated_rows(trials=12, neurons=4, seed=0), simulated_rows(trials=12, neurons=4, seed=1)
    scored = compare_with_baselines(oracle(rows), rows=rows, baselines=Baselines.fit(train), minutes=1.0, resamples=20)
    return Outcome(
        plan=Plan(
            recording=recording,
            split=Split(train=whole, validation=whole, test=whole),
            start=0,
            stop=FRAMES,
            data="test data",
            chosen="all of it",
        ),
        bundle=bundle,
        streamed=Streamed(
            played=Played(sent=FRAMES, lost=0, reordered=0, seconds=30.0, behind_s=0.01, questions={}, refused={}),
            trials=np.arange(len(ONSETS)),
            answers={trial: answer(bytes.fromhex(bundle.hash)) for trial in range(len(ONSETS))},
            subscribed=len(ONSETS),
            latency_ms=np.array([3.0, 4.0, 5.0]),
            standing_ms=np.zeros(0),
            engine_ms=np.array([1.0, 2.0, 3.0]),
            decisions=(),
            trigger=wire.Trigger(state="disarmed", fired=1, refused={"below_threshold": 2}),
            counters={"frames": FRAMES},
            polls=10,
            polls_answered=8,
            status=wire.Status(
                state="ready",
                engine="test",
                bundle=bundle.hash,
                provider="CPUExecutionProvider",
                uptime_s=1.0,
                counters={},
                latency_ms={},
                sessions=[],
            ),
        ),
        scores=Scores(
            streamed=scored,
            held_out=scored,
            pseudo=scored,
            leads=(score_at_lead(oracle(rows).probability, rows=rows, train=train, lead=0),),
            agreement=Agreement(rows=6, onset_frames=3, windows=0, probability=1e-7, response=1e-7),
            coverage=0.8,
        ),
        rules=(),
        service_status=130,
        fast=False,
        budget="smoke",
        seed=0,
        command="quantformer demo",
        seconds={"stream": 30.0},
    )


def streamed(**changes: Any) -> Callable[[Outcome], Outcome]:
    return lambda outcome: replace(outcome, streamed=replace(outcome.streamed, **changes))


def played(**changes: Any) -> Callable[[Outcome], Outcome]:
    return lambda outcome: streamed(played=replace(outcome.streamed.played, **changes))(outcome)


def agreement(**changes: Any) -> Callable[[Outcome], Outcome]:
    def change(outcome: Outcome) -> Outcome:
        found = replace(outcome.scores.agreement, **changes)
        return replace(outcome, scores=replace(outcome.scores, agreement=found))

    return change


def test_everything_happened(good: Outcome) -> None:
    assert [check.name for check in checks(good) if not check.passed] == []


@pytest.mark.parametrize(
    ("change", "about"),
    [
        (played(sent=FRAMES - 1), "every frame"),
        (streamed(counters={"frames": FRAMES - 1}), "every frame"),
        (streamed(counters={"frames": FRAMES, "gap_frames": 1}), "every frame"),
        (played(refused={"bad_time": 1}), "every frame"),
        (streamed(trials=np.arange(4)), "every announced onset"),
        (streamed(trials=np.arange(0), answers={}, subscribed=0), "every announced onset"),
        (streamed(subscribed=2), "every announced onset"),
        (streamed(answers={trial: answer(bytes(32)) for trial in range(3)}), "the answers are"),
        (agreement(probability=2e-4), "the answers are"),
        (agreement(response=2e-4), "the answers are"),
        (agreement(windows=1), "the answers are"),
        (agreement(rows=0), "the answers are"),
        (streamed(polls_answered=0), "the controller polled"),
        (streamed(trigger=wire.Trigger(state="disarmed")), "the controller polled"),
        (lambda outcome: replace(outcome, service_status=-9), "the service ended"),
        (played(behind_s=1.5), "the frames kept"),
    ],
)
def test_what_did_not_happen_fails_its_check(
    good: Outcome, change: Callable[[Outcome], Outcome], about: str
) -> None:
    failed = [check.name for check in checks(change(good)) if not check.passed]
    assert any(name.startswith(about) for name in failed), failed


def test_flat_out_there_is_no_clock_to_keep(good: Outcome) -> None:
    assert all(check.passed for check in checks(replace(played(behind_s=9.0)(good), fast=True)))


def test_the_json_has_its_keys_and_no_value_that_json_lacks(good: Outcome) -> None:
    text = json.dumps(as_json(good, report=Path("report.html")), allow_nan=False)
    summary = json.loads(text)
    assert (summary["frames_sent"], summary["frames_received"], summary["frames_lost"], summary["onsets"]) == (900, 900, 0, 3)
    assert summary["latency_ms"]["p50"] == 4.0
    assert summary["latency_ms"]["standing"]["p50"] is None
    assert {"auroc", "auroc_within_neuron", "log_loss", "brier", "baselines"} <= set(summary["activation"])
    assert {"mse", "r", "baselines"} <= set(summary["forecast"])
    assert summary["forecast"]["baselines"]["zero"]["r"] is None
    assert summary["triggers"] == {"fired": 1, "refused": {"below_threshold": 2}}
    assert math.isclose(summary["interval"]["coverage"], 0.8)


def test_late_answers_and_leads_are_counted(good: Outcome) -> None:
    mixed = {0: answer(b"", lead=1, late=True), 1: answer(b"", lead=1), 2: answer(b"")}
    found = streamed(answers=mixed)(good)
    assert (found.late, found.leads) == (1, {0: 1, 1: 2})
