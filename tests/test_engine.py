"""The running engine process: a stream gets answers, and whatever else comes in does not stop it."""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import zmq
from engine_process import PATIENCE_S, Client, EngineProcess, running, wait_until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_bundle import NEURONS

from quantformer.bundle import load_bundle
from quantformer.population_level import joined_level
from quantformer.signal import f0_level, hold_missing, onset_frames, read_baseline
from quantformer_client import wire
from quantformer_client.wire import ErrorCode
from quantformer_service.runtime import open_session

ROIS = list(NEURONS)
GRATING = [wire.Stimulus(stimulus_id="dir=045")]


@pytest.fixture(scope="module")
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made = zmq.Context()
    yield made
    made.destroy(0)


@pytest.fixture(scope="module")
def engine(tiny_bundle_path: Path) -> Iterator[EngineProcess]:
    with running(tiny_bundle_path) as started:
        yield started
        assert started.process.poll() is None
        assert started.end() == 0


@pytest.fixture
def client(engine: EngineProcess, context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[Client]:
    made = Client(engine.endpoints["zmq"], context)
    yield made
    if made.session:
        made.ask(wire.Close(), wire.Closed)
    made.close()


def recording(frames: int, *, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).lognormal(5, 0.2, (frames, len(ROIS))).astype(np.float32)


def subscriber(engine: EngineProcess, context: zmq.Context[zmq.Socket[bytes]], *prefixes: bytes) -> zmq.Socket[bytes]:
    made = context.socket(zmq.SUB)
    made.setsockopt(zmq.RCVTIMEO, int(PATIENCE_S * 1000))
    made.setsockopt(zmq.LINGER, 0)
    for prefix in prefixes:
        made.setsockopt(zmq.SUBSCRIBE, prefix)
    made.connect(engine.endpoints["pub"])
    return made


def asked(client: Client, body: wire.Onset) -> int:
    """Ask without waiting for the answer; the request id."""
    request = client.send(body)
    reply = client.receive(request).body
    assert isinstance(reply, wire.Accepted), reply
    return request


# --- a stream and its answers -----------------------------------------------------------------------------------------


def test_hello_open_stream_ask_close(engine: EngineProcess, client: Client, tiny_bundle_path: Path) -> None:
    welcome = client.ask(wire.Hello(client="test"), wire.Welcome)
    bundle = load_bundle(tiny_bundle_path)
    assert (welcome.bundle, welcome.provider, welcome.baseline_frames) == (bundle.hash, "cpu", 96)
    message = client.open(ROIS)
    assert message.header.epoch == engine.facts["epoch"]
    assert message.header.roi_hash == wire.roi_map_hash(ROIS)
    client.frames(recording(100))
    answer = client.onset(stimuli=[*GRATING, wire.Stimulus(stimulus_id="dir=090")], rois=["n003", "n001"])
    assert answer.stimuli == ("dir=045", "dir=090")
    assert answer.rois.tolist() == [3, 1]
    assert answer.probability.shape == (2, 2)
    assert answer.response is not None
    assert answer.response.shape == (2, 2, 64)
    assert answer.valid.all()
    assert answer.bundle.hex() == bundle.hash
    stamps = (answer.received_ns, answer.window_ready_ns, answer.submitted_ns, answer.done_ns, answer.published_ns)
    assert list(stamps) == sorted(stamps)
    assert client.onset(stimuli=GRATING, detail="probability").response is None
    description = client.ask(wire.Describe(), wire.Description)
    assert (description.state, description.rois, description.last_frame) == ("acquiring", ROIS, 99)
    session, client.session = client.session, 0
    closed = client.receive(client.send(wire.Close(), session=session)).body
    assert isinstance(closed, wire.Closed)
    assert closed.counters == {"frames": 100, "onset_questions": 2}
    assert client.error(wire.Describe(), session=session).code == ErrorCode.SESSION_LOST


@pytest.mark.parametrize("loss", [0.0, 0.03])
def test_the_windows_of_a_stream_are_the_offline_ones_bit_for_bit(
    client: Client, tiny_bundle_path: Path, loss: float
) -> None:
    bundle = load_bundle(tiny_bundle_path)
    trace = recording(420, seed=5)
    trace[200, 4] = np.nan
    rng = np.random.default_rng(6)
    stamps = np.cumsum(rng.normal(1 / 30, 2e-5, len(trace)))
    observed = rng.random(len(trace)) >= loss
    observed[0] = True
    # Mid-frame, so that jitter does not decide which frame is the onset frame.
    onsets_s = stamps[[150, 190, 230, 290, 350, 400]] - 0.017
    onsets = onset_frames(stamps, onsets_s)
    held = hold_missing(trace, observed)
    neurons = bundle.neurons(ROIS, unknown="refuse")
    client.open(ROIS)
    requests: dict[int, int] = {}
    for number in range(len(trace)):
        for onset_s, frame in zip(onsets_s, onsets, strict=True):
            if number == frame - 40:
                onset = wire.Onset(stimuli=GRATING, onset_s=float(onset_s), baseline=True)
                requests[asked(client, onset)] = int(frame)
        if observed[number]:
            client.send(wire.Frame(number=number, device_s=float(stamps[number]), fluorescence=trace[number]))
    runtime = open_session(bundle, provider="cpu", threads=1)
    for request, frame in requests.items():
        answer = client.receive(request).body
        assert isinstance(answer, wire.Answer)
        window, seen = held[frame - 96 : frame], observed[frame - 96 : frame].copy()
        assert answer.onset_frame == frame
        lead = answer.lead
        # With loss, a lost frame right before the onset is waited for until the next one shows that it is lost.
        assert (answer.last_frame, lead) == (frame - 1, 0)
        offline = read_baseline(window, recipe=bundle.recipe, f0_minimum=neurons.f0_minimum, observed=seen)
        assert answer.baseline is not None
        assert answer.baseline.tobytes() == offline.dff.tobytes()
        np.testing.assert_array_equal(answer.valid, offline.valid)
        assert answer.held == int((~seen).sum())
        logit, response, _ = runtime.run(
            ["logit", "response", "spread"],
            {
                "baseline": offline.dff,
                "level": joined_level(
                    f0_level(offline.f0, neurons.usual_f0), neurons.population.of(window, observed=seen)
                ),
                "neuron": neurons.vectors,
                "stimulus": bundle.stimulus("dir=045")[None],
                "row_neuron": np.arange(12),
                "row_stimulus": np.zeros(12, np.int64),
            },
        )
        np.testing.assert_allclose(answer.probability[0], bundle.probability(logit), atol=1e-4)
        assert answer.response is not None
        np.testing.assert_allclose(answer.response[0], response, atol=1e-4)
    assert len(requests) == len(onsets)


def test_five_minutes_of_241_neurons_sent_flat_out_lose_no_frame(client: Client) -> None:
    rois = [*ROIS, *(f"stranger{k}" for k in range(241 - len(ROIS)))]
    client.open(rois, unknown="mark")
    client.ask(wire.Standing(stimuli=GRATING), wire.Accepted)
    trace = np.random.default_rng(2).lognormal(5, 0.2, (300, 241)).astype(np.float32)

    def asked_of() -> int:
        counters = client.ask(wire.Describe(), wire.Description).counters
        return counters.get("standing_questions", 0) + counters.get("standing_dropped", 0)

    for start in range(0, 9000, 300):
        client.frames(trace, start=start)
    # Every frame with 96 before the next one is asked of, or counted as dropped; the last waits for the one under way.
    wait_until(lambda: asked_of() >= 9000 - 95)
    assert asked_of() == 9000 - 95
    counters = client.ask(wire.Describe(), wire.Description).counters
    assert counters["frames"] == 9000
    assert "gaps" not in counters
    answer = client.onset(stimuli=GRATING)
    assert (answer.onset_frame, int(answer.known.sum())) == (9000, len(ROIS))


def test_with_frames_withheld_the_window_is_the_one_of_training_at_that_lead(
    client: Client, tiny_bundle_path: Path
) -> None:
    bundle = load_bundle(tiny_bundle_path)
    trace = recording(120, seed=7)
    client.open(ROIS)
    client.frames(trace[:117])
    answer = client.onset(stimuli=GRATING, onset_frame=120, within_s=0.05, baseline=True)
    observed = np.arange(24, 120) < 117
    offline = read_baseline(hold_missing(trace[24:120], observed), recipe=bundle.recipe, observed=observed)
    assert (answer.lead, answer.held, answer.last_frame) == (3, 3, 116)
    assert answer.baseline is not None
    assert answer.baseline.tobytes() == offline.dff.tobytes()
    assert not answer.flags & wire.Flags.DEGRADED


def test_when_frames_stop_an_announced_onset_is_still_answered(client: Client) -> None:
    client.open(ROIS)
    client.frames(recording(100))
    answer = client.onset(stimuli=GRATING, onset_frame=112)
    assert answer.lead == 12
    assert answer.flags & wire.Flags.DEGRADED


def test_answers_are_published_and_standing_questions_follow_the_stream(
    engine: EngineProcess, client: Client, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    client.open(ROIS)
    with subscriber(engine, context, wire.subscription(wire.MessageType.ANSWER, session=client.session)) as sub:
        client.frames(recording(100))
        standing = client.ask(wire.Standing(stimuli=GRATING, rois=["n002"], detail="probability"), wire.Accepted)
        client.frames(recording(1), start=100)
        seen: list[wire.Answer] = []
        number = 101
        while len(seen) < 5:
            client.frames(recording(1), start=number)
            number += 1
            if sub.poll(200):
                message = wire.decode(sub.recv())
                assert isinstance(message.body, wire.Answer)
                assert message.header.session == client.session
                seen.append(message.body)
        assert {answer.question for answer in seen} == {standing.question}
        assert [answer.onset_frame for answer in seen] == sorted({answer.onset_frame for answer in seen})
        assert all(answer.phase == wire.Phase.SPONTANEOUS for answer in seen)
        assert all(answer.flags & wire.Flags.OUT_OF_PHASE for answer in seen)
        polled = client.ask(wire.Poll(question=standing.question), wire.Answer)
        assert polled.onset_frame >= seen[-1].onset_frame
        client.ask(wire.ClearStanding(question=standing.question), wire.Accepted)
        assert client.error(wire.Poll(question=standing.question)).code == ErrorCode.UNKNOWN_QUESTION


def test_standing_questions_leave_inference_free_for_a_deadline(
    engine: EngineProcess, client: Client, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    rois = [*ROIS, *(f"stranger{k}" for k in range(241 - len(ROIS)))]
    alternatives = [wire.Stimulus(stimulus_id=f"dir={angle:03d}") for angle in range(0, 360, 45)]
    client.open(rois, unknown="mark")
    trace = np.random.default_rng(3).lognormal(5, 0.2, (100, 241)).astype(np.float32)
    client.frames(trace)
    with subscriber(engine, context, wire.subscription(wire.MessageType.ANSWER, session=client.session)) as sub:
        # Enough rows that the answer for one frame is never done before the next frame comes.
        client.ask(wire.Standing(stimuli=alternatives, detail="probability"), wire.Accepted)
        standing: list[tuple[int, int]] = []
        onsets: list[tuple[int, bool]] = []
        number, pending, longest_s = len(trace), False, 0.0
        while len(onsets) < 12:
            if len(standing) > 3 and not pending:
                # So far ahead that the deadline comes before the frames do, and after what is under way now, also on a
                # slow machine; and so near that there are frames to read.
                within_s = max(0.5, min(4 * longest_s, 1.5))
                asked(
                    client,
                    wire.Onset(stimuli=GRATING, onset_frame=number + 90, within_s=within_s, detail="probability"),
                )
                pending = True
            client.frames(trace[:1], start=number)
            number += 1
            while sub.poll(20):
                answer = wire.decode(sub.recv()).body
                assert isinstance(answer, wire.Answer)
                if answer.asked == wire.Asked.STANDING:
                    standing.append((answer.submitted_ns, answer.done_ns))
                    longest_s = max(longest_s, (answer.done_ns - answer.submitted_ns) / 1e9)
                    continue
                at = answer.submitted_ns
                onsets.append((at, any(begun < at < done for begun, done in standing)))
                standing, pending = [], False
    # Only a standing answer that took longer than any of the last 32 can stand in the way.
    assert sum(busy for _, busy in onsets) <= 4


def test_the_same_over_tcp(engine: EngineProcess) -> None:
    with engine.tcp() as connection:
        stream = wire.MessageStream()
        got: list[wire.Message] = []

        def ask(body: wire.Body | wire.Frame, *, session: int = 0) -> None:
            connection.sendall(wire.with_length(wire.encode(body, session=session, request=7)))

        def reply() -> wire.Message:
            while not got:
                got.extend(wire.decode(message) for message in stream.feed(connection.recv(65536)))
            return got.pop(0)

        ask(wire.Open(subject="m", rois=ROIS, rate_hz=30.0))
        session = reply().header.session
        for number, values in enumerate(recording(100)):
            ask(wire.Frame(number=number, device_s=number / 30, fluorescence=values), session=session)
        ask(wire.Onset(stimuli=GRATING), session=session)
        assert isinstance(reply().body, wire.Accepted)
        answer = reply().body
        assert isinstance(answer, wire.Answer)
        assert answer.onset_frame == 100
        ask(wire.Close(), session=session)
        assert isinstance(reply().body, wire.Closed)


# --- order, batches, counts -------------------------------------------------------------------------------------------


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_onset_questions_are_answered_once_each_first_come_first(client: Client, data: st.DataObject) -> None:
    """Whatever is asked of two sessions, with standing questions beside: by when their windows were ready, then as asked."""
    sessions: list[int] = []
    try:
        for _ in range(2):
            client.open(ROIS)
            sessions.append(client.session)
            client.frames(recording(100))
            if data.draw(st.booleans()):
                client.ask(wire.Standing(stimuli=GRATING), wire.Accepted)
        asked_of = ask_at_random(client, sessions, data)
        answers: list[wire.Answer] = []
        while len(answers) < len(asked_of):
            message = wire.decode(client.socket.recv())
            if isinstance(message.body, wire.Answer):
                assert message.header.request in asked_of
                answers.append(message.body)
            else:
                assert isinstance(message.body, wire.Accepted), message.body
    finally:
        # An example may end in the middle of it.
        client.session = 0
        for session in sessions:
            client.ask(wire.Close(), wire.Closed, session=session)
    assert len({answer.question for answer in answers}) == len(asked_of)
    order = [(answer.window_ready_ns, answer.question) for answer in answers]
    assert order == sorted(order)
    published = [answer.published_ns for answer in answers]
    assert published == sorted(published)


def ask_at_random(client: Client, sessions: list[int], data: st.DataObject) -> set[int]:
    """Frames and onset questions for sessions that have 100 frames; the requests' ids."""
    found: set[int] = set()
    last = dict.fromkeys(sessions, 99)
    for _ in range(data.draw(st.integers(1, 40))):
        session = data.draw(st.sampled_from(sessions))
        ahead = data.draw(st.sampled_from([None, None, 0, 1, 2, 5]))
        if ahead == 0:
            last[session] += 1
            values = recording(1)[0]
            client.send(
                wire.Frame(number=last[session], device_s=last[session] / 30, fluorescence=values), session=session
            )
            continue
        onset = wire.Onset(
            stimuli=GRATING * data.draw(st.integers(1, 3)),
            onset_frame=None if ahead is None else last[session] + ahead,
            within_s=data.draw(st.sampled_from([None, 1e-6, 0.02, 0.2])),
            rois=data.draw(st.sampled_from([None, ["n004"]])),
            detail="probability",
        )
        found.add(client.send(onset, session=session))
    return found


# --- several sessions -------------------------------------------------------------------------------------------------


def bits(answer: wire.Answer) -> bytes:
    """All that inference said, without flags, phase and stamps."""
    parts = (answer.rois, answer.probability, answer.response, answer.low, answer.high, answer.baseline)
    return b"".join(part.tobytes() for part in parts if part is not None)


def test_standing_questions_of_three_sessions_share_a_batch_and_each_gets_what_it_gets_alone(
    engine: EngineProcess, client: Client, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    sizes = [12, 40, 7]
    traces = [
        np.random.default_rng(seed).lognormal(5, 0.2, (400, n)).astype(np.float32) for seed, n in enumerate(sizes)
    ]
    sessions: list[int] = []
    for n, trace in zip(sizes, traces, strict=True):
        client.open([f"r{k}" for k in range(n)], unknown="mark")
        sessions.append(client.session)
        client.frames(trace[:99])
        client.ask(wire.Standing(stimuli=GRATING, baseline=True), wire.Accepted)
    number = 99
    with subscriber(
        engine, context, *(wire.subscription(wire.MessageType.ANSWER, session=one) for one in sessions)
    ) as sub:
        shared: dict[int, wire.Answer] = {}
        while len(shared) < 3:
            # While this is computed, a frame of each comes; then all three are asked about theirs at once.
            held_up = client.send(
                wire.Onset(stimuli=GRATING * 40, detail="probability", hypothetical=True), session=sessions[1]
            )
            for session, trace in zip(sessions, traces, strict=True):
                frame = wire.Frame(number=number, device_s=number / 30, fluorescence=trace[number])
                client.send(frame, session=session)
            assert isinstance(client.receive(held_up, skip=wire.Accepted).body, wire.Answer)
            at: dict[int, dict[int, wire.Answer]] = {}
            asked: set[int] = set()
            # A subscription takes its time, in which answers are not heard.
            while asked != set(sessions) and sub.poll(2000):
                message = wire.decode(sub.recv())
                answer = message.body
                assert isinstance(answer, wire.Answer)
                if answer.asked == wire.Asked.STANDING and answer.onset_frame == number + 1:
                    asked.add(message.header.session)
                    at.setdefault(answer.submitted_ns, {})[message.header.session] = answer
            shared = max(at.values(), key=len, default={})
            number += 1
    assert set(shared) == set(sessions)
    for session, answer in shared.items():
        assert answer.submitted_ns <= answer.done_ns <= answer.published_ns
        client.session = session
        alone = client.onset(stimuli=GRATING, baseline=True)
        assert (alone.onset_frame, alone.asked) == (number, wire.Asked.NOW)
        assert bits(alone) == bits(answer)
    # Nobody shares the rest of the file's session.
    client.session = sessions[2]
    for session in sessions[:2]:
        client.ask(wire.Close(), wire.Closed, session=session)


def test_sessions_that_stream_flat_out_are_counted_exactly_and_served_alike(client: Client) -> None:
    sessions: list[int] = []
    rois = [*ROIS, *(f"stranger{k}" for k in range(60 - len(ROIS)))]
    trace = np.random.default_rng(2).lognormal(5, 0.2, (60, 60)).astype(np.float32)
    for _ in range(3):
        client.open(rois, unknown="mark")
        sessions.append(client.session)
        for start in (0, 60):
            client.frames(trace, start=start)
        client.ask(wire.Standing(stimuli=GRATING, detail="probability"), wire.Accepted)
    onsets: dict[int, int] = {}
    for number in range(120, 720):
        for session in sessions:
            values = trace[number % 60]
            client.send(wire.Frame(number=number, device_s=number / 30, fluorescence=values), session=session)
        if number % 50 == 0:
            session = sessions[number // 50 % 3]
            onsets[client.send(wire.Onset(stimuli=GRATING, rois=ROIS[:3]), session=session)] = number + 1
    published = []
    for request, frame in onsets.items():
        answer = client.receive(request, skip=wire.Accepted).body
        assert isinstance(answer, wire.Answer)
        assert answer.onset_frame == frame
        published.append(answer.published_ns)
    assert published == sorted(published)

    def counted() -> list[dict[str, int]]:
        return [client.ask(wire.Describe(), wire.Description, session=one).counters for one in sessions]

    def asked_of() -> list[int]:
        return [one.get("standing_questions", 0) + one.get("standing_dropped", 0) for one in counted()]

    # One for the frame that was the newest when it was set, and one for each after it.
    wait_until(lambda: asked_of() == [601] * 3)
    for one in counted():
        assert one["frames"] == 720
        assert "gaps" not in one
        assert one["standing_questions"] >= 1
    for session in sessions[:2]:
        client.ask(wire.Close(), wire.Closed, session=session)


def test_metrics_are_published_while_nothing_else_is_to_be_done(
    engine: EngineProcess, client: Client, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    client.open(ROIS)
    client.frames(recording(100))
    with subscriber(engine, context, wire.subscription(wire.MessageType.METRICS)) as sub:

        def told() -> wire.Metrics:
            body = wire.decode(sub.recv()).body
            assert isinstance(body, wire.Metrics)
            return body

        before = told()
        client.frames(recording(20), start=101)
        client.error(frame(0))
        client.onset(stimuli=GRATING)
        after = told()
        while after.counters["answers_onset"] == before.counters.get("answers_onset", 0):
            after = told()
    assert after.counters["frames"] - before.counters["frames"] == 20
    assert after.counters["gaps"] - before.counters.get("gaps", 0) == 1
    assert after.counters["error_duplicate_frame"] - before.counters.get("error_duplicate_frame", 0) == 1
    assert after.counters["rois_valid"] - before.counters.get("rois_valid", 0) == len(ROIS)
    inference = [sum(one.histograms["inference"].counts) for one in (before, after)]
    assert inference[1] - inference[0] == 1
    ingest = [sum(one.histograms["ingest"].counts) for one in (before, after)]
    assert ingest[1] - ingest[0] == 20
    # What happened in a session is not forgotten with it.
    client.ask(wire.Close(), wire.Closed)
    client.session = 0
    with subscriber(engine, context, wire.subscription(wire.MessageType.METRICS)) as sub:
        body = wire.decode(sub.recv()).body
    assert isinstance(body, wire.Metrics)
    assert body.counters["gaps"] >= after.counters["gaps"]


@pytest.mark.parametrize(("stimuli", "during"), [(1, False), (64, True)])
def test_subscribers_are_told_that_an_answer_comes_soon(
    engine: EngineProcess, client: Client, context: zmq.Context[zmq.Socket[bytes]], stimuli: int, during: bool
) -> None:
    client.open(ROIS)
    client.frames(recording(100))
    types = (wire.MessageType.SOON, wire.MessageType.ANSWER)
    prefixes = [wire.subscription(one, session=client.session) for one in types]
    with subscriber(engine, context, *prefixes) as sub:
        client.ask(wire.Standing(stimuli=GRATING * stimuli), wire.Accepted)
        soon_ns: list[int] = []
        computed_ns: list[tuple[int, int]] = []

        def found() -> bool:
            """Whether one was told as was to be: while inference was at work, or before the frame."""
            # Of later ones the answer may be on its way, and then it is not known yet when it was computed.
            heard_ns = computed_ns[-1][0] if computed_ns else 0
            inside = [any(begun < told < ended for begun, ended in computed_ns) for told in soon_ns if told < heard_ns]
            return during in inside

        number, end = 100, time.monotonic() + PATIENCE_S
        while not found():
            assert time.monotonic() < end, (soon_ns, computed_ns)
            client.send(wire.Frame(number=number, device_s=number / 30, fluorescence=recording(1)[0]))
            number += 1
            time.sleep(1 / 30)
            while sub.poll(0):
                message = wire.decode(sub.recv())
                if isinstance(message.body, wire.Answer):
                    computed_ns.append((message.body.submitted_ns, message.body.published_ns))
                else:
                    assert isinstance(message.body, wire.Soon)
                    soon_ns.append(message.header.sent_ns)


def test_what_a_client_says_comes_soon_is_taken_in_silence(
    tiny_bundle_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    with running(tiny_bundle_path, token="secret") as engine:
        client = Client(engine.endpoints["zmq"], context)
        # Before the greeting, too: it goes a way of its own.
        client.send(wire.Soon())
        client.ask(wire.Hello(token="secret"), wire.Welcome)
        client.open(ROIS)
        client.send(wire.Soon())
        counters = client.counters()
        assert not [name for name in counters if name.startswith("error")], counters
        assert not client._early
        client.close()


def test_an_answer_is_polled_as_it_was_published_under_the_polls_own_request(client: Client) -> None:
    client.open(ROIS)
    client.frames(recording(100))
    answer = client.onset(stimuli=GRATING, baseline=True)
    for number in (0, answer.question):
        message = client.receive(request := client.send(wire.Poll(question=number)))
        assert (message.header.request, message.header.session) == (request, client.session)
        again = message.body
        assert isinstance(again, wire.Answer)
        assert again.published_ns == answer.published_ns
        assert message.header.sent_ns > answer.published_ns
        assert again.probability.tobytes() == answer.probability.tobytes()
        assert again.baseline is not None
        assert answer.baseline is not None
        assert again.baseline.tobytes() == answer.baseline.tobytes()


def test_memory_does_not_grow_with_the_stream(engine: EngineProcess, client: Client) -> None:
    rois = [*ROIS, *(f"stranger{k}" for k in range(241 - len(ROIS)))]
    client.open(rois, unknown="mark")
    client.ask(wire.Standing(stimuli=GRATING), wire.Accepted)
    trace = np.random.default_rng(4).lognormal(5, 0.2, (500, 241)).astype(np.float32)
    process = psutil.Process(engine.process.pid)

    def stream(start: int, stop: int) -> int:
        for first in range(start, stop, 500):
            client.frames(trace, start=first)
            client.error(frame(0))  # whose traceback is a cycle
        return process.memory_info().rss

    # Once the ring is full, every buffer has been used and the collector has had its turn.
    early = stream(0, 3000)
    late = stream(3000, 15_000)
    # 12,000 frames at 1 kB: 12 MB, were they kept; an answer has 185 kB.
    assert late - early < 4 << 20


# --- the trigger ------------------------------------------------------------------------------------------------------


def test_a_rule_fires_into_the_dry_run_only_while_armed(
    engine: EngineProcess, client: Client, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    client.open(ROIS)
    prefixes = [
        wire.subscription(kind, session=client.session)
        for kind in (wire.MessageType.DECISION, wire.MessageType.TRIGGER)
    ]
    rule = wire.Rule(rule="one", rois=["n000"], threshold=0.0, refractory_s=0.0, max_age_s=60.0)
    with subscriber(engine, context, *prefixes) as sub:
        client.frames(recording(100))
        client.ask(wire.SetRule(rule=rule), wire.Accepted)
        assert client.ask(wire.ListRules(), wire.Rules).rules == [rule]

        def decided() -> str:
            answer = client.onset(stimuli=GRATING)
            while True:
                body = wire.decode(sub.recv()).body
                if isinstance(body, wire.Decision) and body.question == answer.question:
                    assert body.output == "dry-run"
                    return body.reason

        # A subscription takes effect some time after it was made.
        wait_until(lambda: (client.onset(stimuli=GRATING), sub.poll(100))[1])
        assert decided() == "disarmed"
        state = client.ask(wire.Arm(lease_s=60.0), wire.Trigger)
        assert state.state == "armed"
        assert decided() == "fired"
        client.ask(wire.Heartbeat(lease=state.lease), wire.Trigger)
        assert client.error(wire.Heartbeat(lease=state.lease + 1)).code == ErrorCode.NOT_ARMED
        client.ask(wire.Stop(), wire.Accepted, session=0)
        assert decided() == "stopped"
        assert client.error(wire.Arm()).code == ErrorCode.STOPPED
        client.ask(wire.Disarm(), wire.Trigger)
        client.ask(wire.Arm(lease_s=0.2), wire.Trigger)
        while True:
            body = wire.decode(sub.recv()).body
            if isinstance(body, wire.Trigger) and body.state == "disarmed" and body.fired:
                break
        while client.ask(wire.GetTrigger(), wire.Trigger).state == "armed":
            pass
        assert decided() == "disarmed"
        assert client.ask(wire.GetTrigger(), wire.Trigger).fired == 1
        client.ask(wire.RemoveRule(rule="one"), wire.Accepted)
        assert client.error(wire.RemoveRule(rule="one")).code == ErrorCode.UNKNOWN_RULE


# --- bad input --------------------------------------------------------------------------------------------------------


def frame(number: int, *, rois: int = 12, **fields: Any) -> wire.Frame:
    return wire.Frame(number=number, **{"device_s": number / 30, "fluorescence": np.ones(rois, np.float32), **fields})


def patched(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (frame(100, rois=11), ErrorCode.WRONG_NEURON_COUNT),
        (frame(99), ErrorCode.DUPLICATE_FRAME),
        (frame(100, device_s=1.0), ErrorCode.BAD_TIME),
        (frame(100, roi_hash=3), ErrorCode.WRONG_ROI_MAP),
        (wire.Onset(stimuli=GRATING, onset_frame=20), ErrorCode.ONSET_BEFORE_BUFFER),
        (wire.Onset(stimuli=GRATING, onset_s=0.5), ErrorCode.ONSET_BEFORE_BUFFER),
        (wire.Onset(stimuli=GRATING, onset_s=99 / 30 + 10.5), ErrorCode.ONSET_TOO_FAR),
        (wire.Onset(stimuli=[wire.Stimulus(stimulus_id="stranger")]), ErrorCode.UNKNOWN_STIMULUS),
        (wire.Onset(stimuli=GRATING, rois=["stranger"]), ErrorCode.UNKNOWN_ROI),
        (wire.Poll(), ErrorCode.NO_ANSWER_YET),
        (wire.Poll(question=12345), ErrorCode.UNKNOWN_QUESTION),
        (wire.SetRule(rule=wire.Rule(rule="r", rois=["stranger"], threshold=0.5)), ErrorCode.UNKNOWN_ROI),
        (wire.Heartbeat(lease=1), ErrorCode.NOT_ARMED),
        (wire.Accepted(), ErrorCode.UNEXPECTED),
    ],
)
def test_a_request_that_is_refused_is_told_counted_and_changes_nothing(
    client: Client, body: wire.Body | wire.Frame, code: ErrorCode
) -> None:
    client.open(ROIS)
    client.frames(recording(100))
    counted = client.counters().get(f"error_{code}", 0)
    before = client.ask(wire.Describe(), wire.Description)
    error = client.error(body)
    assert (error.code, error.refused) == (code, body.message_type)
    after = client.ask(wire.Describe(), wire.Description)
    assert {k: v for k, v in after.counters.items() if not k.startswith("refused_")} == before.counters
    assert after.last_frame == before.last_frame
    assert client.counters()[f"error_{code}"] == counted + 1
    assert client.onset(stimuli=GRATING).onset_frame == 100


def test_frames_of_infinities_and_senseless_times_do_no_harm(client: Client) -> None:
    client.open(ROIS)
    for number in range(100):
        values = np.full(12, [np.inf, -np.inf, np.nan, 1e38] * 3, np.float32)
        client.send(wire.Frame(number=number, device_s=number * 1e-300, fluorescence=values))
    answer = client.onset(stimuli=GRATING)
    assert not answer.valid[:3].any()
    assert answer.flags & wire.Flags.DEGRADED
    assert client.error(wire.Frame(number=200, device_s=1e300, fluorescence=values)).code == ErrorCode.BAD_TIME


def test_a_frame_older_than_the_reorder_window_is_refused_a_newer_one_taken(client: Client) -> None:
    client.open(ROIS)
    trace = recording(130)
    client.frames(trace[:100])
    client.frames(trace[101:110], start=101)
    assert client.error(frame(100)).code == ErrorCode.FRAME_TOO_OLD
    client.frames(trace[112:115], start=112)
    client.frames(trace[110:112], start=110)
    counters = client.ask(wire.Describe(), wire.Description).counters
    assert (counters["reordered_frames"], counters["gap_frames"]) == (2, 3)


def test_what_is_too_long_to_be_told_back_is_an_error(client: Client) -> None:
    client.open([f"{k:060d}" for k in range(16_000)], unknown="mark")
    error = client.error(wire.Describe())
    assert (error.code, error.refused) == (ErrorCode.OVERSIZED, wire.MessageType.DESCRIBE)


def test_without_a_session_or_with_a_lost_one(client: Client) -> None:
    assert client.error(frame(0)).code == ErrorCode.NO_SESSION
    assert client.error(frame(0), session=424242).code == ErrorCode.SESSION_LOST
    assert client.error(wire.Open(subject="m", rois=["stranger"], rate_hz=30.0)).code == ErrorCode.UNKNOWN_NEURON
    assert client.error(wire.Hello(oldest=wire.MAJOR + 1, newest=wire.MAJOR + 2)).code == ErrorCode.UNSUPPORTED_VERSION


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", ErrorCode.TRUNCATED),
        (b"garbage", ErrorCode.BAD_MAGIC),
        (wire.encode(frame(0))[:-1], ErrorCode.TRUNCATED),
        (wire.encode(frame(0)) + b"\0", ErrorCode.LENGTH_MISMATCH),
        (patched(wire.encode(frame(0)), 19, b"\x01"), ErrorCode.WRONG_FORMAT),
        (patched(wire.encode(frame(0)), 19, b"\x07"), ErrorCode.WRONG_FORMAT),
        (patched(wire.encode(frame(0)), 72, struct.pack("<I", 24)), ErrorCode.BAD_PAYLOAD),
        (patched(wire.encode(frame(0)), 4, b"\x01"), ErrorCode.UNSUPPORTED_VERSION),
        (patched(wire.encode(frame(0)), 4, b"\x03"), ErrorCode.UNSUPPORTED_VERSION),
        (patched(wire.encode(frame(0)), 6, b"\xff\xff"), ErrorCode.UNKNOWN_TYPE),
        (wire.encode(frame(0)) + bytes(wire.MAX_MESSAGE), ErrorCode.OVERSIZED),
    ],
)
def test_bytes_that_are_no_message_get_a_typed_error(client: Client, data: bytes, code: ErrorCode) -> None:
    client.socket.send(data)
    message = client.receive(0)
    assert isinstance(message.body, wire.Error)
    assert message.body.code == code


def test_a_message_of_several_parts_is_refused(client: Client) -> None:
    client.socket.send_multipart([b"", wire.encode(wire.GetStatus())])
    error = client.receive(0).body
    assert isinstance(error, wire.Error)
    assert "DEALER" in error.message


def everything(connection: socket.socket) -> bytes:
    """All that is sent until the other side closes."""
    parts = []
    while data := connection.recv(65536):
        parts.append(data)
    return b"".join(parts)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"GET / HTTP/1.1\r\nHost: here\r\n\r\n" * 1000, ErrorCode.BAD_MAGIC),
        (struct.pack("<I", 2**31) + wire.encode(frame(0)), ErrorCode.OVERSIZED),
        (struct.pack("<I", 5) + b"QNTF", ErrorCode.TRUNCATED),
        (np.random.default_rng(0).bytes(1_000_000), ErrorCode.BAD_MAGIC),
    ],
)
def test_garbage_over_tcp_gets_an_error_and_the_connection_is_closed(
    engine: EngineProcess, client: Client, data: bytes, code: ErrorCode
) -> None:
    with engine.tcp() as connection:
        connection.sendall(data)
        (message,) = wire.MessageStream().feed(everything(connection))
        error = wire.decode(message).body
    assert isinstance(error, wire.Error)
    assert error.code == code
    client.counters()


def test_a_bad_message_in_a_good_stream_leaves_the_tcp_connection_open(engine: EngineProcess) -> None:
    with engine.tcp() as connection:
        bad = patched(wire.encode(frame(0)), 6, b"\xff\xff")
        connection.sendall(wire.with_length(bad) + wire.with_length(wire.encode(wire.Ping(), request=5)))
        stream = wire.MessageStream()
        got: list[wire.Message] = []
        while len(got) < 2:
            got += [wire.decode(message) for message in stream.feed(connection.recv(4096))]
    assert [type(message.body) for message in got] == [wire.Error, wire.Pong]


def test_garbage_on_every_port_does_not_stop_a_stream(engine: EngineProcess, client: Client) -> None:
    client.open(ROIS)
    trace = recording(160)
    rng = np.random.default_rng(1)
    for start in range(0, 160, 8):
        for endpoint in engine.endpoints.values():
            host, port = endpoint.removeprefix("tcp://").rsplit(":", 1)
            with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as raw:
                raw.sendall(rng.bytes(int(rng.integers(1, 5000))))
        client.frames(trace[start : start + 8], start=start)
    assert client.onset(stimuli=GRATING).onset_frame == 160
    assert client.ask(wire.Describe(), wire.Description).counters["frames"] == 160


def test_clients_that_vanish_or_do_not_read_do_not_stop_a_stream(
    engine: EngineProcess, client: Client, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    client.open(ROIS)
    client.frames(recording(100))
    # One that asks and goes before it is answered, one in the middle of a message.
    gone = Client(engine.endpoints["zmq"], context)
    gone.session = client.session
    asked(gone, wire.Onset(stimuli=GRATING, onset_frame=110))
    gone.close()
    with engine.tcp() as half:
        half.sendall(wire.with_length(wire.encode(frame(0)))[:50])
    # One that subscribes to everything and never reads, one that asks much over TCP and never reads.
    with subscriber(engine, context, b"") as deaf, engine.tcp() as silent:
        deaf.setsockopt(zmq.RCVHWM, 1)
        poll = wire.with_length(wire.encode(wire.Poll(), session=client.session))
        client.onset(stimuli=GRATING, baseline=True)
        silent.settimeout(0.5)
        # Its answers fill what is kept for it: it is closed, and until then its questions are read.
        with contextlib.suppress(TimeoutError, ConnectionError):
            while client.counters().get("closed_slow_client", 0) == 0:
                silent.sendall(poll * 1000)
        before = client.counters()
        client.frames(recording(30), start=100)
        for _ in range(200):
            client.onset(stimuli=GRATING, baseline=True)
        after = client.counters()
        assert after["frames"] - before["frames"] == 30
        assert after["answers"] - before["answers"] >= 200
    assert after["closed_slow_client"] == 1
    wait_until(lambda: client.counters().get("dropped_vanished_client", 0) >= 1)


def test_more_sessions_and_questions_than_there_may_be(client: Client) -> None:
    client.open(ROIS)
    client.frames(recording(100))
    requests = [client.send(wire.Onset(stimuli=GRATING, onset_frame=390)) for _ in range(65)]
    replies = [client.receive(request).body for request in requests]
    assert [type(reply) for reply in replies] == [wire.Accepted] * 64 + [wire.Error]
    client.ask(wire.Acquisition(event="abort"), wire.Accepted)
    lost = [client.receive(request).body for request in requests[:64]]
    assert {error.code for error in lost if isinstance(error, wire.Error)} == {ErrorCode.WINDOW_NOT_READY}
    assert client.error(frame(0)).code == ErrorCode.NOT_ACQUIRING
    more = []
    while isinstance(
        (reply := client.receive(client.send(wire.Open(subject="m", rois=ROIS, rate_hz=30.0)))).body, wire.Opened
    ):
        more.append(reply.header.session)
    assert isinstance(reply.body, wire.Error)
    assert reply.body.code == ErrorCode.TOO_MANY_SESSIONS
    assert len(more) == 7
    for session in more:
        client.ask(wire.Close(), wire.Closed, session=session)


# --- the process ------------------------------------------------------------------------------------------------------


def test_a_new_engine_has_a_new_epoch_and_no_sessions_and_is_disarmed(
    tiny_bundle_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    with running(tiny_bundle_path) as first:
        client = Client(first.endpoints["zmq"], context)
        client.open(ROIS)
        client.ask(wire.Arm(lease_s=60.0), wire.Trigger)
        client.frames(recording(100))
        pending = asked(client, wire.Onset(stimuli=GRATING, onset_frame=105))
        first.process.send_signal(signal.SIGTERM)
        # What is pending is answered before it ends.
        answer = client.receive(pending).body
        assert isinstance(answer, wire.Answer)
        assert answer.lead == 5
        assert first.process.wait(PATIENCE_S) == 0
        ports = {f"{name}_port": end.rsplit(":", 1)[1] for name, end in first.endpoints.items()}
    with running(tiny_bundle_path, **{name: value for name, value in ports.items() if name != "zmq_port"}) as second:
        again = Client(second.endpoints["zmq"], context)
        assert second.facts["epoch"] != first.facts["epoch"]
        assert again.error(frame(100), session=client.session).code == ErrorCode.SESSION_LOST
        again.open(ROIS)
        assert again.ask(wire.GetTrigger(), wire.Trigger).state == "disarmed"
        again.close()
    client.close()


def test_a_token_is_asked_for_on_every_connection(
    tiny_bundle_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    with running(tiny_bundle_path, token="secret") as engine:
        client = Client(engine.endpoints["zmq"], context)
        assert client.error(wire.GetStatus()).code == ErrorCode.UNAUTHORIZED
        assert client.error(wire.Hello(token="wrong")).code == ErrorCode.UNAUTHORIZED
        client.ask(wire.Ping(), wire.Pong)
        client.ask(wire.Hello(token="secret"), wire.Welcome)
        client.ask(wire.GetStatus(), wire.Status)
        named = Client(engine.endpoints["zmq"], context, identity=b"microscope")
        assert named.error(wire.Hello(token="secret")).code == ErrorCode.UNAUTHORIZED
        named.close()
        other = Client(engine.endpoints["zmq"], context)
        assert other.error(wire.GetStatus()).code == ErrorCode.UNAUTHORIZED
        other.close()
        client.close()
        assert engine.end() == 0


@pytest.mark.parametrize("setting", ["zmq_port", "pub_port", "tcp_port"])
def test_a_busy_port_is_an_error_that_names_port_and_flag(tiny_bundle_path: Path, setting: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        engine = EngineProcess(tiny_bundle_path, **{setting: port})
        assert engine.process.wait(PATIENCE_S) == 1
        engine.kill()
    assert str(port) in engine.facts["failed"]
    assert "--" + setting.replace("_", "-") in engine.facts["failed"]


def test_what_cannot_start_says_why(tmp_path: Path) -> None:
    for given_, status, words in (
        ({"bundle": tmp_path}, 3, "manifest.json"),
        ({"bundle": ""}, 2, "--bundle"),
        ({"bundle": tmp_path, "host": "0.0.0.0"}, 2, "token"),
    ):
        engine = EngineProcess(tmp_path, **given_)
        assert engine.process.wait(PATIENCE_S) == status
        engine.kill()
        assert words in engine.facts["failed"]


def test_the_engine_loads_no_torch_and_no_http() -> None:
    program = (
        "import sys, quantformer_service.engine\n"
        "print([m for m in ('torch', 'fastapi', 'starlette', 'uvicorn', 'httpx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_rehearsals_happen_and_nobody_sees_them(
    engine: EngineProcess, client: Client, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    client.open(ROIS)
    with subscriber(engine, context, b"") as sub:
        client.ask(wire.Standing(stimuli=GRATING), wire.Accepted)
        before = client.ask(wire.GetStatus(), wire.Status, session=0)
        for number, values in enumerate(recording(130)):
            client.send(wire.Frame(number=number, device_s=number / 30, fluorescence=values))
            time.sleep(1 / 30)
        told = client.ask(wire.GetStatus(), wire.Status, session=0)
        heard: list[wire.Message] = []
        metrics: list[wire.Metrics] = []
        while not metrics or metrics[-1].counters["frames"] < told.counters["frames"]:
            heard.append(wire.decode(sub.recv()))
            if isinstance(heard[-1].body, wire.Metrics):
                metrics.append(heard[-1].body)
    rehearsed = [sum(one.histograms["rehearsal"].counts) for one in metrics]
    assert rehearsed[-1] > rehearsed[0]
    # What was counted and published is what the client sent and asked, and of no session but those that clients opened.
    assert told.counters["frames"] - before.counters.get("frames", 0) == 130
    assert [one.session for one in told.sessions] == [one.session for one in before.sessions]
    assert {one.header.session for one in heard} <= {0, client.session}
