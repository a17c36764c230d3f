"""The Python clients against the running service: microscope, controller, player, over ZeroMQ and TCP."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running_service import PATIENCE_S, ROIS, RunningService, feed, traces, until

import quantformer_client
from quantformer_client import (
    AnswerTimeoutError,
    Connection,
    Controller,
    Decision,
    Disturbance,
    Microscope,
    Played,
    Player,
    Presentation,
    Rule,
    ServiceError,
    SessionLostError,
    SignalDeclaration,
    Stimulus,
    UnreachableError,
    Watch,
    wire,
)

OVER = pytest.mark.parametrize("over", ["zmq", "tcp"])


@pytest.fixture(scope="module")
def service(tiny_bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with RunningService(tiny_bundle_path, folder=tmp_path_factory.mktemp("clients")) as running:
        yield running


def microscope(service: RunningService, over: str, **options: object) -> Microscope:
    port = {"zmq": service.zmq, "tcp": service.tcp}[over]
    return service.microscope(over=over, port=port, **options)


# --- the microscope ---------------------------------------------------------------------------------------------------


@OVER
def test_frames_onsets_and_answers(service: RunningService, over: str) -> None:
    with microscope(service, over) as scope:
        assert scope.known == (True,) * len(ROIS)
        feed(scope, 120)
        now = scope.onset("dir=045")
        alternatives = [Stimulus(stimulus_id="dir=000"), Stimulus(stimulus_id="dir=090")]
        announced = scope.onset(alternatives, onset_frame=125, within_s=30.0)
        for number, values in enumerate(traces(10), 120):
            scope.frame(number=number, device_s=number / 30.0, fluorescence=values)
        answers = [scope.wait(PATIENCE_S), scope.wait(PATIENCE_S)]
        found = {answer.question: answer for answer in answers if answer is not None}
        assert set(found) == {now, announced}
        assert found[now].onset_frame == 120
        assert found[announced].stimuli == ("dir=000", "dir=090")
        assert found[announced].probability.shape == (2, len(ROIS))
        scope.stimulation(rois=["n000"], first_frame=126, last_frame=127)
        scope.acquisition("stop")
        scope.acquisition("start")
        assert not scope.errors
        counters = scope.close()
        assert sum(counters.values()) >= 130
        assert scope.close() == {}
        with pytest.raises(SessionLostError):
            scope.acquisition("start")


@OVER
def test_over_zeromq_the_engine_is_told_before_each_frame_that_it_comes(service: RunningService, over: str) -> None:
    with microscope(service, over) as scope, Controller(session=scope.session, port=service.zmq) as controller:

        def foretold() -> int:
            return controller.status().counters.get("frames_foretold", 0)

        before = foretold()
        for number, values in enumerate(traces(40)):
            scope.frame(number=number, device_s=number / 30.0, fluorescence=values)
            time.sleep(1 / 30)
        # A machine that is held up may tell of some twice.
        assert 10 <= foretold() - before <= 50 if over == "zmq" else foretold() == before


@OVER
def test_refused_frames_are_collected_and_change_nothing(service: RunningService, over: str) -> None:
    with microscope(service, over) as scope:
        feed(scope, 40)
        scope.frame(number=39, device_s=1.3, fluorescence=traces(1)[0])
        scope.frame(number=40, device_s=40 / 30, fluorescence=np.ones(5, np.float32))
        scope.sync()
        assert dict(scope.refused) == {"duplicate_frame": 1, "wrong_neuron_count": 1}
        assert [error.code for error in scope.errors] == ["duplicate_frame", "wrong_neuron_count"]
        feed(scope, 1, first=40)
        assert sum(scope.refused.values()) == 2


def test_neuropil_and_motion_travel_with_the_frame(service: RunningService) -> None:
    declared = SignalDeclaration(extractor="suite2p", corrected=False, neuropil_factor=0.7)
    with service.microscope(signal=declared) as scope:
        for number, values in enumerate(traces(96)):
            scope.frame(
                number=number,
                device_s=number / 30,
                fluorescence=values + 70,
                neuropil=np.full(12, 100.0),
                motion=(0.5, -1.0),
            )
        scope.onset("dir=045")
        raw = scope.wait(PATIENCE_S)
        scope.frame(number=96, device_s=3.2, fluorescence=traces(1)[0])
        scope.sync()
        assert scope.errors[-1].code == "missing_neuropil"
    with service.microscope() as scope:
        feed(scope, 96)
        scope.onset("dir=045")
        corrected = scope.wait(PATIENCE_S)
    assert raw is not None
    assert corrected is not None
    np.testing.assert_allclose(raw.probability, corrected.probability, atol=1e-4)


def test_an_unknown_neuron_is_refused_with_its_code_and_the_connection_is_let_go(service: RunningService) -> None:
    with pytest.raises(ServiceError) as caught:
        Microscope(subject="m", rois=["stranger"], rate_hz=30.0, port=service.zmq)
    assert caught.value.code == "unknown_neuron"
    with service.microscope(rois=["stranger", "n001"], unknown="mark") as scope:
        assert scope.known == (False, True)


def test_reopen_after_the_session_was_closed_by_somebody_else(service: RunningService) -> None:
    with service.microscope() as scope:
        first = scope.session
        with service.rest() as rest:
            rest.close_session(first)

        def lost() -> bool:
            try:
                feed(scope, 1)
            except SessionLostError:
                return True
            return False

        until(lost)
        scope.reopen()
        assert scope.session != first
        feed(scope, 3)


@OVER
def test_nobody_there(over: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(UnreachableError, match="quantformer serve"):
        Connection(port=port, over="tcp" if over == "tcp" else "zmq")


def test_somebody_else_there() -> None:
    """A port that accepts and never answers is told from one that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(AnswerTimeoutError):
        Connection(port=silent.getsockname()[1], over="tcp")


