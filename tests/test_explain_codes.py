"""The map of the codes, and what one code becomes among others: zero where nothing is replaced or no token sees another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_model import CONFIG, SCALE, tiny_pretrained

from quantformer.errors import DataError
from quantformer_training.explain.codes import (
    code_map,
    draw_code_map,
    draw_sequence_effect,
    sequence_effect,
    used_codes,
)
from quantformer_training.pretrain import Pretrained

USAGE = np.array([0.3, 0.0, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1])


def without_context() -> Pretrained:
    """A decoder in which no token hears of another."""
    made = tiny_pretrained()
    for block in made.autoencoder.decoder.transformer.blocks:
        torch.nn.init.zeros_(block.attention_out.weight)
        torch.nn.init.zeros_(block.attention_out.bias)
    return made


def test_the_map_shows_the_codes_in_use_with_their_patches() -> None:
    pretrained = tiny_pretrained()
    made = code_map(pretrained, USAGE, seed=1)
    assert made.code.tolist() == [0, 2, 3, 4, 5, 6, 7]
    assert made.left_out == (1,)
    assert np.allclose(made.patch, pretrained.code_patch.numpy()[made.code] * SCALE)
    assert np.array_equal(made.position, code_map(pretrained, USAGE, seed=1).position)
    assert made.numbers()["codes_unused"] == 1


def test_amplitude_that_grows_with_the_vectors_is_found_across_the_map() -> None:
    pretrained = tiny_pretrained(replace(CONFIG, codes=24))
    vectors = pretrained.autoencoder.codebook.codebook
    ramp = torch.linspace(-1.0, 1.0, 24)
    vectors.copy_(ramp[:, None] * torch.ones(CONFIG.d) + 0.01 * vectors)
    noise = code_map(pretrained, np.full(24, 1 / 24), seed=0)
    grown = code_map(replace(pretrained, code_patch=ramp[:, None].expand(24, 16)), np.full(24, 1 / 24), seed=0)
    assert grown.amplitude_across.p < 0.01
    assert noise.amplitude_across.p > 0.05


def test_a_map_needs_four_codes_in_use_and_a_share_for_each() -> None:
    with pytest.raises(DataError, match="at least 4"):
        code_map(tiny_pretrained(), np.array([0.5, 0.4, 0.1, 0, 0, 0, 0, 0]), seed=0)
    with pytest.raises(DataError, match=r"expected \(8,\)"):
        used_codes(tiny_pretrained(), USAGE[:5])


def test_both_panels_draw_every_code_on_its_scale() -> None:
    made = code_map(tiny_pretrained(), USAGE, seed=1)
    figure = draw_code_map(made)
    height = 0.085 * np.ptp(made.position[:, 1])
    for axis, lowest, highest in ((figure.axes[0], 0.0, 1.0), (figure.axes[1], 0.5, 0.5)):
        drawn = axis.lines[1::2]
        assert len(drawn) == len(made.code)
        reach = [
            np.abs(line.get_ydata() - y).max() / height for line, y in zip(drawn, made.position[:, 1], strict=True)
        ]
        assert max(reach) == pytest.approx(highest)
        assert min(reach) >= lowest - 1e-9


def test_nothing_changes_where_the_replaced_code_is_the_bursts_own() -> None:
    made = sequence_effect(tiny_pretrained(), range(CONFIG.codes))
    assert (np.diag(made.effect) == 0.0).all()
    assert (made.effect[~np.eye(CONFIG.codes, dtype=bool)] > 0.0).all()
    assert 0.0 < made.context_share < 1.0


def test_a_decoder_in_which_no_token_hears_another_has_no_sequence_effect() -> None:
    made = sequence_effect(without_context(), range(CONFIG.codes))
    assert made.effect.max() < 1e-6
    assert made.context_share < 1e-9


def test_bursts_are_decoded_as_such() -> None:
    pretrained = tiny_pretrained()
    made = sequence_effect(pretrained, [2, 5, 7])
    sequence = torch.full((1, CONFIG.patches), 2)
    sequence[:, made.position] = 7
    expected = pretrained.autoencoder.decode(pretrained.autoencoder.codebook.codebook[sequence])[0].numpy() * SCALE
    assert np.allclose(made.trace[0, 2], expected, atol=1e-6)
    place = slice(made.position * 16, (made.position + 1) * 16)
    assert np.array_equal(made.patch[0, 2], made.trace[0, 2, place])
    assert made.effect[0, 2] == pytest.approx(np.sqrt(np.mean((made.patch[0, 2] - made.patch[2, 2]) ** 2)))


def test_the_share_of_context_is_the_variance_within_codes() -> None:
    patch = sequence_effect(tiny_pretrained(), range(4)).patch
    within = np.mean([patch[:, j].var(axis=0).sum() for j in range(4)])
    share = sequence_effect(tiny_pretrained(), range(4)).context_share
    assert share == pytest.approx(within / np.square(patch - patch.mean(axis=(0, 1))).mean(axis=(0, 1)).sum())


def test_the_drawn_bursts_go_by_rank_and_hold_the_peaks_own() -> None:
    made = sequence_effect(tiny_pretrained(), range(CONFIG.codes))
    own = made.patch[np.arange(8), np.arange(8)].mean(axis=1)
    assert made.peak == own.argmax()
    assert len(made.contexts()) == 5
    assert made.contexts()[-1] == made.peak
    assert np.all(np.diff(own[made.contexts()]) > 0)
    figure = draw_sequence_effect(made, rate_hz=30.0)
    assert len(figure.axes) == 6
    assert np.array_equal(figure.axes[0].lines[0].get_ydata(), made.trace[made.contexts()[0], made.peak])


def test_a_single_code_is_no_sequence_but_no_error() -> None:
    made = sequence_effect(tiny_pretrained(), [3])
    assert np.isnan(made.numbers()["effect_rms_median"])
    assert made.effect.tolist() == [[0.0]]


@pytest.mark.parametrize("codes", [[], [8], [-1]])
def test_codes_that_the_book_does_not_have_are_refused(codes: list[int]) -> None:
    with pytest.raises(DataError, match="from 0 to 7"):
        sequence_effect(tiny_pretrained(), codes)
