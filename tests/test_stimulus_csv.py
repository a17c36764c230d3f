"""Stimulus tables from CSV: what spreadsheets write is read, and an error names the line."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantformer.errors import RecordingError
from quantformer.recording import StimulusTable
from quantformer_training.stimulus_csv import MAXIMUM_BYTES, read_stimulus_csv

CLOCK = 100 + np.arange(300) / 29.9


def read(tmp_path: Path, text: str | bytes) -> StimulusTable:
    path = tmp_path / "stimuli.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_stimulus_csv(path, timestamps_s=CLOCK)


GOOD = """onset_s,duration_s,category,stimulus_id,sub_session,direction_deg,contrast
103.0,2,drifting_gratings,g/90,1,90,0.8
101.5,2.5,drifting_gratings,g/0,0,0,

104,2,spontaneous,rest,,,
"""


def test_columns_rows_and_empty_cells(tmp_path: Path) -> None:
    table = read(tmp_path, GOOD)
    assert table.onset_s.tolist() == [101.5, 103.0, 104.0]
    assert table.duration_s.tolist() == [2.5, 2.0, 2.0]
    assert table.category == ("drifting_gratings", "drifting_gratings", "spontaneous")
    assert table.stimulus_id == ("g/0", "g/90", "rest")
    assert table.sub_session.tolist() == [0, 1, -1]
    assert table.features_of(0) == {"direction_deg": 0.0}
    assert table.features_of(1) == {"direction_deg": 90.0, "contrast": 0.8}
    assert table.features_of(2) == {}


def test_frames_are_looked_up_on_the_clock(tmp_path: Path) -> None:
    table = read(tmp_path, "onset_frame,duration_s,category,stimulus_id\n299,1,a,x\n0,1,a,y\n")
    assert table.onset_s.tolist() == [CLOCK[0], CLOCK[299]]
    assert table.sub_session.tolist() == [-1, -1]


def test_what_spreadsheets_write(tmp_path: Path) -> None:
    table = read(tmp_path, "\ufeff" + GOOD.replace("\n", "\r\n").replace("g/90", '"g,90"'))
    assert table.stimulus_id == ("g/0", "g,90", "rest")


HEADER = "onset_s,duration_s,category,stimulus_id"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty; its first line must name the columns"),
        ("\n\n", "is empty"),
        (GOOD.replace(",", ";"), "separated by semicolons"),
        ("duration_s,category,stimulus_id\n", "exactly one of the columns onset_s and onset_frame, it has 0"),
        ("onset_frame," + HEADER, "it has 2"),
        ("onset_s,category,stimulus_id", "no column 'duration_s'; it has onset_s"),
        (HEADER + ",category", "'category' occurs twice"),
        (HEADER + ",direction (deg)", "cannot name a column"),
        (HEADER + "\n1,2,a", "line 2 has 3 cells, the header has 4"),
        (HEADER + "\n1,2,a,b\n\n1,x,a,b", "line 4: duration_s is 'x', expected a number"),
        (HEADER + "\n1,2,a,b\nnan,2,a,b", "line 3: onset_s is 'nan'"),
        (HEADER + "\n1,1e999,a,b", "line 2: duration_s is '1e999'"),
        (HEADER + "\n1,-2,a,b", "line 2: duration_s is -2.0"),
        (HEADER + "\n1,2,,b", "line 2: category is empty"),
        (HEADER + "\n1,2,a, ", "line 2: stimulus_id is empty"),
        (HEADER + ",sub_session\n1,2,a,b,0.5", "line 2: sub_session is '0.5', expected a whole number"),
        (HEADER + ",direction_deg\n1,2,a,b,inf", "line 2: direction_deg is 'inf'"),
        (
            "onset_frame,duration_s,category,stimulus_id\n300,1,a,b",
            "line 2: onset_frame is 300, the recording has frames 0 to 299",
        ),
        ("onset_frame,duration_s,category,stimulus_id\n1.5,1,a,b", "line 2: onset_frame is '1.5'"),
        (HEADER + '\n1,2,a,"b', "not a CSV file"),
        (HEADER.encode() + b"\n1,2,a,\xff", "not a CSV file in UTF-8"),
    ],
)
def test_an_error_names_the_line_and_what_was_expected(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(RecordingError, match=said):
        read(tmp_path, text)


def test_a_file_that_is_missing_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="No such file"):
        read_stimulus_csv(tmp_path / "none.csv", timestamps_s=CLOCK)
    large = tmp_path / "large.csv"
    with large.open("wb") as stream:
        stream.truncate(MAXIMUM_BYTES + 1)
    with pytest.raises(RecordingError, match="more than"):
        read_stimulus_csv(large, timestamps_s=CLOCK)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.text(max_size=60), line=st.integers(0, 3))
def test_noise_is_never_anything_but_a_recording_error(tmp_path: Path, noise: str, line: int) -> None:
    lines = GOOD.splitlines()
    lines[line] = noise
    with contextlib.suppress(RecordingError):
        read(tmp_path, "\n".join(lines).encode("utf-8", "surrogatepass"))
