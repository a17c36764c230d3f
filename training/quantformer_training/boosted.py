"""What boosted trees say of each row, beside what happened: activation is learned from both.

Beyond the paper. A label is one draw of a chance; what trees say of a row is an estimate of the chance itself, and bends where a
linear shortcut cannot: a transient under way means little to a silent neuron. They read what the shortcut reads, nothing more, so
that whatever they know a network can learn; what it learns beyond them comes from what happened. The population's level they do
not read: all rows of a moment share it, and on three of four development sets trees that read it were worse (docs/training.md).
Trees are not served.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits
from torch import Tensor

from quantformer.forecaster import SHORTCUT_GAIN, ActivationShortcut
from quantformer_training.examples import Examples

TREES, LEAVES, RATE = 120, 4, 0.05


@dataclass(frozen=True, kw_only=True, eq=False)
class BoostedTrees:
    """Boosted trees beside the regression that a shortcut begins at: what they say is the mean of both chances."""

    shortcut: ActivationShortcut
    trees: HistGradientBoostingClassifier

    @classmethod
    def fit(cls, shortcut: ActivationShortcut, rows: Examples, *, seed: int) -> BoostedTrees | None:
        """Trees on the shortcut's inputs of the rows that its regression was solved on; None of rows of one class."""
        active = rows.active.cpu().numpy()
        if active.all() or not active.any():
            return None
        trees = HistGradientBoostingClassifier(
            max_iter=TREES, max_leaf_nodes=LEAVES, learning_rate=RATE, early_stopping=False, random_state=seed
        )
        # On one thread: a sum over several has no order, and a run that resumes has to find the same trees.
        with threadpool_limits(1):
            trees.fit(_read(_inputs(shortcut, rows)), active)
        return cls(shortcut=copy.deepcopy(shortcut).cpu(), trees=trees)

    @torch.no_grad()
    def chance(self, rows: Examples) -> Tensor:
        """Probability of an active response ``[B]``, not calibrated, where the rows are."""
        inputs = _inputs(self.shortcut, rows)
        linear = (SHORTCUT_GAIN * self.shortcut.linear(inputs))[:, 0].sigmoid()
        boosted = torch.from_numpy(self.trees.predict_proba(_read(inputs))[:, 1]).to(linear.dtype)
        chance: Tensor = 0.5 * (linear + boosted)
        return chance.to(rows.active.device)

    def taught(self, rows: Examples, *, weight: float) -> Examples:
        """The rows with ``active``, float32 ``[B]``, as ``weight`` of what trees say and one minus that of what happened."""
        chance = self.chance(rows)
        return replace(rows, active=torch.lerp(rows.active.to(chance.dtype), chance, weight))


def _inputs(shortcut: ActivationShortcut, rows: Examples) -> Tensor:
    """``[B, inputs]`` on the CPU, where the trees are: of rows on a GPU nothing else leaves it."""
    return shortcut.inputs(rows.baseline, rows.tuning, rows.level).cpu()


def _read(inputs: Tensor) -> NDArray[np.float64]:
    """What trees read of the shortcut's inputs."""
    read: NDArray[np.float64] = np.delete(inputs.double().numpy(), ActivationShortcut.population, axis=1)
    return read
