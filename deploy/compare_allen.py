"""Read Allen files with allensdk's own class and with this project's reader, and compare all that both know.

    python deploy/compare_allen.py --allen-python .venv-allen/bin/python allen/*.nwb

Corrected traces, clock, cells, running speed, the stimulus tables row by row and the epochs that they are cut into. Without
files it writes small ones, one a session type and generation of the pipeline. Ends with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantformer.errors import QuantformerError
from quantformer.recording import Recording, StimulusTable
from quantformer_training.allen import load_allen
from quantformer_training.allen_stimuli import BLANK_SCENE, CATEGORIES

ROOT = Path(__file__).resolve().parents[1]
#: Two float32 roundings of each term: the reader rounds what a file holds in float64, allensdk does not.
TRACE_TOLERANCE = 4 * float(np.finfo(np.float32).eps)
#: allensdk's column, and the feature that the reader makes of it.
COLUMNS = {
    "drifting_gratings": {"orientation": "direction_deg", "temporal_frequency": "temporal_frequency_hz"},
    "static_gratings": {
        "orientation": "orientation_deg",
        "spatial_frequency": "spatial_frequency_cpd",
        "phase": "phase_cycles",
    },
}
FACTS = {
    "session_type": "session_type",
    "experiment_container_id": "experiment_container_id",
    "ophys_experiment_id": "session_id",
    "targeted_structure": "targeted_structure",
}
SECONDS_A_FILE = 1800


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One compared thing: what was found, and whether both agree; None where allensdk could not be asked."""

    item: str
    found: str
    agrees: bool | None


def compare(recording: Recording, theirs: Mapping[str, Any]) -> list[Finding]:
    """Everything that both readers know of one file; ``theirs`` is what ``read_with_allensdk.py`` writes."""
    failed: dict[str, str] = json.loads(str(theirs["failed"]))
    findings = [Finding(item=name, found=f"allensdk: {reason}", agrees=None) for name, reason in failed.items()]
    cells = tuple(map(str, np.asarray(theirs["cells"]).tolist()))
    findings.append(_same("cells", f"{len(cells)}", recording.neuron_ids == cells))
    version = recording.provenance.facts["pipeline_version"]
    findings.append(_same("pipeline version", version, version == str(theirs["pipeline_version"])))
    for key, fact in FACTS.items():
        if f"metadata.{key}" in theirs:
            ours, other = recording.provenance.facts.get(fact), str(theirs[f"metadata.{key}"])
            findings.append(_same(key, ours if ours == other else f"{ours}, allensdk {other}", ours == other))
    if "traces" in theirs:
        clock = np.asarray(theirs["clock"])
        findings.append(_same("clock", f"{len(clock)} frames", np.array_equal(recording.timestamps_s, clock)))
        findings.append(_traces(recording, np.asarray(theirs["traces"]).T))
    if "running_speed" in theirs:
        findings.append(_running_speed(recording, np.asarray(theirs["running_speed"])))
    for name in CATEGORIES:
        if f"table.{name}.start" in theirs:
            findings += _stimulus(recording, name, theirs)
        elif f"table.{name}" not in failed and _rows_of(recording, name).size:
            findings.append(Finding(item=name, found="allensdk has no such stimulus", agrees=False))
    return findings


def _same(item: str, found: str, agrees: bool) -> Finding:
    return Finding(item=item, found=found, agrees=bool(agrees))


def _traces(recording: Recording, theirs: NDArray[Any]) -> Finding:
    ours = recording.corrected()
    if ours.shape != theirs.shape:
        return Finding(item="corrected traces", found=f"{ours.shape}, allensdk {theirs.shape}", agrees=False)
    scale = np.abs(recording.fluorescence)
    if recording.neuropil is not None and recording.neuropil_factor is not None:
        scale = scale + np.abs(recording.neuropil_factor * recording.neuropil)
    apart = np.abs(ours.astype(np.float64) - theirs)
    both_nan = np.isnan(ours) & np.isnan(theirs)
    beyond = ~((apart <= TRACE_TOLERANCE * scale) | both_nan)
    largest = float(np.nanmax(np.where(both_nan, 0, apart)))
    text = f"{ours.shape[0]} x {ours.shape[1]}, largest difference {largest:.2g}, {np.count_nonzero(beyond)} beyond rounding"
    return _same("corrected traces", text, not beyond.any())


