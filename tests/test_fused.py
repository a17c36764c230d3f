"""Tests of fused layers: when they are used, and, where there is a GPU or Triton's interpreter, that they are the layers."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import small_model  # noqa: F401  # one thread of torch
import torch
from torch import Tensor, nn
from torch.nn import functional

import quantformer
from quantformer import layers
from quantformer.config import PRESETS, ModelConfig
from quantformer.fused_proof import ALLOWED, agree, differences
from quantformer.layers import Block, Transformer, attention, fuses, knows

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
needs_gpu = pytest.mark.skipif(not GPU, reason="torch sees no GPU")
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton comes with torch's builds for CUDA only")
#: Width, heads, tokens of a sequence, sequences: tiles that are full, nearly empty, and none but a part of one.
SIZES = [(128, 8, 12, 7), (128, 8, 9, 65), (64, 4, 10, 13), (32, 2, 64, 3), (32, 1, 1, 1)]


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The kernels: on a GPU as they are, elsewhere interpreted, in float32."""
    if not GPU:
        os.environ["TRITON_INTERPRET"] = "1"
    from quantformer import fused

    if not GPU:
        monkeypatch.setattr(fused, "NARROW", torch.float32)
    return fused


def told(monkeypatch: pytest.MonkeyPatch, *, dtype: torch.dtype = torch.bfloat16) -> None:
    """Under autocast on a GPU that the kernels run on."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: dtype)
    monkeypatch.setattr(layers, "_runs_on", lambda device: True)


def tokens_on(device: str, *shape: int) -> Any:
    return SimpleNamespace(device=torch.device(device), shape=torch.Size(shape))


def test_every_preset_is_fused_under_autocast_to_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch)
    for config in PRESETS.values():
        for length in (9, config.patches, 12):
            assert fuses(tokens_on("cuda", 32768, length, config.d), heads=config.heads)
            assert not fuses(tokens_on("cpu", 32768, length, config.d), heads=config.heads)


def test_nothing_is_fused_in_float32_or_float16_or_where_it_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    given = tokens_on("cuda", 8, 12, 128)
    assert not fuses(given, heads=8), "without autocast"
    told(monkeypatch, dtype=torch.float16)
    assert not fuses(given, heads=8)
    told(monkeypatch)
    monkeypatch.setattr(layers, "_runs_on", lambda device: False)
    assert not fuses(given, heads=8)


def test_who_listens_to_operations_hears_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from quantformer_training.throughput import Products

    told(monkeypatch)
    given = tokens_on("cuda", 8, 12, 128)
    with Products():
        assert not fuses(given, heads=8)
    assert fuses(given, heads=8)


@pytest.mark.parametrize(
    ("shape", "heads"),
    [((8, 12, 96), 6), ((8, 12, 16), 1), ((8, 12, 256), 8), ((8, 65, 128), 8), ((8, 12, 128), 16), ((1 << 19, 12, 128), 8)],
)
def test_sizes_that_the_kernels_do_not_know_take_plain_products(shape: tuple[int, ...], heads: int) -> None:
    assert not knows(torch.Size(shape), heads=heads)


@pytest.mark.parametrize("read", [slice(1), slice(2, None), slice(6, None), slice(None)])
def test_reading_some_tokens_is_reading_them_of_all(read: slice) -> None:
    """Forward and backward; the last layer feeds forward those that are read alone."""
    torch.manual_seed(0)
    network = Transformer(ModelConfig(d=16, layers=2, heads=2)).eval()
    tokens = torch.randn(5, 12, 16)
    answers = []
    for read_of in (lambda given: network(given, read), lambda given: network(given)[:, read]):
        given = tokens.clone().requires_grad_()
        network.zero_grad()
        answer = read_of(given)
        answer.square().sum().backward()
        answers.append([answer.detach(), given.grad, *(p.grad for p in network.parameters())])
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def plain(block: Block, norm: nn.LayerNorm, tokens: Tensor) -> Tensor:
    """A layer and a norm, as the plain products that a layer is made of."""
    length, d = tokens.shape[1:]
    projected = block.query_key_value(block.attention_norm(tokens))
    parts = projected.reshape(-1, length, 3, block.heads, d // block.heads).permute(2, 0, 3, 1, 4).unbind(0)
    mixed = attention(*parts).transpose(1, 2).reshape(-1, length, d)
    tokens = tokens + block.attention_out(mixed)
    fed = block.contract(functional.gelu(block.expand(block.feedforward_norm(tokens))))
    result: Tensor = norm(tokens + fed)
    return result


def halves(fused: Any, block: Block, *, dropout: float = 0.0) -> tuple[Callable[[Tensor], Tensor], ...]:
    block.dropout.p = dropout
    block.train()
    return lambda x: fused.attend(block, x), lambda x: fused.feed(block, x)


def made(d: int, heads: int) -> nn.ModuleList:
    """A layer and a norm with weights that all tell."""
    torch.manual_seed(d)
    both = nn.ModuleList([Block(ModelConfig(d=d, heads=heads, layers=1)), nn.LayerNorm(d)])
    for parameter in both.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 0.3, 0.5)
    return both.to(DEVICE)


def slopes(modules: nn.ModuleList, work: Callable[[Tensor], Tensor], tokens: Tensor, slope: Tensor) -> list[Tensor | None]:
    """Answer, gradient of the tokens, gradients of the weights."""
    modules.zero_grad()
    given = tokens.detach().requires_grad_()
    answer = work(given)
    answer.backward(slope.to(answer.dtype))
    return [answer.detach(), given.grad, *(None if p.grad is None else p.grad.clone() for p in modules.parameters())]


def off(found: Tensor, true: Tensor) -> float:
    found, true = found.detach().double(), true.detach().double()
    return float((found - true).norm() / true.norm().clamp_min(1e-6))


@needs_triton
@pytest.mark.parametrize(("d", "heads", "length", "batch"), SIZES)
def test_fused_halves_are_the_layer_forward_and_backward(
    d: int, heads: int, length: int, batch: int, fused: Any
) -> None:
    modules = made(d, heads)
    block, norm = modules[0], modules[1]
    attend, feed = halves(fused, block)
    tokens, slope = (torch.randn(batch, length, d, device=DEVICE) for _ in range(2))

    def work(given: Tensor) -> Tensor:
        answer: Tensor = fused.normed(norm, feed(attend(given)))
        return answer

    found = slopes(modules, work, tokens, slope)
    exact = slopes(modules.double(), lambda given: plain(modules[0], modules[1], given), tokens.double(), slope.double())
    for one, true in zip(found, exact, strict=True):
        assert off(one, true) < (2e-2 if GPU else 1e-3)
    # Frozen, nothing but the tokens has a gradient, and it is the same.
    frozen = slopes(modules.float().requires_grad_(False), work, tokens, slope)
    assert all(off(one, other) < 5e-3 for one, other in zip(frozen[:2], found[:2], strict=True))
    assert frozen[2:] == [None] * len(frozen[2:])
    with torch.no_grad():
        assert torch.equal(work(tokens), found[0])


@needs_triton
@pytest.mark.parametrize(("d", "heads", "length", "batch"), SIZES)
def test_nothing_beyond_the_rows_is_read_or_written(
    d: int, heads: int, length: int, batch: int, fused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens, slopes and answers lie between numbers that are none."""
    margins: list[Tensor] = []

    def between(like: Tensor) -> Tensor:
        room = torch.full((like.numel() + 2 * 64 * d,), torch.nan, device=like.device, dtype=like.dtype)
        margins.extend((room[: 64 * d], room[-64 * d :]))
        return room[64 * d : -64 * d].view(like.shape)

    modules = made(d, heads)
    attend, feed = halves(fused, modules[0])
    tokens, slope = (between(torch.empty(batch, length, d, device=DEVICE)).normal_() for _ in range(2))
    monkeypatch.setattr(torch, "empty_like", between)
    for half in (attend, feed, lambda given: fused.normed(modules[1], given)):
        given = tokens.detach().requires_grad_()
        answer = half(given)
        answer.backward(slope)
        assert answer.isfinite().all()
        assert given.grad.isfinite().all()
    assert len(margins) == 16
    assert all(margin.isnan().all() for margin in margins)
    assert all(parameter.grad.isfinite().all() for parameter in modules.parameters())


