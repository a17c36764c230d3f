"""REST against the running service: every operation, and every kind of bad input."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import math
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running_service import PATIENCE_S, ROIS, RunningService, feed, traces, until

from quantformer_client import (
    AsyncRest,
    Microscope,
    Rest,
    ServiceError,
    SessionLostError,
    Stimulus,
    UnreachableError,
    wire,
)

STIMULUS = Stimulus(stimulus_id="dir=045")


@pytest.fixture(scope="module")
def service(tiny_bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("rest")
    with RunningService(tiny_bundle_path, folder=folder, max_body_bytes=200_000, predict_rows=48) as running:
        yield running


@pytest.fixture
def rest(service: RunningService) -> Iterator[Rest]:
    with service.rest() as client:
        yield client


@pytest.fixture
def session(rest: Rest) -> Iterator[int]:
    number = rest.open(wire.Open(subject="mouse", rois=list(ROIS), rate_hz=30.0))["session"]
    yield number
    with contextlib.suppress(SessionLostError):
        rest.close_session(number)


def frames(count: int, *, first: int = 0, rois: int = len(ROIS)) -> list[wire.Frame]:
    values = traces(count, rois=rois)
    return [
        wire.Frame(number=n, device_s=n / 30.0, fluorescence=values[n - first]) for n in range(first, first + count)
    ]


def post(service: RunningService, path: str, body: bytes, kind: str = "application/json") -> httpx.Response:
    address = f"http://127.0.0.1:{service.http}{path}"
    return httpx.post(address, content=body, headers={"content-type": kind}, timeout=PATIENCE_S)


def refusal(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of a typed error, whose message is not empty."""
    body = answer.json()
    assert body["error"]["message"]
    return answer.status_code, body["error"]["code"]


def test_the_services_own_facts(rest: Rest, tiny_bundle_path: Path) -> None:
    assert rest.health() == {"alive": True}
    assert rest.ready() == {"ready": True, "engine": "ready", "predictor": True}
    assert rest.version()["wire"] == f"{wire.MAJOR}.{wire.MINOR}"
    bundle = rest.bundle()
    assert bundle["manifest"] == json.loads((tiny_bundle_path / "manifest.json").read_text())
    assert rest.status()["bundle"] == bundle["hash"]


def test_metrics_for_prometheus_tell_of_frames_and_answers(service: RunningService, rest: Rest, session: int) -> None:
    address = f"http://127.0.0.1:{service.http}/metrics"

    def sample(name: str) -> float:
        page = httpx.get(address, timeout=PATIENCE_S)
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        values = [line.rpartition(" ")[2] for line in page.text.splitlines() if line.rpartition(" ")[0] == name]
        return float(values[0]) if values else 0.0

    until(lambda: sample("quantformer_up") == 1)
    before, answered = sample("quantformer_frames_total"), sample('quantformer_answers_total{asked="onset"}')
    rest.frames(session, frames(100))
    rest.onset(session, wire.Onset(stimuli=[STIMULUS]), wait_s=10.0)
    until(lambda: sample("quantformer_frames_total") == before + 100)
    until(lambda: sample('quantformer_answers_total{asked="onset"}') == answered + 1)
    assert sample("quantformer_inference_seconds_count") >= 1
    assert sample("quantformer_sessions") >= 1
    assert httpx.post(address, timeout=PATIENCE_S).status_code == 405


def test_a_session_from_open_to_close(rest: Rest, session: int) -> None:
    assert rest.frames(session, frames(100)) == {"accepted": 100, "refused": []}
    found = rest.describe(session)
    assert (found["subject"], found["rois"], found["last_frame"]) == ("mouse", list(ROIS), 99)
    taken = rest.onset(session, wire.Onset(stimuli=[STIMULUS]))
    assert taken["question"] > 0
    prediction = until(lambda: latest(rest, session))
    assert prediction["question"] == taken["question"]
    assert prediction["rois"] == list(ROIS)
    assert np.shape(prediction["probability"]) == (1, 12)
    assert np.shape(prediction["forecast"]["response"]) == (1, 12, 64)
    assert all(0 <= p <= 1 for p in prediction["probability"][0])
    assert rest.acquisition(session, "stop") == {"question": 0}
    with pytest.raises(ServiceError, match="not_acquiring"):
        rest.frames(session, frames(1, first=100))
    rest.acquisition(session, "start")
    assert rest.frames(session, frames(1))["accepted"] == 1
    assert rest.close_session(session)["counters"]
    with pytest.raises(SessionLostError):
        rest.describe(session)


