"""Tests of fine-tuning: a teacher that stays, ids and stimuli withheld, resume, and no skill where there is none."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import SCALE, Sources, sources_of, tiny_model, tiny_pretrained, tiny_training
from small_recording import small_recording
from torch import Tensor

from quantformer.activation_metrics import auroc, auroc_within
from quantformer.config import F0_LEVELS, TUNING_RATES
from quantformer.errors import DataError
from quantformer.forecaster import ACTIVATION, FORECAST, Forecaster
from quantformer.tokens import UNKNOWN, TaskTokens
from quantformer_training import finetune as module
from quantformer_training.examples import Examples, ExampleSource
from quantformer_training.finetune import FinetuneConfig, TrainedModel, finetune, mean_loss
from quantformer_training.loop import LoopResult, Progress, Report
from quantformer_training.pretrain import Pretrained


class Stopped(Exception):
    """An interruption."""


@pytest.fixture(scope="module")
def sources() -> Sources:
    return sources_of()


def trained(
    sources: Sources,
    config: FinetuneConfig | None = None,
    *,
    checkpoints: Path | None = None,
    stop: tuple[str, int] | None = None,
    pretrained: Pretrained | None = None,
    report: Report | None = None,
) -> TrainedModel:
    def stopping(progress: Progress) -> None:
        if stop == (progress.stage, progress.epoch):
            raise Stopped

    return finetune(
        pretrained or tiny_pretrained(),
        vocabulary=sources.vocabulary,
        real=sources.real,
        pseudo=sources.pseudo,
        moments=sources.moments,
        validation=sources.validation,
        config=config or tiny_training(),
        report=report or stopping,
        checkpoints=checkpoints,
        fingerprint="this recording",
    )


def weights(model: TrainedModel) -> bytes:
    modules = [model.forecaster, *model.tokens]
    return b"".join(value.numpy().tobytes() for part in modules for value in part.state_dict().values())


def test_the_teacher_does_not_move(sources: Sources) -> None:
    # NOTES, pitfall 2: its hash and every weight are what they were, and it never leaves eval mode.
    before = tiny_pretrained().autoencoder
    model = trained(sources)
    teacher = model.forecaster.train().teacher
    assert not any(part.training for part in teacher.modules())
    assert teacher.codebook.digest() == before.codebook.digest()
    for name, value in before.state_dict().items():
        assert torch.equal(value, teacher.state_dict()[name]), name


def test_a_model_goes_to_another_device_without_what_it_began_from(sources: Sources) -> None:
    pretrained = tiny_pretrained()
    model = trained(sources, tiny_training(epochs=1, rows=100), pretrained=pretrained)
    model.to(torch.device("meta"))
    parts = (model.forecaster, *model.tokens)
    assert {value.device.type for part in parts for value in part.state_dict().values()} == {"meta"}
    # Others of the same study begin from it.
    assert {value.device.type for value in pretrained.autoencoder.state_dict().values()} == {"cpu"}


def test_everything_else_learns(sources: Sources) -> None:
    model = trained(sources)
    made = tiny_pretrained()
    for network in (model.forecaster.activation, model.forecaster.response):
        for name, value in made.autoencoder.encoder.named_parameters():
            if "mask_token" in name and network is model.forecaster.activation:
                continue
            assert not torch.equal(value, dict(network.encoder.named_parameters())[name]), name
        assert network.shortcut.linear.weight.any()
    for task in (ACTIVATION, FORECAST):
        for name, value in model.tokens[task].named_parameters():
            assert value.any(), f"{name} of task {task}"
    assert not torch.equal(model.tokens[ACTIVATION].offset, model.tokens[FORECAST].offset)


class Spy:
    """Keeps the rows that training, not validation, asked about."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[Examples] = []
        self.ask = module.ask_activation
        monkeypatch.setattr(module, "ask_activation", self)

    def __call__(self, model: Forecaster, tokens: TaskTokens, rows: Examples) -> Tensor:
        if model.activation.training and torch.is_grad_enabled():
            self.rows.append(rows)
        return self.ask(model, tokens, rows)


