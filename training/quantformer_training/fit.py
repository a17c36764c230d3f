"""From a recording to a bundle: pre-train, fine-tune both tasks, calibrate on validation, export, verify."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from quantformer.config import PRESETS, ModelConfig
from quantformer.errors import RecordingError, UsageError
from quantformer.labels import LabelRule
from quantformer.recording import Recording
from quantformer.signal import SignalRecipe
from quantformer.vocabulary import NOTHING, ONGOING, StimulusRecipe
from quantformer_training.accelerator import Accelerator
from quantformer_training.calibrate import Calibrated, calibrate
from quantformer_training.distil import Teachers
from quantformer_training.examples import ExampleSource, Vocabulary
from quantformer_training.finetune import FinetuneConfig, TrainedModel, finetune
from quantformer_training.loop import LoopConfig, Report
from quantformer_training.pretrain import Pretrained, Windows, load_pretrained, pretrain, random_windows, whole
from quantformer_training.rows import Rows
from quantformer_training.splits import PARTS, Split
from quantformer_training.store import Traced
from quantformer_training.trials import TrialReader, Trials, moments_of, nearest, pseudo_moments, real_moments
from quantformer_training.tuning import Tuning, fit_tuning, out_of_fold, quantities

#: Stimuli with more ids than this are told apart by their features alone.
MOST_STIMULUS_IDS = 256
#: Pseudo-onsets are looked for every this many frames.
PSEUDO_STRIDE = 3
#: Of the training part every this many frames is a moment that is learned from before the onsets.
MOMENT_STRIDE = 15


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Everything that decides a fit; `quick` and `full` are the two in use.

    ``refit`` trains once more on training and validation together, for as many epochs as validation chose.
    """

    preset: str
    pretraining: LoopConfig
    finetuning: FinetuneConfig
    own_windows: int
    unlabelled_windows: int
    pretraining_batch: int = 128
    refit: bool = True
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
            finetuning=FinetuneConfig(activation=replace(task, learning_rate=3e-4), forecast=task, rows_per_epoch=5000),
            own_windows=3000,
            unlabelled_windows=0,
            refit=False,
            seed=seed,
        )

    @classmethod
    def full(cls, *, seed: int = 0) -> FitConfig:
        """A few minutes on two cores: for a recording whose figures are to be quoted."""
        task = LoopConfig(epochs=30, learning_rate=1e-3, weight_decay=0.05, patience=8, seed=seed)
        return cls(
            preset="small",
            pretraining=LoopConfig(epochs=12, learning_rate=1e-3, seed=seed),
            finetuning=FinetuneConfig(activation=replace(task, learning_rate=3e-4), forecast=task, moment_epochs=6),
            own_windows=8000,
            unlabelled_windows=24000,
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """A trained, calibrated model and what it was made from. ``real`` and ``pseudo`` hold the trials of each part;
    ``taught_by`` is the digest of its teachers, if it had any.
    """

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
    taught_by: str = ""

    def source(self, trials: Trials) -> ExampleSource:
        """Examples of any trials of the recording, with the tuning that a bundle would hold."""
        return _told(
            self.reader, trials, vocabulary=self.vocabulary, tuning=self.tuning, scale=self.pretrained.signal_scale
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
    accelerator: Accelerator | None = None,
    teachers: Teachers | None = None,
) -> Fitted:
    """Train on a recording's training part, choose on its validation part; the test part is read but not used.

    ``unlabelled`` recordings lend windows to pre-training; ``pretrained`` is a directory made by `save_pretrained`, whose
    auto-encoder is used instead. ``checkpoints`` is a directory from which an interrupted fit resumes. ``teachers`` teach
    beside what happened; they must not have learned from the validation and test parts (`load_teachers` sees to that).

    Raises:
        RecordingError: a part has no usable trial, or validation has only one class.
        UsageError: the pre-trained auto-encoder has other sizes than the preset, or a teacher another vocabulary.
    """
    vocabulary = vocabulary_of(recording)
    parts = _Parts.read(recording, split=split, vocabulary=vocabulary, config=config.finetuning)
    parts.check()
    if pretrained is None:
        made = _pretrain(
            parts.reader, unlabelled, config=config, report=report, checkpoints=checkpoints, accelerator=accelerator
        )
    else:
        made = load_pretrained(pretrained)
        if made.config != config.model:
            raise UsageError(
                f"{pretrained} holds an auto-encoder of {made.config}, the preset {config.preset!r} is {config.model}; "
                "choose the preset that it was made with"
            )
    # Another split would have trained on other frames, perhaps on those now kept for the test.
    mark = f"{fingerprint(recording)} {split}"

    def train(stage: str, parts: _Parts, tuned: _Tuned, loops: FinetuneConfig) -> TrainedModel:
        return finetune(
            made,
            vocabulary=vocabulary,
            real=tuned.real,
            pseudo=tuned.pseudo,
            moments=tuned.moments,
            validation=parts.source(parts.real["validation"], tuning=tuned.tuning, scale=made.signal_scale),
            config=loops,
            report=report,
            stage=stage,
            checkpoints=checkpoints,
            fingerprint=mark,
            accelerator=accelerator,
            teachers=teachers,
        )

    tuned = parts.tune(made.signal_scale)
    model = train("", parts, tuned, config.finetuning)
    validation = parts.source(parts.real["validation"], tuning=tuned.tuning, scale=made.signal_scale)
    seconds = sum(high - low for low, high in split.validation) / recording.rate_hz
    calibrated = calibrate(model, validation, seconds=seconds)
    if config.refit:
        # Validation has chosen the number of epochs and the calibration; the last fit learns from its trials too.
        parts = _Parts.read(recording, split=split.merged(), vocabulary=vocabulary, config=config.finetuning)
        tuned = parts.tune(made.signal_scale)
        model = train("refit ", parts, tuned, config.finetuning.stopped(*model.results))
    model.forecaster.weigh(calibrated.spread_weights)
    return Fitted(
        config=config,
        reader=parts.reader,
        split=parts.reader.split,
        vocabulary=vocabulary,
        pretrained=made,
        tuning=tuned.tuning,
        model=model,
        calibrated=calibrated,
        real=parts.real,
        pseudo=parts.pseudo,
        taught_by="" if teachers is None else teachers.digest(),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Tuned:
    """A tuning, and the training examples with what it would say had their own presentation not been fitted."""

    tuning: Tuning
    real: ExampleSource
    pseudo: ExampleSource
    moments: ExampleSource


@dataclass(frozen=True, kw_only=True, eq=False)
class _Parts:
    """The trials of each part of one recording under one split."""

    reader: TrialReader
    vocabulary: Vocabulary
    real: dict[str, Trials]
    pseudo: dict[str, Trials]
    moments: Trials

    @classmethod
    def read(cls, recording: Recording, *, split: Split, vocabulary: Vocabulary, config: FinetuneConfig) -> _Parts:
        recipe = SignalRecipe()
        reader = TrialReader(recording, split=split, recipe=recipe, rule=LabelRule())
        candidates = np.arange(recipe.baseline_frames, recording.frames - recipe.response_frames, PSEUDO_STRIDE)
        pseudo = pseudo_moments(recording, candidates, recipe=recipe)
        real = {part: reader.read(real_moments(recording), part=part) for part in PARTS}
        # Their windows lie in memory: none where nothing is learned from them.
        spans = split.train if config.moment_epochs else ()
        anywhere = np.concatenate([np.arange(0), *(np.arange(low, high, MOMENT_STRIDE) for low, high in spans)])
        return cls(
            reader=reader,
            vocabulary=vocabulary,
            real=real,
            pseudo={part: reader.read(pseudo, part=part) for part in PARTS},
            moments=reader.read(moments_of(real["train"].moments, anywhere), part="train"),
        )

    def check(self) -> None:
        source = self.reader.recording.provenance.source
        for part, trials in self.real.items():
            if not trials.valid.any():
                raise RecordingError(f"{source}: no usable trial in the {part} part; left out: {dict(trials.rejected)}")
        for part in ("train", "validation"):
            active = self.real[part].active[self.real[part].valid]
            if active.all() or not active.any():
                raise RecordingError(
                    f"{source}: every one of the {len(active)} neuron-trials of the {part} part is "
                    f"{'active' if active.all() else 'inactive'}; both classes are needed: move the split or use more trials"
                )

    def source(self, trials: Trials, *, tuning: Tuning, scale: float) -> ExampleSource:
        return _told(self.reader, trials, vocabulary=self.vocabulary, tuning=tuning, scale=scale)

    def tune(self, scale: float) -> _Tuned:
        sets = [self.real["train"], self.pseudo["train"]]
        features = np.concatenate([self.vocabulary.tuning_features(trials.moments) for trials in sets])
        values = np.concatenate([quantities(trials, signal_scale=scale) for trials in sets])
        valid = np.concatenate([trials.valid for trials in sets])
        block = np.concatenate([trials.moments.trial for trials in sets])
        judged = np.concatenate([~trials.moments.pseudo for trials in sets])
        constant = self.vocabulary.tuning_constants
        tuning = fit_tuning(features, values, valid, block, constant=constant, judged=judged)
        neuron, population = out_of_fold(features, values, valid, block, constant=constant, strengths=tuning.strengths)
        cut = len(sets[0].moments)
        # A moment is told what its presentation is.
        own = nearest(sets[0].moments, self.moments.moments.frame)
        told = [(neuron[:cut], population[:cut]), (neuron[cut:], population[cut:]), (neuron[own], population[own])]
        real, pseudo, moments = (
            ExampleSource(
                self.reader, trials, vocabulary=self.vocabulary, signal_scale=scale, tuning=known, withheld=withheld
            )
            for trials, known, withheld in zip([*sets, self.moments], told, (True, True, False), strict=True)
        )
        return _Tuned(tuning=tuning, real=real, pseudo=pseudo, moments=moments)


def _told(
    reader: TrialReader, trials: Trials, *, vocabulary: Vocabulary, tuning: Tuning, scale: float
) -> ExampleSource:
    features = vocabulary.tuning_features(trials.moments)
    known = (tuning.of(features), tuning.of_population(features))
    return ExampleSource(reader, trials, vocabulary=vocabulary, signal_scale=scale, tuning=known)


def rows_of(trials: Trials) -> Rows:
    """The valid neuron-trials as plain arrays, in the order of `ExampleSource.at_lead`."""
    moment, neuron = np.nonzero(trials.valid)
    return Rows(
        baseline=trials.baseline[moment, neuron],
        f0=trials.f0[moment, neuron],
        neuron=neuron,
        stimulus=trials.moments.labels()[moment],
        trial=trials.moments.trial[moment],
        active=trials.active[moment, neuron],
        response=trials.response[moment, neuron],
    )


def vocabulary_of(recording: Traced) -> Vocabulary:
    """Neurons, stimuli and features of a recording."""
    real = real_moments(recording)
    categories = set(real.category)
    features = {name for features in real.features for name in features}
    ids = tuple(sorted(set(real.stimulus_id)))
    return Vocabulary(
        neuron_ids=recording.neuron_ids,
        stimulus_ids=ids if len(ids) <= MOST_STIMULUS_IDS else (),
        recipe=StimulusRecipe.covering([*categories, *(ONGOING + name for name in categories), NOTHING], [*features]),
    )


def fingerprint(recording: Traced) -> str:
    """SHA-256 of the corrected traces, stamps, onsets and stimuli; first 16 hex digits."""
    digest = hashlib.sha256()
    for array in (recording.corrected(), recording.timestamps_s, recording.stimuli.onset_s):
        digest.update(np.ascontiguousarray(array).data)
    table = recording.stimuli
    digest.update(repr([(table.stimulus_id[i], table.features_of(i)) for i in range(len(table))]).encode())
    return digest.hexdigest()[:16]


def _pretrain(
    reader: TrialReader,
    unlabelled: Sequence[Recording],
    *,
    config: FitConfig,
    report: Report,
    checkpoints: Path | None,
    accelerator: Accelerator | None,
) -> Pretrained:
    recording, recipe, rule, seed = reader.recording, reader.recipe, reader.rule, config.seed
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
        accelerator=accelerator,
    )
