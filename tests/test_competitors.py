"""Tests of training competitors: what the loss sees, what is predicted, and that there is something to gain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_rows import NEURONS, RandomSource, network_config, random_rows
from small_model import tiny_training
from torch import Tensor, nn

from quantformer.activation_metrics import log_loss
from quantformer.errors import DataError, UsageError
from quantformer_training import competitors
from quantformer_training.calibrate import LEADS, fit_calibration
from quantformer_training.competitors import Budget, Task, TrainedCompetitor, train_network
from quantformer_training.examples import Examples
from quantformer_training.loop import Progress
from quantformer_training.networks import NETWORKS, CompetitorNetwork, NetworkConfig, NetworkSpec

torch.set_num_threads(1)

SCALE = 0.2
TINY = Budget(epochs=6, rows_per_epoch=600, batch=50, learning_rates=(5e-3,))


class MeanSeries(nn.Module):
    """A series network of one weight a frame, which sees its neighbours where it is multivariate."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.series_frames, config.outputs)
        self.among = nn.Parameter(torch.zeros(()))

    def forward(self, series: Tensor, valid: Tensor | None = None) -> Tensor:
        made: Tensor = self.linear(series)
        return made if valid is None else made + self.among * made.mean(1, keepdim=True)


def spec_of(*, multivariate: bool = False) -> NetworkSpec:
    return NetworkSpec(
        title="Linear",
        source="own",
        make=lambda config: CompetitorNetwork(config, MeanSeries(config), multivariate=multivariate),
        multivariate=multivariate,
    )


def source(trials: int, *, seed: int, invalid: float = 0.0) -> RandomSource:
    rows = random_rows(trials, seed=seed)
    return RandomSource(rows, torch.from_numpy(np.random.default_rng(seed).random(len(rows)) >= invalid))


def trained(
    spec: NetworkSpec, task: Task = "activation", *, budget: Budget = TINY, seed: int = 0, **given: Any
) -> TrainedCompetitor:
    sources = {"train": source(150, seed=1, invalid=0.1), "validation": source(60, seed=2, invalid=0.1)}
    arguments: dict[str, Any] = {"config": network_config(), "report": lambda _: None, **sources, **given}
    return train_network(spec, task=task, budget=budget, seed=seed, signal_scale=SCALE, **arguments)


def rate_loss(train: RandomSource, asked: RandomSource) -> float:
    rate = float(train.rows.active[train.valid].float().mean())
    active = asked.rows.active[asked.valid].numpy()
    return log_loss(np.full(len(active), rate), active)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_tiny_budget_improves_on_the_rate_and_on_the_mean(name: str) -> None:
    train, test = source(80, seed=1, invalid=0.1), source(60, seed=3, invalid=0.1)
    active, response = test.rows.active[test.valid].numpy(), test.rows.response[test.valid].numpy()
    given: dict[str, Any] = {"train": train, "validation": source(30, seed=2, invalid=0.1), "config": network_config(layers=1)}
    budget = replace(TINY, epochs=4, learning_rates=(1e-2,))
    made = trained(NETWORKS[name], budget=budget, **given)
    predicted = made.predict(test)
    assert predicted.shape == (len(test),)
    losses = log_loss(predicted.astype(np.float64), active), rate_loss(train, test)
    forecast = trained(NETWORKS[name], "forecast", budget=budget, **given).predict(test)
    assert forecast.shape == (len(test), 64)
    assert forecast.dtype == np.float32
    errors = np.square(forecast - response).mean(), np.square(response - response.mean(0)).mean()
    assert losses[0] < 0.8 * losses[1]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("name", ["brainlm", "tsmixer"])
def test_repeats_to_the_bit_and_depends_on_the_seed(name: str) -> None:
    budget = replace(TINY, epochs=2, rows_per_epoch=200)
    one, again, other = (trained(NETWORKS[name], budget=budget, seed=seed) for seed in (0, 0, 1))
    asked = source(10, seed=3)
    assert np.array_equal(one.predict(asked), again.predict(asked))
    assert not np.array_equal(one.predict(asked), other.predict(asked))
    assert one.result == again.result
    assert one.calibration == again.calibration


