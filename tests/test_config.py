"""Tests of the network's sizes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from quantformer.autoencoder import Autoencoder
from quantformer.config import PRESETS, ModelConfig
from quantformer.errors import UsageError
from quantformer.forecaster import Forecaster, ServingGraph
from quantformer_training.export import example_inputs
from quantformer_training.lean import lean


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


def multiply_adds(config: ModelConfig) -> int:
    """Of one more row of the graph that is exported, as torch counts them in every matrix product."""
    frozen = Autoencoder(config).freeze()
    graph = ServingGraph(lean(Forecaster(config, teacher=frozen, signal_scale=1.0)))
    counts = []
    for rows in (1, 2):
        inputs = example_inputs(config, rows=rows).named().values()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            graph(*(torch.from_numpy(array) for array in inputs))
        counts.append(counter.get_total_flops() // 2)
    return counts[1] - counts[0]


def test_live_is_a_thirtieth_of_the_papers_arithmetic_at_the_same_patches_and_codes() -> None:
    assert dataclasses.replace(PRESETS["live"], d=128, layers=6, heads=8) == PRESETS["paper"]
    paper, live, small = (multiply_adds(PRESETS[name]) for name in ("paper", "live", "small"))
    # By hand: 12 d^2 a token and layer of its three transformers; keys and values alone for what the last layer does not read;
    # and the correction of 64 frames from ten tokens.
    tokens, read, sizes = (3 + 6) + (2 + 10) + 10, 1 + 10 + 4, PRESETS["paper"]
    by_hand = sizes.d**2 * (12 * tokens * (sizes.layers - 1) + 2 * tokens + 10 * read) + 10 * sizes.d * 64
    assert paper == pytest.approx(by_hand, rel=0.03)
    assert 1 / 35 < live / paper < 1 / 30
    assert live < small / 2