# --- the controller ---------------------------------------------------------------------------------------------------


@OVER
def test_poll_and_rules_and_lease(service: RunningService, over: str) -> None:
    port = {"zmq": service.zmq, "tcp": service.tcp}[over]
    with (
        service.microscope() as scope,
        Controller(
            session=scope.session, port=port, pub_port=service.pub, over="tcp" if over == "tcp" else "zmq"
        ) as controller,
    ):
        assert controller.description.rois == list(ROIS)
        assert controller.poll() is None
        question = controller.standing(["dir=045", "dir=090"], rois=["n001", "n002"])
        feed(scope, 100)
        answer = until(controller.poll)
        assert answer.question == question
        assert answer.rois.tolist() == [1, 2]
        controller.clear_standing(question)
        with pytest.raises(ServiceError, match="unknown_question"):
            controller.clear_standing(question)
        controller.set_rule(Rule(rule="a", rois=["n001"], threshold=0.5))
        assert [rule.rule for rule in controller.rules()] == ["a"]
        with pytest.raises(ServiceError, match="unknown_roi"):
            controller.set_rule(Rule(rule="b", rois=["n999"], threshold=0.5))
        with pytest.raises(ServiceError, match="not_armed"):
            controller.heartbeat()
        assert controller.arm(lease_s=30.0).state == "armed"
        assert controller.heartbeat().state == "armed"
        controller.stop("test")
        assert controller.trigger().state == "stopped"
        assert controller.disarm().state == "disarmed"
        controller.remove_rule("a")
        assert controller.rules() == []


def test_a_watch_sees_answers_and_decisions_of_its_session(service: RunningService) -> None:
    with service.microscope() as scope, service.controller(scope.session) as controller, controller.watch() as watch:
        # Subscriptions take a moment to reach the publisher: ask until the first answer is seen.
        feed(scope, 96)
        controller.set_rule(Rule(rule="always", rois=["n000"], threshold=0.0, max_age_s=60.0))

        def asked() -> bool:
            scope.onset("dir=045")
            return watch.next(0.2) is not None

        until(asked)
        list(watch.events(idle_s=0.3))
        question = scope.onset("dir=045")
        seen = list(watch.events(idle_s=1.0))
        kinds = {type(event) for event in seen}
        assert kinds == {wire.Answer, Decision}
        assert {event.question for event in seen} == {question}
        decision = next(event for event in seen if isinstance(event, Decision))
        assert (decision.fired, decision.reason) == (False, "disarmed")


def test_the_one_open_session_is_found(service: RunningService) -> None:
    with service.microscope() as scope:
        with service.controller() as controller:
            assert controller.session == scope.session
        with service.microscope(subject="two"), pytest.raises(ServiceError, match="two"):
            service.controller()
    with pytest.raises(ServiceError, match="none"):
        service.controller()


def test_a_watch_without_a_publisher_waits_and_sees_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with Watch(port=port) as watch:
        assert watch.next(0.05) is None


# --- the player -------------------------------------------------------------------------------------------------------


def recording(frames: int, **options: object) -> Player:
    fields = {"fluorescence": traces(frames), "timestamps_s": np.arange(frames) / 30.0, **options}
    return Player(**fields)  # type: ignore[arg-type]


