"""What codes stand for (figure A-9): a map of the codebook, and what one code becomes among others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from quantformer.errors import DataError
from quantformer_training.drawing import INK, LIGHT, OTHERS, SHADES, style
from quantformer_training.explain.projection import PlaneTest, plane_test, tsne
from quantformer_training.pretrain import Pretrained
from quantformer_training.report import ACCENT

#: Contexts drawn of the sequence effect.
DRAWN_CONTEXTS = 5

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class CodeMap:
    """t-SNE of the codes in use. ``code`` int ``(n,)``; ``position`` ``(n, 2)``; ``patch`` dF/F ``(n, frames)``, the mean
    patch that each stood for in pre-training; ``usage`` ``(n,)``, its share of patches; ``left_out`` the codes not in use,
    which stand for nothing. ``amplitude_across`` tests whether the patches' mean grows across the map (figure A-9 a).
    """

    code: NDArray[np.int64]
    position: Floats
    patch: Floats
    usage: Floats
    left_out: tuple[int, ...]
    amplitude_across: PlaneTest

    def numbers(self) -> dict[str, float]:
        """What the caption and tables state."""
        return {
            "codes_shown": len(self.code),
            "codes_unused": len(self.left_out),
            "amplitude_across_map_r2": self.amplitude_across.r_squared,
            "amplitude_across_map_chance_r2": self.amplitude_across.chance_high,
            "amplitude_across_map_p": self.amplitude_across.p,
        }


def code_map(pretrained: Pretrained, usage: NDArray[np.floating], *, seed: int) -> CodeMap:
    """Lay out the codebook; ``usage`` ``(K,)`` is from `quantization_quality`.

    Raises:
        DataError: fewer than four codes are in use.
    """
    vectors = pretrained.autoencoder.codebook.codebook.double().numpy()
    used = used_codes(pretrained, usage)
    patch = pretrained.code_patch.double().numpy()[used] * pretrained.signal_scale
    position = tsne(vectors[used], seed=seed)
    return CodeMap(
        code=used,
        position=position,
        patch=patch,
        usage=np.asarray(usage, np.float64)[used],
        left_out=tuple(int(code) for code in np.setdiff1d(np.arange(len(vectors)), used)),
        amplitude_across=plane_test(position, patch.mean(axis=1), seed=seed),
    )


def used_codes(pretrained: Pretrained, usage: NDArray[np.floating]) -> NDArray[np.int64]:
    """Codes that stand for at least one patch, in order.

    Raises:
        DataError: ``usage`` is not one number a code.
    """
    if np.shape(usage) != (pretrained.config.codes,):
        raise DataError(
            f"usage has shape {np.shape(usage)}, expected ({pretrained.config.codes},): one share a code of the codebook"
        )
    return np.flatnonzero(np.asarray(usage) > 0).astype(np.int64)


def draw_code_map(found: CodeMap) -> Figure:
    """Each code's mean patch at its place, (a) all on one scale and (b) each on its own."""
    with style():
        figure = Figure(figsize=(10.4, 5.0), layout="constrained")
        axes = figure.subplots(1, 2)
        low, high = found.position.min(axis=0), found.position.max(axis=0)
        width, height = 0.085 * (high - low)
        frames = np.linspace(-0.5, 0.5, found.patch.shape[1])
        centred = found.patch - found.patch.mean(axis=1, keepdims=True)
        common = max(float(np.abs(found.patch).max()), 1e-12)
        own = np.maximum(np.abs(centred).max(axis=1, keepdims=True), 1e-12)
        scaled = (found.patch / common, 0.5 * centred / own)
        titles = (
            f"(a) one scale: grey is zero, the largest deflection {common:.2f} dF/F",
            "(b) each patch less its mean, on its own scale",
        )
        shade = found.usage / max(float(found.usage.max()), 1e-12)
        for axis, patches, title in zip(axes, scaled, titles, strict=True):
            for code, (x, y), patch, level in zip(found.code, found.position, patches, shade, strict=True):
                axis.plot(x + width * frames, np.full(len(frames), y), color=LIGHT, linewidth=0.8)
                axis.plot(x + width * frames, y + height * patch, color=SHADES(0.35 + 0.65 * level), linewidth=1.4)
                axis.annotate(str(code), (x - 0.5 * width, y), fontsize=6, color=INK, ha="right", va="center")
            axis.set_title(title, fontsize=8, loc="left")
            axis.set_xlim(low[0] - 1.2 * width, high[0] + 1.2 * width)
            axis.set_ylim(low[1] - 1.5 * height, high[1] + 1.5 * height)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlabel("t-SNE 1 (no unit)")
        axes[0].set_ylabel("t-SNE 2 (no unit)")
        return figure


