"""What a client's connection keeps when its engine ends."""

from __future__ import annotations

import time

import zmq

from quantformer_client.transport import ZmqTransport

PATIENCE_S = 30.0


def test_what_came_right_before_a_connection_ended_is_read() -> None:
    context = zmq.Context()
    with context.socket(zmq.ROUTER) as engine:
        port = engine.bind_to_random_port("tcp://127.0.0.1")
        transport = ZmqTransport(port=port)
        transport.send(b"asked")
        client, _ = engine.recv_multipart()
        engine.send_multipart([client, b"accepted"])
        assert transport.receive(PATIENCE_S) == b"accepted"
        engine.send_multipart([client, b"answered"])
        # The rest of a message's way and the end of its connection have no sign of their own on this side.
        time.sleep(0.5)
    context.term()
    time.sleep(0.5)
    assert transport.receive(0.0) == b"answered"
    assert transport.receive(0.0) is None
    transport.close()
