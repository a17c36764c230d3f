"""What is in the wheel, and what a light installation brings."""

import json
import subprocess
import sys
import tomllib
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"quantformer", "quantformer_training", "quantformer_service", "quantformer_client", "quantformer_cli"}
ASKED = {"numpy", "pyzmq", "httpx", "msgspec", "rich"}
#: What those five need in their turn, on any platform.
NEEDED = {
    "anyio", "certifi", "h11", "httpcore", "idna", "typing-extensions",  # httpx
    "markdown-it-py", "mdurl", "pygments",  # rich
}  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the backend that is installed here."""
    folder = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)])
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def light(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment in which nothing but the wheel was asked for."""
    folder = tmp_path_factory.mktemp("light") / "environment"
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    run([str(python), "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt"), str(wheel)])
    return python


def run(words: list[str]) -> str:
    """Run to the end, away from the source tree; its standard output."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, cwd=Path(words[0]).parent)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_wheel_holds_every_module_of_the_five_packages_and_nothing_else(wheel: Path) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert {name.partition("/")[0] for name in names} == PACKAGES
    for room in ("model", "training", "service", "clients/python", "clients/cli"):
        sources = {path.relative_to(ROOT / room).as_posix() for path in (ROOT / room).rglob("*.py")}
        assert sources <= set(names)
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    strangers = (".npz", ".h5", ".nwb", ".pyc")
    assert not [name for name in names if Path(name).name.startswith(("test_", "conftest")) or name.endswith(strangers)]


def test_the_wheel_asks_for_the_light_client_only(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (found,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = message_from_bytes(archive.read(found))
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    assert {requirement.name for requirement in requirements if requirement.marker is None} == ASKED
    assert set(metadata.get_all("Provides-Extra", [])) == {"serve", "gpu", "train", "compare", "ray", "bench", "dev"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in archive.namelist())


def test_every_requirement_is_pinned() -> None:
    """Everything that is asked for directly has a line in the constraints."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    asked = [Requirement(line) for lines in (project["dependencies"], *extras) for line in lines]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(pin.name): pin.specifier for pin in map(Requirement, (line for line in lines if line[0] != "#"))}
    for requirement in asked:
        pinned = pins[canonicalize_name(requirement.name)]
        (version,) = [clause.version for clause in pinned if clause.operator == "=="]
        assert requirement.specifier.contains(version), f"{requirement} does not admit its own pin {version}"
    assert str(pins["torch"]) == "==2.13.0"


@pytest.mark.slow
def test_a_light_installation_brings_five_packages_and_what_they_need(light: Path) -> None:
    listed = json.loads(run([str(light), "-m", "pip", "list", "--format", "json"]))
    installed = {str(canonicalize_name(entry["name"])) for entry in listed} - {"pip", "setuptools", "wheel"}
    assert ASKED | {"quantformer"} <= installed
    assert installed <= ASKED | NEEDED | {"quantformer"}


@pytest.mark.slow
def test_the_light_installation_works(light: Path) -> None:
    command = light.with_name("quantformer")
    assert run([str(command), "--version"]).split() == ["quantformer", "0.1.0"]
    assert "serve" in run([str(command), "--help"])
    run([str(light), "-c", "import quantformer_client; from quantformer_client import *"])


@pytest.mark.slow
def test_a_verb_that_needs_more_names_the_extra(light: Path) -> None:
    done = subprocess.run(
        [light.with_name("quantformer"), "serve", "--bundle", "none"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 4
    assert "quantformer[serve]" in done.stderr
    assert "Traceback" not in done.stderr
