"""Trial-blocked intervals: equal to the plain metrics on repeated rows, honest coverage, and words for the outcome."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantformer import metrics
from quantformer.errors import DataError
from quantformer_training.bootstrap import PairedDifference, Unit, compare, intervals
from quantformer_training.resampled_metrics import ACTIVATION_METRICS, FORECAST_METRICS, Draws

Floats = NDArray[np.float64]


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_counts_equal_repeated_rows(seed: int, two_way: bool) -> None:
    rng = np.random.default_rng(seed)
    trials, neurons = int(rng.integers(3, 12)), int(rng.integers(1, 5))
    keep = rng.random(trials * neurons) < 0.9
    keep[:2] = True
    trial, member = np.repeat(np.arange(trials), neurons)[keep], np.tile(np.arange(neurons), trials)[keep]
    member = np.unique(member, return_inverse=True)[1].reshape(-1)
    neurons = int(member.max()) + 1
    drawn = rng.multinomial(trials, np.full(trials, 1 / trials))
    chosen = rng.multinomial(neurons, np.full(neurons, 1 / neurons)) if two_way else np.ones(neurons, int)
    draws = Draws(trial=drawn[trial][None].astype(float), neuron=chosen[None].astype(float), member=member)
    # The same rows written out: a neuron drawn twice becomes two neurons.
    copies = [
        (row, c) for row in range(len(trial)) for _ in range(drawn[trial[row]]) for c in range(chosen[member[row]])
    ]
    repeated = np.array([row for row, _ in copies], dtype=int)
    label = np.array([member[row] * 100 + copy for row, copy in copies], dtype=int)

    probability = rng.integers(0, 8, len(trial)) / 7 if seed % 2 else rng.random(len(trial))
    active = rng.random(len(trial)) < 0.4
    scored = metrics.score_activation(probability[repeated], active[repeated], neuron=label)
    for name, metric in ACTIVATION_METRICS.items():
        found = metric.prepare(probability, active, member)(draws)[0]
        assert found == pytest.approx(getattr(scored, name), nan_ok=True), name

    actual = rng.normal(size=(len(trial), 16))
    predicted = actual + rng.normal(size=actual.shape)
    predicted[rng.random(len(trial)) < 0.2] = 0.3
    forecast = metrics.score_forecast(predicted[repeated], actual[repeated], neuron=label)
    for name, metric in FORECAST_METRICS.items():
        found = metric.prepare(predicted, actual, member)(draws)[0]
        assert found == pytest.approx(getattr(forecast, name), nan_ok=True, abs=1e-7), name


def two_equal_predictions(seed: int, *, trials: int = 60, neurons: int = 6) -> tuple[Floats, ...]:
    """Two forecasts equally wrong on average, each wrong by trial rather than by row: truth, a, b, trial, neuron."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(rng.normal(size=trials), neurons)[:, None] + 0.3 * rng.normal(size=(trials * neurons, 4))
    a, b = (np.repeat(rng.normal(size=trials), neurons)[:, None] + 0.01 * rng.normal(size=(1, 4)) for _ in range(2))
    return truth, a, b, np.repeat(np.arange(trials), neurons), np.tile(np.arange(neurons), trials)


def test_false_alarms_are_about_one_in_twenty() -> None:
    blocked = by_row = 0
    runs = 300
    mse = {"mse": FORECAST_METRICS["mse"]}
    for seed in range(runs):
        truth, a, b, trial, neuron = two_equal_predictions(seed)
        found = compare(a, {"b": b}, truth=truth, trial=trial, neuron=neuron, metrics=mse, resamples=400)["mse"]
        blocked += found.verdict != "not distinguishable"
        rows = np.arange(len(trial))
        wrong = compare(a, {"b": b}, truth=truth, trial=rows, neuron=neuron, metrics=mse, resamples=400)["mse"]
        by_row += wrong.verdict != "not distinguishable"
    assert 0.02 <= blocked / runs <= 0.10
    # Rows drawn one by one would take six neurons of a trial for six witnesses.
    assert by_row / runs > 0.25


