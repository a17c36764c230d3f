"""Quantisation quality: every figure against its definition, on windows that a tiny auto-encoder never learned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score
from small_model import CONFIG, SCALE, tiny_pretrained

from quantformer.errors import DataError
from quantformer_training.explain.quantization import QuantizationQuality, draw_quantization, quantization_quality


def windows(count: int = 30, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 160, generator=torch.Generator().manual_seed(seed))


def quality(count: int = 30) -> QuantizationQuality:
    return quantization_quality(tiny_pretrained(), windows(count), np.arange(count) % 3 == 0)


def test_codes_and_reconstruction_are_the_frozen_autoencoders() -> None:
    made, pretrained = quality(), tiny_pretrained()
    codes = pretrained.autoencoder.codes(windows()[4:5], patch_frames=CONFIG.patch_frames)
    assert np.array_equal(made.codes[4:5], codes.numpy())
    decoded = pretrained.autoencoder.decode(pretrained.autoencoder.codebook.codebook[codes])
    assert np.allclose(made.reconstruction[4:5], decoded.numpy() * SCALE, atol=1e-6)
    assert np.allclose(made.target, windows().numpy() * SCALE)


def test_scores_are_those_of_numpy_and_sklearn() -> None:
    made = quality()
    for mask, found in ((made.active, made.fidelity_active), (~made.active, made.fidelity_inactive)):
        target, reconstruction = made.target[mask], made.reconstruction[mask]
        r = [np.corrcoef(a, b)[0, 1] for a, b in zip(target, reconstruction, strict=True)]
        assert found.r == pytest.approx(np.mean(r))
        assert found.mse == pytest.approx(np.mean((target - reconstruction) ** 2))
        assert found.variance_kept == pytest.approx(r2_score(target.ravel(), reconstruction.ravel()))
        assert (found.rows, found.r_undefined) == (mask.sum(), 0)


def test_usage_counts_patches_and_perplexity_counts_codes() -> None:
    made = quality()
    assert made.usage.sum() == pytest.approx(1.0)
    assert made.usage[made.codes[0, 0]] == pytest.approx((made.codes == made.codes[0, 0]).mean())
    assert made.dead == CONFIG.codes - len(np.unique(made.codes))
    even = replace(made, usage=np.full(8, 1 / 8))
    assert (even.perplexity, even.dead) == (pytest.approx(8.0), 0)
    single = replace(made, usage=np.eye(8)[2])
    assert (single.perplexity, single.dead) == (pytest.approx(1.0), 7)


def test_examples_are_chosen_by_rank() -> None:
    made = quality(60)
    r = [np.corrcoef(made.target[row], made.reconstruction[row])[0, 1] for row in made.examples]
    assert made.active[list(made.examples)].tolist() == [True] * 3 + [False] * 3
    assert r[0] < r[1] < r[2]
    assert r[3] < r[4] < r[5]
    every = [
        np.corrcoef(a, b)[0, 1] for a, b in zip(made.target[made.active], made.reconstruction[made.active], strict=True)
    ]
    assert np.sum(np.array(every) < r[1]) == round(0.5 * (len(every) - 1))


def test_flat_windows_have_no_r_and_are_counted() -> None:
    flat = windows(6)
    flat[:2] = 0.5
    made = quantization_quality(tiny_pretrained(), flat, np.array([True, False, True, False, True, False]))
    assert (made.fidelity_active.r_undefined, made.fidelity_inactive.r_undefined) == (1, 1)
    assert np.isfinite(made.fidelity_active.r)
    assert not {0, 1} & set(made.examples)


def test_a_class_without_windows_has_no_figures_but_is_drawn() -> None:
    made = quantization_quality(tiny_pretrained(), windows(5), np.ones(5, bool))
    assert made.fidelity_inactive.rows == 0
    assert np.isnan(made.fidelity_inactive.mse)
    assert np.isnan(made.numbers()["r_inactive"])
    figure = draw_quantization(made, rate_hz=30.0, baseline_frames=96)
    assert [line.get_label() for line in figure.axes[0].lines][1:] == ["measured", "from its codes"]
    assert np.array_equal(figure.axes[0].lines[1].get_ydata(), made.target[made.examples[0]])


@pytest.mark.parametrize(("count", "labels"), [(0, 0), (5, 4)])
def test_windows_and_labels_must_match(count: int, labels: int) -> None:
    with pytest.raises(DataError, match=f"{count} windows and labels of shape"):
        quantization_quality(tiny_pretrained(), windows(count), np.ones(labels, bool))
