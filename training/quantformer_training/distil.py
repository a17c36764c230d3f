"""Distillation: a network learns from what trained ones say, too.

What it was found to bring: docs/training.md.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantformer.config import TUNING_RATES
from quantformer.errors import UsageError
from quantformer.forecaster import ACTIVATION, CLIP
from quantformer_training.examples import Examples, Vocabulary
from quantformer_training.finetune import TrainedModel, ask_activation, ask_response

#: Share of what teachers say in what a student learns from; the rest is what happened.
WEIGHT = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Teachers:
    """Trained models of one vocabulary, of whatever sizes. What they say is the mean of their probabilities and of their
    traces; a student learns from ``weight`` of that and one minus ``weight`` of what happened.

    Raises:
        UsageError: there is none, their vocabularies differ, or the weight lies outside (0, 1].
    """

    models: tuple[TrainedModel, ...]
    weight: float = WEIGHT

    def __post_init__(self) -> None:
        if not self.models or not 0.0 < self.weight <= 1.0:
            raise UsageError(f"{len(self.models)} teachers of weight {self.weight}; expected one or more, and (0, 1]")
        self.check(self.models[0].vocabulary)

    def check(self, vocabulary: Vocabulary) -> None:
        """Refuse a student whose rows would mean other neurons or stimuli to a teacher.

        Raises:
            UsageError: a teacher has another vocabulary.
        """
        for number, model in enumerate(self.models):
            differing = [name for name, value in vars(vocabulary).items() if getattr(model.vocabulary, name) != value]
            if differing:
                raise UsageError(
                    f"teacher {number} differs from its student, or from the first teacher, in {', '.join(differing)}; teachers "
                    "are trained on the student's recording, neurons and stimuli"
                )

    def to(self, device: torch.device) -> None:
        """Move the networks to a device and leave them there."""
        for model in self.models:
            model.to(device)

    def digest(self) -> str:
        """SHA-256 of the weight and of every weight of every network, in hex."""
        found = hashlib.sha256(repr(self.weight).encode())
        for model in self.models:
            for part in (model.forecaster, *model.tokens):
                for name, value in part.state_dict().items():
                    found.update(f"{name} {tuple(value.shape)}".encode())
                    found.update(value.detach().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

    def taught(self, rows: Examples, *, task: int, signal_scale: float) -> Examples:
        """The rows with what a student of that ``signal_scale`` is to learn for a task in place of what happened: ``active``
        becomes a chance, float32 ``[B]``, or ``response`` a mixture of traces. Codes are those of the trace that happened.
        """
        if task == ACTIVATION:
            chance = self.probability(rows, signal_scale=signal_scale)
            return replace(rows, active=torch.lerp(rows.active.to(chance.dtype), chance, self.weight))
        return replace(
            rows, response=torch.lerp(rows.response, self.response(rows, signal_scale=signal_scale), self.weight)
        )

    @torch.no_grad()
    def probability(self, rows: Examples, *, signal_scale: float) -> Tensor:
        """Mean probability of an active response ``[B]``, not calibrated, of rows in units of ``signal_scale``."""
        said = [
            ask_activation(model.forecaster.eval(), model.tokens[0], in_units_of(model, rows, signal_scale)).sigmoid()
            for model in self.models
        ]
        return torch.stack(said).mean(0)

    @torch.no_grad()
    def response(self, rows: Examples, *, signal_scale: float) -> Tensor:
        """Mean expected response ``[B, 64]`` in dF/F of rows in units of ``signal_scale``."""
        said = []
        for model in self.models:
            answer = ask_response(model.forecaster.eval(), model.tokens[1], in_units_of(model, rows, signal_scale))
            said.append(model.forecaster.decode(answer))
        return torch.stack(said).mean(0)


def in_units_of(model: TrainedModel, rows: Examples, signal_scale: float) -> Examples:
    """Rows in units of ``signal_scale`` as the model reads them: in its own."""
    factor = signal_scale / model.forecaster.signal_scale
    # The first quantities of a tuning are rates, which have no unit.
    tuning, population = rows.tuning.clone(), rows.population_tuning.clone()
    tuning[:, TUNING_RATES:] *= factor
    population[:, TUNING_RATES:] *= factor
    return replace(
        rows,
        baseline=(rows.baseline * factor).clamp(-CLIP, CLIP),
        trace=(rows.trace * factor).clamp(-CLIP, CLIP),
        tuning=tuning,
        population_tuning=population,
    )
