"""The garbage collector under command: off in between, run where there is time, and given back."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from quantformer_service.garbage import Garbage


class Knot:
    """An object that only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def garbage() -> Iterator[Garbage]:
    made = Garbage()
    made.start()
    yield made
    made.end()


def knots() -> list[weakref.ref[Knot]]:
    """More knots than the youngest generation's limit, all of them lost."""
    return [weakref.ref(Knot()) for _ in range(2 * gc.get_threshold()[0])]


def test_cycles_are_freed_when_there_is_time_and_not_before(garbage: Garbage) -> None:
    assert not gc.isenabled()
    lost = knots()
    assert all(one() is not None for one in lost)
    assert garbage.collect(0) is None
    assert all(one() is not None for one in lost)
    assert garbage.collect(10**9) is not None
    assert all(one() is None for one in lost)
    assert garbage.collect(10**9) is None


def test_the_older_generations_have_their_turn(garbage: Garbage) -> None:
    seen = set()
    for _ in range(400):
        knots()
        seen.add(garbage.collect(10**10))
    assert {0, 1, 2} <= seen


def test_one_that_needs_too_long_is_tried_again_some_time(garbage: Garbage) -> None:
    garbage._needs_ns[0] = 10**9
    lost = knots()
    tries = 1
    while garbage.collect(10**7) is None:
        tries += 1
        assert tries < 1000
    assert tries > 1
    assert all(one() is None for one in lost)


def test_what_was_there_before_is_given_back() -> None:
    frozen = gc.get_freeze_count()
    garbage = Garbage()
    garbage.start()
    assert gc.get_freeze_count() > frozen
    garbage.end()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
