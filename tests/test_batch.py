"""Which questions share a batch: what waits first, up to the bounds, one of each session; and sessions take turns."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantformer.bundle import Bundle, load_bundle
from quantformer_client import wire
from quantformer_service.batch import MOST_QUESTIONS, MOST_ROWS, cost_of, first_batch, take_turns
from quantformer_service.buffers import MOST_POPULATIONS
from quantformer_service.declaration import declare
from quantformer_service.engine_settings import SessionLimits
from quantformer_service.inference import Slot
from quantformer_service.session import Session
from quantformer_service.trigger import Trigger


@pytest.fixture(scope="module")
def bundle(tiny_bundle_path: Path) -> Bundle:
    return load_bundle(tiny_bundle_path)


# --- what inference takes together ------------------------------------------------------------------------------------


def slots_of(asked: list[tuple[int, int]]) -> deque[Slot]:
    """Slots of ``(session, rows)``."""
    vectors = {session: np.zeros((3, 2, 4), np.float32) for session, _ in asked}
    found: deque[Slot] = deque()
    for session, rows in asked:
        slot = Slot()
        slot.neuron, slot.row_neuron = vectors[session], np.zeros(rows, np.int64)
        found.append(slot)
    return found


def batches(asked: list[tuple[int, int]]) -> list[list[int]]:
    """The questions of each batch, by their place in ``asked``."""
    waiting = slots_of(asked)
    place = {id(slot): at for at, slot in enumerate(waiting)}
    found = []
    while waiting:
        found.append([place[id(slot)] for slot in first_batch(waiting)])
    return found


def test_nothing_waits_nothing_is_taken() -> None:
    assert first_batch(deque()) == []


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ([(1, 241)], [[0]]),
        ([(1, 241), (2, 241)], [[0, 1]]),
        ([(1, 241), (2, 241), (3, 241)], [[0, 1], [2]]),
        # A large one goes alone, and a small one before it is not held up by it.
        ([(1, 20_000), (2, 5), (3, 5)], [[0], [1, 2]]),
        ([(1, 5), (2, 20_000), (3, 5)], [[0], [1], [2]]),
        # Two of one session follow each other, and nobody is passed over for that.
        ([(1, 5), (1, 5), (2, 5)], [[0], [1, 2]]),
        ([(1, 5), (2, 5), (1, 5), (2, 5)], [[0, 1], [2, 3]]),
        ([(session, 5) for session in range(9)], [list(range(8)), [8]]),
    ],
)
def test_a_batch_ends_where_the_next_does_not_fit(asked: list[tuple[int, int]], expected: list[list[int]]) -> None:
    assert batches(asked) == expected


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 600)), max_size=40))
def test_every_question_is_in_one_batch_in_its_order_within_the_bounds(asked: list[tuple[int, int]]) -> None:
    found = batches(asked)
    assert [one for batch in found for one in batch] == list(range(len(asked)))
    for batch, following in zip_longest(found, found[1:]):
        sessions, rows = [asked[one][0] for one in batch], sum(asked[one][1] for one in batch)
        assert len(set(sessions)) == len(batch) <= MOST_QUESTIONS
        assert len(batch) == 1 or rows <= MOST_ROWS
        if following is not None:
            session, more = asked[following[0]]
            assert len(batch) == MOST_QUESTIONS or session in sessions or rows + more > MOST_ROWS


def test_each_knows_what_is_computed_before_it() -> None:
    batch = first_batch(slots_of([(1, 100), (2, 7), (3, 50)]))
    assert [slot.cost_before for slot in batch] == [0, 100, 107]


@given(rows=st.integers(0, 70_000))
def test_a_row_without_a_forecast_costs_half(rows: int) -> None:
    assert cost_of(rows, forecast=True) == rows
    assert cost_of(rows, forecast=False) == math.ceil(rows / 2)


def test_what_asks_for_no_forecast_leaves_room_for_more() -> None:
    slots = slots_of([(session, 200) for session in range(5)])
    for slot in list(slots)[1:]:
        slot.forecast = False
    batch = first_batch(slots)
    assert [slot.cost_before for slot in batch] == [0, 200, 300, 400]
    assert len(slots) == 1


def test_as_many_populations_are_kept_as_a_batch_may_need() -> None:
    assert MOST_QUESTIONS <= MOST_POPULATIONS


# --- standing questions of several sessions ---------------------------------------------------------------------------


class Rig:
    """Sessions whose standing questions are about so many ROIs each, all with a full window."""

    def __init__(self, bundle: Bundle, asked: dict[int, list[int]]) -> None:
        self.last = 99
        self.sessions: dict[int, Session] = {}
        for number, questions in asked.items():
            rois = [f"r{k}" for k in range(max(questions, default=1))]
            opened = wire.Open(subject="m", rois=rois, rate_hz=30.0, unknown="mark")
            session = Session(
                number,
                declared=declare(opened, bundle),
                bundle=bundle,
                limits=SessionLimits(),
                trigger=Trigger(tuple(rois)),
            )
            self.sessions[number] = session
            for row in range(100):
                self._frame(session, row)
            for at, rows in enumerate(questions):
                asks = wire.Standing(stimuli=[wire.Stimulus(stimulus_id="dir=045")], rois=rois[:rows])
                session.docket.stand(asks, number=10 * number + at)

    def _frame(self, session: Session, number: int) -> None:
        values = np.full(session.window.neurons, 100.0, np.float32)
        session.frame(wire.Frame(number=number, device_s=number / 30, fluorescence=values), received_ns=number)

    def frame(self, *numbers: int) -> None:
        """A frame of every session, or of some."""
        self.last += 1
        for number in numbers or tuple(self.sessions):
            self._frame(self.sessions[number], self.last)

    def turn(self, fits: Callable[[int], bool] = lambda _rows: True) -> list[int]:
        """The numbers of the questions asked together."""
        return [question.number for _, question in take_turns(self.sessions, now_ns=1, fits=fits)]


def test_one_question_of_each_session_is_asked_at_a_time(bundle: Bundle) -> None:
    rig = Rig(bundle, {1: [4], 2: [3, 2], 3: [5]})
    turn = take_turns(rig.sessions, now_ns=17, fits=lambda _rows: True)
    assert [(session.number, question.number) for session, question in turn] == [(1, 10), (2, 20), (3, 30)]
    assert all(question.window_ready_ns == 17 and question.onset_frame == 100 for _, question in turn)
    # The second of session 2 has not been asked for this frame; nothing else waits.
    assert rig.turn() == [21]
    assert rig.turn() == []


def test_a_session_without_a_new_frame_is_not_waited_for_and_holds_nobody_up(bundle: Bundle) -> None:
    rig = Rig(bundle, {1: [4], 2: [4], 3: [4]})
    assert rig.turn() == [10, 20, 30]
    rig.frame(3)
    assert rig.turn() == [30]
    rig.frame(1, 2)
    assert sorted(rig.turn()) == [10, 20]


def test_sessions_lead_in_turns_and_every_one_is_asked_as_often(bundle: Bundle) -> None:
    rig = Rig(bundle, {number: [241] for number in range(1, 6)})
    led: Counter[int] = Counter()
    asked: Counter[int] = Counter()
    for _ in range(50):
        rig.frame()
        turn = rig.turn()
        assert len(turn) == 2
        led[turn[0]] += 1
        asked.update(turn)
    assert set(led.values()) == {10}
    assert set(asked.values()) == {20}


def test_a_large_question_has_its_turn_and_does_not_keep_small_ones_from_theirs(bundle: Bundle) -> None:
    """Session 1 has one that no other may join, and one that may join: both are asked, and session 2 between them."""
    rig = Rig(bundle, {1: [600, 3], 2: [241], 3: [241]})
    turns = []
    for _ in range(30):
        rig.frame()
        turns.append(rig.turn())
    asked = Counter(number for turn in turns for number in turn)
    assert [turn for turn in turns if 10 in turn] == [[10]] * asked[10]
    assert asked[10] >= 5
    assert min(asked[11], asked[20], asked[30]) >= 10


def test_more_sessions_than_a_batch_may_hold_are_all_asked_before_one_is_asked_twice(bundle: Bundle) -> None:
    rig = Rig(bundle, {number: [2] for number in range(1, 12)})
    first, second = rig.turn(), rig.turn()
    assert len(first) == MOST_QUESTIONS
    assert sorted(first + second) == [10 * number for number in range(1, 12)]


def test_what_joins_must_fit_before_the_next_onset_together_with_the_others(bundle: Bundle) -> None:
    rig = Rig(bundle, {1: [100], 2: [100], 3: [20], 4: [100]})
    assert rig.turn(lambda rows: rows <= 130) == [10, 30]
    assert rig.turn(lambda rows: rows < 100) == []
    assert rig.turn() == [20, 40]
    assert rig.turn() == []


@settings(max_examples=20)
@given(st.data())
def test_each_standing_question_is_asked_or_dropped_once_a_frame(bundle: Bundle, data: st.DataObject) -> None:
    sizes = data.draw(
        st.lists(st.lists(st.sampled_from([1, 60, 300, 600]), min_size=1, max_size=3), min_size=1, max_size=4)
    )
    rig = Rig(bundle, dict(enumerate(sizes, start=1)))
    frames = data.draw(st.integers(1, 12))
    for _ in range(frames):
        for _ in range(data.draw(st.integers(0, 3))):
            turn = rig.turn()
            assert len({number // 10 for number in turn}) == len(turn)
        rig.frame()
    for number, questions in enumerate(sizes, start=1):
        counters = rig.sessions[number].counters
        # The last frame's are neither yet.
        assert counters["standing_questions"] + counters["standing_dropped"] == frames * len(questions)
