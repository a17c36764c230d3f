"""The paper's designs: each ingredient is there where its row of the table says so, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from random_rows import RandomSource, network_config, random_rows
from small_model import CONFIG, SCALE, tiny_pretrained
from torch.nn import functional

from quantformer.autoencoder import Autoencoder
from quantformer_training.competitors import Budget, train_network
from quantformer_training.examples import Examples
from quantformer_training.loop import Progress
from quantformer_training.paper_design import DESIGNS, PaperNetwork, paper_design
from quantformer_training.pretrain import Pretrained

TASKS = {"activation": 1, "forecast": 64}
EVERY = [(key, outputs) for key in DESIGNS for outputs in TASKS.values()]


def pretrained(key: str) -> Pretrained:
    """The ablation's auto-encoder has no quantisation; its weights are of the same shapes."""
    made = tiny_pretrained()
    if key != "ablation_autoencoder":
        return made
    return replace(made, autoencoder=Autoencoder(CONFIG, quantized=False).freeze())


def network(key: str, outputs: int) -> PaperNetwork:
    torch.manual_seed(1)
    made = paper_design(key, title=key, pretrained=pretrained(key)).make(network_config(outputs, layers=1))
    assert isinstance(made, PaperNetwork)
    with torch.no_grad():
        made.tokens.offset.normal_(0.0, 1.0 if DESIGNS[key].neuron_tokens else 0.0)
    return made.eval()


@pytest.fixture(scope="module")
def rows() -> Examples:
    return random_rows(12)


def every(rows: Examples) -> torch.Tensor:
    return torch.ones(len(rows), dtype=torch.bool)


def gradients(made: PaperNetwork, rows: Examples) -> dict[str, bool]:
    """Which parameters a step would move."""
    torch.autograd.backward(made.loss(rows, every(rows)))
    return {name: value.grad is not None and bool(value.grad.any()) for name, value in made.named_parameters()}


@pytest.mark.parametrize(("key", "outputs"), EVERY)
def test_answers_have_the_shape_of_the_task_and_are_numbers(key: str, outputs: int, rows: Examples) -> None:
    made = network(key, outputs)(rows)
    assert made.shape == ((len(rows),) if outputs == 1 else (len(rows), 64))
    assert torch.isfinite(made).all()


@pytest.mark.parametrize(("key", "outputs"), EVERY)
def test_the_neurons_id_matters_where_there_are_neuron_tokens(key: str, outputs: int, rows: Examples) -> None:
    made = network(key, outputs)
    other = replace(rows, neuron=(rows.neuron + 1) % 4)
    with torch.no_grad():
        alike = torch.equal(made(rows), made(other))
    assert alike is not DESIGNS[key].neuron_tokens
    assert gradients(made, rows)["tokens.offset"] is DESIGNS[key].neuron_tokens


@pytest.mark.parametrize(("key", "outputs"), EVERY)
def test_stimulus_and_baseline_are_told_to_all_and_nothing_of_ours_to_any(key: str, outputs: int, rows: Examples) -> None:
    made = network(key, outputs)
    with torch.no_grad():
        before = made(rows)
        for changed in (replace(rows, features=rows.features.flip(1)), replace(rows, baseline=rows.baseline.flip(0))):
            assert not torch.allclose(made(changed), before)
        ours = replace(rows, tuning=rows.tuning + 5.0, level=rows.level + 5.0, population_tuning=rows.tuning)
        assert torch.equal(made(ours), before)
        truth = replace(rows, response=rows.response + 5.0, active=~rows.active, trace=rows.trace + 5.0)
        assert torch.equal(made(truth), before), "an answer reads what is asked for"


@pytest.mark.parametrize(("key", "outputs"), EVERY)
def test_the_encoder_begins_and_learns_as_the_design_says(key: str, outputs: int, rows: Examples) -> None:
    made = network(key, outputs)
    teacher = dict(made.teacher.encoder.named_parameters())
    alike = {name: torch.equal(value, teacher[name]) for name, value in made.encoder.named_parameters()}
    same = [same for name, same in alike.items() if "norm" not in name and "bias" not in name]
    assert all(same) is DESIGNS[key].pretrained
    assert any(same) is DESIGNS[key].pretrained
    moved = gradients(made, rows)
    learned = [moved[name] for name in moved if name.startswith("encoder.transformer")]
    assert any(learned) is not DESIGNS[key].frozen_encoder
    assert all(learned) is not DESIGNS[key].frozen_encoder
    assert not any(moved[name] for name in moved if name.startswith("teacher."))
    assert moved["tokens.weight"], "a prompt learns whatever is frozen"
    assert moved["tokens.unknown"]


