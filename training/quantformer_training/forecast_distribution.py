"""A forecast as a distribution: its errors on validation around it, as in the interval that a bundle carries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantformer_training.intervals import INTERVAL_LEVEL, INTERVAL_LEVELS, fit_errors, terms_of
from quantformer_training.run_scores import Answers, Scene

Floats = NDArray[np.float64]
#: Levels at which the pinball loss is averaged for the CRPS: the middles of equal parts.
_PARTS = 20
CRPS_LEVELS = tuple((part + 0.5) / _PARTS for part in range(_PARTS))


@dataclass(frozen=True, kw_only=True, eq=False)
class Distribution:
    """Of rows of the test: ``crps`` ``(rows,)`` dF/F, the share ``covered`` ``(rows,)`` of frames inside the central 80 %, and
    the mean ``width`` of that, dF/F.
    """

    crps: Floats
    covered: Floats
    width: float

    def scores(self, neuron: NDArray[np.integer]) -> dict[str, float]:
        """By the names that tables use; ``neuron`` ``(rows,)`` is whose each row is."""
        _, member = np.unique(neuron, return_inverse=True)
        of_neuron = np.bincount(member, weights=self.covered) / np.bincount(member)
        return {
            "crps": float(self.crps.mean()),
            "interval_coverage": float(self.covered.mean()),
            "interval_coverage_neuron_off": float(np.abs(of_neuron - INTERVAL_LEVEL).mean()),
            "interval_width": self.width,
        }


def distribution_of(answers: Answers, scene: Scene) -> Distribution | None:
    """Of a model that forecasts rows of validation too, whatever it is: what it says of both, and the errors of the latter."""
    response, before = answers.response, answers.validation_response
    if response is None or before is None:
        return None
    happened, learned = scene.test.response, scene.validation.response
    terms = terms_of(scene.test.baseline, answers.probability)
    known = terms_of(scene.validation.baseline, answers.validation)
    errors = fit_errors(before, learned, terms=known, levels=(*CRPS_LEVELS, *INTERVAL_LEVELS))
    crps = np.zeros(len(happened))
    for k, level in enumerate(CRPS_LEVELS):
        over = happened - errors.around(response, k, terms=terms)
        crps += np.maximum(level * over, (level - 1.0) * over).mean(axis=1)
    low, high = (errors.around(response, k, terms=terms) for k in (_PARTS, _PARTS + 1))
    return Distribution(
        crps=2.0 * crps / _PARTS,
        covered=((happened >= low) & (happened <= high)).mean(axis=1),
        width=float((high - low).mean()),
    )