def latest(rest: Rest, session: int) -> dict[str, Any] | None:
    """The latest prediction; None while there is none."""
    try:
        return rest.prediction(session)
    except ServiceError as error:
        if error.code != "no_answer_yet":
            raise
        return None


def test_json_frames_are_the_same_as_binary_ones(rest: Rest, session: int) -> None:
    """The same window through both ways gives the same prediction; null is a ROI without a value."""
    answers = []
    for form in ("binary", "json"):
        rest.acquisition(session, "start")
        sent = frames(96)
        if form == "binary":
            rest.frames(session, sent)
        else:
            rows = [
                {"number": f.number, "device_s": f.device_s, "fluorescence": [float(v) for v in f.fluorescence]}
                for f in sent
            ]
            rest.frames_json(session, rows)
        answers.append(rest.onset(session, wire.Onset(stimuli=[STIMULUS]), wait_s=10.0))
    assert answers[0]["probability"] == answers[1]["probability"]
    assert answers[0]["forecast"] == answers[1]["forecast"]
    rest.frames_json(session, [{"number": 96, "device_s": 3.2, "fluorescence": [None] + [100.0] * 11}])
    with_hole = rest.onset(session, wire.Onset(stimuli=[STIMULUS]), wait_s=10.0, detail="probability")
    assert with_hole["valid"] == [False] + [True] * 11
    assert with_hole["forecast"] is None


def test_a_prediction_as_the_wires_bytes(service: RunningService, rest: Rest, session: int) -> None:
    rest.frames(session, frames(96))
    shown = rest.onset(session, wire.Onset(stimuli=[STIMULUS]), wait_s=10.0)
    address = f"http://127.0.0.1:{service.http}/v1/sessions/{session}/prediction"
    got = httpx.get(address, headers={"accept": "application/octet-stream"}, timeout=PATIENCE_S)
    message = wire.decode(got.content)
    assert isinstance(message.body, wire.Answer)
    assert message.header.session == session
    assert message.body.probability.tolist() == shown["probability"]


def test_standing_questions(rest: Rest, session: int) -> None:
    question = rest.standing(session, wire.Standing(stimuli=[STIMULUS], detail="probability"))["question"]
    rest.frames(session, frames(100))
    found = until(lambda: latest(rest, session))
    assert (found["question"], found["asked"]) == (question, "standing")
    assert rest.describe(session)["standing"] == [question]
    rest.clear_standing(session, question)
    with pytest.raises(ServiceError, match="unknown_question"):
        rest.clear_standing(session, question)


def test_stimulated_neurons_are_not_valid(rest: Rest, session: int) -> None:
    rest.frames(session, frames(96))
    rest.stimulation(session, wire.Stimulation(rois=["n003"], first_frame=90, last_frame=92))
    found = rest.onset(session, wire.Onset(stimuli=[STIMULUS]), wait_s=10.0)
    assert [roi for roi, valid in zip(found["rois"], found["valid"], strict=True) if not valid] == ["n003"]


def test_rules_and_the_trigger(rest: Rest, session: int) -> None:
    rest.set_rule(session, wire.Rule(rule="any", rois=["n000"], threshold=0.0))
    assert [rule["rule"] for rule in rest.rules(session)["rules"]] == ["any"]
    assert rest.trigger(session)["state"] == "disarmed"
    armed = rest.arm(session, lease_s=30.0)
    assert armed["state"] == "armed"
    assert rest.heartbeat(session, lease=armed["lease"])["state"] == "armed"
    rest.stop(session, reason="test")
    assert rest.trigger(session)["state"] == "stopped"
    with pytest.raises(ServiceError, match="stopped"):
        rest.arm(session)
    assert rest.disarm(session)["state"] == "disarmed"
    rest.arm(session, lease_s=30.0)
    rest.stop(reason="all of them")
    assert rest.trigger(session)["state"] == "stopped"
    rest.disarm(session)
    rest.remove_rule(session, "any")
    with pytest.raises(ServiceError, match="unknown_rule"):
        rest.remove_rule(session, "any")


