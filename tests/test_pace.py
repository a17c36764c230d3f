"""The time expected of an answer: the slowest recent one, whatever else is asked in between."""

from __future__ import annotations

from quantformer_service.pace import FIRST_GUESS_NS, MARGIN_NS, REMEMBERED, Pace


def test_before_anything_was_measured_there_is_a_guess() -> None:
    assert Pace().expected_ns == FIRST_GUESS_NS


def test_many_quick_standing_answers_do_not_hide_a_slow_onset() -> None:
    pace = Pace()
    for _ in range(REMEMBERED):
        pace.note(8_000_000, standing=False)
    for _ in range(10 * REMEMBERED):
        pace.note(1_000_000, standing=True)
    assert pace.expected_ns == 8_000_000 + MARGIN_NS


def test_a_slow_standing_answer_counts_too_until_it_is_forgotten() -> None:
    pace = Pace()
    pace.note(30_000_000, standing=True)
    assert pace.expected_ns == 30_000_000 + MARGIN_NS
    for _ in range(REMEMBERED):
        pace.note(1_000_000, standing=True)
    assert pace.expected_ns == FIRST_GUESS_NS


def test_what_was_slow_long_ago_is_forgotten() -> None:
    pace = Pace()
    pace.note(50_000_000, standing=False)
    for _ in range(REMEMBERED):
        pace.note(2_000_000, standing=False)
    assert pace.expected_ns == 2_000_000 + MARGIN_NS
