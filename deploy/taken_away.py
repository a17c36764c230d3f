"""QuantFormer with one improvement over the paper taken away: how that is done, and what it then answers.

The library has no switches for this. What is taken away is taken from the data, from the rows or from the configuration, or a
name of the library stands for something else in this process while a model is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quantformer.forecaster import FORECAST
from quantformer.metrics import pearson_rows, row_log_loss, squared_error
from quantformer_training import examples as examples_module
from quantformer_training import finetune as finetune_module
from quantformer_training.accelerator import Accelerator
from quantformer_training.calibrate import calibrate, probability
from quantformer_training.examples import LONGEST_LEAD, Examples
from quantformer_training.finetune import FinetuneConfig, TrainedModel, ask_response, finetune
from quantformer_training.indexed import IndexedTrials
from quantformer_training.loop import Progress, run_loop
from quantformer_training.pretrain import Pretrained
from quantformer_training.run_data import RunData
from quantformer_training.sources import RowSource

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Blanked:
    """A source whose rows hold zeros in the ``fields`` of `Examples` that are named; a `RowSource`."""

    source: RowSource
    fields: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.source)

    def draw(self, count: int, rng: np.random.Generator) -> Examples:
        """The source's rows, blanked."""
        return self._blank(self.source.draw(count, rng))

    def at_lead(self, lead: int, *, most: int | None = None) -> Examples:
        """The source's rows, blanked."""
        return self._blank(self.source.at_lead(lead, most=most))

    def _blank(self, rows: Examples) -> Examples:
        return Examples(
            **{name: torch.zeros_like(given) if name in self.fields else given for name, given in vars(rows).items()}
        )


def _same_data(data: RunData) -> RunData:
    return data


def _same_config(config: FinetuneConfig) -> FinetuneConfig:
    return config


@dataclass(frozen=True, kw_only=True)
class Without:
    """How a thing is taken away: from the ``data``, whose tuning is then regressed without it too; from the rows, by zeros in
    ``blank``; from the ``config``; or by ``replaced`` names, each a module, a name in it and what it then stands for.
    """

    data: Callable[[RunData], RunData] = _same_data
    blank: tuple[str, ...] = ()
    config: Callable[[FinetuneConfig], FinetuneConfig] = _same_config
    replaced: tuple[tuple[ModuleType, str, object], ...] = ()


def _changed(data: RunData, change: Callable[[IndexedTrials], IndexedTrials]) -> RunData:
    """All trials of the data, changed."""
    members = [
        replace(
            member,
            real={part: change(trials) for part, trials in member.real.items()},
            pseudo=change(member.pseudo),
            moments=change(member.moments),
            control=change(member.control),
        )
        for member in data.members
    ]
    return replace(data, members=tuple(members))


def without_f0_level(data: RunData) -> RunData:
    """Of no neuron the usual fluorescence is known."""
    return _changed(data, lambda trials: replace(trials, usual_f0=np.zeros_like(trials.usual_f0)))


def without_population(data: RunData) -> RunData:
    """The other neurons do what they usually do."""
    return _changed(data, lambda trials: replace(trials, population=np.zeros_like(trials.population)))


def without_features(data: RunData) -> RunData:
    """Of a stimulus its category and id are left."""

    def bare(trials: IndexedTrials) -> IndexedTrials:
        return replace(trials, moments=replace(trials.moments, features=({},) * len(trials.moments)))

    return _changed(data, bare)


def without_ids(data: RunData) -> RunData:
    """Of a stimulus its category and features are left."""
    return replace(data, vocabulary=replace(data.vocabulary, stimulus_ids=()))


def without_pseudo_onsets(data: RunData) -> RunData:
    """Neither networks, regressions nor tuning learn from moments at which nothing begins."""

    def emptied(trials: IndexedTrials) -> IndexedTrials:
        return replace(trials, valid=np.zeros_like(trials.valid))

    return replace(data, members=tuple(replace(member, pseudo=emptied(member.pseudo)) for member in data.members))


def no_start(*arguments: object) -> None:
    """In place of `start_shortcuts`: the shortcuts stay at zero and the heads beside them at random, as in the paper."""


def last_weights(*arguments: Any, **named: Any) -> Any:
    """In place of `run_loop`: what is validated and kept are the weights of the last step, not their mean."""
    return run_loop(*arguments, **{**named, "averaged": False})


