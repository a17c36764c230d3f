"""Tests of the three definitions of an active response."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantformer.labels import (
    GRADES,
    LABEL_FRAMES,
    Definition,
    LabelRule,
    evoked_area,
    graded,
    label_frames,
    score,
)


def active(rule: LabelRule, **windows: Any) -> np.ndarray:
    """As a reader of trials judges."""
    return score(rule, **windows) >= rule.bar


def response_of(first: float, rest: float, *, until: int) -> np.ndarray:
    trace = np.full((1, 64), rest, np.float32)
    trace[:, :until] = first
    return trace


FLAT = np.zeros((1, 96), np.float32)


def test_frames_by_category() -> None:
    assert label_frames("drifting_gratings") == 60
    assert {label_frames(name) for name in ("static_gratings", "natural_scenes", "locally_sparse_noise")} == {15}
    assert label_frames("of my own") == 60
    assert set(LABEL_FRAMES.values()) == {15, 60}


def test_signed_is_the_mean_over_the_labels_frames_alone() -> None:
    early = response_of(0.2, -5.0, until=15)
    assert active(LabelRule(), baseline=FLAT, response=early, frames=15).all()
    assert not active(LabelRule(), baseline=FLAT, response=early, frames=60).any()


def test_the_threshold_itself_is_active() -> None:
    rule = LabelRule(threshold=0.125)
    assert active(rule, baseline=FLAT, response=response_of(0.125, 0.0, until=60), frames=60).all()
    below = np.nextafter(np.float32(0.125), np.float32(0.0))
    assert not active(rule, baseline=FLAT, response=response_of(float(below), 0.0, until=60), frames=60).any()


def test_absolute_counts_what_signed_cancels() -> None:
    swings = np.tile(np.array([0.3, -0.3], np.float32), 32)[None]
    assert not active(LabelRule(), baseline=FLAT, response=swings, frames=60).any()
    assert active(LabelRule(definition="absolute"), baseline=FLAT, response=swings, frames=60).all()


def test_absolute_calls_noise_active_once_its_deviation_exceeds_an_eighth() -> None:
    # NOTES, pitfall 6: E|x| = 0.8 sd, so neuron identity alone predicts this label.
    rng = np.random.default_rng(0)
    noise = rng.normal(0.0, 1.0, (400, 60)).astype(np.float32)
    rule = LabelRule(definition="absolute")
    share = [active(rule, baseline=FLAT, response=sd * noise, frames=60).mean() for sd in (0.09, 0.125, 0.18)]
    assert share[0] < 0.01
    assert 0.3 < share[1] < 0.7
    assert share[2] > 0.99


def test_evoked_area_of_pure_decay_is_nothing() -> None:
    # Calcium that decays with the rule's own constant, known at the middle of the baseline's last five frames.
    frames, decay = np.arange(-96, 64), 30.0
    trace = np.exp(-(frames + 3) / decay)
    area = evoked_area(trace[None, :96].astype(np.float32), trace[None, 96:].astype(np.float32), frames=60, decay_frames=decay)
    assert abs(float(area[0])) < 0.01
    assert float(trace[96:156].mean()) > 0.35, "without the correction it would be called a response"


@pytest.mark.parametrize("frames", [15, 60])
def test_evoked_area_against_a_reference(frames: int) -> None:
    rng = np.random.default_rng(1)
    baseline, response = rng.normal(size=(4, 7, 96)).astype(np.float32), rng.normal(size=(4, 7, 64)).astype(np.float32)
    expected = np.empty((4, 7))
    for i, j in np.ndindex(4, 7):
        end = sum(float(v) for v in baseline[i, j, 91:]) / 5
        decay = sum(np.exp(-(k + 3) / 20.0) for k in range(frames)) / frames
        expected[i, j] = sum(float(v) for v in response[i, j, :frames]) / frames - end * decay
    np.testing.assert_allclose(evoked_area(baseline, response, frames=frames, decay_frames=20.0), expected, rtol=1e-10)


def test_evoked_is_a_z_score_of_the_neuron() -> None:
    rule = LabelRule(definition="evoked", threshold_z=2.0)
    response = np.full((1, 2, 64), 0.5, np.float32)
    found = active(
        rule,
        baseline=np.zeros((1, 2, 96), np.float32),
        response=response,
        frames=60,
        pseudo_mean=np.array([0.1, 0.1]),
        pseudo_sd=np.array([0.19, 0.21]),
    )
    np.testing.assert_array_equal(found, [[True, False]])


@pytest.mark.parametrize("definition", ["signed", "absolute", "evoked"])
def test_a_grade_is_a_half_at_the_bar_and_rises_with_the_score(definition: Definition) -> None:
    rule = LabelRule(definition=definition)
    grade = GRADES[definition]
    scores = rule.bar + grade * np.array([-np.inf, -2000.0, -1.0, 0.0, 1.0, 2000.0, np.inf])
    found = graded(rule, scores)
    np.testing.assert_allclose(found, [0.0, 0.0, 1 / (1 + np.e), 0.5, 1 / (1 + 1 / np.e), 1.0, 1.0], atol=1e-12)
    assert rule.bar == (2.0 if definition == "evoked" else 0.1)
    assert grade == pytest.approx(0.2 * rule.bar)


@given(seed=st.integers(0, 9999), definition=st.sampled_from(["signed", "absolute", "evoked"]), frames=st.sampled_from([15, 60]))
def test_what_is_active_has_a_grade_of_a_half_or_more(seed: int, definition: Definition, frames: int) -> None:
    rng = np.random.default_rng(seed)
    rule = LabelRule(definition=definition)
    windows = {
        "baseline": rng.normal(0.0, 0.1, (50, 96)).astype(np.float32),
        "response": rng.normal(0.1, 0.3, (50, 64)).astype(np.float32),
    }
    scores = score(rule, **windows, frames=frames, pseudo_sd=0.05)
    np.testing.assert_array_equal(graded(rule, scores) >= 0.5, scores >= rule.bar)
