"""The paper's downstream networks as it describes them, and the steps of its ablation (section 3.4, Tables 3 and A-2).

Nothing of ours is in them: no tuning, level, shortcut, correction or loss on the decoded trace. `Design` takes away one
ingredient after the other.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from quantformer.autoencoder import Encoder
from quantformer.losses import code_loss
from quantformer.patches import from_patches, to_patches
from quantformer.tokens import TaskTokens
from quantformer_training.examples import Examples
from quantformer_training.networks.network import NetworkConfig, NetworkSpec, TaskNetwork
from quantformer_training.pretrain import Pretrained


@dataclass(frozen=True, kw_only=True)
class Design:
    """``pretrained``: the encoder starts as ``fresh`` or from an auto-encoder; ``answer``: a forecast is a choice of
    ``codes`` (equation 4), ``latents`` for the frozen decoder, or ``frames``; both of the latter by mean squared error.
    """

    neuron_tokens: bool = True
    pretrained: bool = True
    answer: Literal["codes", "latents", "frames"] = "codes"
    frozen_encoder: bool = False


#: By the key of the model in tables of runs. ``ablation_autoencoder`` is given an auto-encoder without quantisation.
DESIGNS = {
    "quantformer_paper": Design(),
    "quantformer_prompt": Design(frozen_encoder=True),
    "ablation_baseline": Design(neuron_tokens=False, pretrained=False, answer="frames"),
    "ablation_tokens": Design(pretrained=False, answer="frames"),
    "ablation_autoencoder": Design(answer="latents"),
}


def paper_design(key: str, *, title: str, pretrained: Pretrained) -> NetworkSpec:
    """The network of `DESIGNS` under this key, to be trained like every competitor."""

    def make(config: NetworkConfig) -> TaskNetwork:
        return PaperNetwork(config, design=DESIGNS[key], pretrained=pretrained)

    return NetworkSpec(title=title, source="own", make=make)


class PaperNetwork(TaskNetwork):
    """[CLS][NEURON][STIM] and the baseline's patches, or [NEURON][STIM], the baseline's patches and four [MASK]."""

    def __init__(self, config: NetworkConfig, *, design: Design, pretrained: Pretrained) -> None:
        super().__init__(config)
        self.design, self.model = design, pretrained.config
        # A copy: it goes where training is, and others start from the same auto-encoder.
        self.teacher = copy.deepcopy(pretrained.autoencoder)
        self.encoder = (
            copy.deepcopy(pretrained.autoencoder.encoder) if design.pretrained else Encoder(pretrained.config)
        )
        self.encoder.requires_grad_(not design.frozen_encoder)
        d = self.model.d
        self.tokens = TaskTokens(
            neurons=config.neurons, feature_width=config.feature_width, stimulus_ids=config.stimulus_ids, d=d
        )
        if not design.neuron_tokens:
            self.tokens.offset.requires_grad_(False)
        self.cls_token = nn.Parameter(torch.randn(d) * 0.02)
        outputs = {"codes": self.model.codes, "latents": d, "frames": self.model.patch_frames}[design.answer]
        self.head = (
            nn.Linear(d, 1)
            if config.outputs == 1
            else nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, outputs))
        )

    def forward(self, rows: Examples, valid: Tensor | None = None) -> Tensor:
        """Logits ``[B]``, or dF/F ``[B, 64]`` in signal scales, by expected decoding where codes are chosen."""
        if self.config.outputs == 1:
            logit: Tensor = self.head(self._encoded(rows)[:, 0])[:, 0]
            return logit
        return self._decoded(self._answers(rows))

    def loss(self, rows: Examples, valid: Tensor) -> Tensor:
        """Equation 4 where a forecast is a choice of codes; else as every competitor's."""
        if self.config.outputs == 1 or self.design.answer != "codes":
            return super().loss(rows, valid)
        kept = rows.select(valid.nonzero().flatten())
        with torch.no_grad():
            target = self.teacher.codes(kept.trace, patch_frames=self.model.patch_frames)
        return code_loss(self._answers(kept), target)

    def _encoded(self, rows: Examples) -> Tensor:
        neuron = self.tokens.neuron(rows.neuron)
        told = [self.cls_token.expand_as(neuron)] if self.config.outputs == 1 else []
        told += [neuron, self.tokens.stimulus(rows.features, rows.stimulus)]
        patches = self.encoder.embedding(to_patches(rows.baseline, patch_frames=self.model.patch_frames))
        sequence = [torch.stack(told, dim=1), patches]
        if self.config.outputs != 1:
            masks = self.encoder.mask_token + self.encoder.embedding.position[self.model.baseline_patches :]
            sequence.append(masks.expand(len(patches), -1, -1))
        encoded: Tensor = self.encoder.transformer(torch.cat(sequence, dim=1))
        return encoded

    def _answers(self, rows: Examples) -> Tensor:
        """What the head says of all ten patches ``[B, 10, outputs]``."""
        made: Tensor = self.head(self._encoded(rows)[:, 2:])
        return made

    def _decoded(self, answers: Tensor) -> Tensor:
        if self.design.answer == "frames":
            return from_patches(answers[:, self.model.baseline_patches :])
        latents = answers
        if self.design.answer == "codes":
            latents = answers.softmax(-1) @ self.teacher.codebook.codebook
        return self.teacher.decode(latents)[:, self.model.baseline_frames :]
