"""Tests of how stimuli become numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantformer.errors import DataError
from quantformer.vocabulary import NOTHING, ONGOING, StimulusRecipe

RECIPE = StimulusRecipe.covering(
    ["gratings", ONGOING + "gratings", NOTHING], ["direction_deg", "phase_cycles", "image_b", "image_a"]
)
KNOWN = (
    "direction_deg", "orientation_deg", "temporal_frequency_hz", "spatial_frequency_cpd", "phase_cycles", "contrast",
    "blank", "image_a", "image_b",
)  # fmt: skip


def encoded(recipe: StimulusRecipe, category: str = "gratings", **features: float) -> dict[str, float]:
    return dict(zip(recipe.names, recipe.encode(category=category, features=features).tolist(), strict=True))


def test_width_and_names_agree_with_what_is_encoded() -> None:
    assert len(RECIPE.encode(category=NOTHING, features={})) == RECIPE.width == len(RECIPE.names)
    assert RECIPE.image_features == ("image_a", "image_b")
    assert RECIPE.categories == tuple(sorted(["gratings", "ongoing:gratings", NOTHING]))


def test_a_grating_by_hand() -> None:
    found = encoded(
        RECIPE, direction_deg=30.0, temporal_frequency_hz=8.0, spatial_frequency_cpd=0.02, phase_cycles=0.25, contrast=0.8
    )
    expected = {
        "category=gratings": 1.0,
        "direction_sin": 0.5,
        "direction_cos": math.cos(math.pi / 6),
        "orientation_sin": math.sin(math.pi / 3),
        "orientation_cos": 0.5,
        "log2_temporal_frequency": 2.0,
        "log2_spatial_frequency": -1.0,
        "phase_sin": 1.0,
        "contrast": 0.8,
    }
    for name, value in found.items():
        assert value == pytest.approx(expected.get(name, 0.0), abs=1e-6), name


def test_opposite_directions_share_their_orientation_and_nothing_else() -> None:
    one, other = encoded(RECIPE, direction_deg=45.0), encoded(RECIPE, direction_deg=225.0)
    assert one["orientation_sin"] == pytest.approx(other["orientation_sin"], abs=1e-6)
    assert one["direction_sin"] == pytest.approx(-other["direction_sin"], abs=1e-6)


def test_directions_wrap() -> None:
    for name, value in encoded(RECIPE, direction_deg=-90.0).items():
        assert value == pytest.approx(encoded(RECIPE, direction_deg=270.0)[name], abs=1e-6)


def test_a_blank_has_no_contrast_and_other_stimuli_have_it_full() -> None:
    assert encoded(RECIPE, blank=1.0)["contrast"] == 0.0
    assert encoded(RECIPE, direction_deg=0.0)["contrast"] == 1.0


@pytest.mark.parametrize(
    ("category", "features", "named"),
    [
        ("movies", {}, "'movies' was not in training"),
        ("gratings", {"size_deg": 3.0}, "'size_deg' is not in the recipe"),
        ("gratings", {"direction_deg": math.nan}, "'direction_deg' is nan"),
        ("gratings", {"contrast": math.inf}, "'contrast' is inf"),
        ("gratings", {"phase_cycles": 1e308}, "'phase_cycles' is 1e"),
        ("gratings", {"temporal_frequency_hz": 0.0}, "positive"),
        ("gratings", {"spatial_frequency_cpd": -1.0}, "positive"),
    ],
)
def test_strangers_are_refused_by_name(category: str, features: dict[str, float], named: str) -> None:
    with pytest.raises(DataError, match=named):
        RECIPE.encode(category=category, features=features)


@given(st.dictionaries(st.sampled_from(KNOWN), st.floats(width=64)))
def test_any_numbers_are_encoded_finite_or_refused(features: dict[str, float]) -> None:
    try:
        found = RECIPE.encode(category="gratings", features=features)
    except DataError:
        return
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


def test_tuning_features_are_apart_by_category_then_shared_then_ids() -> None:
    stimuli = [("gratings", {"direction_deg": 90.0}), (NOTHING, {}), (ONGOING + "gratings", {"direction_deg": 90.0})]
    rows = np.stack([RECIPE.encode(category=category, features=features) for category, features in stimuli])
    found = RECIPE.tuning_features(rows, id_row=np.array([1, -1, -1]), ids=3)
    assert found.shape == (3, RECIPE.tuning_width + 3)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[:, RECIPE.tuning_width :], [[0, 1, 0], [0, 0, 0], [0, 0, 0]])
    rest = rows[:, len(RECIPE.categories) :]
    shared = found[:, RECIPE.tuning_width - rest.shape[1] : RECIPE.tuning_width]
    np.testing.assert_array_equal(shared, rest)
    np.testing.assert_array_equal(shared[0], shared[2], "a direction is the same at an onset and later")
    apart = found[:, : RECIPE.tuning_width - rest.shape[1]].reshape(3, len(RECIPE.categories), -1)
    for row, (category, _) in enumerate(stimuli):
        own = RECIPE.categories.index(category)
        assert apart[row, own, 0] == 1.0, "the category's constant"
        constants = RECIPE.tuning_constants(ids=3)
        assert constants.shape == (RECIPE.tuning_width + 3,)
        assert np.flatnonzero(constants & (found[row] != 0)).tolist() == [own * apart.shape[2]]
        np.testing.assert_array_equal(apart[row, own, 1:], rest[row])
        assert not np.delete(apart[row], own, axis=0).any(), "another category's coefficients"


def test_no_stimuli_have_no_tuning_features() -> None:
    none = np.zeros((0, RECIPE.width), np.float32)
    assert RECIPE.tuning_features(none, id_row=np.zeros(0, np.int64), ids=3).shape == (0, RECIPE.tuning_width + 3)
