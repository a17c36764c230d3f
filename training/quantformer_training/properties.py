"""Properties of a recording that a simulated one should share, each resampled over trials, neurons and time blocks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from quantformer.activation_metrics import auroc, auroc_within
from quantformer.labels import LabelRule, label_frames, score
from quantformer.recording import Recording
from quantformer.signal import SignalRecipe, read_baseline
from quantformer_training.baselines import BaseRate, Logistic, NeuronStimulusRate
from quantformer_training.rows import Rows

LEADS = (0, 3, 5, 10)
LAGS = (1, 5, 15, 30)
#: Frames whose mean over F0 is the simplest feature of a transient under way.
END_FRAMES = 5
#: Frames of a block of time that is resampled as a whole.
BLOCK = 900

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trials:
    """Windows at some frames: ``area`` (mean dF/F of the label's frames), ``f0`` and ``active`` ``(trials, neurons)``,
    ``end`` (mean dF/F of 5 frames, by lead) ``(leads, trials, neurons)``.
    """

    area: Floats
    f0: Floats
    active: NDArray[np.bool_]
    end: Floats
    rows: Rows


def cut(recording: Recording, frames: NDArray[np.int64], *, condition: NDArray[np.integer]) -> Trials:
    """Cut windows at ``frames``; ``condition`` ``(trials,)`` numbers the stimulus shown."""
    recipe, rule = SignalRecipe(), LabelRule()
    trace = recording.corrected()
    inside = (frames >= recipe.baseline_frames) & (frames + recipe.response_frames <= len(trace))
    frames, condition = frames[inside], condition[inside]
    before = [read_baseline(trace[f - recipe.baseline_frames : f], recipe=recipe) for f in frames]
    baseline, f0 = np.stack([one.dff for one in before]), np.stack([one.f0 for one in before])
    after = np.stack([trace[f : f + recipe.response_frames].T for f in frames])
    response = (after / f0[..., None] - 1.0).astype(np.float32)
    asked = label_frames("drifting_gratings")
    marked = score(rule, baseline=baseline, response=response, frames=asked) >= rule.bar
    count, neurons = f0.shape
    rows = Rows(
        baseline=baseline.reshape(count * neurons, -1),
        f0=f0.ravel(),
        neuron=np.tile(np.arange(neurons), count),
        stimulus=np.repeat(condition, neurons),
        trial=np.repeat(np.arange(count), neurons),
        active=marked.ravel(),
        response=response.reshape(count * neurons, -1),
    )
    stop = recipe.baseline_frames
    end = [baseline[..., stop - END_FRAMES - lead : stop - lead].mean(axis=-1, dtype=np.float64) for lead in LEADS]
    area = response[..., :asked].mean(axis=-1, dtype=np.float64)
    return Trials(area=area, f0=f0, active=marked, end=np.stack(end), rows=rows)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """What the properties are computed from; every array's axes are trials, pseudo-trials, time blocks or neurons.

    ``noise`` and ``power`` (of the centred dF/F) are ``(blocks, neurons)``, ``lagged`` ``(lags, blocks, neurons)``;
    ``scores`` ``(baselines, test trials, neurons)`` are predictions for the last third of the trials.
    """

    area: Floats
    f0: Floats
    active: NDArray[np.bool_]
    end: Floats
    residual: Floats
    pseudo: NDArray[np.bool_]
    scores: Floats
    tested: NDArray[np.bool_]
    noise: Floats
    power: Floats
    lagged: Floats

    def resampled(self, rng: np.random.Generator) -> Sample:
        """Trials, pseudo-trials, blocks and neurons drawn with replacement, each independently."""

        def drawn(count: int) -> NDArray[np.int64]:
            return rng.integers(0, count, count)

        trial, tested = drawn(len(self.area)), drawn(len(self.tested))
        block, neuron = drawn(len(self.noise)), drawn(self.area.shape[1])
        return replace(
            self,
            area=self.area[trial][:, neuron],
            f0=self.f0[trial][:, neuron],
            active=self.active[trial][:, neuron],
            end=self.end[:, trial][:, :, neuron],
            residual=self.residual[trial][:, neuron],
            pseudo=self.pseudo[drawn(len(self.pseudo))][:, neuron],
            scores=self.scores[:, tested][:, :, neuron],
            tested=self.tested[tested][:, neuron],
            noise=self.noise[block][:, neuron],
            power=self.power[block][:, neuron],
            lagged=self.lagged[:, block][:, :, neuron],
        )


def sample(
    recording: Recording,
    *,
    real: NDArray[np.int64],
    pseudo: NDArray[np.int64],
    condition: NDArray[np.integer],
    train_trials: int,
) -> Sample:
    """Cut a recording at real and pseudo-onset frames; the baselines learn from the first ``train_trials`` trials."""
    trials = cut(recording, real, condition=condition)
    early = trials.rows.trial < train_trials
    train, test = trials.rows.select(early), trials.rows.select(~early)
    neurons = recording.neurons
    fitted = [kind().fit(train).predict(test).reshape(-1, neurons) for kind in (BaseRate, NeuronStimulusRate, Logistic)]
    residual = trials.area.copy()
    for shown in np.unique(condition[: len(residual)]):
        at = condition[: len(residual)] == shown
        residual[at] -= residual[at].mean(axis=0)
    trace = recording.corrected().astype(np.float64)
    change = trace / np.median(trace, axis=0) - 1.0
    noise, power, lagged = _blocks(change)
    return Sample(
        area=trials.area,
        f0=trials.f0,
        active=trials.active,
        end=trials.end,
        residual=residual,
        pseudo=cut(recording, pseudo, condition=np.zeros(len(pseudo), np.int64)).active,
        scores=np.stack(fitted),
        tested=test.active.reshape(-1, neurons),
        noise=noise,
        power=power,
        lagged=lagged,
    )


def _blocks(change: Floats) -> tuple[Floats, Floats, Floats]:
    centred = change - change.mean(axis=0)
    starts = range(0, len(centred) - BLOCK - max(LAGS), BLOCK)
    # The median absolute difference of white noise is 0.6745 * sqrt(2) standard deviations.
    noise = [np.median(np.abs(np.diff(centred[s : s + BLOCK], axis=0)), axis=0) / 0.9539 for s in starts]
    power = [(centred[s : s + BLOCK] ** 2).mean(axis=0) for s in starts]
    lagged = [
        [(centred[s : s + BLOCK] * centred[s + lag : s + lag + BLOCK]).mean(axis=0) for s in starts] for lag in LAGS
    ]
    return np.stack(noise), np.stack(power), np.array(lagged)


def properties(of: Sample) -> dict[str, float]:
    """Every property by name; NaN where the sample has too little of something."""
    found = {
        "active fraction, real onsets": float(of.active.mean()),
        "active fraction, pseudo-onsets": float(of.pseudo.mean()),
    }
    names = ("neuron rate", "neuron x stimulus rate", "logistic regression")
    for name, told in zip(names, of.scores, strict=True):
        found[f"pooled AUROC, {name}"] = auroc(told.ravel(), of.tested.ravel())
    for name, told in list(zip(names, of.scores, strict=True))[1:]:
        found[f"within-neuron AUROC, {name}"] = _within(told, of.tested)
    leads = [_within(end, of.active) for end in of.end]
    for lead, value in zip(LEADS, leads, strict=True):
        found[f"within-neuron AUROC, last 5 frames / F0, lead {lead}"] = value
    found["its fall from lead 0 to lead 10"] = leads[0] - leads[-1]
    found["noise of one frame, dF/F"] = float(np.median(of.noise.mean(axis=0)))
    for lag, lagged in zip(LAGS, of.lagged, strict=True):
        found[f"autocorrelation of dF/F, lag {lag}"] = float(np.mean(lagged.mean(axis=0) / of.power.mean(axis=0)))
    found["standard deviation of dF/F"] = float(np.median(np.sqrt(of.power.mean(axis=0))))
    found["F0 over trials, coefficient of variation"] = float(np.median(of.f0.std(axis=0) / of.f0.mean(axis=0)))
    if of.area.shape[1] > 1:
        found["F0 over neurons, sd of log"] = float(np.log(np.maximum(of.f0.mean(axis=0), 1e-9)).std())
        found["pairwise noise correlation"] = _pairwise(of.residual)
    return found


def _within(score: Floats, marked: NDArray[np.bool_]) -> float:
    neuron = np.tile(np.arange(marked.shape[1]), len(marked))
    return auroc_within(score.ravel(), marked.ravel(), groups=neuron).mean


def _pairwise(residual: Floats) -> float:
    centred = residual - residual.mean(axis=0)
    scale = np.sqrt((centred**2).mean(axis=0))
    correlation = (centred.T @ centred) / len(centred) / np.maximum(np.outer(scale, scale), 1e-12)
    # A neuron drawn twice is no pair.
    other = np.triu(np.abs(correlation) < 1.0 - 1e-9, k=1)
    return float(correlation[other].mean())
