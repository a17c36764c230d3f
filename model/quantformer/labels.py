"""What *active* means: three definitions on the response's dF/F, one of which a bundle carries."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Definition = Literal["signed", "absolute", "evoked"]

#: Frames of the response that the label averages, by category (paper appendix, "Window").
LABEL_FRAMES = {"drifting_gratings": 60, "static_gratings": 15, "natural_scenes": 15, "locally_sparse_noise": 15}
#: For categories of the user's own.
OTHER_LABEL_FRAMES = 60
#: How far above its bar a score of each definition counts as active by 0.73 (`graded`).
GRADES: MappingProxyType[Definition, float] = MappingProxyType({"signed": 0.02, "absolute": 0.02, "evoked": 0.4})
#: Frames at the end of the baseline whose mean is taken as the calcium that is still decaying.
END_FRAMES = 5


@dataclass(frozen=True, kw_only=True)
class LabelRule:
    """Definition, threshold and, for ``evoked``, the decay constant.

    ``signed`` (the paper's, after Chen et al. 2013): mean dF/F >= ``threshold``. ``absolute`` (the authors' released
    code): mean of the absolute dF/F >= ``threshold``. ``evoked``: mean dF/F less the decay expected from the baseline's
    own calcium, as a z-score of the neuron's distribution of the same quantity at pseudo-onsets, >= ``threshold_z``.
    """

    definition: Definition = "signed"
    threshold: float = 0.10
    threshold_z: float = 2.0
    decay_frames: float = 30.0

    @property
    def bar(self) -> float:
        """What `score` has to reach."""
        return self.threshold_z if self.definition == "evoked" else self.threshold


def label_frames(category: str) -> int:
    """Frames of the response that decide whether a neuron was active after a stimulus of this category."""
    return LABEL_FRAMES.get(category, OTHER_LABEL_FRAMES)


def evoked_area(
    baseline: NDArray[np.float32], response: NDArray[np.float32], *, frames: int, decay_frames: float
) -> NDArray[np.float64]:
    """Mean dF/F over ``frames`` of the response less the decay of the last baseline value; ``(..., 96), (..., 64)``."""
    end = baseline[..., -END_FRAMES:].mean(-1, dtype=np.float64)
    # The mean of exp(-t / decay) over the averaged frames, counted from the middle of the end of the baseline.
    elapsed = np.arange(frames) + (END_FRAMES + 1) / 2
    remaining = float(np.exp(-elapsed / decay_frames).mean())
    area: NDArray[np.float64] = response[..., :frames].mean(-1, dtype=np.float64) - end * remaining
    return area


def score(
    rule: LabelRule,
    *,
    baseline: NDArray[np.float32],
    response: NDArray[np.float32],
    frames: int,
    pseudo_mean: NDArray[np.float64] | float = 0.0,
    pseudo_sd: NDArray[np.float64] | float = 1.0,
) -> NDArray[np.float64]:
    """What a definition measures, a response being active where it reaches the rule's `LabelRule.bar`: dF/F ``(..., 96)`` and
    ``(..., 64)`` to ``(...)``.

    ``pseudo_mean`` and ``pseudo_sd`` are the neuron's mean and standard deviation of `evoked_area` at pseudo-onsets.
    """
    window = response[..., :frames]
    if rule.definition == "signed":
        return np.asarray(window.mean(-1, dtype=np.float64))
    if rule.definition == "absolute":
        return np.asarray(np.abs(window).mean(-1, dtype=np.float64))
    area = evoked_area(baseline, response, frames=frames, decay_frames=rule.decay_frames)
    return np.asarray((area - pseudo_mean) / pseudo_sd)


def graded(rule: LabelRule, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """How active each `score` is, between 0 and 1: a half at the bar, 0.73 a fifth of the usual bar above it (0.02 dF/F, or
    0.4 of a z-score).

    A response just below the bar says more of a neuron than none at all, and noise alone may have kept it there.
    """
    return 1.0 / (1.0 + np.exp(np.clip((rule.bar - scores) / GRADES[rule.definition], -500.0, 500.0)))
