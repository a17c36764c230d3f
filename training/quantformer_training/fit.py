"""From a recording to a bundle: pre-train, fine-tune both tasks, calibrate on validation, export, verify."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantformer.config import PRESETS, ModelConfig
from quantformer.errors import RecordingError
from quantformer.labels import LabelRule
from quantformer.recording import Recording
from quantformer.signal import SignalRecipe
from quantformer.vocabulary import NOTHING, ONGOING, StimulusRecipe
from quantformer_training.calibrate import Calibrated, calibrate
from quantformer_training.examples import ExampleSource, Vocabulary
from quantformer_training.finetune import FinetuneConfig, TrainedModel, finetune
from quantformer_training.loop import LoopConfig, Report
from quantformer_training.pretrain import Pretrained, Windows, load_pretrained, pretrain, random_windows, whole
from quantformer_training.rows import Rows
from quantformer_training.splits import PARTS, Split
from quantformer_training.trials import Moments, TrialReader, Trials, pseudo_moments, real_moments
from quantformer_training.tuning import Tuning, fit_tuning, out_of_fold, quantities

#: Stimuli with more ids than this are told apart by their features alone.
MOST_STIMULUS_IDS = 256
#: Pseudo-onsets are looked for every this many frames.
PSEUDO_STRIDE = 3


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Everything that decides a fit; `quick` and `full` are the two in use."""

    preset: str
    pretraining: LoopConfig
    finetuning: FinetuneConfig
    own_windows: int
    unlabelled_windows: int
    pretraining_batch: int = 128
    seed: int = 0

    @property
    def model(self) -> ModelConfig:
        """Sizes of the network."""
        return PRESETS[self.preset]

    @classmethod
    def quick(cls, *, seed: int = 0) -> FitConfig:
        """About a minute on two cores: for the demonstration."""
        task = LoopConfig(epochs=10, learning_rate=1e-3, weight_decay=0.05, patience=4, seed=seed)
        return cls(
            preset="small",
            pretraining=LoopConfig(epochs=4, learning_rate=1e-3, seed=seed),
            finetuning=FinetuneConfig(activation=task, forecast=task, rows_per_epoch=5000),
            own_windows=3000,
            unlabelled_windows=0,
            seed=seed,
        )

    @classmethod
    def full(cls, *, seed: int = 0) -> FitConfig:
        """A few minutes on two cores: for a recording whose figures are to be quoted."""
        task = LoopConfig(epochs=30, learning_rate=1e-3, weight_decay=0.05, patience=8, seed=seed)
        return cls(
            preset="small",
            pretraining=LoopConfig(epochs=12, learning_rate=1e-3, seed=seed),
            finetuning=FinetuneConfig(activation=task, forecast=task),
            own_windows=8000,
            unlabelled_windows=24000,
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """A trained, calibrated model and what it was made from. ``real`` and ``pseudo`` hold the trials of each part."""

    config: FitConfig
    reader: TrialReader
    split: Split
    vocabulary: Vocabulary
    pretrained: Pretrained
    tuning: Tuning
    model: TrainedModel
    calibrated: Calibrated
    real: dict[str, Trials]
    pseudo: dict[str, Trials]

    def source(self, trials: Trials) -> ExampleSource:
        """Examples of any trials of the recording, with the tuning that a bundle would hold."""
        features = self.vocabulary.tuning_features(trials.moments)
        return ExampleSource(
            self.reader,
            trials,
            vocabulary=self.vocabulary,
            signal_scale=self.pretrained.signal_scale,
            tuning=(self.tuning.of(features), self.tuning.of_population(features)),
        )


def fit(
    recording: Recording,
    *,
    split: Split,
    config: FitConfig,
    report: Report,
    unlabelled: Sequence[Recording] = (),
    pretrained: Path | None = None,
    checkpoints: Path | None = None,
) -> Fitted:
    """Train on a recording's training part, choose on its validation part; the test part is read but not used.

    ``unlabelled`` recordings lend windows to pre-training; ``pretrained`` is a directory made by `save_pretrained`, whose
    auto-encoder is used instead. ``checkpoints`` is a directory from which an interrupted fit resumes.

    Raises:
        RecordingError: a part has no usable trial, or validation has only one class.
    """
    recipe, rule = SignalRecipe(), LabelRule()
    reader = TrialReader(recording, split=split, recipe=recipe, rule=rule)
    candidates = np.arange(recipe.baseline_frames, recording.frames - recipe.response_frames, PSEUDO_STRIDE)
    moments = {"real": real_moments(recording), "pseudo": pseudo_moments(recording, candidates, recipe=recipe)}
    real = {part: reader.read(moments["real"], part=part) for part in PARTS}
    pseudo = {part: reader.read(moments["pseudo"], part=part) for part in PARTS}
    _check(real, recording)
    vocabulary = vocabulary_of(recording, moments["real"])
    if pretrained is None:
        made = _pretrain(recording, unlabelled, reader=reader, config=config, report=report, checkpoints=checkpoints)
    else:
        made = load_pretrained(pretrained)
    tuning, of_training = _tune(real["train"], pseudo["train"], vocabulary=vocabulary, scale=made.signal_scale)
    training = [
        ExampleSource(reader, trials, vocabulary=vocabulary, signal_scale=made.signal_scale, tuning=known)
        for trials, known in zip((real["train"], pseudo["train"]), of_training, strict=True)
    ]
    features = vocabulary.tuning_features(real["validation"].moments)
    validation = ExampleSource(
        reader,
        real["validation"],
        vocabulary=vocabulary,
        signal_scale=made.signal_scale,
        tuning=(tuning.of(features), tuning.of_population(features)),
    )
    model = finetune(
        made,
        vocabulary=vocabulary,
        real=training[0],
        pseudo=training[1],
        validation=validation,
        config=config.finetuning,
        report=report,
        checkpoints=checkpoints,
        fingerprint=fingerprint(recording),
    )
    seconds = sum(high - low for low, high in split.validation) / recording.rate_hz
    return Fitted(
        config=config,
        reader=reader,
        split=split,
        vocabulary=vocabulary,
        pretrained=made,
        tuning=tuning,
        model=model,
        calibrated=calibrate(model, validation, seconds=seconds),
        real=real,
        pseudo=pseudo,
    )


def rows_of(trials: Trials, *, vocabulary: Vocabulary) -> Rows:
    """The valid neuron-trials as plain arrays, in the order of `ExampleSource.at_lead`; stimuli by id, else category."""
    moment, neuron = np.nonzero(trials.valid)
    names = sorted(set(trials.moments.stimulus_id))
    known = {name: row for row, name in enumerate((*vocabulary.stimulus_ids, *names))}
    stimulus = np.array([known[name] for name in trials.moments.stimulus_id], np.int64)
    return Rows(
        baseline=trials.baseline[moment, neuron],
        f0=trials.f0[moment, neuron],
        neuron=neuron,
        stimulus=stimulus[moment],
        trial=trials.moments.trial[moment],
        active=trials.active[moment, neuron],
        response=trials.response[moment, neuron],
    )


def vocabulary_of(recording: Recording, real: Moments) -> Vocabulary:
    """Neurons, stimuli and features of a recording."""
    categories = set(real.category)
    features = {name for features in real.features for name in features}
    ids = tuple(sorted(set(real.stimulus_id)))
    return Vocabulary(
        neuron_ids=recording.neuron_ids,
        stimulus_ids=ids if len(ids) <= MOST_STIMULUS_IDS else (),
        recipe=StimulusRecipe.covering([*categories, *(ONGOING + name for name in categories), NOTHING], [*features]),
    )


def fingerprint(recording: Recording) -> str:
    """SHA-256 of the traces, stamps and onsets; first 16 hex digits."""
    digest = hashlib.sha256()
    for array in (recording.fluorescence, recording.timestamps_s, recording.stimuli.onset_s):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def _check(real: dict[str, Trials], recording: Recording) -> None:
    for part, trials in real.items():
        if not trials.valid.any():
            raise RecordingError(
                f"{recording.provenance.source}: no usable trial in the {part} part; left out: {dict(trials.rejected)}"
            )
    for part in ("train", "validation"):
        active = real[part].active[real[part].valid]
        if active.all() or not active.any():
            raise RecordingError(
                f"{recording.provenance.source}: every one of the {len(active)} neuron-trials of the {part} part is "
                f"{'active' if active.all() else 'inactive'}; both classes are needed: move the split or use more trials"
            )


def _pretrain(
    recording: Recording,
    unlabelled: Sequence[Recording],
    *,
    reader: TrialReader,
    config: FitConfig,
    report: Report,
    checkpoints: Path | None,
) -> Pretrained:
    recipe, rule, seed = reader.recipe, reader.rule, config.seed
    share = max(1, config.unlabelled_windows // max(len(unlabelled), 1))
    train = [
        random_windows(
            recording, split=reader.split, part="train", count=config.own_windows, recipe=recipe, rule=rule, seed=seed
        )
    ]
    for i, other in enumerate(unlabelled):
        if other.frames > recipe.window_frames + 1:
            train.append(
                random_windows(
                    other, split=whole(other), part="train", count=share, recipe=recipe, rule=rule, seed=seed + i
                )
            )
    held = random_windows(
        recording,
        split=reader.split,
        part="validation",
        count=max(config.own_windows // 4, 200),
        recipe=recipe,
        rule=rule,
        seed=seed,
    )
    return pretrain(
        train=Windows.joined(train),
        validation=held,
        config=config.model,
        loop=replace(config.pretraining, seed=seed),
        report=report,
        batch=config.pretraining_batch,
        checkpoint=None if checkpoints is None else checkpoints / "pretraining.pt",
    )


def _tune(
    real: Trials, pseudo: Trials, *, vocabulary: Vocabulary, scale: float
) -> tuple[Tuning, list[tuple[NDArray[np.float32], NDArray[np.float32]]]]:
    """The tuning, and for each set of training trials what it would have been without their own presentation."""
    sets = [real, pseudo]
    features = np.concatenate([vocabulary.tuning_features(trials.moments) for trials in sets])
    values = np.concatenate([quantities(trials, signal_scale=scale) for trials in sets])
    valid = np.concatenate([trials.valid for trials in sets])
    block = np.concatenate([trials.moments.trial for trials in sets])
    judged = np.concatenate([~trials.moments.pseudo for trials in sets])
    tuning = fit_tuning(features, values, valid, block, judged=judged)
    neuron, population = out_of_fold(features, values, valid, block, strength=tuning.strength)
    cut = len(real.moments)
    return tuning, [(neuron[:cut], population[:cut]), (neuron[cut:], population[cut:])]
