"""Forecast examples: rows come by rule, every curve is what was forecast for that row, and the whole category is told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_fit import fitted

from quantformer.errors import DataError
from quantformer_training.examples import Examples
from quantformer_training.explain import chosen
from quantformer_training.explain.chosen import Competitor, ForecastScore, choose_rows, shown_forecasts
from quantformer_training.explain.forecasts import OWN, ForecastExamples, draw_forecasts, forecast_examples


def rows() -> Examples:
    return fitted().source(fitted().real["test"]).at_lead(0)


def competitors() -> dict[str, Competitor]:
    happened = rows().response.numpy()
    number = np.repeat(np.arange(float(len(happened)))[:, None], 64, axis=1)
    told = {"row number": number, "nothing": np.zeros_like(happened)}
    return {name: Competitor.scored(forecasts, happened) for name, forecasts in told.items()}


def made(examples: Examples | None = None, *, seed: int = 0) -> ForecastExamples:
    examples = rows() if examples is None else examples
    others = competitors() if len(examples) == len(rows()) else {}
    return forecast_examples(
        fitted().model, examples, category="gratings", interval=fitted().calibrated.interval, competitors=others,
        seed=seed,
    )  # fmt: skip


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(0, 40), st.integers(0, 40))
def test_one_active_row_comes_from_each_third_by_size(seed: int, active: int, inactive: int) -> None:
    rng = np.random.default_rng(seed)
    response = rng.normal(size=(active + inactive, 5))
    label = rng.permutation(np.arange(active + inactive) < active)
    shown, other = choose_rows(response, label, seed=seed)
    assert choose_rows(response, label, seed=seed) == (shown, other)
    assert len(shown) == min(3, active)
    assert len(other) == min(1, inactive)
    assert label[list(shown)].all()
    assert not label[list(other)].any()
    size = response.mean(axis=1)
    ranked = np.sort(size[label])
    for row, part in zip(shown, np.array_split(ranked, 3), strict=False):
        assert part[0] <= size[row] <= part[-1]


@pytest.mark.parametrize("most", [10_000, 37])
def test_a_run_keeps_its_forecasts_of_the_very_rows_that_are_shown(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(chosen, "MOST_ROWS", most)
    examples = rows()
    happened, active = examples.response.numpy(), examples.active.numpy()
    # The figure asks about an even choice of the test rows, the run about all of them.
    looked_at = fitted().source(fitted().real["test"]).at_lead(0, most=most)
    forecasts = np.repeat(np.arange(len(happened), dtype=np.float32)[:, None], 64, axis=1)
    for seed in range(4):
        kept, told = shown_forecasts(forecasts, happened, active, seed=seed)
        competitor = Competitor(
            rows=tuple(kept.tolist()), forecasts=told.astype(np.float64), score=ForecastScore(mse=1.0, r=0.5)
        )
        found = forecast_examples(
            fitted().model, looked_at, category="g", interval=fitted().calibrated.interval, competitors={"it": competitor},
            seed=seed,
        )  # fmt: skip
        for example in found.examples:
            row = int(example.forecasts["it"][0])
            assert np.allclose(example.happened, happened[row])
            assert example.active == active[row]
        assert found.scores["it"] == competitor.score


def test_other_seeds_draw_other_rows() -> None:
    response, label = rows().response.numpy(), rows().active.numpy()
    assert len({choose_rows(response, label, seed=seed) for seed in range(10)}) > 5


def test_curves_are_those_of_the_shown_row() -> None:
    found, prediction, interval = made(), fitted().model.predict(rows()), fitted().calibrated.interval
    for example in found.examples:
        row = example.row
        assert np.allclose(example.forecasts[OWN], prediction.response[row])
        assert np.array_equal(example.forecasts["row number"], np.full(64, float(row)))
        assert np.allclose(example.happened, rows().response[row].numpy())
        scale = fitted().pretrained.signal_scale
        assert np.allclose(example.before, rows().trace[row, :96].numpy() * scale, rtol=1e-6)
        width = prediction.spread[row] + interval.floor
        assert np.allclose(example.high, prediction.response[row] + width * np.array(interval.high), atol=1e-6)
        assert np.allclose(example.low, prediction.response[row] + width * np.array(interval.low), atol=1e-6)
        assert example.neuron == fitted().vocabulary.neuron_ids[int(rows().neuron[row])]
        error = np.mean((example.forecasts[OWN] - example.happened) ** 2)
        assert example.scores[OWN].mse == pytest.approx(error)
        assert example.scores[OWN].r == pytest.approx(np.corrcoef(example.forecasts[OWN], example.happened)[0, 1])
    assert [example.rank is None for example in found.examples] == [not example.active for example in found.examples]
    ranks = [example.rank for example in found.examples[:3]]
    assert ranks == sorted(ranks)


def test_the_category_is_scored_whole() -> None:
    found, happened = made(), rows().response.numpy().astype(np.float64)
    own = fitted().model.predict(rows()).response
    assert list(found.scores) == [OWN, "row number", "nothing"]
    assert found.scores[OWN].mse == pytest.approx(np.mean((own - happened) ** 2))
    assert found.scores["nothing"].mse == pytest.approx(np.mean(happened**2))
    assert np.isnan(found.scores["nothing"].r)  # a flat forecast has no correlation
    assert (found.rows, found.active_rows) == (len(happened), int(rows().active.sum()))
    assert 0.0 < found.covered < 1.0


def test_a_category_without_active_rows_shows_an_inactive_one() -> None:
    quiet = rows().select(torch.nonzero(~rows().active)[:, 0])
    found = made(quiet)
    assert [example.active for example in found.examples] == [False]
    assert len(draw_forecasts(found, rate_hz=30.0).axes) == 1


def test_every_curve_is_drawn() -> None:
    found = made()
    figure = draw_forecasts(found, rate_hz=30.0)
    for axis, example in zip(figure.axes, found.examples, strict=True):
        lines = {line.get_label(): line for line in axis.lines}
        for name, forecast in example.forecasts.items():
            assert np.array_equal(lines[name].get_ydata(), forecast)
        assert np.array_equal(lines["measured"].get_ydata(), example.happened)
        assert lines[OWN].get_xdata()[1] == pytest.approx(1 / 30.0)


def test_forecasts_of_other_rows_are_refused() -> None:
    interval, happened = fitted().calibrated.interval, rows().response.numpy()
    with pytest.raises(DataError, match=r"forecasts have shape \(3, 64\)"):
        Competitor.scored(np.zeros((3, 64)), happened)
    few = {"few": Competitor(rows=(), forecasts=np.zeros((0, 64)), score=ForecastScore(mse=0.0, r=0.0))}
    with pytest.raises(DataError, match="no forecast of row"):
        forecast_examples(fitted().model, rows(), category="g", interval=interval, competitors=few, seed=0)
    twice, none = {OWN: competitors()["nothing"]}, rows().select(torch.arange(0))
    with pytest.raises(DataError, match="own name"):
        forecast_examples(fitted().model, rows(), category="g", interval=interval, competitors=twice, seed=0)
    with pytest.raises(DataError, match="g: no row"):
        forecast_examples(fitted().model, none, category="g", interval=interval, competitors={}, seed=0)


def test_neurons_without_a_vector_are_named_so() -> None:
    unknown = replace(rows(), neuron=torch.full_like(rows().neuron, -1))
    assert {example.neuron for example in made(unknown).examples} == {"unknown neuron"}