def test_ids_and_stimuli_are_withheld_from_a_tenth_each(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    trained(sources, dataclasses.replace(tiny_training(epochs=5, rows=2000), batch=512))
    rows = Examples.joined(spy.rows)
    unknown, denied = rows.neuron == UNKNOWN, (rows.features == 0).all(1)
    # About 800 rows: four standard errors are 0.04.
    assert len(rows) > 500
    assert float(unknown.float().mean()) == pytest.approx(0.1, abs=0.045)
    assert float(denied.float().mean()) == pytest.approx(0.1, abs=0.045)
    assert (rows.stimulus[denied] == UNKNOWN).all()
    # What is left of the tuning is the neuron's rate whatever the stimulus, of the mean neuron where the id is withheld too.
    overall = torch.where(unknown, rows.population_tuning[:, 0], rows.tuning[:, 0])
    assert torch.equal(rows.tuning[denied, 0], overall[denied])
    assert torch.equal(rows.tuning[denied, 1], overall[denied])
    assert overall[denied].any()
    assert not rows.tuning[denied, TUNING_RATES:].any()
    # An unknown neuron is told what the mean neuron does, and never what its own row would.
    at = unknown & ~denied
    assert at.sum() > 20
    assert torch.equal(rows.tuning[at], rows.population_tuning[at])
    assert not rows.level[unknown, :F0_LEVELS].any()
    assert rows.level[~unknown].all()
    assert rows.level[unknown, F0_LEVELS:].all(), "where the population stands is known whoever is asked about"
    plain = ~unknown & ~denied
    assert not torch.isclose(rows.tuning[plain], rows.population_tuning[plain]).all(1).any()


def test_real_and_pseudo_onsets_are_mixed_as_asked(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    trained(sources, dataclasses.replace(tiny_training(epochs=1, rows=90), drop_stimulus=0.0, pseudo_per_real=2.0))
    rows = Examples.joined(spy.rows)
    real = rows.stimulus != UNKNOWN
    # 90 rows of 3 neurons are 10 real moments and 20 pseudo-onsets.
    assert (int(real.sum()), int((~real).sum())) == (30, 60)


def at_moments(config: FinetuneConfig, *, epochs: int = 2, rows: int = 300) -> FinetuneConfig:
    return dataclasses.replace(config, moment_epochs=epochs, moment_rows=rows)


def test_moments_are_learned_from_first_without_their_stimulus(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy, stages = Spy(monkeypatch), list[tuple[str, int]]()

    def report(progress: Progress) -> None:
        stages.append((progress.stage, sum(map(len, spy.rows))))

    trained(sources, at_moments(tiny_training(epochs=1)), report=report)
    assert [name for name, _ in stages] == [
        "activation at moments", "activation at moments", "activation",
        "forecast at moments", "forecast at moments", "forecast",
    ]  # fmt: skip
    rows = Examples.joined(spy.rows)
    first = rows.select(torch.arange(stages[1][1]))
    assert len(first) == 2 * 300
    assert (first.stimulus == UNKNOWN).all()
    assert not first.features.any()
    assert torch.equal(first.tuning[:, 0], first.tuning[:, 1])
    assert not first.tuning[:, TUNING_RATES:].any()
    assert float((first.neuron == UNKNOWN).float().mean()) == pytest.approx(0.1, abs=0.05)
    # Nothing is missing before the moment; before onsets the last frames are, in six rows of ten, and then they are all alike.
    assert (first.baseline[:, -1] != first.baseline[:, -2]).all()
    after = rows.select(torch.arange(stages[1][1], stages[2][1]))
    assert 0.4 < float((after.baseline[:, -1] == after.baseline[:, -2]).float().mean()) < 0.8
    assert float((after.stimulus != UNKNOWN).float().mean()) > 0.2


def test_what_moments_teach_is_where_the_onsets_begin(sources: Sources) -> None:
    # With no step at onsets (a learning rate of nothing) what was learned at moments is what is left.
    still = tiny_training(epochs=1)
    still = dataclasses.replace(still, activation=dataclasses.replace(still.activation, stop_after=0))
    plain, taught = trained(sources, still), trained(sources, at_moments(still))
    rows = sources.test.at_lead(0)
    assert not np.array_equal(plain.predict(rows).logit, taught.predict(rows).logit)
    # Where there is no moment, or no epoch for them, nothing is learned before.
    trials = sources.moments.trials
    nowhere = dataclasses.replace(trials, valid=np.zeros_like(trials.valid))
    known = sources.moments.tuning, sources.moments.population_tuning
    nothing = ExampleSource(
        sources.reader, nowhere, vocabulary=sources.vocabulary, signal_scale=SCALE, tuning=known, withheld=False
    )
    without = trained(dataclasses.replace(sources, moments=nothing), at_moments(still))
    np.testing.assert_array_equal(plain.predict(rows).logit, without.predict(rows).logit)


@pytest.mark.parametrize(
    "stop", [("activation at moments", 0), ("activation at moments", 1), ("forecast at moments", 0)]
)
def test_moments_that_were_interrupted_resume_to_the_same_bits(
    sources: Sources, tmp_path: Path, stop: tuple[str, int]
) -> None:
    config = at_moments(tiny_training(epochs=2))
    with pytest.raises(Stopped):
        trained(sources, config, checkpoints=tmp_path, stop=stop)
    resumed, whole = trained(sources, config, checkpoints=tmp_path), trained(sources, config)
    assert weights(resumed) == weights(whole)
    assert weights(trained(sources, config, checkpoints=tmp_path)) == weights(whole), "all of it was there already"


def test_where_every_id_is_withheld_only_the_unknown_vector_learns(sources: Sources) -> None:
    model = trained(sources, dataclasses.replace(tiny_training(), drop_ids=1.0))
    for task in model.tokens:
        assert not task.offset.any()
        assert task.unknown.abs().max() > 0.01
    kept = trained(sources, dataclasses.replace(tiny_training(), drop_ids=0.0))
    assert all(task.offset.any() for task in kept.tokens)


def test_a_denied_stimulus_is_not_read(sources: Sources) -> None:
    model = tiny_model(sources.vocabulary)
    rows = sources.test.at_lead(0)
    other = dataclasses.replace(
        rows,
        features=rows.features + 1.0,
        stimulus=(rows.stimulus + 1) % 4,
        tuning=torch.cat([rows.tuning[:, :1], rows.tuning[:, 1:] + 1.0], dim=1),
        population_tuning=rows.population_tuning + 1.0,
    )
    np.testing.assert_array_equal(model.predict(rows, denied=True).logit, model.predict(other, denied=True).logit)
    np.testing.assert_array_equal(model.predict(rows, denied=True).response, model.predict(other, denied=True).response)
    assert not np.array_equal(model.predict(rows).logit, model.predict(other).logit)
    assert not np.array_equal(model.predict(rows).logit, model.predict(rows, denied=True).logit)


def test_an_unknown_neuron_is_not_the_last_row(sources: Sources) -> None:
    model = tiny_model(sources.vocabulary)
    rows = sources.test.at_lead(0)
    asked = {
        name: model.predict(dataclasses.replace(rows, neuron=torch.full_like(rows.neuron, row))).logit
        for name, row in {"unknown": UNKNOWN, "first": 0, "last": 2}.items()
    }
    assert not np.allclose(asked["unknown"], asked["first"])
    assert not np.allclose(asked["unknown"], asked["last"])


def test_rows_are_predicted_in_order_and_in_eval_mode(sources: Sources) -> None:
    model = tiny_model(sources.vocabulary)
    model.forecaster.train()
    rows = sources.test.at_lead(0)
    many = Examples.joined([rows] * 80)
    assert len(many) > 2048
    whole, once = model.predict(many), model.predict(rows)
    np.testing.assert_allclose(whole.logit, np.tile(once.logit, 80), atol=1e-5)
    np.testing.assert_allclose(whole.response[-len(rows) :], once.response, atol=1e-5)


def test_no_rows_have_no_answers(sources: Sources) -> None:
    made = tiny_model(sources.vocabulary).predict(sources.test.at_lead(0).select(torch.arange(0)))
    assert (made.logit.shape, made.response.shape, made.spread.shape) == ((0,), (0, 64), (0,))


def test_a_mean_loss_is_over_rows_whatever_the_pieces(sources: Sources) -> None:
    rows = Examples.joined([sources.test.at_lead(0)] * 200)
    assert len(rows) > 4096
    rows = dataclasses.replace(rows, tuning=torch.arange(float(len(rows)))[:, None])
    assert mean_loss(lambda some: some.tuning.mean(), rows) == pytest.approx((len(rows) - 1) / 2, rel=1e-6)


@pytest.mark.parametrize("stop", [("activation", 0), ("forecast", 1)])
def test_an_interrupted_run_resumes_to_the_same_bits(sources: Sources, tmp_path: Path, stop: tuple[str, int]) -> None:
    config = tiny_training(epochs=3)
    with pytest.raises(Stopped):
        trained(sources, config, checkpoints=tmp_path, stop=stop)
    resumed, whole = trained(sources, config, checkpoints=tmp_path), trained(sources, config)
    assert weights(resumed) == weights(whole)
    assert [r.best_epoch for r in resumed.results] == [r.best_epoch for r in whole.results]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["activation.pt", "forecast.pt"]


def test_a_checkpoint_of_another_training_is_refused(sources: Sources, tmp_path: Path) -> None:
    trained(sources, tiny_training(epochs=1), checkpoints=tmp_path)
    with pytest.raises(DataError, match="another configuration"):
        trained(sources, tiny_training(epochs=1, seed=1), checkpoints=tmp_path)


def test_a_last_fit_runs_to_where_validation_chose() -> None:
    results = [LoopResult(best_epoch=epoch, best_validation=1.0, epochs_run=9) for epoch in (3, 0)]
    stopped = tiny_training(epochs=10).stopped(*results)
    assert (stopped.activation.stop_after, stopped.forecast.stop_after) == (4, 1)
    assert stopped.activation.epochs == 10


def test_a_recording_without_pseudo_onsets_can_be_learned_from() -> None:
    # Short stimuli one after the other, as static gratings are.
    crowded = sources_of(small_recording(trials=160, period_s=0.5, start_s=0.0), train_trials=120)
    assert len(crowded.pseudo.trials.moments) == 0
    model = trained(crowded, tiny_training(epochs=1))
    assert np.isfinite(model.predict(crowded.test.at_lead(0)).logit).all()


@pytest.mark.parametrize("permute", [None, 1])
def test_skill_within_neuron_and_stimulus_is_there_and_is_gone_when_labels_are_permuted(permute: int | None) -> None:
    """NOTES, split: labels permuted within neuron x stimulus leave nothing that a baseline could tell."""
    recording = small_recording(neurons=6, trials=150, telltale=True, seed=3)
    sources = sources_of(recording, train_trials=100, permute=permute)
    model = trained(sources, tiny_training(epochs=6, rows=1200))
    rows = sources.test.at_lead(0)
    logit, active = model.predict(rows).logit, rows.active.numpy()
    pair = rows.neuron.numpy() * 10 + rows.stimulus.numpy()
    found = auroc_within(logit, active, groups=pair)
    # Null distribution by exchanging labels within pairs, which is what the control claims.
    rng = np.random.default_rng(0)
    null = []
    for _ in range(200):
        mixed = active.copy()
        for group in np.unique(pair):
            at = np.flatnonzero(pair == group)
            mixed[at] = active[rng.permutation(at)]
        null.append(auroc_within(logit, mixed, groups=pair).mean)
    assert np.std(null) < 0.05, "too few rows to tell"
    if permute is None:
        assert found.mean > 0.5 + 5 * np.std(null)
        assert auroc(logit, active) > 0.7
    else:
        assert abs(found.mean - 0.5) < 3 * np.std(null)
