"""A small bundle with random weights, so that the service is tested without training.

``python tests/tiny_bundle.py DIR`` writes one.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quantformer.bundle import Bundle, Vectors, write_bundle
from quantformer.config import POPULATION_LEVELS, PRESETS, TUNING_QUANTITIES, ModelConfig
from quantformer.manifest import (
    Calibration,
    Form,
    FormName,
    Interval,
    Label,
    LeadSkill,
    Manifest,
    Parity,
    SkillLost,
    StimulusSpec,
)
from quantformer.signal import SignalRecipe
from quantformer.vocabulary import NOTHING, ONGOING, StimulusRecipe

if TYPE_CHECKING:
    from quantformer.forecaster import Forecaster

NEURONS = tuple(f"n{i:03d}" for i in range(12))
GRATING = "drifting_gratings"
TINY = ModelConfig(d=16, layers=1, heads=2, codes=8, dropout=0.0)


def random_forecaster(config: ModelConfig, *, seed: int) -> Forecaster:
    """The network of such a bundle."""
    import torch

    from quantformer.autoencoder import Autoencoder
    from quantformer.forecaster import Forecaster

    torch.manual_seed(seed)
    teacher = Autoencoder(config).eval().freeze()
    forecaster = Forecaster(config, teacher=teacher, signal_scale=0.2).eval()
    forecaster.weigh((0.6, 0.2, 0.1))
    return forecaster


@cache
def random_graph(config: ModelConfig, *, seed: int) -> tuple[Forecaster, bytes]:
    """That network, and its graph: an export takes ten seconds, and many tests write a bundle of their own."""
    from quantformer_training.export import export_graph

    forecaster = random_forecaster(config, seed=seed)
    return forecaster, export_graph(forecaster)


def write_tiny_bundle(
    path: Path,
    *,
    neuron_ids: tuple[str, ...] = NEURONS,
    seed: int = 0,
    config: ModelConfig = TINY,
    forms: tuple[FormName, ...] = (),
) -> Bundle:
    """Write a bundle for these neurons and eight gratings (ids ``dir=000`` ... ``dir=315``), with these forms: the loss of
    skill in its manifest is made up.
    """
    from quantformer_training.export import check_parity, example_inputs
    from quantformer_training.float16 import float16_graph
    from quantformer_training.int8 import int8_graph

    forecaster, graph = random_graph(config, seed=seed)
    parity = check_parity(forecaster, graph, example_inputs(config))
    rng = np.random.default_rng(seed)
    recipe = StimulusRecipe.covering([GRATING, ONGOING + GRATING, NOTHING], ["direction_deg"])
    stimuli = {
        f"dir={angle:03d}": StimulusSpec(category=GRATING, features={"direction_deg": float(angle)}, id_row=row)
        for row, angle in enumerate(range(0, 360, 45))
    }
    stimuli[NOTHING] = StimulusSpec(category=NOTHING, features={})
    n, d = len(neuron_ids), config.d
    vectors = Vectors(
        neuron=rng.normal(0, 0.5, (n, 2, d)).astype(np.float32),
        unknown=rng.normal(0, 0.5, (2, d)).astype(np.float32),
        stimulus_weight=rng.normal(0, 0.3, (recipe.width, 2, d)).astype(np.float32),
        stimulus_id=rng.normal(0, 0.3, (8, 2, d)).astype(np.float32),
        tuning=rng.normal(0, 0.1, (n, TUNING_QUANTITIES, recipe.tuning_width + 8)).astype(np.float32),
        population_tuning=rng.normal(0, 0.1, (TUNING_QUANTITIES, recipe.tuning_width + 8)).astype(np.float32),
        f0_minimum=np.full(n, 1.0),
        usual_f0=np.linspace(80.0, 200.0, n),
        noise=np.full(n, 5.0),
        usual_activity=rng.normal(0, 0.2, n),
        loading=rng.normal(0, 0.5 / np.sqrt(n), (n, POPULATION_LEVELS)),
        f0_range=np.tile([50.0, 2000.0], (n, 1)),
        noise_range=np.tile([0.0, 1.0], (n, 1)),
    )
    asked = [example_inputs(config, neurons=8, rows=64, features=recipe.tuning_width + 8, seed=i) for i in range(4)]
    made: dict[FormName, bytes] = {}
    if "int8" in forms:
        made["int8"] = int8_graph(graph, d=config.d, calibration=asked)
    if "float16" in forms:
        made["float16"] = float16_graph(forecaster)
    lost = SkillLost(float32=0.5, lost=0.0001, at_most=0.0002)
    form = Form(
        log_loss=lost,
        mse=lost,
        agreement=Parity(rows=256, logit=0.1, response=0.1, spread=0.1, provider="CPUExecutionProvider"),
    )
    manifest = Manifest(
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        software="test",
        preset=next((name for name, one in PRESETS.items() if one == config), "tiny"),
        precision="float32",
        d=d,
        codes=config.codes,
        codebook_sha256=forecaster.teacher.codebook.digest(),
        signal_scale=0.2,
        tuning_strengths=(10.0, 10.0),
        signal=SignalRecipe(),
        label=Label(definition="signed", threshold=0.1, frames={GRATING: 60}),
        phases=["onset", "between"],
        longest_lead=10,
        neuron_ids=neuron_ids,
        stimulus_recipe=recipe,
        stimuli=stimuli,
        calibration=Calibration(temperature=1.0, bias=0.0),
        interval=Interval(level=0.8, floor=0.02, low=[-1.3] * 64, high=[1.3] * 64),
        thresholds={"default": 0.5},
        skill_by_lead=[LeadSkill(lead=0, log_loss=0.69, auroc_within_neuron=0.5, mse=1.0)],
        metrics={},
        parity=parity,
        provenance={"data": "random weights"},
        forms=dict.fromkeys(made, form),
    )
    return write_bundle(path, manifest=manifest, vectors=vectors, graph=graph, forms=made)


if __name__ == "__main__":
    print(write_tiny_bundle(Path(sys.argv[1])).hash)
