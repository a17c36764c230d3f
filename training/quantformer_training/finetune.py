"""Downstream training of both tasks, each with its own encoder and vectors (paper section 3.4)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from quantformer.config import F0_LEVELS, TUNING_RATES, ModelConfig
from quantformer.errors import UsageError
from quantformer.forecaster import (
    ACTIVATION,
    ERROR_TERMS,
    FORECAST,
    Forecaster,
    ResponseAnswer,
    baseline_noise,
    error_terms,
)
from quantformer.losses import activation_loss, code_loss, shape_loss
from quantformer.tokens import UNKNOWN, TaskTokens
from quantformer_training.accelerator import Accelerator
from quantformer_training.ahead import drawn_ahead
from quantformer_training.boosted import BoostedTrees
from quantformer_training.device_rows import drawn_on
from quantformer_training.examples import Examples, Vocabulary
from quantformer_training.loop import LoopConfig, LoopResult, Report, in_batches, run_loop
from quantformer_training.pretrain import Pretrained
from quantformer_training.sources import RowSource
from quantformer_training.warm_start import start_rows, start_shortcuts

if TYPE_CHECKING:
    from quantformer_training.distil import Teachers

#: The rows of an epoch, and the order in which they are learned.
Draw = Callable[[int], tuple[Examples, Tensor]]
#: What a network goes through: what is added to the stage's name, how long and fast, and the draw of an epoch.
Stage = tuple[str, LoopConfig, Draw]
#: Leads at which validation chooses, averaged: none, and 5 frames (0.17 s).
VALIDATION_LEADS = (0, 5)


def check_moments(*, epochs: int, rows: int) -> None:
    """Refuse what cannot be learned at moments.

    Raises:
        UsageError: epochs below none, or of no row.
    """
    if epochs < 0 or rows < 1:
        raise UsageError(
            f"moment_epochs = {epochs}, moment_rows = {rows}; expected 0 or more epochs, of at least 1 neuron-trial"
        )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """An epoch reads about ``rows_per_epoch`` neuron-trials, ``pseudo_per_real`` of them at pseudo-onsets for each at a
    real onset; validation reads an even choice of ``validation_rows``. ``moment_epochs`` of about ``moment_rows`` go before, at
    any moments of training, the stimulus withheld and nothing of the baseline: onsets are few, and what a neuron's baseline
    says of its next seconds is in every moment. Ids are withheld from ``drop_ids`` of the rows, which trains the unknown
    vector, and the stimulus from ``drop_stimulus`` of them. Activation is learned from ``boosted_weight`` of what `BoostedTrees`
    say and one minus that of what happened. To the cross-entropy over codes ``decoded_weight`` adds the
    squared error of the decoded response, and ``shape_weight`` one minus its correlation with what happened: most responses
    are small, and squared error alone ignores their shape.
    """

    activation: LoopConfig
    forecast: LoopConfig
    batch: int = 128
    rows_per_epoch: int = 12_000
    validation_rows: int = 40_000
    pseudo_per_real: float = 2.0
    moment_epochs: int = 0
    moment_rows: int = 60_000
    drop_ids: float = 0.1
    drop_stimulus: float = 0.1
    boosted_weight: float = 0.5
    decoded_weight: float = 10.0
    shape_weight: float = 2.0

    def __post_init__(self) -> None:
        check_moments(epochs=self.moment_epochs, rows=self.moment_rows)
        if not 0.0 <= self.boosted_weight <= 1.0:
            raise UsageError(f"boosted_weight = {self.boosted_weight}; expected 0 (trees teach nothing) to 1 (they alone do)")

    def stopped(self, activation: LoopResult, forecast: LoopResult) -> FinetuneConfig:
        """The same training, ended after the epochs that were best in these runs."""
        return replace(
            self,
            activation=replace(self.activation, stop_after=activation.best_epoch + 1),
            forecast=replace(self.forecast, stop_after=forecast.best_epoch + 1),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedModel:
    """Both networks, their tokens and the vocabulary that names the tokens' rows."""

    forecaster: Forecaster
    tokens: tuple[TaskTokens, TaskTokens]
    vocabulary: Vocabulary
    results: tuple[LoopResult, LoopResult]

    def to(self, device: torch.device) -> None:
        """Move the networks to a device, on which they answer then, and leave them there."""
        nn.ModuleList([self.forecaster, *self.tokens]).to(device)

    @torch.no_grad()
    def predict(self, examples: Examples, *, denied: bool = False) -> Prediction:
        """Ask about every row, wherever the networks are; ``denied`` withholds the stimulus."""
        asked = without_stimulus(examples) if denied else examples
        pieces = in_batches(torch.arange(len(examples)), 2048) if len(examples) else ()
        return Prediction.joined(self.forecaster.config, [self._predict(asked.select(rows)) for rows in pieces])

    def _predict(self, rows: Examples) -> Prediction:
        model = self.forecaster.eval()
        rows = rows.to(model.signal_scale.device)
        logit = ask_activation(model, self.tokens[ACTIVATION], rows)
        return Prediction.of(model, rows, logit, ask_response(model, self.tokens[FORECAST], rows))


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """What the graph answers: ``logit`` ``(B,)``, ``response`` dF/F ``(B, 64)``, ``spread`` dF/F ``(B,)``; and the ``terms``
    ``(B, ERROR_TERMS)`` of which that is made.
    """

    logit: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
    response: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
    terms: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
    spread: np.ndarray[tuple[int, ...], np.dtype[np.float32]]

    @classmethod
    def of(cls, model: Forecaster, rows: Examples, logit: Tensor, answer: ResponseAnswer) -> Prediction:
        """Of rows of which the networks of a model say this, as `ServingGraph` makes it."""
        terms = error_terms(baseline_noise(rows.baseline) * model.signal_scale, logit.sigmoid())
        made = {"logit": logit, "response": model.decode(answer), "terms": terms, "spread": model.spread(terms)}
        return cls(**{name: tensor.cpu().numpy() for name, tensor in made.items()})

    @classmethod
    def joined(cls, config: ModelConfig, parts: Sequence[Prediction]) -> Prediction:
        """One after the other; none is a prediction of no row."""
        none = np.zeros(0, np.float32)
        frames, terms = (np.zeros((0, width), np.float32) for width in (config.response_frames, ERROR_TERMS))
        empty = cls(logit=none, response=frames, terms=terms, spread=none)
        return cls(**{name: np.concatenate([vars(part)[name] for part in (empty, *parts)]) for name in vars(empty)})