def test_a_choice_of_codes_learns_equation_4_against_the_frozen_teacher(rows: Examples) -> None:
    for key in ("quantformer_paper", "quantformer_prompt"):
        made = network(key, 64)
        valid = torch.arange(len(rows)) % 3 > 0
        with torch.no_grad():
            codes = made.teacher.codes(rows.trace[valid], patch_frames=16)
            expected = functional.cross_entropy(made._answers(rows.select(valid)).transpose(1, 2), codes)
            assert codes.shape == (int(valid.sum()), 10), "all ten patches"
            torch.testing.assert_close(made.loss(rows, valid), expected)
            wrong = replace(rows, trace=torch.where(valid[:, None], rows.trace, 99.0))
            torch.testing.assert_close(made.loss(wrong, valid), expected)


@pytest.mark.parametrize("key", ["ablation_baseline", "ablation_tokens", "ablation_autoencoder"])
def test_latents_and_frames_learn_by_mean_squared_error(key: str, rows: Examples) -> None:
    made = network(key, 64)
    valid = torch.arange(len(rows)) % 3 > 0
    with torch.no_grad():
        expected = (made(rows)[valid] - rows.trace[valid, 96:]).square().mean()
        torch.testing.assert_close(made.loss(rows, valid), expected)


def test_codes_are_decoded_by_their_chances(rows: Examples) -> None:
    """Sure of one code in each patch, the forecast is what the decoder makes of those codes."""
    made = network("quantformer_paper", 64)
    chosen = torch.arange(10) % CONFIG.codes
    answers = functional.one_hot(chosen, CONFIG.codes).float().mul(1e4).expand(3, -1, -1)
    with torch.no_grad():
        expected = made.teacher.decode(made.teacher.codebook.codebook[chosen].expand(3, -1, -1))[:, 96:]
        torch.testing.assert_close(made._decoded(answers), expected)


def test_latents_go_to_the_frozen_decoder_and_frames_are_the_answer(rows: Examples) -> None:
    with torch.no_grad():
        latents = network("ablation_autoencoder", 64)
        answers = latents._answers(rows)
        assert answers.shape == (len(rows), 10, CONFIG.d)
        torch.testing.assert_close(latents(rows), latents.teacher.decode(answers)[:, 96:])
        frames = network("ablation_tokens", 64)
        torch.testing.assert_close(frames(rows), frames._answers(rows)[:, 6:].reshape(len(rows), 64))


def test_a_network_goes_to_another_device_without_what_it_began_from() -> None:
    began = pretrained("quantformer_paper")
    made = paper_design("quantformer_paper", title="", pretrained=began).make(network_config(64, layers=1)).to("meta")
    assert {value.device.type for value in made.state_dict().values()} == {"meta"}
    assert {value.device.type for value in began.autoencoder.state_dict().values()} == {"cpu"}


def silent(progress: Progress) -> None:
    """Show nothing."""


@pytest.mark.parametrize("key", list(DESIGNS))
def test_training_leaves_the_frozen_as_it_was_and_predicts_in_df_over_f(key: str) -> None:
    source, spec = RandomSource(random_rows(40)), paper_design(key, title=key, pretrained=pretrained(key))
    budget = Budget(epochs=2, rows_per_epoch=200, batch=32)
    for task in ("activation", "forecast"):
        made = train_network(
            spec, task=task, train=source, validation=source, config=network_config(layers=1), budget=budget, seed=0,
            signal_scale=SCALE, report=silent,
        )  # fmt: skip
        trained = made.network.eval()
        assert isinstance(trained, PaperNetwork)
        fresh = pretrained(key).autoencoder.state_dict() if key != "ablation_autoencoder" else {}
        for name, value in trained.teacher.state_dict().items():
            assert name not in fresh or torch.equal(value, fresh[name]), f"the teacher moved: {name}"
        both = zip(trained.encoder.parameters(), trained.teacher.encoder.parameters(), strict=True)
        still = [torch.equal(ours, theirs) for ours, theirs in both]
        assert all(still) is DESIGNS[key].frozen_encoder
        assert bool(trained.tokens.offset.any()) is DESIGNS[key].neuron_tokens
    with torch.no_grad():
        answers = trained(source.at_lead(0)).numpy()
    found = made.predict(source)
    np.testing.assert_allclose(found, answers * np.float32(SCALE), rtol=1e-4, atol=1e-5)
