"""What an improvement is worth: every thing taken away is gone from what networks see, and differences are paired."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from small_recording import GRATING
from tiny_study import TINY, tiny_cohort

from quantformer.config import LEVEL_QUANTITIES
from quantformer.forecaster import Shortcut
from quantformer.signal import SignalRecipe
from quantformer.tokens import UNKNOWN
from quantformer_training.arrays import save_recording
from quantformer_training.examples import Examples, random_missing
from quantformer_training.pretrain import load_pretrained
from quantformer_training.pretrain_cohort import pretrain_cohort
from quantformer_training.run_data import RunData
from quantformer_training.store import open_session
from quantformer_training.threads import one_thread

ROOT = Path(__file__).resolve().parents[1]
TRIAL = np.repeat(np.arange(30), 4)
TRAINED = (
    "level of F0", "level of the population", "tuning", "stimulus features", "stimulus ids", "warm start", "pseudo-onsets",
    "rows without lead", "moments", "boosted trees", "mean of the weights", "shape loss",
)  # fmt: skip


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "deploy")  # its parts import each other as a script's do; so do its processes
        yield importlib.import_module("measure_improvements")


@pytest.fixture(scope="module")
def taken_away(script: ModuleType) -> ModuleType:
    return importlib.import_module("taken_away")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one session in it."""
    folder = tmp_path_factory.mktemp("store")
    tiny_cohort(folder, mice=1)
    return folder / "session-0"


@pytest.fixture(scope="module")
def data(place: Path) -> RunData:
    return RunData.read(open_session(place), category=GRATING, most=TINY.most)


def measured(script: ModuleType, *, seed: int, gain: float) -> Any:
    """A mouse of which one thing taken away adds ``gain`` to every score, and another nothing but noise."""
    rng = np.random.default_rng(seed)
    whole = {name: rng.normal(1.0, 0.2, 30)[TRIAL] + rng.normal(0.0, 0.2, len(TRIAL)) for name in script.SCORES}
    scores = {
        script.WHOLE: whole,
        "gain": {name: score + gain for name, score in whole.items()},
        "noise": {name: score + rng.normal(0.0, 0.2, len(TRIAL)) for name, score in whole.items()},
        "r alone": {**whole, "r": np.where(TRIAL % 2, whole["r"], np.nan)},
    }
    return script.Measured(scores=scores, trial=TRIAL, cpu_s=1.0)


def test_differences_are_paired_and_of_each_mouse_by_itself(script: ModuleType) -> None:
    found = [measured(script, seed=number, gain=gain) for number, gain in enumerate((0.1, 0.3))]
    made = script.effects(found, seed=0)
    for name in script.SCORES:
        gain, noise = made["gain"][name], made["noise"][name]
        assert gain.by_mouse == pytest.approx((0.1, 0.3))
        # The same trials for both, and every mouse in every resample: what differs between mice does not widen it.
        assert (gain.difference, gain.low, gain.high) == pytest.approx((0.2, 0.2, 0.2))
        assert gain.value == pytest.approx(made[script.WHOLE][name].value + 0.2)
        assert noise.low < noise.difference < noise.high
        assert noise.high - noise.low < 0.2
        assert made[script.WHOLE][name].unchanged
        assert not gain.unchanged
    assert [made["r alone"][name].unchanged for name in script.SCORES] == [True, True, True, False]
    left = [one.scores[script.WHOLE]["r"][TRIAL % 2 == 1].mean() for one in found]
    assert made["r alone"]["r"].value == pytest.approx(np.mean(left)), "rows without a score are left out"


def test_the_table_has_a_row_for_each_and_two_columns_for_each_score(script: ModuleType) -> None:
    made = script.effects([measured(script, seed=0, gain=0.1)], seed=0)
    head, rule, *rows = script.table(made).splitlines()
    assert [head.count("|"), rule.count("|")] == [10, 10]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[0] for row in cells] == [script.WHOLE, "gain", "noise", "r alone"]
    assert cells[0][2::2] == [""] * 4
    assert cells[1][2::2] == ["+0.1000 (+0.1000 to +0.1000)"] * 4
    assert cells[3][2:8:2] == ["unchanged"] * 3


def test_a_score_is_the_mean_over_the_models_that_have_one(script: ModuleType) -> None:
    one, other = ({name: np.array(values) for name in script.SCORES} for values in ([1.0, np.nan, np.nan], [3.0, 5.0, np.nan]))
    for found in script.averaged([one, other]).values():
        np.testing.assert_array_equal(found, [2.0, 5.0, np.nan])