def finetune(
    pretrained: Pretrained,
    *,
    vocabulary: Vocabulary,
    real: RowSource,
    pseudo: RowSource,
    moments: RowSource,
    validation: RowSource,
    config: FinetuneConfig,
    report: Report,
    stage: str = "",
    checkpoints: Path | None = None,
    fingerprint: str = "",
    accelerator: Accelerator | None = None,
    teachers: Teachers | None = None,
) -> TrainedModel:
    """Train activation and response networks from one pre-trained auto-encoder: at ``moments``, then at ``real`` onsets and
    ``pseudo``-onsets. ``stage`` precedes the tasks' names.

    With ``teachers`` training rows are learned from as they teach them; validation is always what happened. With an
    ``accelerator`` training is on its device; what is returned is on the CPU.

    Raises:
        UsageError: a teacher has another vocabulary.
    """
    torch.manual_seed(config.activation.seed)
    if teachers is not None:
        teachers.check(vocabulary)
        fingerprint = f"{fingerprint} taught by {teachers.digest()[:16]}"
    forecaster = Forecaster(
        pretrained.config,
        # A copy: it goes where training is, and others start from the same auto-encoder.
        teacher=copy.deepcopy(pretrained.autoencoder),
        signal_scale=pretrained.signal_scale,
    )
    digest = forecaster.teacher.codebook.digest()
    tokens = (tokens_of(vocabulary, d=pretrained.config.d), tokens_of(vocabulary, d=pretrained.config.d))
    trees = begin(forecaster, real, pseudo, config=config, seed=config.activation.seed)
    machine = accelerator or Accelerator()
    # Only now: the regressions that training begins at are solved on the CPU.
    nn.ModuleList([forecaster, *tokens]).to(machine.device)
    real, pseudo, moments = drawn_on(machine.device, real, pseudo, moments)
    if teachers is not None:
        teachers.to(machine.device)
    # Every process validates on all rows: the mean over processes is the same.
    held = [validation.at_lead(lead, most=config.validation_rows).to(machine.device) for lead in VALIDATION_LEADS]

    def validate(loss: Callable[[Examples], Tensor]) -> float:
        return float(np.mean([mean_loss(loss, rows) for rows in held]))

    def taught(rows: Examples, task: int) -> Examples:
        return rows if teachers is None else teachers.taught(rows, task=task, signal_scale=pretrained.signal_scale)

    results = []
    tasks: tuple[tuple[str, nn.Module, LoopConfig, Callable[[Examples], Tensor], Callable[[Examples], Tensor]], ...] = (
        (
            "activation",
            nn.ModuleList([forecaster.activation, tokens[ACTIVATION]]),
            config.activation,
            lambda rows: activation_loss(
                ask_activation(forecaster, tokens[ACTIVATION], rows), taught(rows, ACTIVATION).active
            ),
            lambda rows: activation_loss(ask_activation(forecaster, tokens[ACTIVATION], rows), rows.active),
        ),
        (
            "forecast",
            nn.ModuleList([forecaster.response, tokens[FORECAST]]),
            config.forecast,
            lambda rows: response_loss(
                forecaster, ask_response(forecaster, tokens[FORECAST], rows), taught(rows, FORECAST), config=config
            ),
            lambda rows: (
                (forecaster.decode(ask_response(forecaster, tokens[FORECAST], rows)) - rows.response).square().mean()
            ),
        ),
    )
    for task, network, loop, loss, criterion in tasks:
        for part, config_of_part, draw in stages(
            real,
            pseudo,
            moments,
            config=config,
            loop=loop,
            device=machine.device,
            trees=trees if task == "activation" else None,
        ):
            name = stage + task + part
            with drawn_ahead(draw, epochs=config_of_part.most_epochs) as drawn:
                result = run_loop(
                    stage=name,
                    network=network,
                    config=config_of_part,
                    losses=lambda epoch, loss=loss, drawn=drawn: (  # type: ignore[misc]
                        partial(loss, batch)
                        for batch in epoch_batches(drawn, epoch=epoch, batch=config.batch, machine=machine)
                    ),
                    validate=lambda criterion=criterion: validate(criterion),  # type: ignore[misc]
                    report=report,
                    checkpoint=None if checkpoints is None else checkpoints / f"{name}.pt".replace(" ", "-"),
                    fingerprint=f"{fingerprint} {name} {config} {digest[:16]}",
                    accelerator=machine,
                    averaged=True,
                )
        results.append(result)
    nn.ModuleList([forecaster, *tokens]).cpu()
    if teachers is not None:
        teachers.to(torch.device("cpu"))
    if forecaster.teacher.codebook.digest() != digest:
        raise AssertionError("the frozen codebook changed during fine-tuning")
    return TrainedModel(forecaster=forecaster, tokens=tokens, vocabulary=vocabulary, results=(results[0], results[1]))


