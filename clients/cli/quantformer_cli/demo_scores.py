"""From what was streamed to scores: the answers as predictions, the same offline, pseudo-onsets, and skill by lead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from quantformer_cli.demo_stream import Heard
from quantformer_training.calibrate import probability
from quantformer_training.comparison import (
    Baselines,
    Comparison,
    Forecasts,
    LeadScores,
    compare_with_baselines,
    score_at_lead,
)
from quantformer_training.export import TOLERANCE
from quantformer_training.fit import Fitted, rows_of
from quantformer_training.rows import Rows
from quantformer_training.trials import Trials

#: Leads in frames at which skill is shown.
LEADS = (0, 3, 5, 10)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Answers against the offline model: rows compared, the largest differences, and what did not agree.

    ``onset_frames`` counts the answers whose onset frame is the offline one, ``windows`` the rows that the engine called
    invalid and the trial reader did not.
    """

    rows: int
    onset_frames: int
    windows: int
    probability: float
    response: float

    @property
    def within(self) -> bool:
        """Whether everything agrees within the tolerance of the bundle's own parity test."""
        return self.rows > 0 and self.windows == 0 and max(self.probability, self.response) <= TOLERANCE


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """Baselines fitted on the training and validation parts, at real onsets and at pseudo-onsets."""

    real: Baselines
    pseudo: Baselines


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """``streamed`` scores the answers that came over the wire; ``held_out`` and ``pseudo`` the same model offline on the
    whole held-out part, at its real onsets and where nothing begins; ``leads`` with last frames withheld. ``coverage`` is the
    part of the frames that followed that lay within the interval told.
    """

    streamed: Comparison
    held_out: Comparison
    pseudo: Comparison
    leads: tuple[LeadScores, ...]
    agreement: Agreement
    coverage: float


def train_baselines(fitted: Fitted) -> Trained:
    """Fit every simple baseline on what the model was trained and chosen on."""
    real, pseudo = _concatenated(_known(fitted.real)), _concatenated([_thinned(one) for one in _known(fitted.pseudo)])
    return Trained(real=Baselines.fit(real), pseudo=Baselines.fit(pseudo))


def score(
    fitted: Fitted, *, trained: Trained, answers: Mapping[int, Heard], seconds: float, resamples: int = 2000
) -> Scores:
    """Score the answers, by row of the stimulus table, to onsets streamed for ``seconds``."""
    rate_hz = fitted.reader.recording.rate_hz
    minutes = sum(stop - start for start, stop in fitted.split.test) / rate_hz / 60.0
    threshold = fitted.calibrated.thresholds["default"]
    real = fitted.real["test"]
    chosen = real.select(np.flatnonzero(np.isin(real.moments.trial, list(answers))))
    rows = rows_of(chosen)
    return Scores(
        streamed=compare_with_baselines(
            answered(rows, answers),
            rows=rows,
            baselines=trained.real,
            minutes=seconds / 60.0,
            denied=_offline(fitted, chosen, denied=True).probability,
            threshold=threshold,
            resamples=resamples,
        ),
        held_out=_compare(fitted, real, trained.real, minutes=minutes, threshold=threshold, resamples=resamples),
        pseudo=_compare(
            fitted, _thinned(fitted.pseudo["test"]), trained.pseudo, minutes=minutes, threshold=threshold, resamples=resamples
        ),
        leads=tuple(_at_lead(fitted, real, lead) for lead in LEADS),
        agreement=agreement(fitted, chosen, answers),
        coverage=_coverage(rows, answers),
    )


def answered(rows: Rows, answers: Mapping[int, Heard]) -> Forecasts:
    """The answers' numbers in the order of ``rows``."""
    trials, which = np.unique(rows.trial, return_inverse=True)
    heard = [answers[int(trial)].answer for trial in trials]
    probability = np.stack([answer.probability[0] for answer in heard])
    response = np.stack([answer.response[0] for answer in heard if answer.response is not None])
    which = which.reshape(-1)
    return Forecasts(probability=probability[which, rows.neuron], response=response[which, rows.neuron])


def _coverage(rows: Rows, answers: Mapping[int, Heard]) -> float:
    inside = []
    for trial in np.unique(rows.trial):
        answer, mine = answers[int(trial)].answer, rows.trial == trial
        if answer.low is not None and answer.high is not None:
            low, high = answer.low[0, rows.neuron[mine]], answer.high[0, rows.neuron[mine]]
            inside.append((rows.response[mine] >= low) & (rows.response[mine] <= high))
    return float(np.concatenate(inside).mean()) if inside else float("nan")


