"""Bound tensors: padded or exact, cut into parts or whole, the answers are those of a plain run of the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantformer.bundle import Bundle, load_bundle
from quantformer.config import LEVEL_QUANTITIES
from quantformer_service.buffers import (
    LEAST_ROWS_A_LANE,
    MOST_BUCKETS,
    MOST_POPULATIONS,
    Device,
    Population,
    Populations,
    Results,
    Shape,
    capacity,
    parts,
)
from quantformer_service.runtime import open_session

#: A GPU's way with sizes, on the CPU; and the CPU's own.
PADDED, EXACT, SPLIT = Device(padded=True), Device(), Device(lanes=3)


@pytest.fixture(scope="module")
def bundle(tiny_bundle_path: Path) -> Bundle:
    return load_bundle(tiny_bundle_path)


@pytest.fixture(scope="module")
def session(bundle: Bundle) -> Any:
    return open_session(bundle, provider="cpu")


def question(bundle: Bundle, *, neurons: int, stimuli: int, rows: int, seed: int) -> dict[str, Any]:
    """A call of the graph with random numbers."""
    rng, shape = np.random.default_rng(seed), Shape.of(bundle)
    return {
        "baseline": rng.normal(0, 0.3, (neurons, shape.baseline_frames)).astype(np.float32),
        "level": rng.normal(0, 0.3, (neurons, LEVEL_QUANTITIES)).astype(np.float32),
        "neuron": rng.normal(0, 0.5, (neurons, 2, shape.neuron_width)).astype(np.float32),
        "stimulus": rng.normal(0, 0.5, (stimuli, 2, shape.stimulus_width)).astype(np.float32),
        "row_neuron": rng.integers(0, neurons, rows),
        "row_stimulus": rng.integers(0, stimuli, rows),
    }


def bound(populations: Populations, asked: dict[str, Any]) -> Results:
    """The same call by bound tensors."""
    population = populations.of(asked["neuron"])
    population.baseline[:] = asked["baseline"]
    population.level[:] = asked["level"]
    population.upload()
    bucket = population.bucket(stimuli=len(asked["stimulus"]), rows=len(asked["row_neuron"]))
    bucket.ask(**{name: asked[name] for name in ("stimulus", "row_neuron", "row_stimulus")})
    for run in bucket.runs:
        run()
    return bucket.results()


def assert_same(found: Results, session: Any, asked: dict[str, Any]) -> None:
    for name, expected in zip(("logit", "response", "spread"), session.run(None, asked), strict=True):
        np.testing.assert_allclose(getattr(found, name), expected, atol=1e-6, rtol=1e-5, err_msg=name)
        assert getattr(found, name).shape == expected.shape


@pytest.mark.parametrize("device", [PADDED, EXACT, SPLIT])
@settings(max_examples=15)
@given(sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20), st.integers(1, 600)), min_size=1, max_size=4))
def test_the_answers_are_those_of_a_plain_run(
    bundle: Bundle, session: Any, device: Device, sizes: list[tuple[int, int, int]]
) -> None:
    """Sessions and questions of several sizes in turn, so that what one leaves behind would show in another."""
    populations = Populations({True: [session]}, shape=Shape.of(bundle), device=device)
    asked = [question(bundle, neurons=n, stimuli=s, rows=b, seed=seed) for seed, (n, s, b) in enumerate(sizes)]
    for one in (*asked, *asked):
        assert_same(bound(populations, one), session, one)


@pytest.mark.parametrize("device", [PADDED, EXACT])
def test_a_question_changes_by_stimulus_by_rows_and_by_frame(bundle: Bundle, session: Any, device: Device) -> None:
    populations = Populations({True: [session]}, shape=Shape.of(bundle), device=device)
    first = question(bundle, neurons=9, stimuli=2, rows=20, seed=1)
    other = question(bundle, neurons=9, stimuli=2, rows=20, seed=2)
    found = [bound(populations, first).logit]
    for name in ("stimulus", "row_neuron", "row_stimulus", "baseline", "level"):
        changed = {**first, name: other[name]}
        assert_same(bound(populations, changed), session, changed)
        found.append(bound(populations, changed).logit)
    fewer = {**first, "row_neuron": first["row_neuron"][:17], "row_stimulus": first["row_stimulus"][:17]}
    assert_same(bound(populations, fewer), session, fewer)
    assert len({one.tobytes() for one in found}) == len(found)


def test_padded_sizes_share_one_bucket_and_what_did_not_change_is_not_moved_again(bundle: Bundle, session: Any) -> None:
    populations = Populations({True: [session]}, shape=Shape.of(bundle), device=PADDED)
    asked = question(bundle, neurons=9, stimuli=2, rows=20, seed=1)
    population = populations.of(asked["neuron"])
    assert population.room == capacity(9) == 16
    bucket = population.bucket(stimuli=2, rows=20)
    assert population.bucket(stimuli=5, rows=32) is bucket
    assert population.bucket(stimuli=5, rows=33) is not bucket
    assert populations.of(asked["neuron"]) is population
    # What a frame does not bring would be moved in vain: this memory is as the first question left it.
    bound(populations, asked)
    bucket._stimulus.host[:] = 7.0
    spoilt = bound(populations, asked)
    with pytest.raises(AssertionError):
        assert_same(spoilt, session, asked)
    population.settle(asked["neuron"])
    renewed = {**asked, "stimulus": asked["stimulus"].copy()}
    assert_same(bound(populations, renewed), session, renewed)


def test_results_are_copies(bundle: Bundle, session: Any) -> None:
    populations = Populations({True: [session]}, shape=Shape.of(bundle), device=EXACT)
    first = question(bundle, neurons=5, stimuli=1, rows=5, seed=1)
    found = bound(populations, first)
    kept = found.response.copy()
    bound(populations, {**first, "baseline": first["baseline"] * 2})
    assert found.response.tobytes() == kept.tobytes()


@pytest.mark.parametrize(("name", "row"), [("neuron", 9), ("neuron", -1), ("stimulus", 2), ("stimulus", -1)])
@pytest.mark.parametrize("device", [PADDED, EXACT])
def test_a_row_about_what_is_not_there_is_refused_and_the_next_question_is_answered(
    bundle: Bundle, session: Any, device: Device, name: str, row: int
) -> None:
    """With padding, the graph itself would answer from a row of zeros."""
    populations = Populations({True: [session]}, shape=Shape.of(bundle), device=device)
    asked = question(bundle, neurons=9, stimuli=2, rows=20, seed=1)
    bound(populations, asked)
    broken = {**asked, f"row_{name}": asked[f"row_{name}"].copy()}
    broken[f"row_{name}"][3] = row
    with pytest.raises(ValueError, match=f"rows ask about {name}"):
        bound(populations, broken)
    assert_same(bound(populations, asked), session, asked)


@pytest.mark.parametrize("device", [PADDED, EXACT, SPLIT])
def test_nothing_asked_is_nothing_answered(bundle: Bundle, session: Any, device: Device) -> None:
    populations = Populations({True: [session]}, shape=Shape.of(bundle), device=device)
    asked = question(bundle, neurons=3, stimuli=1, rows=1, seed=1)
    none = {**asked, "row_neuron": np.empty(0, np.int64), "row_stimulus": np.empty(0, np.int64)}
    found = bound(populations, none)
    assert (found.logit.shape, found.response.shape, found.spread.shape) == ((0,), (0, 64), (0,))


@pytest.mark.parametrize("device", [PADDED, EXACT])
def test_more_sessions_and_sizes_than_are_kept_are_still_answered(bundle: Bundle, session: Any, device: Device) -> None:
    populations = Populations({True: [session]}, shape=Shape.of(bundle), device=device)
    asked = [
        question(bundle, neurons=n, stimuli=1, rows=4, seed=n) for n in range(3, 3 + 20 * (MOST_POPULATIONS + 2), 20)
    ]
    for one in (*asked, *asked):
        assert_same(bound(populations, one), session, one)
    assert len(populations._kept) == MOST_POPULATIONS
    for rows in range(1, 16 * (MOST_BUCKETS + 2), 16):
        one = question(bundle, neurons=3, stimuli=1, rows=rows, seed=rows)
        one["neuron"] = asked[0]["neuron"]
        assert_same(bound(populations, one), session, one)
    assert len(populations.of(asked[0]["neuron"])._buckets) <= MOST_BUCKETS


def test_the_tensors_of_a_session_that_has_gone_serve_the_next_of_its_size(bundle: Bundle, session: Any) -> None:
    """A captured graph stays for the life of the runtime's session, so that sessions must not each bring their own."""
    populations = Populations({True: [session]}, shape=Shape.of(bundle), device=PADDED)
    asked = [question(bundle, neurons=10, stimuli=1, rows=10, seed=seed) for seed in range(2 * MOST_POPULATIONS)]
    made: set[Population] = set()
    for one in asked:
        assert_same(bound(populations, one), session, one)
        made.add(populations.of(one["neuron"]))
    assert len(made) == MOST_POPULATIONS


@given(st.integers(1, 1 << 17))
def test_padding_is_never_too_small_and_never_much_too_large(size: int) -> None:
    padded = capacity(size)
    assert padded >= size
    assert padded % 16 == 0
    assert padded - size < max(16, padded / 4)
    assert capacity(padded) == padded


@given(rows=st.integers(0, 20_000), lanes=st.integers(1, 64), most=st.integers(1, 500))
def test_parts_are_every_row_once_in_even_shares(rows: int, lanes: int, most: int) -> None:
    cut = parts(rows, lanes=lanes, most=most)
    assert [row for part in cut for row in range(part.start, part.stop)] == list(range(rows))
    lengths = {part.stop - part.start for part in cut}
    assert max(lengths, default=0) <= most
    assert max(lengths, default=0) - min(lengths, default=0) <= 1
    if rows >= lanes * LEAST_ROWS_A_LANE:
        assert len(cut) % lanes == 0
