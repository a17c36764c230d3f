"""The project's own recording file: what goes in comes out, and what is not such a file is refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantformer.errors import RecordingError
from quantformer.recording import Provenance, Recording, Signal, StimulusTable
from quantformer_training.arrays import load_recording, save_recording

# numpy's text arrays drop trailing zero characters, and no stimulus or neuron is named with one.
NAME = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12)


@st.composite
def recordings(draw: st.DrawFn) -> Recording:
    frames, neurons, rows = draw(st.integers(1, 12)), draw(st.integers(1, 4)), draw(st.integers(0, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    traces = rng.normal(300, 50, (2, frames, neurons)).astype(np.float32)
    traces[0, rng.random((frames, neurons)) < 0.1] = np.nan
    with_neuropil = draw(st.booleans())
    alone: tuple[Signal, ...] = ("corrected", "dff_plus_one")
    either: tuple[Signal, ...] = ("raw", "demixed")
    signal = draw(st.sampled_from(either if with_neuropil else either + alone))
    features = draw(st.lists(st.sampled_from(["direction_deg", "blank", "image_0", "größe"]), unique=True, max_size=3))
    return Recording(
        fluorescence=traces[0],
        neuropil=traces[1] if with_neuropil else None,
        neuropil_factor=rng.random(neurons).astype(np.float32) if with_neuropil else None,
        running_speed_cm_s=rng.random(frames).astype(np.float32) if draw(st.booleans()) else None,
        timestamps_s=np.cumsum(rng.uniform(0.01, 0.1, frames)),
        neuron_ids=tuple(draw(st.lists(NAME, min_size=neurons, max_size=neurons, unique=True))),
        stimuli=StimulusTable.build(
            onset_s=rng.random(rows),
            duration_s=rng.random(rows),
            category=draw(st.lists(NAME, min_size=rows, max_size=rows)),
            stimulus_id=draw(st.lists(NAME, min_size=rows, max_size=rows)),
            features={name: np.where(rng.random(rows) < 0.3, np.nan, rng.normal(size=rows)) for name in features},
            sub_session=rng.integers(-1, 4, rows),
        ),
        provenance=Provenance(
            origin=draw(st.sampled_from(["measured", "semi-synthetic", "simulated"])),
            source=draw(NAME),
            subject=draw(NAME),
            facts=draw(st.dictionaries(NAME, NAME, max_size=3)),
        ),
        signal=signal,
    )


def assert_same(found: Recording, expected: Recording) -> None:
    for name in ("fluorescence", "neuropil", "neuropil_factor", "running_speed_cm_s", "timestamps_s"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        if one is not None:
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
    assert found.neuron_ids == expected.neuron_ids
    assert found.signal == expected.signal
    assert dict(found.provenance.facts) == dict(expected.provenance.facts)
    for name in ("origin", "source", "subject"):
        assert getattr(found.provenance, name) == getattr(expected.provenance, name)
    for name in ("onset_s", "duration_s", "sub_session"):
        np.testing.assert_array_equal(getattr(found.stimuli, name), getattr(expected.stimuli, name))
    assert found.stimuli.category == expected.stimuli.category
    assert found.stimuli.stimulus_id == expected.stimuli.stimulus_id
    assert found.stimuli.features.keys() == expected.stimuli.features.keys()
    for name, column in expected.stimuli.features.items():
        np.testing.assert_array_equal(found.stimuli.features[name], column)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(recording=recordings())
def test_what_is_saved_is_loaded(tmp_path: Path, recording: Recording) -> None:
    path = tmp_path / "session.npz"
    save_recording(recording, path)
    assert_same(load_recording(path), recording)
    assert [entry.name for entry in tmp_path.iterdir()] == ["session.npz"]


def minimal(**changes: Any) -> dict[str, NDArray[Any]]:
    arrays = {
        "format": np.array("quantformer-recording"),
        "schema": np.array(1),
        "fluorescence": np.ones((6, 2)),
        "timestamps_s": np.arange(6) / 30,
        "neuron_ids": np.array(["a", "b"]),
    }
    return {name: np.asarray(array) for name, array in (arrays | changes).items() if array is not None}


STIMULI: dict[str, Any] = {
    "stimulus_onset_s": [0.1, 0.05],
    "stimulus_duration_s": [1.0, 2.0],
    "stimulus_category": ["g", "g"],
    "stimulus_id": ["g/1", "g/2"],
}


def load(path: Path, arrays: dict[str, NDArray[Any]]) -> Recording:
    np.savez(path / "r.npz", **arrays)  # type: ignore[arg-type]
    return load_recording(path / "r.npz")


def test_five_keys_are_enough(tmp_path: Path) -> None:
    found = load(tmp_path, minimal())
    assert (found.frames, found.neurons, found.signal, len(found.stimuli)) == (6, 2, "raw", 0)
    assert found.provenance.origin == "measured"
    assert found.provenance.source == "r.npz"


def test_stimuli_may_be_unsorted_and_without_sub_sessions(tmp_path: Path) -> None:
    found = load(tmp_path, minimal(**STIMULI, **{"stimulus_feature.blank": [1, 0]}))
    assert found.stimuli.stimulus_id == ("g/2", "g/1")
    assert found.stimuli.features["blank"].tolist() == [0, 1]
    assert found.stimuli.sub_session.tolist() == [-1, -1]


PROVENANCE = {"origin": "measured", "source": "x", "subject": "m", "facts": {}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": None}, "is not a recording of this project"),
        ({"format": "other"}, "is not a recording of this project"),
        ({"schema": 2}, "schema 2, this version reads 1 to 1; update"),
        ({"schema": 0}, "schema 0"),
        ({"schema": "one"}, "expected one finite number"),
        ({"schema": None}, "no key 'schema'; it has fluorescence"),
        ({"fluorescence": None}, "no key 'fluorescence'"),
        ({"fluorescence": np.ones(6)}, r"expected numbers \(frames, neurons\)"),
        ({"fluorescence": np.ones((0, 2))}, r"expected numbers \(frames, neurons\)"),
        ({"fluorescence": np.ones((6, 2), bool)}, r"expected numbers \(frames, neurons\)"),
        ({"timestamps_s": np.arange(5)}, r"expected numbers \(6,\)"),
        ({"timestamps_s": ["a"] * 6}, r"expected numbers \(6,\)"),
        ({"timestamps_s": np.full(6, np.nan)}, "strictly increasing"),
        ({"neuron_ids": [1, 2]}, "expected text"),
        ({"neuron_ids": ["a", "a"]}, "occurs twice"),
        ({"signal": "loud"}, "expected one of raw"),
        ({"neuropil": np.ones((6, 3))}, "neuropil has shape"),
        ({"neuropil_factor": [0.7, 0.7]}, "without neuropil"),
        ({"stimulus_onset_s": [0.1]}, "no key 'stimulus_duration_s'"),
        (
            STIMULI | {"stimulus_duration_s": [1.0]},
            r"stimulus_duration_s holds float64 \(1,\), expected numbers \(2,\)",
        ),
        (STIMULI | {"stimulus_category": ["g"]}, "category has 1 rows"),
        (STIMULI | {"stimulus_feature.blank": [np.inf, 0]}, "'blank' is infinite"),
        ({"provenance": "no json"}, "not the JSON object"),
        ({"provenance": "[" * 100_000}, "not the JSON object"),
        ({"provenance": "[1]"}, "not the JSON object"),
        ({"provenance": json.dumps(PROVENANCE | {"origin": "dreamt"})}, "origin as one of"),
        ({"provenance": json.dumps(PROVENANCE | {"facts": {"a": 1}})}, "as text"),
        ({"provenance": json.dumps(PROVENANCE | {"facts": [1]})}, "not the JSON object"),
        ({"provenance": json.dumps(PROVENANCE | {"source": 4})}, "as text"),
    ],
)
def test_a_file_that_is_not_one_is_refused_with_the_reason(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordingError, match=said):
        load(tmp_path, minimal(**changes))


def test_a_feature_needs_a_name_that_a_file_can_hold(tmp_path: Path) -> None:
    table = StimulusTable.build(
        onset_s=[0], duration_s=[1], category=["g"], stimulus_id=["g"], features={"../direction": [1.0]}
    )
    recording = Recording(
        fluorescence=np.ones((2, 1), np.float32),
        timestamps_s=np.arange(2.0),
        neuron_ids=("a",),
        stimuli=table,
        provenance=Provenance(origin="simulated", source="test"),
    )
    with pytest.raises(RecordingError, match="name it like a variable"):
        save_recording(recording, tmp_path / "r.npz")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    recording = load(tmp_path, minimal())
    with pytest.raises(RecordingError, match="cannot be written"):
        save_recording(recording, tmp_path / "none" / "r.npz")
