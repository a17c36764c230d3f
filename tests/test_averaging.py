"""Tests of averaged weights: the mean that they are, that training goes on without them, and what the loop keeps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_recording import GRATING
from tiny_study import TINY, tiny_cohort
from torch import Tensor, nn

from quantformer_training import competitors, finetune, joint, pretrain
from quantformer_training.averaging import LARGEST_DECAY, AveragedWeights
from quantformer_training.contest import contest
from quantformer_training.loop import LoopConfig, LoopResult, run_loop
from quantformer_training.pretrain_cohort import pretrain_cohort


def test_each_step_moves_the_mean_by_what_its_number_says() -> None:
    weight = nn.Parameter(torch.tensor([8.0, -2.0]))
    average = AveragedWeights([weight])
    expected = weight.detach().clone()
    for step in range(1, 1201):
        with torch.no_grad():
            weight.copy_(torch.tensor([float(step % 7), 1.0 / step]))
        average.add()
        decay = min(0.99, (1 + step) / (10 + step))
        expected = decay * expected + (1.0 - decay) * weight.detach()
        torch.testing.assert_close(average.mean[0], expected)
    assert average.steps == 1200
    assert LARGEST_DECAY < 1201 / 1210, "both kinds of steps were taken"


def test_a_mean_goes_on_where_it_was() -> None:
    values = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))

    def over(average: AveragedWeights, rows: Tensor) -> AveragedWeights:
        for row in rows:
            with torch.no_grad():
                average.weights[0].copy_(row)
            average.add()
        return average

    whole = over(AveragedWeights([nn.Parameter(torch.zeros(3))]), values)
    half = over(AveragedWeights([nn.Parameter(torch.zeros(3))]), values[:17])
    kept = [mean.clone() for mean in half.mean]
    rest = over(AveragedWeights([nn.Parameter(torch.ones(3))], mean=half.mean, steps=half.steps), values[17:])
    assert torch.equal(rest.mean[0], whole.mean[0])
    assert torch.equal(half.mean[0], kept[0]), "what it began at is not changed"


def test_a_mean_of_other_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        AveragedWeights([nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))], mean=[torch.zeros(3)])


def test_weights_are_as_they_were_after_the_mean_stood_in_their_place() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    average = AveragedWeights([weight])
    with torch.no_grad():
        weight.fill_(5.0)
    average.add()
    mean = average.mean[0].clone()
    assert not torch.equal(mean, weight.detach())
    with average.in_place():
        assert torch.equal(weight.detach(), mean)
    with pytest.raises(KeyError), average.in_place():
        raise KeyError
    assert weight.item() == 5.0
    assert torch.equal(average.mean[0], mean)
    assert weight.requires_grad


def test_the_loop_validates_and_keeps_the_mean_and_trains_without_it() -> None:
    inputs = torch.randn(48, 4, generator=torch.Generator().manual_seed(2))
    config = LoopConfig(epochs=3, learning_rate=1e-2)

    def run(*, averaged: bool) -> tuple[nn.Linear, list[Tensor], list[Tensor]]:
        torch.manual_seed(0)
        network = nn.Linear(4, 1)
        seen, validated = list[Tensor](), list[Tensor]()

        def losses(epoch: int) -> Iterator[Tensor]:
            for rows in inputs.split(8):
                seen.append(network.weight.detach().clone())
                yield network(rows).square().mean()

        def validate() -> float:
            seen.append(network.weight.detach().clone())
            validated.append(network.weight.detach().clone())
            return -float(len(validated))

        run_loop(
            stage="test", network=network, config=config, losses=losses, validate=validate, report=lambda progress: None,
            averaged=averaged,
        )  # fmt: skip
        return network, seen, validated

    plain, after_each_step, last_weights = run(averaged=False)
    # Of every seven looks at the weights the first six are before a step, the seventh is after the last.
    stepped = [weight for look, weight in enumerate(after_each_step) if look % 7]
    assert torch.equal(plain.weight.detach(), last_weights[-1])
    mean, means = after_each_step[0], list[Tensor]()
    for step, weight in enumerate(stepped, start=1):
        decay = (1 + step) / (10 + step)
        mean = decay * mean + (1.0 - decay) * weight
        if step % 6 == 0:
            means.append(mean)
    network, during, validated = run(averaged=True)
    torch.testing.assert_close(torch.stack(validated), torch.stack(means))
    torch.testing.assert_close(network.weight.detach(), means[-1])
    trained = [weight for look, weight in enumerate(during) if look % 7 != 6]
    assert all(map(torch.equal, trained, (weight for look, weight in enumerate(after_each_step) if look % 7 != 6)))


def test_every_network_of_a_task_is_averaged_and_no_auto_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = dict[str, bool]()

    def watched(**given: Any) -> LoopResult:
        asked[given["stage"]] = given.get("averaged", False)
        return run_loop(**given)

    for module in (pretrain, finetune, joint, competitors):
        monkeypatch.setattr(module, "run_loop", watched)
    cohort = tiny_cohort(tmp_path, mice=1)
    names = tuple(str(tmp_path / session.name) for session in cohort.sessions)
    pretrain_cohort(sessions=names, effort=TINY, out=str(tmp_path / "pretrained"), seed=0)
    entries = contest(
        sessions=names, mouse="m0", category=GRATING, models=("quantformer", "quantformer_joint", "quantformer_paper", "lstm"),
        pretrained=str(tmp_path / "pretrained"), effort=TINY, seed=0,
    )  # fmt: skip
    assert [entry.failure for entry in entries] == [""] * 4
    plain = {stage for stage, averaged in asked.items() if not averaged}
    assert {"activation", "forecast", "both tasks", "LSTM activation", "LSTM forecast"} <= asked.keys() - plain
    assert len(plain) == 1
    assert all("pre-training" in stage for stage in plain)
