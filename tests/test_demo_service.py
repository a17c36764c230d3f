"""The demo's service: ready when entered, gone when left, and gone with the program that started it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from running_service import clean_environment, until

from quantformer.errors import QuantformerError
from quantformer_cli.demo_service import Ports, Service
from quantformer_client import Rest

PROGRAM = """
import sys, time
from pathlib import Path
from quantformer_cli.demo_service import Service
with Service(Path(sys.argv[1]), log=Path(sys.argv[2])) as service:
    print("ready", flush=True)
    time.sleep(300)
"""


def test_ports_are_four_different_ones() -> None:
    flags = Ports.free().flags()
    assert flags[::2] == ["--http-port", "--zmq-port", "--pub-port", "--tcp-port"]
    assert len(set(flags[1::2])) == 4


def test_inside_it_is_ready_and_afterwards_it_is_gone(tiny_bundle_path: Path, tmp_path: Path) -> None:
    others = psutil.Process().children(recursive=True)
    with Service(tiny_bundle_path, log=tmp_path / "service.log") as service:
        children = set(psutil.Process().children(recursive=True)).difference(others)
        with Rest(port=service.ports.http) as rest:
            assert rest.ready()["ready"]
    assert service.status == 130
    assert len(children) >= 3
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def test_a_service_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(QuantformerError, match=r"status 3 before it was ready: .*is not a directory"):
        Service(tmp_path / "nothing", log=tmp_path / "service.log").__enter__()


def test_it_ends_with_a_program_that_is_killed(tiny_bundle_path: Path, tmp_path: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tiny_bundle_path), str(tmp_path / "service.log")],
        stdout=subprocess.PIPE,
        env=clean_environment(),
    )
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
        children = psutil.Process(program.pid).children(recursive=True)
        assert len(children) >= 3
        program.kill()
        program.wait()
        until(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children))
    finally:
        program.kill()
        program.communicate()
