"""Tests of the bundle on disk: whole and unaltered, or refused with the reason."""

from __future__ import annotations

import hashlib
import json
import shutil
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

from quantformer.bundle import GRAPH, MANIFEST, VECTORS, load_bundle, write_bundle
from quantformer.errors import BundleError, DataError
from quantformer.manifest import SCHEMA


@pytest.fixture
def copy(tiny_bundle_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle_path, tmp_path / "copy"))


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """With its checksum brought up to date, so that only the content can be at fault."""
    document = json.loads((bundle / MANIFEST).read_bytes())
    change(document)
    document["checksum"] = ""
    bare = json.dumps(document)
    checksum = hashlib.sha256(bare.encode()).hexdigest()
    (bundle / MANIFEST).write_text(bare.replace('"checksum": ""', f'"checksum": "{checksum}"', 1))


def edit_vectors(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """With the manifest's hash brought up to date, so that only the content can be at fault."""
    tensors = load_tensors((bundle / VECTORS).read_bytes())
    change(tensors)
    content = save_tensors(tensors)
    (bundle / VECTORS).write_bytes(content)
    edit_manifest(bundle, lambda document: document["files"].update({VECTORS: hashlib.sha256(content).hexdigest()}))


def test_the_hash_is_that_of_the_manifest(tiny_bundle_path: Path) -> None:
    bundle = load_bundle(tiny_bundle_path)
    assert bundle.hash == hashlib.sha256((tiny_bundle_path / MANIFEST).read_bytes()).hexdigest()
    assert sorted(file.name for file in tiny_bundle_path.iterdir()) == sorted([MANIFEST, GRAPH, VECTORS])


@pytest.mark.parametrize("name", [MANIFEST, GRAPH, VECTORS])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=name):
        load_bundle(copy)


@pytest.mark.parametrize("name", [GRAPH, VECTORS])
def test_a_truncated_file_is_refused(copy: Path, name: str) -> None:
    (copy / name).write_bytes((copy / name).read_bytes()[:-1])
    with pytest.raises(BundleError, match="altered or truncated"):
        load_bundle(copy)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data(), name=st.sampled_from([MANIFEST, GRAPH, VECTORS]))
def test_no_flipped_bit_goes_unnoticed(tiny_bundle_path: Path, copy: Path, data: st.DataObject, name: str) -> None:
    content = bytearray((tiny_bundle_path / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError):
        load_bundle(copy)
    (copy / name).write_bytes((tiny_bundle_path / name).read_bytes())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.update(schema=SCHEMA + 1), "update quantformer"),
        (lambda d: d.update(format="another"), "another program"),
        (lambda d: d.update(surprise=1), "surprise"),
        (lambda d: d.pop("calibration"), "calibration"),
        (lambda d: d.update(d="sixteen"), "d"),
        (lambda d: d["interval"].update(low=[0.0]), "interval"),
        (lambda d: d["files"].update(extra="00"), "lists"),
        (lambda d: d["neuron_ids"].__setitem__(1, d["neuron_ids"][0]), "twice"),
        (lambda d: d["neuron_ids"].append("one-more"), "expected"),
        (lambda d: d["signal"].update(baseline_frames=0), "baseline_frames"),
        (lambda d: d["stimuli"]["dir=000"].update(id_row=10**9), "id_row"),
        (lambda d: d["calibration"].update(temperature=0), "temperature"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(copy: Path, change: Callable[[dict[str, Any]], None], reason: str) -> None:
    edit_manifest(copy, change)
    with pytest.raises(BundleError, match=reason):
        load_bundle(copy)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"[" * 100_000, b"\xff\xfe", b'{"format": 3}'])