def test_a_real_difference_is_found_and_has_a_direction() -> None:
    truth, noise, _, trial, neuron = two_equal_predictions(1)
    close = truth + 0.5 * noise
    arguments: dict[str, Any] = {"truth": truth, "trial": trial, "neuron": neuron, "metrics": FORECAST_METRICS}
    ahead = compare(close, {"noise": noise}, **arguments)
    behind = compare(noise, {"close": close}, **arguments)
    same = compare(close, {"itself": close}, **arguments)
    for name in ("mse", "area_r"):
        assert ahead[name].verdict == "ahead"
        assert behind[name].verdict == "behind"
        assert same[name].verdict == "not distinguishable"
        assert behind[name].low == pytest.approx(-ahead[name].high)
        assert (same[name].low, same[name].difference, same[name].high) == (0.0, 0.0, 0.0)
        assert ahead[name].low < ahead[name].difference < ahead[name].high
    assert ahead["mse"].difference < 0 < ahead["area_r"].difference
    assert ahead == compare(close, {"noise": noise}, **arguments)
    assert ahead != compare(close, {"noise": noise}, seed=1, **arguments)


def test_each_metric_meets_its_best_reference() -> None:
    rng = np.random.default_rng(0)
    active = rng.random(300) < 0.3
    trial, neuron = np.repeat(np.arange(60), 5), np.tile(np.arange(5), 60)
    ranked = np.clip(np.where(active, 0.99, 0.90) + 0.005 * rng.normal(size=300), 0, 1)  # orders well, far too sure
    flat = np.full(300, 0.3)
    found = compare(
        flat, {"ranked": ranked, "flat": flat}, truth=active, trial=trial, neuron=neuron, metrics=ACTIVATION_METRICS
    )
    assert found["auroc"].against == found["auroc_within_neuron"].against == "ranked"
    assert found["brier"].against == found["log_loss"].against == "flat"
    assert found["auroc"].verdict == "behind"


@pytest.mark.parametrize(
    ("low", "high", "higher_is_better", "verdict"),
    [
        (0.1, 0.2, True, "ahead"),
        (0.1, 0.2, False, "behind"),
        (-0.2, -0.1, True, "behind"),
        (-0.2, -0.1, False, "ahead"),
        (-0.1, 0.1, True, "not distinguishable"),
        (0.0, 0.1, True, "not distinguishable"),
        (math.nan, math.nan, True, "not distinguishable"),
    ],
)
def test_verdicts(low: float, high: float, higher_is_better: bool, verdict: str) -> None:
    found = PairedDifference(
        metric="m",
        against="b",
        candidate=0.0,
        reference=0.0,
        difference=0.0,
        low=low,
        high=high,
        higher_is_better=higher_is_better,
        unit="trials",
        undefined=0.0,
    )
    assert found.verdict == verdict


def test_two_way_is_wider_where_neurons_differ() -> None:
    rng = np.random.default_rng(3)
    trial, neuron = np.repeat(np.arange(50), 8), np.tile(np.arange(8), 50)
    truth = np.zeros((400, 4))
    prediction = rng.normal(0, 0.1, 400)[:, None] + np.linspace(0.2, 2.0, 8)[neuron][:, None] * np.ones(4)
    one, two = (
        intervals(prediction, truth=truth, trial=trial, neuron=neuron, metrics=FORECAST_METRICS, unit=unit)["mse"]
        for unit in get_args(Unit)
    )
    assert one.value == two.value == pytest.approx((prediction**2).mean())
    assert two.high - two.low > 5 * (one.high - one.low)