def _running_speed(recording: Recording, theirs: NDArray[Any]) -> Finding:
    ours = recording.running_speed_cm_s
    if ours is None or len(theirs) < len(ours):
        return Finding(item="running speed", found="none or longer here", agrees=False)
    # allensdk appends to what is shorter than the imaging and cuts nothing off what is longer.
    other = theirs[: len(ours)].astype(np.float32)
    differ = int(np.count_nonzero(~((ours == other) | (np.isnan(ours) & np.isnan(other)))))
    text = f"{np.count_nonzero(np.isfinite(ours))} of {len(ours)} frames known, {differ} differ"
    return _same("running speed", text, differ == 0)


def _rows_of(recording: Recording, name: str) -> NDArray[np.intp]:
    return np.array([row for row, text in enumerate(recording.stimuli.stimulus_id) if text.partition("/")[0] == name], np.intp)


def _stimulus(recording: Recording, name: str, theirs: Mapping[str, Any]) -> list[Finding]:
    table = recording.stimuli.select(_rows_of(recording, name))
    start, end = (np.asarray(theirs[f"table.{name}.{edge}"]) for edge in ("start", "end"))
    kept = start < recording.frames
    if name == "natural_scenes":
        kept &= np.asarray(theirs[f"table.{name}.frame"]) != BLANK_SCENE
    onset = recording.timestamps_s[start[kept]]
    lasts = recording.timestamps_s[np.minimum(end[kept], recording.frames - 1)] - onset
    if len(table) != len(onset):
        return [Finding(item=name, found=f"{len(table)} rows, allensdk {len(onset)}", agrees=False)]
    wrong = (table.onset_s != onset) | (table.duration_s != lasts)
    times = _same(name, f"{len(table)} rows, {np.count_nonzero(wrong)} at other times", not wrong.any())
    findings = [times, *_shown(table, name, theirs, kept=kept)]
    if "epochs.start" in theirs:
        findings.append(_epochs(table, name, theirs, start=start[kept], end=end[kept]))
    return findings


def _shown(table: StimulusTable, name: str, theirs: Mapping[str, Any], *, kept: NDArray[np.bool_]) -> list[Finding]:
    if name == "spontaneous":
        return []
    if name not in COLUMNS:
        images = np.array([int(text.rpartition("/")[2]) for text in table.stimulus_id], np.int64)
        differ = np.count_nonzero(images != np.asarray(theirs[f"table.{name}.frame"])[kept])
        return [_same(f"{name}: image", f"{differ} differ", differ == 0)]
    columns = {column: np.asarray(theirs[f"table.{name}.{column}"])[kept] for column in COLUMNS[name]}
    blank = np.all([np.isnan(column) for column in columns.values()], axis=0)
    if f"table.{name}.blank_sweep" in theirs:
        blank |= np.asarray(theirs[f"table.{name}.blank_sweep"])[kept] > 0
    wrong = table.features["blank"] != blank
    for column, feature in COLUMNS[name].items():
        ours, other = table.features[feature], np.where(blank, np.nan, columns[column])
        wrong |= ~((ours == other) | (np.isnan(ours) & np.isnan(other)))
    text = f"{np.count_nonzero(blank)} blanks, {np.count_nonzero(wrong)} rows differ"
    return [_same(f"{name}: features", text, not wrong.any())]


def _epochs(
    table: StimulusTable, name: str, theirs: Mapping[str, Any], *, start: NDArray[Any], end: NDArray[Any]
) -> Finding:
    mine = np.asarray(theirs["epochs.stimulus"]) == name
    begins, ends = np.asarray(theirs["epochs.start"])[mine], np.asarray(theirs["epochs.end"])[mine]
    order = np.argsort(begins, kind="stable")
    begins, ends = begins[order], ends[order]
    number = np.searchsorted(begins, start, side="right") - 1
    inside = (number >= 0) & (end <= ends[np.maximum(number, 0)])
    wrong = ~inside | (table.sub_session != number)
    text = f"{len(begins)}, {np.count_nonzero(wrong)} rows in another"
    return _same(f"{name}: epochs", text, not wrong.any())


