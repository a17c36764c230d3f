"""Images as 56 numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantformer.errors import RecordingError
from quantformer_training.image_features import MOST_IMAGES, NAMES, image_features


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    height=st.integers(4, 30),
    width=st.integers(7, 40),
    gain=st.floats(0.01, 100),
    offset=st.floats(-100, 100),
)
def test_blocks_by_their_definition_and_without_regard_to_grey_levels(
    seed: int, height: int, width: int, gain: float, offset: float
) -> None:
    stack = np.random.default_rng(seed).normal(size=(5, height, width))
    found = image_features(stack, where="it")
    rows = np.arange(5) * height // 4
    columns = np.arange(8) * width // 7
    for image in range(5):
        for block in range(28):
            row, column = divmod(block, 7)
            pixels = stack[image, rows[row] : rows[row + 1], columns[column] : columns[column + 1]]
            assert found[image, block] == pytest.approx((pixels.mean() - stack.mean()) / stack.std(), abs=1e-6)
            assert found[image, 28 + block] == pytest.approx(pixels.std() / stack.std(), abs=1e-6)
    np.testing.assert_allclose(image_features(gain * stack + offset, where="it"), found, atol=1e-4)


def test_names_and_bytes() -> None:
    assert NAMES[0] == "image_0"
    assert len(NAMES) == 56
    stack = np.full((2, 16, 28), 127, np.uint8)
    stack[0, 0, 0] = 255
    found = image_features(stack, where="it")
    assert found.shape == (2, 56)
    assert found[0, 0] > found[1, 0] == found[1, 1]


def test_equal_images_say_nothing() -> None:
    assert not image_features(np.full((3, 8, 14), 127, np.uint8), where="it").any()
    assert not image_features(np.zeros((3, 8, 14)), where="it").any()


@pytest.mark.parametrize(
    ("stack", "said"),
    [
        (np.zeros((8, 14)), "expected numbers"),
        (np.zeros((0, 8, 14)), "at least one image"),
        (np.zeros((1, 3, 14)), "4 x 7 pixels"),
        (np.zeros((1, 8, 6)), "4 x 7 pixels"),
        (np.full((1, 8, 14), 1e300), "not finite"),
        (np.zeros((1, 8, 14), "S1"), "expected numbers"),
        (np.full((1, 8, 14), np.nan), "not finite"),
        (np.lib.stride_tricks.as_strided(np.zeros(1), (MOST_IMAGES + 1, 8, 14), (0, 0, 0)), "more than are read"),
    ],
)
def test_what_is_no_stack_is_refused(stack: np.ndarray, said: str) -> None:
    with pytest.raises(RecordingError, match=said):
        image_features(stack, where="it")
