"""Quantisation quality (figure A-7): what 32 codes keep of a trace, and which of the codes are in use."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from quantformer.errors import DataError
from quantformer.trace_metrics import pearson_rows, squared_error
from quantformer_training.drawing import GREY, INK, LIGHT, OTHERS, style
from quantformer_training.loop import in_batches
from quantformer_training.pretrain import Pretrained
from quantformer_training.report import ACCENT

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Of ``rows`` windows: mean signed r of the reconstruction and its number of undefined (flat) rows, mean squared error
    in (dF/F)^2, and the share of the traces' variance that is kept (1 is all; 0 or less is none). NaN for no rows.
    """

    rows: int
    r: float
    r_undefined: int
    mse: float
    variance_kept: float


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizationQuality:
    """What encoding whole windows to codes and decoding them again leaves, nothing masked.

    ``codes`` int ``(n, P)``; ``target`` and ``reconstruction`` dF/F float64 ``(n, 160)``; ``active`` bool ``(n,)``;
    ``usage`` ``(K,)`` is the share of all patches that each code stands for. ``examples`` are rows at the 10th, 50th and
    90th percentile of r, of active windows and then of inactive ones.
    """

    codes: NDArray[np.int64]
    target: Floats
    reconstruction: Floats
    active: NDArray[np.bool_]
    usage: Floats
    fidelity_active: Fidelity
    fidelity_inactive: Fidelity
    examples: tuple[int, ...]

    @property
    def perplexity(self) -> float:
        """Codes in effective use: ``exp`` of the entropy of their usage, from 1 to K."""
        used = self.usage[self.usage > 0]
        return float(np.exp(-(used * np.log(used)).sum()))

    @property
    def dead(self) -> int:
        """Codes that stand for no patch of these windows."""
        return int((self.usage == 0).sum())

    def numbers(self) -> dict[str, float]:
        """What the caption and tables state."""
        made: dict[str, float] = {"windows": len(self.active), "codes": len(self.usage), "dead_codes": self.dead}
        made["perplexity"] = self.perplexity
        for name, found in (("active", self.fidelity_active), ("inactive", self.fidelity_inactive)):
            made |= {f"{key}_{name}": getattr(found, key) for key in ("rows", "r", "mse", "variance_kept")}
        return made


@torch.no_grad()
def quantization_quality(pretrained: Pretrained, trace: torch.Tensor, active: NDArray[np.bool_]) -> QuantizationQuality:
    """Encode and decode windows ``[n, 160]``, in signal scales as `Examples.trace` is; ``active`` bool ``(n,)``.

    Raises:
        DataError: there is no window, or a label is missing.
    """
    rows = len(trace)
    if rows == 0 or np.shape(active) != (rows,):
        raise DataError(f"{rows} windows and labels of shape {np.shape(active)}; at least one window, one label each")
    autoencoder, config = pretrained.autoencoder, pretrained.config
    codes, decoded = [], []
    for piece in in_batches(torch.arange(rows), 1024):
        found = autoencoder.codes(trace[piece], patch_frames=config.patch_frames)
        codes.append(found)
        decoded.append(autoencoder.decode(autoencoder.codebook.codebook[found]))
    chosen = torch.cat(codes)
    target = trace.double().numpy() * pretrained.signal_scale
    reconstruction = torch.cat(decoded).double().numpy() * pretrained.signal_scale
    counts = np.bincount(chosen.numpy().ravel(), minlength=config.codes)
    labels = np.asarray(active, bool)
    r = pearson_rows(reconstruction, target)
    return QuantizationQuality(
        codes=chosen.numpy(),
        target=target,
        reconstruction=reconstruction,
        active=labels,
        usage=counts / counts.sum(),
        fidelity_active=_fidelity(reconstruction[labels], target[labels], r[labels]),
        fidelity_inactive=_fidelity(reconstruction[~labels], target[~labels], r[~labels]),
        examples=(*_at_quantiles(r, labels), *_at_quantiles(r, ~labels)),
    )


def draw_quantization(quality: QuantizationQuality, *, rate_hz: float, baseline_frames: int) -> Figure:
    """Examples chosen by rank of r, the distribution of r, and how often each code is used."""
    with style():
        figure = Figure(figsize=(10.4, 6.6), layout="constrained")
        grid = figure.add_gridspec(3, 3, height_ratios=[1.0, 1.0, 1.15])
        r = pearson_rows(quality.reconstruction, quality.target)
        for place, row in enumerate(quality.examples):
            axis = figure.add_subplot(grid[place // 3, place % 3])
            time = (np.arange(quality.target.shape[1]) - baseline_frames) / rate_hz
            axis.axvline(0.0, color=LIGHT, linewidth=1)
            axis.plot(time, quality.target[row], color=INK, linewidth=0.9, label="measured")
            axis.plot(time, quality.reconstruction[row], color=OTHERS[0], linewidth=1.4, label="from its codes")
            label = "active" if quality.active[row] else "not active"
            axis.set_title(f"{label}, r = {r[row]:.2f}", fontsize=8, loc="left")
            axis.set_ylabel("dF/F" if place % 3 == 0 else "")
            axis.set_xlabel("time from onset, s" if place >= 3 else "")
            if place == 0:
                axis.legend(fontsize=7, loc="upper left")
        axis = figure.add_subplot(grid[2, 0])
        bins = np.linspace(-1.0, 1.0, 41).tolist()
        for mask, colour, name in ((quality.active, ACCENT, "active"), (~quality.active, GREY, "not active")):
            values = r[mask & ~np.isnan(r)]
            if len(values):
                axis.hist(values, bins=bins, weights=np.full(len(values), 1 / len(values)), color=colour, alpha=0.6,
                          label=f"{name} (mean {values.mean():.2f})")  # fmt: skip
        axis.set_xlabel("r of reconstruction and trace")
        axis.set_ylabel("share of windows")
        axis.legend(fontsize=7, loc="upper left")
        axis = figure.add_subplot(grid[2, 1:])
        order = np.argsort(-quality.usage, kind="stable")
        axis.bar(np.arange(len(order)), 100 * quality.usage[order], color=ACCENT, width=0.8)
        axis.set_xticks(np.arange(len(order)), [str(code) for code in order], fontsize=6 if len(order) > 20 else 8)
        axis.set_xlabel("code, most used first")
        axis.set_ylabel("share of patches, %")
        axis.set_title(
            f"{quality.perplexity:.1f} of {len(order)} codes in effective use, {quality.dead} never",
            fontsize=8,
            loc="left",
        )
        return figure


def _fidelity(reconstruction: Floats, target: Floats, r: Floats) -> Fidelity:
    nothing = float("nan")
    if not len(target):
        return Fidelity(rows=0, r=nothing, r_undefined=0, mse=nothing, variance_kept=nothing)
    defined = r[~np.isnan(r)]
    mse, variance = float(squared_error(reconstruction, target).mean()), float(target.var())
    return Fidelity(
        rows=len(target),
        r=float(defined.mean()) if len(defined) else nothing,
        r_undefined=len(r) - len(defined),
        mse=mse,
        variance_kept=1.0 - mse / variance if variance > 0 else nothing,
    )


def _at_quantiles(r: Floats, mask: NDArray[np.bool_]) -> list[int]:
    rows = np.flatnonzero(mask & ~np.isnan(r))
    if not len(rows):
        return []
    ordered = rows[np.argsort(r[rows], kind="stable")]
    return [int(ordered[round(share * (len(ordered) - 1))]) for share in (0.1, 0.5, 0.9)]
