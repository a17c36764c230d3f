"""When the next question is due, told from the last two."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quantformer_service.rhythm import AFTER_NS, BEFORE_NS, LONGEST_NS, Rhythm

MS = 1_000_000


def test_the_next_question_is_due_as_long_after_the_last_as_that_came_after_the_one_before() -> None:
    rhythm = Rhythm()
    assert not rhythm.is_near(0), "before the first question"
    rhythm.asked(500 * MS)
    assert not any(rhythm.is_near(500 * MS + k * MS) for k in range(300)), "one question has no rhythm"
    rhythm.asked(533 * MS)
    near = [k for k in range(500, 640) if rhythm.is_near(k * MS)]
    assert near == [565, 566], "within 2 ms before 566 and 1 ms after it"
    rhythm.asked(566 * MS)
    assert rhythm.is_near(598 * MS)
    # An onset in between sets another rhythm, and the frame after it the old one again.
    rhythm.asked(570 * MS)
    assert rhythm.is_near(573 * MS)
    assert not rhythm.is_near(598 * MS)


@given(first=st.integers(1, 10**15), apart=st.integers(0, 3 * LONGEST_NS), later=st.integers(-LONGEST_NS, LONGEST_NS))
def test_whatever_the_pace_only_a_moment_about_what_is_due_is_near(first: int, apart: int, later: int) -> None:
    rhythm = Rhythm()
    rhythm.asked(first)
    rhythm.asked(first + apart)
    due = first + 2 * apart
    expected = apart < LONGEST_NS and -BEFORE_NS < later < AFTER_NS
    assert rhythm.is_near(due + later) is expected
