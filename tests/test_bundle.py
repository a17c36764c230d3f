"""Tests of the bundle: whole or refused with the reason, never overwritten, extended without touching the network."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from tiny_bundle import GRATING, NEURONS

from quantformer.bundle import (
    GRAPH,
    LARGEST_FILE,
    MANIFEST,
    VECTORS,
    Bundle,
    NeuronRows,
    Vectors,
    load_bundle,
    write_bundle,
)
from quantformer.errors import BundleError, DataError
from quantformer.manifest import SCHEMA, parse_manifest, render_manifest

FILES = (MANIFEST, GRAPH, VECTORS)


@pytest.fixture(scope="module")
def bundle(tiny_bundle_path: Path) -> Bundle:
    return load_bundle(tiny_bundle_path)


@pytest.fixture
def copy(tiny_bundle_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle_path, tmp_path / "copy"))


def seal(manifest: dict[str, Any]) -> bytes:
    """A manifest's bytes with the checksum that belongs to them, as docs/bundle.md describes it."""
    bare = json.dumps({**manifest, "checksum": ""}, indent=1).encode()
    return bare.replace(b'"checksum": ""', f'"checksum": "{hashlib.sha256(bare).hexdigest()}"'.encode(), 1)


def change_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Alter a manifest on purpose, so that its checksum is right."""
    manifest = json.loads((path / MANIFEST).read_bytes())
    change(manifest)
    (path / MANIFEST).write_bytes(seal(manifest))


def change_vectors(path: Path, content: bytes) -> None:
    """Put other vectors in place on purpose, so that every hash is right."""
    (path / VECTORS).write_bytes(content)
    change_manifest(path, lambda manifest: manifest["files"].update({VECTORS: hashlib.sha256(content).hexdigest()}))


def vectors_of(bundle: Bundle, **changes: Any) -> Vectors:
    return Vectors(**{**bundle.vectors.tensors(), **changes})


def test_a_bundle_is_three_files_and_a_hash(bundle: Bundle) -> None:
    assert sorted(file.name for file in bundle.path.iterdir()) == sorted(FILES)
    assert bundle.hash == hashlib.sha256((bundle.path / MANIFEST).read_bytes()).hexdigest()
    assert bundle.graph == bundle.onnx_path.read_bytes()
    for name in (GRAPH, VECTORS):
        assert bundle.manifest.files[name] == hashlib.sha256((bundle.path / name).read_bytes()).hexdigest()


def test_the_manifest_is_json_that_reads_back(bundle: Bundle) -> None:
    text = (bundle.path / MANIFEST).read_bytes()
    assert json.loads(text)["format"] == "quantformer-bundle"
    assert parse_manifest(text, source="here") == bundle.manifest
    assert render_manifest(bundle.manifest) == text
    bare = text.replace(bundle.manifest.checksum.encode(), b"", 1)
    assert bundle.manifest.checksum == hashlib.sha256(bare).hexdigest()


def test_a_checksum_is_found_even_where_the_content_looks_like_one(bundle: Bundle, tmp_path: Path) -> None:
    tricky = bundle.manifest.replace(provenance={"checksum": "", "note": '"checksum": ""'}, software='"checksum": ""')
    written = write_bundle(tmp_path / "tricky", manifest=tricky, vectors=bundle.vectors, graph=bundle.graph)
    assert written.manifest.provenance["checksum"] == ""


def test_nothing_in_a_loaded_bundle_can_be_changed(bundle: Bundle) -> None:
    for name, array in bundle.vectors.tensors().items():
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0.0
        assert not array.flags.writeable, name
    with pytest.raises(AttributeError):
        bundle.manifest.d = 3  # type: ignore[misc]


def test_usual_levels_are_written_to_the_bit(bundle: Bundle, tmp_path: Path) -> None:
    usual = np.random.default_rng(0).lognormal(5, 2, len(NEURONS))
    usual[3] = 0.0
    vectors = vectors_of(bundle, usual_f0=usual)
    write_bundle(tmp_path / "made", manifest=bundle.manifest, vectors=vectors, graph=bundle.graph)
    found = load_bundle(tmp_path / "made").neurons(NEURONS, unknown="refuse").usual_f0
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, usual)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=rf"copy/{re.escape(name)} cannot be read \(No such file"):
        load_bundle(copy)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0.0, 0.5, -1])
def test_a_truncated_file_is_named(copy: Path, name: str, keep: float) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: int(len(content) * keep)] if keep >= 0 else content[:-1])
    with pytest.raises(BundleError, match=re.escape(name)):
        load_bundle(copy)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_flipped_bit_anywhere_is_refused(tiny_bundle_path: Path, tmp_path: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(FILES))
    content = bytearray((tiny_bundle_path / name).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    harmed = tmp_path / "harmed"
    shutil.rmtree(harmed, ignore_errors=True)
    shutil.copytree(tiny_bundle_path, harmed)
    (harmed / name).write_bytes(content)
    with pytest.raises(BundleError, match=re.escape(str(harmed))):
        load_bundle(harmed)


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_any_bytes_for_a_manifest_are_refused(content: bytes) -> None:
    with pytest.raises(BundleError, match="here"):
        parse_manifest(content, source="here")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300))
def test_any_bytes_for_vectors_are_refused(copy: Path, content: bytes) -> None:
    change_vectors(copy, content)
    with pytest.raises(BundleError, match="vectors"):
        load_bundle(copy)


def test_a_number_changed_in_the_manifest_is_refused(copy: Path) -> None:
    text = (copy / MANIFEST).read_text()
    assert '"default": 0.5' in text
    (copy / MANIFEST).write_text(text.replace('"default": 0.5', '"default": 0.1'))
    with pytest.raises(BundleError, match=r"checksum .* it was altered"):
        load_bundle(copy)


def test_a_manifest_without_a_checksum_is_refused(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_bytes())
    del manifest["checksum"]
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="checksum"):
        load_bundle(copy)


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "newer": (lambda m: m.update(schema=SCHEMA + 1), rf"schema {SCHEMA + 1}, this software reads {SCHEMA}: update"),
    "schema 0": (lambda m: m.update(schema=0), f"schema 0, this software reads {SCHEMA}: train the model and export"),
    "schema before the level": (lambda m: m.update(schema=1), "schema 1, .*export the bundle again"),
    "schema before the rate": (lambda m: m.update(schema=2), "schema 2, .*: train the model and export the bundle again"),
    "schema before what categories share": (lambda m: m.update(schema=4), "schema 4, .*: train the model and export"),
    "negative schema": (lambda m: m.update(schema=-3), "schema -3"),
    "huge schema": (lambda m: m.update(schema=10**30), "update quantformer"),
    "schema of text": (lambda m: m.update(schema="1"), "damaged or foreign"),
    "foreign": (lambda m: m.update(format="other"), "format 'other'"),
    "no format": (lambda m: m.pop("format"), "damaged or foreign"),
    "unknown field": (lambda m: m.update(colour="red"), "unknown field `colour`"),
    "unknown field inside": (lambda m: m["calibration"].update(colour=1), "unknown field `colour`"),
    "unknown signal field": (lambda m: m["signal"].update(colour=1), r"signal holds unknown fields \['colour'\]"),
    "unknown recipe field": (lambda m: m["stimulus_recipe"].update(colour=1), "stimulus_recipe holds unknown fields"),
    "missing field": (lambda m: m.pop("label"), "missing required field `label`"),
    "d of text": (lambda m: m.update(d="16"), "Expected `int`"),
    "d of nothing": (lambda m: m.update(d=0), "`int` >= 1"),
    "no temperature": (lambda m: m["calibration"].update(temperature=0.0), "`float` > 0"),
    "level beyond one": (lambda m: m["interval"].update(level=1.5), "`float` <= 1"),
    "an undefined metric": (lambda m: m["metrics"].update(auroc=None), "got `null`"),
    "impossible signal": (lambda m: m["signal"].update(f0_frames=0), "f0_frames"),
    "short interval": (lambda m: m["interval"].update(low=[0.0] * 63), r"bounds have \(63, 64\) frames"),
    "a neuron twice": (lambda m: m.update(neuron_ids=[NEURONS[0]] * 12), "a neuron id occurs twice"),
    "odd stimulus": (lambda m: m["stimuli"]["dir=000"].update(category="movie"), "stimulus 'dir=000'.*'movie'"),
    "odd feature": (lambda m: m["stimuli"]["dir=000"]["features"].update(size=3.0), "'size' is not in the recipe"),
    "an id row twice": (lambda m: m["stimuli"]["dir=000"].update(id_row=1), "rows of the stimulus ids"),
    "a far id row": (lambda m: m["stimuli"]["dir=315"].update(id_row=999_999), "rows of the stimulus ids"),
    "an endless id row": (lambda m: m["stimuli"]["dir=315"].update(id_row=10**12), "`int` <= 1000000"),
    "another width": (lambda m: m.update(d=17), r"neuron is float32 \(12, 2, 16\), expected float32 \(12, 2, 17\)"),
    "one neuron less": (lambda m: m["neuron_ids"].pop(), r"expected float32 \(11, 2, 16\)"),
    "one file less": (lambda m: m["files"].pop(GRAPH), r"lists \['vectors"),
    "another place": (lambda m: m["files"].update({"../../etc/passwd": "00"}), "lists .*expected model.onnx"),
    "other hash": (lambda m: m["files"].update({GRAPH: "00"}), "model.onnx has SHA-256 .*altered or truncated"),
}


@pytest.mark.parametrize("harm", MANIFESTS)
def test_a_manifest_that_is_wrong_on_purpose_is_refused_with_the_reason(copy: Path, harm: str) -> None:
    change, reason = MANIFESTS[harm]
    change_manifest(copy, change)
    with pytest.raises(BundleError, match=reason):
        load_bundle(copy)


def test_what_is_changed_on_purpose_and_allowed_is_read(copy: Path, bundle: Bundle) -> None:
    """The refusals above are not for the sealing's sake; and another manifest is another bundle."""
    change_manifest(copy, lambda manifest: manifest["thresholds"].update(default=0.25))
    found = load_bundle(copy)
    assert found.manifest.thresholds == {"default": 0.25}
    assert found.hash != bundle.hash


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"format":"quantformer-bundle","schema":%d,"metrics":[' % SCHEMA])
def test_json_nested_without_end_is_refused(copy: Path, opening: bytes) -> None:
    (copy / MANIFEST).write_bytes(opening * 200_000)
    with pytest.raises(BundleError, match="manifest"):
        load_bundle(copy)


# --- forms of lower precision -----------------------------------------------------------------------------------------


@pytest.fixture
def lowered(lowered_bundle_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(lowered_bundle_path, tmp_path / "lowered"))


def test_forms_are_files_of_their_own_and_float32_is_what_is_loaded(lowered: Path, bundle: Bundle) -> None:
    found = load_bundle(lowered)
    assert sorted(file.name for file in lowered.iterdir()) == sorted([*FILES, "model.int8.onnx", "model.float16.onnx"])
    assert (found.precision, found.graph) == ("float32", bundle.graph)
    assert set(found.forms) == {"int8", "float16"}
    for name in ("int8", "float16"):
        form = found.in_precision(name)
        assert (form.precision, form.hash) == (name, found.hash)
        assert form.graph == form.onnx_path.read_bytes() == (lowered / f"model.{name}.onnx").read_bytes()
        assert form.in_precision("float32").graph == bundle.graph
    again = parse_manifest(render_manifest(found.manifest), source="here")
    assert again.forms == found.manifest.forms
    assert again.forms["int8"].log_loss.at_most == 0.0002


@pytest.mark.parametrize("name", ["model.int8.onnx", "model.float16.onnx"])
@pytest.mark.parametrize("harm", ["missing", "altered", "truncated"])
def test_a_form_that_is_not_whole_is_refused_whatever_is_served(lowered: Path, name: str, harm: str) -> None:
    content = bytearray((lowered / name).read_bytes())
    if harm == "missing":
        (lowered / name).unlink()
    else:
        content[len(content) // 2] ^= 1
        (lowered / name).write_bytes(content if harm == "altered" else content[:-1])
    with pytest.raises(BundleError, match=re.escape(name)):
        load_bundle(lowered)


def test_a_form_that_the_bundle_lacks_is_refused_with_the_reason(bundle: Bundle, lowered: Path) -> None:
    with pytest.raises(BundleError, match="has no int8 graph; it was exported without: export it again"):
        bundle.in_precision("int8")

    def refuse(manifest: dict[str, Any]) -> None:
        manifest["forms"]["int8"]["refused"] = "mse 0.1 more"
        del manifest["files"]["model.int8.onnx"]

    change_manifest(lowered, refuse)
    found = load_bundle(lowered)
    assert set(found.forms) == {"float16"}
    with pytest.raises(BundleError, match=r"has no int8 graph; it was not admitted: mse 0\.1 more"):
        found.in_precision("int8")


FORMS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a file of no form": (lambda m: m["forms"].pop("int8"), "lists .*model.int8.onnx.*, expected .* and no other"),
    "a form of no file": (lambda m: m["files"].pop("model.int8.onnx"), "lists .*, expected .*model.int8.onnx"),
    "a refused form's file": (lambda m: m["forms"]["int8"].update(refused="why"), "lists .*model.int8.onnx"),
    "another form": (lambda m: m["forms"].update(int4=m["forms"]["int8"]), "int4"),
    "a form unjudged": (lambda m: m["forms"]["int8"].pop("log_loss"), "missing required field `log_loss`"),
}


@pytest.mark.parametrize("harm", FORMS)
def test_forms_that_are_wrong_on_purpose_are_refused_with_the_reason(lowered: Path, harm: str) -> None:
    change, reason = FORMS[harm]
    change_manifest(lowered, change)
    with pytest.raises(BundleError, match=reason):
        load_bundle(lowered)


def test_extending_takes_the_forms_along_whichever_is_served(lowered: Path, tmp_path: Path) -> None:
    found = load_bundle(lowered).in_precision("int8")
    longer = found.extended(ids=["new 0", "new 1"], vectors=new_neurons(found), path=tmp_path / "longer")
    for name in (GRAPH, "model.int8.onnx", "model.float16.onnx"):
        assert (longer.path / name).read_bytes() == (lowered / name).read_bytes()
    assert longer.manifest.forms == found.manifest.forms


def header(entries: dict[str, Any], body: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + body


DECLARED = {
    "a header of exabytes": struct.pack("<Q", 2**62) + b"{}",
    "a tensor of exabytes": header({"neuron": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 4]}}, b"1234"),
    "a size that overflows": header({"neuron": {"dtype": "F32", "shape": [2**63, 2], "data_offsets": [0, 0]}}),
    "an offset beyond the end": header({"neuron": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**40]}}, b"1234"),
    "eight bit floats": header({"neuron": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}, b"1"),
    "brain floats": header({"neuron": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}, b"12"),
    "a nested header": struct.pack("<Q", 200_000) + b"[" * 200_000,
}