def agreement(fitted: Fitted, trials: Trials, answers: Mapping[int, Heard]) -> Agreement:
    """Ask PyTorch offline what was asked over the wire, with the frames that the engine had, and compare."""
    heard = [answers[int(trial)].answer for trial in trials.moments.trial]
    frames = np.array([answer.onset_frame for answer in heard], np.int64)
    # The frame that the engine took for the onset frame, should a deadline have come before the stamps told.
    asked = fitted.reader.read(replace(trials.moments, frame=frames), part="test")
    place = {int(trial): i for i, trial in enumerate(trials.moments.trial)}
    heard = [heard[place[int(trial)]] for trial in asked.moments.trial]
    leads = np.array([answer.lead for answer in heard])
    rows, one_sided, worst = 0, 0, np.zeros(2)
    for lead in np.unique(leads):
        index = np.flatnonzero(leads == lead)
        told = [heard[i] for i in index]
        examples = fitted.source(asked.select(index)).at_lead(int(lead))
        made = fitted.model.predict(examples)
        moment, neuron = examples.moment.numpy(), examples.neuron.numpy()
        valid = np.stack([answer.valid for answer in told])
        one_sided += int(np.count_nonzero(~valid[moment, neuron]))
        probabilities = np.stack([answer.probability[0] for answer in told])[moment, neuron]
        responses = np.stack([answer.response[0] for answer in told if answer.response is not None])[moment, neuron]
        worst = np.maximum(
            worst,
            [
                np.abs(probabilities - probability(made.logit, fitted.calibrated.calibration)).max(initial=0.0),
                np.abs(responses - made.response).max(initial=0.0),
            ],
        )
        rows += len(moment)
    return Agreement(
        rows=rows,
        onset_frames=int(np.count_nonzero(frames == trials.moments.frame)),
        windows=one_sided,
        probability=float(worst[0]),
        response=float(worst[1]),
    )


def _compare(
    fitted: Fitted, trials: Trials, baselines: Baselines, *, minutes: float, threshold: float, resamples: int
) -> Comparison:
    return compare_with_baselines(
        _offline(fitted, trials),
        rows=rows_of(trials),
        baselines=baselines,
        minutes=minutes,
        denied=_offline(fitted, trials, denied=True).probability,
        threshold=threshold,
        resamples=resamples,
    )


def _offline(fitted: Fitted, trials: Trials, *, denied: bool = False, lead: int = 0) -> Forecasts:
    made = fitted.model.predict(fitted.source(trials).at_lead(lead), denied=denied)
    return Forecasts(probability=probability(made.logit, fitted.calibrated.calibration), response=made.response)


def _at_lead(fitted: Fitted, trials: Trials, lead: int) -> LeadScores:
    return score_at_lead(
        _offline(fitted, trials, lead=lead).probability,
        rows=rows_of(_withheld(fitted, trials, lead)),
        train=_concatenated([_withheld(fitted, one, lead) for one in _known(fitted.real)]),
        lead=lead,
    )


def _withheld(fitted: Fitted, trials: Trials, lead: int) -> Trials:
    """The same trials with baseline and F0 from what is left when the last ``lead`` frames are missing."""
    if not lead:
        return trials
    frames = fitted.reader.recipe.baseline_frames
    missing = np.arange(frames) >= frames - lead
    baseline, f0, valid = trials.baseline.copy(), trials.f0.copy(), trials.valid.copy()
    for i in range(len(trials.moments)):
        f0[i], usable = fitted.reader.write(trials.moments, i, out=baseline[i], missing=missing)
        valid[i] &= usable
    return replace(trials, baseline=baseline, f0=f0, valid=valid)


def _thinned(trials: Trials) -> Trials:
    """One pseudo-onset a presentation, the middle one: neighbours a tenth of a second apart say the same again."""
    _, first, count = np.unique(trials.moments.trial, return_index=True, return_counts=True)
    return trials.select(first + count // 2)


def _known(parts: Mapping[str, Trials]) -> list[Trials]:
    """Training and validation trials, each once: a model that was fitted again at the end was trained on both."""
    train, validation = parts["train"], parts["validation"]
    return [train, validation.select(np.flatnonzero(~np.isin(validation.moments.frame, train.moments.frame)))]


def _concatenated(trials: list[Trials]) -> Rows:
    return Rows.joined([rows_of(one) for one in trials if len(one.moments)])
