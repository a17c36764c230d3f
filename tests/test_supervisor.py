"""The supervisor with real processes: small programs that keep the service's promises, or break them on purpose."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from quantformer_service.process import BusyPortError
from quantformer_service.settings import Settings
from quantformer_service.supervisor import check_ports

PATIENCE_S = 60.0

#: One program for every role; the environment variable ACT_<name> says how it behaves.
PROGRAM = """
    import os, time
    from quantformer.errors import BundleError
    from quantformer_service.process import announce, run_process
    def body(settings, stop):
        act = os.environ.get("ACT_{name}", "serve")
        if act == "refuse":
            raise BundleError("found no bundle, expected one")
        if act == "crash":
            raise ZeroDivisionError
        while act == "slow" and not os.path.exists("go"):
            time.sleep(0.01)
        announce(endpoints={{"{name}": "tcp://here"}})
        if act == "crash later":
            # Later than the service's start: a death before is another matter.
            while not os.path.exists("started"):
                time.sleep(0.01)
            time.sleep(0.05)
            os._exit(9)
        stop.wait()
        if act == "hang":
            time.sleep(1000)
    run_process("{name}", body)
"""

SUPERVISE = """
    import sys
    from quantformer.errors import QuantformerError
    from quantformer_service import logs
    from quantformer_service.settings import Settings
    from quantformer_service.supervisor import Program, Supervisor
    def ready(facts):
        for name, one in facts.items():
            print("ready", name, one["pid"], one["endpoints"][name], flush=True)
        open("started", "w").close()
    logs.configure(form="text", level="info", process="supervisor")
    programs = [Program(name=name, module="program_" + name) for name in ("engine", "gateway")]
    try:
        status = Supervisor(Settings.from_environment(), on_ready=ready, programs=programs).run()
    except QuantformerError as error:
        print("error:", error, file=sys.stderr)
        status = error.exit_code
    sys.exit(status)
"""


class Supervised:
    """A supervisor in a process of its own, with its two programs."""

    def __init__(self, folder: Path, **environment: str) -> None:
        for name in ("engine", "gateway"):
            (folder / f"program_{name}.py").write_text(textwrap.dedent(PROGRAM.format(name=name)))
        script = folder / "supervise.py"
        script.write_text(textwrap.dedent(SUPERVISE))
        names = [f"QUANTFORMER_{name}_PORT" for name in ("HTTP", "ZMQ", "PUB", "TCP")]
        ports = dict(zip(names, map(str, free(4)), strict=True))
        path = os.pathsep.join([str(folder), *sys.path])
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(script)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": path, **ports, **environment},
            )

    def ready(self) -> dict[str, psutil.Process]:
        """Wait for the lines of readiness; the programs' processes by name."""
        assert self.process.stdout is not None
        found = {}
        for _ in range(2):
            word, name, pid, _endpoint = self.process.stdout.readline().split()
            assert word == "ready"
            found[name] = psutil.Process(int(pid))
        return found

    def children(self, count: int) -> list[psutil.Process]:
        """Wait until this many children live."""
        me = psutil.Process(self.process.pid)
        return until(lambda: found if len(found := me.children(recursive=True)) == count else None)


T = TypeVar("T")


