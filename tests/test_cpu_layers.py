"""Tests of what a layer does beside its products on a CPU: it is the layer, in answers, slopes and dropout."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import small_model  # noqa: F401  # one thread of torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from quantformer import cpu_layers
from quantformer.config import PRESETS, ModelConfig
from quantformer.cpu_kernels import CHUNK, WIDTH
from quantformer.layers import LENT_WIDTH, Block, Transformer, attention, torch_alone

#: Sequences: one, a part of a vector's lanes, all of them, and some beyond.
BATCHES = (1, 7, 32, 45)


def attend(projected: Tensor, bias: Tensor, heads: int) -> Tensor:
    """As `plain_attention`, of ``[B, P, 3 d]``."""
    found: Tensor = cpu_layers.Attention.apply(projected.permute(2, 1, 0), bias, heads)  # type: ignore[no-untyped-call]  # torch's own
    return found.permute(2, 1, 0)


def gelu(given: Tensor, bias: Tensor) -> Tensor:
    found: Tensor = cpu_layers.Gelu.apply(given.clone(), bias)  # type: ignore[no-untyped-call]  # torch's own
    return found


def add(tokens: Tensor, update: Tensor, bias: Tensor, dropout: float) -> Tensor:
    found: Tensor = cpu_layers.Added.apply(tokens, update.clone(), bias, dropout)  # type: ignore[no-untyped-call]  # torch's own
    return found


def plain_attention(projected: Tensor, bias: Tensor, heads: int) -> Tensor:
    batch, length, width = projected.shape
    parts = (projected + bias).reshape(batch, length, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4)
    return attention(*parts.unbind(0)).transpose(1, 2).reshape(batch, length, width // 3)


def learned(work: Callable[..., Tensor], *tensors: Tensor, slope: Tensor) -> list[Tensor]:
    """The answer, and the slopes of what was given."""
    given = [one.clone().requires_grad_() for one in tensors]
    answer = work(*given)
    answer.backward(slope.to(answer.dtype))
    return [answer.detach(), *(one.grad for one in given if one.grad is not None)]


def lent(answer: Tensor) -> bool:
    """Whether it came from `cpu_layers`: its tokens are turned last."""
    turned = answer.grad_fn
    return turned is not None and type(turned.next_functions[0][0].next_functions[0][0]).__name__ == "AddedBackward"


def check(quick: list[Tensor], exact: list[Tensor], *, allowed: float) -> None:
    """Within ``allowed`` of the largest element of each."""
    assert len(quick) == len(exact)
    for found, wanted in zip(quick, exact, strict=True):
        assert found.shape == wanted.shape
        assert float((found.double() - wanted).abs().max()) <= allowed * float(wanted.abs().max())


@settings(max_examples=40)
@given(
    batch=st.integers(1, 70), length=st.integers(1, 21), heads=st.integers(1, 3), scale=st.sampled_from((0.1, 1.0, 4.0)),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_attention_is_attention(batch: int, length: int, heads: int, scale: float, seed: int) -> None:
    torch.manual_seed(seed)
    projected, bias = scale * torch.randn(batch, length, 3 * heads * WIDTH), torch.randn(3 * heads * WIDTH)
    slope = torch.randn(batch, length, heads * WIDTH)
    quick = learned(lambda one, two: attend(one, two, heads), projected, bias, slope=slope)
    exact = learned(lambda one, two: plain_attention(one, two, heads), projected.double(), bias.double(), slope=slope)
    check(quick[:2], exact[:2], allowed=2e-5)
    # The keys' bias moves no weight: its slope is nothing but rounding, as in torch's own. The others' are sums that may
    # cancel, of which torch's own, in the same float32, keeps as little.
    plain = learned(lambda one, two: plain_attention(one, two, heads), projected, bias, slope=slope)
    d = heads * WIDTH
    for part in (slice(d), slice(2 * d, None)):
        wanted = exact[2][part]
        error, usual = (float((of[2][part].double() - wanted).abs().max()) for of in (quick, plain))
        assert error <= 1e-4 * max(1.0, scale) * float(wanted.abs().max()) + 8 * usual


@settings(max_examples=40)
@given(
    rows=st.integers(1, 40),
    times=st.integers(1, 3),
    scale=st.sampled_from((0.01, 1.0, 5.0, 100.0)),
    seed=st.integers(0, 1000),
)
def test_gelu_is_gelu(rows: int, times: int, scale: float, seed: int) -> None:
    torch.manual_seed(seed)
    bias, slope = torch.randn(times * CHUNK), torch.randn(rows, times * CHUNK)
    given = scale * torch.randn(rows, times * CHUNK)
    quick = learned(gelu, given, bias, slope=slope)
    exact = learned(lambda one, two: functional.gelu(one + two), given.double(), bias.double(), slope=slope)
    check(quick, exact, allowed=2e-6)


def test_what_is_no_number_stays_none_and_stays_where_it_is() -> None:
    """A loss that is not finite ends training: nothing may hide it."""
    projected, none = torch.randn(40, 12, 3 * WIDTH), torch.zeros(3 * WIDTH)
    projected[35, 3, 5] = torch.nan
    answer, back, _ = learned(lambda one, two: attend(one, two, 1), projected, none, slope=torch.ones(40, 12, WIDTH))
    for found in (answer, back):
        assert found[35].isnan().any()
        assert found[torch.arange(40) != 35].isfinite().all()
    given = torch.zeros(1, CHUNK)
    given[0, :4] = torch.tensor([torch.nan, torch.inf, -200.0, 200.0])
    answer, back, _ = learned(gelu, given, torch.zeros(CHUNK), slope=torch.ones(1, CHUNK))
    assert answer[0, 0].isnan()
    assert back[0, 0].isnan()
    assert answer[0, 1] == torch.inf
    torch.testing.assert_close(answer[0, 2:4], torch.tensor([0.0, 200.0]))
    torch.testing.assert_close(back[0, 2:4], torch.tensor([0.0, 1.0]))


def test_dropout_takes_its_share_and_lets_back_what_it_let_through() -> None:
    torch.manual_seed(0)
    tokens, update, bias = torch.randn(64, 12, 128), torch.full((64, 12, 128), 0.25), torch.full((128,), 0.75)
    out, of_tokens, of_update, of_bias = learned(
        lambda *given: add(*given, 0.1), tokens, update, bias, slope=torch.full_like(tokens, 3.0)
    )
    let = out - tokens
    through = let > 0.5
    torch.testing.assert_close(let, through / 0.9)
    assert (of_tokens == 3.0).all()
    torch.testing.assert_close(of_update, 3.0 * through / 0.9)
    torch.testing.assert_close(of_bias, of_update.sum((0, 1)), rtol=1e-5, atol=0.0)
    count = through.numel()
    # Five standard deviations of a binomial, over all, over each place of a token, and over neighbours.
    assert abs(through.double().mean() - 0.9) < 5 * (0.09 / count) ** 0.5
    assert ((through.double().mean((0, 1)) - 0.9).abs() < 5 * (0.09 / (count / 128)) ** 0.5).all()
    lost = ~through.flatten()
    for step in (1, 2, 64, 128, 1536):
        both = (lost[step:] & lost[:-step]).double().mean()
        assert abs(both - 0.01) < 5 * (0.01 * 0.99 / count) ** 0.5, f"elements {step} apart"


def test_every_draw_of_dropout_is_another_and_the_generators_seed_tells_them() -> None:
    tokens, update, bias = torch.zeros(8, 12, 64), torch.ones(8, 12, 64), torch.zeros(64)
    torch.manual_seed(5)
    first, second = (add(tokens, update, bias, 0.5) for _ in range(2))
    torch.manual_seed(5)
    assert first.equal(add(tokens, update, bias, 0.5))
    agree = (first == second).double().mean()
    assert abs(agree - 0.5) < 5 * (0.25 / first.numel()) ** 0.5


@pytest.mark.parametrize("batch", BATCHES)
def test_a_layer_learns_as_torchs_own_and_in_any_number_of_threads(batch: int) -> None:
    torch.manual_seed(batch)
    block = Block(ModelConfig(d=64, heads=4, dropout=0.3))
    tokens, slope = torch.randn(2, batch, 11, 64)
    # As in the last layer of a network, whose answer is in some of the tokens.
    slope = slope[:, 2:9]

    def slopes(*, dropout: bool) -> dict[str, Tensor]:
        block.train(dropout).zero_grad()
        torch.manual_seed(1)
        answer, back = learned(lambda one: block(one, slice(2, 9)), tokens, slope=slope)
        found = {name: one.grad for name, one in block.named_parameters() if one.grad is not None}
        return {"answer": answer, "tokens": back} | {name: one.clone() for name, one in found.items()}

    assert lent(block(tokens))
    quick, dropped = slopes(dropout=False), slopes(dropout=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        cut = slopes(dropout=True)
    finally:
        torch.set_num_threads(threads)
    with torch_alone():
        plain = slopes(dropout=False)
    assert quick.keys() == plain.keys() == cut.keys()
    assert len(plain) == 14
    for name, exact in plain.items():
        torch.testing.assert_close(quick[name], exact, rtol=1e-4, atol=1e-5 * max(1.0, float(exact.abs().max())))
        # Torch's own products may add in another order then.
        torch.testing.assert_close(cut[name], dropped[name], rtol=1e-4, atol=1e-4)
    assert not dropped["answer"].allclose(quick["answer"])


@pytest.mark.parametrize("batch", BATCHES)
def test_in_bf16_products_are_rounded_and_nothing_else(batch: int) -> None:
    """Answer and slopes are off from float32's by what products of eight bits leave, and by less than torch's own in bf16."""
    torch.manual_seed(batch)
    block = Block(ModelConfig(d=64, heads=4, dropout=0.0))
    tokens, slope = torch.randn(2, batch, 11, 64)

    def slopes(*, narrow: bool) -> dict[str, Tensor]:
        block.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            answer, back = learned(block, tokens, slope=slope)
        assert answer.dtype == torch.float32
        found = {name: one.grad for name, one in block.named_parameters() if one.grad is not None}
        return {"answer": answer, "tokens": back} | {name: one.clone() for name, one in found.items()}

    with torch.autocast("cpu", torch.bfloat16):
        assert lent(block(tokens))
    exact, found = slopes(narrow=False), slopes(narrow=True)
    with torch_alone():
        own = slopes(narrow=True)
    assert exact.keys() == found.keys() == own.keys()
    off, off_own = (
        {name: float((one[name] - exact[name]).norm() / exact[name].norm()) for name in exact} for one in (found, own)
    )
    assert 1e-4 < max(off.values()) < 0.02, off
    assert sum(off.values()) < sum(off_own.values())


def test_every_preset_takes_it_on_a_cpu_in_float32_or_with_products_in_bf16() -> None:
    assert LENT_WIDTH == WIDTH
    for config in PRESETS.values():
        block, tokens = Block(config), torch.zeros(2, 12, config.d)
        assert block.lends(tokens)
        assert not block.lends(tokens.double())
        assert not block.lends(tokens.to("meta"))
        with torch.autocast("cpu", torch.bfloat16):
            assert block.lends(tokens)
            assert not block.lends(tokens.bfloat16())
        with torch.autocast("cpu", torch.float16):
            assert not block.lends(tokens)
        with torch_alone():
            assert not block.lends(tokens)
    assert not Block(ModelConfig(d=16, heads=2)).lends(torch.zeros(2, 12, 16))


def test_what_learns_nothing_answers_the_same() -> None:
    torch.manual_seed(0)
    block, tokens = Block(ModelConfig(d=64, heads=4)).eval(), torch.randn(35, 12, 64)
    learning = block(tokens).detach()
    with torch.no_grad():
        assert block(tokens).equal(learning)
    with torch.inference_mode():
        assert block(tokens).equal(learning)
        with torch_alone():
            torch.testing.assert_close(block(tokens), learning, rtol=1e-5, atol=1e-5)


def test_who_listens_to_operations_hears_torchs_own() -> None:
    from quantformer_training.throughput import Products

    block = Block(ModelConfig(d=64, heads=4))
    with Products():
        assert not block.lends(torch.zeros(2, 12, 64))


@pytest.mark.parametrize(
    ("before", "told"),
    [
        (
            # There is none, and nothing may ask for it.
            "import importlib.util as util, sys\n"
            "found, sys.modules['numba'] = util.find_spec, None\n"
            "util.find_spec = lambda name, package=None: None if name == 'numba' else found(name, package)\n",
            "",
        ),
        # No directory in which it could keep what it compiles.
        ("import numba.core.caching as caching\ncaching.CacheImpl._locator_classes = []\n", "NUMBA_CACHE_DIR"),
    ],
)
def test_without_numba_or_a_place_for_it_layers_learn_as_they_did(before: str, told: str) -> None:
    program = (
        f"{before}"
        "import torch\n"
        "from quantformer.config import ModelConfig\n"
        "from quantformer.layers import Block\n"
        "block = Block(ModelConfig(d=64, heads=4))\n"
        "block(torch.zeros(2, 12, 64)).sum().backward()\n"
        "print(block.expand.weight.grad.shape)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torch.Size([256, 64])"
    assert told in done.stderr


@pytest.mark.parametrize("read", [slice(None), slice(1), slice(2, 9)])
def test_layers_one_after_the_other_are_each_of_them(read: slice) -> None:
    torch.manual_seed(0)
    transformer, tokens = Transformer(ModelConfig(d=64, heads=4, layers=3)).eval(), torch.randn(35, 11, 64)
    with torch_alone():
        expected = transformer(tokens, read)
    made = transformer(tokens, read)
    assert made.shape == expected.shape
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)
    assert transformer(tokens[:0], read).shape == expected[:0].shape
