"""Fixtures that several test modules share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from tiny_bundle import write_tiny_bundle

# How long an example takes is the machine's affair: no test fails by the clock.
settings.register_profile("without deadlines", deadline=None)
settings.load_profile("without deadlines")

SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def tiny_bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verified random-weight bundle for twelve neurons and eight gratings."""
    path = tmp_path_factory.mktemp("bundle") / "tiny"
    write_tiny_bundle(path)
    return path


@pytest.fixture(scope="session")
def lowered_bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with both forms of lower precision."""
    path = tmp_path_factory.mktemp("bundle") / "lowered"
    write_tiny_bundle(path, forms=("int8", "float16"))
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real recordings beside the checkout; tests that need it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no ../shared/data beside the checkout")
    return SHARED_DATA


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = (
        sys.platform == "linux"
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)], capture_output=True, check=False
        ).returncode
    )
    if not mounted:
        pytest.skip("no small file system can be mounted here")
    yield path
    subprocess.run(["umount", str(path)], check=True, capture_output=True)
