"""A model against every simple baseline: several seeds, their average, pseudo-onsets, and rolling-origin folds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from quantformer.recording import Recording
from quantformer.signal import SignalRecipe
from quantformer_training.calibrate import probability
from quantformer_training.comparison import Baselines, Comparison, Forecasts, compare_with_baselines
from quantformer_training.fit import FitConfig, Fitted, fit, rows_of
from quantformer_training.loop import Report
from quantformer_training.population import Population
from quantformer_training.rows import Rows
from quantformer_training.splits import Split
from quantformer_training.store import Traced
from quantformer_training.trials import PSEUDO_DISTANCE, Moments, Trials, pseudo_moments, real_moments

#: Pseudo-onsets of the control fall this many seconds into each presentation, where that is far from any onset.
CONTROL_S = 5.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """One model (a seed, or the mean of several seeds' probabilities and traces) on the test part."""

    name: str
    onsets: Comparison
    pseudo_onsets: Comparison


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """``models`` holds each seed on the main split, then their average; ``folds`` the average on each later split."""

    models: tuple[Scored, ...]
    folds: tuple[Scored, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Contest:
    """Test rows, and the baselines that were fitted for them."""

    rows: Rows
    baselines: Baselines


def control_moments(recording: Traced) -> Moments:
    """One pseudo-onset a presentation: 5 s after its onset, or midway to the next where that comes too soon."""
    recipe, real = SignalRecipe(), real_moments(recording)
    following = np.append(real.frame[1:], recording.frames)
    latest = following - recipe.response_frames
    asked = real.frame + round(CONTROL_S * recording.rate_hz)
    middle = (real.frame + PSEUDO_DISTANCE + latest) // 2
    frame = np.where(asked <= latest, asked, middle)
    usable = frame[(frame >= real.frame + PSEUDO_DISTANCE) & (frame <= latest)]
    return pseudo_moments(recording, usable, recipe=recipe)


def study(
    recording: Recording,
    *,
    split: Split,
    folds: Sequence[Split],
    config: Callable[[int], FitConfig],
    seeds: Sequence[int],
    fold_seeds: Sequence[int],
    report: Report,
    unlabelled: Sequence[Recording] = (),
    pretrained: Path | None = None,
) -> Study:
    """Fit and score. The test part of each split is read once, after everything has been chosen on validation."""
    models = _scored(
        recording, split=split, config=config, seeds=seeds, report=report, unlabelled=unlabelled, pretrained=pretrained
    )
    later = []
    for number, fold in enumerate(folds, start=1):
        made = _scored(
            recording,
            split=fold,
            config=config,
            seeds=fold_seeds,
            report=report,
            unlabelled=unlabelled,
            pretrained=pretrained,
        )
        mean = made[-1]
        later.append(Scored(name=f"fold {number}, {mean.name}", onsets=mean.onsets, pseudo_onsets=mean.pseudo_onsets))
    return Study(models=tuple(models), folds=tuple(later))


def _scored(
    recording: Recording,
    *,
    split: Split,
    config: Callable[[int], FitConfig],
    seeds: Sequence[int],
    report: Report,
    unlabelled: Sequence[Recording],
    pretrained: Path | None,
) -> list[Scored]:
    """Each seed, then the mean over seeds where there are several."""
    onsets: list[Forecasts] = []
    pseudo: list[Forecasts] = []
    scored: list[Scored] = []
    contests: tuple[_Contest, _Contest] | None = None
    for seed in seeds:
        fitted = fit(
            recording, split=split, config=config(seed), report=report, unlabelled=unlabelled, pretrained=pretrained
        )
        tests, contests = _tests(fitted), contests or _contests(fitted)
        onsets.append(forecasts(fitted, tests[0]))
        pseudo.append(forecasts(fitted, tests[1]))
        scored.append(_compare(f"seed {seed}", fitted, contests, onsets[-1], pseudo[-1]))
    if len(seeds) > 1 and contests is not None:
        scored.append(_compare(f"mean of {len(seeds)} seeds", fitted, contests, _mean(onsets), _mean(pseudo)))
    return scored


def scored(fitted: Fitted, *, name: str) -> Scored:
    """One fitted model on its test part, against every simple baseline."""
    onsets, pseudo = _tests(fitted)
    return _compare(name, fitted, _contests(fitted), forecasts(fitted, onsets), forecasts(fitted, pseudo))


def _tests(fitted: Fitted) -> tuple[Trials, Trials]:
    """Test trials at real onsets and at the control's pseudo-onsets."""
    reader = fitted.reader
    return fitted.real["test"], reader.read(control_moments(reader.recording), part="test")


def _contests(fitted: Fitted) -> tuple[_Contest, _Contest]:
    """At real onsets and at the control's pseudo-onsets; the same for every seed."""
    reader = fitted.reader
    # Baselines learn from the same trials as the network: at real onsets, and at the control's own pseudo-onsets.
    known = (fitted.real["train"], reader.read(control_moments(reader.recording), part="train"))
    population = Population(
        reader.trace,
        spans=reader.split.train,
        rate_hz=reader.recording.rate_hz,
        running_speed_cm_s=reader.recording.running_speed_cm_s,
    )
    onsets, pseudo = (
        _Contest(rows=_told(trials, population), baselines=Baselines.fit(_told(training, population)))
        for trials, training in zip(_tests(fitted), known, strict=True)
    )
    return onsets, pseudo


def _compare(
    name: str, fitted: Fitted, contests: tuple[_Contest, _Contest], onsets: Forecasts, pseudo: Forecasts
) -> Scored:
    made = [
        compare_with_baselines(
            forecast, rows=contest.rows, baselines=contest.baselines, minutes=_minutes(fitted, contest.rows)
        )
        for forecast, contest in zip((onsets, pseudo), contests, strict=True)
    ]
    return Scored(name=name, onsets=made[0], pseudo_onsets=made[1])


def _told(trials: Trials, population: Population) -> Rows:
    """Plain rows with what the rest of the field and the animal did before each onset."""
    moment, neuron = np.nonzero(trials.valid)
    context = population.context(frame=trials.moments.frame[moment], neuron=neuron)
    return replace(rows_of(trials), context=context)


def forecasts(fitted: Fitted, trials: Trials) -> Forecasts:
    """Calibrated probabilities and traces for trials of the fitted recording, nothing withheld."""
    made = fitted.model.predict(fitted.source(trials).at_lead(0))
    return Forecasts(probability=probability(made.logit, fitted.calibrated.calibration), response=made.response)


def _minutes(fitted: Fitted, rows: Rows) -> float:
    spans = sum(high - low for low, high in fitted.split.test)
    return spans / fitted.reader.recording.rate_hz / 60.0 * len(np.unique(rows.neuron))


def _mean(parts: Sequence[Forecasts]) -> Forecasts:
    return Forecasts(
        probability=np.mean([part.probability for part in parts], axis=0),
        response=np.mean([part.response for part in parts], axis=0),
    )
