"""A small recording with windows that are not valid, cut at once and by index, and rows compared bit for bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from small_recording import small_recording

from quantformer.labels import LabelRule
from quantformer.recording import Recording
from quantformer.signal import SignalRecipe
from quantformer_training.examples import Examples, ExampleSource
from quantformer_training.fit import vocabulary_of
from quantformer_training.indexed import IndexedPart, IndexedSource, SessionReader
from quantformer_training.splits import split_by_time
from quantformer_training.store import write_session
from quantformer_training.trials import TrialReader, real_moments

SCALE = 0.2


def make_recording(seed: int = 0) -> Recording:
    made = small_recording(neurons=3, trials=24, period_s=4.0)
    changed = made.fluorescence.copy() * np.random.default_rng(seed).normal(1.0, 0.05, made.fluorescence.shape)
    # A neuron that breaks off in one trial, and one without light in another: rows and neuron-trials differ.
    changed[int(30 * (5.0 + 4.0 * 6)) + 30, 1] = np.nan
    changed[int(30 * (5.0 + 4.0 * 9)) - 70 : int(30 * (5.0 + 4.0 * 9)), 2] = 0.0
    return dataclasses.replace(made, fluorescence=changed.astype(np.float32))


def sources(recording: Recording, directory: Path) -> tuple[ExampleSource, IndexedPart]:
    recipe, rule = SignalRecipe(), LabelRule()
    split, moments = split_by_time(recording, recipe=recipe, train_trials=20), real_moments(recording)
    vocabulary, rng = vocabulary_of(recording), np.random.default_rng(1)
    reader = TrialReader(recording, split=split, recipe=recipe, rule=rule)
    trials = reader.read(moments, part="train")
    tuning = rng.normal(size=(*trials.valid.shape, 10)).astype(np.float32)
    population = rng.normal(size=(len(trials.moments), 10)).astype(np.float32)
    whole = ExampleSource(reader, trials, vocabulary=vocabulary, signal_scale=SCALE, tuning=(tuning, population))
    session = write_session(recording, directory)
    indexed = SessionReader(session, split=split, recipe=recipe, rule=rule).read(moments, part="train")
    part = IndexedPart(
        trials=indexed, neuron=whole.neuron, stimulus=whole.stimulus, features=whole.features, tuning=tuning,
        population_tuning=population,
    )  # fmt: skip
    return whole, part


def same(one: Examples, other: Examples) -> None:
    for name, tensor in vars(one).items():
        assert torch.equal(tensor, getattr(other, name)), name


def indexed(*parts: IndexedPart) -> IndexedSource:
    return IndexedSource(parts, signal_scale=SCALE, recipe=SignalRecipe())