@needs_triton
def test_dropout_drops_its_share_and_the_same_on_the_way_back(fused: Any) -> None:
    modules = made(64, 4)
    block = modules[0]
    tokens, slope = (torch.randn(200 if GPU else 20, 12, 64, device=DEVICE) for _ in range(2))
    for half, bias in zip(halves(fused, block, dropout=0.1), (block.attention_out.bias, block.contract.bias), strict=True):
        modules.zero_grad()
        answer = half(tokens)
        kept = answer.detach() != tokens
        # 15,360 draws: five standard errors of the share are 0.012.
        assert abs(float(kept.float().mean()) - 0.9) < 0.012
        assert abs(float((kept & (half(tokens) != tokens)).float().mean()) - 0.81) < 0.02, "each draw is another"
        answer.backward(slope)
        torch.testing.assert_close(bias.grad, (kept * slope / 0.9).sum((0, 1)), rtol=1e-3, atol=1e-3)


@needs_gpu
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("batch", [1, 37])
def test_a_network_on_a_gpu_is_the_plain_one_nearly(preset: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training, evaluating and in float32, which nothing fused computes."""
    torch.manual_seed(0)
    network = Transformer(PRESETS[preset]).to(DEVICE).eval()
    tokens = torch.randn(batch, 12, PRESETS[preset].d, device=DEVICE)
    exact = network(tokens, slice(2, None))
    with torch.autocast("cuda", torch.bfloat16):
        found = network(tokens, slice(2, None))
        assert found.dtype == torch.bfloat16
        with torch.no_grad():
            torch.testing.assert_close(network(tokens, slice(2, None)), found)
        network.train()(tokens).float().square().mean().backward()
    assert off(found, exact) < 5e-2
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    monkeypatch.setattr(layers, "fuses", lambda tokens, *, heads: False)
    torch.testing.assert_close(network.eval()(tokens, slice(2, None)), exact)


# --- the proof before they are used ------------------------------------------------------------------------------------


@needs_gpu
@needs_triton
def test_the_kernels_agree_on_this_gpu() -> None:
    assert max(differences(DEVICE).values()) <= ALLOWED / 3
    assert agree(DEVICE)


def in_place_of_kernels(
    *, answer: float = 1.0, slope: float = 1.0, dropout: float = 1.0, redrawn: bool = False
) -> SimpleNamespace:
    """What `quantformer.fused` offers, by plain layers in float32, off by these factors."""

    class Off(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, tokens: Tensor) -> Tensor:
            return tokens * answer

        @staticmethod
        def backward(ctx: Any, *slopes: Tensor) -> Tensor:
            return slopes[0] * answer * slope

    class Redrawn(torch.autograd.Function):
        """On the way back dropout takes others."""

        @staticmethod
        def forward(ctx: Any, fed: Tensor) -> Tensor:
            return fed * 1.0

        @staticmethod
        def backward(ctx: Any, *slopes: Tensor) -> Tensor:
            return slopes[0].roll(1, -1)

    def feed(block: Block, tokens: Tensor) -> Tensor:
        block.dropout.p *= dropout
        fed = block.feed(tokens.float())
        answer: Tensor = Redrawn.apply(fed) if redrawn and block.training else fed
        return answer

    return SimpleNamespace(
        attend=lambda block, tokens: block.attend(tokens.float()), feed=feed, normed=lambda norm, tokens: Off.apply(norm(tokens))
    )


@pytest.mark.parametrize(
    ("off", "wrong"),
    [
        ({}, None),
        ({"answer": 1.1}, "answer by 0.1"),
        ({"answer": math.nan}, "answer by nan"),
        ({"slope": 0.9}, "slopes by 0.1"),
        ({"dropout": 2.0}, "dropout's share by"),
        ({"redrawn": True}, "dropout's slopes by"),
    ],
)
def test_layers_are_fused_only_where_the_kernels_agree(
    off: dict[str, Any], wrong: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setitem(sys.modules, "quantformer.fused", in_place_of_kernels(**off))
    monkeypatch.setattr(quantformer, "fused", sys.modules["quantformer.fused"], raising=False)
    before = torch.get_rng_state()
    assert agree(torch.device("cpu")) is (wrong is None)
    assert (wrong or "layers are fused on cpu; largest relative difference") in caplog.text
    assert torch.equal(torch.get_rng_state(), before), "training draws what it would have drawn"


def test_a_compiler_that_fails_leaves_plain_layers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> Tensor:
        raise RuntimeError("no ptxas")

    monkeypatch.setitem(sys.modules, "quantformer.fused", SimpleNamespace(attend=fail, feed=fail, normed=fail))
    monkeypatch.setattr(quantformer, "fused", sys.modules["quantformer.fused"], raising=False)
    assert not agree(torch.device("cpu"))
    assert "not fused on cpu: RuntimeError: no ptxas" in caplog.text
