"""One message of every type, with all its fields set. ``python tests/golden_messages.py`` writes `clients/golden`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from quantformer_client import wire

GOLDEN = Path(__file__).resolve().parents[1] / "clients" / "golden"

_STIMULI = [
    wire.Stimulus(stimulus_id="grating_45"),
    wire.Stimulus(category="drifting_gratings", features={"direction_deg": 90.0, "temporal_frequency_hz": 2.0}),
]
_SIGNAL = wire.SignalDeclaration(
    extractor="suite2p",
    units="digitizer",
    offset=-12.5,
    corrected=False,
    neuropil_factor=[0.7, 0.65],
    motion_corrected=True,
    stamp="end",
)
_RULE = wire.Rule(
    rule="ensemble",
    rois=["a", "b"],
    threshold=0.75,
    at_least=2,
    stimulus="grating_45",
    asked="standing",
    refractory_s=2.5,
    max_age_s=0.15,
)


def _grid(*shape: int, start: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (np.arange(math.prod(shape), dtype=np.float32) * np.float32(0.125) + np.float32(start)).reshape(shape)


BODIES: list[wire.Body | wire.Frame | wire.Answer] = [
    wire.Hello(oldest=2, newest=3, client="microscope", token="secret"),
    wire.Welcome(
        version=wire.MAJOR,
        minor=wire.MINOR,
        engine="quantformer 0.1.0",
        bundle="ab" * 32,
        provider="cpu",
        rate_hz=30.0,
        baseline_frames=96,
        response_frames=64,
        phases=["onset", "between"],
        largest_message=wire.MAX_MESSAGE,
        privileges={"realtime": "not asked"},
        precision="int8",
    ),
    wire.Bye(reason="done"),
    wire.Ping(),
    wire.Pong(received_ns=1000, replied_ns=2000),
    wire.Soon(),
    wire.GetStatus(),
    wire.Status(
        state="ready",
        engine="quantformer 0.1.0",
        bundle="ab" * 32,
        provider="cpu",
        uptime_s=12.5,
        counters={"frames": 3},
        latency_ms={"p50": 1.5, "p99": 3.25, "max": 4.0},
        sessions=[
            wire.SessionStatus(
                session=5,
                subject="mouse",
                state="acquiring",
                rois=2,
                rate_hz=30.0,
                last_frame=7,
                trigger="disarmed",
                counters={"frames": 3},
            )
        ],
        privileges={"realtime": "not asked"},
        recording=wire.Recording(
            file="20260801T101500.000Z-00000012345678.qfrec",
            trouble="",
            records=1200,
            acknowledged=1195,
            waiting_bytes=5300,
            waiting_s=0.125,
            lost=0,
        ),
        precision="int8",
    ),
    wire.Metrics(
        state="ready",
        engine="quantformer 0.1.0",
        bundle="ab" * 32,
        provider="cpu",
        counters={"frames": 3},
        gauges={"sessions": 1.0},
        histograms={"overhead": wire.Histogram(bounds_s=[0.25, 0.5], counts=[1, 1, 0], sum_s=0.625)},
    ),
    wire.Error(code="duplicate_frame", message="frame 7 was received already; send each frame once", refused=32),
    wire.Accepted(question=11),
    wire.Open(
        subject="mouse",
        rois=["a", "b"],
        rate_hz=30.0,
        signal=_SIGNAL,
        unknown="mark",
        match_confidence=[0.875, 0.25],
        minimum_confidence=0.5,
        accept_slow=True,
    ),
    wire.Opened(known=[True, False], buffer_frames=430, interpolated=False),
    wire.Close(),
    wire.Closed(counters={"frames": 3, "gap_frames": 1}),
    wire.Describe(),
    wire.Description(
        subject="mouse",
        rois=["a", "b"],
        known=[True, False],
        rate_hz=30.0,
        signal=_SIGNAL,
        interpolated=False,
        state="acquiring",
        phase="between",
        last_frame=7,
        buffer_frames=430,
        standing=[12],
        counters={"frames": 3},
    ),
    wire.SessionLost(reason="the engine stops"),
    wire.Frame(
        number=7,
        device_s=0.25,
        fluorescence=_grid(3, start=100.0),
        neuropil=_grid(3, start=50.0),
        motion=(1.5, -0.5),
        roi_hash=wire.roi_map_hash(["a", "b", "c"]),
    ),
    wire.Acquisition(event="start"),
    wire.Stimulation(rois=["a"], first_frame=3, last_frame=4, start_s=None, duration_s=None, blanked=True),
    wire.Onset(
        stimuli=_STIMULI,
        onset_frame=None,
        onset_s=2.5,
        within_s=1.5,
        duration_s=2.0,
        source="photodiode",
        uncertainty_s=0.0005,
        display_latency_s=0.0125,
        rois=["b"],
        detail="probability",
        baseline=True,
        hypothetical=True,
    ),
    wire.Standing(stimuli=_STIMULI, rois=["a"], detail="forecast", baseline=False),
    wire.ClearStanding(question=12),
    wire.Poll(question=12),
    wire.Answer(
        question=12,
        asked=wire.Asked.STANDING,
        phase=wire.Phase.BETWEEN,
        stimuli=("grating_45", "grating_90"),
        onset_frame=105,
        onset_s=3.5,
        first_frame=9,
        last_frame=101,
        last_frame_s=3.375,
        lead=3,
        held=4,
        received_ns=10,
        window_ready_ns=20,
        submitted_ns=30,
        done_ns=40,
        published_ns=50,
        deadline_ns=60,
        bundle=bytes(range(32)),
        rois=np.array([0, 2, 5], np.uint32),
        validity=np.array([3, 1, 6], np.uint8),
        probability=_grid(2, 3, start=0.0),
        response=_grid(2, 3, 4, start=1.0),
        scale=_grid(2, 3, start=0.5),
        ends=_grid(2, 4, start=-0.5),
        baseline=_grid(3, 5, start=-1.0),
        told_s=3.25,
        uncertainty_s=0.0005,
        display_latency_s=0.25,
        source=wire.Source.PHOTODIODE,
        flags=wire.Flags.LATE | wire.Flags.DEGRADED,
    ),
    wire.SetRule(rule=_RULE),
    wire.RemoveRule(rule="ensemble"),
    wire.ListRules(),
    wire.Rules(rules=[_RULE]),
    wire.Arm(lease_s=1.5),
    wire.Heartbeat(lease=99),
    wire.Disarm(),
    wire.Stop(reason="smoke"),
    wire.GetTrigger(),
    wire.Trigger(state="disarmed", lease=99, lease_left_s=1.25, fired=2, refused={"stale": 1}, reason="recorder"),
    wire.Decision(
        rule="ensemble",
        fired=False,
        reason="stale",
        question=12,
        onset_frame=105,
        last_frame=101,
        threshold=0.75,
        at_least=2,
        output="dry-run",
        rois=["a", "b"],
        value=0.8125,
        age_s=0.25,
        received_ns=10,
        done_ns=40,
        decided_ns=45,
    ),
]


def encode(body: wire.Body | wire.Frame | wire.Answer) -> bytes:
    """The golden bytes of a body: the same header numbers for all."""
    return wire.encode(body, session=5, request=77, epoch=1234567890123456, sent_ns=987654321)


def meaning(message: wire.Message) -> dict[str, Any]:
    """A decoded message as plain JSON; numbers that are not finite become null."""
    body = message.body
    if isinstance(body, wire.Body):
        fields = msgspec.to_builtins(body)
    else:
        fields = {name: _plain(getattr(body, name)) for name in body.__struct_fields__}
    header = {name: _plain(getattr(message.header, name)) for name in message.header.__struct_fields__}
    return {"type": message.header.type.name, "header": header, "body": fields}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return int(value) if isinstance(value, int) else value


def write() -> None:
    """Write every golden file: the bytes in hex and what they mean."""
    for body in BODIES:
        data = encode(body)
        content = meaning(wire.decode(data)) | {"hex": data.hex()}
        path = GOLDEN / f"{body.message_type.name.lower()}.json"
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
