"""Attention in the open: the recomputed network is the network, rollout sums to one, and what goes round is told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_fit import fitted
from small_model import CONFIG, tiny_model

from quantformer.config import PRESETS
from quantformer.errors import DataError
from quantformer.layers import Transformer
from quantformer_training.examples import Examples
from quantformer_training.explain.attention import (
    AttentionByCategory,
    attend,
    attention_by_category,
    draw_attention,
    rollout,
    token_names,
)
from quantformer_training.finetune import TrainedModel


def rows() -> Examples:
    return fitted().source(fitted().real["test"]).at_lead(0)


def model(seed: int = 0) -> TrainedModel:
    return tiny_model(fitted().vocabulary, seed=seed)


def looked(made: TrainedModel) -> AttentionByCategory:
    return attention_by_category({"gratings": made}, {"gratings": rows()}, seed=0)


@pytest.mark.parametrize("preset", ["small", "paper"])
def test_block_by_block_is_the_network(preset: str) -> None:
    torch.manual_seed(0)
    config = PRESETS[preset]
    transformer = Transformer(config).eval()
    tokens = 2.0 * torch.randn(5, 12, config.d)
    found = attend(transformer, tokens)
    with torch.no_grad():
        assert (found.encoded - transformer(tokens)).abs().max() < 1e-5
    assert found.weights.shape == (config.layers, 5, config.heads, 12, 12)
    assert torch.allclose(found.weights.sum(-1), torch.ones(()), atol=1e-6)


def test_attention_is_refused_where_the_layers_are_others() -> None:
    made = model()
    block = made.forecaster.response.encoder.transformer.blocks[0]
    block.register_forward_hook(lambda module, given, result: result + 0.01 * torch.randn_like(result))
    with pytest.raises(DataError, match=r"forecast: attention recomputed here differs .* quantformer\.layers"):
        looked(made)


@settings(max_examples=60)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(2, 12), st.integers(0, 10_000))
def test_rollout_rows_sum_to_one(layers: int, heads: int, length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = (4.0 * torch.randn(layers, 3, heads, length, length, generator=generator)).softmax(-1)
    found = rollout(weights)
    assert torch.allclose(found.sum(-1), torch.ones((), dtype=torch.float64), atol=1e-9)
    assert (found >= 0).all()
    # Half of every layer is the token itself, as far as float32 weights sum to one.
    assert (found.diagonal(dim1=1, dim2=2) >= 0.5**layers - 1e-6).all()


def test_rollout_of_known_attention() -> None:
    itself = torch.eye(4).expand(3, 2, 2, 4, 4)
    assert torch.equal(rollout(itself)[0], torch.eye(4, dtype=torch.float64))
    first = torch.zeros(3, 1, 2, 4, 4)
    first[..., 0] = 1.0
    assert rollout(first)[0, 2].tolist() == [0.875, 0.0, 0.125, 0.0]
    # Layers are not exchangeable: token 2 reads 1 after 1 has read 0.
    chain = torch.eye(3).repeat(2, 1, 1, 1, 1)
    chain[0, 0, 0, 1] = torch.tensor([1.0, 0.0, 0.0])
    chain[1, 0, 0, 2] = torch.tensor([0.0, 1.0, 0.0])
    assert rollout(chain)[0, 2].tolist() == [0.25, 0.25, 0.5]


def test_each_task_is_asked_from_its_own_tokens() -> None:
    found = looked(model()).found["gratings"]
    activation, forecast = found["activation"], found["forecast"]
    patches = [f"patch {i}" for i in range(1, 7)]
    assert activation.tokens == ("[CLS]", "[NEURON]", "[STIM]", *patches)
    assert forecast.tokens == ("[NEURON]", "[STIM]", *patches, "mask 1", "mask 2", "mask 3", "mask 4")
    assert np.flatnonzero(activation.asking).tolist() == [0]
    assert np.flatnonzero(forecast.asking).tolist() == [8, 9, 10, 11]
    for one in found.values():
        assert one.rows == len(rows())
        assert one.share.sum() == pytest.approx(1.0)
        assert one.uniform.sum() == pytest.approx(1.0)
        assert one.outside().sum() == pytest.approx(1.0)
        assert (one.outside()[one.asking] == 0.0).all()
        assert (one.deviation > 0).all()


def test_a_network_that_attends_everywhere_alike_is_uniform() -> None:
    made = model()
    for network in (made.forecaster.activation, made.forecaster.response):
        for block in network.encoder.transformer.blocks:
            torch.nn.init.zeros_(block.query_key_value.weight[: 2 * CONFIG.d])
    for one in looked(made).found["gratings"].values():
        assert np.allclose(one.share, one.uniform, atol=1e-6)
        assert np.allclose(one.deviation, 0.0, atol=1e-6)


def test_what_is_planted_in_the_neurons_token_is_seen() -> None:
    made = model()
    network = made.forecaster.activation
    with torch.no_grad():
        # One direction that only [NEURON] has, which every query looks for.
        made.tokens[0].offset.zero_()
        made.tokens[0].unknown.zero_()
        made.tokens[0].unknown[0] = 50.0
        for block in network.encoder.transformer.blocks:
            query, key, _ = block.query_key_value.weight.split(CONFIG.d)
            query.zero_()
            key.zero_()
            bias = block.query_key_value.bias
            bias.zero_()
            bias[: CONFIG.d] = 5.0
            key[:, 0] = 5.0
    found = looked(made)
    assert found.most_drawn_on("activation") == {"gratings": "[NEURON]"}
    assert found.numbers()["gratings_activation_neuron"] > 0.9


def test_the_shortcuts_share_is_none_all_or_between() -> None:
    between = looked(model()).found["gratings"]
    assert all(np.isfinite(one.shortcut_share) for one in between.values())
    none, all_of_it = model(), model()
    with torch.no_grad():
        for network in (none.forecaster.activation, none.forecaster.response):
            network.shortcut.linear.weight.zero_()
        all_of_it.forecaster.activation.head.weight.zero_()
    for one in looked(none).found["gratings"].values():
        assert one.shortcut_share == pytest.approx(0.0, abs=1e-9)
    assert looked(all_of_it).found["gratings"]["activation"].shortcut_share == pytest.approx(1.0, abs=1e-5)


def test_shares_of_a_logits_parts_add_to_one() -> None:
    made = model()
    network, asked = made.forecaster.activation, rows()
    kept: list[torch.Tensor] = []
    hook = network.shortcut.register_forward_hook(lambda module, given, result: kept.append(result[:, 0]))
    logit = made.predict(asked).logit.astype(np.float64)
    hook.remove()
    rest = logit - torch.cat(kept).numpy()
    other = np.cov(rest, logit)[0, 1] / np.var(logit, ddof=1)
    assert looked(made).found["gratings"]["activation"].shortcut_share + other == pytest.approx(1.0, abs=1e-5)


def test_looking_leaves_nothing_behind() -> None:
    made = model()
    before = made.predict(rows())
    looked(made)
    assert np.array_equal(before.logit, made.predict(rows()).logit)
    assert not any(module._forward_hooks for module in made.forecaster.modules())


def test_a_token_between_is_named_and_a_short_sequence_refused() -> None:
    names = token_names(CONFIG, task="activation", length=10)
    assert names[:5] == ("[CLS]", "[NEURON]", "[STIM]", "[OTHER]", "patch 1")
    assert token_names(CONFIG, task="forecast", length=14)[2:4] == ("[OTHER 1]", "[OTHER 2]")
    with pytest.raises(DataError, match="8 tokens found, at least 9 expected"):
        token_names(CONFIG, task="activation", length=8)


def test_categories_without_rows_are_refused() -> None:
    none = rows().select(torch.arange(0))
    with pytest.raises(DataError, match="gratings: no row"):
        attention_by_category({"gratings": model()}, {"gratings": none}, seed=0)
    with pytest.raises(DataError, match="no category"):
        attention_by_category({}, {}, seed=0)


def test_the_drawing_states_percent_and_the_way_round() -> None:
    found = looked(model())
    figure = draw_attention(found)
    one = found.found["gratings"]["activation"]
    written = [text.get_text() for text in figure.axes[0].texts]
    assert written == [f"{100 * part:.0f}" for part in one.outside()[~one.asking]]
    label = figure.axes[0].get_yticklabels()[0].get_text()
    assert f"{100 * one.shortcut_share:.0f} % of variance" in label
    # A second category gets a row of its own.
    both = replace(found, found={"a": found.found["gratings"], "b": found.found["gratings"]})
    assert len(draw_attention(both).axes[0].texts) == 2 * len(written)
