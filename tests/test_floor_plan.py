"""The floor plan of docs/architecture.md, where a linter cannot see: what is in memory, and what may be named at all."""

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import grimp
import pytest

#: What each package may import beyond the standard library and this distribution. What a package needs at its heart
#: must be in the extra that brings it: nothing here for the client and the command line beyond the light install.
OUTSIDE = {
    # The last two, lazily, where networks learn: on a CPU, by the extra for training; on a GPU torch's builds bring the other.
    "quantformer": {"numpy", "msgspec", "safetensors", "torch", "numba", "triton"},
    "quantformer_training": {
        "numpy", "msgspec", "torch", "lightning_fabric", "onnx", "onnxscript", "onnxruntime", "safetensors", "scipy",
        "sklearn", "threadpoolctl", "h5py", "matplotlib", "rich", "ray",
    },
    # The last, lazily, where there is a GPU: its extra brings it.
    "quantformer_service": {
        "numpy", "msgspec", "zmq", "httpx", "rich", "onnxruntime", "fastapi", "starlette", "uvicorn", "websockets",
        "pydantic", "safetensors", "psutil", "pynvml",
    },
    "quantformer_client": {"numpy", "msgspec", "zmq", "httpx"},
    # The last two, lazily, for `bench` and `doctor`: the extra of that name brings them.
    "quantformer_cli": {"numpy", "msgspec", "zmq", "httpx", "rich", "psutil", "websockets"},
}  # fmt: skip
#: Never in memory where nothing was asked for that needs them.
HEAVY = {"torch", "numba", "onnx", "onnxruntime", "fastapi", "uvicorn", "pydantic", "scipy", "sklearn", "h5py", "matplotlib"}


def loaded_by(statement: str) -> set[str]:
    """Names of the top-level packages in memory after ``statement`` in a fresh interpreter."""
    program = f"{statement}\nimport sys, json\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    names = json.loads(done.stdout.splitlines()[-1])
    return set(names)


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*OUTSIDE, include_external_packages=True, cache_dir=None)


@pytest.mark.parametrize("package", OUTSIDE)
def test_every_package_carries_its_types(package: str) -> None:
    assert (files(package) / "py.typed").is_file()
    assert (files(package) / "__init__.py").is_file()


@pytest.mark.parametrize("package", OUTSIDE)
def test_a_package_names_nothing_outside_its_list(graph: grimp.ImportGraph, package: str) -> None:
    modules = {package, *graph.find_descendants(package)}
    named = {name.partition(".")[0] for module in modules for name in graph.find_modules_directly_imported_by(module)}
    assert named - set(OUTSIDE) - sys.stdlib_module_names <= OUTSIDE[package]


def test_no_module_of_the_service_brings_torch() -> None:
    """Every module, imported together in one process: a parent ``__init__`` is not in the linter's graph."""
    loaded = loaded_by(
        "import importlib, pkgutil, quantformer_service as room\n"
        "names = [found.name for found in pkgutil.walk_packages(room.__path__, 'quantformer_service.')]\n"
        "assert names, 'no modules found'\n"
        "for name in names:\n"
        "    importlib.import_module(name)"
    )
    assert "quantformer_service" in loaded
    assert not loaded & {"torch", "onnx", "scipy", "sklearn", "h5py", "matplotlib", "quantformer_training"}


def test_a_module_that_does_bring_torch_is_seen() -> None:
    """The check above can fail: the network's own modules do what the service must not."""
    assert "torch" in loaded_by("import quantformer.layers")


@pytest.mark.parametrize("package", ["quantformer", "quantformer_training", "quantformer_service", "quantformer_cli.main"])
def test_importing_a_package_is_light(package: str) -> None:
    assert not loaded_by(f"import {package}") & HEAVY


def test_the_client_brings_its_four_packages_and_no_other() -> None:
    """Whole client, every module: nothing in memory that importing numpy, pyzmq, httpx and msgspec does not bring."""
    four = loaded_by("import numpy, zmq, httpx, msgspec, zmq.asyncio")
    whole = loaded_by(
        "import importlib, pkgutil, quantformer_client as room\n"
        "for found in pkgutil.walk_packages(room.__path__, 'quantformer_client.'):\n"
        "    importlib.import_module(found.name)"
    )
    assert "quantformer_client" in whole
    assert whole - four - sys.stdlib_module_names <= {"quantformer_client"}


@pytest.mark.parametrize("first", ["quantformer_training.export", "quantformer_service.inference"])
def test_onnxruntime_phones_nobody(tiny_bundle_path: Path, tmp_path: Path, first: str) -> None:
    """Its telemetry would leave an identifier in the home directory as soon as it is imported."""
    environment = {name: value for name, value in os.environ.items() if name not in {"CI", "ORT_DISABLE_TELEMETRY"}}
    program = (
        f"import {first}, onnxruntime\n"
        f"onnxruntime.InferenceSession({str(tiny_bundle_path / 'model.onnx')!r}, providers=['CPUExecutionProvider'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False,
        env={**environment, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