@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceEffect:
    """What the decoder makes of one code amid a burst of another (figure A-9 c).

    ``code`` int ``(n,)`` are the codes in use; ``position`` the patch that is replaced. ``trace`` dF/F
    ``(n, n, 160)`` decodes a burst of code ``[i]`` with code ``[j]`` in it, ``patch`` ``(n, n, frames)`` is that place of
    it. ``effect`` ``(n, n)`` is the RMS difference between ``patch[i, j]`` and the same place of a burst of ``[j]`` alone:
    zero where i = j. ``context_share`` is the share of the variance of ``patch`` that codes alone do not explain.
    """

    code: NDArray[np.int64]
    position: int
    trace: Floats
    patch: Floats
    effect: Floats
    context_share: float

    @property
    def peak(self) -> int:
        """Index of the code whose own burst decodes to the largest mean in that place."""
        index = np.arange(len(self.code))
        return int(self.patch[index, index].mean(axis=1).argmax())

    def contexts(self, count: int = DRAWN_CONTEXTS) -> list[int]:
        """Indices of bursts that are drawn: at equal steps of rank of their own decoded mean, the peak's own included."""
        index = np.arange(len(self.code))
        order = np.argsort(self.patch[index, index].mean(axis=1), kind="stable")
        steps = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
        return [int(order[step]) for step in steps]

    def numbers(self) -> dict[str, float]:
        """What the caption and tables state."""
        index = np.arange(len(self.code))
        apart = self.effect[~np.eye(len(self.code), dtype=bool)]
        own = np.sqrt(np.square(self.patch[index, index]).mean())
        return {
            "codes": len(self.code),
            "effect_rms_median": float(np.median(apart)) if len(apart) else float("nan"),
            "own_burst_rms": float(own),
            "context_share_of_variance": self.context_share,
            "peak_code": int(self.code[self.peak]),
        }


@torch.no_grad()
def sequence_effect(pretrained: Pretrained, codes: Sequence[int] | NDArray[np.integer]) -> SequenceEffect:
    """Decode every burst of one of ``codes`` with another of them in the middle: ``n * n`` sequences, no randomness.

    Raises:
        DataError: no code was given, or one that the codebook does not have.
    """
    config, autoencoder = pretrained.config, pretrained.autoencoder
    chosen = np.asarray(codes, np.int64)
    if chosen.ndim != 1 or not len(chosen) or chosen.min() < 0 or chosen.max() >= config.codes:
        raise DataError(f"codes are {chosen.tolist()}; expected at least one, from 0 to {config.codes - 1}")
    place = config.patches // 2
    count, frames = len(chosen), config.patch_frames
    traces = np.empty((count, count, config.patches * frames))
    for i, burst in enumerate(chosen):
        sequence = torch.full((count, config.patches), int(burst))
        sequence[:, place] = torch.from_numpy(chosen)
        traces[i] = autoencoder.decode(autoencoder.codebook.codebook[sequence]).double().numpy()
    traces *= pretrained.signal_scale
    patch = traces[:, :, place * frames : (place + 1) * frames]
    index = np.arange(count)
    # Each row of a batch is decoded alike, yet not to the last bit: the burst's own row is its own reference.
    alone = patch[index, index]
    effect = np.sqrt(np.square(patch - alone[None]).mean(axis=-1))
    total = float(np.square(patch - patch.mean(axis=(0, 1))).sum())
    within = float(np.square(patch - patch.mean(axis=0)).sum())
    return SequenceEffect(
        code=chosen,
        position=place,
        trace=traces,
        patch=patch,
        effect=effect,
        context_share=within / total if total > 0 else float("nan"),
    )


def draw_sequence_effect(found: SequenceEffect, *, rate_hz: float) -> Figure:
    """The peak code amid bursts of others, the replaced patch between dashed lines; beside it that patch in all bursts."""
    with style():
        contexts, peak = found.contexts(), found.peak
        frames = found.patch.shape[-1]
        start, stop = found.position * frames / rate_hz, (found.position + 1) * frames / rate_hz
        figure = Figure(figsize=(10.4, 0.9 * len(contexts) + 1.0), layout="constrained")
        grid = figure.add_gridspec(len(contexts), 2, width_ratios=[2.2, 1.0])
        drawn = found.trace[contexts, peak]
        margin = 0.06 * max(float(np.ptp(drawn)), 1e-12)
        for place, burst in enumerate(contexts):
            axis = figure.add_subplot(grid[place, 0])
            trace = found.trace[burst, peak]
            axis.plot(np.arange(len(trace)) / rate_hz, trace, color=ACCENT, linewidth=1.3)
            for edge in (start, stop):
                axis.axvline(edge, color=OTHERS[0], linewidth=0.9, linestyle="--")
            axis.set_ylim(float(drawn.min()) - margin, float(drawn.max()) + margin)
            axis.set_title(
                f"burst of code {found.code[burst]}, code {found.code[peak]} between the dashed lines",
                fontsize=7,
                loc="left",
            )
            if place < len(contexts) - 1:
                axis.set_xticklabels([])
        axis.set_xlabel("time in the sequence, s")
        figure.supylabel("decoded dF/F", fontsize=9)
        axis = figure.add_subplot(grid[:, 1])
        time = np.arange(frames) / rate_hz
        for burst in range(len(found.code)):
            axis.plot(time, found.patch[burst, peak], color=LIGHT, linewidth=0.8)
        axis.plot(time, found.patch[peak, peak], color=OTHERS[0], linewidth=1.6, label="in a burst of its own")
        axis.plot(time, found.patch[:, peak].mean(axis=0), color=INK, linewidth=1.6, label="mean of all bursts")
        axis.set_title(f"code {found.code[peak]} in each of {len(found.code)} bursts", fontsize=8, loc="left")
        axis.set_xlabel("time in the patch, s")
        axis.legend(fontsize=7)
        return figure