def test_stateless_prediction_agrees_with_the_session(rest: Rest, session: int) -> None:
    rest.frames(session, frames(96))
    by_session = rest.onset(session, wire.Onset(stimuli=[STIMULUS]), wait_s=10.0)
    alone = rest.predict(neurons=ROIS, stimuli=[STIMULUS], fluorescence=traces(96).T.tolist())
    short = rest.predict(neurons=ROIS, stimuli=[STIMULUS], fluorescence=traces(96).T.tolist(), detail="probability")
    assert (short["probability"], short["forecast"]) == (alone["probability"], None)
    np.testing.assert_allclose(alone["probability"], by_session["probability"], atol=1e-5)
    np.testing.assert_allclose(alone["forecast"]["response"], by_session["forecast"]["response"], atol=1e-5)
    assert alone["valid"] == [True] * 12


def test_stateless_prediction_knows_how_bright_a_neuron_usually_is(rest: Rest) -> None:
    """The same dF/F of twice the light: another answer for neurons that the bundle knows, and for a stranger that is asked
    about beside them, whose population is brighter; the same for a stranger alone.
    """
    window = traces(96, rois=3).T

    def asked(neurons: list[str], *, light: float) -> dict[str, Any]:
        fluorescence = (np.float32(light) * window[: len(neurons)]).tolist()
        return rest.predict(neurons=neurons, stimuli=[STIMULUS], fluorescence=fluorescence, unknown="mark")

    together = ["n000", "stranger", "n011"]
    plain, brighter = asked(together, light=1.0), asked(together, light=2.0)
    assert plain["known"] == brighter["known"] == [True, False, True]
    assert plain["valid"] == brighter["valid"] == [True] * 3
    assert np.abs(np.subtract(plain["probability"], brighter["probability"])).min() > 1e-4
    assert plain["forecast"]["response"][0][0] != brighter["forecast"]["response"][0][0]
    alone, alone_brighter = asked(["stranger"], light=1.0), asked(["stranger"], light=2.0)
    assert alone["probability"] == alone_brighter["probability"]
    assert alone["forecast"] == alone_brighter["forecast"]


def test_stateless_prediction_refuses_what_it_cannot_do(rest: Rest) -> None:
    good = [[100.0] * 96]
    usual: dict[str, Any] = {"neurons": ["n000"], "stimuli": [STIMULUS], "fluorescence": good}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"neurons": ["who"]}, "unknown_neuron"),
        ({"stimuli": [Stimulus(stimulus_id="what")]}, "unknown_stimulus"),
        ({"fluorescence": [[100.0] * 95]}, "bad_question"),
        ({"fluorescence": good * 2}, "bad_question"),
        ({"neurons": ROIS, "stimuli": [STIMULUS] * 5, "fluorescence": good * 12}, "too_many_rows"),
    ]
    for arguments, code in cases:
        with pytest.raises(ServiceError) as caught:
            rest.predict(**{**usual, **arguments})
        assert caught.value.code == code
    marked = rest.predict(neurons=["who"], stimuli=[STIMULUS], fluorescence=good, unknown="mark", detail="probability")
    assert marked["known"] == [False]


def test_async_client(service: RunningService) -> None:
    async def talk() -> list[dict[str, Any]]:
        async with AsyncRest(port=service.http) as rest:
            return list(await asyncio.gather(rest.health(), rest.ready(), rest.version()))

    alive, ready, _ = asyncio.run(talk())
    assert alive["alive"] is ready["ready"] is True


# --- bad input --------------------------------------------------------------------------------------------------------