@pytest.mark.parametrize("kind", DECLARED)
def test_vectors_that_promise_too_much_are_refused(copy: Path, kind: str) -> None:
    change_vectors(copy, DECLARED[kind])
    with pytest.raises(BundleError, match=r"vectors\.safetensors"):
        load_bundle(copy)


def wrong(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, np.ndarray]], object]:
    return lambda tensors: tensors.update({name: np.ascontiguousarray(change(tensors[name]))})


def with_value(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        other = array.copy()
        other.flat[3] = value
        return other

    return change


TENSORS: dict[str, tuple[Callable[[dict[str, np.ndarray]], object], str]] = {
    "nan": (wrong("tuning", with_value(np.nan)), "tuning holds values that are not finite"),
    "infinity": (wrong("f0_minimum", with_value(np.inf)), "f0_minimum holds values that are not finite"),
    "one row less": (wrong("neuron", lambda a: a[:-1]), r"neuron is float32 \(11, 2, 16\), expected float32 \(12"),
    "transposed": (wrong("stimulus_weight", lambda a: a.transpose(1, 0, 2)), "stimulus_weight is float32"),
    "one axis less": (wrong("unknown", lambda a: a[0]), r"unknown is float32 \(16,\)"),
    "double": (wrong("neuron", lambda a: a.astype(np.float64)), "neuron is float64 .* expected float32"),
    "single": (wrong("f0_range", lambda a: a.astype(np.float32)), "f0_range is float32 .* expected float64"),
    "whole numbers": (wrong("unknown", lambda a: a.astype(np.int32)), "unknown is int32"),
    "one id too many": (wrong("stimulus_id", lambda a: np.concatenate([a, a])), r"stimulus_id is float32 \(16"),
    "narrow tuning": (wrong("population_tuning", lambda a: a[:, 1:]), "population_tuning is float32"),
    "no usual level": (lambda tensors: tensors.pop("usual_f0"), "expected .*'usual_f0'"),
    "one missing": (lambda tensors: tensors.pop("unknown"), "expected .*'unknown'"),
    "one too many": (lambda tensors: tensors.update(extra=np.zeros(1)), "holds .*'extra'"),
}


@pytest.mark.parametrize("harm", TENSORS)
def test_vectors_that_are_wrong_on_purpose_are_refused_with_the_reason(copy: Path, harm: str) -> None:
    change, reason = TENSORS[harm]
    tensors = load_tensors((copy / VECTORS).read_bytes())
    change(tensors)
    change_vectors(copy, save_tensors(tensors))
    with pytest.raises(BundleError, match=reason):
        load_bundle(copy)


def test_what_is_not_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "nothing", tmp_path / "file"):
        with pytest.raises(BundleError, match="is not a directory"):
            load_bundle(path)


