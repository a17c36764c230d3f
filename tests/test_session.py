"""A session without sockets: its states, what it refuses, which questions are due when, and what they read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantformer.bundle import Bundle, load_bundle
from quantformer.signal import hold_missing, onset_frames
from quantformer_client import wire
from quantformer_client.wire import ErrorCode
from quantformer_service.declaration import declare
from quantformer_service.engine_settings import SessionLimits
from quantformer_service.inference import Slot
from quantformer_service.questions import Question, covered
from quantformer_service.refusal import Refusal
from quantformer_service.session import Session
from quantformer_service.trigger import Trigger

ROIS = ["n000", "n001", "n002"]
GRATING = [wire.Stimulus(stimulus_id="dir=045")]
SECOND = 1_000_000_000


@pytest.fixture(scope="module")
def bundle(tiny_bundle_path: Path) -> Bundle:
    return load_bundle(tiny_bundle_path)


def session_of(bundle: Bundle, *, limits: SessionLimits | None = None, **fields: Any) -> Session:
    opened = wire.Open(**{"subject": "m", "rois": ROIS, "rate_hz": 30.0, **fields})
    return Session(
        7,
        declared=declare(opened, bundle),
        bundle=bundle,
        limits=limits or SessionLimits(),
        trigger=Trigger(tuple(opened.rois)),
    )


def frame(number: int, *, rate: float = 30.0, rois: int = 3, **fields: Any) -> wire.Frame:
    values = {"fluorescence": np.full(rois, 100.0 + number, np.float32), "device_s": number / rate, **fields}
    return wire.Frame(number=number, **values)


def feed(session: Session, start: int, stop: int, *, rate: float = 30.0) -> None:
    for number in range(start, stop):
        session.frame(frame(number, rate=rate), received_ns=number)


def ask(session: Session, **fields: Any) -> None:
    onset = wire.Onset(**{"stimuli": GRATING, **fields})
    session.docket.ask(onset, number=1, peer=None, request=1, now_ns=0)


def due(session: Session, *, now_ns: int = 0, expected_ns: int = 0) -> list[Question]:
    return session.docket.due(now_ns=now_ns, expected_ns=lambda _rows: expected_ns)


def captured(session: Session, question: Question) -> Slot:
    slot = Slot()
    session.capture(question, slot)
    return slot


def code_of(call: Any, *args: Any, **fields: Any) -> ErrorCode:
    with pytest.raises(Refusal) as raised:
        call(*args, **fields)
    assert len(str(raised.value)) > 20
    return raised.value.code


# --- opening ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"rois": ["n000", "n000"]}, ErrorCode.BAD_SESSION),
        ({"rois": ["n000", "stranger"]}, ErrorCode.UNKNOWN_NEURON),
        ({"rate_hz": 14.0}, ErrorCode.BAD_SESSION),
        ({"rate_hz": 1e6}, ErrorCode.BAD_SESSION),
        ({"match_confidence": [1.0]}, ErrorCode.BAD_SESSION),
        ({"match_confidence": [1.0, 0.4, 1.0]}, ErrorCode.UNKNOWN_NEURON),
        ({"signal": wire.SignalDeclaration(neuropil_factor=[0.7])}, ErrorCode.BAD_SESSION),
        ({"rois": [f"r{k}" for k in range(20_000)], "unknown": "mark", "rate_hz": 1000.0}, ErrorCode.BAD_SESSION),
    ],
)
def test_what_cannot_be_opened(bundle: Bundle, fields: dict[str, Any], code: ErrorCode) -> None:
    assert code_of(session_of, bundle, **fields) == code


def test_unknown_and_badly_matched_rois_are_marked_on_request(bundle: Bundle) -> None:
    session = session_of(bundle, rois=["n000", "stranger", "n002"], unknown="mark", match_confidence=[1.0, 1.0, 0.2])
    assert session.describe().known == [True, False, False]
    vectors = session.declared.neurons.vectors
    np.testing.assert_array_equal(vectors[1], vectors[2])
    assert (vectors[0] != vectors[1]).any()


# --- frames -----------------------------------------------------------------------------------------------------------


def test_states_and_what_each_refuses(bundle: Bundle) -> None:
    session = session_of(bundle)
    assert session.state.name == "OPENED"
    feed(session, 0, 3)
    assert session.state.name == "ACQUIRING"
    session.acquisition("stop")
    assert session.state.name == "STOPPED"
    assert code_of(session.frame, frame(3), received_ns=0) == ErrorCode.NOT_ACQUIRING
    assert session.window.last == 2
    session.acquisition("start")
    assert session.window.empty
    feed(session, 0, 2)
    session.acquisition("abort")
    assert session.window.empty
    assert session.describe().counters == {
        "frames": 5,
        "acquisition_stop": 1,
        "acquisition_start": 1,
        "acquisition_abort": 1,
    }


def test_frames_that_are_not_what_was_declared(bundle: Bundle) -> None:
    session = session_of(bundle, signal=wire.SignalDeclaration(corrected=False))
    neuropil = np.ones(3, np.float32)
    assert code_of(session.frame, frame(0), received_ns=0) == ErrorCode.MISSING_NEUROPIL
    assert code_of(session.frame, frame(0, rois=2), received_ns=0) == ErrorCode.WRONG_NEURON_COUNT
    assert code_of(session.frame, frame(0, neuropil=neuropil, roi_hash=5), received_ns=0) == ErrorCode.WRONG_ROI_MAP
    assert session.state.name == "OPENED"
    session.frame(frame(0, neuropil=neuropil, roi_hash=wire.roi_map_hash(ROIS)), received_ns=0)


def test_infinities_end_as_an_invalid_neuron(bundle: Bundle) -> None:
    session = session_of(bundle, signal=wire.SignalDeclaration(corrected=False, offset=1.0))
    broken = np.array([np.inf, -np.inf, 100.0], np.float32)
    for number in range(96):
        session.frame(frame(number, fluorescence=broken, neuropil=broken), received_ns=0)
    ask(session)
    slot = captured(session, due(session)[0])
    assert np.isfinite(slot.values[-1]).tolist() == [False, False, True]


def test_offset_neuropil_and_stamp_become_corrected_fluorescence_at_the_start_of_the_exposure(bundle: Bundle) -> None:
    signal = wire.SignalDeclaration(corrected=False, offset=10.0, neuropil_factor=[0.5, 0.6, 0.7], stamp="middle")
    session = session_of(bundle, signal=signal)
    raw, neuropil = np.array([110, 120, 130], np.float32), np.array([20, 30, 40], np.float32)
    session.frame(frame(0, fluorescence=raw, neuropil=neuropil, device_s=1.0), received_ns=0)
    values, stamps, _ = session.window.view(0, 1)
    factor = np.array([0.5, 0.6, 0.7], np.float32)
    np.testing.assert_array_equal(values[0], (raw - np.float32(10)) - factor * (neuropil - np.float32(10)))
    assert stamps[0] == pytest.approx(1.0 - 0.5 / 30)


# --- questions --------------------------------------------------------------------------------------------------------


def test_an_announced_onset_is_due_when_the_frame_before_it_is_there(bundle: Bundle) -> None:
    session = session_of(bundle)
    feed(session, 0, 110)
    ask(session, onset_frame=120)
    feed(session, 110, 119)
    assert due(session) == []
    feed(session, 119, 120)
    (question,) = due(session)
    slot = captured(session, question)
    assert (question.first_frame, question.last_frame, question.lead, question.held) == (24, 119, 0, 0)
    np.testing.assert_array_equal(slot.values[:, 0], np.arange(24, 120) + 100.0)
    assert due(session) == []


def test_at_its_deadline_it_is_asked_from_the_frames_that_are_there(bundle: Bundle) -> None:
    session = session_of(bundle)
    feed(session, 0, 120)
    ask(session, onset_s=124.5 / 30, within_s=0.1)
    assert session.docket.next_begin_ns(lambda rows: rows) == SECOND // 10 - len(ROIS)
    assert due(session, now_ns=SECOND // 20, expected_ns=SECOND // 25) == []
    (question,) = due(session, now_ns=SECOND // 20, expected_ns=SECOND // 20)
    slot = captured(session, question)
    assert (question.onset_frame, question.last_frame, question.lead, question.held) == (125, 119, 5, 5)
    trace = (np.arange(29, 125) + 100.0).astype(np.float32)[:, None]
    observed = np.arange(29, 125) < 120
    np.testing.assert_array_equal(slot.observed, observed)
    np.testing.assert_array_equal(slot.values[:, :1], hold_missing(trace, observed))
    assert not question.degraded


def test_a_lead_beyond_training_or_many_holes_degrade(bundle: Bundle) -> None:
    session = session_of(bundle)
    feed(session, 0, 120)
    longest = bundle.manifest.longest_lead
    for lead, degraded in ((longest, False), (longest + 1, True)):
        ask(session, onset_frame=120 + lead, within_s=1.0)
        (question,) = due(session, now_ns=SECOND)
        captured(session, question)
        assert (question.lead, question.degraded) == (lead, degraded)
    for missing, degraded in ((8, False), (9, True)):
        session = session_of(bundle)
        feed(session, 0, 60)
        feed(session, 60 + missing, 120)
        ask(session)
        captured(session, question := due(session)[0])
        assert (question.held, question.degraded) == (missing, degraded)


def test_a_rate_that_is_not_the_declared_one_degrades(bundle: Bundle) -> None:
    session = session_of(bundle, rate_hz=30.0)
    feed(session, 0, 120, rate=25.0)
    ask(session)
    captured(session, question := due(session)[0])
    assert question.degraded


def test_a_rate_that_drifts_as_microscopes_do_is_followed(bundle: Bundle) -> None:
    session = session_of(bundle)
    stamps = np.cumsum(1 / np.linspace(29.9, 31.0, 1500))
    # Mid-frame, so that no jitter decides.
    onsets_s = stamps[[200, 700, 1400]] - 0.4 / 30
    told = dict(zip((int(one) - 30 for one in onset_frames(stamps, onsets_s)), onsets_s, strict=True))
    answered = []
    for number, stamp in enumerate(stamps):
        session.frame(frame(number, device_s=float(stamp)), received_ns=0)
        if number in told:
            ask(session, onset_s=float(told[number]))
        for question in due(session):
            captured(session, question)
            answered.append((number + 1 - 30, question.onset_frame, question.lead, question.degraded))
    assert answered == [(asked, asked + 30, 0, False) for asked in told]
    assert session.window.period_s == pytest.approx(1 / 31.0, rel=1e-3)


def test_now_is_the_frame_after_the_last(bundle: Bundle) -> None:
    session = session_of(bundle)
    feed(session, 0, 100)
    ask(session)
    (question,) = due(session)
    assert (question.asked, question.onset_frame) == (wire.Asked.NOW, 100)


def test_an_onset_told_late_reads_the_frames_before_it_and_none_after(bundle: Bundle) -> None:
    session = session_of(bundle)
    feed(session, 0, 200)
    ask(session, onset_s=149.5 / 30)
    (question,) = due(session)
    slot = captured(session, question)
    assert (question.onset_frame, question.last_frame, question.lead) == (150, 149, 0)
    assert slot.values[-1, 0] == 249


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"onset_frame": 95}, ErrorCode.ONSET_BEFORE_BUFFER),
        ({"onset_s": 1.0}, ErrorCode.ONSET_BEFORE_BUFFER),
        ({"onset_s": -5.0}, ErrorCode.ONSET_BEFORE_BUFFER),
        ({"onset_frame": 99 + 301}, ErrorCode.ONSET_TOO_FAR),
        ({"onset_frame": 2**53}, ErrorCode.ONSET_TOO_FAR),
        ({"onset_s": 99 / 30 + 10.1}, ErrorCode.ONSET_TOO_FAR),
        ({"onset_s": 99 / 30 + 9.0, "display_latency_s": 2.0}, ErrorCode.ONSET_TOO_FAR),
        ({"onset_s": 1.0, "onset_frame": 3}, ErrorCode.BAD_QUESTION),
        ({"stimuli": [wire.Stimulus(stimulus_id="stranger")]}, ErrorCode.UNKNOWN_STIMULUS),
        ({"stimuli": [wire.Stimulus(category="stranger")]}, ErrorCode.UNKNOWN_STIMULUS),
        ({"stimuli": [wire.Stimulus(category="nothing", features={"stranger": 1.0})]}, ErrorCode.UNKNOWN_STIMULUS),
        ({"stimuli": [wire.Stimulus()]}, ErrorCode.BAD_QUESTION),
        ({"rois": ["stranger"]}, ErrorCode.UNKNOWN_ROI),
        ({"rois": ["n000", "n000"]}, ErrorCode.BAD_QUESTION),
    ],
)
def test_questions_that_are_refused(bundle: Bundle, fields: dict[str, Any], code: ErrorCode) -> None:
    session = session_of(bundle)
    feed(session, 0, 100)
    before = session.describe()
    assert code_of(ask, session, **fields) == code
    assert session.docket.pending == []
    assert session.describe() == before


def test_a_window_that_is_not_there_yet(bundle: Bundle) -> None:
    session = session_of(bundle)
    assert code_of(ask, session) == ErrorCode.WINDOW_NOT_READY
    feed(session, 0, 50)
    assert code_of(ask, session) == ErrorCode.WINDOW_NOT_READY
    ask(session, onset_frame=96)
    feed(session, 50, 96)
    assert len(due(session)) == 1


def test_too_many_questions(bundle: Bundle) -> None:
    session = session_of(bundle, limits=SessionLimits(pending=2, standing=1, question_rows=3))
    feed(session, 0, 100)
    for _ in range(2):
        ask(session, onset_frame=200)
    assert code_of(ask, session, onset_frame=200) == ErrorCode.QUEUE_FULL
    session.docket.stand(wire.Standing(stimuli=GRATING), number=5)
    assert code_of(session.docket.stand, wire.Standing(stimuli=GRATING), number=6) == ErrorCode.QUEUE_FULL
    assert code_of(session.docket.stand, wire.Standing(stimuli=GRATING * 2), number=6) == ErrorCode.QUEUE_FULL
    session.docket.clear(5)
    assert code_of(session.docket.stand, wire.Standing(stimuli=GRATING * 2), number=6) == ErrorCode.BAD_QUESTION
    assert code_of(session.docket.clear, 5) == ErrorCode.UNKNOWN_QUESTION


def test_a_standing_question_is_asked_for_the_newest_frame_only(bundle: Bundle) -> None:
    session = session_of(bundle)
    session.docket.stand(wire.Standing(stimuli=GRATING, rois=["n002"]), number=5)
    assert session.docket.next_standing(now_ns=0) is None
    feed(session, 0, 96)
    first = session.docket.next_standing(now_ns=0)
    assert first is not None
    assert (first.number, first.onset_frame, first.rois.tolist()) == (5, 96, [2])
    assert session.docket.next_standing(now_ns=0) is None
    feed(session, 96, 100)
    assert session.docket.next_standing(now_ns=0, fits=lambda rows: rows > 1) is None
    second = session.docket.next_standing(now_ns=0, fits=lambda rows: rows == 1)
    assert second is not None
    assert second.onset_frame == 100
    assert session.counters["standing_dropped"] == 3
    feed(session, 100, 101)
    session.acquisition("stop")
    assert session.docket.next_standing(now_ns=0) is None
    assert session.counters["standing_dropped"] == 4


@settings(max_examples=60)
@given(
    steps=st.lists(
        st.sampled_from(["frame", "frame", "frame", "gap", "late", "ask", "stand", "clear", "stop", "start", "abort"]),
        max_size=80,
    ),
    ahead=st.integers(0, 120),
)
def test_a_standing_question_is_asked_or_dropped_once_for_every_frame(
    bundle: Bundle, steps: list[str], ahead: int
) -> None:
    session = session_of(bundle)
    docket = session.docket
    feed(session, 0, ahead)
    # What must come of it, counted in the plainest way: a frame that came in order, with 96 before the next.
    first, last, numbers, owed = 0, ahead - 1, iter(range(1, 100)), 0
    paused, standing, unasked = False, set[int](), set[int]()
    holes: list[int] = []
    for step in steps:
        full = last - first + 1 >= 96
        if step in {"frame", "gap"} and not paused:
            number = last + (1 if step == "frame" or last < 0 else 2)
            holes += [last + 1] if number == last + 2 else []
            session.frame(frame(number), received_ns=0)
            first, last = (number if last < 0 else first), number
            if last - first + 1 >= 96:
                owed += len(standing)
                unasked = set(standing)
        elif step == "late" and holes and not paused and last - holes[-1] < 7:
            # One that fills a hole is not newer than the newest.
            session.frame(frame(holes.pop()), received_ns=0)
        elif step == "ask":
            while (question := docket.next_standing(now_ns=0)) is not None:
                assert question.number in unasked
                unasked.discard(question.number)
            assert not unasked
        elif step == "stand" and len(standing) < 8:
            docket.stand(wire.Standing(stimuli=GRATING), number=(made := next(numbers)))
            standing.add(made)
            if full and not paused:
                owed += 1
                unasked.add(made)
        elif step == "clear" and standing:
            docket.clear(one := min(standing))
            standing.discard(one)
            unasked.discard(one)
        elif step in {"stop", "start", "abort"}:
            session.acquisition(step)  # type: ignore[arg-type]  # one of the three
            paused, unasked = step != "start", set()
            if step != "stop":
                first, last, holes = 0, -1, []
        done = session.counters["standing_questions"] + session.counters["standing_dropped"]
        assert done == owed - len(unasked)


def test_several_standing_questions_take_turns(bundle: Bundle) -> None:
    session = session_of(bundle)
    for number in (5, 6, 7):
        session.docket.stand(wire.Standing(stimuli=GRATING), number=number)
    asked = []
    for newest in range(96, 102):
        feed(session, 0 if newest == 96 else newest - 1, newest)
        question = session.docket.next_standing(now_ns=0)
        assert question is not None
        asked.append(question.number)
    assert asked == [5, 6, 7, 5, 6, 7]


def test_an_onset_that_is_only_supposed_begins_no_phase(bundle: Bundle) -> None:
    session = session_of(bundle)
    feed(session, 0, 100)
    ask(session, hypothetical=True)
    captured(session, question := due(session)[0])
    assert (question.phase, question.hypothetical) == (wire.Phase.SPONTANEOUS, True)
    feed(session, 100, 105)
    assert session.phase.name == "SPONTANEOUS"


def test_where_the_time_of_an_onset_came_from_stays_with_it(bundle: Bundle) -> None:
    session = session_of(bundle)
    feed(session, 0, 110)
    told = {"source": "photodiode", "uncertainty_s": 0.001, "display_latency_s": 0.05}
    ask(session, onset_s=100.25 / 30, **told)
    (question,) = due(session)
    assert (question.told_s, question.onset_s) == (100.25 / 30, 100.25 / 30 + 0.05)
    assert (question.source, question.uncertainty_s, question.display_latency_s) == (
        wire.Source.PHOTODIODE,
        0.001,
        0.05,
    )
    ask(session, **told)
    (question,) = due(session)
    assert np.isnan(question.told_s)
    assert question.source == wire.Source.NONE


def test_the_phase_follows_the_onsets_that_were_told(bundle: Bundle) -> None:
    session = session_of(bundle)
    feed(session, 0, 100)
    assert session.phase.name == "SPONTANEOUS"
    ask(session, onset_frame=110, duration_s=1.0)
    assert session.phase.name == "SPONTANEOUS"
    feed(session, 100, 110)
    assert session.phase.name == "STIMULUS"
    feed(session, 110, 140)
    assert session.phase.name == "BETWEEN"
    ask(session, onset_frame=140, duration_s=0.5, stimuli=[wire.Stimulus(category="nothing")])
    assert session.phase.name == "BLANK"
    feed(session, 140, 500)
    assert session.phase.name == "SPONTANEOUS"
    assert covered(bundle, wire.Phase.BETWEEN)
    assert not covered(bundle, wire.Phase.STIMULUS)


def test_an_aborted_acquisition_gives_its_questions_back(bundle: Bundle) -> None:
    session = session_of(bundle)
    feed(session, 0, 100)
    ask(session, onset_frame=110)
    assert [question.number for question in session.acquisition("abort")] == [1]
    assert session.docket.pending == []
    assert session.docket.next_begin_ns(lambda rows: rows) is None


# --- stimulation ------------------------------------------------------------------------------------------------------


def test_stimulated_rois_stay_invalid_until_decayed_and_blanked_frames_are_left_out(bundle: Bundle) -> None:
    session = session_of(bundle, limits=SessionLimits(stimulation_decay_s=1.0))
    feed(session, 0, 120)
    session.stimulation(wire.Stimulation(rois=["n001"], first_frame=118, last_frame=121))
    feed(session, 120, 130)
    ask(session)
    slot = captured(session, question := due(session)[0])
    assert question.stimulated is not None
    assert question.stimulated.tolist() == [False, True, False]
    assert np.flatnonzero(~slot.observed).tolist() == [84, 85, 86, 87]
    assert slot.values[80:90, 0].tolist() == [214, 215, 216, 217, 217, 217, 217, 217, 222, 223]
    feed(session, 130, 151)
    ask(session)
    captured(session, question := due(session)[0])
    assert question.stimulated is not None
    assert question.stimulated.tolist() == [False, True, False]
    feed(session, 151, 152)
    ask(session)
    captured(session, question := due(session)[0])
    assert question.stimulated is None


def test_stimulation_by_time_without_blanking_keeps_the_frames(bundle: Bundle) -> None:
    session = session_of(bundle)
    session.stimulation(wire.Stimulation(start_s=1.0, duration_s=0.1, blanked=False))
    feed(session, 0, 100)
    ask(session)
    slot = captured(session, question := due(session)[0])
    assert question.stimulated is not None
    assert question.stimulated.all()
    assert slot.observed.all()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"first_frame": 1},
        {"first_frame": 1, "last_frame": 2, "start_s": 0.0, "duration_s": 1.0},
        {"first_frame": 2, "last_frame": 1},
    ],
)
def test_stimulation_that_contradicts_itself(bundle: Bundle, fields: dict[str, Any]) -> None:
    session = session_of(bundle)
    feed(session, 0, 3)
    assert code_of(session.stimulation, wire.Stimulation(**fields)) == ErrorCode.BAD_QUESTION
    assert session.window.view(0, 3)[2].all()


def test_stimulation_by_frame_needs_a_frame(bundle: Bundle) -> None:
    event = wire.Stimulation(first_frame=1, last_frame=2)
    assert code_of(session_of(bundle).stimulation, event) == ErrorCode.WINDOW_NOT_READY


# --- other rates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [15.0, 20.0, 45.5, 60.0])
def test_at_other_rates_a_window_reaches_back_far_enough(bundle: Bundle, rate: float) -> None:
    session = session_of(bundle, rate_hz=rate)
    assert session.describe().interpolated
    needed = int(np.ceil(3.2 * rate)) + 1
    feed(session, 0, needed - 2, rate=rate)
    ask(session)
    assert code_of(captured, session, due(session)[0]) == ErrorCode.WINDOW_NOT_READY
    feed(session, needed - 2, needed + 3, rate=rate)
    ask(session)
    slot = captured(session, due(session)[0])
    assert slot.interpolated
    assert slot.anchor_s == pytest.approx((needed + 3) / rate)