def test_the_loss_of_an_epoch_is_that_of_valid_rows_alone() -> None:
    # Rows that are not valid hold whatever they like here; a loss or a validation that read them would differ.
    train, validation = source(40, seed=1, invalid=0.3), source(20, seed=2, invalid=0.3)
    budget = replace(TINY, epochs=2, rows_per_epoch=10**6)

    def report(progress: Progress) -> None:
        seen.append((progress.loss, progress.validation))

    results = []
    for garbage in (0.0, 9.0):
        seen: list[tuple[float, float]] = []
        parts = []
        for one in (train, validation):
            wrong = (~one.valid)[:, None].float() * garbage
            made = RandomSource(one.rows, torch.ones_like(one.valid))
            made.valid = one.valid
            made.rows = replace(made.rows, trace=made.rows.trace + wrong, active=made.rows.active ^ (wrong[:, 0] > 0))
            parts.append(made)
        tasks: tuple[Task, ...] = ("activation", "forecast")
        for task in tasks:
            given: dict[str, Any] = {"train": parts[0], "validation": parts[1], "report": report}
            trained(spec_of(multivariate=True), task, budget=budget, **given)
        results.append(seen)
    assert results[0] == results[1]
    assert len(results[0]) == 4


def test_validation_is_the_mean_over_valid_rows_at_both_leads() -> None:
    validation = source(30, seed=2, invalid=0.3)
    seen = []
    made = trained(
        spec_of(multivariate=True), "forecast", budget=replace(TINY, epochs=1), validation=validation,
        report=lambda progress: seen.append(progress.validation),
    )  # fmt: skip
    target = validation.rows.trace[validation.valid, 96:].numpy()
    errors = [np.square(made.predict(validation, lead=lead) / SCALE - target).mean() for lead in (0, 5)]
    assert seen == [pytest.approx(np.mean(errors), rel=1e-5)]
    assert errors[0] != errors[1]


def test_validation_reads_as_many_rows_as_the_budget_says() -> None:
    asked = []

    class Watched(RandomSource):
        def at_lead(self, lead: int, *, most: int | None = None) -> Examples:
            rows = super().at_lead(lead, most=most)
            asked.append((lead, len(rows)))
            return rows

    trained(
        spec_of(), budget=replace(TINY, epochs=1, validation_rows=70), validation=Watched(random_rows(60, seed=2))
    )
    assert asked == [(lead, 70) for lead in (0, 5, *LEADS)]