def bad_frames() -> dict[str, tuple[bytes, str, int, str]]:
    """Bodies of POST frames: bytes, media type, and the status and code that each must get."""
    one = frames(1, first=200)[0]
    raw = one.encode()
    wide = bytearray(one.encode())
    double = one.fluorescence.astype(np.float64).tobytes()
    wide[80:] = double
    struct.pack_into("<I", wide, 76, len(double))
    json_, binary = "application/json", "application/octet-stream"
    timeless = wire.Frame(number=1, device_s=math.inf, fluorescence=one.fluorescence).encode()
    return {
        "wrong neuron count": (wire.with_length(frames(1, rois=11)[0].encode()), binary, 422, "wrong_neuron_count"),
        "wrong dtype": (wire.with_length(bytes(wide)), binary, 422, "bad_payload"),
        "wrong dtype in json": (
            b'{"frames":[{"number":1,"device_s":0,"fluorescence":["a"]}]}',
            json_,
            422,
            "bad_payload",
        ),
        "a bool for a number": (
            b'{"frames":[{"number":true,"device_s":0,"fluorescence":[1]}]}',
            json_,
            422,
            "bad_payload",
        ),
        "truncated": (wire.with_length(raw)[:-3], binary, 400, "truncated"),
        "no length": (raw, binary, 400, "bad_magic"),
        "garbage": (b"\x17" * 500, binary, 400, "bad_magic"),
        "empty": (b"", binary, 400, "truncated"),
        "no frames": (b'{"frames":[]}', json_, 422, "bad_payload"),
        "oversized": (bytes(300_000), binary, 413, "oversized"),
        "another message": (wire.with_length(wire.encode(wire.Stop())), binary, 400, "unexpected"),
        "no json": (b"{", json_, 400, "bad_json"),
        "deep json": (b"[" * 100_000, json_, 400, "bad_json"),
        "not utf-8": (b'{"frames": "\xff"}', json_, 400, "bad_json"),
        "a list": (b"[1]", json_, 422, "bad_payload"),
        "a slip": (b'{"frames":[{"number":1,"devices":0,"fluorescence":[1]}]}', json_, 422, "bad_payload"),
        "a page's form": (b'{"frames":[]}', "text/plain", 415, "unsupported_media_type"),
        "infinite time": (wire.with_length(timeless), binary, 422, "bad_time"),
    }


@pytest.mark.parametrize("case", bad_frames())
def test_bad_frames_get_a_typed_error_and_change_nothing(
    service: RunningService, rest: Rest, session: int, case: str
) -> None:
    rest.frames(session, frames(5))
    body, kind, status, code = bad_frames()[case]
    assert refusal(post(service, f"/v1/sessions/{session}/frames", body, kind)) == (status, code)
    assert rest.describe(session)["last_frame"] == 4
    assert rest.frames(session, frames(1, first=5))["accepted"] == 1


def test_refused_frames_are_told_one_by_one(service: RunningService, rest: Rest, session: int) -> None:
    rest.frames(session, frames(50, first=100))
    sent = [*frames(2, first=150), *frames(1, first=149), *frames(1, first=90)]
    mixed = b"".join(wire.with_length(one.encode()) for one in sent)
    answer = post(service, f"/v1/sessions/{session}/frames", mixed, "application/octet-stream")
    assert refusal(answer) == (409, "duplicate_frame")
    body = answer.json()
    assert body["accepted"] == 2
    assert [(one["frame"], one["code"]) for one in body["refused"]] == [(149, "duplicate_frame"), (90, "frame_too_old")]
    assert rest.describe(session)["last_frame"] == 151


def test_frames_of_an_unknown_session(rest: Rest) -> None:
    with pytest.raises(SessionLostError):
        rest.frames(12345, frames(40))


@pytest.mark.parametrize("number", ["0", "-1", str(1 << 64), "abc", "1e3"])
def test_what_cannot_be_a_session(service: RunningService, number: str) -> None:
    answer = httpx.get(f"http://127.0.0.1:{service.http}/v1/sessions/{number}", timeout=PATIENCE_S)
    assert refusal(answer)[0] in (404, 422)


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (wire.Onset(stimuli=[Stimulus(stimulus_id="nothing like it")]), "unknown_stimulus"),
        (wire.Onset(stimuli=[STIMULUS], rois=["n999"]), "unknown_roi"),
        (wire.Onset(stimuli=[STIMULUS], onset_s=200 / 30 + 11.0), "onset_too_far"),
        (wire.Onset(stimuli=[STIMULUS], onset_frame=90), "onset_before_buffer"),
        (wire.Onset(stimuli=[STIMULUS], onset_frame=150, onset_s=5.0), "bad_question"),
    ],
)
def test_questions_that_cannot_be_answered(rest: Rest, session: int, asked: wire.Onset, code: str) -> None:
    rest.frames(session, frames(200))
    with pytest.raises(ServiceError) as caught:
        rest.onset(session, asked)
    assert caught.value.code == code