def in_precision(precision: str) -> Without:
    """Nothing taken away: fine-tuning on the CPU in this precision."""
    return Without(replaced=((finetune_module, "Accelerator", partial(Accelerator, precision=precision)),))


#: What is trained anew without it.
TAKEN_AWAY: Mapping[str, Without] = MappingProxyType(
    {
        "level of F0": Without(data=without_f0_level),
        "level of the population": Without(data=without_population),
        "tuning": Without(blank=("tuning", "population_tuning")),
        "stimulus features": Without(data=without_features),
        "stimulus ids": Without(data=without_ids),
        # Fine-tuning has no switch for where it begins: it always begins at the regressions.
        "warm start": Without(replaced=((finetune_module, "start_shortcuts", no_start),)),
        "pseudo-onsets": Without(data=without_pseudo_onsets),
        # Without a share of its own, lead 0 is as frequent as each of the others.
        "rows without lead": Without(replaced=((examples_module, "NO_LEAD", 1.0 / (LONGEST_LEAD + 1)),)),
        "moments": Without(config=lambda config: replace(config, moment_epochs=0)),
        "boosted trees": Without(config=lambda config: replace(config, boosted_weight=0.0)),
        "mean of the weights": Without(replaced=((finetune_module, "run_loop", last_weights),)),
        "shape loss": Without(config=lambda config: replace(config, shape_weight=0.0)),
    }
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Answered:
    """A trained model and what it says of test ``rows``: ``chance`` ``(rows,)``, ``response`` dF/F ``(rows, 64)``."""

    model: TrainedModel
    rows: Examples
    logit: NDArray[np.float32]
    chance: Floats
    response: NDArray[np.float32]

    def scores(
        self, *, chance: Floats | None = None, response: NDArray[np.floating] | None = None
    ) -> dict[str, Floats]:
        """Each score of every row, of these answers or of others to the same questions."""
        chance, response = self.chance if chance is None else chance, self.response if response is None else response
        active, happened = self.rows.active.numpy(), self.rows.response.numpy()
        return {
            "log_loss": row_log_loss(chance, active),
            "brier": np.square(chance - active),
            "mse": squared_error(response, happened),
            "r": pearson_rows(response, happened),
        }


@contextmanager
def replaced(module: ModuleType, name: str, value: object) -> Iterator[None]:
    """Inside, a name of a module stands for something else."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def answered(data: RunData, pretrained: Pretrained, *, config: FinetuneConfig, without: Without) -> Answered:
    """Fine-tune and calibrate as `contest` does, without something, and ask about the test rows."""
    data = without.data(data)
    made = data.sources(pretrained.signal_scale)
    real, pseudo, moments, validation, test = (
        Blanked(source=source, fields=without.blank)
        for source in (made.train, made.pseudo, made.moments, made.validation, made.test)
    )
    with ExitStack() as stack:
        for module, name, value in without.replaced:
            stack.enter_context(replaced(module, name, value))
        model = finetune(
            pretrained,
            vocabulary=data.vocabulary,
            real=real,
            pseudo=pseudo,
            moments=moments,
            validation=validation,
            config=without.config(config),
            report=_silent,
        )
    # Thresholds, which need the part's duration, are not looked at.
    calibration = calibrate(model, validation, seconds=60.0).calibration
    rows = test.at_lead(0)
    said = model.predict(rows)
    return Answered(
        model=model, rows=rows, logit=said.logit, chance=probability(said.logit, calibration), response=said.response
    )


@torch.no_grad()
def likeliest(one: Answered) -> NDArray[np.float32]:
    """The response decoded from the most probable code of each patch, not from what is expected of all codes."""
    forecaster = one.model.forecaster.eval()
    answer = ask_response(forecaster, one.model.tokens[FORECAST], one.rows)
    chosen = torch.nn.functional.one_hot(answer.code_logits.argmax(-1), forecaster.config.codes)
    # So far apart that their softmax in float32 is 1 at the chosen code and 0 elsewhere.
    return forecaster.decode(replace(answer, code_logits=1e4 * chosen.float())).numpy()


def _silent(progress: Progress) -> None:
    """Told is which model is done, not which epoch."""
