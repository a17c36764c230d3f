"""What is known to go wrong with this kind of model and this kind of data, where no module's own test holds it.

``docs/metrics.md`` lists every pitfall with its test; the first test here holds that list to the tests that exist.
"""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from report_rows import oracle, simulated_rows
from small_model import CONFIG, sources_of, tiny_model
from torch import Tensor

from quantformer.labels import LabelRule, score
from quantformer.metrics import absolute_r_chance, auroc, auroc_within, pearson_rows, score_activation
from quantformer.quantizer import Quantizer
from quantformer.signal import SignalRecipe, hold_missing, read_baseline
from quantformer_training.baselines import BaseRate
from quantformer_training.comparison import Baselines, compare_with_baselines
from quantformer_training.comparison_tables import activation_table, title_of
from quantformer_training.finetune import ask_activation, ask_response
from quantformer_training.readers import open_recording
from quantformer_training.rows import Rows
from quantformer_training.splits import split_by_time
from quantformer_training.study import control_moments
from quantformer_training.trials import TrialReader, real_moments

ROOT = Path(__file__).resolve().parents[1]
RECIPE = SignalRecipe()


def test_every_pitfall_names_tests_that_exist() -> None:
    # Fails where a test is renamed, or a row of the table has none.
    page = (ROOT / "docs" / "metrics.md").read_text()
    table = page[page.index("## Pitfalls") :]
    rows = [line for line in table.splitlines() if re.match(r"\| (?!what goes wrong|choice)\S", line)]
    assert [row.split("|")[1].strip().split(" ")[0] for row in rows[:11]] == [str(n) for n in range(1, 12)]
    known: set[tuple[str, str]] = set()
    for module in set(re.findall(r"`(test_\w+)::", table)):
        tree = ast.parse((ROOT / "tests" / f"{module}.py").read_text())
        known |= {(module, node.name) for node in tree.body if isinstance(node, ast.FunctionDef)}
    for row in rows:
        named = set(re.findall(r"`(test_\w+)::(test_\w+)`", row))
        assert named, f"no test in the row {row!r}"
        assert named <= known, f"no such test: {sorted(named - known)}"


def test_unrelated_smooth_traces_correlate_as_much_as_the_notes_say() -> None:
    """Pitfall 5: abs(r) of 0.22 to 0.35 over 64 frames, 0.35 to 0.42 over 15, from calcium that has nothing in common.

    Fails where chance pairs a row with itself (1.0), or takes the absolute value after the mean (0.0).
    """
    rng = np.random.default_rng(0)
    for decay in (8.0, 15.0):
        traces = np.zeros((400, 300))
        for frame in range(1, traces.shape[1]):
            traces[:, frame] = traces[:, frame - 1] * np.exp(-1 / decay) + rng.normal(size=400)
        smooth = np.stack([np.convolve(trace, np.ones(5) / 5, mode="valid") for trace in traces])
        long, short = smooth[:, 100:164], smooth[:, 200:215]
        assert 0.22 <= absolute_r_chance(long, long) <= 0.37
        assert 0.35 <= absolute_r_chance(short, short) <= 0.60
        signed = np.nanmean(pearson_rows(long, np.roll(long, 7, axis=0)))
        assert abs(signed) < 0.05


def noise_rows(sd: NDArray[np.float64], *, trials: int, rule: LabelRule, seed: int) -> Rows:
    """Trials of neurons that are pure noise of different sizes, and nothing else."""
    rng = np.random.default_rng(seed)
    neuron = np.tile(np.arange(len(sd)), trials)
    baseline, response = (rng.normal(0, sd[neuron, None], (len(neuron), n)).astype(np.float32) for n in (96, 64))
    return Rows(
        baseline=baseline, f0=np.full(len(neuron), 100.0), neuron=neuron, stimulus=np.zeros(len(neuron), int),
        trial=np.repeat(np.arange(trials), len(sd)),
        active=score(rule, baseline=baseline, response=response, frames=60) >= rule.bar, response=response,
    )  # fmt: skip