def test_a_question_before_there_are_frames(rest: Rest, session: int) -> None:
    with pytest.raises(ServiceError) as caught:
        rest.onset(session, wire.Onset(stimuli=[STIMULUS]), wait_s=10.0)
    assert caught.value.code == "window_not_ready"


def test_unknown_neurons_are_refused_or_marked(rest: Rest) -> None:
    with pytest.raises(ServiceError, match="unknown_neuron"):
        rest.open(wire.Open(subject="m", rois=["stranger"], rate_hz=30.0))
    opened = rest.open(wire.Open(subject="m", rois=["stranger", "n000"], rate_hz=30.0, unknown="mark"))
    assert opened["known"] == [False, True]
    rest.close_session(opened["session"])


def test_a_slip_in_a_body_is_told_with_the_nearest_name(service: RunningService) -> None:
    answer = post(service, "/v1/sessions", b'{"subject":"m","rois":["n000"],"rate_hz":30,"signal":{"ofset":1}}')
    assert refusal(answer) == (422, "bad_payload")
    assert "$.signal has no field 'ofset'; the nearest is 'offset'" in answer.json()["error"]["message"]


def test_unknown_addresses_and_methods(service: RunningService) -> None:
    base = f"http://127.0.0.1:{service.http}"
    assert refusal(httpx.get(base + "/v2/health", timeout=PATIENCE_S)) == (404, "not_found")
    assert refusal(httpx.put(base + "/v1/sessions", timeout=PATIENCE_S)) == (405, "method_not_allowed")


def test_a_body_without_an_announced_length_is_capped_too(service: RunningService, session: int) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            yield bytes(10_000)

    address = f"http://127.0.0.1:{service.http}/v1/sessions/{session}/frames"
    try:
        answer = httpx.post(
            address, content=endless(), headers={"content-type": "application/octet-stream"}, timeout=PATIENCE_S
        )
    except httpx.HTTPError:
        return  # the connection was closed while we were still sending, which is as well
    assert refusal(answer) == (413, "oversized")


@pytest.mark.parametrize(
    "headers",
    [{"origin": "http://evil.example"}, {"origin": "null"}, {"host": "evil.example"}, {"host": "evil.example:7410"}],
)
def test_pages_of_other_sites_are_refused(service: RunningService, headers: dict[str, str]) -> None:
    answer = httpx.post(f"http://127.0.0.1:{service.http}/v1/stop", headers=headers, timeout=PATIENCE_S)
    assert refusal(answer) == (403, "foreign_origin")


def test_garbage_on_the_http_port_does_not_stop_the_service(service: RunningService, rest: Rest) -> None:
    for data in (
        b"\x00" * 1000,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"",
    ):
        with socket.create_connection(("127.0.0.1", service.http), timeout=PATIENCE_S) as vanishing:
            vanishing.sendall(data)
    assert rest.ready()["ready"]


def test_a_client_that_vanishes_in_the_middle_of_a_body(service: RunningService, rest: Rest, session: int) -> None:
    with socket.create_connection(("127.0.0.1", service.http), timeout=PATIENCE_S) as half:
        half.sendall(
            b"POST /v1/sessions/%d/frames HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\nQNTF" % session
        )
    assert rest.frames(session, frames(1))["accepted"] == 1


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=300), binary=st.booleans(), path=st.sampled_from(["", "/1/frames", "/1/onsets", "/1/rules"])
)
def test_any_bytes_get_a_typed_error(service: RunningService, body: bytes, binary: bool, path: str) -> None:
    answer = post(service, "/v1/sessions" + path, body, "application/octet-stream" if binary else "application/json")
    assert 400 <= refusal(answer)[0] < 500