@pytest.mark.parametrize("name", FILES)
def test_pipes_devices_and_directories_are_not_read(copy: Path, name: str) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(BundleError, match="not a regular file"):
        load_bundle(copy)
    (copy / name).unlink()
    (copy / name).symlink_to("/dev/zero")
    with pytest.raises(BundleError, match="not a regular file"):
        load_bundle(copy)
    (copy / name).unlink()
    (copy / name).mkdir()
    with pytest.raises(BundleError, match="not a regular file"):
        load_bundle(copy)


def test_a_file_larger_than_any_bundles_is_not_read(copy: Path) -> None:
    # Sparse: it takes no room on the disk.
    os.truncate(copy / GRAPH, LARGEST_FILE + 1)
    with pytest.raises(BundleError, match=rf"has {LARGEST_FILE + 1} bytes, more than"):
        load_bundle(copy)


def test_other_files_beside_it_are_not_read(copy: Path, bundle: Bundle) -> None:
    (copy / "model.onnx.data").write_bytes(b"\xff" * 100)
    (copy / "notes").mkdir()
    assert load_bundle(copy).hash == bundle.hash


def test_neurons_come_in_the_order_asked(bundle: Bundle) -> None:
    found = bundle.neurons([NEURONS[7], NEURONS[2]], unknown="refuse")
    assert found.known.all()
    np.testing.assert_array_equal(found.usual_f0, bundle.vectors.usual_f0[[7, 2]])
    learned = found.vectors[:, :, :16]
    np.testing.assert_array_equal(learned, bundle.vectors.neuron[[7, 2]])
    width = bundle.vectors.tuning.shape[2]
    for task in range(2):
        np.testing.assert_array_equal(found.vectors[:, task, 16:].reshape(2, 10, width), bundle.vectors.tuning[[7, 2]])
    assert bundle.neurons([], unknown="refuse").vectors.shape[0] == 0


