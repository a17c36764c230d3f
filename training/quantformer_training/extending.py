"""New neurons for an old bundle, without training: their tuning from their own trials, the network unchanged."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from quantformer.bundle import Bundle, Vectors
from quantformer.errors import RecordingError
from quantformer.labels import LabelRule
from quantformer.recording import Recording
from quantformer_training.examples import Vocabulary
from quantformer_training.packing import seen_ranges
from quantformer_training.pretrain import whole
from quantformer_training.trials import TrialReader, real_moments
from quantformer_training.tuning import quantities, tune_neurons


def extend(bundle: Bundle, recording: Recording, *, path: Path) -> Bundle:
    """Write to ``path`` the bundle with the recording's neurons added; its ONNX file is byte-identical.

    Each new neuron has the trained unknown vector and a tuning of its own, regressed on the recording's presentations and
    pulled towards the bundle's mean neuron as strongly as in training. The bundle's scores, calibration and intervals
    were measured on its own neurons; for the new ones they are an assumption until validated.

    Raises:
        RecordingError: no usable presentation. BundleError: a neuron is already in the bundle. DataError: a stimulus
        category or feature that the bundle does not know.
    """
    manifest, old = bundle.manifest, bundle.vectors
    rule = LabelRule(definition=manifest.label.definition, threshold=manifest.label.threshold)
    reader = TrialReader(recording, split=whole(recording), recipe=manifest.signal, rule=rule)
    trials = reader.read(real_moments(recording), part="train")
    if not trials.valid.any():
        raise RecordingError(
            f"{recording.provenance.source}: no usable presentation to tune on; left out: {dict(trials.rejected)}"
        )
    named = {spec.id_row: name for name, spec in manifest.stimuli.items() if spec.id_row is not None}
    vocabulary = Vocabulary(
        neuron_ids=recording.neuron_ids,
        stimulus_ids=tuple(named[row] for row in range(len(old.stimulus_id))),
        recipe=manifest.stimulus_recipe,
    )
    tuning = tune_neurons(
        vocabulary.tuning_features(trials.moments),
        quantities(trials, signal_scale=manifest.signal_scale),
        trials.valid,
        population=old.population_tuning.astype(np.float64),
        constant=vocabulary.tuning_constants,
        strengths=manifest.tuning_strengths,
    )
    f0_range, noise_range = seen_ranges(trials)
    added = Vectors(
        neuron=np.repeat(old.unknown[None], recording.neurons, axis=0),
        unknown=old.unknown,
        stimulus_weight=old.stimulus_weight,
        stimulus_id=old.stimulus_id,
        tuning=tuning.astype(np.float32),
        population_tuning=old.population_tuning,
        f0_minimum=reader.f0_minimum,
        usual_f0=reader.usual_f0,
        # What the network makes of a population's level it learned of the bundle's own: the new neurons take no part.
        noise=reader.population.noise,
        usual_activity=reader.population.usual_activity,
        loading=np.zeros_like(reader.population.loading),
        f0_range=f0_range,
        noise_range=noise_range,
    )
    return bundle.extended(ids=recording.neuron_ids, vectors=added, path=path)
