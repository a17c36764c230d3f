"""Measure what ZeroMQ alone takes for a frame and its answer: the least that a client's round trip can be on a machine.

    python deploy/measure_wire.py [--neurons 241] [--detail probability] [--busy-ms 10] [--frames 900] [--rate 30] [--seed 0]

Two processes that know nothing of frames: one sends as many bytes as a FRAME holds, paced with 3 % jitter; the other takes
them, computes for ``--busy-ms`` on two threads, as inference would, and publishes as many bytes as an ANSWER holds. The way there
runs from sending until they are in hand, the way back from publishing until they are. By turns a message without content goes
each way a millisecond before, as SOON does, or none. Nothing else should run.
"""

from __future__ import annotations

import argparse
import multiprocessing
import struct
import threading
import time
from multiprocessing.connection import Connection

import numpy as np
import zmq
from numpy.typing import NDArray

from quantformer_client import wire

#: Frames that are not counted; jitter as a share of a period; frames of a response; ms after which an answer is given up.
WARM_UP, JITTER, RESPONSE_FRAMES, PATIENCE_MS = 15, 0.03, 64, 10_000
#: So many frames in a row are foretold, so long before in ms, and so many not. The first byte of a frame says which.
STRETCH, BEFORE_MS, FORETOLD = 15, 1.0, 1
_STAMPS = struct.Struct("<qq")


def busy(block: NDArray[np.float32], milliseconds: float) -> None:
    """Read memory, more than a core's own caches hold, for that long."""
    end_ns = time.perf_counter_ns() + int(milliseconds * 1e6)
    while time.perf_counter_ns() < end_ns:
        block.sum()


def answer(size: int, busy_ms: float, frames: int, told: Connection) -> None:
    """The process that answers: ports to ``told``, then an answer to every frame, with when it had it and when it published."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router, publisher = context.socket(zmq.ROUTER), context.socket(zmq.PUB)
    told.send([one.bind_to_random_port("tcp://127.0.0.1") for one in (router, publisher)])
    message, block = bytearray(size), np.ones(1_000_000, np.float32)
    for _ in range(frames):
        while not (frame := router.recv_multipart()[-1]):
            pass
        had_ns = time.perf_counter_ns()
        beside = threading.Thread(target=busy, args=(block, busy_ms))
        beside.start()
        busy(block, busy_ms - BEFORE_MS)
        if frame[0] == FORETOLD:
            publisher.send(b"")
        busy(block, min(busy_ms, BEFORE_MS))
        beside.join()
        _STAMPS.pack_into(message, 0, had_ns, time.perf_counter_ns())
        publisher.send(message)
    context.destroy(1000)


def measure(*, neurons: int, steps: int, busy_ms: float, frames: int, rate_hz: float, seed: int) -> NDArray[np.float64]:
    """The ways there and back in ms, ``(2, frames, 2)``: without and with a message before.

    Raises:
        TimeoutError: an answer did not come.
    """
    body = wire.Frame(number=0, device_s=0.0, fluorescence=np.zeros(neurons, np.float32))
    frame = bytearray(wire.encode(body, session=1))
    size = wire.HEADER_BYTES + wire.answer_bytes(rois=neurons, stimuli=1, response_frames=steps, baseline_frames=0)
    here, there = multiprocessing.Pipe()
    spawned = multiprocessing.get_context("spawn")
    # Whole stretches of both kinds, and so at least as many frames of each as were asked for.
    all_frames = WARM_UP + 2 * STRETCH * -(-frames // STRETCH)
    foretold = (np.arange(all_frames) - WARM_UP) // STRETCH % 2 == 1
    process = spawned.Process(target=answer, args=(size, busy_ms, all_frames, there), daemon=True)
    process.start()
    router, publisher = here.recv()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer, subscriber = context.socket(zmq.DEALER), context.socket(zmq.SUB)
    subscriber.setsockopt(zmq.RCVTIMEO, PATIENCE_MS)
    subscriber.subscribe(b"")
    dealer.connect(f"tcp://127.0.0.1:{router}")
    subscriber.connect(f"tcp://127.0.0.1:{publisher}")
    time.sleep(0.5)
    rng, due, found = np.random.default_rng(seed), time.perf_counter() + 1 / rate_hz, np.empty((all_frames, 2))
    try:
        for number in range(all_frames):
            moment = due + rng.uniform(-JITTER, JITTER) / rate_hz
            due += 1 / rate_hz
            frame[0] = FORETOLD if foretold[number] else 0
            if foretold[number]:
                time.sleep(max(0.0, moment - BEFORE_MS / 1000 - time.perf_counter()))
                dealer.send(b"")
            time.sleep(max(0.0, moment - time.perf_counter()))
            sent_ns = time.perf_counter_ns()
            dealer.send(frame)
            while not (message := subscriber.recv()):
                pass
            had_ns, published_ns = _STAMPS.unpack_from(message)
            found[number] = had_ns - sent_ns, time.perf_counter_ns() - published_ns
    except zmq.Again:
        raise TimeoutError(f"no answer to frame {number} within {PATIENCE_MS} ms") from None
    finally:
        context.destroy(0)
        process.join(PATIENCE_MS / 1000)
        process.terminate()
    return np.stack([found[WARM_UP:][foretold[WARM_UP:] == which][:frames] for which in (False, True)]) / 1e6


def main() -> None:
    """Print p50 and p99 of the way there, back, and both, without and with a message before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--neurons", type=int, default=241, help="ROIs of a frame (default %(default)s)")
    parser.add_argument("--detail", choices=("forecast", "probability"), default="forecast", help="of the answer")
    parser.add_argument("--busy-ms", type=float, default=10.0, help="of work between; 0: none (default %(default)s)")
    parser.add_argument("--frames", type=int, default=900, help="measured of each kind (default %(default)s)")
    parser.add_argument("--rate", type=float, default=30.0, help="frames a second (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the jitter (default %(default)s)")
    asked = parser.parse_args()
    steps = RESPONSE_FRAMES if asked.detail == "forecast" else 0
    found = measure(
        neurons=asked.neurons,
        steps=steps,
        busy_ms=asked.busy_ms,
        frames=asked.frames,
        rate_hz=asked.rate,
        seed=asked.seed,
    )
    kind = f"{asked.frames} frames of {asked.neurons} ROIs, answers with {asked.detail}"
    print(f"{kind}, {asked.busy_ms:g} ms of work between")
    for which, ways in zip(("unforetold", "foretold"), found, strict=True):
        for name, ms in (("there", ways[:, 0]), ("back", ways[:, 1]), ("both", ways.sum(axis=1))):
            p50, p99 = np.percentile(ms, [50, 99])
            print(f"{which}, {name}: p50 {p50:.3f} ms, p99 {p99:.3f} ms")


if __name__ == "__main__":
    main()