def test_the_absolute_label_is_predicted_by_who_the_neuron_is() -> None:
    """Pitfall 6: on noise a table of rates looks like a good classifier, and only the score within neurons tells.

    Fails where the label is signed (few noise trials are active), or the pooled score is taken for the one within.
    """
    sd = np.linspace(0.05, 0.20, 12)
    train, test = (noise_rows(sd, trials=60, rule=LabelRule(definition="absolute"), seed=s) for s in (0, 1))
    probability = BaseRate().fit(train).predict(test)
    assert 0.2 < test.active.mean() < 0.8
    assert auroc(probability, test.active) > 0.95
    assert auroc_within(probability, test.active, groups=test.neuron).mean == 0.5
    signed = noise_rows(sd, trials=60, rule=LabelRule(), seed=1)
    assert signed.active.mean() < 0.01


def test_no_comparison_is_shown_without_the_neurons_base_rate() -> None:
    # Pitfall 6. Fails where the base rate is left out of the fitted baselines or of the table.
    train, test = (simulated_rows(trials=40, neurons=4, seed=seed) for seed in (0, 1))
    found = compare_with_baselines(
        oracle(test), rows=test, baselines=Baselines.fit(train), minutes=5.0, resamples=20
    )
    assert {"base_rate", "neuron_stimulus_rate"} <= set(found.activation)
    assert title_of("base_rate") in {row[0] for row in activation_table(found, caption="").rows}


def test_pseudo_onsets_in_a_grating_are_active_about_as_often_as_onsets(shared_data: Path) -> None:
    """NOTES, "pseudo-onset control", on the training part: active alone does not mean responded.

    Fails where the control's moments fall on onsets, or the label reads another window for them.
    """
    recording = open_recording(shared_data / "v1_gratings_24rois.npz")
    split = split_by_time(recording, recipe=RECIPE, train_trials=53)
    reader = TrialReader(recording, split=split.merged(), recipe=RECIPE, rule=LabelRule())
    control = control_moments(recording)
    fractions = []
    for moments in (real_moments(recording), control):
        trials = reader.read(moments, part="train")
        fractions.append(trials.active[trials.valid].mean())
    assert fractions[0] == pytest.approx(0.131, abs=0.01)
    assert abs(fractions[1] - fractions[0]) < 0.03
    onset = real_moments(recording).frame
    # Five seconds into the grating that is still shown, far from any onset.
    distance = control.frame[:, None] - onset
    assert np.where(distance < 0, 10**6, distance).min(axis=1) == pytest.approx(150, abs=1)


def test_what_predicts_active_is_a_transient_already_under_way(shared_data: Path) -> None:
    """Pitfall 8: on the Allen cell the last frames over F0 alone give AUROC 0.91; with 3 frames withheld 0.80, with 10 0.69.

    Fails where the end is taken from the withheld frames: the fall goes. That they reach nothing else is held, bit for bit, by
    `test_trials` and `test_examples`.
    """
    with np.load(shared_data / "allen_511510667_session_a.npz") as file:
        trace, onset = file["corrected_fluorescence_cell0"].astype(np.float32)[:, None], file["onset_frame"]
    onset = onset[(onset >= 96) & (onset + 64 <= len(trace))]
    found = {}
    for lead in (0, 3, 10):
        observed = np.arange(96) < 96 - lead
        ends, marked = [], []
        for frame in onset:
            window = trace[frame - 96 : frame]
            made = read_baseline(hold_missing(window, observed), recipe=RECIPE, observed=observed)
            ends.append(float(made.dff[0, 91 - lead : 96 - lead].mean()))
            f0 = window[-60:].mean()
            marked.append(bool(trace[frame : frame + 60].mean() / f0 - 1.0 >= 0.10))
        found[lead] = auroc(ends, marked)
    assert found[0] == pytest.approx(0.913, abs=0.005)
    assert found[3] == pytest.approx(0.80, abs=0.01)
    assert found[10] == pytest.approx(0.69, abs=0.01)