def play(service: RunningService, player: Player, **options: object) -> tuple[Played, int, dict[int, wire.Answer]]:
    """What was played, the last frame that the engine has, and the answer to each question."""
    with service.microscope() as scope:
        played = player.play(scope, **options)  # type: ignore[arg-type]
        answered: dict[int, wire.Answer] = {}
        while len(answered) < len(played.questions) and (answer := scope.wait(5.0)) is not None:
            answered[answer.question] = answer
        description = scope.connection.ask(wire.Describe(), expect=wire.Description, session=scope.session)
    return played, description.last_frame, answered


def test_flat_out_drops_nothing_and_every_announced_onset_is_answered(service: RunningService) -> None:
    shown = [Presentation(onset_s=onset, duration_s=1.0, stimulus="dir=045") for onset in (4.0, 6.0, 8.0, 30.5)]
    seen: list[int] = []
    played, last, answered = play(service, recording(900, presentations=shown), pace="flat", after_frame=seen.append)
    assert (played.sent, played.lost, played.reordered, played.refused) == (900, 0, 0, {})
    assert last == 899
    assert seen == list(range(900))
    assert set(played.questions) == {0, 1, 2, 3}
    leads = [answered[played.questions[index]].lead for index in range(4)]
    # The last onset is frame 915: 15 of its frames never come, and the engine does not wait for them for ever.
    assert leads == [0, 0, 0, 15]


def test_real_time_keeps_the_recordings_pace(service: RunningService) -> None:
    shown = [Presentation(onset_s=4.0, duration_s=1.0, stimulus="dir=045")]
    played, last, answered = play(service, recording(135, presentations=shown, ahead_s=0.5), pace="real")
    assert last == 134
    assert played.seconds >= 134 / 30.0  # never ahead of the clock; how far behind is the machine's affair
    assert set(answered) == set(played.questions.values())


def test_loss_and_reordering_are_made_and_counted(service: RunningService) -> None:
    player = recording(600, disturbance=Disturbance(loss=0.05, reorder=0.05, seed=1))
    played, last, _ = play(service, player, pace="flat")
    assert played.lost > 0
    assert played.reordered > 0
    assert played.sent + played.lost == 600
    assert played.refused == {}
    assert last == player_last(player)


def player_last(player: Player) -> int:
    return max(frame for _, frame in player.schedule())


@given(
    frames=st.integers(1, 200),
    loss=st.floats(0.0, 1.0),
    reorder=st.floats(0.0, 1.0),
    jitter=st.floats(0.0, 0.5),
    seed=st.integers(0, 100),
)
def test_a_schedule_has_every_kept_frame_once_in_order_of_time(
    frames: int, loss: float, reorder: float, jitter: float, seed: int
) -> None:
    disturbance = Disturbance(loss=loss, reorder=reorder, jitter_s=jitter, seed=seed)
    schedule = recording(frames, disturbance=disturbance, delivery_s=0.1).schedule()
    due, order = [when for when, _ in schedule], [frame for _, frame in schedule]
    assert due == sorted(due)
    assert len(set(order)) == len(order)
    assert all(abs(place - frame) <= 1 for place, frame in zip(sorted(order), order, strict=True) if loss == 0)
    if loss == 0:
        assert sorted(order) == list(range(frames))
    if reorder == 0:
        assert order == sorted(order)
    if jitter == loss == reorder == 0:
        np.testing.assert_allclose(due, np.arange(frames) / 30.0 + 0.1)


