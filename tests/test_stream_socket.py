"""The WebSocket of the running service: predictions, decisions, slow readers, bad input."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running_service import PATIENCE_S, ROIS, RunningService, feed
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from quantformer_client import Rule, Stimulus

STIMULUS = Stimulus(stimulus_id="dir=045")
QUEUE = 16


@pytest.fixture(scope="module")
def service(tiny_bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("stream")
    with RunningService(tiny_bundle_path, folder=folder, stream_queue=QUEUE, max_body_bytes=2048) as running:
        yield running


def stream(service: RunningService, query: str = "", **options: Any) -> ClientConnection:
    live: ClientConnection = connect(f"ws://127.0.0.1:{service.http}/v1/stream{query}", open_timeout=PATIENCE_S, **options)
    return live


def take(live: ClientConnection, kind: str) -> dict[str, Any]:
    """The next message of a type; others are passed over."""
    while True:
        message: dict[str, Any] = json.loads(live.recv(timeout=PATIENCE_S))
        if message["type"] == kind:
            return message


def test_predictions_and_decisions_arrive(service: RunningService) -> None:
    with service.microscope() as scope, service.controller(scope.session) as controller:  # noqa: SIM117 - two ideas
        with stream(service, f"?session={scope.session}") as live, stream(service, "?detail=probability") as brief:
            feed(scope, 96)
            controller.set_rule(Rule(rule="never", rois=["n000"], threshold=1.0))
            scope.onset("dir=045")
            seen = take(live, "prediction")
            assert (seen["session"], seen["asked"], seen["rois"]) == (scope.session, "now", list(ROIS))
            assert len(seen["forecast"]["response"][0]) == len(ROIS)
            decided = take(live, "decision")
            assert (decided["decision"]["rule"], decided["decision"]["fired"]) == ("never", False)
            assert decided["decision"]["reason"]
            short = take(brief, "prediction")
            assert short["forecast"] is None
            assert short["probability"] == seen["probability"]
            controller.arm(lease_s=30.0)
            assert take(live, "trigger")["trigger"]["state"] == "armed"


def test_a_client_sees_only_the_session_it_watches(service: RunningService) -> None:
    with (
        service.microscope() as one,
        service.microscope(subject="two") as two,
        stream(service, f"?session={two.session}") as live,
    ):
        for scope in (one, two):
            feed(scope, 96)
            scope.onset("dir=045")
            assert scope.wait(PATIENCE_S) is not None
        assert take(live, "prediction")["session"] == two.session


def test_a_slow_reader_loses_the_oldest_is_told_and_delays_nobody(service: RunningService) -> None:
    """One client does not read at all while answers pass; another gets them all; the engine answers every question."""
    questions = 60
    with service.microscope() as scope:
        query = f"?session={scope.session}"
        # A small buffer in the kernel, and nothing taken in advance by the client's library.
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        narrow.connect(("127.0.0.1", service.http))
        slow = stream(service, query, sock=narrow, max_queue=1, max_size=None, ping_interval=None)
        with slow, stream(service, query + "&detail=probability") as quick:
            feed(scope, 96)
            # Forecasts for eight gratings: about 400 kB of JSON each.
            eight = [Stimulus(stimulus_id=f"dir={angle:03d}") for angle in range(0, 360, 45)]
            asked = []
            for _ in range(questions):
                asked.append(scope.onset(eight))
                assert scope.wait(PATIENCE_S) is not None
                assert take(quick, "prediction")["question"] == asked[-1]
            assert not scope.refused
            seen: list[int] = []
            dropped = 0
            while not seen or seen[-1] != asked[-1]:
                message = json.loads(slow.recv(timeout=PATIENCE_S))
                if message["type"] == "dropped":
                    dropped += message["count"]
                    assert message["total"] == dropped
                elif message["type"] == "prediction":
                    seen.append(message["question"])
            assert dropped > 0
            assert len(seen) == questions - dropped
            # In order, and the newest are all there: what was dropped is the oldest of those that waited.
            assert seen == sorted(seen)
            assert seen[-QUEUE:] == asked[-QUEUE:]


def test_what_a_client_sends_gets_a_typed_complaint_and_the_stream_goes_on(service: RunningService) -> None:
    with service.microscope() as scope, stream(service) as live:
        for junk in ("hello", b"\x00\xff" * 10, "{}"):
            live.send(junk)
            complaint = take(live, "error")
            assert complaint["code"] == "unexpected"
            assert complaint["message"]
        feed(scope, 96)
        scope.onset("dir=045")
        assert take(live, "prediction")["session"] == scope.session


def test_an_oversized_message_ends_that_client_alone(service: RunningService) -> None:
    with stream(service) as other, service.microscope() as scope:
        with stream(service) as live:
            live.send("x" * 5000)
            with pytest.raises(ConnectionClosed) as caught:
                live.recv(timeout=PATIENCE_S)
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1009
        feed(scope, 96)
        scope.onset("dir=045")
        assert take(other, "prediction")["session"] == scope.session


def test_garbage_after_the_handshake_ends_that_client_alone(service: RunningService) -> None:
    with stream(service) as live:
        live.socket.sendall(b"\xff" * 100)
        with pytest.raises(ConnectionClosed):
            live.recv(timeout=PATIENCE_S)
    with service.rest() as rest:
        assert rest.ready()["ready"]


def test_a_client_that_vanishes_without_a_word(service: RunningService) -> None:
    with service.microscope() as scope:
        live = stream(service)
        live.socket.close()
        feed(scope, 96)
        scope.onset("dir=045")
        assert scope.wait(PATIENCE_S) is not None


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("?session=abc", 422, "bad_payload"),
        ("?detail=everything", 422, "bad_payload"),
        ("?session=12345", 404, "session_lost"),
        ("?session=-1", 404, "session_lost"),
    ],
)
def test_a_bad_query_or_unknown_session_is_refused(service: RunningService, query: str, status: int, code: str) -> None:
    with pytest.raises(InvalidStatus) as caught, stream(service, query):
        pass
    assert caught.value.response.status_code == status
    assert json.loads(caught.value.response.body)["error"]["code"] == code


def test_a_page_of_another_site_is_refused_with_the_reason(service: RunningService) -> None:
    with pytest.raises(InvalidStatus) as caught, stream(service, origin="http://evil.example"):
        pass
    assert caught.value.response.status_code == 403
    assert json.loads(caught.value.response.body)["error"]["code"] == "foreign_origin"


def test_a_closed_session_is_told(service: RunningService) -> None:
    """A session that its microscope closes is no loss; one that makes way, or dies with the engine, is (test_service)."""
    with stream(service) as live:
        with service.microscope() as scope:
            feed(scope, 1)
        live.send("still there?")
        assert take(live, "error")["code"] == "unexpected"


def test_a_token_is_asked_for(tiny_bundle_path: Path, tmp_path: Path) -> None:
    with RunningService(tiny_bundle_path, folder=tmp_path, token="sesame") as service:
        with pytest.raises(InvalidStatus) as caught, stream(service):
            pass
        assert caught.value.response.status_code == 401
        assert json.loads(caught.value.response.body)["error"]["code"] == "unauthorized"
        for live in (stream(service, "?token=sesame"), stream(service, additional_headers={"authorization": "Bearer sesame"})):
            with live:
                live.send("?")
                assert take(live, "error")["code"] == "unexpected"