def response_loss(forecaster: Forecaster, answer: ResponseAnswer, rows: Examples, *, config: FinetuneConfig) -> Tensor:
    """Equation 4 against the teacher's codes, and what `FinetuneConfig` adds to it."""
    with torch.no_grad():
        target = forecaster.teacher.codes(rows.trace, patch_frames=forecaster.config.patch_frames)
    decoded = forecaster.decode(answer)
    error = (decoded - rows.response) / forecaster.signal_scale
    return (
        code_loss(answer.code_logits, target)
        + config.decoded_weight * error.square().mean()
        + config.shape_weight * shape_loss(decoded, rows.response)
    )


def mean_loss(loss: Callable[[Examples], Tensor], rows: Examples) -> float:
    """Mean over rows, in pieces: a whole validation part of a large recording does not fit in memory at once."""
    pieces = in_batches(torch.arange(len(rows)), 4096)
    return sum(float(loss(rows.select(piece))) * len(piece) for piece in pieces) / max(len(rows), 1)


def ask_activation(model: Forecaster, tokens: TaskTokens, rows: Examples) -> Tensor:
    """Activation logits ``[B]``."""
    stimulus = tokens.stimulus(rows.features, rows.stimulus)
    logit: Tensor = model.activation(rows.baseline, tokens.neuron(rows.neuron), stimulus, rows.tuning, rows.level)
    return logit


def ask_response(model: Forecaster, tokens: TaskTokens, rows: Examples) -> ResponseAnswer:
    """Codes and correction."""
    stimulus = tokens.stimulus(rows.features, rows.stimulus)
    answer: ResponseAnswer = model.response(
        rows.baseline, tokens.neuron(rows.neuron), stimulus, rows.tuning, rows.level
    )
    return answer


def tokens_of(vocabulary: Vocabulary, *, d: int) -> TaskTokens:
    """Untrained vectors of one task."""
    return TaskTokens(
        neurons=len(vocabulary.neuron_ids),
        feature_width=vocabulary.recipe.width,
        stimulus_ids=len(vocabulary.stimulus_ids),
        d=d,
    )


def stages(
    real: RowSource,
    pseudo: RowSource,
    moments: RowSource,
    *,
    config: FinetuneConfig,
    loop: LoopConfig,
    device: torch.device,
    trees: BoostedTrees | None,
) -> list[Stage]:
    """Moments, where the configuration has epochs for them, then onsets, with what ``trees`` say of them. At moments it is not
    validation that says when to stop: what it would measure is not yet being learned.
    """
    told: dict[str, Any] = {"config": config, "seed": loop.seed, "device": device}

    def taught(draw: Draw, epoch: int) -> tuple[Examples, Tensor]:
        rows, order = draw(epoch)
        return rows if trees is None else trees.taught(rows, weight=config.boosted_weight), order

    found: list[Stage] = []
    if config.moment_epochs and len(moments):
        before = replace(loop, epochs=config.moment_epochs, stop_after=config.moment_epochs)
        found.append((" at moments", before, partial(taught, partial(draw_moments, moments, **told))))
    return [*found, ("", loop, partial(taught, partial(draw_epoch, real, pseudo, **told)))]


