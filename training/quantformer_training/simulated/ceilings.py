"""How well activation can be forecast at best in a simulated session, from three amounts of knowledge.

*Latent* is exact up to Monte Carlo error: futures are drawn from the simulator's own rules, starting at the true state.
*Own* and *population* are lower bounds of their ceilings: forecasts by a particle filter that knows the simulator's
parameters but reads only measured fluorescence. No forecast can be better than the ceiling on average, so what these
reach is reachable. docs/simulator.md lists the approximations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from quantformer.activation_metrics import auroc_within, brier, log_loss
from quantformer.errors import DataError
from quantformer.labels import LabelRule, label_frames
from quantformer.signal import SignalRecipe, baseline_f0
from quantformer_training.simulated.mouse import Mouse, stream
from quantformer_training.simulated.optics import bleached, noise_variance
from quantformer_training.simulated.particles import (
    AROUSAL,
    BURSTS,
    DRIFT,
    FAST,
    FRESH_AROUSAL,
    FRESH_BURSTS,
    RECENT,
    SLOW,
    Belief,
    Dynamics,
    Filter,
)
from quantformer_training.simulated.session import SimulatedSession

#: Futures drawn from each particle, and how many of them the rate of neuron and stimulus counts as, against which a
#: filter's probability is shrunk: a few hundred draws would otherwise call rare things impossible.
FUTURES, PRIOR = 4, 8.0

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Ceiling:
    """Probabilities ``(trials, neurons)`` of being active and how they score; AUROC is the mean within neuron x stimulus
    over ``groups`` pairs that have at least two active and two inactive trials.
    """

    probability: Floats
    log_loss: float
    brier: float
    auroc_within_neuron_stimulus: float
    groups: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Ceilings:
    """The ceilings of one session. ``rows`` int64 ``(trials,)`` of the stimulus table, ``active`` bool
    ``(trials, neurons)``; ``rate`` knows neuron and stimulus only, hence 0.5 within them; ``latent`` cannot be reached by any
    observer. ``own_response`` float64 ``(trials, neurons, 64)`` is the dF/F that the knowledge of ``own`` expects; its mean
    squared error is a ceiling of forecasts, from below like the probabilities.
    """

    rows: NDArray[np.int64]
    active: NDArray[np.bool_]
    own_response: Floats
    rate: Ceiling
    own: Ceiling
    population: Ceiling
    latent: Ceiling


def ceilings(
    session: SimulatedSession, *, rows: NDArray[np.int64] | None = None, particles: int = 512, seed: int = 0
) -> Ceilings:
    """Forecast the activation of ``rows`` of the stimulus table (default: all stimuli with a whole window).

    Label: mean dF/F over the category's frames >= 0.10, F0 from the neuropil-corrected measured fluorescence.
    Costs minutes: work and quality grow with ``particles``, of which 64 are too few for the own ceiling to be close.

    Raises:
        DataError: the session was made from given spikes, whose rate nobody knows, or no row has a whole window.
    """
    truth, recipe, rule = session.truth, SignalRecipe(), LabelRule()
    if truth.timeline is None or truth.latent is None or truth.recent is None:
        raise DataError("ceilings need the rate behind the spikes; this session was made from given spikes")
    table, onset = session.recording.stimuli, truth.timeline.onset_frame
    shown = np.flatnonzero(np.array(table.category) != "spontaneous")
    asked = shown if rows is None else np.sort(np.asarray(rows, dtype=np.int64))
    frames = session.recording.frames
    asked = asked[(onset[asked] >= recipe.baseline_frames) & (onset[asked] + recipe.response_frames <= frames)]
    if not len(asked):
        raise DataError("no presentation has a whole window of 96 frames before and 64 after its onset")
    mouse = session.mouse
    trace = session.recording.corrected()
    dynamics = Dynamics(mouse, timeline=truth.timeline)
    reader = Filter(
        dynamics,
        trace,
        bleached=bleached(mouse, frames=frames).astype(np.float32),
        particles=particles,
        rng=stream(seed, "filter"),
    )
    rng = stream(seed, "futures")
    shape = (len(asked), mouse.neurons)
    active, latent = np.zeros(shape, bool), np.zeros(shape)
    each = np.zeros((len(asked), particles, mouse.neurons), np.float32)
    beliefs: list[Belief] = []
    expected = np.zeros((*shape, recipe.response_frames))
    for k, row in enumerate(asked):
        f, window = int(onset[row]), label_frames(table.category[row])
        f0 = baseline_f0(trace[f - recipe.baseline_frames : f], recipe=recipe)
        active[k] = trace[f : f + window].mean(axis=0, dtype=np.float64) / f0 - 1.0 >= rule.threshold
        bar = (1.0 + rule.threshold) * f0
        belief = reader.belief(f)
        level = reader.rest[f - 1] * np.exp(np.float32(mouse.config.drift) * belief.states[DRIFT])
        for _ in range(FUTURES):
            glow = dynamics.glow(belief.states, frame=f, frames=window, rng=rng)
            each[k] += _chance(mouse, glow, level=level, bar=bar, frames=window) / FUTURES
        beliefs.append(belief)
        path = dynamics.path(belief.states, frame=f, frames=recipe.response_frames, rng=rng)
        drifted = reader.rest[f - 1] * np.exp(np.float32(mouse.config.drift) * belief.states[DRIFT]).mean(axis=0)
        expected[k] = (drifted * path / f0 - 1.0).T
        true = _true_states(session, frame=f, particles=FUTURES * particles)
        level = np.median(truth.resting[f - recipe.f0_frames : f], axis=0)
        glow = dynamics.glow(true, frame=f, frames=window, rng=rng)
        latent[k] = _chance(mouse, glow, level=level, bar=bar, frames=window).mean(axis=0)
    pair = np.unique(np.array(table.stimulus_id)[asked], return_inverse=True)[1].reshape(-1)
    rate = _left_out_rate(latent, pair=pair)
    own, population = (
        (particles * chance + PRIOR * rate) / (particles + PRIOR)
        for chance in (each.mean(axis=1, dtype=np.float64), _tilted(session, each, beliefs, frames=onset[asked]))
    )
    return Ceilings(
        rows=asked,
        active=active,
        own_response=expected,
        rate=replace(_scored(rate, active=active, pair=pair), auroc_within_neuron_stimulus=0.5),
        own=_scored(own, active=active, pair=pair),
        population=_scored(population, active=active, pair=pair),
        latent=_scored(latent, active=active, pair=pair),
    )


def _chance(
    mouse: Mouse, glow: NDArray[np.floating], *, level: NDArray[np.floating], bar: NDArray[np.floating], frames: int
) -> NDArray[np.float64]:
    """Probability of being active after each future, whose mean ``1 + dF/F`` over ``frames`` is ``glow``.

    ``level`` is the resting light, ``bar`` the light that counts as active. Responses that were made all or none
    (`activity`) are active where they reach the threshold without noise.
    """
    light = level * glow
    variance = noise_variance(mouse, light=light + mouse.neuropil_factor * mouse.neuropil_level)
    noisy: NDArray[np.float64] = ndtr((light - bar) / np.sqrt(variance / frames))
    known = mouse.config.baseline_information
    return known * noisy + (1.0 - known) * (glow - 1.0 >= LabelRule().threshold)


def _true_states(session: SimulatedSession, *, frame: int, particles: int) -> NDArray[np.float32]:
    """The true state before ``frame`` as ``particles`` equal ones."""
    truth = session.truth
    if truth.timeline is None or truth.latent is None or truth.recent is None:
        raise DataError("the session has no latent state")
    last, shown = frame - 1, truth.timeline.presentation[frame - 1]
    state = np.zeros((8, 1, session.mouse.neurons), np.float32)
    state[SLOW], state[FAST], state[RECENT] = truth.calcium_slow[last], truth.calcium_fast[last], truth.recent[frame]
    state[AROUSAL], state[BURSTS] = truth.latent.arousal[last], truth.latent.bursts[last]
    state[FRESH_AROUSAL], state[FRESH_BURSTS] = truth.latent.fresh_arousal[shown], truth.latent.fresh_bursts[shown]
    return np.repeat(state, particles, axis=1)


def _left_out_rate(probability: Floats, *, pair: NDArray[np.intp]) -> Floats:
    """Mean probability of the *other* trials of the same stimulus, of all others where there is none."""
    rate = np.empty_like(probability)
    for k in range(len(pair)):
        same = pair == pair[k]
        same[k] = False
        if not same.any():
            same = np.arange(len(pair)) != k
        rate[k] = probability[same].mean(axis=0) if same.any() else probability[k]
    return rate


def _tilted(
    session: SimulatedSession, each: NDArray[np.float32], beliefs: list[Belief], *, frames: NDArray[np.int64]
) -> Floats:
    """Forecasts from all neurons: each neuron's particles weighed by what the others say about the shared states.

    The others' opinions are summed; how far a sum is to be trusted are two numbers a state, fitted on the session.
    """
    latent = session.truth.latent
    if latent is None:
        raise DataError("the session has no latent state")
    logs = np.zeros(each.shape)
    views = (
        (
            AROUSAL,
            np.stack([one.arousal for one in beliefs]),
            np.repeat(latent.arousal[frames - 1, None], each.shape[2], 1),
        ),
        (BURSTS, np.stack([one.bursts for one in beliefs]), latent.bursts[frames - 1]),
    )
    for which, opinion, target in views:
        others = opinion.sum(axis=1, keepdims=True) - opinion
        centred = others - others.mean(axis=0)
        power = float((centred**2).mean())
        slope = float((centred * target).mean()) / power if power > 0.0 else 0.0
        # A state is standard normal, so what the others explain and what is left add up to one.
        left = float(np.clip(1.0 - slope**2 * power, 0.05, 1.0))
        value = np.stack([one.states[which] for one in beliefs]).astype(np.float64)
        logs += 0.5 * value**2 - 0.5 * (value - slope * centred[:, None, :]) ** 2 / left
    weights = np.exp(logs - logs.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    tilted: Floats = (weights * each).sum(axis=1)
    return tilted


def _scored(probability: Floats, *, active: NDArray[np.bool_], pair: NDArray[np.intp]) -> Ceiling:
    bounded = np.clip(probability, 1e-4, 1.0 - 1e-4)
    groups = (pair[:, None] * active.shape[1] + np.arange(active.shape[1])).ravel()
    within = auroc_within(bounded.ravel(), active.ravel(), groups=groups)
    return Ceiling(
        probability=bounded,
        log_loss=log_loss(bounded.ravel(), active.ravel()),
        brier=brier(bounded.ravel(), active.ravel()),
        auroc_within_neuron_stimulus=within.mean,
        groups=within.groups,
    )