@pytest.mark.parametrize("multivariate", [False, True])
def test_answers_come_in_the_order_of_batches(multivariate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(competitors, "_ASKED_ROWS", 17)
    made, asked = trained(spec_of(multivariate=multivariate)), source(20, seed=5, invalid=0.4)
    assert made.calibration is not None
    with torch.no_grad():
        logit = made.network(asked.rows, asked.valid)[asked.valid].numpy()
    expected = 1 / (1 + np.exp(-(logit / made.calibration.temperature + made.calibration.bias)))
    np.testing.assert_allclose(made.predict(asked), expected, rtol=1e-5)
    assert len(made.predict(RandomSource(asked.rows, torch.zeros_like(asked.valid)))) == 0


def test_calibration_is_quantformer_s_on_every_lead_of_validation() -> None:
    validation = source(60, seed=2, invalid=0.1)
    made = trained(spec_of(), validation=validation)
    bare = replace(made, calibration=None, signal_scale=1.0)
    logit = np.concatenate([bare.predict(validation, lead=lead) for lead in LEADS]).astype(np.float32)
    active = np.tile(validation.rows.active[validation.valid].numpy(), len(LEADS))
    trials = len(np.unique(validation.rows.moment[validation.valid].numpy()))
    assert made.calibration == fit_calibration(logit, active, trials=trials)
    assert trained(spec_of(), "forecast").calibration is None


def test_a_denied_stimulus_is_not_seen() -> None:
    made, asked = trained(spec_of()), source(20, seed=5)
    other = RandomSource(
        replace(asked.rows, stimulus=1 - asked.rows.stimulus.clamp_min(0), features=asked.rows.features + 1.0)
    )
    assert np.array_equal(made.predict(asked, denied=True), made.predict(other, denied=True))
    assert not np.array_equal(made.predict(asked), made.predict(other))


def test_every_learning_rate_is_tried_and_validation_chooses() -> None:
    rates = (1e-6, 1e-2, 1e-5)
    stages = set()
    made = trained(
        spec_of(), budget=replace(TINY, learning_rates=rates), report=lambda progress: stages.add(progress.stage)
    )
    assert tuple(made.tried) == rates
    assert made.learning_rate == 1e-2
    assert made.result.best_validation == made.tried[1e-2] == min(made.tried.values())
    assert stages == {"Linear activation at 1e-06", "Linear activation at 0.01", "Linear activation at 1e-05"}


def test_pseudo_onsets_are_drawn_beside_real_ones() -> None:
    seen: list[Examples] = []

    class Watched(RandomSource):
        def draw(self, count: int, rng: np.random.Generator) -> Examples:
            rows = super().draw(count, rng)
            seen.append(rows)
            return rows

    train, pseudo = Watched(random_rows(100, seed=1)), Watched(random_rows(200, seed=2))
    trained(spec_of(), budget=replace(TINY, epochs=1, rows_per_epoch=300), train=train, pseudo=pseudo)
    assert [len(rows) for rows in seen] == [100, 200]
    seen.clear()
    nothing = RandomSource(random_rows(1), torch.zeros(NEURONS, dtype=torch.bool))
    trained(spec_of(), budget=replace(TINY, epochs=1, rows_per_epoch=300), train=train, pseudo=nothing)
    assert [len(rows) for rows in seen] == [300]


@pytest.mark.parametrize("name", ["brainlm", "tsmixer"])
def test_moments_come_first_without_their_stimulus(name: str) -> None:
    seen: list[Progress] = []
    budget = replace(TINY, epochs=2, rows_per_epoch=200, moment_epochs=3, moment_rows=150)
    train, moments = source(150, seed=1), source(200, seed=4)
    before = trained(NETWORKS[name], budget=replace(budget, moment_epochs=0), train=train, moments=moments)
    made = trained(NETWORKS[name], budget=budget, train=train, moments=moments, report=seen.append)
    title = NETWORKS[name].title
    first = [f"{title} activation pre-training"] * 2 if name == "brainlm" else []
    assert [one.stage for one in seen] == [*first, *[f"{title} activation at moments"] * 3, *[f"{title} activation"] * 2]
    asked = source(10, seed=3)
    assert not np.array_equal(made.predict(asked), before.predict(asked))
    # Told other stimuli at these moments it would learn the same: they are withheld.
    other = RandomSource(replace(moments.rows, features=moments.rows.features + 1.0), moments.valid)
    again = trained(NETWORKS[name], budget=budget, train=train, moments=other)
    assert np.array_equal(made.predict(asked), again.predict(asked))


@pytest.mark.parametrize("multivariate", [False, True])
def test_ids_and_stimuli_are_withheld_from_a_tenth_and_trials_stay_whole(
    multivariate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Examples, Tensor]] = []

    class Watching(CompetitorNetwork):
        def forward(self, rows: Examples, valid: Tensor | None = None) -> Tensor:
            assert valid is not None
            if self.training:
                seen.append((rows, valid))
            return super().forward(rows, valid)

    spec = replace(
        spec_of(multivariate=multivariate),
        make=lambda config: Watching(config, MeanSeries(config), multivariate=multivariate),
    )
    train = source(600, seed=1, invalid=0.1)
    trained(spec, budget=replace(TINY, epochs=1, rows_per_epoch=10**6), train=train)
    rows = Examples.joined([rows for rows, _ in seen])
    valid = torch.cat([valid for _, valid in seen])
    assert int(valid.sum()) == len(train)
    if multivariate:
        trials = rows.moment.reshape(-1, NEURONS)
        assert bool((trials == trials[:, :1]).all())
        assert sorted(trials[:, 0].tolist()) == list(range(600))
        assert len(seen) == 60
    denied = (rows.features == 0).all(1)
    assert float(denied.float().mean()) == pytest.approx(0.1, abs=0.03)
    known = train.rows.neuron[train.valid]
    without = float((rows.neuron[valid] < 0).float().mean()) - float((known < 0).float().mean())
    assert without == pytest.approx(0.08, abs=0.02)
    if multivariate:
        # A trial loses its stimulus as a whole: another neuron's row would tell it.
        assert bool((denied.reshape(-1, NEURONS) == denied.reshape(-1, NEURONS)[:, :1]).all())


