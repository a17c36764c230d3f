"""docs/recordings.md: its example runs, and it names what the code knows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from quantformer_training import image_features
from quantformer_training.allen_stimuli import CATEGORIES, GRATING_COLUMNS
from quantformer_training.readers import open_recording
from quantformer_training.sub_sessions import LONGEST_GAP_FRAMES

DOCUMENT = (Path(__file__).resolve().parents[1] / "docs" / "recordings.md").read_text(encoding="utf-8")


def test_the_example_writes_a_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = re.search(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    assert found is not None
    monkeypatch.chdir(tmp_path)
    exec(compile(found[1], "docs/recordings.md", "exec"), {})
    recording = open_recording(tmp_path / "session.npz")
    assert (recording.frames, recording.neurons, len(recording.stimuli)) == (9000, 20, 2)
    assert recording.stimuli.features_of(1) == {"direction_deg": 90.0}


def test_the_csv_example_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test_the_example_writes_a_recording(tmp_path, monkeypatch)
    found = re.search(r"```\n(onset_frame,.*?)```", DOCUMENT, re.DOTALL)
    assert found is not None
    (tmp_path / "stimuli.csv").write_text(found[1])
    import numpy as np

    np.save(tmp_path / "traces.npy", np.ones((400, 2)))
    recording = open_recording(tmp_path / "traces.npy", stimuli=tmp_path / "stimuli.csv", rate_hz=30.0)
    assert recording.stimuli.features_of(0) == {"direction_deg": 45.0}


@pytest.mark.parametrize(
    "name",
    [
        *CATEGORIES.values(),
        *(feature for feature, _ in GRATING_COLUMNS.values()),
        image_features.NAMES[-1],
        "direction_deg",
    ],
)
def test_every_category_and_feature_is_named(name: str) -> None:
    assert f"`{name}`" in DOCUMENT


def test_the_pauses_are_those_of_the_code() -> None:
    text = " ".join(DOCUMENT.split())
    assert (
        f"{LONGEST_GAP_FRAMES['drifting_gratings']} frames (drifting gratings), "
        f"{LONGEST_GAP_FRAMES['static_gratings']} (static gratings, scenes) or "
        f"{LONGEST_GAP_FRAMES['locally_sparse_noise']} (sparse noise, spontaneous)" in text
    )
