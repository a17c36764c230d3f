"""The numbers of `quantformer inspect`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from quantformer.recording import Provenance, Recording, StimulusTable
from quantformer_training.summary import summarise


def recording(**changes: Any) -> Recording:
    traces = np.ones((150, 3), np.float32) * np.array([100, 200, 400], np.float32)
    fields: dict[str, Any] = {
        "fluorescence": traces,
        "timestamps_s": np.arange(150) / 30,
        "neuron_ids": ("a", "b", "c"),
        "stimuli": StimulusTable.build(
            onset_s=[1.0, 2.0, 3.0, 4.0],
            duration_s=[0.25, 0.25, 0.5, 10.0],
            category=["static_gratings"] * 3 + ["spontaneous"],
            stimulus_id=["s/0", "s/blank", "s/0", "spontaneous"],
            features={"orientation_deg": [0, np.nan, 0, np.nan], "blank": [0, 1, 0, np.nan]},
            sub_session=[0, 0, 1, -1],
        ),
        "provenance": Provenance(origin="simulated", source="test", facts={"seed": "1"}),
    }
    return Recording(**(fields | changes))


def test_counts_and_durations() -> None:
    found = summarise(recording())
    assert (found.frames, found.neurons, found.not_finite, found.used) == (150, 3, 0, "frame for frame")
    assert found.rate_hz == pytest.approx(30)
    assert found.shortest_interval_ms == pytest.approx(1000 / 30)
    spontaneous, gratings = found.stimuli
    assert spontaneous.category == "spontaneous"
    assert spontaneous.sub_sessions == ()
    assert spontaneous.features == ()
    assert (gratings.presentations, gratings.ids, gratings.blanks) == (3, 2, 1)
    assert gratings.sub_sessions == (2, 1)
    assert gratings.features == ("orientation_deg", "blank")
    assert (gratings.shortest_duration_s, gratings.median_duration_s, gratings.longest_duration_s) == (0.25, 0.25, 0.5)


def test_f0_is_of_the_corrected_signal() -> None:
    found = summarise(recording(neuropil=np.full((150, 3), 100, np.float32), neuropil_factor=np.ones(3, np.float32)))
    assert found.neuropil_factor == (1.0, 1.0)
    assert found.f0 is not None
    assert found.f0.median == 100
    assert found.f0.percentile_5 == pytest.approx(10)
    assert found.f0.not_positive == pytest.approx(1 / 3)


def test_what_is_not_a_number_is_counted_and_never_warned_about() -> None:
    traces = recording().fluorescence.copy()
    traces[70:75, 1] = np.nan
    traces[:, 2] = np.nan
    found = summarise(recording(fluorescence=traces))
    assert (found.not_finite, found.neurons_not_finite) == (155, 2)
    assert found.f0 is not None
    assert found.f0.not_positive == pytest.approx(3 / 6)
    assert found.f0.percentile_95 == pytest.approx(195)
    assert summarise(recording(fluorescence=np.full((150, 3), np.nan, np.float32))).f0 is None


@pytest.mark.parametrize(
    ("rate", "used"), [(20.0, "interpolated to 30 Hz"), (10.0, "not used: 10.00 Hz is below 15.0 Hz")]
)
def test_how_the_rate_is_used(rate: float, used: str) -> None:
    assert summarise(recording(timestamps_s=np.arange(150) / rate)).used.startswith(used)


def test_a_single_frame_is_valid_json() -> None:
    one = recording(fluorescence=np.ones((1, 3), np.float32), timestamps_s=np.zeros(1))
    found = json.loads(json.dumps(summarise(one).as_dict(), allow_nan=False))
    assert found["rate_hz"] is None
    assert found["f0"] is None
    assert found["stimuli"][1]["sub_sessions"] == [2, 1]
    assert found["facts"] == {"seed": "1"}
