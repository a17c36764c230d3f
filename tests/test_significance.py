"""Significance over runs: scipy's own p values, known values, and how often equal models are called different."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, wilcoxon

from quantformer.errors import DataError
from quantformer_training.significance import (
    EXACT_PAIRS,
    MINIMUM_MICE,
    hierarchical_bootstrap,
    holm,
    signed_rank,
)


@pytest.mark.parametrize("count", [1, 2, 5, 12, 44, EXACT_PAIRS])
@pytest.mark.parametrize("higher", [True, False])
def test_exact_p_values_are_scipys(count: int, higher: bool) -> None:
    random = np.random.default_rng(count)
    left, right = random.normal(0.4, 1.0, count), random.normal(size=count)
    expected = wilcoxon(left, right, alternative="greater" if higher else "less", method="exact")
    found = signed_rank(left, right, higher_is_better=higher)
    assert found.method == "exact"
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.pairs == count


def test_many_pairs_are_scipys_normal_approximation() -> None:
    random = np.random.default_rng(0)
    left, right = random.normal(0.2, 1.0, 88), random.normal(size=88)
    found = signed_rank(left, right, higher_is_better=True)
    assert found.method == "normal approximation"
    assert found.p == pytest.approx(wilcoxon(left, right, alternative="greater", method="approx").pvalue, rel=1e-9)


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_ties_and_zeros_are_exact_by_counting_every_sign(differences: list[int]) -> None:
    found = signed_rank(np.array(differences, float), np.zeros(len(differences)), higher_is_better=True)
    differing = [abs(value) for value in differences if value]
    ordered = sorted(differing)
    rank = {v: np.mean([i + 1 for i, w in enumerate(ordered) if w == v]) for v in differing}
    observed = sum(rank[value] for value in differences if value > 0)
    sums = [sum(rank[v] for v, on in zip(differing, signs, strict=True) if on)
            for signs in itertools.product((False, True), repeat=len(differing))]  # fmt: skip
    assert found.p == pytest.approx(np.mean([total >= observed - 1e-9 for total in sums]))
    assert found.zeros == differences.count(0)
    assert found.smallest_p == 2.0 ** -len(differing)
    assert found.p >= found.smallest_p


def test_a_known_value() -> None:
    # Five gains and no loss: the smallest p there is, 1 in 32.
    found = signed_rank([5, 4, 3, 2, 1], [0, 0, 0, 0, 0], higher_is_better=True)
    assert (found.statistic, found.p, found.smallest_p) == (15.0, 1 / 32, 1 / 32)
    assert signed_rank([5, 4, 3, 2, 1], [0, 0, 0, 0, 0], higher_is_better=False).p == 1.0


def test_rounding_is_neither_a_difference_nor_breaks_a_tie() -> None:
    left = np.array([0.1 + 0.2, 0.5, 0.7])
    found = signed_rank(left, np.array([0.3, 0.4, 0.6]), higher_is_better=True)
    assert found.zeros == 1
    assert found.statistic == 3.0  # 0.5 - 0.4 and 0.7 - 0.6 differ in their last bit
    assert found.p == 0.25


def test_runs_without_a_score_are_left_out_in_pairs_and_counted() -> None:
    left = np.array([1.0, np.nan, 3.0, 4.0, np.inf])
    right = np.array([0.0, 0.0, np.nan, 1.0, 0.0])
    ranks = signed_rank(left, right, higher_is_better=True)
    assert (ranks.pairs, ranks.left_out, ranks.p) == (2, 3, 0.25)
    found = hierarchical_bootstrap(left, right, mouse=list("aabcd"), higher_is_better=True)
    assert (found.pairs, found.left_out, found.mice, found.difference) == (2, 3, 2, 2.0)


def test_equal_models_are_not_distinguishable() -> None:
    scores = np.random.default_rng(3).random(44)
    found = hierarchical_bootstrap(scores, scores, mouse=np.repeat(np.arange(11), 4), higher_is_better=True)
    assert (found.low, found.difference, found.high) == (0.0, 0.0, 0.0)
    assert found.verdict == "not distinguishable"
    ranks = signed_rank(scores, scores, higher_is_better=True)
    assert (ranks.p, ranks.zeros, ranks.smallest_p) == (1.0, 44, 1.0)


@pytest.mark.parametrize(("gain", "higher", "verdict"), [
    (0.1, True, "ahead"), (0.1, False, "behind"), (-0.1, True, "behind"), (-0.1, False, "ahead"),
])  # fmt: skip
def test_the_verdict_follows_the_direction_of_the_metric(gain: float, higher: bool, verdict: str) -> None:
    random = np.random.default_rng(5)
    right = random.random(44)
    left = right + gain + random.normal(0, 0.02, 44)
    found = hierarchical_bootstrap(left, right, mouse=np.repeat(np.arange(11), 4), higher_is_better=higher)
    assert found.verdict == verdict
    assert found.low < gain < found.high
    assert (signed_rank(left, right, higher_is_better=higher).p < 0.01) == (verdict == "ahead")


def test_one_lucky_mouse_does_not_decide() -> None:
    # One mouse gains much, the others lose a little. The signed-rank test takes its many runs as independent, the
    # bootstrap does not.
    gain = np.concatenate([np.full(40, 0.5), np.full(9, -0.05)])
    mouse = np.concatenate([np.zeros(40), np.arange(1, 10)])
    jitter = np.random.default_rng(0).normal(0, 0.01, 49)
    assert signed_rank(gain + jitter, np.zeros(49), higher_is_better=True).p < 1e-6
    found = hierarchical_bootstrap(gain + jitter, np.zeros(49), mouse=mouse, higher_is_better=True)
    assert found.verdict == "not distinguishable"


@pytest.mark.parametrize("mice", range(MINIMUM_MICE))
def test_too_few_mice_have_no_interval(mice: int) -> None:
    scores = np.full(4 * mice, 0.9)
    found = hierarchical_bootstrap(scores, 0 * scores, mouse=np.repeat(np.arange(mice), 4), higher_is_better=True)
    assert np.isnan([found.low, found.high]).all()
    assert found.verdict == "not distinguishable"


def test_resamples_are_the_same_each_time_however_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(8)
    left, right, mouse = random.random(20), random.random(20), np.repeat(np.arange(5), 4)
    first, again = (hierarchical_bootstrap(left, right, mouse=mouse, higher_is_better=True) for _ in range(2))
    assert first == again
    other = hierarchical_bootstrap(left, right, mouse=mouse, higher_is_better=True, seed=1)
    assert other.low != first.low
    assert other.low == pytest.approx(first.low, abs=0.03)


def test_the_interval_is_wider_for_few_mice_by_as_much_as_t_is() -> None:
    # Means of 11 draws from -5..5 are nearly normal: t(10) at 97.5 % is 2.228, times sqrt(11 / 10) is 2.337; a little less
    # for their lighter tails (Cornish and Fisher).
    gain = np.arange(-5.0, 6.0)
    found = hierarchical_bootstrap(gain, 0 * gain, mouse=np.arange(11), higher_is_better=True, resamples=200_000)
    unit = gain.std() / np.sqrt(11)
    assert found.low / unit == pytest.approx(-2.31, rel=0.02)
    assert found.high / unit == pytest.approx(2.31, rel=0.02)


def test_mice_with_different_numbers_of_runs_count_by_their_runs() -> None:
    left = np.array([1.0, 1.0, 1.0, 1.0, 0.0, 2.0])
    found = hierarchical_bootstrap(left, np.zeros(6), mouse=list("aaaabc"), higher_is_better=True)
    assert found.difference == pytest.approx(1.0)
    assert found.low < 1.0 < found.high


@pytest.mark.parametrize("mice", [3, 11])
def test_equal_models_of_mice_that_differ_are_called_different_one_time_in_twenty(mice: int) -> None:
    random = np.random.default_rng(1)
    covered, repeats = 0, 300
    for repeat in range(repeats):
        own = random.normal(size=(mice, 1)) + random.normal(size=(mice, 4))
        found = hierarchical_bootstrap(own.ravel(), np.zeros(own.size), mouse=np.repeat(np.arange(mice), 4),
                                       higher_is_better=True, resamples=800, seed=repeat)  # fmt: skip
        covered += found.low <= 0.0 <= found.high
    assert 0.92 <= covered / repeats <= 0.995


def test_the_signed_rank_test_of_equal_models_is_below_five_percent_as_often_as_it_should() -> None:
    random = np.random.default_rng(2)
    p = [signed_rank(random.normal(size=20), np.zeros(20), higher_is_better=True).p for _ in range(2000)]
    assert 0.035 <= np.mean(np.array(p) <= 0.05) <= 0.065


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=8))
def test_holm_is_monotone_and_between_the_plain_and_bonferroni(p: dict[str, float]) -> None:
    found = holm(p)
    assert list(found) == list(p)
    for name, value in p.items():
        assert value <= found[name] <= min(1.0, len(p) * value)
    ordered = sorted(p, key=lambda name: p[name])
    assert all(found[a] <= found[b] for a, b in itertools.pairwise(ordered))
    # Holm's correction is never milder than Benjamini and Hochberg's.
    if p:
        milder = false_discovery_control(list(p.values()))
        assert all(found[name] >= other - 1e-12 for name, other in zip(p, milder, strict=True))


def test_holm_known_values() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(DataError, match="cannot be paired"):
        signed_rank([1.0], [1.0, 2.0], higher_is_better=True)
    with pytest.raises(DataError, match="one label for each of 2 runs"):
        hierarchical_bootstrap([1.0, 2.0], [1.0, 2.0], mouse=["a"], higher_is_better=True)
    with pytest.raises(DataError, match="0 resamples"):
        hierarchical_bootstrap([1.0], [1.0], mouse=["a"], higher_is_better=True, resamples=0)
