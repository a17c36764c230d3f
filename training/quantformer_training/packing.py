"""From a fitted model to a bundle: vectors, stimuli, manifest, and the proof that the exported graph is the network."""

from __future__ import annotations

import itertools
import platform
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import quantformer
from quantformer.bundle import Bundle, Vectors, refuse_existing, write_bundle
from quantformer.labels import label_frames
from quantformer.manifest import Label, Manifest, StimulusSpec
from quantformer.population_level import joined_level
from quantformer.signal import f0_level
from quantformer.vocabulary import NOTHING, ONGOING
from quantformer_training.admission import judged_forms
from quantformer_training.examples import LONGEST_LEAD
from quantformer_training.export import GraphInputs, check_parity, export_graph
from quantformer_training.fit import Fitted, fingerprint
from quantformer_training.store import Traced
from quantformer_training.trials import EPOCHS, Trials, real_moments

#: A stimulus that begins this long after the last one ended, in seconds, begins in spontaneous activity.
SPONTANEOUS_S = 10.0


def write_fitted(fitted: Fitted, path: Path, *, metrics: dict[str, float] | None = None) -> Bundle:
    """Export the graph, prove it against PyTorch on validation rows, and write the bundle to ``path``, with those forms of
    lower precision that are admitted.

    Undefined ``metrics`` (NaN) are left out of the manifest.

    Raises:
        BundleError: ``path`` exists, or the exported graph disagrees with the network.
    """
    refuse_existing(path)
    vectors, stimuli = vectors_of(fitted), _stimuli(fitted)
    graph = export_graph(fitted.model.forecaster)
    forms = judged_forms(fitted, vectors, graph)
    recording, recipe = fitted.reader.recording, fitted.vocabulary.recipe
    manifest = Manifest(
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        software=f"quantformer {quantformer.__version__}, torch {torch.__version__}, {platform.machine()}",
        preset=fitted.config.preset,
        precision="float32",
        d=fitted.pretrained.config.d,
        codes=fitted.pretrained.config.codes,
        codebook_sha256=fitted.model.forecaster.teacher.codebook.digest(),
        signal_scale=fitted.pretrained.signal_scale,
        tuning_strengths=fitted.tuning.strengths,
        signal=fitted.reader.recipe,
        label=Label(
            definition=fitted.reader.rule.definition,
            threshold=fitted.reader.rule.threshold,
            frames={name: label_frames(name) for name in recipe.categories if not name.startswith(ONGOING)},
        ),
        phases=_phases(recording),
        longest_lead=LONGEST_LEAD,
        neuron_ids=fitted.vocabulary.neuron_ids,
        stimulus_recipe=recipe,
        stimuli=stimuli,
        calibration=fitted.calibrated.calibration,
        interval=fitted.calibrated.interval,
        thresholds=fitted.calibrated.thresholds,
        skill_by_lead=fitted.calibrated.skill_by_lead,
        metrics={name: value for name, value in (metrics or {}).items() if np.isfinite(value)},
        parity=check_parity(fitted.model.forecaster, graph, _parity_inputs(fitted, vectors, stimuli)),
        provenance={
            "origin": recording.provenance.origin,
            "source": Path(recording.provenance.source).name,
            "subject": recording.provenance.subject,
            "recording_sha256": fingerprint(recording),
            "seed": str(fitted.config.seed),
            **({"taught_by_sha256": fitted.taught_by} if fitted.taught_by else {}),
            "train_frames": str(fitted.split.train),
            "validation_frames": str(fitted.split.validation),
            "test_frames": str(fitted.split.test),
        },
        forms={name: one.form for name, one in forms.items()},
    )
    admitted = {name: one.graph for name, one in forms.items() if not one.form.refused}
    return write_bundle(path, manifest=manifest, vectors=vectors, graph=graph, forms=admitted)


