"""The time expected of an answer: the slowest recent one of its size, whatever else is asked in between."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from quantformer_client import wire
from quantformer_service.pace import FIRST_GUESS_NS, MARGIN_NS, REMEMBERED, Pace


def test_before_anything_was_measured_there_is_a_guess() -> None:
    assert Pace().expected_ns(241) == FIRST_GUESS_NS


def test_many_quick_small_answers_do_not_hide_a_slow_large_one() -> None:
    pace = Pace()
    for _ in range(REMEMBERED):
        pace.note(80_000_000, rows=241)
    for _ in range(10 * REMEMBERED):
        pace.note(1_000_000, rows=5)
    assert pace.expected_ns(241) == 80_000_000 + MARGIN_NS
    assert pace.expected_ns(200) == 80_000_000 + MARGIN_NS
    assert pace.expected_ns(5) == 1_000_000 + MARGIN_NS


def test_what_was_slow_long_ago_is_forgotten() -> None:
    pace = Pace()
    pace.note(50_000_000, rows=5)
    for _ in range(REMEMBERED):
        pace.note(2_000_000, rows=6)
    assert pace.expected_ns(7) == 2_000_000 + MARGIN_NS


def test_of_a_larger_question_than_any_so_far_as_much_more_is_expected() -> None:
    pace = Pace()
    pace.note(8_000_000, rows=31)
    assert pace.expected_ns(33) == 16_000_000 + MARGIN_NS
    assert pace.expected_ns(241) == 64_000_000 + MARGIN_NS
    # A smaller one than any so far: nothing is known of it but the first guess.
    assert pace.expected_ns(3) == FIRST_GUESS_NS


# --- answers ----------------------------------------------------------------------------------------------------------

MS = 1_000_000


def answer(asked: wire.Asked, *, ready_ms: int, done_ms: int) -> wire.Answer:
    """Published 1 ms after inference was done."""
    return wire.Answer(
        question=1, asked=asked, phase=wire.Phase.ONSET, stimuli=("a",), onset_frame=96, onset_s=3.2, first_frame=0,
        last_frame=95, last_frame_s=3.1, lead=0, held=0, received_ns=0, window_ready_ns=ready_ms * MS,
        submitted_ns=ready_ms * MS, done_ns=done_ms * MS, published_ns=(done_ms + 1) * MS, deadline_ns=0,
        bundle=bytes(32), rois=np.arange(1, dtype=np.uint32), validity=np.zeros(1, np.uint8),
        probability=np.zeros((1, 1), np.float32),
    )  # fmt: skip


def test_standing_questions_of_a_batch_teach_what_all_their_rows_take_and_not_that_a_few_rows_take_so_long() -> None:
    pace = Pace()
    for at in range(REMEMBERED):
        begun = 100 * at
        pace.answered(answer(wire.Asked.STANDING, ready_ms=begun, done_ms=begun + 19), rows=241, rows_before=0)
        pace.answered(answer(wire.Asked.STANDING, ready_ms=begun, done_ms=begun + 39), rows=241, rows_before=241)
    assert pace.expected_ns(241) == 20 * MS + MARGIN_NS
    assert pace.expected_ns(482) == 40 * MS + MARGIN_NS


def test_what_an_onset_question_waits_for_others_is_expected_again_what_it_waits_for_standing_ones_is_not() -> None:
    pace = Pace()
    pace.answered(answer(wire.Asked.ANNOUNCED, ready_ms=0, done_ms=9), rows=100, rows_before=0)
    assert pace.expected_ns(100) == 10 * MS + MARGIN_NS
    pace.answered(answer(wire.Asked.ANNOUNCED, ready_ms=0, done_ms=19), rows=100, rows_before=100)
    assert pace.expected_ns(100) == 20 * MS + MARGIN_NS
    # A standing one of another size is under way from 100 to 149 ms; the onset question comes at 110 ms.
    pace.answered(answer(wire.Asked.STANDING, ready_ms=100, done_ms=149), rows=500, rows_before=0)
    pace.answered(answer(wire.Asked.NOW, ready_ms=110, done_ms=160), rows=100, rows_before=0)
    assert pace.expected_ns(100) == 20 * MS + MARGIN_NS
    assert pace.expected_ns(500) == 50 * MS + MARGIN_NS
    pace.answered(answer(wire.Asked.NOW, ready_ms=110, done_ms=172), rows=100, rows_before=0)
    assert pace.expected_ns(100) == 24 * MS + MARGIN_NS


@given(
    noted=st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 65_536)), max_size=50), rows=st.integers(1, 65_536)
)
def test_no_less_is_expected_than_an_answer_of_that_size_just_took(noted: list[tuple[int, int]], rows: int) -> None:
    pace = Pace()
    for took_ns, noted_rows in noted:
        pace.note(took_ns, rows=noted_rows)
    pace.note(123_456, rows=rows)
    assert pace.expected_ns(rows) >= 123_456 + MARGIN_NS
