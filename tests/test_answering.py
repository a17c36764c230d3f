"""What an answer says of each ROI: known, usable, stimulated, inside what training saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantformer.bundle import Bundle, load_bundle
from quantformer_client import wire
from quantformer_client.wire import Validity
from quantformer_service.answering import Answering
from quantformer_service.declaration import declare
from quantformer_service.engine_settings import SessionLimits
from quantformer_service.inference import Slot, write_input
from quantformer_service.session import Session
from quantformer_service.trigger import Trigger

#: Of the bundle's neurons F0 lay between 50 and 2000. The second ROI is below, the third is nobody's, the fourth has a NaN.
ROIS, LEVELS = ["n000", "n001", "stranger", "n003"], [100.0, 10.0, 100.0, np.nan]
GOOD = Validity.VALID | Validity.KNOWN


@pytest.fixture(scope="module")
def bundle(tiny_bundle_path: Path) -> Bundle:
    return load_bundle(tiny_bundle_path)


def validity(
    bundle: Bundle, asked: list[str] | None, *, levels: list[float], light: list[str] | None = None
) -> list[int]:
    """Of an answer about the frame after 96 equal ones, of which light was delivered in the last."""
    opened = wire.Open(subject="m", rois=ROIS, rate_hz=30.0, unknown="mark")
    session = Session(
        7, declared=declare(opened, bundle), bundle=bundle, limits=SessionLimits(), trigger=Trigger(tuple(ROIS))
    )
    values = np.array(levels, np.float32)
    for number in range(96):
        session.frame(wire.Frame(number=number, device_s=number / 30, fluorescence=values), received_ns=number)
    if light:
        session.stimulation(wire.Stimulation(rois=light, first_frame=95, last_frame=95, blanked=False))
    onset = wire.Onset(stimuli=[wire.Stimulus(stimulus_id="dir=045")] * 2, rois=asked, detail="probability")
    session.docket.ask(onset, number=1, peer=None, request=1, now_ns=0)
    (question,) = session.docket.due(now_ns=0, expected_ns=lambda _rows: 0)
    slot = Slot()
    session.capture(question, slot)
    write_input(slot, bundle.recipe, out=np.empty((len(ROIS), 96), np.float32))
    slot.probability = np.zeros(question.subjects.rows, np.float32)
    answering = Answering(bundle)
    draft = answering.draft(question)
    answering.fill(draft, question, slot)
    answer = draft.answer
    assert answer.probability.shape == (2, len(asked or ROIS))
    found: list[int] = answer.validity.tolist()
    return found


def test_each_roi_is_marked_by_what_is_wrong_with_it(bundle: Bundle) -> None:
    outside, nobody, broken = GOOD | Validity.F0_OUT_OF_RANGE, Validity.VALID, Validity.KNOWN | Validity.INVALID_F0
    assert validity(bundle, None, levels=LEVELS) == [GOOD, outside, nobody, broken]
    # In the order of the question, and only those asked about.
    assert validity(bundle, ["n003", "n000"], levels=LEVELS) == [broken, GOOD]


def test_where_nothing_is_wrong_each_is_valid(bundle: Bundle) -> None:
    assert validity(bundle, None, levels=[100.0] * 4) == [GOOD, GOOD, Validity.VALID, GOOD]
    assert validity(bundle, ["stranger", "n003"], levels=[100.0] * 4) == [Validity.VALID, GOOD]


def test_light_makes_a_roi_invalid_whatever_else_is_said_of_it(bundle: Bundle) -> None:
    lit = Validity.KNOWN | Validity.STIMULATED
    assert validity(bundle, ["n003", "n000", "n001"], levels=[100.0] * 4, light=["n000"]) == [GOOD, lit, GOOD]
    assert validity(bundle, None, levels=LEVELS, light=ROIS) == [
        lit,
        lit | Validity.F0_OUT_OF_RANGE,
        Validity.STIMULATED,
        lit | Validity.INVALID_F0,
    ]


def test_a_forecast_that_inference_wrote_into_the_answer_stays_and_another_is_copied(bundle: Bundle) -> None:
    rois = ["n000", "n001", "n002"]
    opened = wire.Open(subject="m", rois=rois, rate_hz=30.0)
    session = Session(
        7, declared=declare(opened, bundle), bundle=bundle, limits=SessionLimits(), trigger=Trigger(tuple(rois))
    )
    for number in range(96):
        values = np.full(3, 100.0, np.float32)
        session.frame(wire.Frame(number=number, device_s=number / 30, fluorescence=values), received_ns=number)
    session.docket.ask(
        wire.Onset(stimuli=[wire.Stimulus(stimulus_id="dir=045")] * 2), number=1, peer=None, request=1, now_ns=0
    )
    (question,) = session.docket.due(now_ns=0, expected_ns=lambda _rows: 0)
    slot, answering, messages = Slot(), Answering(bundle), []
    rng = np.random.default_rng(0)
    response, scale = rng.normal(size=(6, 64)).astype(np.float32), rng.uniform(size=6).astype(np.float32)
    for laid_out in (False, True):
        session.capture(question, slot)
        assert slot.places is None
        write_input(slot, bundle.recipe, out=np.empty((3, 96), np.float32))
        draft = answering.draft(question)
        slot.probability = np.linspace(0, 1, 6, dtype=np.float32)
        if laid_out:
            answering.lay_out(draft, slot)
            assert slot.places is not None
            slot.places[0][:], slot.places[1][:] = response, scale
            slot.response, slot.scale = slot.places
        else:
            slot.response, slot.scale = response, scale
        assert slot.in_place == laid_out
        answering.fill(draft, question, slot)
        messages.append(bytes(draft.message))
    assert messages[0] == messages[1]
    decoded = wire.decode(messages[1]).body
    assert isinstance(decoded, wire.Answer)
    # The scale is the spread and the interval's floor: without the floor it is the spread that the bundle asks for.
    bounds = bundle.interval(response, scale - np.float32(bundle.manifest.interval.floor))
    for end, meant in zip((decoded.low, decoded.high), bounds, strict=True):
        assert end is not None
        np.testing.assert_allclose(end.reshape(6, 64), meant, atol=1e-5)