def test_unknown_neurons_are_refused_by_name(bundle: Bundle) -> None:
    strangers = [f"x{i}" for i in range(7)]
    with pytest.raises(BundleError, match=r"7 of 8 neurons are not in bundle .*: x0, x1, x2, x3, x4 \.\.\.; extend"):
        bundle.neurons([NEURONS[0], *strangers], unknown="refuse")


def test_unknown_neurons_are_marked_and_get_the_unknown_vector_and_the_mean_tuning(bundle: Bundle) -> None:
    found = bundle.neurons(["stranger", NEURONS[11]], unknown="mark")
    assert found.known.tolist() == [False, True]
    np.testing.assert_array_equal(found.vectors[0, :, :16], bundle.vectors.unknown)
    for task in range(2):
        np.testing.assert_array_equal(found.vectors[0, task, 16:], bundle.vectors.population_tuning.reshape(-1))
    assert found.f0_minimum[0] == found.usual_f0[0] == 0.0
    assert np.isnan(found.f0_range[0]).all()
    assert (found.f0_minimum[1], found.usual_f0[1]) == (1.0, bundle.vectors.usual_f0[-1])
    told, vectors = found.population, bundle.vectors
    assert not told.loading[0].any(), "a stranger takes no part in the population's level"
    assert told.noise[0] == told.usual_f0[0] == told.usual_activity[0] == 0.0
    np.testing.assert_array_equal(told.loading[1], vectors.loading[-1])
    assert (told.noise[1], told.usual_activity[1]) == (vectors.noise[-1], vectors.usual_activity[-1])
    # Row -1 is the last neuron's in numpy: the unknown must not be it.
    assert not np.array_equal(found.vectors[0], found.vectors[1])