def vectors_of(fitted: Fitted) -> Vectors:
    """The bundle's arrays: learned vectors of both tasks, tuning, and the guards of each neuron."""
    tokens = fitted.model.tokens
    with torch.no_grad():
        neuron = torch.stack([task.unknown + task.offset for task in tokens], dim=1).numpy()
        unknown = torch.stack([task.unknown for task in tokens]).numpy()
        weight = torch.stack([task.weight for task in tokens], dim=1).numpy()
        stimulus = torch.stack([task.stimulus_offset for task in tokens], dim=1).numpy()
    f0_range, noise_range = seen_ranges(fitted.real["train"])
    return Vectors(
        neuron=neuron,
        unknown=unknown,
        stimulus_weight=weight,
        stimulus_id=stimulus,
        tuning=fitted.tuning.neuron.astype(np.float32),
        population_tuning=fitted.tuning.population.astype(np.float32),
        f0_minimum=fitted.reader.f0_minimum,
        **vars(fitted.reader.population),
        f0_range=f0_range,
        noise_range=noise_range,
    )


def seen_ranges(trials: Trials) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest and largest F0, and frame-to-frame noise in dF/F, a neuron: two arrays ``(neurons, 2)``."""
    noise = np.abs(np.diff(trials.baseline, axis=-1)).mean(-1, dtype=np.float64)
    return _range(np.where(trials.valid, trials.f0, np.nan)), _range(np.where(trials.valid, noise, np.nan))


def _range(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Smallest and largest a neuron ``(neurons, 2)``; zeros for a neuron without a valid window."""
    seen = np.isfinite(values)
    low = np.where(seen, values, np.inf).min(axis=0)
    high = np.where(seen, values, -np.inf).max(axis=0)
    found = seen.any(axis=0)
    return np.stack([np.where(found, low, 0.0), np.where(found, high, 0.0)], axis=1)


def _stimuli(fitted: Fitted) -> dict[str, StimulusSpec]:
    """Every stimulus of the recording by id, and one for a moment at which nothing begins."""
    vocabulary, moments = fitted.vocabulary, real_moments(fitted.reader.recording)
    row_of = {name: row for row, name in enumerate(vocabulary.stimulus_ids)}
    found = {NOTHING: StimulusSpec(category=NOTHING, features={})}
    for i, name in enumerate(moments.stimulus_id):
        if name not in found:
            found[name] = StimulusSpec(
                category=moments.category[i], features=dict(moments.features[i]), id_row=row_of.get(name)
            )
    return found


def _phases(recording: Traced) -> list[str]:
    """Moments at which stimuli began in the recording: what a standing question may ask about."""
    table, frame_s = recording.stimuli, 1.0 / recording.rate_hz
    chosen = np.flatnonzero([name not in EPOCHS for name in table.category])
    phases = {"onset"}
    for before, row in itertools.pairwise(chosen):
        gap = table.onset_s[row] - table.onset_s[before] - table.duration_s[before]
        if gap > SPONTANEOUS_S:
            phases.add("spontaneous")
        elif gap > 1.5 * frame_s:
            phases.add("between")
        else:
            phases.add("blank" if table.features_of(int(before)).get("blank") == 1.0 else "stimulus")
    return sorted(phases)


def _parity_inputs(fitted: Fitted, vectors: Vectors, stimuli: dict[str, StimulusSpec]) -> GraphInputs:
    """Every neuron at one validation moment against up to eight stimuli, in the form in which the engine asks."""
    trials = fitted.real["validation"]
    moment = int(np.argmax(trials.valid.sum(1)))
    neurons, specs = trials.valid.shape[1], list(stimuli.values())[:8]
    asked = [
        vectors.of_stimulus(
            fitted.vocabulary.recipe, category=spec.category, features=spec.features, id_row=spec.id_row
        )
        for spec in specs
    ]
    return GraphInputs(
        baseline=trials.baseline[moment],
        level=joined_level(f0_level(trials.f0[moment], fitted.reader.usual_f0), trials.population[moment]),
        neuron=vectors.of_neurons(np.arange(neurons)),
        stimulus=np.stack(asked),
        row_neuron=np.tile(np.arange(neurons), len(specs)),
        row_stimulus=np.repeat(np.arange(len(specs)), neurons),
    )