def test_a_foreign_manifest_is_refused(copy: Path, text: bytes) -> None:
    (copy / MANIFEST).write_bytes(text)
    with pytest.raises(BundleError, match="manifest"):
        load_bundle(copy)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop("unknown"), "holds"),
        (lambda t: t.update(more=np.zeros(1, np.float32)), "holds"),
        (lambda t: t.update(neuron=t["neuron"][:-1].copy()), "neuron is"),
        (lambda t: t.update(tuning=t["tuning"].astype(np.float64)), "tuning is"),
        (lambda t: t["f0_minimum"].__setitem__(0, np.nan), "not finite"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(copy: Path, change: Callable[[dict[str, Any]], None], reason: str) -> None:
    edit_vectors(copy, change)
    with pytest.raises(BundleError, match=reason):
        load_bundle(copy)


def test_a_vectors_file_that_declares_more_than_it_holds_is_refused(copy: Path) -> None:
    header = json.dumps({"neuron": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    content = len(header).to_bytes(8, "little") + header
    (copy / VECTORS).write_bytes(content)
    edit_manifest(copy, lambda document: document["files"].update({VECTORS: hashlib.sha256(content).hexdigest()}))
    with pytest.raises(BundleError, match="not a safetensors file"):
        load_bundle(copy)


def test_a_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "nowhere"):
        with pytest.raises(BundleError, match="not a directory"):
            load_bundle(path)


def test_an_existing_path_is_never_overwritten(tiny_bundle_path: Path, tmp_path: Path) -> None:
    bundle = load_bundle(tiny_bundle_path)
    (tmp_path / "taken").mkdir()
    with pytest.raises(BundleError, match="never overwritten"):
        write_bundle(tmp_path / "taken", manifest=bundle.manifest, vectors=bundle.vectors, graph=bundle.graph)
    assert list((tmp_path / "taken").iterdir()) == []


def test_a_failed_write_leaves_nothing_behind(tiny_bundle_path: Path, tmp_path: Path) -> None:
    bundle = load_bundle(tiny_bundle_path)
    wrong = bundle.manifest.replace(neuron_ids=(*NEURONS, "one-more"))
    with pytest.raises(BundleError, match="expected"):
        write_bundle(tmp_path / "new", manifest=wrong, vectors=bundle.vectors, graph=bundle.graph)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_neuron_is_refused_or_marked_and_never_given_anothers_row(tiny_bundle_path: Path) -> None:
    bundle = load_bundle(tiny_bundle_path)
    with pytest.raises(BundleError, match="stranger"):
        bundle.neurons([NEURONS[0], "stranger"], unknown="refuse")
    rows = bundle.neurons(["stranger", NEURONS[-1], NEURONS[0]], unknown="mark")
    assert rows.known.tolist() == [False, True, True]
    d, vectors = bundle.manifest.d, bundle.vectors
    np.testing.assert_array_equal(rows.vectors[0, :, :d], vectors.unknown)
    np.testing.assert_array_equal(rows.vectors[0, 0, d:], vectors.population_tuning.ravel())
    np.testing.assert_array_equal(rows.vectors[1, :, :d], vectors.neuron[-1])
    np.testing.assert_array_equal(rows.vectors[2, 1, d:], vectors.tuning[0].ravel())
    assert rows.f0_minimum[0] == 0.0
    assert np.isnan(rows.f0_range[0]).all()


def test_a_named_stimulus_is_its_features_and_its_id(tiny_bundle_path: Path) -> None:
    bundle = load_bundle(tiny_bundle_path)
    d, row = bundle.manifest.d, bundle.manifest.stimuli["dir=090"].id_row
    named = bundle.stimulus("dir=090")
    described = bundle.stimulus_from_features(category=GRATING, features={"direction_deg": 90.0})
    np.testing.assert_allclose(named[:, :d] - described[:, :d], bundle.vectors.stimulus_id[row], atol=1e-6)
    assert named[0, d:].sum() - described[0, d:].sum() == pytest.approx(1.0)
    with pytest.raises(BundleError, match="dir=001"):
        bundle.stimulus("dir=001")
    with pytest.raises(DataError, match="not in training"):
        bundle.stimulus_from_features(category="movies", features={})


def test_probabilities_and_intervals(tiny_bundle_path: Path) -> None:
    bundle = load_bundle(tiny_bundle_path)
    logit = np.array([-800.0, -1.0, 0.0, 2.0, 800.0], np.float32)
    np.testing.assert_allclose(bundle.probability(logit), [0.0, 0.26894, 0.5, 0.88080, 1.0], atol=1e-5)
    low, high = bundle.interval(np.zeros((2, 64), np.float32), np.array([0.0, 0.1], np.float32))
    np.testing.assert_allclose(high[0], 0.02 * 1.3, rtol=1e-5)
    np.testing.assert_allclose(low[1], -0.12 * 1.3, rtol=1e-5)
