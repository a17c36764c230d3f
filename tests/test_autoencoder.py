"""Tests of pre-training's network and of the teacher that it leaves behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from quantformer.autoencoder import Autoencoder, FrozenAutoencoder
from quantformer.config import ModelConfig
from quantformer.layers import Block, attention
from quantformer.patches import from_patches, to_patches

CONFIG = ModelConfig(d=16, layers=1, heads=2, codes=8)


@pytest.fixture
def network() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(CONFIG)


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_patches_are_consecutive_frames_and_come_back() -> None:
    trace = torch.arange(320.0).reshape(2, 160)
    patches = to_patches(trace, patch_frames=16)
    assert patches.shape == (2, 10, 16)
    assert patches[1, 3, 2] == trace[1, 3 * 16 + 2]
    assert torch.equal(from_patches(patches), trace)


def test_a_reconstruction_has_every_patch(network: Autoencoder) -> None:
    made = network(torch.randn(3, 160))
    assert made.patches.shape == (3, 10, 16)
    assert made.quantization.codes.shape == (3, 10)
    assert made.masked.dtype == torch.bool


def test_masking_is_bernoulli_a_patch(network: Autoencoder) -> None:
    torch.manual_seed(1)
    masked = network.eval()(torch.zeros(3000, 160)).masked.float()
    # 30,000 draws: five standard errors of the rate are 0.0116, of a patch's own rate 0.037.
    assert abs(float(masked.mean()) - 0.2) < 0.0116
    assert (masked.mean(0) - 0.2).abs().max() < 0.037
    # Independent from patch to patch: the number masked is binomial, variance 10 * 0.2 * 0.8.
    assert abs(float(masked.sum(1).var()) - 1.6) < 0.25


def test_a_masked_patch_is_not_read(network: Autoencoder) -> None:
    network.eval()
    trace = torch.randn(2, 160)
    masked = torch.zeros(2, 10, dtype=torch.bool)
    masked[:, 4] = True
    other = trace.clone()
    other[:, 64:80] = torch.randn(2, 16)
    assert torch.equal(network(trace, masked).patches, network(other, masked).patches)
    other[:, 80] += 1.0
    assert not torch.equal(network(trace, masked).patches, network(other, masked).patches)


def test_the_mask_token_and_its_position_stand_for_a_masked_patch(network: Autoencoder) -> None:
    tokens = torch.randn(2, 10, 16)
    masked = torch.tensor([[True] + [False] * 9, [False] * 9 + [True]])
    placed = network.encoder.masked_tokens(tokens, masked)
    torch.testing.assert_close(placed[1, 9], network.encoder.mask_token + network.encoder.embedding.position[9])
    assert torch.equal(placed[~masked], tokens[~masked])


def test_every_parameter_learns(network: Autoencoder) -> None:
    network.train()
    trace = torch.randn(16, 160)
    made = network(trace)
    (made.quantization.loss + (made.patches - to_patches(trace, patch_frames=16)).square().mean()).backward()
    idle = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.abs().sum() > 0]
    assert idle == []


def test_the_teacher_stays_in_eval_mode_whatever_is_said_around_it(network: Autoencoder) -> None:
    # NOTES, pitfall 2.
    teacher = network.train().freeze()
    around = nn.ModuleList([teacher, nn.Dropout()])
    around.train()
    assert around[1].training
    assert not any(module.training for module in teacher.modules())
    teacher.train(True)
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_the_teacher_says_the_same_every_time(network: Autoencoder) -> None:
    teacher = network.freeze()
    nn.ModuleList([teacher]).train()
    trace = torch.randn(32, 160)
    before, digest = weights(teacher), teacher.codebook.digest()
    codes = teacher.codes(trace, patch_frames=16)
    for _ in range(25):
        assert torch.equal(teacher.codes(trace, patch_frames=16), codes)
    assert teacher.codebook.digest() == digest
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_what_becomes_of_the_network_does_not_reach_the_teacher(network: Autoencoder) -> None:
    teacher = network.freeze()
    before = weights(teacher)
    network.train()
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1.0)
    assert len(optimizer.param_groups[0]["params"]) == len(list(network.parameters())), "freezing froze the network too"
    made = network(torch.randn(8, 160))
    torch.autograd.backward(made.quantization.loss + made.patches.square().mean())
    optimizer.step()
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_teacher_decodes_the_folded_codebook(network: Autoencoder) -> None:
    # NOTES, pitfall 3: what the decoder saw in pre-training is what it is given afterwards.
    with torch.no_grad():
        network.quantizer.affine_scale.normal_(0.0, 0.05)
        network.quantizer.affine_bias.normal_(0.0, 0.05)
    network.eval()
    teacher = network.freeze()
    trace = torch.randn(4, 160)
    none = torch.zeros(4, 10, dtype=torch.bool)
    made = network(trace, none)
    codes = teacher.codes(trace, patch_frames=16)
    assert torch.equal(codes, made.quantization.codes)
    torch.testing.assert_close(
        teacher.decode(teacher.codebook.codebook[codes]), from_patches(made.patches), atol=1e-5, rtol=1e-5
    )
    raw = teacher.decode(network.quantizer.raw.detach()[codes])
    assert not torch.allclose(raw, from_patches(made.patches), atol=1e-2), "raw codes decode alike: nothing is tested"


def test_gradients_pass_the_teacher_to_its_input(network: Autoencoder) -> None:
    teacher: FrozenAutoencoder = network.freeze()
    vectors = torch.randn(2, 10, 16, requires_grad=True)
    torch.autograd.backward(teacher.decode(vectors).sum())
    assert vectors.grad is not None
    assert vectors.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_without_quantisation_the_decoder_is_given_what_the_encoder_says() -> None:
    torch.manual_seed(0)
    plain = Autoencoder(CONFIG, quantized=False)
    trace, none = torch.randn(4, 160), torch.zeros(4, 10, dtype=torch.bool)
    plain.eval()
    made = plain(trace, none)
    torch.testing.assert_close(made.patches, plain.decoder(plain.encoder(to_patches(trace, patch_frames=16))))
    assert float(made.quantization.loss) == 0.0
    assert made.quantization.codes.shape == (4, 10)
    plain.train()
    learned = plain(trace, none)
    torch.autograd.backward((learned.patches - to_patches(trace, patch_frames=16)).square().mean() + learned.quantization.loss)
    moved = {name for name, value in plain.named_parameters() if value.grad is not None and bool(value.grad.any())}
    assert any(name.startswith("encoder.") for name in moved), "the gradient passes to the encoder"
    assert not any(name.startswith("quantizer.") for name in moved), "a codebook that nobody asks does not move"
    teacher = plain.freeze()
    torch.testing.assert_close(
        teacher.decode(teacher.encoder(to_patches(trace, patch_frames=16))), from_patches(made.patches), atol=1e-5, rtol=1e-5
    )


def test_attention_as_plain_products_is_attention() -> None:
    """What a GPU computes, asked on the CPU; values and gradients."""
    torch.manual_seed(0)
    plain = [torch.randn(3, 4, 9, 16, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    whole = [one.detach().clone().requires_grad_() for one in plain]
    found, expected = attention(*plain), functional.scaled_dot_product_attention(*whole)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(found)
    for made in (found, expected):
        (made * weight).sum().backward()
    for one, other in zip(plain, whole, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize(("device", "plain"), [("cpu", 0), ("meta", 1)])
def test_a_layer_takes_plain_products_wherever_it_is_but_on_the_cpu(
    device: str, plain: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[torch.Size] = []

    def counted(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        taken.append(query.shape)
        return attention(query, key, value)

    monkeypatch.setattr("quantformer.layers.attention", counted)
    layer = Block(CONFIG).to(device)
    assert layer(torch.zeros(2, 9, CONFIG.d, device=device)).shape == (2, 9, CONFIG.d)
    assert taken == [(2, CONFIG.heads, 9, CONFIG.d // CONFIG.heads)] * plain
