"""The engine's settings, and the engine inside another process."""

from __future__ import annotations

import threading
from dataclasses import fields
from pathlib import Path

import pytest
import zmq
from engine_process import PATIENCE_S, Client
from tiny_bundle import NEURONS

from quantformer.bundle import load_bundle
from quantformer.errors import UsageError
from quantformer_client import wire
from quantformer_service.engine import Engine
from quantformer_service.engine_settings import EngineSettings
from quantformer_service.settings import Settings


def test_what_the_table_has_too_has_the_same_default_and_is_taken_from_it() -> None:
    table, engine = Settings(), EngineSettings()
    shared = {item.name for item in fields(EngineSettings) if hasattr(table, item.name)}
    assert shared >= {"host", "zmq_port", "pub_port", "tcp_port", "token", "provider", "threads", "shutdown_s"}
    for name in shared:
        assert getattr(engine, name) == getattr(table, name), name
    assert EngineSettings.of(Settings(threads=3, tcp_port=9)) == EngineSettings(threads=3, tcp_port=9)


def test_another_host_than_loopback_wants_a_token() -> None:
    with pytest.raises(UsageError, match="no token"):
        EngineSettings(host="0.0.0.0")
    assert EngineSettings(host="0.0.0.0", token="secret").token == "secret"
    assert EngineSettings(host="127.0.0.3").token == ""


def test_limits_follow_the_settings() -> None:
    limits = EngineSettings(indicator_tau_s=0.5, decay_constants=4.0, reorder_frames=3).limits
    assert (limits.stimulation_decay_s, limits.reorder_frames) == (2.0, 3)


def test_an_idle_session_makes_way_and_its_subscribers_are_told(tiny_bundle_path: Path) -> None:
    settings = EngineSettings(
        zmq_port=0, pub_port=0, tcp_port=0, provider="cpu", sessions=1, session_idle_s=0.0, shutdown_s=5.0
    )
    engine = Engine(settings, load_bundle(tiny_bundle_path))
    stop, ready = threading.Event(), threading.Event()
    thread = threading.Thread(target=engine.run, args=(stop,), kwargs={"on_ready": ready.set})
    thread.start()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        assert ready.wait(PATIENCE_S)
        client = Client(engine.endpoints["zmq"], context)
        sub = context.socket(zmq.SUB)
        sub.setsockopt(zmq.RCVTIMEO, int(PATIENCE_S * 1000))
        sub.setsockopt(zmq.SUBSCRIBE, wire.subscription(wire.MessageType.SESSION_LOST))
        sub.connect(engine.endpoints["pub"])
        # Each session makes way for the next, until the subscription has taken effect.
        lost: set[int] = set()
        sessions = []
        while not lost:
            sessions.append(client.open(list(NEURONS)).header.session)
            if sub.poll(50):
                lost.add(wire.decode(sub.recv()).header.session)
        assert lost <= set(sessions[:-1])
        assert [one.session for one in client.ask(wire.GetStatus(), wire.Status).sessions] == sessions[-1:]
        client.close()
        sub.close(0)
    finally:
        stop.set()
        thread.join(PATIENCE_S)
        context.destroy(0)
    assert not thread.is_alive()
