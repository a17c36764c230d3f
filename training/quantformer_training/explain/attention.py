"""Attention rollout (figure A-8): which tokens [CLS] and the response's masks draw on, and what goes round them.

Rollout (Abnar and Zuidema 2020) multiplies, layer by layer, ``0.5 A + 0.5 I`` with A averaged over heads. It says where
attention looks, not what moves the answer; and the network's linear shortcut passes by attention altogether, so its share
of the answer's variance is measured beside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from quantformer.config import ModelConfig
from quantformer.errors import DataError
from quantformer.forecaster import ActivationNetwork, ResponseNetwork
from quantformer.layers import Block, Transformer
from quantformer_training.drawing import SHADES, style
from quantformer_training.examples import Examples
from quantformer_training.explain.embeddings import TASKS
from quantformer_training.finetune import TrainedModel

#: Rows of a category that are rolled out, at random.
MOST_ROWS = 2000
#: Largest difference between the network's own output and the one recomputed here with its attention in the open.
TOLERANCE = 1e-4

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Attended:
    """``weights`` ``[layers, B, heads, P, P]``, rows over the keys sum to one; ``encoded`` ``[B, P, d]``."""

    weights: Tensor
    encoded: Tensor


@torch.no_grad()
def attend(transformer: Transformer, tokens: Tensor) -> Attended:
    """Run a transformer block by block with the attention weights kept; ``tokens`` ``[B, P, d]``, no dropout."""
    kept = []
    for block in transformer.blocks:
        assert isinstance(block, Block)
        length, d = tokens.shape[1], tokens.shape[2]
        projected = block.query_key_value(block.attention_norm(tokens))
        query, key, value = (
            projected.reshape(-1, length, 3, block.heads, d // block.heads).permute(2, 0, 3, 1, 4).unbind(0)
        )
        weights = (query @ key.transpose(-1, -2) / (d // block.heads) ** 0.5).softmax(-1)
        mixed = (weights @ value).transpose(1, 2).reshape(-1, length, d)
        tokens = tokens + block.attention_out(mixed)
        tokens = tokens + block.contract(functional.gelu(block.expand(block.feedforward_norm(tokens))))
        kept.append(weights)
    return Attended(weights=torch.stack(kept), encoded=transformer.norm(tokens))


def rollout(weights: Tensor) -> Tensor:
    """``[B, P, P]`` from weights ``[layers, B, heads, P, P]``: row i is what token i of the last layer drew from each input
    token; rows sum to one.
    """
    length = weights.shape[-1]
    identity = torch.eye(length, dtype=torch.float64)
    total = identity.expand(weights.shape[1], length, length)
    for layer in weights.double().mean(2):
        mixed = 0.5 * layer + 0.5 * identity
        total = (mixed / mixed.sum(-1, keepdim=True)) @ total
    return total


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskAttention:
    """One task on the rows of one category.

    ``tokens`` names the input tokens; ``share`` ``(P,)`` is the mean rollout from the asking tokens (``asking`` bool
    ``(P,)``: [CLS], or the response's masks) and ``deviation`` its standard deviation over rows; sums to one. ``uniform``
    ``(P,)`` is what attention that looks everywhere alike would give.
    ``shortcut_share`` is the shortcut's share of the answer's variance, ``cov(shortcut, answer) / var(answer)``: of the
    logit, or of the forecast in signal scales. Shares of the parts of a sum add to one; a part that works against the
    others is below 0, and then another is above 1. NaN where the answer does not vary.
    """

    rows: int
    tokens: tuple[str, ...]
    asking: NDArray[np.bool_]
    share: Floats
    deviation: Floats
    uniform: Floats
    shortcut_share: float

    def outside(self) -> Floats:
        """Of what was drawn from tokens that do not ask, the part of each; zero for those that do. Sums to one."""
        others = np.where(self.asking, 0.0, self.share)
        return np.asarray(others / others.sum())


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionByCategory:
    """``found[category][task]``."""

    found: Mapping[str, Mapping[str, TaskAttention]]

    def most_drawn_on(self, task: str) -> dict[str, str]:
        """Of each category, the token that a task draws most on beside what asks."""
        tasks = {category: found[task] for category, found in self.found.items()}
        return {category: one.tokens[int(one.outside().argmax())] for category, one in tasks.items()}

    def numbers(self) -> dict[str, float]:
        """What the caption and tables state: for each category and task, parts in percent and the shortcut's share."""
        made: dict[str, float] = {}
        for category, tasks in self.found.items():
            for task, one in tasks.items():
                part = dict(zip(one.tokens, one.outside().tolist(), strict=True))
                patches = [value for name, value in part.items() if name.startswith("patch")]
                made |= {
                    f"{category}_{task}_rows": one.rows,
                    f"{category}_{task}_neuron": part["[NEURON]"],
                    f"{category}_{task}_stimulus": part["[STIM]"],
                    f"{category}_{task}_patches": sum(patches),
                    f"{category}_{task}_patch_mean": sum(patches) / len(patches),
                    f"{category}_{task}_on_itself": float(one.share[one.asking].sum()),
                    f"{category}_{task}_shortcut_share_of_variance": one.shortcut_share,
                }
        return made


def attention_by_category(
    models: Mapping[str, TrainedModel], rows: Mapping[str, Examples], *, seed: int
) -> AttentionByCategory:
    """Roll out both tasks on up to `MOST_ROWS` rows, drawn at random, of each category.

    Raises:
        DataError: there is no category, one has no row, or the network's layers are not those that `attend` runs.
    """
    if not rows:
        raise DataError("no category has a row to look at")
    found = {}
    for place, (category, examples) in enumerate(rows.items()):
        if not len(examples):
            raise DataError(f"{category}: no row to look at")
        chosen = np.random.default_rng((seed, place)).permutation(len(examples))[:MOST_ROWS]
        found[category] = _look(models[category], examples.select(torch.from_numpy(np.sort(chosen))))
    return AttentionByCategory(found=found)


def token_names(config: ModelConfig, *, task: str, length: int) -> tuple[str, ...]:
    """Names of a task's input tokens (sections 3.4.1 and 3.4.2); whatever stands between [STIM] and the patches is
    ``[OTHER]``.

    Raises:
        DataError: the sequence is too short for that order.
    """
    first = ("[CLS]", "[NEURON]", "[STIM]") if task == "activation" else ("[NEURON]", "[STIM]")
    last = tuple(f"patch {i + 1}" for i in range(config.baseline_patches))
    if task == "forecast":
        last += tuple(f"mask {i + 1}" for i in range(config.response_patches))
    between = length - len(first) - len(last)
    if between < 0:
        raise DataError(f"{task}: {length} tokens found, at least {len(first) + len(last)} expected")
    return first + tuple("[OTHER]" if between == 1 else f"[OTHER {i + 1}]" for i in range(between)) + last


def draw_attention(found: AttentionByCategory) -> Figure:
    """A row a category, a column a token that does not ask; each row sums to 100 %."""
    with style():
        categories = list(found.found)
        figure = Figure(figsize=(10.4, 2 * (0.42 * len(categories) + 1.15)), layout="constrained")
        axes = figure.subplots(len(TASKS), 1)
        for axis, task in zip(axes, TASKS, strict=True):
            ones = [found.found[category][task] for category in categories]
            quiet = ~ones[0].asking
            percent = 100 * np.stack([one.outside()[quiet] for one in ones])
            level = 100 / quiet.sum()
            most = max(float(percent.max()), 2 * level)
            mesh = axis.pcolormesh(percent, cmap=SHADES, vmin=0.0, vmax=most,
                                   edgecolors="white", linewidth=1.5)  # fmt: skip
            for (row, column), value in np.ndenumerate(percent):
                dark = value > 0.55 * most
                axis.annotate(f"{value:.0f}", (column + 0.5, row + 0.5), ha="center", va="center", fontsize=8,
                              color="white" if dark else "black")  # fmt: skip
            names = [name for name, kept in zip(ones[0].tokens, quiet, strict=True) if kept]
            axis.set_xticks(np.arange(len(names)) + 0.5, names)
            labels = [
                f"{category.replace('_', ' ')}\nshortcut: {100 * one.shortcut_share:.0f} % of variance"
                for category, one in zip(categories, ones, strict=True)
            ]
            axis.set_yticks(np.arange(len(labels)) + 0.5, labels, fontsize=7)
            axis.invert_yaxis()
            axis.tick_params(length=0)
            asker = "[CLS]" if task == "activation" else "the response's masks"
            itself = 100 * np.mean([one.share[one.asking].sum() for one in ones])
            axis.set_title(
                f"{task}: from {asker}, % of what is drawn from other tokens (alike everywhere: {level:.0f} each; "
                f"{itself:.0f} % stays on what asks)", fontsize=8, loc="left",
            )  # fmt: skip
            figure.colorbar(mesh, ax=axis, fraction=0.03, pad=0.01)
        return figure


@dataclass
class _Caught:
    """What passed through one network while it was asked: token sequences, encodings, the shortcut's part, answers."""

    sequences: list[Tensor]
    encoded: list[Tensor]
    shortcut: list[Tensor]


def _look(model: TrainedModel, rows: Examples) -> dict[str, TaskAttention]:
    forecaster = model.forecaster
    networks: dict[str, ActivationNetwork | ResponseNetwork] = {
        "activation": forecaster.activation,
        "forecast": forecaster.response,
    }
    with _catching(networks) as caught:
        prediction = model.predict(rows)
    answers = {"activation": prediction.logit, "forecast": prediction.response / float(forecaster.signal_scale)}
    found = {}
    for task, seen in caught.items():
        made = attend(networks[task].encoder.transformer, torch.cat(seen.sequences))
        away = float((made.encoded[:, networks[task].READ] - torch.cat(seen.encoded)).abs().max())
        if not away <= TOLERANCE:
            raise DataError(
                f"{task}: attention recomputed here differs by {away:.2g} from the network's own, expected at most "
                f"{TOLERANCE}; 'attend' must follow quantformer.layers"
            )
        names = token_names(forecaster.config, task=task, length=made.encoded.shape[1])
        asking = np.array([name == "[CLS]" if task == "activation" else name.startswith("mask") for name in names])
        drawn = rollout(made.weights)[:, torch.from_numpy(asking)].mean(1).numpy()
        alike = torch.full((made.weights.shape[0], 1, 1, len(names), len(names)), 1 / len(names))
        found[task] = TaskAttention(
            rows=len(rows),
            tokens=names,
            asking=asking,
            share=drawn.mean(axis=0),
            deviation=drawn.std(axis=0),
            uniform=rollout(alike)[0, torch.from_numpy(asking)].mean(0).numpy(),
            shortcut_share=_share_of_variance(torch.cat(seen.shortcut).numpy(), answers[task]),
        )
    return found


@contextmanager
def _catching(networks: Mapping[str, nn.Module]) -> Iterator[dict[str, _Caught]]:
    """Record what passes through the networks while they are asked inside, however their inputs are put together."""
    caught, hooks = {}, []
    for task, network in networks.items():
        seen = _Caught(sequences=[], encoded=[], shortcut=[])

        def transformed(_: nn.Module, given: tuple[Tensor, ...], made: Tensor, seen: _Caught = seen) -> None:
            seen.sequences.append(given[0])
            seen.encoded.append(made)

        def passed(_: nn.Module, given: tuple[Tensor, ...], made: Tensor, seen: _Caught = seen) -> None:
            seen.shortcut.append(made)

        hooks.append(network.get_submodule("encoder.transformer").register_forward_hook(transformed))
        hooks.append(network.get_submodule("shortcut").register_forward_hook(passed))
        caught[task] = seen
    try:
        yield caught
    finally:
        for hook in hooks:
            hook.remove()


def _share_of_variance(part: NDArray[np.floating], whole: NDArray[np.floating]) -> float:
    """``cov(part, whole) / var(whole)``, frame by frame and summed."""
    part, whole = (np.asarray(values, np.float64).reshape(len(whole), -1) for values in (part, whole))
    whole = whole - whole.mean(axis=0)
    variance = float(np.square(whole).sum())
    return float((part * whole).sum() / variance) if variance > 0 else float("nan")
