"""The engine in lower precision: it says so, answers as that form does, and a replay asks the same form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zmq
from engine_process import Client, EngineProcess
from recorded_run import GRATINGS, ROIS, busy_run, recorded, trace
from recorder_process import list_recordings

from quantformer.bundle import load_bundle
from quantformer_client import wire
from quantformer_service.replay import replay


def answered(path: Path, **settings: object) -> tuple[wire.Welcome, wire.Status, wire.Answer]:
    """What an engine with these settings says of itself, and answers to one question."""
    engine, context = EngineProcess(path, threads=1, **settings), zmq.Context()
    try:
        client = Client(engine.endpoints["zmq"], context)
        welcome = client.ask(wire.Hello(client="test"), wire.Welcome)
        client.open(ROIS)
        client.frames(trace(100))
        answer = client.onset(stimuli=GRATINGS)
        status = client.ask(wire.GetStatus(), wire.Status)
        assert engine.facts["precision"] == welcome.precision
        assert engine.end() == 0
    finally:
        context.destroy(0)
        engine.kill()
    return welcome, status, answer


def test_the_engine_says_what_it_computes_in_and_answers_within_the_recorded_agreement(lowered_bundle_path: Path) -> None:
    bundle = load_bundle(lowered_bundle_path)
    _, _, plain = answered(lowered_bundle_path)
    welcome, status, low = answered(lowered_bundle_path, precision="int8")
    assert (welcome.precision, status.precision, welcome.bundle) == ("int8", "int8", bundle.hash)
    logit = [np.log(one.probability / (1 - one.probability)) for one in (plain, low)]
    off = np.abs(logit[0] - logit[1]).max()
    # Seen to fail: the float32 graph served under another name.
    assert 0 < off < bundle.manifest.forms["int8"].agreement.logit
    chosen, _, same = answered(lowered_bundle_path, precision="auto")
    assert chosen.precision == "int8"
    np.testing.assert_array_equal(same.probability, low.probability)


@pytest.mark.parametrize(("precision", "status"), [("int8", 3), ("float16", 4)])
def test_a_form_that_is_not_there_or_another_devices_ends_the_engine(
    tiny_bundle_path: Path, precision: str, status: int
) -> None:
    engine = EngineProcess(tiny_bundle_path, precision=precision)
    try:
        assert list(engine.facts) == ["failed"]
        assert precision in str(engine.facts["failed"])
        assert engine.process.wait(60) == status
    finally:
        engine.kill()


def test_a_replay_asks_the_form_that_was_recorded(lowered_bundle_path: Path, tmp_path: Path) -> None:
    with recorded(lowered_bundle_path, tmp_path, precision="int8") as run:
        busy_run(run.client)
        run.safe()
        run.end()
    (outcome,) = replay(list_recordings(tmp_path), load_bundle(lowered_bundle_path))
    assert outcome.agrees
    assert outcome.unlike == ()
    assert outcome.answers.equal > 0
    assert outcome.answers.within == 0