def begin(
    forecaster: Forecaster, real: RowSource, pseudo: RowSource, *, config: FinetuneConfig, seed: int
) -> BoostedTrees | None:
    """Set the shortcuts to their regressions; trees on the same rows, where the configuration gives them a weight."""
    rows = start_rows(real, pseudo, seed=seed)
    start_shortcuts(forecaster, rows)
    if config.boosted_weight == 0.0:
        return None
    return BoostedTrees.fit(forecaster.activation.shortcut, rows, seed=seed)


def draw_moments(
    moments: RowSource, epoch: int, *, config: FinetuneConfig, seed: int, device: torch.device
) -> tuple[Examples, Tensor]:
    """As `draw_epoch`, at any moments: the stimulus is withheld from every row."""
    rng = np.random.default_rng((seed, epoch, 1))
    rows = moments.draw(config.moment_rows, rng).to(device)
    unknown = torch.from_numpy(rng.random(len(rows)) < config.drop_ids).to(device)
    order = torch.from_numpy(rng.permutation(len(rows))).to(device)
    return withheld(rows, unknown=unknown, denied=torch.ones_like(unknown)), order


def draw_epoch(
    real: RowSource, pseudo: RowSource, epoch: int, *, config: FinetuneConfig, seed: int, device: torch.device
) -> tuple[Examples, Tensor]:
    """The rows of one epoch, drawn anew from ``(seed, epoch)``, on the device; and the order they are learned in."""
    rng = np.random.default_rng((seed, epoch))
    # Where there are few real onsets, pseudo-onsets are few too; where there is no pseudo-onset, real ones fill the epoch.
    share = config.rows_per_epoch / (1.0 + (config.pseudo_per_real if len(pseudo) else 0.0))
    drawn = [real.draw(round(share), rng)]
    if len(pseudo):
        drawn.append(pseudo.draw(round(config.pseudo_per_real * len(drawn[0])), rng))
    # An epoch's rows go to the device together, those that were not drawn there; batches are gathered there.
    rows = Examples.joined([part.to(device) for part in drawn])
    chosen = [rng.random(len(rows)) < part for part in (config.drop_ids, config.drop_stimulus)]
    unknown, denied, order = (torch.from_numpy(of).to(device) for of in (*chosen, rng.permutation(len(rows))))
    return withheld(rows, unknown=unknown, denied=denied), order


def epoch_batches(
    drawn: Draw, *, epoch: int, batch: int, machine: Accelerator
) -> Iterator[Examples]:
    """The batches of one epoch of `draw_epoch`: each process's share of them."""
    rows, order = drawn(epoch)
    for index in in_batches(order, batch):
        yield rows.select(machine.share(index))


def withheld(rows: Examples, *, unknown: Tensor, denied: Tensor) -> Examples:
    """The rows without their neuron's id where ``unknown``, and without their stimulus where ``denied``, bool ``[B]``."""
    tuning = torch.where(unknown[:, None], rows.population_tuning, rows.tuning)
    own = rows.level[:, :F0_LEVELS]
    return replace(
        rows,
        neuron=torch.where(unknown, UNKNOWN, rows.neuron),
        stimulus=torch.where(denied, UNKNOWN, rows.stimulus),
        features=torch.where(denied[:, None], 0.0, rows.features),
        tuning=torch.where(denied[:, None], whatever_stimulus(tuning), tuning),
        level=torch.cat([torch.where(unknown[:, None], 0.0, own), rows.level[:, F0_LEVELS:]], dim=1),
    )


def without_stimulus(rows: Examples) -> Examples:
    """The rows as they are asked of a model that is denied the stimulus."""
    return replace(
        rows,
        stimulus=torch.full_like(rows.stimulus, UNKNOWN),
        features=torch.zeros_like(rows.features),
        tuning=whatever_stimulus(rows.tuning),
    )


def whatever_stimulus(tuning: Tensor) -> Tensor:
    """What tuning ``[B, TUNING_QUANTITIES]`` still tells where the stimulus is not told: the neuron's rate whatever the
    stimulus, in place of its rate at this one too; nothing of its mean response.

    Zeros would tell a rate of zero, and whatever a model then loses would count as gained by the stimulus.
    """
    rates = tuning[:, :1].expand(-1, TUNING_RATES)
    return torch.cat([rates, torch.zeros_like(tuning[:, TUNING_RATES:])], dim=1)