@pytest.mark.parametrize(
    "fields",
    [
        {"timestamps_s": np.arange(9) / 30.0},
        {"neuropil": np.ones((10, 3), np.float32)},
        {"ahead_s": 11.0},
        {"margin_s": 2.0},
        {"fluorescence": np.ones(10, np.float32)},
    ],
)
def test_a_player_refuses_what_does_not_fit(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        recording(10, **fields)


# --- clocks, and which stimulus is best ---------------------------------------------------------------------------------


@OVER
def test_the_clock_of_an_engine_on_this_machine_is_this_clock(service: RunningService, over: str) -> None:
    with microscope(service, over) as scope:
        first, again = scope.clock(), scope.clock(pings=3)
        # One machine, one monotonic clock: the true offset is 0.
        assert abs(first.offset_ns) <= first.uncertainty_ns
        assert first.drift is None
        assert again.drift is not None
        assert again.drift_uncertainty is not None
        assert abs(again.drift) <= again.drift_uncertainty
        feed(scope, 96)
        scope.onset("dir=045")
        answer = scope.wait(PATIENCE_S)
        assert answer is not None
        assert first.to_local(answer.published_ns) < time.perf_counter_ns() + first.uncertainty_ns
        with service.controller(scope.session) as controller:
            assert abs(controller.clock().offset_ns) <= controller.clock(pings=1).uncertainty_ns + 10**9


def test_what_was_told_of_an_onset_comes_back_with_its_answer(service: RunningService) -> None:
    with service.microscope() as scope:
        feed(scope, 120)
        told = 110.25 / 30
        scope.onset("dir=045", onset_s=told, source="photodiode", uncertainty_s=0.0005, display_latency_s=0.05)
        answer = scope.wait(PATIENCE_S)
        assert answer is not None
        assert (answer.told_s, answer.onset_s, answer.onset_frame) == (told, told + 0.05, 112)
        assert (answer.source, answer.uncertainty_s) == (wire.Source.PHOTODIODE, 0.0005)
        assert answer.display_latency_s == 0.05


@pytest.mark.parametrize("by", ["probability", "area"])
def test_the_best_stimulus_for_an_ensemble_is_one_call(
    service: RunningService, by: Literal["probability", "area"]
) -> None:
    stimuli = ["dir=000", "dir=045", "dir=090"]
    with service.microscope() as scope, service.controller(scope.session) as controller, service.rest() as rest:
        with pytest.raises(ServiceError, match="window_not_ready"):
            controller.best_stimulus(stimuli)
        feed(scope, 100)
        # A rule that any answer would pass, were it an answer to act upon.
        controller.set_rule(Rule(rule="any", rois=["n000"], threshold=0.0, max_age_s=60.0))
        controller.arm(lease_s=60.0)
        best = controller.best_stimulus(stimuli, rois=["n003", "n001"], by=by)
        scope.onset([Stimulus(stimulus_id=one) for one in stimuli], onset_frame=100)
        answer = scope.wait(PATIENCE_S)
        assert answer is not None
        wanted = answer.probability[:, [3, 1]].mean(axis=1)
        if by == "area":
            assert answer.response is not None
            wanted = answer.response[:, [3, 1]].sum(axis=2).mean(axis=1) / 30
        order = np.argsort(-wanted)
        assert [one.stimulus for one in best.ranking] == [stimuli[place] for place in order]
        np.testing.assert_allclose([getattr(one, by) for one in best.ranking], wanted[order], rtol=1e-4)
        assert {one.rois for one in best.ranking} == {2}
        # Nothing was told yet when it was asked: spontaneous, which this bundle was not trained for.
        assert best.answer.phase == wire.Phase.SPONTANEOUS
        assert best.answer.flags & wire.Flags.HYPOTHETICAL
        assert not best.trusted
        # The announced onset alone was decided upon.
        state = controller.trigger()
        assert state.fired + sum(state.refused.values()) == 1
        described = [Stimulus(stimulus_id=one) for one in stimuli]
        found = rest.best(scope.session, described, rois=["n003", "n001"], by=by)
        assert [one["stimulus"] for one in found["ranking"]] == [one.stimulus for one in best.ranking]
        assert (found["asked_rois"], found["onset_frame"], found["by"]) == (2, 100, by)
        with pytest.raises(ServiceError, match="unknown_stimulus"):
            rest.best(scope.session, [Stimulus(stimulus_id="stranger")])
        with pytest.raises(ServiceError, match="unknown_roi"):
            controller.best_stimulus(stimuli, rois=["stranger"])


# --- the package ------------------------------------------------------------------------------------------------------


def test_the_public_names_are_these() -> None:
    assert quantformer_client.__all__ == sorted(quantformer_client.__all__)
    assert set(quantformer_client.__all__) == {
        "Answer", "AnswerTimeoutError", "AsyncRest", "Best", "ClientError", "ClockOffset", "Connection", "Controller",
        "Decision", "Disturbance", "ErrorCode", "Microscope", "Played", "Player", "Presentation", "Rest", "Rule",
        "ServiceError", "SessionLostError", "SignalDeclaration", "Stimulus", "Subscriber", "TcpTransport",
        "UnreachableError", "Watch", "WireError", "ZmqTransport",
    }  # fmt: skip
    for name in quantformer_client.__all__:
        assert getattr(quantformer_client, name) is not None
    with pytest.raises(AttributeError):
        _ = quantformer_client.Nothing
