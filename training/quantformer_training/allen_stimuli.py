"""The stimulus tables of Allen Visual Coding files: four stimuli and the spontaneous epochs between them.

``frame_duration`` ``(rows, 2)`` holds the imaging frames in which a presentation began and ended, in any order of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantformer.errors import RecordingError
from quantformer.recording import StimulusTable
from quantformer_training import hdf5, image_features
from quantformer_training.sub_sessions import LONGEST_GAP_FRAMES, sub_sessions

PRESENTATIONS = "stimulus/presentation"
TEMPLATES = "stimulus/templates"
#: Presentations that are read, and the category that each belongs to. Movies are not: they have no onsets.
CATEGORIES = {
    "drifting_gratings": "drifting_gratings",
    "static_gratings": "static_gratings",
    "natural_scenes": "natural_scenes",
    "locally_sparse_noise": "locally_sparse_noise",
    "locally_sparse_noise_4deg": "locally_sparse_noise",
    "locally_sparse_noise_8deg": "locally_sparse_noise",
    "spontaneous": "spontaneous",
}
#: The file's names of gratings' columns, the feature that each becomes, and how an id abbreviates it.
GRATING_COLUMNS = {
    "orientation": ("orientation_deg", "ori"),
    "spatial_frequency": ("spatial_frequency_cpd", "sf"),
    "temporal_frequency": ("temporal_frequency_hz", "tf"),
    "phase": ("phase_cycles", "phase"),
}
DRIFTING_COLUMNS = ("temporal_frequency", "orientation", "blank_sweep")
#: What natural scenes show in a blank presentation.
BLANK_SCENE = -1


@dataclass(frozen=True, kw_only=True, eq=False)
class _Presentations:
    """Rows of one presentation group in order of onset; ``start`` and ``end`` in frames, end exclusive."""

    start: NDArray[np.intp]
    end: NDArray[np.intp]
    stimulus_id: list[str]
    features: dict[str, NDArray[np.float64]]
    sub_session: NDArray[np.int16]


def find_presentations(file: Any) -> dict[str, str]:
    """The groups of the presentations that are read, by name without the suffix that some files give them.

    Raises:
        RecordingError: a stimulus has both a group with and one without the suffix.
    """
    group = file.get(PRESENTATIONS)
    found: dict[str, str] = {}
    for spelled in group if hasattr(group, "keys") else ():
        name = spelled.removesuffix("_stimulus")
        if name in found:
            raise RecordingError(f"{file.filename}: {PRESENTATIONS} holds both {name} and {name}_stimulus")
        if name in CATEGORIES:
            found[name] = f"{PRESENTATIONS}/{spelled}"
    return found


def read_stimuli(
    file: Any, presentations: dict[str, str], *, timestamps_s: NDArray[np.float64]
) -> tuple[StimulusTable, dict[str, str]]:
    """All presentations that began while frames were recorded, and notes of what was left out.

    Raises:
        RecordingError: an array is missing, of another shape, or its rows contradict each other.
    """
    frames = len(timestamps_s)
    tables = {name: _READERS[CATEGORIES[name]](file, name, group) for name, group in presentations.items()}
    notes = {}
    names = sorted({feature for table in tables.values() for feature in table.features})
    rows: list[tuple[str, str, float, float, int]] = []
    columns: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    for name, table in tables.items():
        imaged = table.start < frames
        if not imaged.all():
            notes[f"not_imaged_{name}"] = str(np.count_nonzero(~imaged))
        # The end of the last presentation may be the frame after the last one.
        last = np.minimum(table.end, frames - 1)
        for row in np.flatnonzero(imaged):
            onset = float(timestamps_s[table.start[row]])
            lasts = float(timestamps_s[last[row]]) - onset
            rows.append((CATEGORIES[name], table.stimulus_id[row], onset, lasts, int(table.sub_session[row])))
        absent = np.full(np.count_nonzero(imaged), np.nan)
        for feature, parts in columns.items():
            parts.append(table.features[feature][imaged] if feature in table.features else absent)
        if CATEGORIES[name] in _WITH_IMAGES and not set(image_features.NAMES) & table.features.keys():
            notes[f"no_images_{name}"] = "the file has no template"
    return (
        StimulusTable.build(
            onset_s=[row[2] for row in rows],
            duration_s=[row[3] for row in rows],
            category=[row[0] for row in rows],
            stimulus_id=[row[1] for row in rows],
            features={feature: np.concatenate(parts) for feature, parts in columns.items()},
            sub_session=np.array([row[4] for row in rows], np.int16),
        ),
        notes,
    )


def _gratings(file: Any, name: str, group: str) -> _Presentations:
    data = _array(file, f"{group}/data", columns=True)
    order, start, end, sub_session = _frames(file, group, rows=len(data), category=name)
    columns = _grating_columns(file, name, group, width=data.shape[1])
    values = {column: data[order, index] for index, column in enumerate(columns)}
    known = {column: values[column] for column in columns if column in GRATING_COLUMNS}
    blank = np.all([np.isnan(column) for column in known.values()], axis=0)
    if "blank_sweep" in values:
        blank = blank | (values["blank_sweep"] > 0)
    drifting = name == "drifting_gratings"
    features, short = {"blank": blank.astype(np.float64)}, {}
    for column, numbers in known.items():
        feature, abbreviation = GRATING_COLUMNS[column]
        if drifting and column == "orientation":  # of a grating that drifts, the file's orientation is the direction
            feature, abbreviation = "direction_deg", "dir"
        features[feature] = np.where(blank, np.nan, numbers)
        short[abbreviation] = features[feature]
    ids = [
        f"{name}/blank"
        if blank[row]
        else f"{name}/" + ",".join(f"{key}={_short(key, column[row])}" for key, column in sorted(short.items()))
        for row in range(len(data))
    ]
    return _Presentations(start=start, end=end, stimulus_id=ids, features=features, sub_session=sub_session)


def _short(key: str, value: float) -> str:
    return f"{value:03g}" if key in ("dir", "ori") else f"{value:g}"


def _grating_columns(file: Any, name: str, group: str, *, width: int) -> tuple[str, ...]:
    found = hdf5.dataset(file, f"{group}/features")
    if found is not None:
        columns = tuple(hdf5.read_texts(found))
    elif name == "drifting_gratings":
        columns = DRIFTING_COLUMNS
    else:
        raise RecordingError(f"{file.filename} has no array {group}/features, which names the columns of its data")
    unknown = [column for column in columns if column not in GRATING_COLUMNS and column != "blank_sweep"]
    if len(columns) != width or unknown or len(set(columns)) != width or set(columns) <= {"blank_sweep"}:
        raise RecordingError(
            f"{file.filename}: {group}/features names {', '.join(columns)} for {width} columns; "
            f"expected one each of {', '.join((*GRATING_COLUMNS, 'blank_sweep'))}"
        )
    return columns


def _images(file: Any, name: str, group: str) -> _Presentations:
    data = _array(file, f"{group}/data", columns=False)
    order, start, end, sub_session = _frames(file, group, rows=len(data), category=CATEGORIES[name])
    shown = _whole(data[order], where=f"{file.filename}: {group}/data")
    kept = shown != BLANK_SCENE if name == "natural_scenes" else np.ones(len(shown), bool)
    shown = shown[kept]
    features: dict[str, NDArray[np.float64]] = {}
    where = f"{TEMPLATES}/{name}_image_stack/data"
    stack = hdf5.dataset(file, where)
    if stack is not None:
        described = image_features.image_features(stack, where=f"{file.filename}: {where}")
        if len(shown) and not (shown.min() >= 0 and shown.max() < len(described)):
            wrong = int(shown[(shown < 0) | (shown >= len(described))][0])
            raise RecordingError(f"{file.filename}: {group}/data shows image {wrong}, {where} holds {len(described)}")
        features = dict(zip(image_features.NAMES, described[shown].T, strict=True))
    return _Presentations(
        start=start[kept],
        end=end[kept],
        stimulus_id=[f"{name}/{image:04d}" for image in shown],
        features=features,
        sub_session=sub_session[kept],
    )


def _spontaneous(file: Any, name: str, group: str) -> _Presentations:
    """Rows of +1 and -1 in turn: an epoch lasts from a +1 row's first frame to the first frame of the -1 row after it."""
    data = _array(file, f"{group}/data", columns=False)
    order, start, _, _ = _frames(file, group, rows=len(data), category=name)
    events = data[order]
    if len(events) % 2 or (events[::2] != 1).any() or (events[1::2] != -1).any():
        raise RecordingError(f"{file.filename}: {group}/data must hold +1 and -1 in turn, one pair an epoch")
    begin, end = start[::2], start[1::2]
    return _Presentations(
        start=begin,
        end=end,
        stimulus_id=[name] * len(begin),
        features={},
        sub_session=sub_sessions(start=begin, end=end.astype(np.float64), longest_gap=LONGEST_GAP_FRAMES[name]),
    )


