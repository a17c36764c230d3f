"""Allen NWB 1.0: the real file's structure, and written files with every generation, spelling and stimulus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantformer.errors import RecordingError
from quantformer.recording import Recording
from quantformer.signal import onset_frames
from quantformer_training.allen import allen_layout, load_allen

h5py = pytest.importorskip("h5py")

from allen_file import TRACES, AllenFile, B  # noqa: E402 - needs h5py

PRESENTATION = "stimulus/presentation"


def rows(recording: Recording, category: str) -> Any:
    return recording.stimuli.select(np.array([name == category for name in recording.stimuli.category]))


def frames_of(recording: Recording, category: str) -> list[int]:
    found: list[int] = onset_frames(recording.timestamps_s, rows(recording, category).onset_s).tolist()
    return found


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return load_allen(AllenFile().write(tmp_path_factory.mktemp("allen") / "session.nwb"))


@pytest.mark.parametrize(
    ("version", "signal"),
    [("2.0.3", "demixed"), ("3.0", "demixed"), ("1.0", "raw"), ("0.9", "raw"), ("10.1", "demixed"), (None, "raw")],
)
@pytest.mark.parametrize("trace_type", ["f4", "f8"])
def test_each_pipeline_generation_gives_its_own_corrected_trace(
    tmp_path: Path, version: str | None, signal: str, trace_type: str
) -> None:
    written = AllenFile(version=version, trace_type=trace_type)
    arrays = written.traces()
    if version in ("3.0", "10.1"):  # the layout of 2.0 under a later number
        written.change = {
            f"{TRACES}_demixed_signal/data": arrays["demixed"],
            f"{TRACES}_neuropil_response/data": arrays["neuropil"],
            f"{TRACES}_neuropil_response/r": arrays["r"],
        }
    found = load_allen(written.write(tmp_path / "a.nwb"))
    assert found.signal == signal
    assert found.provenance.facts["pipeline_version"] == (version or "0.9")
    expected = arrays[signal] - arrays["r"][:, None] * arrays["neuropil"]
    np.testing.assert_allclose(found.corrected(), expected.T, rtol=1e-5)
    assert found.fluorescence.dtype == np.float32


def test_what_belongs_to_the_session(session: Recording) -> None:
    assert session.neuron_ids == ("517000000", "517000001", "517000002")
    np.testing.assert_array_equal(session.timestamps_s, AllenFile().clock())
    assert session.provenance.subject == "222426"
    assert session.provenance.facts["session_type"] == "three_session_A"
    assert session.provenance.facts["experiment_container_id"] == "511510667"


def test_running_speed_is_the_last_known_at_each_frame(session: Recording) -> None:
    speed = session.running_speed_cm_s
    assert speed is not None
    clock = session.timestamps_s
    known = (clock >= 9.0) & (clock <= 107.0)
    assert clock[0] < 9.0
    assert clock[-1] > 107.0
    np.testing.assert_array_equal(np.isfinite(speed), known)
    np.testing.assert_array_equal(speed[known], np.floor((clock[known] - 9.0) / 2.0))


def test_running_speed_of_the_first_pipeline_is_one_column(tmp_path: Path, session: Recording) -> None:
    data = f"{B}/BehavioralTimeSeries/running_speed/data"
    column = AllenFile(change={data: np.arange(50, dtype="f8")[:, None]}).write(tmp_path / "a.nwb")
    np.testing.assert_array_equal(load_allen(column).running_speed_cm_s, session.running_speed_cm_s)
    for wrong in (np.zeros((50, 2)), np.zeros((25, 2)), np.zeros(49), np.zeros((49, 1))):
        with pytest.raises(RecordingError, match=r"running_speed/data has the shape .*, expected \(50"):
            load_allen(AllenFile(change={data: wrong}).write(tmp_path / "a.nwb"))


def test_no_sample_of_running_is_no_speed(tmp_path: Path) -> None:
    group = f"{B}/BehavioralTimeSeries/running_speed"
    change = {f"{group}/data": np.zeros(0, "f4"), f"{group}/timestamps": np.zeros(0)}
    found = load_allen(AllenFile(change=change).write(tmp_path / "a.nwb")).running_speed_cm_s
    assert found is not None
    assert np.isnan(found).all()


def test_drifting_gratings(session: Recording) -> None:
    table = rows(session, "drifting_gratings")
    assert frames_of(session, "drifting_gratings") == [10, 100, 190, 290, 380, 470]
    assert table.stimulus_id == (
        "drifting_gratings/dir=000,tf=1",
        "drifting_gratings/dir=045,tf=2",
        "drifting_gratings/blank",
        "drifting_gratings/dir=090,tf=4",
        "drifting_gratings/dir=315,tf=8",
        "drifting_gratings/blank",
    )
    assert table.sub_session.tolist() == [0, 0, 0, 1, 1, 1]
    assert table.features_of(1) == {"direction_deg": 45, "temporal_frequency_hz": 2, "blank": 0}
    assert table.features_of(2) == {"blank": 1}
    np.testing.assert_allclose(table.duration_s, 60 / 30.12)


def test_static_gratings(session: Recording) -> None:
    table = rows(session, "static_gratings")
    assert table.stimulus_id[0] == "static_gratings/ori=030,phase=0.25,sf=0.02"
    assert table.stimulus_id[1] == "static_gratings/blank"
    assert table.stimulus_id[0] == table.stimulus_id[4]
    assert table.sub_session.tolist() == [0, 0, 0, 1, 1]
    assert table.features_of(2) == pytest.approx(
        {"orientation_deg": 150, "spatial_frequency_cpd": 0.32, "phase_cycles": 0.75, "blank": 0}
    )
    assert table.features_of(1) == {"blank": 1}


def test_natural_scenes_without_their_blanks(session: Recording) -> None:
    table = rows(session, "natural_scenes")
    assert frames_of(session, "natural_scenes") == [700, 722, 750]
    assert table.stimulus_id == ("natural_scenes/0002", "natural_scenes/0000", "natural_scenes/0002")
    # The dropped blanks are no pause: the first two belong to one block.
    assert table.sub_session.tolist() == [0, 0, 1]
    first, other, again = (table.features_of(row) for row in range(3))
    assert len(first) == 56
    assert first == again
    assert first != other


def test_sparse_noise_of_two_sizes(session: Recording) -> None:
    table = rows(session, "locally_sparse_noise")
    assert table.stimulus_id[0] == "locally_sparse_noise_4deg/0000"
    assert table.stimulus_id[6] == "locally_sparse_noise_8deg/0000"
    assert table.sub_session.tolist() == [0, 0, 0, 1, 1, 1] * 2
    # Frame 1 of the 8-degree stack: one white spot in row 1, column 1, which is block 0; nothing elsewhere.
    white = table.features_of(7)
    assert white["image_0"] == max(white[f"image_{block}"] for block in range(28)) > 0
    assert white["image_28"] > 0
    assert [white[f"image_{block}"] for block in range(29, 56)] == pytest.approx([0] * 27, abs=1e-6)
    black = table.features_of(6)
    assert black["image_0"] < 0


def test_spontaneous_epochs_and_movies_left_out(session: Recording) -> None:
    table = rows(session, "spontaneous")
    assert frames_of(session, "spontaneous") == [1300, 2000]
    np.testing.assert_allclose(table.duration_s, [300 / 30.12, 500 / 30.12])
    assert set(session.stimuli.category) == {
        "drifting_gratings",
        "static_gratings",
        "natural_scenes",
        "locally_sparse_noise",
        "spontaneous",
    }


@pytest.mark.parametrize("change", [{"suffix": ""}, {"frame_type": "f8"}, {"frame_type": "f4"}, {"shuffled": False}])
def test_spelling_type_and_order_make_no_difference(tmp_path: Path, session: Recording, change: dict[str, Any]) -> None:
    found = load_allen(AllenFile(**change).write(tmp_path / "a.nwb"))
    assert found.stimuli.stimulus_id == session.stimuli.stimulus_id
    np.testing.assert_array_equal(found.stimuli.onset_s, session.stimuli.onset_s)
    np.testing.assert_array_equal(found.stimuli.sub_session, session.stimuli.sub_session)
    for name, column in session.stimuli.features.items():
        np.testing.assert_array_equal(found.stimuli.features[name], column)


def test_session_c_and_features_in_another_order(tmp_path: Path) -> None:
    assert set(load_allen(AllenFile(stimuli=("locally_sparse_noise",)).write(tmp_path / "c.nwb")).stimuli.category) == {
        "locally_sparse_noise"
    }
    group = f"{PRESENTATION}/static_gratings_stimulus"
    change = {
        f"{group}/features": np.array([b"phase", b"orientation", b"spatial_frequency"]),
        f"{group}/data": np.array([[0.5, 60, 0.08]] * 5),
    }
    found = load_allen(AllenFile(stimuli=("static_gratings",), change=change).write(tmp_path / "b.nwb"))
    assert set(found.stimuli.stimulus_id) == {"static_gratings/ori=060,phase=0.5,sf=0.08"}


def test_a_session_without_stimuli_running_or_facts(tmp_path: Path) -> None:
    change = {"general": None, f"{B}/BehavioralTimeSeries": None}
    found = load_allen(AllenFile(stimuli=(), version=None, change=change).write(tmp_path / "a.nwb"))
    assert len(found.stimuli) == 0
    assert found.running_speed_cm_s is None
    assert found.provenance.subject == "unknown"
    assert dict(found.provenance.facts) == {"pipeline_version": "0.9"}


def test_what_is_left_out_is_noted(tmp_path: Path) -> None:
    found = load_allen(AllenFile(frames=480, templates=False).write(tmp_path / "a.nwb"))
    assert found.provenance.facts["not_imaged_static_gratings"] == "5"
    assert found.provenance.facts["no_images_natural_scenes"] == "the file has no template"
    assert len(rows(found, "drifting_gratings")) == 6
    # The last grating lasts beyond the last frame: its duration is what was seen of it.
    assert rows(found, "drifting_gratings").duration_s[-1] == pytest.approx(9 / 30.12)


DRIFTING, SCENES = f"{PRESENTATION}/drifting_gratings_stimulus", f"{PRESENTATION}/natural_scenes_stimulus"
SPANS = np.array([[10, 70], [100, 160], [190, 250], [290, 350], [380, 440], [470, 530]])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({B: None}, "has no group processing/brain_observatory_pipeline"),
        ({f"{TRACES}/timestamps": None}, "has no array .*timestamps"),
        ({f"{TRACES}/timestamps": np.zeros(3000)}, "strictly increasing"),
        ({f"{TRACES}/timestamps": np.zeros((2, 2))}, r"timestamps has the shape \(2, 2\), expected \(any\)"),
        ({f"{TRACES}_demixed_signal/data": np.zeros((3, 2999))}, r"shape \(3, 2999\), expected \(any, 3000\)"),
        ({f"{TRACES}_demixed_signal/data": np.full((3, 3000), b"x")}, "expected values of kind"),
        ({f"{TRACES}_neuropil_response/r": np.zeros(2)}, r"shape \(2,\), expected \(3\)"),
        ({f"{TRACES}_neuropil_response": None}, "has no array .*neuropil_response/r"),
        ({f"{B}/ImageSegmentation/cell_specimen_ids": np.arange(2)}, "names 2 cells in cell_specimen_ids and has 3"),
        ({f"{B}/ImageSegmentation/cell_specimen_ids": np.full(3, -1)}, "'-1' occurs twice"),
        ({f"{B}/ImageSegmentation/cell_specimen_ids": None}, "has no array .*cell_specimen_ids"),
        ({"general/generated_by": np.array([b"pipeline"])}, "'pipeline', expected a version"),
        ({f"{DRIFTING}/data": None}, "has no array .*drifting_gratings_stimulus/data"),
        ({f"{DRIFTING}/frame_duration": None}, "has no array .*frame_duration"),
        ({f"{DRIFTING}/frame_duration": SPANS[:5]}, r"shape \(5, 2\), expected \(6, 2\)"),
        ({f"{DRIFTING}/frame_duration": SPANS[:, 0]}, r"expected \(rows, columns\)"),
        ({f"{DRIFTING}/frame_duration": SPANS[:, ::-1]}, "presentation from frame 70 to 10"),
        ({f"{DRIFTING}/frame_duration": SPANS - 20}, "presentation from frame -10"),
        ({f"{DRIFTING}/frame_duration": SPANS + 0.5}, "holds 10.5, expected whole numbers"),
        ({f"{DRIFTING}/frame_duration": SPANS * np.nan}, "holds nan, expected whole numbers"),
        ({f"{DRIFTING}/features": np.array([b"1.0"])}, "names 1.0 for 3 columns"),
        ({f"{DRIFTING}/features": np.array([b"phase"] * 3)}, "expected one each"),
        ({f"{PRESENTATION}/static_gratings_stimulus/features": None}, "which names the columns"),
        ({f"{PRESENTATION}/drifting_gratings": 1}, "both drifting_gratings and drifting_gratings_stimulus"),
        ({f"{SCENES}/data": np.array([0, 1, 2, 3, 0])}, "shows image 3, .* holds 3"),
        ({f"{SCENES}/data": np.array([0, 1, 2, -2, 0])}, "shows image -2"),
        ({f"{SCENES}/data": np.zeros((5, 2))}, r"expected \(rows,\)"),
        (
            {"stimulus/templates/natural_scenes_image_stack/data": np.zeros((1, 1, 1))},
            "of at least one image and 4 x 7 pixels",
        ),
        ({f"{PRESENTATION}/spontaneous_stimulus/data": np.array([1, 1, -1, -1])}, r"\+1 and -1 in turn"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = AllenFile(change=change, shuffled=False).write(tmp_path / "a.nwb")
    with pytest.raises(RecordingError, match=said):
        load_allen(path)


def test_a_stimulus_that_is_an_array_or_a_dangling_link(tmp_path: Path) -> None:
    path = AllenFile(stimuli=("drifting_gratings",)).write(tmp_path / "a.nwb")
    with h5py.File(path, "a") as file:
        file[f"{PRESENTATION}/natural_scenes_stimulus"] = h5py.SoftLink("/nowhere")
    with pytest.raises(RecordingError, match=r"has no array .*natural_scenes_stimulus/data"):
        load_allen(path)


def test_the_real_skeleton_has_the_structure(shared_data: Path) -> None:
    path = shared_data / "allen_496908818_skeleton.nwb"
    layout = allen_layout(path)
    assert layout.pipeline_version == "1.0"  # every array of the skeleton is cut to one element, this one to "1.0"
    assert set(layout.presentations) == {"natural_scenes", "static_gratings", "spontaneous"}
    assert layout.presentations["static_gratings"] == "stimulus/presentation/static_gratings_stimulus"
    with h5py.File(path) as file:
        demixed = f"{TRACES}_demixed_signal/data"
        for name in (layout.fluorescence, layout.neuropil, layout.factor, layout.timestamps, demixed):
            assert name in file, name
        # Raw and neuropil are there under both generations' names, one as a link to the other.
        assert file[layout.neuropil] == file[f"{TRACES}_neuropil_response/data"]
    with pytest.raises(RecordingError, match=r"frame_duration has the shape \(1, 1\), expected \(1, 2\)"):
        load_allen(path)


def test_the_real_skeleton_loads_once_its_stimuli_are_gone(shared_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "skeleton.nwb"
    path.write_bytes((shared_data / "allen_496908818_skeleton.nwb").read_bytes())
    with h5py.File(path, "a") as file:
        del file["stimulus/presentation"]
    found = load_allen(path)
    assert (found.frames, found.neurons) == (1, 1)
    assert found.provenance.subject == "491604967"
    assert found.provenance.facts["session_type"] == "three_session_B"
    assert found.provenance.facts["imaging_depth"] == "275 microns"
