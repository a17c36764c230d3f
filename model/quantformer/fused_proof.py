"""Proof, before training takes fused layers, that on this GPU they are the layers.

A kernel is compiled where it runs: nobody has seen what this card, driver and compiler make of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from quantformer.config import ModelConfig
from quantformer.layers import Block

_log = logging.getLogger(__name__)

#: Sequences and tokens that are asked about: full tiles and a part of one.
SHAPE = (13, 12)
#: Largest relative difference (root of sums of squares) of the answer or of a gradient, bfloat16 against float32: an H200's are
#: at most 0.005, as those of plain layers in bfloat16 are.
ALLOWED = 0.03
#: Share that dropout takes in the proof, and how far off it may be.
DROPOUT, DROPOUT_OFF = 0.1, 0.02


def agree(device: torch.device) -> bool:
    """Whether a fused layer and norm answer and learn as the plain ones on ``device``; where not, the log says why."""
    try:
        found = differences(device)
    except Exception as error:
        # Whatever a compiler raises: layers are computed by plain products then, which is slower and right.
        _log.warning("layers are not fused on %s: %s: %s", device, type(error).__name__, error)
        return False
    # So written that NaN is refused too.
    if wrong := [f"{name} by {off:.2g}" for name, off in found.items() if not off <= ALLOWED]:
        _log.warning("layers are not fused on %s, where they are off: %s (allowed %g)", device, ", ".join(wrong), ALLOWED)
        return False
    _log.info("layers are fused on %s; largest relative difference %.2g", device, max(found.values()))
    return True


def differences(device: torch.device) -> dict[str, float]:
    """Of the answer, of its slopes and of every weight's gradient, the relative difference between fused and plain; and of
    dropout the share it takes, less what it should, on the scale of `ALLOWED`.
    """
    from quantformer import fused

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.autocast(device.type, enabled=False):
        torch.manual_seed(0)
        block, norm = Block(ModelConfig(dropout=DROPOUT)).to(device).eval(), nn.LayerNorm(ModelConfig().d).to(device)
        layer = nn.ModuleList([block, norm])
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        tokens, slope = torch.randn(2, *SHAPE, ModelConfig().d, device=device)

        def learned(answer_of: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
            given = tokens.clone().requires_grad_()
            answer = answer_of(given)
            slopes = torch.autograd.grad(answer, [given, *layer.parameters()], slope.to(answer.dtype))
            names = ("answer", "slopes", *(name for name, _ in layer.named_parameters()))
            return dict(zip(names, (answer.detach(), *slopes), strict=True))

        with torch.enable_grad():
            plain = learned(lambda given: norm(block.feed(block.attend(given))))
            narrow = learned(
                lambda given: fused.normed(norm, fused.feed(block, fused.attend(block, given.to(torch.bfloat16))))
            )
        found = {name: _relative(narrow[name], one) for name, one in plain.items()}
        with torch.no_grad():
            # Of a token of zeros what is left of the residual is what dropout leaves.
            fed = fused.feed(block.train(), torch.zeros_like(tokens))
        taken = float((fed == 0).float().mean())
        return found | {"dropout": abs(taken - DROPOUT) / DROPOUT_OFF * ALLOWED}


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())
