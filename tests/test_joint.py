"""Both tasks with one encoder: one pass a prediction, both losses reach it, and it says what its parts say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import SCALE, Sources, sources_of, tiny_forecaster, tiny_pretrained, tiny_training
from small_recording import GRATING, small_recording
from tiny_study import TINY, tiny_cohort

from quantformer.losses import activation_loss
from quantformer.patches import to_patches
from quantformer_training import joint as module
from quantformer_training.contest import contest
from quantformer_training.finetune import response_loss, tokens_of
from quantformer_training.joint import JointModel, finetune_joint
from quantformer_training.loop import Progress
from quantformer_training.pretrain import Pretrained
from quantformer_training.pretrain_cohort import pretrain_cohort


@pytest.fixture(scope="module")
def sources() -> Sources:
    return sources_of()


def untrained(sources: Sources) -> JointModel:
    """Random weights and vectors."""
    model = JointModel(tiny_forecaster(), tokens_of(sources.vocabulary, d=16))
    with torch.no_grad():
        for parameter in model.tokens.parameters():
            parameter.normal_(0.0, 0.3)
    return model.eval()


def trained(
    sources: Sources,
    *,
    epochs: int,
    told: list[Progress] | None = None,
    learning_rate: float | None = None,
    pretrained: Pretrained | None = None,
) -> JointModel:
    config = tiny_training(epochs=epochs, rows=400)
    if learning_rate is not None:
        config = replace(config, forecast=replace(config.forecast, learning_rate=learning_rate))
    return finetune_joint(
        pretrained or tiny_pretrained(),
        vocabulary=sources.vocabulary,
        real=sources.real,
        pseudo=sources.pseudo,
        moments=sources.moments,
        validation=sources.validation,
        config=config,
        report=(lambda progress: None) if told is None else told.append,
    )


@contextmanager
def passes(model: JointModel) -> Iterator[list[int]]:
    """Rows of every pass through a transformer of the model, the teacher's apart."""
    found = list[int]()
    networks = (model.forecaster.activation, model.forecaster.response)
    hooks = [
        transformer.register_forward_hook(lambda _, inputs, __: found.append(len(inputs[0])))
        for transformer in {network.encoder.transformer for network in networks}
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def test_both_tasks_share_their_encoder_and_what_it_is_told(sources: Sources) -> None:
    two, one = tiny_forecaster(), untrained(sources).forecaster
    assert one.response.encoder is one.activation.encoder
    assert one.response.known is one.activation.known
    for mine, theirs in zip(one.response.encoder.parameters(), one.activation.encoder.parameters(), strict=True):
        assert mine is theirs
    assert two.response.encoder is not two.activation.encoder
    shared = sum(p.numel() for part in (one.activation.encoder, one.activation.known) for p in part.parameters())
    assert count(two) - count(one) == shared, "counted once"


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def test_a_prediction_is_one_pass_and_long_ones_are_cut(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = untrained(sources), sources.test.at_lead(0)
    with passes(model) as found:
        whole = model.predict(rows)
        assert found == [len(rows)]
        found.clear()
        monkeypatch.setattr(module, "_ASKED_ROWS", 7)
        cut = model.predict(rows)
        assert sum(found) == len(rows)
        assert max(found) == 7
    for name in ("logit", "response", "spread"):
        np.testing.assert_allclose(getattr(cut, name), getattr(whole, name), atol=1e-5)
    nothing = model.predict(rows.select(torch.arange(0)))
    assert (nothing.logit.shape, nothing.response.shape, nothing.spread.shape) == ((0,), (0, 64), (0,))


def test_a_prediction_is_what_its_parts_say(sources: Sources) -> None:
    model, rows = untrained(sources), sources.test.at_lead(5)
    made, forecaster, tokens = model.predict(rows), model.forecaster, model.tokens
    activation, response = forecaster.activation, forecaster.response
    encoder = activation.encoder
    with torch.no_grad():
        neuron = tokens.unknown + tokens.offset[rows.neuron]
        odds = torch.logit(rows.tuning[:, :2].clamp(0.005, 0.995))
        told = torch.cat([rows.level, odds, rows.tuning], dim=1)
        known = told @ activation.known.weight.T + activation.known.bias
        stimulus = rows.features @ tokens.weight + tokens.stimulus_offset[rows.stimulus] + known
        patches = encoder.embedding(to_patches(rows.baseline, patch_frames=16))
        assert patches.shape[1] == 6
        masks = []
        for patch in range(4):
            bins = rows.tuning[:, 2:].reshape(len(rows), 4, -1)[:, patch]
            masks.append(encoder.mask_token + encoder.embedding.position[6 + patch] + response.bin_tuning(bins))
        sequence = [activation.cls_token.expand(len(rows), -1), neuron, stimulus, *patches.unbind(1), *masks]
        assert len(sequence) == 3 + 6 + 4
        encoded = encoder.transformer(torch.stack(sequence, dim=1))
        logit = activation.head(encoded[:, 0]) + activation.shortcut(rows.baseline, rows.tuning, rows.level)
        codes = response.head(encoded[:, 3:]).softmax(-1) @ forecaster.teacher.codebook.codebook
        correction = response.refine(encoded[:, 3:].flatten(1))
        correction = correction + response.shortcut(rows.baseline, rows.tuning, rows.level)
        trace = (forecaster.teacher.decode(codes)[:, 96:] + correction) * SCALE
    np.testing.assert_allclose(made.logit, logit[:, 0].numpy(), atol=1e-5)
    np.testing.assert_allclose(made.response, trace.numpy(), atol=1e-5)
    assert (made.spread > 0).all()


def test_the_stimulus_can_be_denied_and_counts(sources: Sources) -> None:
    model, rows = untrained(sources), sources.test.at_lead(0)
    told, denied = model.predict(rows), model.predict(rows, denied=True)
    assert not np.allclose(told.logit, denied.logit)
    other = rows.select(torch.arange(len(rows)))
    other.features[:], other.tuning[:, 1:] = torch.randn_like(other.features), torch.randn_like(other.tuning[:, 1:])
    np.testing.assert_array_equal(model.predict(other, denied=True).logit, denied.logit)
    assert not np.allclose(model.predict(other).logit, told.logit)


def test_both_losses_reach_the_encoder_and_neither_the_teacher(sources: Sources) -> None:
    model, rows = untrained(sources), sources.real.at_lead(0, most=20)
    gradients = []
    for task in ("activation", "forecast"):
        model.zero_grad()
        logit, answer = model(rows)
        if task == "activation":
            loss = activation_loss(logit, rows.active)
        else:
            loss = response_loss(model.forecaster, answer, rows, config=tiny_training())
        torch.autograd.backward([loss])
        encoder = dict(model.forecaster.activation.encoder.named_parameters())
        for name, parameter in encoder.items():
            assert parameter.grad is not None, f"{task}: {name}"
            assert parameter.grad.any(), f"{task}: {name}"
        position = encoder["embedding.position"].grad
        assert position is not None
        gradients.append(position)
        assert model.tokens.unknown.grad is not None
        assert model.tokens.unknown.grad.any()
        assert all(parameter.grad is None for parameter in model.forecaster.teacher.parameters())
    assert not torch.allclose(gradients[0], gradients[1])


def test_training_learns_both_tasks_and_leaves_the_teacher(sources: Sources) -> None:
    before = tiny_pretrained().autoencoder
    told = list[Progress]()
    model = trained(sources, epochs=4, told=told)
    assert [(progress.stage, progress.epoch) for progress in told] == [("both tasks", epoch) for epoch in range(4)]
    assert told[-1].loss < told[0].loss
    # Zero when training begins, and reached by one task's loss each.
    assert model.forecaster.activation.head.weight.any()
    assert model.forecaster.response.refine.weight.any()
    teacher = model.forecaster.teacher
    assert teacher.codebook.digest() == before.codebook.digest()
    assert not any(part.training for part in model.modules())
    for name, value in before.encoder.named_parameters():
        assert not torch.equal(value, dict(model.forecaster.activation.encoder.named_parameters())[name]), name
    assert model.forecaster.response.encoder is model.forecaster.activation.encoder


def test_a_model_goes_to_another_device_without_what_it_began_from(sources: Sources) -> None:
    pretrained = tiny_pretrained()
    model = trained(sources, epochs=1, pretrained=pretrained).to("meta")
    assert {value.device.type for value in model.state_dict().values()} == {"meta"}
    assert {value.device.type for value in pretrained.autoencoder.state_dict().values()} == {"cpu"}


def test_each_tasks_validation_counts_one_before_training(sources: Sources) -> None:
    told = list[Progress]()
    trained(sources, epochs=1, told=told, learning_rate=1e-9)
    assert told[0].validation == pytest.approx(2.0, abs=1e-3)


def test_the_same_seed_gives_the_same_model(sources: Sources) -> None:
    rows = sources.test.at_lead(0)
    first, second = (trained(sources, epochs=1).predict(rows) for _ in range(2))
    for name in ("logit", "response", "spread"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_moments_come_first_here_too(sources: Sources) -> None:
    told = list[Progress]()
    config = replace(tiny_training(epochs=2, rows=200), moment_epochs=3, moment_rows=200)
    finetune_joint(
        tiny_pretrained(), vocabulary=sources.vocabulary, real=sources.real, pseudo=sources.pseudo,
        moments=sources.moments, validation=sources.validation, config=config, report=told.append,
    )  # fmt: skip
    assert [one.stage for one in told] == ["both tasks at moments"] * 3 + ["both tasks"] * 2


def test_it_learns_what_the_baseline_tells(sources: Sources) -> None:
    telltale = sources_of(small_recording(trials=60, telltale=True, seed=1), train_trials=45)
    rows = telltale.test.at_lead(0)
    made, active = trained(telltale, epochs=4).predict(rows), rows.active.numpy()
    assert made.logit[active].mean() > made.logit[~active].mean() + 1.0
    response = rows.response.numpy()
    # Not even the test rows' own mean is as good, though the auto-encoder has random weights.
    assert np.square(made.response - response).mean() < 0.9 * np.square(response - response.mean(0)).mean()
    assert made.response[active].mean() > made.response[~active].mean() + 0.02


def test_it_is_a_model_of_the_contest(tmp_path: Path) -> None:
    cohort = tiny_cohort(tmp_path, mice=1)
    names = tuple(str(tmp_path / session.name) for session in cohort.sessions)
    pretrain_cohort(sessions=names, effort=TINY, out=str(tmp_path / "pretrained"), seed=0)
    joint, two = contest(
        sessions=names, mouse="m0", category=GRATING, models=("quantformer_joint", "quantformer"),
        pretrained=str(tmp_path / "pretrained"), effort=TINY, seed=0,
    )  # fmt: skip
    assert (joint.failure, joint.task) == ("", "both")
    for metric in ("log_loss", "mse", "skill_at_lead_5", "skill_at_lead_10", "stimulus_gain"):
        assert np.isfinite(joint.metrics[metric]), metric
    assert joint.metrics["parameters"] < two.metrics["parameters"]
    assert joint.metrics["log_loss"] != two.metrics["log_loss"]
    np.testing.assert_array_equal(joint.arrays["trial"], two.arrays["trial"])
