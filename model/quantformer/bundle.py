"""The trained model on disk, complete, verified and without torch.

A bundle is a directory of ``manifest.json``, ``model.onnx``, ``vectors.safetensors`` and a graph for each admitted form of
lower precision; nothing else that may lie there is read. The manifest holds the SHA-256 of the others, a checksum of itself,
and everything needed to use and to judge the model. The bundle's own hash is the SHA-256 of the manifest's bytes.
docs/bundle.md describes all of it.
"""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from quantformer.config import POPULATION_LEVELS, TUNING_QUANTITIES
from quantformer.errors import BundleError, DataError
from quantformer.manifest import SCHEMA, FormName, Manifest, Precision, parse_manifest, render_manifest
from quantformer.population_level import PopulationLevel
from quantformer.signal import SignalRecipe
from quantformer.vocabulary import StimulusRecipe

MANIFEST, GRAPH, VECTORS = "manifest.json", "model.onnx", "vectors.safetensors"
#: Largest file, in bytes, that is read into memory; a bundle is refused rather than allowed to exhaust the machine.
LARGEST_FILE = 2 << 30
_NO_FORMS: Mapping[FormName, bytes] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True, eq=False)
class Vectors:
    """What the graph is given. Learned: ``neuron`` float32 ``(n, 2, d)``, ``unknown`` ``(2, d)``, ``stimulus_weight``
    ``(width, 2, d)``, ``stimulus_id`` ``(ids, 2, d)``. Regressed: ``tuning`` ``(n, 10, tuning features)`` and
    ``population_tuning`` ``(10, tuning features)``. Per neuron, in fluorescence units, ``f0_minimum`` (below it a
    window is rejected), ``usual_f0`` (the median in training), ``noise`` (standard deviation of a frame), and ``f0_range``
    ``(n, 2)`` and ``noise_range`` ``(n, 2)`` as training saw them. ``usual_activity`` ``(n,)`` and ``loading`` ``(n, 2)`` are
    those of the `PopulationLevel`.
    """

    neuron: NDArray[np.float32]
    unknown: NDArray[np.float32]
    stimulus_weight: NDArray[np.float32]
    stimulus_id: NDArray[np.float32]
    tuning: NDArray[np.float32]
    population_tuning: NDArray[np.float32]
    f0_minimum: NDArray[np.float64]
    usual_f0: NDArray[np.float64]
    noise: NDArray[np.float64]
    usual_activity: NDArray[np.float64]
    loading: NDArray[np.float64]
    f0_range: NDArray[np.float64]
    noise_range: NDArray[np.float64]

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Name to array, as stored."""
        return dict(vars(self))

    def of_neurons(self, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """The graph's ``neuron`` input ``(len(rows), 2, d + 10 F)``; -1 is the unknown neuron with the mean tuning."""
        known = (rows >= 0)[:, None, None]
        learned = np.where(known, self.neuron[rows], self.unknown)
        tuning = np.where(known, self.tuning[rows], self.population_tuning)
        # Both tasks are told the same tuning, behind their own learned vectors.
        flat = np.repeat(tuning.reshape(len(rows), 1, self.population_tuning.size), 2, axis=1)
        return np.ascontiguousarray(np.concatenate([learned, flat], axis=2), dtype=np.float32)

    def of_stimulus(
        self, recipe: StimulusRecipe, *, category: str, features: Mapping[str, float], id_row: int | None
    ) -> NDArray[np.float32]:
        """One row ``(2, d + F)`` of the graph's ``stimulus`` input.

        Raises:
            DataError: a category or feature that training did not see.
        """
        encoded = recipe.encode(category=category, features=features)
        learned = np.tensordot(encoded, self.stimulus_weight, axes=1)
        if id_row is not None:
            learned = learned + self.stimulus_id[id_row]
        row = np.array([-1 if id_row is None else id_row])
        tuning = recipe.tuning_features(encoded[None], id_row=row, ids=len(self.stimulus_id))
        return np.concatenate([learned, np.repeat(tuning, 2, axis=0)], axis=1).astype(np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class NeuronRows:
    """Vectors and guards of asked neurons, in the order asked. ``known`` is False where the trained unknown vector
    serves; such neurons have ``f0_minimum`` and ``usual_f0`` 0, a NaN ``f0_range``, and no part in the ``population``.
    """

    vectors: NDArray[np.float32]
    known: NDArray[np.bool_]
    f0_minimum: NDArray[np.float64]
    usual_f0: NDArray[np.float64]
    f0_range: NDArray[np.float64]
    population: PopulationLevel


class Bundle:
    """A verified bundle. Made by `load_bundle`; nothing in it can be changed.

    ``graph`` and ``forms`` are the verified ONNX files: float32, and lower precisions by name.
    """

    def __init__(
        self,
        *,
        path: Path,
        digest: str,
        manifest: Manifest,
        vectors: Vectors,
        graph: bytes,
        forms: Mapping[FormName, bytes] = _NO_FORMS,
        precision: Precision = "float32",
    ) -> None:
        self.path, self.hash, self.manifest, self.vectors, self.precision = path, digest, manifest, vectors, precision
        self._graphs: dict[Precision, bytes] = {"float32": graph}
        for name, form in forms.items():
            self._graphs[name] = form
        self._row_of = {name: row for row, name in enumerate(manifest.neuron_ids)}
        interval = manifest.interval
        #: Lower and upper end ``(2, 64)`` of the forecast's interval, frame by frame, in units of `interval_scale`.
        self.interval_ends = np.array([interval.low, interval.high], np.float32)

    @property
    def onnx_path(self) -> Path:
        """Where the graph lies; `graph` holds the bytes that were verified."""
        return self.path / graph_file(self.precision)

    @property
    def graph(self) -> bytes:
        """The ONNX graph, in `precision`."""
        return self._graphs[self.precision]

    @property
    def forms(self) -> Mapping[FormName, bytes]:
        """The admitted graphs of lower precision."""
        return MappingProxyType({name: graph for name, graph in self._graphs.items() if name != "float32"})

    def in_precision(self, precision: Precision) -> Bundle:
        """The same bundle, whose `graph` is of this precision.

        Raises:
            BundleError: it holds no such graph.
        """
        if precision not in self._graphs:
            form = self.manifest.forms.get(precision) if precision != "float32" else None
            reason = f"it was not admitted: {form.refused}" if form else "it was exported without: export it again"
            raise BundleError(f"bundle {self.hash[:12]} has no {precision} graph; {reason}; set precision float32 or auto")
        found = copy.copy(self)
        found.precision = precision
        return found

    @property
    def recipe(self) -> SignalRecipe:
        """How fluorescence becomes the graph's ``baseline``."""
        return self.manifest.signal

    @property
    def phases(self) -> frozenset[str]:
        """Moments that training covered: ``onset``, ``between``, ``ongoing`` ... A question elsewhere is out of phase."""
        return frozenset(self.manifest.phases)

    def neurons(self, ids: Sequence[str], *, unknown: Literal["refuse", "mark"]) -> NeuronRows:
        """Vectors of these neurons.

        Raises:
            BundleError: an id is not in the bundle and ``unknown`` is ``"refuse"``.
        """
        rows = np.array([self._row_of.get(name, -1) for name in ids], dtype=np.intp)
        known = rows >= 0
        if unknown == "refuse" and not known.all():
            strangers = [name for name, found in zip(ids, known, strict=True) if not found]
            raise BundleError(
                f"{len(strangers)} of {len(ids)} neurons are not in bundle {self.hash[:12]}: {', '.join(strangers[:5])}"
                f"{' ...' if len(strangers) > 5 else ''}; extend the bundle, or ask for unknown neurons to be marked"
            )
        usual_f0 = np.where(known, self.vectors.usual_f0[rows], 0.0)
        return NeuronRows(
            vectors=self.vectors.of_neurons(rows),
            known=known,
            f0_minimum=np.where(known, self.vectors.f0_minimum[rows], 0.0),
            usual_f0=usual_f0,
            f0_range=np.where(known[:, None], self.vectors.f0_range[rows], np.nan),
            population=PopulationLevel(
                usual_f0=usual_f0,
                noise=np.where(known, self.vectors.noise[rows], 0.0),
                usual_activity=np.where(known, self.vectors.usual_activity[rows], 0.0),
                loading=np.where(known[:, None], self.vectors.loading[rows], 0.0),
            ),
        )

    def stimulus(self, stimulus_id: str) -> NDArray[np.float32]:
        """Vectors ``(2, stimulus width)`` of a stimulus of the bundle.

        Raises:
            BundleError: the id is not in the bundle.
        """
        spec = self.manifest.stimuli.get(stimulus_id)
        if spec is None:
            raise BundleError(
                f"stimulus {stimulus_id!r} is not in bundle {self.hash[:12]}; "
                f"known: {', '.join(sorted(self.manifest.stimuli)[:12])}"
            )
        recipe = self.manifest.stimulus_recipe
        return self.vectors.of_stimulus(recipe, category=spec.category, features=spec.features, id_row=spec.id_row)

    def stimulus_from_features(self, *, category: str, features: Mapping[str, float]) -> NDArray[np.float32]:
        """Vectors ``(2, stimulus width)`` of a stimulus that is described rather than named: no id of its own.

        Raises:
            DataError: a category or feature that training did not see.
        """
        recipe = self.manifest.stimulus_recipe
        return self.vectors.of_stimulus(recipe, category=category, features=features, id_row=None)

    def probability(self, logit: NDArray[np.float32]) -> NDArray[np.float32]:
        """Calibrated activation probability of the graph's logits, any shape."""
        calibration = self.manifest.calibration
        return _sigmoid(logit / np.float32(calibration.temperature) + np.float32(calibration.bias))

    def interval_scale(self, spread: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scale ``(B,)`` in dF/F of each row's interval, of the graph's ``spread``."""
        return spread + np.float32(self.manifest.interval.floor)

    def interval(
        self, response: NDArray[np.float32], spread: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Bounds ``(B, 64)`` of dF/F that hold ``manifest.interval.level`` of validation responses, frame by frame."""
        scale = self.interval_scale(spread)[:, None]
        low, high = (scale * end for end in self.interval_ends)
        return low + response, high + response

    def extended(self, *, ids: Sequence[str], vectors: Vectors, path: Path) -> Bundle:
        """Write a bundle with further neurons to ``path``; its ONNX file is byte-identical, and so are all old vectors.

        ``vectors`` holds the new neurons' rows; its stimulus and unknown parts are ignored.

        Raises:
            BundleError: an id is already there.
        """
        twice = [name for name in ids if name in self._row_of]
        if twice or len(set(ids)) != len(ids):
            raise BundleError(
                f"neurons already in the bundle, or given twice: {', '.join(twice) or 'in the list itself'}"
            )
        old = self.vectors
        both = Vectors(
            neuron=np.concatenate([old.neuron, vectors.neuron]),
            unknown=old.unknown,
            stimulus_weight=old.stimulus_weight,
            stimulus_id=old.stimulus_id,
            tuning=np.concatenate([old.tuning, vectors.tuning]),
            population_tuning=old.population_tuning,
            f0_minimum=np.concatenate([old.f0_minimum, vectors.f0_minimum]),
            usual_f0=np.concatenate([old.usual_f0, vectors.usual_f0]),
            noise=np.concatenate([old.noise, vectors.noise]),
            usual_activity=np.concatenate([old.usual_activity, vectors.usual_activity]),
            loading=np.concatenate([old.loading, vectors.loading]),
            f0_range=np.concatenate([old.f0_range, vectors.f0_range]),
            noise_range=np.concatenate([old.noise_range, vectors.noise_range]),
        )
        facts = {**self.manifest.provenance, "extended_from": self.hash}
        manifest = self.manifest.replace(neuron_ids=(*self.manifest.neuron_ids, *ids), provenance=facts)
        graph = self._graphs["float32"]
        return write_bundle(path, manifest=manifest, vectors=both, graph=graph, forms=self.forms)


def graph_file(precision: Precision) -> str:
    """Name of the file of the graph of this precision."""
    return GRAPH if precision == "float32" else f"model.{precision}.onnx"


def refuse_existing(path: Path) -> None:
    """Let no bundle be written over anything.

    Raises:
        BundleError: ``path`` exists.
    """
    if path.exists():
        raise BundleError(f"{path} exists; a bundle is never overwritten: choose another directory or remove it first")


def write_bundle(
    path: Path, *, manifest: Manifest, vectors: Vectors, graph: bytes, forms: Mapping[FormName, bytes] = _NO_FORMS
) -> Bundle:
    """Write a bundle aside, verify it, then move it to ``path``, which must not exist. ``forms`` are those admitted.

    Raises:
        BundleError: ``path`` exists, or the parts contradict each other.
    """
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        tensors = save_tensors({name: np.ascontiguousarray(array) for name, array in vectors.tensors().items()})
        contents = {GRAPH: graph, VECTORS: tensors} | {graph_file(name): form for name, form in forms.items()}
        files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        # A bundle of an older schema that is extended is written as this software's.
        contents[MANIFEST] = render_manifest(manifest.replace(files=files, schema=SCHEMA))
        for name, content in contents.items():
            with (aside / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        load_bundle(aside)
        aside.chmod(0o755)
        aside.rename(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return load_bundle(path)


def load_bundle(path: Path | str) -> Bundle:
    """Read and verify a bundle, whole.

    Raises:
        BundleError: a file is missing, altered, truncated or foreign, or the schema is newer than this software's.
    """
    root = Path(path)
    if not root.is_dir():
        raise BundleError(f"{root} is not a directory; a bundle is a directory with {MANIFEST}, {GRAPH} and {VECTORS}")
    text = _read(root, MANIFEST)
    manifest = parse_manifest(text, source=str(root / MANIFEST))
    admitted = [name for name, form in manifest.forms.items() if not form.refused]
    expected_files = [GRAPH, *map(graph_file, admitted), VECTORS]
    if set(manifest.files) != set(expected_files):
        raise BundleError(
            f"{root / MANIFEST} lists {sorted(manifest.files)}, expected {', '.join(expected_files)} and no other"
        )
    contents = {}
    for name, expected in manifest.files.items():
        contents[name] = _read(root, name)
        found = hashlib.sha256(contents[name]).hexdigest()
        if found != expected:
            raise BundleError(
                f"{root / name} has SHA-256 {found[:16]}..., the manifest says {expected[:16]}...: "
                "it was altered or truncated; copy the bundle again or export it anew"
            )
    for name, spec in manifest.stimuli.items():
        try:
            manifest.stimulus_recipe.encode(category=spec.category, features=spec.features)
        except DataError as error:
            raise BundleError(f"{root / MANIFEST}: stimulus {name!r}: {error}") from None
    vectors = _parse_vectors(contents[VECTORS], manifest=manifest, source=root / VECTORS)
    digest = hashlib.sha256(text).hexdigest()
    forms = {name: contents[graph_file(name)] for name in admitted}
    return Bundle(path=root, digest=digest, manifest=manifest, vectors=vectors, graph=contents[GRAPH], forms=forms)


def _read(root: Path, name: str) -> bytes:
    file = root / name
    try:
        status = file.stat()
        size = status.st_size
        # A pipe would keep the reader waiting, and a device such as /dev/zero has neither size nor end.
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{file} is not a regular file; a bundle holds {MANIFEST}, {GRAPH}, {VECTORS}")
        if size > LARGEST_FILE:
            raise BundleError(f"{file} has {size} bytes, more than the {LARGEST_FILE} allowed; it is not a bundle's")
        return file.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{file} cannot be read ({error.strerror}); a bundle holds {MANIFEST}, {GRAPH}, {VECTORS}"
        ) from None


def _parse_vectors(content: bytes, *, manifest: Manifest, source: Path) -> Vectors:
    try:
        tensors = load_tensors(content)
    except KeyError as error:
        raise BundleError(f"{source} holds numbers of kind {error}; float32 and float64 are expected") from None
    except (SafetensorError, ValueError) as error:
        raise BundleError(f"{source} is not a safetensors file: {error}") from None
    n, d, width = len(manifest.neuron_ids), manifest.d, manifest.stimulus_recipe.width
    ids = 1 + max((spec.id_row for spec in manifest.stimuli.values() if spec.id_row is not None), default=-1)
    tuned = manifest.stimulus_recipe.tuning_width + ids
    expected: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
        "neuron": ((n, 2, d), np.float32),
        "unknown": ((2, d), np.float32),
        "stimulus_weight": ((width, 2, d), np.float32),
        "stimulus_id": ((ids, 2, d), np.float32),
        "tuning": ((n, TUNING_QUANTITIES, tuned), np.float32),
        "population_tuning": ((TUNING_QUANTITIES, tuned), np.float32),
        "f0_minimum": ((n,), np.float64),
        "usual_f0": ((n,), np.float64),
        "noise": ((n,), np.float64),
        "usual_activity": ((n,), np.float64),
        "loading": ((n, POPULATION_LEVELS), np.float64),
        "f0_range": ((n, 2), np.float64),
        "noise_range": ((n, 2), np.float64),
    }
    if set(tensors) != set(expected):
        raise BundleError(f"{source} holds {sorted(tensors)}, expected {sorted(expected)}")
    for name, (shape, dtype) in expected.items():
        array = tensors[name]
        if array.shape != shape or array.dtype != dtype:
            raise BundleError(f"{source}: {name} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}")
        if not np.isfinite(array).all():
            raise BundleError(f"{source}: {name} holds values that are not finite; export the bundle again")
        array.flags.writeable = False
    return Vectors(**tensors)


def _sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.float32(0.5) * (np.float32(1.0) + np.tanh(np.float32(0.5) * x)), np.float32)