def read_with_allensdk(path: Path, *, python: Path) -> dict[str, Any]:
    """What allensdk finds in a file, asked in its own environment."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "theirs.npz"
        line = [str(python), str(ROOT / "deploy/read_with_allensdk.py"), str(path), str(out)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=SECONDS_A_FILE, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"allensdk cannot read it: {last}")
        with np.load(out, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}


def write_samples(folder: Path) -> list[Path]:
    """Small files of every session type and generation, in which both readers can be asked everything."""
    sys.path.insert(0, str(ROOT / "tests"))
    layout = importlib.import_module("allen_file")
    speed = f"{layout.B}/BehavioralTimeSeries/running_speed"
    movie, pause = "natural_movie_one", "spontaneous"
    sessions = {
        "A": ("drifting_gratings", movie, pause),
        "B": ("static_gratings", "natural_scenes", movie, pause),
        "C": ("locally_sparse_noise", movie, pause),
        "C2": ("locally_sparse_noise_4deg", "locally_sparse_noise_8deg", movie, pause),
    }
    generations: dict[str, dict[str, Any]] = {
        "0.9": {"version": None, "suffix": "", "trace_type": "f8", "frame_type": "f8"},
        "1.0": {"version": "1.0", "frame_type": "f4"},
        "2.0": {"version": "2.0.3", "trace_type": "f8"},
        "3.0": {"version": "2.9", "shuffled": False},
    }
    paths: list[Path] = []
    for session, stimuli in sessions.items():
        for generation, variation in generations.items():
            written = layout.AllenFile(cells=5, stimuli=stimuli, seed=len(paths), **variation)
            # As in real files, running is sampled with the frames, begins after them and ends before them.
            known = slice(7, written.frames - 11)
            data = np.random.default_rng(len(paths)).normal(0, 9, written.frames).astype("f4")[known]
            facts = {
                "session_type": f"three_session_{session}",
                "session_id": "501574836",
                "experiment_container_id": "511510667",
                "targeted_structure": "VISp",
                "optophysiology/imaging_plane_1/location": "VISp",
                "subject/subject_id": "222426",
                "subject/genotype": "Cux2-CreERT2/wt;Camk2a-tTA/wt",
            }
            # Texts of fixed length, as in real files: allensdk reads no others.
            written.change = {f"general/{name}": np.bytes_(text) for name, text in facts.items()} | {
                f"{speed}/data": data[:, None] if generation == "0.9" else data,
                f"{speed}/timestamps": written.clock()[known],
            }
            # allensdk pairs beginnings and ends in the order of the file, which for these is that of time.
            pauses = f"stimulus/presentation/spontaneous{written.suffix}"
            written.change[f"{pauses}/data"] = np.array([1, -1, 1, -1], "i1")
            written.change[f"{pauses}/frame_duration"] = np.array([[1300] * 2, [1600] * 2, [2000] * 2, [2500] * 2])
            paths.append(written.write(folder / f"sample_{session}_{generation}.nwb"))
    return paths


def report(path: Path, findings: list[Finding]) -> bool:
    """Print one file's table; whether it shows no difference."""
    marks = {True: "same", False: "DIFFERS", None: "not compared"}
    width = max((len(finding.item) for finding in findings), default=0)
    for finding in findings:
        print(f"{path.name}  {finding.item.ljust(width)}  {marks[finding.agrees].ljust(12)}  {finding.found}", flush=True)
    return all(finding.agrees is not False for finding in findings)


def examine(path: Path, *, python: Path) -> list[Finding]:
    """Compare one file; that one of the readers cannot read it at all is a difference."""
    try:
        recording = load_allen(path)
    except QuantformerError as error:
        return [Finding(item="reading", found=f"this project: {error}", agrees=False)]
    try:
        return compare(recording, read_with_allensdk(path, python=python))
    except RuntimeError as error:
        return [Finding(item="reading", found=str(error), agrees=False)]


def main() -> int:
    """Compare, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--allen-python", type=Path, required=True, help="the interpreter that has allensdk")
    parser.add_argument("files", type=Path, nargs="*", help="Allen NWB files, or folders of them")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = [one for path in arguments.files for one in (sorted(path.glob("*.nwb")) if path.is_dir() else [path])]
        if arguments.files and not files:
            print(f"no .nwb files in {', '.join(map(str, arguments.files))}", file=sys.stderr)
            return 1
        given = bool(files)
        files = files or write_samples(Path(folder))
        agreeing = [report(path, examine(path, python=arguments.allen_python)) for path in files]
    kind = "files" if given else "small files written for this"
    print(f"{sum(agreeing)} of {len(files)} {kind} read the same")
    return 0 if all(agreeing) else 1


if __name__ == "__main__":
    sys.exit(main())
