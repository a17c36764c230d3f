"""Both tasks with one encoder and one pass: [CLS][NEURON][STIM], the baseline's patches and a [MASK] a response patch.

Three quarters of the arithmetic of two encoders at serving time: the decoder stays. What it costs in skill: docs/training.md.
"""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from quantformer.config import TUNING_RATES
from quantformer.forecaster import Forecaster, ResponseAnswer, known_beforehand
from quantformer.losses import activation_loss
from quantformer.patches import to_patches
from quantformer.tokens import TaskTokens
from quantformer_training.accelerator import Accelerator
from quantformer_training.ahead import drawn_ahead
from quantformer_training.device_rows import drawn_on
from quantformer_training.examples import Examples, Vocabulary
from quantformer_training.finetune import (
    VALIDATION_LEADS,
    FinetuneConfig,
    Prediction,
    begin,
    epoch_batches,
    mean_loss,
    response_loss,
    stages,
    tokens_of,
    without_stimulus,
)
from quantformer_training.loop import LoopResult, Report, in_batches, run_loop
from quantformer_training.pretrain import Pretrained
from quantformer_training.sources import RowSource

_ASKED_ROWS = 2048


class JointModel(nn.Module):
    """The heads, shortcuts and tokens of both task networks around the activation network's encoder. ``results`` are those of the
    training, the same for each task, once there was one.
    """

    results: tuple[LoopResult, LoopResult]

    def __init__(self, forecaster: Forecaster, tokens: TaskTokens) -> None:
        super().__init__()
        self.forecaster, self.tokens = forecaster, tokens
        forecaster.response.encoder = forecaster.activation.encoder
        forecaster.response.known = forecaster.activation.known

    def forward(self, rows: Examples) -> tuple[Tensor, ResponseAnswer]:
        """Activation logits ``[B]``, and codes and correction."""
        activation, response, config = self.forecaster.activation, self.forecaster.response, self.forecaster.config
        encoder = activation.encoder
        neuron = self.tokens.neuron(rows.neuron)
        known = activation.known(known_beforehand(rows.tuning, rows.level))
        stimulus = self.tokens.stimulus(rows.features, rows.stimulus) + known
        told = torch.stack([activation.cls_token.expand_as(neuron), neuron, stimulus], dim=1)
        patches = encoder.embedding(to_patches(rows.baseline, patch_frames=config.patch_frames))
        bins = rows.tuning[:, TUNING_RATES:].reshape(len(rows), config.response_patches, -1)
        masks = encoder.mask_token + encoder.embedding.position[config.baseline_patches :] + response.bin_tuning(bins)
        encoded = encoder.transformer(torch.cat([told, patches, masks], dim=1))
        logit = activation.head(encoded[:, 0]) + activation.shortcut(rows.baseline, rows.tuning, rows.level)
        window = encoded[:, told.shape[1] :]
        answer = ResponseAnswer(
            code_logits=response.head(window),
            correction=response.refine(window.flatten(1)) + response.shortcut(rows.baseline, rows.tuning, rows.level),
        )
        return logit[:, 0], answer

    @torch.no_grad()
    def predict(self, rows: Examples, *, denied: bool = False) -> Prediction:
        """As `TrainedModel.predict`."""
        self.eval()
        asked, model = without_stimulus(rows) if denied else rows, self.forecaster
        parts = []
        # Many rows in one pass would take gigabytes.
        for piece in in_batches(torch.arange(len(rows)), _ASKED_ROWS) if len(rows) else ():
            some = asked.select(piece).to(model.signal_scale.device)
            parts.append(Prediction.of(model, some, *self(some)))
        return Prediction.joined(model.config, parts)


def finetune_joint(
    pretrained: Pretrained,
    *,
    vocabulary: Vocabulary,
    real: RowSource,
    pseudo: RowSource,
    moments: RowSource,
    validation: RowSource,
    config: FinetuneConfig,
    report: Report,
    accelerator: Accelerator | None = None,
) -> JointModel:
    """Train both tasks together on the sum of their losses, as long and as fast as the forecast; the epoch is chosen by the
    sum of both validation losses, each over its value before training. ``accelerator`` as in `finetune`.
    """
    torch.manual_seed(config.forecast.seed)
    forecaster = Forecaster(
        pretrained.config,
        teacher=copy.deepcopy(pretrained.autoencoder),
        signal_scale=pretrained.signal_scale,
    )
    trees = begin(forecaster, real, pseudo, config=config, seed=config.forecast.seed)
    machine = accelerator or Accelerator()
    # Only now, as in `finetune`.
    model = JointModel(forecaster, tokens_of(vocabulary, d=pretrained.config.d)).to(machine.device)
    real, pseudo, moments = drawn_on(machine.device, real, pseudo, moments)
    held = [validation.at_lead(lead, most=config.validation_rows).to(machine.device) for lead in VALIDATION_LEADS]

    def loss(rows: Examples) -> Tensor:
        logit, answer = model(rows)
        return activation_loss(logit, rows.active) + response_loss(forecaster, answer, rows, config=config)

    def errors() -> tuple[float, float]:
        active = float(
            np.mean([mean_loss(lambda rows: activation_loss(model(rows)[0], rows.active), one) for one in held])
        )
        trace = [
            mean_loss(lambda rows: (forecaster.decode(model(rows)[1]) - rows.response).square().mean(), one)
            for one in held
        ]
        return active, float(np.mean(trace))

    model.eval()
    with torch.no_grad():
        before = errors()
    for part, loop, draw in stages(
        real, pseudo, moments, config=config, loop=config.forecast, device=machine.device, trees=trees
    ):
        with drawn_ahead(draw, epochs=loop.most_epochs) as drawn:
            result = run_loop(
                stage="both tasks" + part,
                network=nn.ModuleList([forecaster.activation, forecaster.response, model.tokens]),
                config=loop,
                losses=lambda epoch, drawn=drawn: (  # type: ignore[misc]
                    partial(loss, batch)
                    for batch in epoch_batches(drawn, epoch=epoch, batch=config.batch, machine=machine)
                ),
                validate=lambda: sum(now / first for now, first in zip(errors(), before, strict=True)),
                report=report,
                accelerator=machine,
                averaged=True,
            )
    model.results = result, result
    return model.cpu().eval()
