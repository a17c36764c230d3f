"""A model's predictions against every simple baseline, on the same rows, with paired intervals.

Where the predictions came from, over the wire or from arrays, is not this module's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from quantformer.errors import DataError
from quantformer.metrics import (
    ActivationScores,
    ForecastScores,
    Reliability,
    auroc_within,
    log_loss,
    reliability,
    score_activation,
    score_forecast,
    skill,
)
from quantformer_training.baselines import (
    ACTIVATION_BASELINES,
    ActivationBaseline,
    ForecastBaseline,
    activation_baselines,
    forecast_baselines,
)
from quantformer_training.bootstrap import PairedDifference, compare
from quantformer_training.resampled_metrics import ACTIVATION_METRICS, FORECAST_METRICS
from quantformer_training.rows import Rows

#: Key of the model beside the baselines' keys.
MODEL = "model"
#: Key of the model that was not told the stimulus.
DENIED = "model without stimulus"
#: The baseline that every skill is measured against.
REFERENCE = "neuron_stimulus_rate"
#: Baselines shown beside the model as the lead grows.
LEAD_BASELINES = ("base_rate", REFERENCE, "last_frames", "logistic")


@dataclass(frozen=True, kw_only=True, eq=False)
class Forecasts:
    """What a predictor says of some rows: ``probability`` ``(rows,)`` and ``response`` dF/F ``(rows, frames)``."""

    probability: NDArray[np.floating]
    response: NDArray[np.floating]


@dataclass(frozen=True, kw_only=True, eq=False)
class Baselines:
    """Every simple baseline, fitted on the same training rows."""

    activation: Mapping[str, ActivationBaseline]
    forecast: Mapping[str, ForecastBaseline]

    @classmethod
    def fit(cls, train: Rows) -> Baselines:
        """Fit all of them; those that read the context only where the rows have one."""
        # So small that threads only wait for each other: twenty times slower where another program wants a core.
        with threadpool_limits(limits=1):
            return cls(activation=activation_baselines(train), forecast=forecast_baselines(train))


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Scores of ``"model"`` and of each baseline on the same rows of ``trials`` trials and ``neurons`` neurons.

    ``differences`` holds, a metric, the model less the baseline that is best at that metric on these rows, with a 95 %
    interval over trials. ``stimulus_gain`` is the model's log-loss less its own when it is not told the stimulus (None
    where that was not asked); ``reliability`` is by predictor, for the model and the logistic regression.
    """

    trials: int
    neurons: int
    minutes: float
    activation: Mapping[str, ActivationScores]
    forecast: Mapping[str, ForecastScores]
    differences: Mapping[str, PairedDifference]
    stimulus_gain: PairedDifference | None
    reliability: Mapping[str, Reliability]


def compare_with_baselines(
    model: Forecasts,
    *,
    rows: Rows,
    baselines: Baselines,
    minutes: float,
    denied: NDArray[np.floating] | None = None,
    threshold: float = 0.5,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Score the model and every baseline on ``rows``.

    ``minutes`` is the time that the rows took together, ``denied`` the model's probabilities ``(rows,)`` without the
    stimulus, ``threshold`` the probability of a yes in the paper-compatible scores.

    Raises:
        DataError: there are no rows, or a prediction has another number of them.
    """
    if len(rows) == 0:
        raise DataError("there are no rows to compare on; every window was rejected or none was asked about")
    probability = {MODEL: np.asarray(model.probability, np.float64)}
    response = {MODEL: np.asarray(model.response, np.float64)}
    probability |= {key: baseline.predict(rows) for key, baseline in baselines.activation.items()}
    response |= {key: baseline.predict(rows).astype(np.float64) for key, baseline in baselines.forecast.items()}
    blocks = {"trial": rows.trial, "neuron": rows.neuron, "resamples": resamples, "seed": seed}
    differences = compare(
        probability[MODEL],
        {key: values for key, values in probability.items() if key != MODEL},
        truth=rows.active,
        metrics=ACTIVATION_METRICS,
        **blocks,  # type: ignore[arg-type]
    ) | compare(
        response[MODEL],
        {key: values for key, values in response.items() if key != MODEL},
        truth=rows.response,
        metrics=FORECAST_METRICS,
        **blocks,  # type: ignore[arg-type]
    )
    gain = None
    if denied is not None:
        gain = compare(
            probability[MODEL],
            {DENIED: np.asarray(denied, np.float64)},
            truth=rows.active,
            metrics={"log_loss": ACTIVATION_METRICS["log_loss"]},
            **blocks,  # type: ignore[arg-type]
        )["log_loss"]
    return Comparison(
        trials=len(np.unique(rows.trial)),
        neurons=len(np.unique(rows.neuron)),
        minutes=minutes,
        activation={
            key: score_activation(
                values,
                rows.active,
                neuron=rows.neuron,
                stimulus=rows.stimulus,
                rate=probability[REFERENCE],
                minutes=minutes,
                threshold=threshold,
            )
            for key, values in probability.items()
        },
        forecast={key: score_forecast(values, rows.response, neuron=rows.neuron) for key, values in response.items()},
        differences=differences,
        stimulus_gain=gain,
        reliability={key: reliability(probability[key], rows.active) for key in (MODEL, "logistic")},
    )


@dataclass(frozen=True, kw_only=True)
class LeadScores:
    """Scores by predictor with the last ``lead`` frames before the onset withheld from all of them.

    ``log_loss_skill`` is over the neuron x stimulus rate.
    """

    lead: int
    auroc_within_neuron: Mapping[str, float]
    log_loss_skill: Mapping[str, float]


def score_at_lead(
    probability: NDArray[np.floating], *, rows: Rows, train: Rows, lead: int
) -> LeadScores:
    """Score the model's ``probability`` ``(rows,)`` beside baselines that are fitted and asked with the same frames.

    ``rows`` and ``train`` come with their last ``lead`` baseline frames held; the baselines do not get to see those.
    """
    asked, known = without_last(rows, lead=lead), without_last(train, lead=lead)
    predicted = {MODEL: np.asarray(probability, np.float64)}
    with threadpool_limits(limits=1):
        predicted |= {key: ACTIVATION_BASELINES[key]().fit(known).predict(asked) for key in LEAD_BASELINES}
    losses = {key: log_loss(values, rows.active) for key, values in predicted.items()}
    return LeadScores(
        lead=lead,
        auroc_within_neuron={
            key: auroc_within(values, rows.active, groups=rows.neuron).mean for key, values in predicted.items()
        },
        log_loss_skill={key: skill(loss, reference=losses[REFERENCE]) for key, loss in losses.items()},
    )


def without_last(rows: Rows, *, lead: int) -> Rows:
    """The rows with the last ``lead`` frames of their baseline cut off."""
    return replace(rows, baseline=rows.baseline[:, : rows.baseline.shape[1] - lead]) if lead else rows
