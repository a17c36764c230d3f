"""Tests of the network's sizes."""

from __future__ import annotations

import dataclasses

import pytest

from quantformer.config import PRESETS, ModelConfig
from quantformer.errors import UsageError


def test_the_paper_preset_is_the_papers() -> None:
    paper = PRESETS["paper"]
    assert (paper.layers, paper.heads, paper.d, paper.codes) == (6, 8, 128, 32)
    assert (paper.patch_frames, paper.baseline_patches, paper.response_patches, paper.patches) == (16, 6, 4, 10)
    assert paper.mask_probability == 0.2


def test_small_differs_from_paper_in_size_alone() -> None:
    assert dataclasses.replace(PRESETS["small"], d=128, layers=6, heads=8) == PRESETS["paper"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"d": 30, "heads": 4}, "d = 30"),
        ({"d": 0}, "d = 0"),
        ({"d": 10**9}, "d = 1000000000"),
        ({"layers": -1}, "layers = -1"),
        ({"layers": 2.0}, "layers = 2.0"),
        ({"heads": 0}, "heads = 0"),
        ({"patch_frames": 0}, "patch_frames = 0"),
        ({"codes": 1}, "codes = 1"),
        ({"codes": 65537}, "codes = 65537"),
        ({"baseline_frames": 100}, "baseline_frames = 100"),
        ({"response_frames": 60}, "response_frames = 60"),
        ({"response_frames": 48}, "response patches"),
        ({"baseline_frames": 12, "patch_frames": 4, "response_frames": 16}, "8 bins"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"mask_probability": 0.0}, "mask_probability = 0.0"),
        ({"mask_probability": float("nan")}, "mask_probability = nan"),
    ],
)
def test_sizes_that_make_no_network_are_refused_by_name(changes: dict[str, float], named: str) -> None:
    with pytest.raises(UsageError, match=named.replace("(", r"\(")):
        ModelConfig(**changes)  # type: ignore[arg-type]
