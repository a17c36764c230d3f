"""What validation decides after training: probabilities, intervals, thresholds, and the skill left at each lead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from quantformer.activation_metrics import auroc_within, log_loss
from quantformer.manifest import Calibration, Interval, LeadSkill
from quantformer_training.examples import Examples
from quantformer_training.finetune import Prediction
from quantformer_training.intervals import fit_errors, interval_of
from quantformer_training.sources import RowSource

#: Leads in frames at which calibration is fitted, all together, and at which the bundle states its skill.
LEADS = (0, 1, 2, 3, 5, 7, 10)
#: Validation rows that are read at each lead, at most, spread evenly.
MOST_ROWS = 40_000
#: False triggers a minute for which the bundle states a threshold.
FALSE_A_MINUTE = (1, 2, 5)
#: Calibration is fitted as if so many further trials had gone exactly as the model says. What neurons do in one trial they do
#: together, and validation's minutes may be livelier or calmer than those to come: a few trials tell little of either.
AS_SAID = 50.0

Floats = NDArray[np.floating]


class Forecasting(Protocol):
    """A trained model of both tasks."""

    def predict(self, examples: Examples, /) -> Prediction:
        """What it says of every row."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibrated:
    """Everything a bundle takes from validation. ``spread_weights`` go into the network (`Forecaster.weigh`)."""

    calibration: Calibration
    interval: Interval
    spread_weights: tuple[float, ...]
    thresholds: dict[str, float]
    skill_by_lead: list[LeadSkill]


def calibrate(model: Forecasting, validation: RowSource, *, seconds: float) -> Calibrated:
    """Fit on the validation part; ``seconds`` is how long it lasts, for rates of false triggers."""
    by_lead = [(lead, validation.at_lead(lead, most=MOST_ROWS)) for lead in LEADS]
    predictions = [(lead, rows, model.predict(rows)) for lead, rows in by_lead]
    logit = np.concatenate([made.logit for _, _, made in predictions])
    active = np.concatenate([rows.active.numpy() for _, rows, _ in predictions])
    calibration = fit_calibration(logit, active, trials=len(np.unique(by_lead[0][1].moment.numpy())))
    first, made = by_lead[0][1], predictions[0][2]
    errors = fit_errors(made.response, first.response.numpy(), terms=made.terms)
    return Calibrated(
        calibration=calibration,
        interval=interval_of(errors),
        spread_weights=errors.weights,
        thresholds=fit_thresholds(probability(made.logit, calibration), first.active.numpy(), seconds=seconds),
        skill_by_lead=[
            _skill(lead, rows, probability(made.logit, calibration), made.response) for lead, rows, made in predictions
        ],
    )


def probability(logit: NDArray[np.float32], calibration: Calibration) -> NDArray[np.float64]:
    """Calibrated probability in float64."""
    scaled = logit.astype(np.float64) / calibration.temperature + calibration.bias
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * scaled)))


def fit_calibration(logit: NDArray[np.float32], active: NDArray[np.bool_], *, trials: int) -> Calibration:
    """Temperature and bias with the lowest log-loss on the rows of so many ``trials``, asked at any leads, and on `AS_SAID` such
    trials that went as the model says; within [0.25, 4] and [-2, 2].
    """
    wide = logit.astype(np.float64)
    said = probability(logit, Calibration(temperature=1.0, bias=0.0))
    happened = (trials * active + AS_SAID * said) / (trials + AS_SAID)

    def objective(parameters: Floats) -> float:
        scaled = wide * np.exp(-parameters[0]) + parameters[1]
        return float((np.logaddexp(0.0, scaled) - happened * scaled).mean())

    bounds = [(-np.log(4.0), np.log(4.0)), (-2.0, 2.0)]
    best = minimize(objective, np.zeros(2), method="L-BFGS-B", bounds=bounds)
    return Calibration(temperature=float(np.exp(best.x[0])), bias=float(best.x[1]))


def fit_thresholds(predicted: NDArray[np.float64], active: NDArray[np.bool_], *, seconds: float) -> dict[str, float]:
    """``default`` has the best F1 on validation; ``false_per_minute_k`` is the lowest with at most k false a minute."""
    order = np.argsort(-predicted, kind="stable")
    # Equal probabilities fire together, so a threshold stands only at the last of them.
    last = np.append(np.diff(predicted[order]) != 0, True)
    hits, false = np.cumsum(active[order])[last], np.cumsum(~active[order])[last]
    candidate = predicted[order][last]
    f1 = 2.0 * hits / np.maximum(hits + false + active.sum(), 1)
    thresholds = {"default": float(candidate[int(np.argmax(f1))])}
    for rate in FALSE_A_MINUTE:
        allowed = np.flatnonzero(false <= rate * seconds / 60.0)
        thresholds[f"false_per_minute_{rate}"] = float(candidate[allowed[-1]]) if len(allowed) else 1.0
    return thresholds


def _skill(lead: int, rows: Examples, predicted: NDArray[np.float64], response: NDArray[np.float32]) -> LeadSkill:
    active, neuron = rows.active.numpy(), rows.neuron.numpy()
    within = auroc_within(predicted, active, groups=neuron)
    error = np.square(response - rows.response.numpy())
    return LeadSkill(
        lead=lead,
        log_loss=log_loss(predicted, active),
        auroc_within_neuron=None if np.isnan(within.mean) else within.mean,
        mse=float(error.mean()),
    )