def test_a_stimulus_is_its_features_and_its_id(bundle: Bundle) -> None:
    recipe, vectors = bundle.manifest.stimulus_recipe, bundle.vectors
    encoded = recipe.encode(category=GRATING, features={"direction_deg": 90.0})
    found = bundle.stimulus("dir=090")
    learned = np.einsum("f,ftd->td", encoded, vectors.stimulus_weight)
    np.testing.assert_allclose(found[:, :16], learned + vectors.stimulus_id[2], atol=1e-5)
    described = bundle.stimulus_from_features(category=GRATING, features={"direction_deg": 90.0})
    np.testing.assert_allclose(described[:, :16], learned, atol=1e-5)
    np.testing.assert_array_equal(found[0, 16:-8], described[0, 16:-8])
    assert found[0, -8:].tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    assert not described[0, -8:].any()


def test_unknown_stimuli_are_refused_by_name(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"stimulus 'movie' is not in bundle .*known: dir=000"):
        bundle.stimulus("movie")
    with pytest.raises(DataError, match="'movies' was not in training"):
        bundle.stimulus_from_features(category="movies", features={})


def test_probabilities_and_intervals_by_hand(bundle: Bundle, copy: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["calibration"] = {"temperature": 2.0, "bias": -1.0}
        manifest["interval"].update(floor=0.5, low=[-1.0] * 64, high=[2.0] * 64)

    change_manifest(copy, change)
    found = load_bundle(copy)
    assert found.probability(np.array([2.0], np.float32))[0] == pytest.approx(0.5)
    assert found.probability(np.array([-2e30, 2e30], np.float32)).tolist() == [0.0, 1.0]
    low, high = found.interval(np.full((1, 64), 0.25, np.float32), np.array([0.5], np.float32))
    assert (low == -0.75).all()
    assert (high == 2.25).all()


def assert_same_neurons(one: NeuronRows, other: NeuronRows) -> None:
    for ours, theirs in ((one, other), (one.population, other.population)):
        for name, value in vars(ours).items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(value, getattr(theirs, name), err_msg=name)


def new_neurons(bundle: Bundle, n: int = 2) -> Vectors:
    rng = np.random.default_rng(0)
    return vectors_of(
        bundle,
        neuron=rng.normal(size=(n, 2, 16)).astype(np.float32),
        tuning=rng.normal(size=(n, *bundle.vectors.tuning.shape[1:])).astype(np.float32),
        f0_minimum=np.array([3.0] * n),
        usual_f0=np.array([30.0] * n),
        noise=np.array([2.0] * n),
        usual_activity=np.array([0.25] * n),
        loading=np.tile([0.5, -0.5], (n, 1)),
        f0_range=np.tile([4.0, 5.0], (n, 1)),
        noise_range=np.tile([0.1, 0.2], (n, 1)),
        unknown=np.zeros((2, 16), np.float32),
    )


def test_extending_leaves_the_network_and_every_old_vector_as_they_were(bundle: Bundle, tmp_path: Path) -> None:
    added = new_neurons(bundle)
    longer = bundle.extended(ids=["new 0", "new 1"], vectors=added, path=tmp_path / "longer")
    assert longer.onnx_path.read_bytes() == bundle.onnx_path.read_bytes()
    assert longer.manifest.neuron_ids == (*NEURONS, "new 0", "new 1")
    assert longer.manifest.provenance["extended_from"] == bundle.hash
    assert longer.hash != bundle.hash
    old, new = bundle.neurons(NEURONS, unknown="refuse"), longer.neurons(NEURONS, unknown="refuse")
    assert_same_neurons(old, new)
    for name in bundle.manifest.stimuli:
        np.testing.assert_array_equal(bundle.stimulus(name), longer.stimulus(name))
    np.testing.assert_array_equal(longer.vectors.unknown, bundle.vectors.unknown)
    found = longer.neurons(["new 1"], unknown="refuse")
    np.testing.assert_array_equal(found.vectors[0, :, :16], added.neuron[1])
    assert (found.f0_minimum[0], found.usual_f0[0], *found.f0_range[0]) == (3.0, 30.0, 4.0, 5.0)
    told = found.population
    assert (told.usual_f0[0], told.noise[0], told.usual_activity[0], *told.loading[0]) == (30.0, 2.0, 0.25, 0.5, -0.5)


@pytest.mark.parametrize("ids", [[NEURONS[3], "new"], ["new", "new"]])
def test_a_neuron_is_added_once(bundle: Bundle, tmp_path: Path, ids: list[str]) -> None:
    with pytest.raises(BundleError, match="already in the bundle, or given twice"):
        bundle.extended(ids=ids, vectors=new_neurons(bundle), path=tmp_path / "longer")
    assert list(tmp_path.iterdir()) == []


def test_too_few_rows_for_the_new_neurons_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"neuron is float32 \(14, 2, 16\), expected float32 \(15"):
        bundle.extended(ids=["a", "b", "c"], vectors=new_neurons(bundle, 2), path=tmp_path / "longer")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", ["directory", "file", "bundle"])
