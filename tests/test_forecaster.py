"""Tests of the downstream networks: decoding, spread, tuning in the graph, what each task reads."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from small_model import CONFIG, SCALE, sources_of, tiny_forecaster, tiny_model, tiny_pretrained
from torch import Tensor, nn

from quantformer.bundle import Vectors
from quantformer.config import (
    F0_LEVELS,
    KNOWN_QUANTITIES,
    LEVEL_QUANTITIES,
    TUNING_BINS,
    TUNING_QUANTITIES,
    ModelConfig,
)
from quantformer.forecaster import (
    ACTIVATION,
    CLIP,
    FORECAST,
    ActivationShortcut,
    Forecaster,
    ResponseAnswer,
    ResponseShortcut,
    ServingGraph,
    Shortcut,
    baseline_noise,
    error_terms,
    known_beforehand,
)
from quantformer.population_level import joined_level
from quantformer.signal import f0_level
from quantformer.tokens import UNKNOWN, TaskTokens


@pytest.fixture(scope="module")
def forecaster() -> Forecaster:
    return tiny_forecaster()


def answer_of(code_logits: Tensor) -> ResponseAnswer:
    return ResponseAnswer(code_logits=code_logits, correction=torch.zeros(len(code_logits), 64))


def certain(codes: Tensor) -> Tensor:
    """Logits of a one-hot distribution."""
    return torch.nn.functional.one_hot(codes, CONFIG.codes).float() * 1000.0


def test_decoding_is_of_the_expected_code_vectors(forecaster: Forecaster) -> None:
    # NOTES, pitfall 9.
    torch.manual_seed(0)
    logits = torch.randn(5, 10, CONFIG.codes)
    codebook = forecaster.teacher.codebook.codebook
    expected = torch.zeros(5, 10, CONFIG.d)
    for b, p in np.ndindex(5, 10):
        weights = np.exp(logits[b, p].double().numpy())
        expected[b, p] = torch.from_numpy((weights / weights.sum()) @ codebook.double().numpy())
    found = forecaster.decode(answer_of(logits))
    torch.testing.assert_close(found, forecaster.teacher.decode(expected)[:, 96:] * SCALE, atol=1e-5, rtol=1e-5)
    likeliest = forecaster.decode(answer_of(certain(logits.argmax(-1))))
    assert (found - likeliest).abs().max() > 0.01, "arg-max decodes alike: nothing is tested"


def test_decoding_sure_codes_is_decoding_those_codes(forecaster: Forecaster) -> None:
    codes = torch.arange(10).remainder(CONFIG.codes)[None]
    expected = forecaster.teacher.decode(forecaster.teacher.codebook.codebook[codes])[:, 96:] * SCALE
    torch.testing.assert_close(forecaster.decode(answer_of(certain(codes))), expected)


def test_the_correction_is_added_in_signal_scales(forecaster: Forecaster) -> None:
    logits, correction = torch.randn(2, 10, CONFIG.codes), torch.randn(2, 64)
    plain = forecaster.decode(answer_of(logits))
    corrected = forecaster.decode(ResponseAnswer(code_logits=logits, correction=correction))
    torch.testing.assert_close(corrected - plain, correction * SCALE, atol=1e-6, rtol=1e-4)


def test_the_noise_of_a_baseline_is_its_frames_whatever_it_drifts() -> None:
    generator = torch.Generator().manual_seed(3)
    white = torch.randn(4000, 96, generator=generator) * 0.2
    noise, deviation = baseline_noise(white).mean(0).tolist()
    assert (noise, deviation) == (pytest.approx(0.2, rel=0.01), pytest.approx(0.2, rel=0.01))
    # A slow event is no noise, but it is a deviation.
    event = 2.0 * torch.sin(torch.linspace(0.0, torch.pi, 96))
    noise, deviation = baseline_noise(white + event).mean(0).tolist()
    assert noise == pytest.approx(0.2, rel=0.05)
    assert deviation == pytest.approx(math.hypot(0.2, float(event.std(correction=0))), rel=0.02)
    assert not baseline_noise(torch.full((2, 96), 0.5)).any()


def test_the_spread_is_made_of_what_tells_the_error() -> None:
    made = tiny_forecaster()
    noise, probability = torch.tensor([[0.1, 0.3], [0.2, 0.2]]), torch.tensor([0.25, 0.0])
    terms = error_terms(noise, probability)
    torch.testing.assert_close(terms, torch.tensor([[0.1, 0.3, 0.5], [0.2, 0.2, 0.0]]))
    made.weigh((1.0, 2.0, 4.0))
    torch.testing.assert_close(made.spread(terms), torch.tensor([2.7, 0.6]))
    made.weigh((0.0, 0.0, 0.0))
    assert not made.spread(terms).any()


def test_the_network_begins_as_the_papers() -> None:
    """Shortcut and correction are zero until training finds a use for them."""
    made = tiny_pretrained()
    fresh = Forecaster(CONFIG, teacher=made.autoencoder, signal_scale=SCALE).eval()
    baseline, tuning, level = torch.randn(3, 96), torch.randn(3, TUNING_QUANTITIES), torch.randn(3, LEVEL_QUANTITIES)
    assert not fresh.response(baseline, torch.randn(3, 16), torch.randn(3, 16), tuning, level).correction.any()
    assert not fresh.activation.shortcut(baseline, tuning, level).any()


def test_the_encoders_start_as_copies_of_the_teachers_and_learn_apart() -> None:
    made = tiny_pretrained()
    fresh = Forecaster(CONFIG, teacher=made.autoencoder, signal_scale=SCALE)
    encoders: list[nn.Module] = [fresh.teacher.encoder, fresh.activation.encoder, fresh.response.encoder]
    for name, value in encoders[0].named_parameters():
        copies = [dict(encoder.named_parameters())[name] for encoder in encoders[1:]]
        for one in copies:
            assert torch.equal(value, one)
            assert one.requires_grad
            assert one.data_ptr() != value.data_ptr()
        assert copies[0].data_ptr() != copies[1].data_ptr()
        assert not value.requires_grad


def seen_by(shortcut: Shortcut, *given: Tensor) -> Tensor:
    """Each input of a shortcut with one output, read off by a weight of its own, ``[B, inputs]``."""
    found = []
    for i in range(shortcut.linear.in_features):
        with torch.no_grad():
            shortcut.linear.weight.zero_()
            shortcut.linear.weight[0, i] = 1.0
            found.append(shortcut(*given)[:, 0] / 10.0)
    return torch.stack(found, dim=1)


def test_the_shortcuts_see_what_simple_baselines_use() -> None:
    """Bins, deviation and last frames; the level; for a response the tuning, for a logit the log-odds of its rates alone."""
    baseline, tuning = torch.randn(4, 96).double(), torch.rand(4, TUNING_QUANTITIES).double()
    level = torch.randn(4, LEVEL_QUANTITIES).double()
    plain = torch.cat(
        [
            baseline.reshape(4, 8, 12).mean(-1),
            baseline.std(-1, correction=0, keepdim=True),
            baseline[:, 91:].mean(-1, keepdim=True),
        ],
        dim=1,
    )
    response = seen_by(ResponseShortcut(1).double(), baseline, tuning, level)
    torch.testing.assert_close(response, torch.cat([plain, level, tuning], dim=1), atol=1e-4, rtol=1e-5)
    signed = torch.where(plain < 0, -torch.log(1 - plain), torch.log(1 + plain.clamp_min(0)))
    activation = seen_by(ActivationShortcut().double(), baseline, tuning, level)
    expected = torch.cat([plain, signed, level, torch.logit(tuning[:, :2])], dim=1)
    torch.testing.assert_close(activation, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("rate", "taken"), [(-0.3, 0.005), (0.0, 0.005), (0.2, 0.2), (1.0, 0.995), (1.7, 0.995)])
def test_a_rate_that_a_regression_puts_outside_its_range_has_finite_log_odds(rate: float, taken: float) -> None:
    tuning, level = torch.full((1, TUNING_QUANTITIES), rate), torch.zeros(1, LEVEL_QUANTITIES)
    known = known_beforehand(tuning, level)
    assert known.shape == (1, KNOWN_QUANTITIES)
    for place in (LEVEL_QUANTITIES, LEVEL_QUANTITIES + 1):
        assert known[0, place].item() == pytest.approx(math.log(taken / (1 - taken)), abs=1e-5)
    assert torch.equal(known[:, LEVEL_QUANTITIES + 2 :], tuning)


def test_each_response_patch_is_told_its_own_bins(forecaster: Forecaster) -> None:
    seen: list[Tensor] = []
    handle = forecaster.response.bin_tuning.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    tuning = torch.arange(float(TUNING_QUANTITIES))[None]
    forecaster.response(torch.zeros(1, 96), torch.zeros(1, 16), torch.zeros(1, 16), tuning, torch.zeros(1, LEVEL_QUANTITIES))
    handle.remove()
    assert seen[0].tolist() == [[[2.0, 3.0], [4.0, 5.0], [6.0, 7.0], [8.0, 9.0]]]
    assert TUNING_BINS == 8


def graph_inputs(*, neurons: int = 4, stimuli: int = 3, features: int = 5, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(neurons, 96, generator=generator) * 0.2,
        torch.randn(neurons, LEVEL_QUANTITIES, generator=generator) * 0.3,
        torch.randn(neurons, 2, CONFIG.d + TUNING_QUANTITIES * features, generator=generator) * 0.5,
        torch.randn(stimuli, 2, CONFIG.d + features, generator=generator) * 0.5,
        torch.arange(neurons).repeat(stimuli),
        torch.arange(stimuli).repeat_interleave(neurons),
    ]


@torch.no_grad()
def test_the_graphs_tuning_is_that_of_the_regression(forecaster: Forecaster) -> None:
    sources = sources_of()
    features = sources.vocabulary.tuning_features(sources.test.trials.moments)[:5]
    expected = sources.tuning.of(features)
    neurons, width = expected.shape[1], features.shape[1]
    neuron = torch.zeros(neurons, 2, CONFIG.d + TUNING_QUANTITIES * width)
    neuron[:, :, CONFIG.d :] = torch.from_numpy(sources.tuning.neuron.astype(np.float32).reshape(neurons, 1, -1))
    stimulus = torch.zeros(5, 2, CONFIG.d + width)
    stimulus[:, :, CONFIG.d :] = torch.from_numpy(features)[:, None]
    seen: list[Tensor] = []
    handles = [
        module.register_forward_pre_hook(lambda module, given: seen.append(given[3]))
        for module in (forecaster.activation, forecaster.response)
    ]
    row_neuron, row_stimulus = torch.arange(neurons).repeat(5), torch.arange(5).repeat_interleave(neurons)
    level = torch.zeros(neurons, LEVEL_QUANTITIES)
    ServingGraph(forecaster)(torch.zeros(neurons, 96), level, neuron, stimulus, row_neuron, row_stimulus)
    for handle in handles:
        handle.remove()
    assert len(seen) == 2
    for given in seen:
        np.testing.assert_allclose(given.numpy(), expected.reshape(-1, TUNING_QUANTITIES), atol=1e-5)
    assert np.abs(expected).max() > 0.1


@torch.no_grad()
def test_each_task_reads_its_own_vectors(forecaster: Forecaster) -> None:
    graph, inputs = ServingGraph(forecaster), graph_inputs()
    logit, response, spread = graph(*inputs)
    for which in (2, 3):
        for task, changed_logit in ((ACTIVATION, True), (FORECAST, False)):
            other = [tensor.clone() for tensor in inputs]
            other[which][:, task, : CONFIG.d] += torch.randn(CONFIG.d)
            made = graph(*other)
            assert torch.equal(made[0], logit) != changed_logit
            assert torch.equal(made[1], response) == changed_logit
            # The spread is told by the probability, and not by the forecast.
            assert torch.equal(made[2], spread) != changed_logit


@torch.no_grad()
def test_a_row_is_its_neuron_and_its_stimulus(forecaster: Forecaster) -> None:
    graph, inputs = ServingGraph(forecaster), graph_inputs()
    whole = graph(*inputs)
    for row in (0, 5, 11):
        n, s = int(inputs[4][row]), int(inputs[5][row])
        first = torch.zeros(1, dtype=torch.int64)
        of_neuron = [tensor[n : n + 1] for tensor in inputs[:3]]
        alone = graph(*of_neuron, inputs[3][s : s + 1], first, first)
        for many, one in zip(whole, alone, strict=True):
            torch.testing.assert_close(many[row : row + 1], one, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_both_tasks_hear_the_level_in_the_transformer_and_past_it(forecaster: Forecaster) -> None:
    inputs = graph_inputs()
    changed = [tensor.clone() for tensor in inputs]
    changed[1][2, 0] += 0.5
    of_two = inputs[4] == 2
    for way in ("both", "transformer", "shortcut"):
        model = copy.deepcopy(forecaster)
        for task in (model.activation, model.response):
            if way == "shortcut":
                task.known.weight[:, :LEVEL_QUANTITIES] = 0.0
            elif way == "transformer":
                task.shortcut.linear.weight.zero_()
        graph = ServingGraph(model)
        plain, made = graph(*inputs)[:2], graph(*changed)[:2]
        for before, after in zip(plain, made, strict=True):
            assert not torch.isclose(before[of_two], after[of_two]).all(), way
            assert torch.equal(before[~of_two], after[~of_two]), way


@torch.no_grad()
def test_a_broken_window_is_clipped_as_in_training(forecaster: Forecaster) -> None:
    graph, inputs = ServingGraph(forecaster), graph_inputs()
    inputs[0][1, 40:] = 1e6
    capped = [inputs[0].clamp(-CLIP * SCALE, CLIP * SCALE), *inputs[1:]]
    for wild, tame in zip(graph(*inputs), graph(*capped), strict=True):
        torch.testing.assert_close(wild, tame)


@torch.no_grad()
def test_the_engines_vectors_give_what_training_gives() -> None:
    """Vectors as a bundle holds them, against tokens as training holds them; unknown neurons and unnamed stimuli too."""
    sources = sources_of()
    model = tiny_model(sources.vocabulary)
    tokens, recipe = model.tokens, sources.vocabulary.recipe
    n = len(sources.vocabulary.neuron_ids)
    vectors = Vectors(
        neuron=torch.stack([task.neuron(torch.arange(n)) for task in tokens], dim=1).numpy(),
        unknown=torch.stack([task.unknown for task in tokens]).numpy(),
        stimulus_weight=torch.stack([task.weight for task in tokens], dim=1).numpy(),
        stimulus_id=torch.stack([task.stimulus_offset for task in tokens], dim=1).numpy(),
        tuning=sources.tuning.neuron.astype(np.float32),
        population_tuning=sources.tuning.population.astype(np.float32),
        f0_minimum=np.zeros(n),
        **vars(sources.reader.population),
        f0_range=np.zeros((n, 2)),
        noise_range=np.zeros((n, 2)),
    )
    moments = sources.test.trials.moments
    rows = sources.test.at_lead(0)
    for strange in (False, True):
        known = rows.neuron.clone()
        asked = rows if not strange else type(rows)(
            **{
                **vars(rows),
                "neuron": torch.full_like(known, UNKNOWN),
                "tuning": rows.population_tuning,
                "level": torch.cat([torch.zeros(len(rows), F0_LEVELS), rows.level[:, F0_LEVELS:]], dim=1),
            }
        )
        expected = model.predict(asked)
        at = np.full(n, -1) if strange else np.arange(n)
        stimuli = np.stack(
            [
                vectors.of_stimulus(
                    recipe,
                    category=moments.category[i],
                    features=moments.features[i],
                    id_row=int(sources.test.stimulus[i]),
                )
                for i in range(len(moments))
            ]
        )
        baseline = torch.from_numpy(sources.test.trials.baseline[rows.moment.numpy(), known.numpy()])
        f0 = sources.test.trials.f0[rows.moment.numpy(), known.numpy()]
        usual = np.zeros(len(rows)) if strange else vectors.usual_f0[known.numpy()]
        logit, response, spread = ServingGraph(model.forecaster)(
            baseline,
            torch.from_numpy(joined_level(f0_level(f0, usual), sources.test.trials.population[rows.moment.numpy()])),
            torch.from_numpy(vectors.of_neurons(at)[known.numpy()]),
            torch.from_numpy(stimuli),
            torch.arange(len(rows)),
            rows.moment,
        )
        np.testing.assert_allclose(logit.numpy(), expected.logit, atol=2e-5)
        np.testing.assert_allclose(response.numpy(), expected.response, atol=2e-5)
        np.testing.assert_allclose(spread.numpy(), expected.spread, atol=2e-5)


def test_unknown_is_the_trained_vector_and_never_a_row() -> None:
    tokens = TaskTokens(neurons=3, feature_width=4, stimulus_ids=2, d=6)
    with torch.no_grad():
        for parameter in tokens.parameters():
            parameter.normal_()
    made = tokens.neuron(torch.tensor([0, UNKNOWN, 2]))
    torch.testing.assert_close(made[1], tokens.unknown)
    torch.testing.assert_close(made[2], tokens.unknown + tokens.offset[2])
    named = tokens.stimulus(torch.ones(2, 4), torch.tensor([1, UNKNOWN]))
    torch.testing.assert_close(named[1], tokens.weight.sum(0))
    torch.testing.assert_close(named[0], tokens.weight.sum(0) + tokens.stimulus_offset[1])


def test_a_withheld_id_teaches_the_unknown_vector_and_no_row() -> None:
    tokens = TaskTokens(neurons=3, feature_width=4, stimulus_ids=0, d=6)
    torch.autograd.backward(tokens.neuron(torch.tensor([UNKNOWN, UNKNOWN])).sum())
    assert tokens.unknown.grad is not None
    assert tokens.unknown.grad.abs().min() > 0
    assert tokens.offset.grad is None or not tokens.offset.grad.any()
    assert tokens.stimulus(torch.ones(1, 4), torch.tensor([UNKNOWN])).shape == (1, 6)


def test_other_sizes_work() -> None:
    config = ModelConfig(d=24, layers=2, heads=3, codes=5, patch_frames=8, baseline_frames=48, response_frames=32)
    graph = ServingGraph(tiny_forecaster(config))
    d, f = config.d, 3
    logit, response, spread = graph(
        torch.randn(2, 48), torch.randn(2, LEVEL_QUANTITIES), torch.randn(2, 2, d + TUNING_QUANTITIES * f),
        torch.randn(1, 2, d + f),
        torch.tensor([0, 1, 1]), torch.zeros(3, dtype=torch.int64),
    )  # fmt: skip
    assert (logit.shape, response.shape, spread.shape) == ((3,), (3, 32), (3,))
