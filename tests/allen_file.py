"""Write files in the Allen Visual Coding NWB 1.0 layout, small and with every variation that real ones have."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

B = "processing/brain_observatory_pipeline"
TRACES = f"{B}/Fluorescence/imaging_plane_1"


@dataclass
class AllenFile:
    """What to write; `write` does it. Defaults make one whole session with all stimuli, pipeline 2.0."""

    cells: int = 3
    frames: int = 3000
    version: str | None = "2.0.3"
    suffix: str = "_stimulus"
    trace_type: str = "f4"
    frame_type: str = "i8"
    shuffled: bool = True
    stimuli: tuple[str, ...] = (
        "drifting_gratings",
        "static_gratings",
        "natural_scenes",
        "locally_sparse_noise_4deg",
        "locally_sparse_noise_8deg",
        "spontaneous",
        "natural_movie_one",
    )
    templates: bool = True
    seed: int = 0
    change: dict[str, Any] = field(default_factory=dict)
    """Paths to replace at the end; None removes."""

    def write(self, path: Path) -> Path:
        """Write the file and return its path."""
        with h5py.File(path, "w") as file:
            self._traces(file)
            for name in self.stimuli:
                getattr(self, "_" + name)(file)
            for name, value in self.change.items():
                if name in file:
                    del file[name]
                if value is not None:
                    file[name] = value
        return path

    def traces(self) -> dict[str, NDArray[Any]]:
        """The arrays of fluorescence, as they are written."""
        rng = np.random.default_rng(self.seed)
        shape = (self.cells, self.frames)
        return {
            "raw": rng.uniform(300, 400, shape).astype(self.trace_type),
            "demixed": rng.uniform(280, 380, shape).astype(self.trace_type),
            "neuropil": rng.uniform(100, 120, shape).astype(self.trace_type),
            "r": rng.uniform(0, 1, self.cells).astype(self.trace_type),
        }

    def clock(self) -> NDArray[np.float64]:
        """Time stamps of the imaging frames, seconds, as they are written."""
        return np.asarray(8.5 + np.arange(self.frames) / 30.12)

    def _traces(self, file: h5py.File) -> None:
        arrays = self.traces()
        file[f"{TRACES}/data"] = arrays["raw"]
        file[f"{TRACES}/timestamps"] = self.clock()
        file[f"{TRACES}/roi_names"] = np.array([f"roi_{cell}".encode() for cell in range(self.cells)])
        if self.version is not None and self.version.startswith("2"):
            file[f"{TRACES}_demixed_signal/data"] = arrays["demixed"]
            file[f"{TRACES}_neuropil_response/data"] = arrays["neuropil"]
            file[f"{TRACES}_neuropil_response/r"] = arrays["r"]
        else:
            file[f"{TRACES}/neuropil_traces"] = arrays["neuropil"]
            file[f"{TRACES}/r"] = arrays["r"]
        if self.version is not None:
            file["general/generated_by"] = np.array(
                [b"pipeline", b"brain_observatory", b"version", self.version.encode()]
            )
        file[f"{B}/DfOverF/imaging_plane_1/data"] = np.zeros((self.cells, self.frames), "f4")
        file[f"{B}/ImageSegmentation/cell_specimen_ids"] = 517_000_000 + np.arange(self.cells)
        file[f"{B}/ImageSegmentation/roi_ids"] = file[f"{TRACES}/roi_names"][()]
        file[f"{B}/BehavioralTimeSeries/running_speed/data"] = np.arange(50, dtype="f4")
        file[f"{B}/BehavioralTimeSeries/running_speed/timestamps"] = 9.0 + 2.0 * np.arange(50)
        for name, text in {
            "general/session_type": "three_session_A",
            "general/session_id": "501574836",
            "general/experiment_container_id": "511510667",
            "general/subject/subject_id": "222426",
            "general/subject/genotype": "Cux2-CreERT2/wt",
        }.items():
            file[name] = text.encode()

    def _present(self, file: h5py.File, name: str, spans: NDArray[np.int64], data: NDArray[Any], **more: Any) -> None:
        group = f"stimulus/presentation/{name}{self.suffix}"
        order = np.arange(len(spans))
        if self.shuffled:
            np.random.default_rng(self.seed).shuffle(order)
        file[f"{group}/data"] = data[order]
        file[f"{group}/frame_duration"] = spans[order].astype(self.frame_type)
        file[f"{group}/timestamps"] = self.clock()[np.minimum(spans[order, 0], self.frames - 1)]
        for key, value in more.items():
            file[f"{group}/{key}"] = value

    def _template(self, file: h5py.File, name: str, stack: NDArray[Any]) -> None:
        if self.templates:
            file[f"stimulus/templates/{name}_image_stack/data"] = stack

    def _drifting_gratings(self, file: h5py.File) -> None:
        # Six of 2 s on and 1 s off in two blocks, a pause of 40 frames between them; the last of each block is blank.
        start = np.array([10, 100, 190, 290, 380, 470])
        data = np.array(
            [[1, 0, 0], [2, 45, 0], [np.nan, np.nan, 1], [4, 90, 0], [8, 315, 0], [np.nan, np.nan, 1]], "f4"
        )
        features = np.array([b"temporal_frequency", b"orientation", b"blank_sweep"])
        self._present(file, "drifting_gratings", np.stack([start, start + 60], 1), data, features=features)

    def _static_gratings(self, file: h5py.File) -> None:
        start = np.array([600, 607, 615, 640, 647])
        data = np.array([[30, 0.02, 0.25], [np.nan] * 3, [150, 0.32, 0.75], [0, 0.04, 0], [30, 0.02, 0.25]], "f4")
        features = np.array([b"orientation", b"spatial_frequency", b"phase"])
        self._present(file, "static_gratings", np.stack([start, start + 7], 1), data, features=features)

    def _natural_scenes(self, file: h5py.File) -> None:
        start = np.array([700, 707, 715, 722, 750])
        self._present(file, "natural_scenes", np.stack([start, start + 7], 1), np.array([2, -1, -1, 0, 2]))
        stack = np.random.default_rng(1).uniform(0, 255, (3, 46, 59)).astype("f4")
        self._template(file, "natural_scenes", stack)

    def _sparse(self, file: h5py.File, name: str, first: int, shape: tuple[int, int]) -> None:
        start = first + 8 * np.arange(6)
        start[3:] += 8
        self._present(file, name, np.stack([start, start + 8], 1), np.arange(6))
        stack = np.full((6, *shape), 127, "u1")
        for index in range(6):
            stack[index, index % shape[0], index] = 255 if index % 2 else 0
        self._template(file, name, stack)

    def _locally_sparse_noise_4deg(self, file: h5py.File) -> None:
        self._sparse(file, "locally_sparse_noise_4deg", 900, (16, 28))

    def _locally_sparse_noise_8deg(self, file: h5py.File) -> None:
        self._sparse(file, "locally_sparse_noise_8deg", 1000, (8, 14))

    def _locally_sparse_noise(self, file: h5py.File) -> None:
        self._sparse(file, "locally_sparse_noise", 1100, (16, 28))

    def _spontaneous(self, file: h5py.File) -> None:
        edges = np.array([1300, 1600, 2000, 2500])
        self._present(file, "spontaneous", np.stack([edges, edges], 1), np.array([1, -1, 1, -1], "i1"))

    def _natural_movie_one(self, file: h5py.File) -> None:
        start = np.arange(2600, 2700)
        self._present(file, "natural_movie_one", np.stack([start, start + 1], 1), np.arange(100) % 50)