def test_brainlm_is_pre_trained_first_on_whole_trials() -> None:
    seen: list[Progress] = []
    trained(NETWORKS["brainlm"], "forecast", report=seen.append)
    stages = [progress.stage for progress in seen]
    first = [progress for progress in seen if progress.stage == "BrainLM-style forecast pre-training"]
    assert stages[: len(first)] == ["BrainLM-style forecast pre-training"] * len(first)
    assert set(stages[len(first) :]) == {"BrainLM-style forecast"}
    # Hidden patches of these traces can be told in part: one end of a baseline goes on into the response.
    assert first[-1].best < first[0].validation


class Stopped(Exception):
    """An interruption."""


def test_a_run_that_was_cut_resumes_to_the_same_weights(tmp_path: Path) -> None:
    def cut(progress: Progress) -> None:
        if progress.epoch == 1 and progress.stage == "BrainLM-style activation at 0.005":
            raise Stopped

    budget = replace(TINY, epochs=4, rows_per_epoch=200, learning_rates=(5e-3, 1e-4))
    with pytest.raises(Stopped):
        trained(NETWORKS["brainlm"], budget=budget, checkpoints=tmp_path, report=cut)
    resumed = trained(NETWORKS["brainlm"], budget=budget, checkpoints=tmp_path)
    whole = trained(NETWORKS["brainlm"], budget=budget)
    asked = source(10, seed=3)
    assert np.array_equal(resumed.predict(asked), whole.predict(asked))
    assert resumed.tried == whole.tried
    assert len(list(tmp_path.iterdir())) == 4
    with pytest.raises(DataError, match="another configuration or data"):
        trained(NETWORKS["brainlm"], budget=budget, checkpoints=tmp_path, fingerprint="other data")


def test_neurons_of_another_recording_are_refused() -> None:
    class Others(RandomSource):
        neurons = 7

    others = Others(random_rows(7))
    with pytest.raises(DataError, match="Linear mixes the neurons of one recording: trials have 7, the configuration 5"):
        trained(spec_of(multivariate=True), train=others)
    made = trained(spec_of(multivariate=True))
    with pytest.raises(DataError, match="mixes 5 neurons, the trials asked about have 7"):
        made.predict(others)


def test_nothing_to_learn_from_is_refused() -> None:
    nothing = RandomSource(random_rows(2), torch.zeros(2 * NEURONS, dtype=torch.bool))
    with pytest.raises(DataError, match="Linear: 0 neuron-trials to train on"):
        trained(spec_of(), train=nothing)
    with pytest.raises(DataError, match="0 of validation"):
        trained(spec_of(), validation=nothing)
    # A norm over trials cannot be had of one trial.
    with pytest.raises(DataError, match="not one batch"):
        trained(NETWORKS["tsmixer"], train=RandomSource(random_rows(1)))


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch": 0}, {"learning_rates": ()}, {"learning_rates": (0.1, -1.0)}, {"validation_rows": 0}]
)
def test_budgets_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected counts of at least 1"):
        replace(TINY, **wrong)


@pytest.mark.parametrize("wrong", [{"moment_epochs": -1}, {"moment_rows": 0}])
def test_moments_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    for config in (TINY, tiny_training()):
        with pytest.raises(UsageError, match="expected 0 or more epochs, of at least 1 neuron-trial"):
            replace(config, **wrong)


def test_budgets_of_the_presets() -> None:
    assert len(Budget.small().learning_rates) == 1
    assert Budget.paper().epochs == 100
    assert len(Budget.paper().learning_rates) == 2


def test_the_source_of_these_tests_keeps_its_word() -> None:
    # What the trainer relies on: valid rows of trial_batches come in the order of batches.
    made = source(9, seed=4, invalid=0.3)

    def joined(parts: Iterator[Examples]) -> Examples:
        return Examples.joined(list(parts))

    wholes = joined(rows.select(valid) for rows, valid in made.trial_batches(lead=3, size=11))
    one = joined(made.batches(lead=3, size=7))
    assert all(torch.equal(value, getattr(one, name)) for name, value in vars(wholes).items())