def test_the_affine_map_is_learned_and_follows_no_running_average() -> None:
    """Pitfall 11, where a published quantiser differs from its paper: its map is running statistics, ours a parameter.

    Fails where the forward pass adds an average of the encoder's outputs to the map.
    """
    torch.manual_seed(0)
    quantizer = Quantizer(codes=8, d=4).train()
    quantizer(torch.randn(16, 10, 4))
    before = [p.detach().clone() for p in (quantizer.affine_scale, quantizer.affine_bias)]
    for _ in range(60):
        quantizer(50.0 + 3.0 * torch.randn(16, 10, 4))
    for parameter, old in zip((quantizer.affine_scale, quantizer.affine_bias), before, strict=True):
        assert torch.equal(parameter, old)
    assert {name for name, _ in quantizer.named_parameters()} == {"raw", "affine_scale", "affine_bias"}
    assert {name for name, _ in quantizer.named_buffers()} == {"usage", "steps"}
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=1e-3)
    quantizer(50.0 + torch.randn(16, 10, 4)).loss.backward()
    optimizer.step()
    for parameter, old in zip((quantizer.affine_scale, quantizer.affine_bias), before, strict=True):
        assert not torch.equal(parameter, old)


def test_the_quantiser_is_our_own() -> None:
    # Pitfall 11. Fails where either library becomes a dependency or is imported.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(name for extra in project["optional-dependencies"].values() for name in extra)]
    foreign = re.compile(r"vector[-_]quantize|vqtorch")
    assert not [name for name in wanted if foreign.search(name)]
    for room in ("model", "training"):
        for path in (ROOT / room).rglob("*.py"):
            imports = [line for line in path.read_text().splitlines() if re.match(r"\s*(from|import) ", line)]
            assert not [line for line in imports if foreign.search(line)], path.name


def test_tokens_come_in_the_papers_order() -> None:
    """NOTES, "token order": [CLS][NEURON][STIM] and 6 patches; [NEURON][STIM], 6 patches and 4 masks.

    Fails where neuron and stimulus change places, the class token moves, or a baseline patch is put among the masks.
    """
    sources = sources_of()
    model = tiny_model(sources.vocabulary)
    rows = sources.validation.at_lead(0).select(torch.arange(2))
    seen: list[Tensor] = []
    networks = model.forecaster.activation, model.forecaster.response
    for network in networks:
        network.encoder.transformer.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    ask_activation(model.forecaster, model.tokens[0], rows)
    ask_response(model.forecaster, model.tokens[1], rows)
    classified, forecast = seen
    patches, masks = CONFIG.baseline_patches, CONFIG.response_patches
    assert (patches, masks) == (6, 4)
    assert classified.shape[1] == 3 + patches
    assert forecast.shape[1] == 2 + patches + masks
    torch.testing.assert_close(classified[:, 0], networks[0].cls_token.expand(2, -1))
    torch.testing.assert_close(classified[:, 1], model.tokens[0].neuron(rows.neuron))
    torch.testing.assert_close(forecast[:, 0], model.tokens[1].neuron(rows.neuron))
    for given, where, network in ((classified, 3, networks[0]), (forecast, 2, networks[1])):
        embedded = network.encoder.embedding(rows.baseline.reshape(2, patches, -1))
        torch.testing.assert_close(given[:, where : where + patches], embedded)
    # The masks are what is left of a patch that is not read: no value of the baseline reaches them.
    other = rows.select(torch.arange(2))
    other.baseline.add_(1.0)
    ask_response(model.forecaster, model.tokens[1], other)
    torch.testing.assert_close(seen[2][:, 2 + patches :], forecast[:, 2 + patches :])
    assert not torch.allclose(seen[2][:, 2 : 2 + patches], forecast[:, 2 : 2 + patches])


def test_triggers_are_scored_at_one_two_and_five_false_a_minute() -> None:
    # NOTES, "headline figures". Fails where a budget is dropped.
    rng = np.random.default_rng(0)
    found = score_activation(rng.random(200), rng.random(200) < 0.3, neuron=np.zeros(200, int), minutes=20.0)
    assert [trigger.false_per_minute for trigger in found.triggers] == [1.0, 2.0, 5.0]
    assert [trigger.triggers for trigger in found.triggers] == sorted(trigger.triggers for trigger in found.triggers)
