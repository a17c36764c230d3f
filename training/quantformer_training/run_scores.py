"""The scores of one model on one run, flat, by the names that tables use (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantformer.activation_metrics import auroc_within, log_loss, score_activation, skill
from quantformer.trace_metrics import pearson_rows, score_forecast
from quantformer_training.calibrate import fit_thresholds
from quantformer_training.rows import Rows

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """What every model of a run is scored on. ``rate`` is the neuron x stimulus rate on test rows, the reference of skills;
    ``window`` the frames of the response that the label averages; ``control`` are pseudo-onsets of the test part, or None.
    """

    validation: Rows
    test: Rows
    control: Rows | None
    rate: Floats
    window: int
    minutes: float
    validation_seconds: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What a model says: ``probability`` and ``response`` of test rows, None where it does not answer that; probabilities of
    validation and control rows, of test rows when it is ``denied`` the stimulus, and with last frames withheld; the response
    of ``validation_response`` rows, whose errors make the interval.
    """

    probability: Floats | None = None
    response: NDArray[np.float32] | None = None
    validation: Floats | None = None
    denied: Floats | None = None
    control: Floats | None = None
    by_lead: Mapping[int, Floats] = field(default_factory=dict)
    validation_response: NDArray[np.float32] | None = None
    parameters: int = 0


def score(answers: Answers, scene: Scene) -> dict[str, float]:
    """Every score that the answers allow."""
    found: dict[str, float] = {"parameters": float(answers.parameters)} if answers.parameters else {}
    if answers.probability is not None:
        found |= _activation(answers, answers.probability, scene)
    if answers.response is not None:
        found |= _forecast(answers.response, scene)
    return found


def _activation(answers: Answers, probability: Floats, scene: Scene) -> dict[str, float]:
    test, threshold = scene.test, 0.5
    if answers.validation is not None:
        # As every choice, the threshold of the paper-compatible scores is made on validation.
        chosen = fit_thresholds(answers.validation, scene.validation.active, seconds=scene.validation_seconds)
        threshold = chosen["default"]
    made = score_activation(
        probability,
        test.active,
        neuron=test.neuron,
        stimulus=test.stimulus,
        rate=scene.rate,
        minutes=scene.minutes,
        threshold=threshold,
    )
    found = _numbers(asdict(made), without=("triggers",))
    for one in made.triggers:
        found[f"precision_at_{one.false_per_minute:g}"] = one.precision
        found[f"recall_at_{one.false_per_minute:g}"] = one.recall
    if answers.denied is not None:
        found["stimulus_gain"] = log_loss(answers.denied, test.active) - made.log_loss
    if answers.control is not None and scene.control is not None:
        found["control_log_loss"] = log_loss(answers.control, scene.control.active)
        found["control_auroc_within_neuron"] = auroc_within(
            answers.control, scene.control.active, groups=scene.control.neuron
        ).mean
    reference = log_loss(scene.rate, test.active)
    for lead, told in {0: probability, **answers.by_lead}.items():
        found[f"skill_at_lead_{lead}"] = skill(log_loss(told, test.active), reference=reference)
    return found


def _forecast(response: NDArray[np.float32], scene: Scene) -> dict[str, float]:
    test, window = scene.test, scene.window
    found = _numbers(asdict(score_forecast(response, test.response, neuron=test.neuron)))
    error = response.astype(np.float64) - test.response
    found["mae"] = float(np.abs(error).mean())
    found["mse_window"] = float(np.square(error[:, :window]).mean())
    r = pearson_rows(response[:, :window].astype(np.float64), test.response[:, :window].astype(np.float64))
    found["r_window"] = float(np.nanmean(r)) if np.isfinite(r).any() else float("nan")
    return found


def _numbers(scores: Mapping[str, Any], *, without: tuple[str, ...] = ()) -> dict[str, float]:
    return {name: float(value) for name, value in scores.items() if name not in without}
