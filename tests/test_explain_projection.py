"""Maps that come out the same twice, and tests of neighbours that find what is there and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantformer.errors import DataError
from quantformer_training.explain.projection import neighbour_test, plane_test, tsne


def random_vectors(count: int = 40, width: int = 8, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width))


def test_the_same_vectors_and_seed_give_the_same_map() -> None:
    vectors = random_vectors()
    first = tsne(vectors, seed=3)
    assert first.shape == (40, 2)
    assert np.array_equal(first, tsne(vectors, seed=3))
    assert not np.array_equal(first, tsne(random_vectors(seed=1), seed=3))


def test_groups_that_lie_apart_stay_apart() -> None:
    group = np.repeat([0, 1], 20)
    made = tsne(random_vectors() + 30.0 * group[:, None], seed=0)
    distance = np.linalg.norm(made[:, None] - made[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert np.array_equal(group[distance.argmin(axis=1)], group)


def test_four_points_are_enough() -> None:
    assert np.isfinite(tsne(random_vectors(4), seed=0)).all()


@pytest.mark.parametrize(
    ("vectors", "reason"),
    [
        (random_vectors(3), "at least 4"),
        (np.ones((9, 4)), "all 9 vectors are equal"),
        (np.where(np.arange(9)[:, None] == 2, np.nan, random_vectors(9)), "1 of 9 vectors are not finite"),
    ],
)
def test_what_has_no_map_is_refused(vectors: np.ndarray, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        tsne(vectors, seed=0)
    with pytest.raises(DataError, match=reason):
        neighbour_test(vectors, np.arange(float(len(vectors))), seed=0)


def test_a_planted_statistic_is_found() -> None:
    vectors = random_vectors(width=2)
    found = neighbour_test(vectors, vectors[:, 0], seed=0)
    assert found.holds
    assert found.rho > found.chance_high > found.chance_low
    assert found.p == pytest.approx(1 / 1001)
    assert (found.points, found.neighbours) == (40, 5)


def test_nothing_is_found_in_random_vectors() -> None:
    statistic = np.random.default_rng(100).normal(size=40)
    found = [neighbour_test(random_vectors(seed=seed), statistic, seed=seed, permutations=200) for seed in range(40)]
    p = [test.p for test in found]
    # One in twenty by chance: of forty, more than six would happen three times in a thousand.
    assert sum(value < 0.05 for value in p) <= 6
    assert 0.3 < np.mean(p) < 0.7
    # A point that counted itself among its neighbours would go with them by nearly a half.
    assert abs(np.mean([test.rho for test in found])) < 0.1


def test_what_a_mouse_explains_is_not_claimed_of_its_neurons() -> None:
    mouse = np.repeat([0, 1, 2], 20)
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(60, 6)) + 20.0 * rng.normal(size=(3, 6))[mouse]
    statistic = 10.0 * mouse + rng.normal(size=60)
    assert neighbour_test(vectors, statistic, seed=0).holds
    assert not neighbour_test(vectors, statistic, seed=0, group=mouse).holds


def test_a_statistic_that_does_not_vary_claims_nothing() -> None:
    found = neighbour_test(random_vectors(), np.ones(40), seed=0)
    assert np.isnan([found.rho, found.chance_low, found.chance_high, found.p]).all()
    assert not found.holds


def test_one_statistic_a_point_is_asked_for() -> None:
    with pytest.raises(DataError, match=r"expected \(40,\)"):
        neighbour_test(random_vectors(), np.ones(39), seed=0)


@settings(max_examples=20)
@given(st.integers(4, 12), st.integers(0, 1000))
def test_bounds_hold_for_any_points(count: int, seed: int) -> None:
    vectors = random_vectors(count, 3, seed=seed)
    found = neighbour_test(vectors, np.round(vectors[:, 0]), seed=seed, permutations=50)
    if not np.isnan(found.p):
        assert -1.0 - 1e-9 <= found.chance_low <= found.chance_high <= 1.0 + 1e-9
        assert 0.0 < found.p <= 1.0
    assert 1 <= found.neighbours <= (count - 1) // 2


def test_a_quantity_that_grows_across_the_map_is_told_from_one_that_does_not() -> None:
    position = random_vectors(30, 2)
    slope = plane_test(position, 3.0 + position @ [2.0, -1.0], seed=0)
    assert slope.r_squared == pytest.approx(1.0)
    assert slope.p < 0.01
    noise = plane_test(position, random_vectors(30, 1, seed=9)[:, 0], seed=0)
    assert noise.p > 0.05
    assert 0.0 <= noise.r_squared < noise.chance_high
    assert np.isnan(plane_test(position, np.ones(30), seed=0).p)
