"""Tests of the quantiser: gradients against float64 references, the affine map, dead codes, nearest codes."""

from __future__ import annotations

import io

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantformer.quantizer import FrozenCodebook, Quantizer, nearest_codes


@torch.no_grad()
def nearest_in_float64(encoded: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest code by brute force, and how much nearer it is than the second (squared distance)."""
    distance = (encoded.double()[..., None, :] - codebook.double()).square().sum(-1)
    two = distance.topk(2, largest=False).values
    return distance.argmin(-1), two[..., 1] - two[..., 0]


def trained(*, codes: int = 8, d: int = 6, seed: int = 0) -> Quantizer:
    """A quantiser with an affine map that does something, out of its first step."""
    torch.manual_seed(seed)
    quantizer = Quantizer(codes=codes, d=d)
    with torch.no_grad():
        quantizer.affine_scale.normal_(0.0, 0.05)
        quantizer.affine_bias.normal_(0.0, 0.05)
    return quantizer.eval()


def test_the_commitment_gradient_reaches_the_encoder() -> None:
    # NOTES, pitfall 1: computed on the straight-through output it would be exactly zero.
    quantizer = trained().double()
    encoded = torch.randn(4, 10, 6, dtype=torch.float64, requires_grad=True)
    made = quantizer(encoded)
    (gradient,) = torch.autograd.grad(made.loss, encoded)
    chosen = quantizer.codebook()[nearest_in_float64(encoded.detach(), quantizer.codebook().detach())[0]]
    expected = quantizer.commitment * 2.0 * (encoded - chosen) / encoded.numel()
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(gradient, expected.detach())


def test_the_codebook_loss_moves_raw_codes_scale_and_bias() -> None:
    quantizer = trained().double()
    encoded = torch.randn(4, 10, 6, dtype=torch.float64)
    quantizer(encoded).loss.backward()
    codes = nearest_in_float64(encoded, quantizer.codebook().detach())[0].flatten()
    scale = 1.0 + quantizer.affine_lr * quantizer.affine_scale.detach()
    flat = encoded.flatten(0, 1)
    pull = (1.0 - quantizer.commitment) * 2.0 * (quantizer.codebook().detach()[codes] - flat) / encoded.numel()
    on_codes = torch.zeros_like(quantizer.raw).index_add_(0, codes, pull)
    assert quantizer.raw.grad is not None
    torch.testing.assert_close(quantizer.raw.grad, on_codes * scale)
    torch.testing.assert_close(quantizer.affine_bias.grad, quantizer.affine_lr * on_codes.sum(0))
    torch.testing.assert_close(quantizer.affine_scale.grad, quantizer.affine_lr * (on_codes * quantizer.raw.detach()).sum(0))


def test_the_loss_weighs_commitment_against_codebook() -> None:
    quantizer = trained().double()
    encoded = torch.randn(3, 10, 6, dtype=torch.float64)
    chosen = quantizer.codebook()[nearest_in_float64(encoded, quantizer.codebook().detach())[0]]
    assert quantizer(encoded).loss.item() == pytest.approx((encoded - chosen).square().mean().item(), rel=1e-12)


def test_the_task_gradient_passes_straight_through_and_a_share_reaches_the_codes() -> None:
    quantizer = trained().double()
    encoded = torch.randn(2, 10, 6, dtype=torch.float64, requires_grad=True)
    made = quantizer(encoded)
    task = torch.randn(2, 10, 6, dtype=torch.float64)
    on_encoder, on_raw = torch.autograd.grad((made.quantized * task).sum(), [encoded, quantizer.raw])
    torch.testing.assert_close(on_encoder, task)
    scale = 1.0 + quantizer.affine_lr * quantizer.affine_scale.detach()
    expected = torch.zeros_like(quantizer.raw).index_add_(0, made.codes.flatten(), task.flatten(0, 1))
    torch.testing.assert_close(on_raw, 0.2 * expected * scale)


def test_the_quantised_output_is_the_chosen_code() -> None:
    quantizer = trained()
    made = quantizer(torch.randn(5, 10, 6))
    torch.testing.assert_close(made.quantized, quantizer.codebook()[made.codes], atol=1e-6, rtol=0)


def test_freezing_folds_the_affine_map() -> None:
    # NOTES, pitfall 3.
    quantizer = trained()
    frozen = quantizer.freeze()
    assert torch.equal(frozen.codebook, quantizer.codebook())
    assert not torch.allclose(frozen.codebook, quantizer.raw), "the raw codes are not what is decoded"
    encoded = torch.randn(7, 10, 6)
    assert torch.equal(frozen(encoded), quantizer(encoded).codes)


def test_a_frozen_codebook_follows_nothing() -> None:
    quantizer = trained()
    frozen = quantizer.freeze()
    digest = frozen.digest()
    with torch.no_grad():
        quantizer.raw.add_(1.0)
        quantizer.affine_bias.add_(1.0)
    frozen.train()
    for _ in range(45):
        frozen(torch.randn(8, 10, 6))
    assert frozen.digest() == digest
    assert not list(frozen.parameters())
    frozen.codebook[0, 0] += 1e-6
    assert frozen.digest() != digest


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), spread=st.floats(0.01, 100.0))
def test_nearest_codes_are_the_brute_force_ones_but_for_near_ties(seed: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    codebook = torch.randn(32, 16, generator=generator) * spread
    encoded = torch.randn(20, 10, 16, generator=generator) * spread
    expected, margin = nearest_in_float64(encoded, codebook)
    clear = margin > 1e-5 * spread**2 * 16
    assert torch.equal(nearest_codes(encoded, codebook)[clear], expected[clear])
    assert clear.float().mean() > 0.99


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_nearest_codes_compare_in_float32_whatever_the_precision(half: torch.dtype) -> None:
    # NOTES, pitfall 4. Codes close to each other, so that distances in half precision would tie.
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(512, 16, generator=generator) * 0.3
    encoded = torch.randn(640, 10, 16, generator=generator).to(half)
    expected, margin = nearest_in_float64(encoded, codebook)
    clear = margin > 1e-5
    assert torch.equal(nearest_codes(encoded, codebook)[clear], expected[clear])
    in_half = (codebook.to(half).square().sum(-1) - 2.0 * encoded @ codebook.to(half).T).argmin(-1)
    assert not torch.equal(in_half[clear], expected[clear]), "the data do not tell float32 from half precision"


def test_autocast_does_not_reach_the_comparison() -> None:
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(512, 16, generator=generator) * 0.3
    encoded = torch.randn(640, 10, 16, generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = nearest_codes(encoded, codebook)
    assert torch.equal(found, nearest_codes(encoded, codebook))


# The exporter's own deprecations.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_nearest_codes_export() -> None:
    torch.manual_seed(3)
    frozen = FrozenCodebook(torch.randn(8, 6)).eval()
    buffer = io.BytesIO()
    rows = torch.export.Dim("B", min=1)
    program = torch.onnx.export(frozen, (torch.randn(2, 10, 6),), dynamo=True, dynamic_shapes=({0: rows},), verbose=False)
    assert program is not None
    buffer.write(program.model_proto.SerializeToString())
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    encoded = torch.randn(50, 10, 6)
    (found,) = session.run(None, {session.get_inputs()[0].name: encoded.numpy()})
    np.testing.assert_array_equal(found, frozen(encoded).numpy())


def test_the_first_training_step_starts_from_encoder_outputs() -> None:
    torch.manual_seed(0)
    quantizer = Quantizer(codes=8, d=4).train()
    encoded = 50.0 + torch.randn(16, 10, 4)
    made = quantizer(encoded)
    outputs = encoded.flatten(0, 1)
    for code in quantizer.codebook():
        assert (outputs - code).abs().sum(-1).min() < 1e-3
    assert made.perplexity > 3.0, "codes far from every output would leave one in use"


def test_dead_codes_are_replaced_every_twenty_training_steps_and_living_ones_are_not() -> None:
    torch.manual_seed(0)
    quantizer = Quantizer(codes=4, d=2).train()
    quantizer(torch.randn(16, 10, 2))
    with torch.no_grad():
        quantizer.raw.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0], [900.0, 900.0], [-900.0, 900.0]]))
        quantizer.usage.zero_()
    near = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).repeat(20, 5, 1)
    for step in range(1, 20):
        quantizer(near)
        assert float(quantizer.raw.detach()[2, 0]) == 900.0, f"replaced after {step} steps"
    quantizer(near + 0.25)
    raw = quantizer.raw.detach()
    torch.testing.assert_close(raw[:2], torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    for dead in raw[2:]:
        assert (near[0] + 0.25 - dead).abs().sum(-1).min() < 1e-5


def test_use_is_counted_anew_after_each_replacement() -> None:
    torch.manual_seed(0)
    quantizer = Quantizer(codes=2, d=2).train()
    quantizer(torch.randn(16, 10, 2))
    with torch.no_grad():
        quantizer.raw.copy_(torch.tensor([[0.0, 0.0], [9.0, 9.0]]))
    for _ in range(20):
        quantizer(torch.tensor([[0.0, 0.0], [9.0, 9.0]]).repeat(2, 5, 1))
    for _ in range(40):
        quantizer(torch.zeros(2, 10, 2))
    assert quantizer.raw.detach().abs().max() < 1.0, "used once, then never again: it should have been replaced"


def test_replacement_lands_on_the_output_through_the_affine_map() -> None:
    quantizer = trained(codes=4, d=3).train()
    encoded = torch.randn(8, 10, 3)
    quantizer(encoded)
    for code in quantizer.codebook().detach():
        assert (encoded.flatten(0, 1) - code).abs().max(-1).values.min() < 1e-5


def test_nothing_is_replaced_or_counted_outside_training() -> None:
    # NOTES, pitfall 2.
    quantizer = trained()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    for _ in range(45):
        quantizer(1000.0 + torch.randn(4, 10, 6))
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_perplexity_is_the_number_of_codes_in_even_use() -> None:
    quantizer = trained(codes=6, d=6)
    with torch.no_grad():
        quantizer.raw.copy_(torch.eye(6) * 10.0)
    even = quantizer.codebook().detach().repeat(4, 1, 1)
    assert float(quantizer(even).perplexity) == pytest.approx(6.0, rel=1e-5)
    assert float(quantizer(even[:, :1]).perplexity) == pytest.approx(1.0, rel=1e-5)


def test_half_precision_counts_do_not_overflow() -> None:
    quantizer = trained(codes=2, d=2)
    made = quantizer(torch.zeros(7000, 10, 2, dtype=torch.float16))
    assert float(made.perplexity) == pytest.approx(1.0)
