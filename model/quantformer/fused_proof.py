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
#: Share that dropout takes in the proof.
DROPOUT = 0.1


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
    """Of the answer, of its slopes and of every weight's gradient, the relative difference between fused and plain; of dropout
    that of the share it takes to what it should, and of the slopes it lets back to those of the elements that it let through.
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
            # Of tokens that are zeros what dropout leaves is what is there: enough of them for a share within a hundredth.
            slope = slope.repeat(32, 1, 1)
            fed = fused.feed(block.train(), torch.zeros_like(slope))
            (back,) = torch.autograd.grad(fed, block.contract.bias, slope)
        found = {name: _relative(narrow[name], one) for name, one in plain.items()}
        kept = fed.detach() != 0
        let_back = (kept * slope).sum((0, 1)) / (1.0 - DROPOUT)
        share = abs(float(kept.float().mean()) - (1.0 - DROPOUT)) / DROPOUT
        return found | {"dropout's share": share, "dropout's slopes": _relative(back, let_back)}


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())