def test_an_interval_that_is_mostly_undefined_is_none() -> None:
    active = np.zeros(20, bool)
    active[3] = True
    arguments: dict[str, Any] = {
        "truth": active,
        "trial": np.arange(20),
        "neuron": np.zeros(20, int),
        "metrics": ACTIVATION_METRICS,
    }
    found = intervals(np.linspace(0.1, 0.9, 20), **arguments)
    # One active trial is missing from a third of the resamples.
    assert found["auroc"].undefined == pytest.approx(math.exp(-1), abs=0.05)
    assert math.isnan(found["auroc"].low)
    assert math.isfinite(found["brier"].low)
    undefined = compare(np.linspace(0.1, 0.9, 20), {"flat": np.full(20, 0.5)}, **arguments)["auroc"]
    assert undefined.verdict == "not distinguishable"


@pytest.mark.parametrize("unit", get_args(Unit))
def test_large_rows_are_drawn_in_chunks(monkeypatch: pytest.MonkeyPatch, unit: Unit) -> None:
    truth, a, _, trial, neuron = two_equal_predictions(2)
    arguments: dict[str, Any] = {"truth": truth, "trial": trial, "neuron": neuron, "metrics": FORECAST_METRICS}
    arguments |= {"resamples": 301, "unit": unit}
    whole = intervals(a, **arguments)
    monkeypatch.setattr("quantformer_training.bootstrap.CHUNK", 10 * len(trial))
    assert intervals(a, **arguments) == whole


def test_bad_arguments_are_refused() -> None:
    arguments: dict[str, Any] = {
        "truth": np.array([True, False]),
        "trial": [0, 1],
        "neuron": [0, 0],
        "metrics": ACTIVATION_METRICS,
    }
    with pytest.raises(DataError, match="expected 2 rows"):
        intervals(np.array([0.1]), **arguments)
    with pytest.raises(DataError, match="not finite"):
        intervals(np.array([0.1, np.nan]), **arguments)
    with pytest.raises(DataError, match="no reference"):
        compare(np.array([0.1, 0.2]), {}, **arguments)
    with pytest.raises(DataError, match="at least one is needed"):
        intervals(np.array([0.1, 0.2]), resamples=0, **arguments)
    with pytest.raises(DataError, match="one of each a row"):
        intervals(np.array([0.1, 0.2]), **(arguments | {"trial": [0]}))


def test_the_known_interval_of_the_real_gratings(shared_data: Path) -> None:
    with np.load(shared_data / "v1_gratings_24rois.npz") as file:
        traces = (file["fluorescence"] - np.float32(0.7) * file["neuropil"])[file["is_cell"]].astype(np.float64)
        onset, stimulus = file["onset_frame"], file["direction_deg"] // 45
    f0 = np.stack([traces[:, f - 60 : f].mean(axis=1) for f in onset])
    active = np.stack([traces[:, f : f + 60].mean(axis=1) for f in onset]) / f0 - 1 >= 0.10
    train, test = np.arange(53), np.arange(53, 80)
    rate = active[train].mean(axis=0)
    shown = [active[train][stimulus[train] == stimulus[t]] for t in test]
    pair = np.stack([(some.sum(axis=0) + 2 * rate) / (len(some) + 2) for some in shown])
    trial, neuron = (grid.reshape(-1) for grid in np.meshgrid(test, np.arange(len(traces)), indexing="ij"))
    # The README: 0.810, 0.745-0.868 over trials, 0.65-0.91 over trials and neurons.
    expected: dict[Unit, tuple[float, float, float]] = {
        "trials": (0.745, 0.868, 0.006),
        "trials x neurons": (0.65, 0.91, 0.025),
    }
    for unit, (low, high, close) in expected.items():
        found = intervals(
            pair.reshape(-1),
            truth=active[test].reshape(-1),
            trial=trial,
            neuron=neuron,
            metrics={"auroc": ACTIVATION_METRICS["auroc"]},
            unit=unit,
        )["auroc"]
        assert found.value == pytest.approx(0.810, abs=5e-4)
        assert (found.low, found.high) == pytest.approx((low, high), abs=close)
