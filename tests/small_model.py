"""Tiny networks and example sources for tests: d = 16, one layer, no training where none is asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from small_recording import small_recording

from quantformer.autoencoder import Autoencoder
from quantformer.config import ModelConfig
from quantformer.forecaster import Forecaster
from quantformer.labels import LabelRule
from quantformer.recording import Recording
from quantformer.signal import SignalRecipe
from quantformer.tokens import TaskTokens
from quantformer_training.examples import ExampleSource, Vocabulary
from quantformer_training.finetune import FinetuneConfig, TrainedModel
from quantformer_training.fit import vocabulary_of
from quantformer_training.loop import LoopConfig, LoopResult
from quantformer_training.pretrain import Pretrained
from quantformer_training.splits import split_by_time
from quantformer_training.trials import TrialReader, Trials, moments_of, nearest, pseudo_moments, real_moments
from quantformer_training.tuning import Tuning, fit_tuning, out_of_fold, quantities

# Tiny matrices: a second thread on a busy machine makes these tests ten times slower.
torch.set_num_threads(1)

CONFIG = ModelConfig(d=16, layers=1, heads=2, codes=8)
SCALE = 0.2
NO_RESULT = LoopResult(best_epoch=0, best_validation=0.0, epochs_run=0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sources:
    """Everything that fine-tuning reads of one small recording."""

    reader: TrialReader
    vocabulary: Vocabulary
    tuning: Tuning
    real: ExampleSource
    pseudo: ExampleSource
    moments: ExampleSource
    validation: ExampleSource
    test: ExampleSource


def sources_of(recording: Recording | None = None, *, train_trials: int = 30, permute: int | None = None) -> Sources:
    """Sources with out-of-fold tuning; ``permute`` seeds a permutation of labels and responses within neuron x stimulus."""
    recording = recording if recording is not None else small_recording()
    recipe = SignalRecipe()
    split = split_by_time(recording, recipe=recipe, train_trials=train_trials)
    reader = TrialReader(recording, split=split, recipe=recipe, rule=LabelRule())
    vocabulary = vocabulary_of(recording)
    moments = real_moments(recording)
    asked = np.arange(recipe.baseline_frames, recording.frames - recipe.response_frames, 5)
    real = {part: reader.read(moments, part=part) for part in ("train", "validation", "test")}
    if permute is not None:
        rng = np.random.default_rng(permute)
        real = {part: permuted(trials, rng) for part, trials in real.items()}
    pseudo = reader.read(pseudo_moments(recording, asked, recipe=recipe), part="train")
    anywhere = reader.read(moments_of(real["train"].moments, asked), part="train")
    own = nearest(real["train"].moments, anywhere.moments.frame)
    sets = [real["train"], pseudo]
    features = np.concatenate([vocabulary.tuning_features(trials.moments) for trials in sets])
    values = np.concatenate([quantities(trials, signal_scale=SCALE) for trials in sets])
    valid = np.concatenate([trials.valid for trials in sets])
    block = np.concatenate([trials.moments.trial for trials in sets])
    judged = np.concatenate([~trials.moments.pseudo for trials in sets])
    constant = vocabulary.tuning_constants
    tuning = fit_tuning(features, values, valid, block, constant=constant, judged=judged)
    neuron, population = out_of_fold(features, values, valid, block, constant=constant, strengths=tuning.strengths)
    cut = len(real["train"].moments)

    def source(
        trials: Trials, known: tuple[np.ndarray, np.ndarray] | None = None, *, withheld: bool = True
    ) -> ExampleSource:
        if known is None:
            asked = vocabulary.tuning_features(trials.moments)
            known = tuning.of(asked), tuning.of_population(asked)
        return ExampleSource(
            reader, trials, vocabulary=vocabulary, signal_scale=SCALE, tuning=known, withheld=withheld
        )

    return Sources(
        reader=reader,
        vocabulary=vocabulary,
        tuning=tuning,
        real=source(real["train"], (neuron[:cut], population[:cut])),
        pseudo=source(pseudo, (neuron[cut:], population[cut:])),
        moments=source(anywhere, (neuron[own], population[own]), withheld=False),
        validation=source(real["validation"]),
        test=source(real["test"]),
    )


def permuted(trials: Trials, rng: np.random.Generator) -> Trials:
    """The trials with labels and responses exchanged among those of the same neuron and stimulus."""
    active, response = trials.active.copy(), trials.response.copy()
    names = np.array(trials.moments.stimulus_id)
    for neuron in range(active.shape[1]):
        for name in np.unique(names):
            rows = np.flatnonzero((names == name) & trials.valid[:, neuron])
            mixed = rng.permutation(rows)
            active[rows, neuron], response[rows, neuron] = active[mixed, neuron], response[mixed, neuron]
    return Trials(**{**vars(trials), "active": active, "response": response})


def tiny_pretrained(config: ModelConfig = CONFIG, *, seed: int = 0) -> Pretrained:
    """An auto-encoder with random weights, as if it had been trained."""
    torch.manual_seed(seed)
    frozen = Autoencoder(config).freeze()
    patches = torch.randn(config.codes, config.patch_frames)
    return Pretrained(config=config, autoencoder=frozen, signal_scale=SCALE, code_patch=patches, result=NO_RESULT)


def tiny_forecaster(config: ModelConfig = CONFIG, *, seed: int = 0) -> Forecaster:
    """Both networks with random weights, the shortcuts and corrections too, in eval mode."""
    made = tiny_pretrained(config, seed=seed)
    forecaster = Forecaster(config, teacher=made.autoencoder, signal_scale=SCALE)
    with torch.no_grad():
        for linear in (
            forecaster.activation.shortcut.linear,
            forecaster.response.shortcut.linear,
            forecaster.response.refine,
        ):
            linear.weight.normal_(0.0, 0.02)
            linear.bias.normal_(0.0, 0.02)
    forecaster.weigh((0.6, 0.2, 0.1))
    return forecaster.eval()


def tiny_model(vocabulary: Vocabulary, *, seed: int = 0) -> TrainedModel:
    """A model with random weights and random vectors."""
    forecaster = tiny_forecaster(seed=seed)
    tokens = []
    for _ in range(2):
        made = TaskTokens(
            neurons=len(vocabulary.neuron_ids),
            feature_width=vocabulary.recipe.width,
            stimulus_ids=len(vocabulary.stimulus_ids),
            d=forecaster.config.d,
        )
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.normal_(0.0, 0.3)
        tokens.append(made)
    return TrainedModel(
        forecaster=forecaster, tokens=(tokens[0], tokens[1]), vocabulary=vocabulary, results=(NO_RESULT, NO_RESULT)
    )


def tiny_training(*, epochs: int = 2, rows: int = 200, seed: int = 0) -> FinetuneConfig:
    """A fine-tuning of seconds."""
    loop = LoopConfig(epochs=epochs, learning_rate=3e-3, seed=seed)
    return FinetuneConfig(activation=loop, forecast=loop, batch=64, rows_per_epoch=rows)