def test_the_first_presentations_of_a_file_are_looked_at_and_nothing_after_them(
    script: ModuleType, tmp_path: Path
) -> None:
    session = script.Simulated(seed=0, neurons=3, presentations=12).recording()
    path = tmp_path / "session.npz"
    save_recording(session, path)
    whole, part = (script.Recorded(path=path, first=first).recording() for first in (None, 5))
    assert len(whole.stimuli) == len(session.stimuli)
    assert part.stimuli.onset_s.tolist() == session.stimuli.onset_s[:5].tolist()
    assert part.timestamps_s[-1] < session.stimuli.onset_s[5]
    assert part.frames == np.sum(session.timestamps_s < session.stimuli.onset_s[5])
    np.testing.assert_array_equal(part.fluorescence, session.fluorescence[: part.frames])
    with pytest.raises(SystemExit, match=f"has {len(session.stimuli)} presentations, --first asks for 900"):
        script.Recorded(path=path, first=900).recording()


def rows_of(source: Any) -> tuple[Examples, Examples]:
    return source.draw(40, np.random.default_rng(3)), source.at_lead(5)


def test_blanked_rows_are_the_rows_but_for_what_is_named(taken_away: ModuleType, data: RunData) -> None:
    source = data.sources(1.0).train
    blanked = taken_away.Blanked(source=source, fields=("level", "tuning"))
    assert len(blanked) == len(source) > 0
    for given, seen in zip(rows_of(source), rows_of(blanked), strict=True):
        for name, tensor in vars(given).items():
            if name in ("level", "tuning"):
                assert tensor.any()
                assert not getattr(seen, name).any()
            else:
                assert torch.equal(getattr(seen, name), tensor), name


def test_what_is_taken_from_the_data_is_gone_and_the_test_rows_stay(taken_away: ModuleType, data: RunData) -> None:
    away, whole = taken_away.TAKEN_AWAY, data.sources(1.0)
    kept = whole.test.at_lead(0)
    assert len(whole.pseudo) > 0
    assert (kept.stimulus != UNKNOWN).all()
    made = {title: away[title].data(data) for title in ("stimulus features", "stimulus ids", "pseudo-onsets")}
    for title, without in made.items():
        seen = without.sources(1.0)
        rows = seen.test.at_lead(0)
        for name in ("baseline", "response", "active", "neuron", "level", "moment"):
            assert torch.equal(getattr(rows, name), getattr(kept, name)), (title, name)
        if title != "pseudo-onsets":
            assert not torch.equal(rows.tuning, kept.tuning), f"tuning is regressed without {title} too"
        assert len(seen.train) == len(whole.train)
        assert len(seen.pseudo) == (0 if title == "pseudo-onsets" else len(whole.pseudo))
        shown = {tuple(features.tolist()) for features in rows.features}
        assert (len(shown) == 1) == (title == "stimulus features")
        assert (rows.stimulus == UNKNOWN).all() == (title == "stimulus ids")


@pytest.mark.parametrize(("title", "gone"), [("level of F0", slice(0, 2)), ("level of the population", slice(2, 4))])
def test_one_level_is_taken_away_and_the_other_stays(
    taken_away: ModuleType, data: RunData, title: str, gone: slice
) -> None:
    sources = vars(taken_away.TAKEN_AWAY[title].data(data).sources(1.0))
    for name, whole in vars(data.sources(1.0)).items():
        kept, seen = whole.at_lead(5), sources[name].at_lead(5)
        assert kept.level[:, gone].any(0).all()
        assert not seen.level[:, gone].any(), name
        expected = kept.level.clone()
        expected[:, gone] = 0.0
        assert torch.equal(seen.level, expected)
        assert torch.equal(seen.tuning, kept.tuning)


def test_a_name_stands_for_something_else_only_inside(taken_away: ModuleType) -> None:
    def without_lead() -> float:
        rng = np.random.default_rng(0)
        return float(np.mean([not random_missing(SignalRecipe(), rng)[-1] for _ in range(2000)]))

    (replacement,) = taken_away.TAKEN_AWAY["rows without lead"].replaced
    before = without_lead()
    with taken_away.replaced(*replacement):
        assert without_lead() < 0.15 < 0.35 < before
    assert without_lead() == before