def test_nothing_is_ever_overwritten(bundle: Bundle, tmp_path: Path, there: str) -> None:
    path = tmp_path / "there"
    if there == "directory":
        path.mkdir()
    elif there == "file":
        path.write_text("mine")
    else:
        shutil.copytree(bundle.path, path)
    before = {file: file.read_bytes() for file in sorted(tmp_path.rglob("*")) if file.is_file()}
    with pytest.raises(BundleError, match="exists; a bundle is never overwritten"):
        write_bundle(path, manifest=bundle.manifest, vectors=bundle.vectors, graph=bundle.graph)
    assert {file: file.read_bytes() for file in sorted(tmp_path.rglob("*")) if file.is_file()} == before


@pytest.mark.parametrize("harm", ["manifest", "vectors", "metrics"])
def test_a_bundle_that_would_be_refused_is_not_written(bundle: Bundle, tmp_path: Path, harm: str) -> None:
    manifest, vectors = bundle.manifest, bundle.vectors
    if harm == "manifest":
        manifest = manifest.replace(neuron_ids=manifest.neuron_ids[:-1])
    elif harm == "vectors":
        vectors = vectors_of(bundle, unknown=np.full((2, 16), np.nan, np.float32))
    else:
        manifest = manifest.replace(metrics={"auroc": float("nan")})
    with pytest.raises(BundleError):
        write_bundle(tmp_path / "made", manifest=manifest, vectors=vectors, graph=bundle.graph)
    assert list(tmp_path.iterdir()) == []


def test_a_cut_while_writing_leaves_nothing_behind(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", cut)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(tmp_path / "made", manifest=bundle.manifest, vectors=bundle.vectors, graph=bundle.graph)
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_can_be_read_by_others(bundle: Bundle, tmp_path: Path) -> None:
    made = write_bundle(tmp_path / "deep" / "made", manifest=bundle.manifest, vectors=bundle.vectors, graph=bundle.graph)
    assert made.path.stat().st_mode & 0o777 == 0o755
    assert made.hash == bundle.hash