# --- load -------------------------------------------------------------------------------------------------------------


def test_a_flooded_gateway_delays_and_loses_no_frame(service: RunningService) -> None:
    """64 HTTP clients hammer; the microscope's frames all arrive and are all answered for."""
    stop = threading.Event()
    statuses: set[int] = set()
    body = json.dumps({"neurons": ["n000"], "stimuli": [{"stimulus_id": "dir=045"}], "fluorescence": [[100.0] * 96]})

    def hammer(number: int) -> None:
        link = http.client.HTTPConnection("127.0.0.1", service.http, timeout=PATIENCE_S)
        while not stop.is_set():
            if number % 2:
                link.request("POST", "/v1/predict", body, {"content-type": "application/json"})
            else:
                link.request("GET", "/v1/status")
            answer = link.getresponse()
            answer.read()
            statuses.add(answer.status)
        link.close()

    with ThreadPoolExecutor(64) as pool:
        hammering = [pool.submit(hammer, number) for number in range(64)]
        try:
            with service.microscope() as scope:
                feed(scope, 600)
                scope.onset("dir=045")
                assert scope.wait(PATIENCE_S) is not None
                status = scope.connection.ask(wire.Describe(), expect=wire.Description, session=scope.session)
                assert status.last_frame == 599
                assert not scope.refused
        finally:
            stop.set()
        for one in hammering:
            one.result(PATIENCE_S)
    assert statuses <= {200, 429}
    assert 429 in statuses  # more predictions were asked for than may wait


def test_a_full_predict_queue_says_when_to_come_back(service: RunningService) -> None:
    many = {"neurons": list(ROIS), "stimuli": [{"stimulus_id": "dir=045"}] * 4, "fluorescence": [[100.0] * 96] * 12}
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: post(service, "/v1/predict", json.dumps(many).encode()), range(80)))
    busy = [one for one in answers if one.status_code == 429]
    assert busy
    assert {refusal(one) for one in busy} == {(429, "busy")}
    assert all(int(one.headers["retry-after"]) >= 1 for one in busy)


def test_two_clients_use_one_session(service: RunningService) -> None:
    with service.microscope() as scope, service.rest() as rest:
        feed(scope, 96)
        assert rest.describe(scope.session)["last_frame"] == 95
        shown = rest.onset(scope.session, wire.Onset(stimuli=[STIMULUS]), wait_s=10.0, detail="probability")
        with service.controller(scope.session) as controller:
            polled = controller.poll()
        assert polled is not None
        assert polled.probability.tolist() == shown["probability"]
        other: Microscope
        with service.microscope(subject="other") as other:
            feed(other, 3)
            assert rest.describe(other.session)["last_frame"] == 2
            assert rest.describe(scope.session)["last_frame"] == 95


# --- the token --------------------------------------------------------------------------------------------------------


def test_a_token_opens_every_door_but_health(tiny_bundle_path: Path, tmp_path: Path) -> None:
    with RunningService(tiny_bundle_path, folder=tmp_path, token="sesame") as service:
        with service.rest() as rest, service.microscope() as scope:
            assert rest.describe(scope.session)["subject"] == "mouse"
        with Rest(port=service.http) as stranger:
            assert stranger.health()["alive"]
            for question in (stranger.ready, stranger.status, stranger.bundle):
                with pytest.raises(ServiceError) as caught:
                    question()
                assert caught.value.code == "unauthorized"
        for header in ("sesame", "Basic sesame", "Bearer wrong", "Bearer \xe4"):
            address = f"http://127.0.0.1:{service.http}/v1/status"
            answer = httpx.get(address, headers={b"authorization": header.encode("latin-1")}, timeout=PATIENCE_S)
            assert refusal(answer) == (401, "unauthorized")
        with pytest.raises(ServiceError, match="unauthorized"):
            Microscope(subject="m", rois=ROIS, rate_hz=30.0, port=service.zmq)
        assert "sesame" not in service.log.read_text()


def test_nobody_there(service: RunningService) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with Rest(port=port) as rest, pytest.raises(UnreachableError):
        rest.health()