def heard_of_level(shortcut: Shortcut) -> bool:
    """Whether the map has a weight on any of its inputs that the level moves."""
    baseline, tuning = torch.zeros(1, 96), torch.zeros(1, 10)
    low, high = (shortcut.inputs(baseline, tuning, torch.full((1, LEVEL_QUANTITIES), level)) for level in (0.0, 1.0))
    moved = (low != high)[0]
    assert moved.any()
    return bool(shortcut.linear.weight[:, moved].any())


@pytest.mark.slow
def test_a_network_without_level_has_learned_nothing_of_it(
    taken_away: ModuleType, data: RunData, place: Path, tmp_path: Path
) -> None:
    pretrain_cohort(sessions=(str(place),), effort=TINY, out=str(tmp_path), seed=0)
    teacher = load_pretrained(tmp_path)
    with one_thread():
        whole, without = (
            taken_away.answered(data, teacher, config=TINY.finetuning, without=one)
            for one in (taken_away.Without(), taken_away.Without(blank=("level",)))
        )
    for network in ("activation", "response"):
        assert heard_of_level(getattr(whole.model.forecaster, network).shortcut), network
        # Begun at a regression that saw zeros, and never moved from there: neither start nor training was told the level.
        assert not heard_of_level(getattr(without.model.forecaster, network).shortcut), network
    assert whole.rows.level.any()
    assert not without.rows.level.any()
    assert torch.equal(whole.rows.baseline, without.rows.baseline)
    assert not np.array_equal(whole.chance, without.chance)
    assert not np.array_equal(whole.response, without.response)


@pytest.mark.slow
def test_a_tiny_run_tells_of_every_improvement(script: ModuleType) -> None:
    mice = {f"mouse {i}": script.Simulated(seed=i, neurons=8, presentations=40) for i in range(2)}
    effort = replace(TINY, finetuning=replace(TINY.finetuning, moment_epochs=1, moment_rows=100))
    found = script.measure(mice, seed=0, seeds=2, effort=effort)
    made = script.effects(found, seed=0)
    assert len(script.table(made).splitlines()) == 2 + len(made)
    post_hoc, seeds = list(made)[1:3], list(made)[-2:]
    assert tuple(made) == (script.WHOLE, *post_hoc, *TRAINED, *seeds)
    unchanged = {title: [one.unchanged for one in by.values()] for title, by in made.items()}
    assert unchanged.pop(script.WHOLE) == [True] * 4
    # Decoding and the shape of a trace are the forecast's alone, calibration and trees the activation's: of the same networks.
    assert unchanged.pop(post_hoc[0]) == unchanged.pop("shape loss") == [True, True, False, False]
    assert unchanged.pop(post_hoc[1]) == unchanged.pop("boosted trees") == [False, False, True, True]
    assert all(by == [False] * 4 for by in unchanged.values()), unchanged
    told = json.loads(json.dumps(script.document(found, made=made, preset="tiny", seed=0, seeds=2)))
    assert told["test_trials"] == [10, 10]
    assert len(told["taken_away"]["level of F0"]["mse"]["by_mouse"]) == 2


@pytest.mark.slow
def test_sizes_are_compared_with_the_first_one_named(script: ModuleType) -> None:
    mice = {"mouse": script.Simulated(seed=0, neurons=8, presentations=40)}
    made = script.effects(script.measure(mice, seed=0, seeds=1, effort=TINY, sizes=("live", "small")), seed=0)
    assert list(made) == ["size live, float32", "size small, float32"]
    assert [one.unchanged for one in made["size live, float32"].values()] == [True] * 4
    assert [one.unchanged for one in made["size small, float32"].values()] == [False] * 4
    first = script.table(made).splitlines()[2].split("|")
    assert [cell.strip() for cell in first[3:-1:2]] == [""] * 4


@pytest.mark.slow
def test_precisions_of_a_size_are_compared_from_the_same_auto_encoder(script: ModuleType) -> None:
    mice = {"mouse": script.Simulated(seed=0, neurons=8, presentations=40)}
    asked = {"seed": 0, "seeds": 1, "effort": TINY, "sizes": ("small",), "precisions": ("float32", "bf16")}
    made = script.effects(script.measure(mice, **asked), seed=0)
    assert list(made) == ["size small, float32", "size small, bf16"]
    for one in made["size small, bf16"].values():
        # Other rounding, the same rows, order and start: no more than that moves.
        assert not one.unchanged
        assert abs(one.difference) < 0.02 * max(abs(one.value), 0.1)
