"""The ceilings: their order, their calibration, and their collapse where the baseline tells nothing."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from quantformer.errors import DataError
from quantformer.recording import StimulusTable
from quantformer.signal import SignalRecipe, baseline_f0
from quantformer_training.simulated import (
    Ceilings,
    MouseConfig,
    SimulatedSession,
    ceilings,
    session_from_spikes,
    short_session,
)


@lru_cache(maxsize=2)
def session_of(information: float) -> SimulatedSession:
    config = MouseConfig(neurons=8, seed=1, active_fraction=0.12, baseline_information=information)
    return short_session(config, presentations=26)


@lru_cache(maxsize=2)
def scored(information: float) -> Ceilings:
    return ceilings(session_of(information), particles=128)


def test_more_knowledge_forecasts_better() -> None:
    found = scored(1.0)
    # Tolerances of about one Monte Carlo standard error; the outer gaps are several times that.
    assert found.latent.log_loss < found.population.log_loss - 0.01
    assert found.population.log_loss < found.own.log_loss + 0.003
    assert found.own.log_loss < found.rate.log_loss - 0.005
    assert found.latent.brier < found.population.brier < found.rate.brier
    # Within pairs there are few trials, so only the widest gap is asked for.
    assert found.latent.auroc_within_neuron_stimulus > found.population.auroc_within_neuron_stimulus + 0.1


def test_probabilities_mean_what_they_say() -> None:
    found = scored(1.0)
    assert found.active.shape == found.latent.probability.shape == found.own.probability.shape
    for ceiling in (found.latent, found.population, found.own):
        expected = ceiling.probability
        spread = np.sqrt((expected * (1 - expected)).sum())
        # Trials of one session share a slow state, hence four and not two standard deviations.
        assert abs(found.active.sum() - expected.sum()) < 4 * spread
        sure = expected > 0.5
        if sure.sum() >= 20:
            assert found.active[sure].mean() > 0.4


def test_the_expected_response_is_better_than_the_neurons_mean_and_than_nothing() -> None:
    session, found, recipe = session_of(1.0), scored(1.0), SignalRecipe()
    assert session.truth.timeline is not None
    trace = session.recording.corrected()
    responses = []
    for frame in session.truth.timeline.onset_frame[found.rows]:
        f0 = baseline_f0(trace[frame - recipe.baseline_frames : frame], recipe=recipe)
        responses.append((trace[frame : frame + recipe.response_frames] / f0 - 1.0).T)
    response = np.stack(responses)
    assert found.own_response.shape == response.shape == (len(found.rows), 8, 64)
    own = np.square(found.own_response - response).mean()
    # The mean of all other trials, later ones too, which nobody has before they are over.
    others = (response.sum(axis=0) - response) / (len(response) - 1)
    assert own < 0.95 * np.square(response - others).mean()
    assert own < 0.95 * np.square(response).mean()
    # Told for the trial: that of another trial is worse.
    assert own < 0.95 * np.square(np.roll(found.own_response, 1, axis=0) - response).mean()


def test_at_zero_even_the_latent_state_tells_nothing() -> None:
    found = scored(0.0)
    assert abs(found.latent.auroc_within_neuron_stimulus - 0.5) < 0.1
    assert abs(found.latent.log_loss - found.rate.log_loss) < 0.01
    assert abs(found.own.log_loss - found.rate.log_loss) < 0.01


def test_rows_choose_the_presentations() -> None:
    config = MouseConfig(neurons=8, seed=1, active_fraction=0.12)
    session = short_session(config, presentations=10)
    found = ceilings(session, rows=np.array([9, 4]), particles=16)
    assert found.rows.tolist() == [4, 9]
    assert found.active.shape == (2, 8)


def test_given_spikes_have_no_ceiling() -> None:
    made = session_from_spikes(
        np.zeros((300, 2), np.uint8),
        rate_hz=30.0,
        stimuli=StimulusTable.empty(),
        indicator="GCaMP6f",
        seed=0,
        source="test",
    )
    with pytest.raises(DataError, match="given spikes"):
        ceilings(made)
