"""Answers to standing questions on the disk: everything but the forecast, and its checksum."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantformer_client import wire
from quantformer_service.recorded_answer import cut_forecast, restore


def answer(rois: int, stimuli: int, steps: int, baseline: int, *, seed: int = 0) -> wire.Answer:
    rng = np.random.default_rng(seed)

    def floats(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return rng.normal(size=shape).astype(np.float32)

    return wire.Answer(
        question=12,
        asked=wire.Asked.STANDING,
        phase=wire.Phase.BETWEEN,
        stimuli=tuple(f"dir={i}" for i in range(stimuli)),
        onset_frame=105,
        onset_s=3.5,
        first_frame=9,
        last_frame=104,
        last_frame_s=3.4,
        lead=0,
        held=0,
        received_ns=10,
        window_ready_ns=20,
        submitted_ns=30,
        done_ns=40,
        published_ns=50,
        deadline_ns=0,
        bundle=bytes(range(32)),
        rois=np.arange(rois, dtype=np.uint32),
        validity=np.full(rois, 3, np.uint8),
        probability=floats(stimuli, rois),
        response=floats(stimuli, rois, steps) if steps else None,
        scale=floats(stimuli, rois) if steps else None,
        ends=floats(2, steps) if steps else None,
        baseline=floats(rois, baseline) if baseline else None,
    )


@settings(max_examples=60)
@given(rois=st.integers(1, 9), stimuli=st.integers(1, 3), steps=st.integers(0, 5), baseline=st.integers(0, 5))
def test_everything_but_the_forecast_comes_back(rois: int, stimuli: int, steps: int, baseline: int) -> None:
    whole = answer(rois, stimuli, steps, baseline)
    message = whole.encode(session=5, epoch=9)
    cut = cut_forecast(message)
    assert len(cut) == len(message) - 4 * (rois * stimuli * (steps + 1) + 2 * steps) * (steps > 0) + 8
    found = restore(cut)
    assert (found.message.header.session, found.message.header.epoch) == (5, 9)
    for name in wire.Answer.__struct_fields__:
        then, now = getattr(whole, name), getattr(found.answer, name)
        if name in ("response", "scale", "ends"):
            assert (now is None) == (steps == 0)
            assert now is None or not now.any()
        elif isinstance(then, np.ndarray):
            np.testing.assert_array_equal(then, now)
        else:
            assert then == now or (then != then and now != now), name
    forecast = [array.tobytes() for array in (whole.response, whole.scale, whole.ends) if array is not None]
    assert found.checksum == zlib.crc32(b"".join(forecast))


@settings(max_examples=200)
@given(
    place=st.floats(0, 1, exclude_max=True),
    flip=st.integers(1, 255),
    cut=st.integers(0, 400),
    data=st.binary(max_size=300),
)
def test_any_bytes_are_an_answer_or_a_wire_error(place: float, flip: int, cut: int, data: bytes) -> None:
    recorded = bytearray(cut_forecast(answer(3, 1, 4, 0).encode()))
    recorded[int(place * len(recorded))] ^= flip
    for made in (bytes(recorded), bytes(recorded)[: max(0, len(recorded) - cut)], data):
        try:
            restore(made)
        except wire.WireError:
            continue


def test_only_answers_are_cut() -> None:
    with pytest.raises(wire.WireError, match="only an ANSWER"):
        cut_forecast(wire.encode(wire.Ping()))
    with pytest.raises(wire.WireError):
        cut_forecast(b"QNTF")
