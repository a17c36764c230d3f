"""The time expected of an answer: the slowest recent one of its size, whatever else is asked in between."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

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


@settings(deadline=None)
@given(
    noted=st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 65_536)), max_size=50), rows=st.integers(1, 65_536)
)
def test_no_less_is_expected_than_an_answer_of_that_size_just_took(noted: list[tuple[int, int]], rows: int) -> None:
    pace = Pace()
    for took_ns, noted_rows in noted:
        pace.note(took_ns, rows=noted_rows)
    pace.note(123_456, rows=rows)
    assert pace.expected_ns(rows) >= 123_456 + MARGIN_NS