_Reader = Callable[[Any, str, str], _Presentations]
_WITH_IMAGES = ("natural_scenes", "locally_sparse_noise")
_READERS: dict[str, _Reader] = {
    "drifting_gratings": _gratings,
    "static_gratings": _gratings,
    "natural_scenes": _images,
    "locally_sparse_noise": _images,
    "spontaneous": _spontaneous,
}


def _array(file: Any, name: str, *, columns: bool) -> NDArray[np.float64]:
    found = hdf5.dataset(file, name)
    dimensions = 2 if columns else 1
    if found is None:
        raise RecordingError(f"{file.filename} has no array {name}")
    if found.shape is None or len(found.shape) != dimensions:
        expected = "(rows, columns)" if columns else "(rows,)"
        raise RecordingError(f"{file.filename}: {name} has the shape {found.shape}, expected {expected}")
    return hdf5.read(found, dtype=np.float64)


def _frames(
    file: Any, group: str, *, rows: int, category: str
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp], NDArray[np.int16]]:
    """The order of rows by onset, and their first frames, ends and sub-sessions in that order."""
    name = f"{group}/frame_duration"
    numbers = _array(file, name, columns=True)
    if numbers.shape != (rows, 2):
        raise RecordingError(
            f"{file.filename}: {name} has the shape {numbers.shape}, expected ({rows}, 2): start and end"
        )
    where = f"{file.filename}: {name}"
    order = np.argsort(numbers[:, 0], kind="stable")
    start, end = _whole(numbers[order, 0], where=where), _whole(numbers[order, 1], where=where)
    if (start < 0).any() or (end < start).any():
        row = int(np.flatnonzero((start < 0) | (end < start))[0])
        raise RecordingError(f"{where} has a presentation from frame {start[row]} to {end[row]}")
    gap = LONGEST_GAP_FRAMES[category]
    return order, start, end, sub_sessions(start=start, end=end.astype(np.float64), longest_gap=gap)


def _whole(numbers: NDArray[np.float64], *, where: str) -> NDArray[np.intp]:
    wrong = numbers[~((np.abs(numbers) < 2**31) & (numbers == np.round(numbers)))]
    if len(wrong):
        raise RecordingError(f"{where} holds {wrong[0]}, expected whole numbers")
    return numbers.astype(np.intp)