def until(question: Callable[[], T | None]) -> T:
    """Ask until the answer is not None."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if (answer := question()) is not None:
            return answer
        time.sleep(0.02)
    raise TimeoutError(f"waited {PATIENCE_S} s")


def free(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Supervised]]:
    """What a test starts is ended, whatever became of the test."""
    running: list[Supervised] = []
    yield running
    for one in running:
        one.process.kill()
        one.process.wait(PATIENCE_S)
        if one.process.stdout is not None:
            one.process.stdout.close()


def test_the_first_starts_alone_and_the_others_when_it_is_ready(tmp_path: Path, started: list[Supervised]) -> None:
    started.append(service := Supervised(tmp_path, ACT_engine="slow"))
    (engine,) = service.children(1)
    time.sleep(0.5)
    assert service.children(1) == [engine]
    (tmp_path / "go").touch()
    programs = service.ready()
    assert programs["engine"].pid == engine.pid
    assert len(service.children(2)) == 2


def test_a_signal_ends_a_service_of_which_only_the_first_has_started(tmp_path: Path, started: list[Supervised]) -> None:
    started.append(service := Supervised(tmp_path, ACT_engine="slow", QUANTFORMER_SHUTDOWN_S="0.5"))
    (engine,) = service.children(1)
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(PATIENCE_S) == 143
    assert not engine.is_running()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_everything_gracefully(
    tmp_path: Path, started: list[Supervised], number: signal.Signals, status: int
) -> None:
    started.append(service := Supervised(tmp_path))
    programs = service.ready()
    service.process.send_signal(number)
    assert service.process.wait(PATIENCE_S) == status
    assert not any(one.is_running() for one in programs.values())
    assert "killed" not in service.log.read_text()


def test_a_second_signal_ends_a_hanging_service_at_once(tmp_path: Path, started: list[Supervised]) -> None:
    started.append(service := Supervised(tmp_path, ACT_engine="hang", QUANTFORMER_SHUTDOWN_S="60"))
    programs = service.ready()
    service.process.send_signal(signal.SIGTERM)
    until(lambda: "ending gracefully" in service.log.read_text() or None)
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(50) == 143
    assert not any(one.is_running() for one in programs.values())
    assert "second signal" in service.log.read_text()


def test_what_hangs_is_killed_after_the_time_for_a_graceful_end(tmp_path: Path, started: list[Supervised]) -> None:
    started.append(service := Supervised(tmp_path, ACT_gateway="hang", QUANTFORMER_SHUTDOWN_S="0.5"))
    programs = service.ready()
    service.process.send_signal(signal.SIGINT)
    assert service.process.wait(PATIENCE_S) == 130
    assert not any(one.is_running() for one in programs.values())


def test_a_parents_death_ends_its_children(tmp_path: Path, started: list[Supervised]) -> None:
    started.append(service := Supervised(tmp_path))
    programs = service.ready()
    service.process.kill()
    service.process.wait(PATIENCE_S)
    gone, alive = psutil.wait_procs(list(programs.values()), timeout=PATIENCE_S)
    assert len(gone) == 2
    assert not alive


def test_a_parents_death_ends_even_a_child_that_hangs(tmp_path: Path, started: list[Supervised]) -> None:
    started.append(service := Supervised(tmp_path, ACT_engine="hang", QUANTFORMER_SHUTDOWN_S="0.3"))
    programs = service.ready()
    service.process.kill()
    service.process.wait(PATIENCE_S)
    assert not psutil.wait_procs(list(programs.values()), timeout=PATIENCE_S)[1]


@pytest.mark.parametrize("name", ["engine", "gateway"])
def test_what_died_is_restarted_and_the_other_stays(tmp_path: Path, started: list[Supervised], name: str) -> None:
    started.append(service := Supervised(tmp_path))
    programs = service.ready()
    victim, other = programs[name], programs["gateway" if name == "engine" else "engine"]
    victim.kill()
    until(lambda: service.log.read_text().count(f"{name} is ready") == 2 or None)
    pids = {one.pid for one in service.children(2)}
    assert other.pid in pids
    assert victim.pid not in pids


def test_repeated_quick_deaths_end_the_service_with_the_reason(tmp_path: Path, started: list[Supervised]) -> None:
    started.append(service := Supervised(tmp_path, ACT_gateway="crash later", QUANTFORMER_RESTART_LIMIT="2"))
    assert service.process.wait(PATIENCE_S) == 1
    log = service.log.read_text()
    assert "the gateway ended 3 times within 60 s, more than --restart-limit 2" in log
    assert log.count("restarting it") == 2


@pytest.mark.parametrize(("act", "status", "says"), [("refuse", 3, "found no bundle"), ("crash", 1, "its log says why")])
def test_a_failure_while_starting_is_not_repeated(
    tmp_path: Path, started: list[Supervised], act: str, status: int, says: str
) -> None:
    started.append(service := Supervised(tmp_path, ACT_engine=act))
    assert service.process.wait(PATIENCE_S) == status
    assert says in service.log.read_text()
    assert service.process.stdout is not None
    assert service.process.stdout.read() == ""


def test_a_busy_port_is_named_with_its_flag() -> None:
    http, zmq, pub = free(3)
    with socket.create_server(("127.0.0.1", 0)) as holder:
        busy = holder.getsockname()[1]
        with pytest.raises(BusyPortError, match=rf"port {busy} on 127.0.0.1 .* --tcp-port"):
            check_ports(Settings(http_port=http, zmq_port=zmq, pub_port=pub, tcp_port=busy))


def test_one_port_for_two_things_is_refused() -> None:
    with pytest.raises(BusyPortError, match=r"it is http_port already.*--pub-port"):
        check_ports(Settings(http_port=(ports := free(3))[0], zmq_port=ports[1], pub_port=ports[0], tcp_port=ports[2]))
