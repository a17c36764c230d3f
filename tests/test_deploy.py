"""The image without a container engine: its files agree with each other and with the settings, and its steps work."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from quantformer_service.settings import Settings, table

ROOT = Path(__file__).resolve().parents[1]
INSTALL = ROOT / "deploy/install.sh"


@pytest.fixture(scope="module")
def rehearse() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rehearse", ROOT / "deploy/rehearse.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rehearse"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return loaded


@pytest.mark.slow
def test_the_images_own_steps_make_a_service_that_predicts(tiny_bundle_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "deploy/rehearse.py", "--bundle", tiny_bundle_path],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    steps = [line.partition(" ")[0] for line in done.stdout.splitlines()]
    assert [name for name in steps if name in {"install", "start", "health", "ask", "stop"}] == [
        "install", "start", "health", "ask", "stop",
    ]  # fmt: skip
    assert done.stdout.endswith("the image's steps work\n")


def test_the_dockerfile_agrees_with_the_settings(rehearse: ModuleType) -> None:
    image = rehearse.read_dockerfile()
    defaults = Settings()
    assert image.ports == (defaults.http_port, defaults.zmq_port, defaults.pub_port, defaults.tcp_port)
    rows = {row.environment: row for row in table()}
    for name, value in image.environment.items():
        if name.startswith("QUANTFORMER_"):
            rows[name].read(value, source=name)
    assert image.user != 0
    assert image.command == ("quantformer", "serve")


def test_every_copied_file_exists_and_is_let_through(rehearse: ModuleType) -> None:
    let_through = {
        line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"
    }
    copied = {source for source, _ in rehearse.read_dockerfile().copied}
    assert copied == let_through
    assert all((ROOT / source).exists() for source in copied)


@pytest.mark.parametrize(
    ("was", "becomes", "message"),
    [
        ("RUN deploy/install.sh", "RUN pip install", "expected one deploy/install.sh"),
        ("AS builder", "AS builder\nFROM scratch", "expected a builder and an image"),
    ],
)
def test_a_dockerfile_of_another_form_is_refused(
    rehearse: ModuleType, tmp_path: Path, was: str, becomes: str, message: str
) -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert was in text
    (tmp_path / "Dockerfile").write_text(text.replace(was, becomes), encoding="utf-8")
    with pytest.raises(rehearse.RehearsalError, match=message):
        rehearse.read_dockerfile(tmp_path / "Dockerfile")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["tpu", "new"], "expected cpu or gpu"), (["cpu", "."], "exists"), ([], "expected cpu or gpu")],
)
def test_the_installer_refuses(tmp_path: Path, arguments: list[str], message: str) -> None:
    arguments = [*arguments[:1], *(str(tmp_path / name) for name in arguments[1:])]
    done = subprocess.run([INSTALL, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "new").exists()


def test_compose_publishes_on_loopback_and_mounts_the_bundle_read_only(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for port in service["ports"]:
            assert port.startswith(("${QUANTFORMER_PUBLISH:-127.0.0.1}:", "127.0.0.1:")), f"{name} publishes {port}"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
    for name in ("quantformer", "quantformer-cpu"):
        (bundle,) = compose["services"][name]["volumes"]
        assert bundle["target"] == "/bundle"
        assert bundle["read_only"] is True


def test_compose_serves_every_port_of_the_image(compose: dict[str, Any], rehearse: ModuleType) -> None:
    for name in ("quantformer", "quantformer-cpu"):
        published = [tuple(map(int, port.split(":")[-2:])) for port in compose["services"][name]["ports"]]
        assert published == [(port, port) for port in rehearse.read_dockerfile().ports]


def test_compose_gives_the_gpu_to_the_gpu_image_only(compose: dict[str, Any]) -> None:
    services = compose["services"]
    (device,) = services["quantformer"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert services["quantformer"]["build"]["args"] == {"VARIANT": "gpu"}
    assert services["quantformer-cpu"]["build"]["args"] == {"VARIANT": "cpu"}
    assert "deploy" not in services["quantformer-cpu"]
    assert "profiles" not in services["quantformer"]


def test_prometheus_reads_the_file_that_is_mounted(compose: dict[str, Any]) -> None:
    mounted = compose["services"]["prometheus"]["volumes"][0].split(":")
    configuration = yaml.safe_load((ROOT / mounted[0]).read_text(encoding="utf-8"))
    assert f"--config.file={mounted[1]}" in compose["services"]["prometheus"]["command"]
    jobs = {job["job_name"]: job for job in configuration["scrape_configs"]}
    assert set(jobs) == {"prometheus", "quantformer"}
    (target,) = jobs["quantformer"]["static_configs"]
    (host, port) = target["targets"][0].split(":")
    aliases = compose["services"]["quantformer"]["networks"]["default"]["aliases"]
    assert host in aliases
    assert int(port) == Settings().http_port
    # Where compose puts the secret, which comes from a file: the root file system is read-only.
    (secret,) = compose["services"]["prometheus"]["secrets"]
    assert jobs["quantformer"]["authorization"] == {"credentials_file": f"/run/secrets/{secret}"}
    assert set(compose["secrets"][secret]) == {"file"}
