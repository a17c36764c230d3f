"""The study of one recording: every competitor on the same rows, several seeds and their mean."""

from __future__ import annotations

import numpy as np
import pytest
from small_fit import silent, tiny_config
from small_recording import small_recording

from quantformer.signal import SignalRecipe
from quantformer_training.baselines import ACTIVATION_BASELINES, FORECAST_BASELINES
from quantformer_training.comparison import MODEL
from quantformer_training.splits import split_by_time
from quantformer_training.study import Study, control_moments, study

RECIPE = SignalRecipe()


@pytest.fixture(scope="module")
def made() -> Study:
    recording = small_recording(neurons=4, period_s=5.0)
    split = split_by_time(recording, recipe=RECIPE, train_trials=28)
    return study(
        recording, split=split, folds=(), config=lambda seed: tiny_config(seed=seed), seeds=(0, 1), fold_seeds=(0,),
        report=silent,
    )  # fmt: skip


def test_every_baseline_meets_the_model_with_and_without_the_population(made: Study) -> None:
    # Fails where the rows are given no context: the population's baselines are then left out.
    for scored in made.models:
        for comparison in (scored.onsets, scored.pseudo_onsets):
            assert set(comparison.activation) == {MODEL, *ACTIVATION_BASELINES}
            assert set(comparison.forecast) == {MODEL, *FORECAST_BASELINES}
            for name in ("logistic", "ridge"):
                table = comparison.activation if name == "logistic" else comparison.forecast
                assert vars(table[name]) != vars(table[f"{name}_population"])


def test_seeds_come_first_and_their_mean_last(made: Study) -> None:
    assert [scored.name for scored in made.models] == ["seed 0", "seed 1", "mean of 2 seeds"]
    first, second, mean = (scored.onsets.activation for scored in made.models)
    # The baselines are the same whatever the seed; the mean of two probabilities is on average no worse than they are.
    for key in ACTIVATION_BASELINES:
        assert first[key].log_loss == second[key].log_loss == mean[key].log_loss
    assert mean[MODEL].brier <= (first[MODEL].brier + second[MODEL].brier) / 2 + 1e-12
    assert first[MODEL].brier != second[MODEL].brier


def test_control_moments_are_far_from_every_onset() -> None:
    recording = small_recording(neurons=2, period_s=5.0)
    moments = control_moments(recording)
    onset = np.searchsorted(recording.timestamps_s, recording.stimuli.onset_s)
    distance = moments.frame[:, None] - onset
    assert len(moments) >= len(onset) - 1
    assert moments.pseudo.all()
    assert ((distance >= 16) | (distance <= -RECIPE.response_frames)).all()
