"""Training a competitor network: the same rows, loss on the same scale and budget for each (docs/competitors.md)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantformer.errors import DataError, UsageError
from quantformer.manifest import Calibration
from quantformer_training.accelerator import Accelerator
from quantformer_training.ahead import drawn_ahead
from quantformer_training.calibrate import LEADS, fit_calibration, probability
from quantformer_training.examples import Examples
from quantformer_training.finetune import VALIDATION_LEADS, check_moments, withheld, without_stimulus
from quantformer_training.loop import LoopConfig, LoopResult, Report, in_batches, run_loop
from quantformer_training.networks import NetworkConfig, NetworkSpec, TaskNetwork
from quantformer_training.networks.brainlm import MaskedAutoencoder
from quantformer_training.sources import TrialSource

Task = Literal["activation", "forecast"]
#: Rows, and which of them are valid, bool ``[B]``.
Asked = tuple[Examples, Tensor]
#: The same of an epoch, and the order in which its rows (or whole trials) are learned from.
_Epoch = tuple[Examples, Tensor, Tensor]
#: What a network goes through: what is added to the stage's name, how long and fast, the draw of an epoch, the losses of its
#: batches, and the loss on validation.
_Losses = Callable[[Callable[[int], _Epoch], int], Iterator[Callable[[], Tensor]]]
_Stage = tuple[str, LoopConfig, Callable[[int], _Epoch], _Losses, Callable[[], float]]

#: Trials of a batch of a network that mixes neurons, at least: its norms are over trials.
LEAST_TRIALS = 8
#: Share of rows without their neuron's id and of those without their stimulus, as in QuantFormer's fine-tuning.
WITHHELD = 0.1
_ASKED_ROWS = 2048


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every competitor may spend on a task. Each learning rate is tried, validation chooses among them and among epochs.

    An epoch reads about ``rows_per_epoch`` neuron-trials, ``pseudo_per_real`` of them at pseudo-onsets (where such a source is
    given) for each at a real onset. Validation reads an even choice of ``validation_rows``, or whole trials, all of them.
    ``moment_epochs`` of about ``moment_rows`` go before, as in `FinetuneConfig`.
    """

    epochs: int
    rows_per_epoch: int
    learning_rates: tuple[float, ...] = (1e-3,)
    batch: int = 128
    patience: int = 8
    weight_decay: float = 0.05
    pseudo_per_real: float = 2.0
    moment_epochs: int = 0
    moment_rows: int = 60_000
    validation_rows: int = 40_000

    def __post_init__(self) -> None:
        counts = (self.epochs, self.rows_per_epoch, self.batch, self.validation_rows)
        if min(counts) < 1 or not self.learning_rates or not all(0 < rate < 1 for rate in self.learning_rates):
            raise UsageError(
                f"epochs, rows_per_epoch, batch, validation_rows = {counts}, learning rates {self.learning_rates}; expected "
                "counts of at least 1 and one or several rates between 0 and 1"
            )
        check_moments(epochs=self.moment_epochs, rows=self.moment_rows)

    @classmethod
    def small(cls) -> Budget:
        """For two processor cores: minutes a network and task."""
        return cls(epochs=12, rows_per_epoch=6_000, patience=4)

    @classmethod
    def paper(cls) -> Budget:
        """For a GPU: the paper's 100 epochs at its learning rate, and at a third of it."""
        return cls(
            epochs=100, rows_per_epoch=200_000, learning_rates=(1e-3, 3e-4), batch=2_048, patience=10,
            moment_epochs=20, moment_rows=200_000,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedCompetitor:
    """A trained network. ``tried`` is the best validation loss at each learning rate, ``results`` those of the one chosen, a
    stage: the last is of the task.
    """

    spec: NetworkSpec
    task: Task
    network: TaskNetwork
    signal_scale: float
    calibration: Calibration | None
    learning_rate: float
    results: tuple[LoopResult, ...]
    tried: dict[float, float]

    @property
    def result(self) -> LoopResult:
        """Of the task's own stage."""
        return self.results[-1]

    def predict(
        self, source: TrialSource, *, lead: int = 0, denied: bool = False
    ) -> NDArray[np.float64] | NDArray[np.float32]:
        """Calibrated probability ``(rows,)`` or forecast dF/F ``(rows, 64)``, in the order of ``source.batches``.

        The last ``lead`` frames are withheld, and the stimulus too where it is ``denied``.

        Raises:
            DataError: a network that mixes neurons is asked about trials of another number of neurons.
        """
        width = () if self.network.config.outputs == 1 else (self.network.config.outputs,)
        parts = [np.zeros((0, *width), np.float32)]
        for rows, valid in _asked(self.network, source, lead=lead):
            parts.append(_answer(self.network, without_stimulus(rows) if denied else rows, valid))
        made = np.concatenate(parts)
        if self.calibration is None:
            return (made * np.float32(self.signal_scale)).astype(np.float32)
        return probability(made, self.calibration)


def train_network(
    spec: NetworkSpec,
    *,
    task: Task,
    train: TrialSource,
    validation: TrialSource,
    config: NetworkConfig,
    budget: Budget,
    seed: int,
    signal_scale: float,
    report: Report,
    pseudo: TrialSource | None = None,
    moments: TrialSource | None = None,
    checkpoints: Path | None = None,
    fingerprint: str = "",
    accelerator: Accelerator | None = None,
    like: TrainedCompetitor | None = None,
) -> TrainedCompetitor:
    """Train a competitor on a task (``config.outputs`` is set by it), at every learning rate of the budget.

    Activation is trained with the binary cross-entropy of QuantFormer's and calibrated as it is; a forecast with the mean
    squared error of the response in signal scales. ``fingerprint`` names the data to checkpoints. With an ``accelerator`` the
    network trains, and then answers, on its device. ``like`` chose before: its learning rate, its epochs of each stage and its
    calibration are taken, and validation chooses nothing.

    Raises:
        DataError: there is nothing to learn from, whole trials are not to be had, or as `run_loop`.
        MissingExtraError: the network's library is not installed.
    """
    config = replace(config, outputs=1 if task == "activation" else config.response_frames)
    if not len(train) or not len(validation):
        raise DataError(
            f"{spec.title}: {len(train)} neuron-trials to train on, {len(validation)} of validation; both are needed"
        )
    if spec.multivariate and train.neurons != config.neurons:
        raise DataError(
            f"{spec.title} mixes the neurons of one recording: trials have {train.neurons}, the configuration {config.neurons}; "
            "give one recording and its own vocabulary"
        )
    machine = accelerator or Accelerator()
    chosen: tuple[float, TaskNetwork, tuple[LoopResult, ...]] | None = None
    tried = {}
    for rate in budget.learning_rates if like is None else (like.learning_rate,):
        torch.manual_seed(seed)
        network = spec.make(config)
        training = _Training(
            network=network,
            train=train,
            pseudo=pseudo,
            moments=moments,
            validation=validation,
            budget=budget,
            seed=seed,
            machine=machine,
        )
        loop = LoopConfig(
            epochs=budget.epochs,
            learning_rate=rate,
            weight_decay=budget.weight_decay,
            patience=budget.patience,
            seed=seed,
        )
        mark = f"{fingerprint} {spec.title} {task} {config} {budget} {loop}"
        stage = f"{spec.title} {task}" + (f" at {rate:g}" if len(budget.learning_rates) > 1 else "")
        results: list[LoopResult] = []
        for part, how, draw, losses, error in training.stages(loop):
            if like is not None:
                how = replace(how, stop_after=like.results[len(results)].best_epoch + 1)
            with drawn_ahead(draw, epochs=how.most_epochs) as drawn:
                result = run_loop(
                    stage=stage + part,
                    network=network,
                    config=how,
                    losses=partial(losses, drawn),
                    validate=error,
                    report=report,
                    checkpoint=_file(checkpoints, stage + part),
                    fingerprint=mark + part,
                    accelerator=machine,
                    averaged=True,
                )
            results.append(result)
        tried[rate] = result.best_validation
        if chosen is None or result.best_validation < chosen[2][-1].best_validation:
            chosen = rate, network, tuple(results)
    assert chosen is not None
    rate, network, found = chosen
    if like is not None:
        calibration = like.calibration
    else:
        calibration = _calibrated(network, validation, most=budget.validation_rows) if task == "activation" else None
    return TrainedCompetitor(
        spec=spec,
        task=task,
        network=network,
        signal_scale=signal_scale,
        calibration=calibration,
        learning_rate=rate,
        results=found,
        tried=tried,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Training:
    """Batches and losses of one run."""

    network: TaskNetwork
    train: TrialSource
    pseudo: TrialSource | None
    moments: TrialSource | None
    validation: TrialSource
    budget: Budget
    seed: int
    machine: Accelerator

    def stages(self, loop: LoopConfig) -> list[_Stage]:
        """Masked pre-training where the network has one, moments where the budget has epochs for them, then onsets."""
        found: list[_Stage] = []
        if isinstance(self.network, MaskedAutoencoder):
            found.append((" pre-training", loop, self.draw, self.masked_losses, self.masked_error))
        count = self.budget.moment_epochs
        if count and self.moments is not None and len(self.moments):
            before = replace(loop, epochs=count, stop_after=count)
            found.append((" at moments", before, self.draw_moments, self.losses, self.error))
        return [*found, ("", loop, self.draw, self.losses, self.error)]

    def losses(self, drawn: Callable[[int], _Epoch], epoch: int) -> Iterator[Callable[[], Tensor]]:
        return (partial(self._loss, rows, valid) for rows, valid in self._batches(drawn, epoch) if bool(valid.any()))

    def error(self) -> float:
        return float(np.mean([self._mean(self._loss, lead=lead) for lead in VALIDATION_LEADS]))

    def masked_losses(self, drawn: Callable[[int], _Epoch], epoch: int) -> Iterator[Callable[[], Tensor]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        for rows, _ in self._batches(drawn, epoch):
            yield partial(self._masked, rows, torch.rand(len(rows), self._trace_patches(), generator=generator))

    def masked_error(self) -> float:
        # The same patches are hidden after every epoch, so that epochs are compared on the same task.
        generator = torch.Generator().manual_seed(self.seed)
        patches = self._trace_patches()
        return self._mean(
            lambda rows, _: self._masked(rows, torch.rand(len(rows), patches, generator=generator)), lead=0
        )

    def _loss(self, rows: Examples, valid: Tensor) -> Tensor:
        device = self.machine.device
        return self.network.loss(_moved(rows, device), valid.to(device))

    def _masked(self, rows: Examples, noise: Tensor) -> Tensor:
        assert isinstance(self.network, MaskedAutoencoder)
        device = self.machine.device
        return self.network.pretraining_loss(_moved(rows, device), noise.to(device))

    def _trace_patches(self) -> int:
        config = self.network.config
        return (config.baseline_frames + config.response_frames) // (config.series_frames - config.baseline_frames)

    def _mean(self, loss: Callable[[Examples, Tensor], Tensor], *, lead: int) -> float:
        total, count = 0.0, 0
        for rows, valid in _asked(self.network, self.validation, lead=lead, most=self.budget.validation_rows):
            if number := int(valid.sum()):
                total, count = total + float(loss(rows, valid)) * number, count + number
        return total / max(count, 1)

    @property
    def _together(self) -> int:
        """A network that mixes neurons takes whole trials, which are shuffled, and lose their stimulus, as wholes."""
        return self.train.neurons if self.network.multivariate else 1

    def draw(self, epoch: int) -> _Epoch:
        rng = np.random.default_rng((self.seed, epoch))
        pseudo = self.pseudo if self.pseudo is not None and len(self.pseudo) else None
        share = self.budget.rows_per_epoch / (1.0 + (self.budget.pseudo_per_real if pseudo else 0.0))
        drawn = [self._drawn(self.train, round(share), rng)]
        if pseudo is not None:
            drawn.append(self._drawn(pseudo, round(self.budget.pseudo_per_real * len(drawn[0][1])), rng))
        rows, valid = Examples.joined([rows for rows, _ in drawn]), torch.cat([valid for _, valid in drawn])
        return self._shuffled(rows, valid, rng, denied=WITHHELD)

    def draw_moments(self, epoch: int) -> _Epoch:
        """As `draw_moments` of fine-tuning."""
        assert self.moments is not None
        rng = np.random.default_rng((self.seed, epoch, 1))
        return self._shuffled(*self._drawn(self.moments, self.budget.moment_rows, rng), rng, denied=1.0)

    def _shuffled(self, rows: Examples, valid: Tensor, rng: np.random.Generator, *, denied: float) -> _Epoch:
        units = len(rows) // self._together
        unknown = torch.from_numpy(rng.random(len(rows)) < WITHHELD)
        without = torch.from_numpy(rng.random(units) < denied).repeat_interleave(self._together)
        rows = withheld(rows, unknown=unknown, denied=without)
        return rows, valid, torch.from_numpy(rng.permutation(units))

    def _batches(self, drawn: Callable[[int], _Epoch], epoch: int) -> Iterator[Asked]:
        rows, valid, order = drawn(epoch)
        together = self._together
        size = max(LEAST_TRIALS, math.ceil(self.budget.batch / together)) if together > 1 else self.budget.batch
        for some in in_batches(order, size):
            # A norm over trials cannot be had of one, in no process.
            if len(some) >= 2 * self.machine.ranks:
                ours = self.machine.share(some)
                # What is shared out are trials, what is counted are rows.
                self.machine.rows += len(some) * (together - 1)
                index = (ours[:, None] * together + torch.arange(together)).flatten()
                yield rows.select(index), valid[index]

    def _drawn(self, source: TrialSource, count: int, rng: np.random.Generator) -> Asked:
        if self.network.multivariate:
            return source.draw_trials(count, rng)
        rows = source.draw(count, rng)
        return rows, torch.ones(len(rows), dtype=torch.bool)


def _asked(network: TaskNetwork, source: TrialSource, *, lead: int, most: int | None = None) -> Iterator[Asked]:
    """Every valid row (or an even choice of ``most``) once, in order, with what the network needs around it: whole trials
    for one that mixes neurons, and then all of them.
    """
    if network.multivariate:
        if source.neurons != network.config.neurons:
            raise DataError(
                f"the network mixes {network.config.neurons} neurons, the trials asked about have {source.neurons}; ask about "
                "the recording that it was trained on"
            )
        yield from source.trial_batches(lead=lead, size=max(_ASKED_ROWS, source.neurons))
        return
    if most is None:
        batches = source.batches(lead=lead, size=_ASKED_ROWS)
    else:
        some = source.at_lead(lead, most=most)
        batches = (some.select(index) for index in in_batches(torch.arange(len(some)), _ASKED_ROWS))
    for rows in batches:
        yield rows, torch.ones(len(rows), dtype=torch.bool)


@torch.no_grad()
def _answer(network: TaskNetwork, rows: Examples, valid: Tensor) -> NDArray[np.float32]:
    """Answers to the valid rows, computed on the network's device."""
    network.eval()
    device = next(network.parameters()).device
    made: NDArray[np.float32] = network(_moved(rows, device), valid.to(device)).cpu()[valid].numpy()
    return made


def _calibrated(network: TaskNetwork, validation: TrialSource, *, most: int) -> Calibration:
    """Temperature and bias on validation at the leads of QuantFormer's own calibration."""
    logit, active, moments = [], [], []
    for lead in LEADS:
        for rows, valid in _asked(network, validation, lead=lead, most=most):
            logit.append(_answer(network, rows, valid))
            active.append(rows.active[valid].numpy())
            moments.append(rows.moment[valid].numpy())
    trials = len(np.unique(np.concatenate(moments)))
    return fit_calibration(np.concatenate(logit), np.concatenate(active), trials=trials)


def _moved(rows: Examples, device: torch.device) -> Examples:
    """The rows on a device; themselves where they are there."""
    if device.type == "cpu":
        return rows
    return Examples(**{name: tensor.to(device, non_blocking=True) for name, tensor in vars(rows).items()})


def _file(checkpoints: Path | None, stage: str) -> Path | None:
    return None if checkpoints is None else checkpoints / f"{stage}.pt".replace(" ", "-").lower()
