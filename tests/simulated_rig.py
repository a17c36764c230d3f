"""A rig with known delays as a real process, for `doctor --loop`: ``python simulated_rig.py LOOP_PORT ZMQ_PORT LOG``.

It streams frames to the service at 30 Hz, answers the doctor's lines, and writes what it told to LOG. Its clock is its own.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from pathlib import Path

import numpy as np

from quantformer_client import Microscope

RATE_HZ = 30.0
#: Its clock is this much ahead, s.
AHEAD_S = 5000.0
#: Exposure after the light, extraction, and the way from the order to the pulse, s. Sleeping never takes less.
EXPOSURE_S, EXTRACTION_S, SLM_S = 0.012, 0.008, 0.015
ROIS = [f"n{i:03d}" for i in range(12)]
FILL = 110


def now_s() -> float:
    return time.perf_counter() + AHEAD_S


def connect(port: int) -> socket.socket:
    for _ in range(600):
        try:
            return socket.create_connection(("127.0.0.1", port))
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"nobody listens at {port}")


def main(loop_port: int, zmq_port: int, log: Path) -> None:
    told: list[dict[str, float]] = []
    values = np.random.default_rng(0).normal(300.0, 15.0, (32, len(ROIS))).astype(np.float32)
    with Microscope(subject="rig", rois=ROIS, rate_hz=RATE_HZ, port=zmq_port) as scope:
        number = 0

        def send() -> None:
            nonlocal number
            scope.frame(number=number, device_s=number / RATE_HZ, fluorescence=values[number % 32])
            number += 1

        for _ in range(FILL):
            send()
        scope.sync()
        rig = connect(loop_port)

        def say(line: str) -> None:
            rig.sendall(line.encode() + b"\n")

        left, due, flash = b"", time.perf_counter(), 0
        while True:
            if select.select([rig], [], [], max(0.0, due - time.perf_counter()))[0]:
                data = rig.recv(4096)
                if not data:
                    break
                *lines, left = (left + data).split(b"\n")
                for word, *rest in (line.decode().split() for line in lines):
                    if word == "CLOCK":
                        say(f"CLOCK {rest[0]} {now_s():.9f}")
                    elif word == "FLASH":
                        flash = int(rest[0])
                        told.append({"k": flash, "light": now_s()})
                        say(f"LIGHT {flash} {told[-1]['light']:.9f}")
                    elif word == "PULSE":
                        time.sleep(SLM_S)
                        told[-1]["pulse"] = now_s()
                        say(f"PULSE {rest[0]} {told[-1]['pulse']:.9f}")
                    elif word == "BYE":
                        rig.close()
                        log.write_text(json.dumps(told))
                        return
            if time.perf_counter() < due:
                continue
            due += 1 / RATE_HZ
            if flash:
                time.sleep(EXPOSURE_S)
                end = now_s()
                time.sleep(EXTRACTION_S)
                told[-1] |= {"end": end, "sent": now_s()}
                say(f"FRAME {flash} {number} {end:.9f} {told[-1]['sent']:.9f}")
                flash = 0
            send()
    log.write_text(json.dumps(told))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
