"""`quantformer doctor`: its checks on this machine, its verdict on made-up runs, and the loop with a simulated rig."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import simulated_rig
from hypothesis import given
from hypothesis import strategies as st
from running_service import PATIENCE_S, RunningService, clean_environment, command, free_ports

from quantformer_cli.benchmark.gpu import summarise as gpu_range
from quantformer_cli.diagnosis import system
from quantformer_cli.diagnosis.loop import PARTS, WORDS, Clock, on_rig
from quantformer_cli.diagnosis.rate import Timed, candidates, check_provider, check_rate, summarise
from quantformer_cli.diagnosis.rig import LONGEST_LINE, Line, Rig, RigError, await_rig, parse
from quantformer_service.gpu import GpuState
from quantformer_service.settings import Settings

STATES = {"ok", "advice", "bad"}


# --- the machine ------------------------------------------------------------------------------------------------------


def test_every_check_of_the_machine_says_what_it_found_and_cures_what_is_not_well(tmp_path: Path) -> None:
    checks = [
        system.check_cores(),
        system.check_load(),
        system.check_governor(),
        system.check_clock(),
        system.check_wake_up(rate_hz=30.0),
        system.check_priority(),
        system.check_idle("granted: no sleep takes over 2 us to leave"),
        system.check_idle("refused: /dev/cpu_dma_latency: Permission denied; run as root"),
        system.check_idle("refused: no idle driver is at work here, so there are no states to choose from"),
        system.check_idle("not asked"),
        system.check_memory(neurons=241, rate_hz=30.0, history_s=10.0),
        system.check_disk(tmp_path, bytes_per_s=1e5),
        system.check_gpu("cpu"),
    ]
    for check in checks:
        assert check.state in STATES
        assert check.found
        assert bool(check.cure) is (check.state != "ok")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_do_is_bad(tmp_path: Path) -> None:
    assert system.check_memory(neurons=10**9, rate_hz=30.0, history_s=10.0).state == "bad"
    assert system.check_disk(tmp_path, bytes_per_s=1e15).state == "bad"
    nowhere = system.check_disk(tmp_path / "nowhere", bytes_per_s=1.0)
    assert nowhere.state == "bad"
    assert "nowhere" in nowhere.found


def test_a_taken_port_is_named_with_its_flag() -> None:
    with free_ports(4) as ports:
        http, zmq, pub, tcp = ports
    settings = Settings(http_port=http, zmq_port=zmq, pub_port=pub, tcp_port=tcp)
    assert [check.state for check in system.check_ports(settings)] == ["ok"]
    with socket.create_server(("127.0.0.1", pub)):
        (check,) = system.check_ports(settings)
    assert check.state == "bad"
    assert str(pub) in check.name
    assert "--pub-port" in check.cure


def test_sleeps_are_measured_against_absolute_moments() -> None:
    late = system.wake_up_ns()
    assert len(late) == 300
    assert (late >= 0).all()


def test_a_gpu_is_told_as_ranges() -> None:
    def state(clock: int, throttled: tuple[str, ...]) -> GpuState:
        return GpuState(
            name="card", clock_mhz=clock, clock_max_mhz=2000, memory_clock_mhz=None, temperature_c=40, power_w=None,
            memory_used_bytes=2**30, memory_total_bytes=2**31, throttled=throttled,
        )  # fmt: skip

    found = gpu_range([state(300, ()), state(1900, ("power cap",))])
    assert found is not None
    assert (found.clock_mhz, found.power_w, found.memory_mib) == ((300, 1900), None, (1024.0, 1024.0))
    assert found.throttled == ["power cap"]
    assert "300 to 1900 of 2000 MHz" in found.words
    assert "power cap" in found.words
    assert gpu_range([]) is None


# --- the frame rate ---------------------------------------------------------------------------------------------------


def timed(threads: int, p95: float, *, slowest: float | None = None) -> Timed:
    return Timed(threads=threads, p50=p95 / 2, p95=p95, slowest=p95 if slowest is None else slowest, runs=60)


@pytest.mark.parametrize(
    ("runs", "threads", "state", "says"),
    [
        ([timed(1, 10.0), timed(2, 9.9)], 1, "ok", ""),
        ([timed(1, 10.0), timed(2, 6.0)], 1, "advice", "--threads 2"),
        ([timed(1, 10.0), timed(2, 6.0)], 0, "ok", ""),
        ([timed(1, 10.0, slowest=40.0)], 1, "advice", "slowest"),
        ([timed(1, 62.0)], 1, "bad", "one frame in 2 would be answered"),
        ([timed(1, 90.0), timed(2, 62.0)], 1, "bad", "set --threads 2"),
    ],
)
def test_the_verdict_follows_from_the_runs(runs: list[Timed], threads: int, state: str, says: str) -> None:
    check = check_rate(runs, neurons=241, stimuli=1, rate_hz=30.0, threads=threads)
    assert check.state == state
    assert says in check.cure
    assert "33.3 ms" in check.found


def test_how_many_neurons_would_hold_is_said() -> None:
    check = check_rate([timed(1, 62.4)], neurons=1000, stimuli=1, rate_hz=30.0, threads=1)
    # 33.33 ms less 2.5 ms of margin is 49.4 % of 62.4 ms.
    assert "about 494 neurons" in check.cure.replace("ask about", "about")


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=80))
def test_runs_are_summed_up_in_ms(took_ns: list[int]) -> None:
    found = summarise(3, np.array(took_ns))
    assert (found.threads, found.runs) == (3, len(took_ns))
    assert found.p50 <= found.p95 <= found.slowest == max(took_ns) / 1e6


def test_threads_and_providers() -> None:
    assert candidates("cuda") == [1]
    assert candidates("cpu")[0] == 1
    assert check_provider("cpu", "auto").state == "ok"
    assert check_provider("cpu", "cuda").state == "bad"
    assert check_provider("cuda", "cuda").state == "ok"


def test_the_command_judges_and_says_so_in_its_status(tiny_bundle_path: Path, tmp_path: Path) -> None:
    with free_ports(4) as ports:
        flags = [
            part
            for name, port in zip(("http", "zmq", "pub", "tcp"), ports, strict=True)
            for part in (f"--{name}-port", str(port))
        ]
    asked = ["--neurons", "12", "--rate", "30", "--provider", "cpu", *flags]
    out = tmp_path / "doctor.json"
    done = subprocess.run(
        [sys.executable, "-m", "quantformer_cli.main", "doctor", "--bundle", str(tiny_bundle_path), *asked, "--json", str(out)],
        capture_output=True, text=True, cwd=tmp_path, env=clean_environment(), timeout=4 * PATIENCE_S, check=False,
    )  # fmt: skip
    found = json.loads(out.read_text())
    assert done.returncode == (0 if found["holds"] else 1), done.stderr
    assert found["holds"] is all(check["state"] != "bad" for check in found["checks"])
    names = [check["name"] for check in found["checks"]]
    assert {"cores", "wake-up", "memory", "disk", "ports", "GPU", "provider", "inference"} <= set(names)
    assert ("does NOT hold" in done.stdout) is not found["holds"]
    assert "12 neurons x 1" in done.stdout


def test_a_rate_that_nothing_holds_is_status_1(tiny_bundle_path: Path) -> None:
    """A frame a millisecond is less than what is kept for everything but inference."""
    done = command(
        "doctor", "--bundle", str(tiny_bundle_path), "--neurons", "12", "--rate", "1000", "--provider", "cpu"
    )
    assert done.returncode == 1
    assert "does NOT hold" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["--bundle", ".", "--neurons", "0"], ["--bundle", ".", "--rate", "0"]])
def test_bad_usage_is_status_2(arguments: list[str]) -> None:
    done = command("doctor", *arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


# --- lines from the rig -----------------------------------------------------------------------------------------------


def test_lines_are_read() -> None:
    assert parse(b"LIGHT 3 12.5\r") == Line(word="LIGHT", k=3, number=0, times_s=(12.5,))
    assert parse(b"FRAME 3 1234 1.0 1.5") == Line(word="FRAME", k=3, number=1234, times_s=(1.0, 1.5))
    with pytest.raises(RigError, match="no laser"):
        parse(b"ERROR no laser")


@pytest.mark.parametrize(
    "wrong",
    [b"", b"LIGHT", b"LIGHT 1", b"LIGHT 1 x", b"LIGHT 1 nan", b"LIGHT -1 1.0", b"LIGHT 1 2 3", b"FRAME 1 2 3", b"X 1 2", b"\xff"],
)  # fmt: skip
def test_other_lines_are_refused_with_what_is_expected(wrong: bytes) -> None:
    with pytest.raises(RigError, match="expected CLOCK k t"):
        parse(wrong)


@given(st.binary(max_size=300))
def test_no_line_raises_anything_else(data: bytes) -> None:
    with suppress(RigError):
        parse(data)


@contextmanager
def connected() -> Iterator[tuple[socket.socket, Rig, list[Line], threading.Event]]:
    heard: list[Line] = []
    came = threading.Event()

    def hear(line: Line, now_ns: int) -> None:
        heard.append(line)
        came.set()

    ours, theirs = socket.create_server(("127.0.0.1", 0)), socket.socket()
    with ours, theirs:
        theirs.connect(ours.getsockname())
        rig = Rig(ours.accept()[0], hear)
        try:
            yield theirs, rig, heard, came
        finally:
            rig.close()


def test_lines_arrive_whole_however_they_are_cut() -> None:
    with connected() as (theirs, rig, heard, came):
        for part in (b"LIG", b"HT 1 2.", b"5\nPUL"):
            theirs.sendall(part)
        assert came.wait(PATIENCE_S)
        came.clear()
        theirs.sendall(b"SE 1 3.5\n\n")
        assert came.wait(PATIENCE_S)
        assert [(line.word, line.times_s) for line in heard] == [("LIGHT", (2.5,)), ("PULSE", (3.5,))]
        rig.say("FLASH 2")
        assert theirs.recv(100) == b"FLASH 2\n"
        assert rig.failure is None


@pytest.mark.parametrize(
    ("data", "says"), [
        (b"x" * (LONGEST_LINE + 1), "more than"),
        (b"LIGHT 1\n", "expected"),
        (b"ERROR shutter\n", "shutter"),
        (b"", "closed"),
    ],
)  # fmt: skip
def test_what_the_rig_does_wrong_ends_it_with_the_reason(data: bytes, says: str) -> None:
    with connected() as (theirs, rig, _, _):
        theirs.sendall(data)
        if not data:
            theirs.shutdown(socket.SHUT_WR)
        rig._thread.join(PATIENCE_S)
        assert rig.failure is not None
        assert says in str(rig.failure)


def test_a_moment_of_our_clock_on_the_rigs() -> None:
    before = Clock(ours_ns=0, rig_s=100.0, uncertainty_s=0.0)
    after = Clock(ours_ns=10_000_000_000, rig_s=110.01, uncertainty_s=0.0)
    assert on_rig(5_000_000_000, before=before, after=after) == pytest.approx(105.005)
    assert on_rig(0, before=before, after=before) == 100.0


# --- the loop ---------------------------------------------------------------------------------------------------------


def test_from_light_to_pulse_on_a_simulated_rig(tiny_bundle_path: Path, tmp_path: Path) -> None:
    """Every boundary that the rig knows comes out as the rig wrote it down, and the parts add up."""
    log, out = tmp_path / "rig.json", tmp_path / "loop.json"
    with free_ports(1) as (loop_port,):
        pass
    with RunningService(tiny_bundle_path, folder=tmp_path / "service") as service:
        rig = subprocess.Popen(
            [sys.executable, simulated_rig.__file__, str(loop_port), str(service.zmq), str(log)],
            env=clean_environment(),
        )
        try:
            ports = ["--http-port", str(service.http), "--zmq-port", str(service.zmq), "--pub-port", str(service.pub)]
            done = subprocess.run(
                [sys.executable, "-m", "quantformer_cli.main", "doctor", "--loop", str(loop_port), "--flashes", "4", *ports,
                 "--json", str(out)],
                capture_output=True, text=True, cwd=tmp_path, env=clean_environment(), timeout=4 * PATIENCE_S, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert rig.wait(PATIENCE_S) == 0
        finally:
            rig.kill()
            rig.wait()
    found, told = json.loads(out.read_text()), {row["k"]: row for row in json.loads(log.read_text())}
    assert (len(found["flashes"]), found["lost"]) == (4, 0)
    uncertainty = found["uncertainty_ms"] + 1e-3
    for flash in found["flashes"]:
        row, parts = told[flash["k"]], flash["parts"]
        assert set(parts) == set(WORDS)
        assert parts["acquisition"] == pytest.approx(1e3 * (row["end"] - row["light"]), abs=1e-4)
        assert parts["extraction"] == pytest.approx(1e3 * (row["sent"] - row["end"]), abs=1e-4)
        assert parts["total"] == pytest.approx(1e3 * (row["pulse"] - row["light"]), abs=1e-4)
        assert sum(parts[name] for name in PARTS) == pytest.approx(parts["total"], abs=1e-4)
        # The rig sleeps at least so long; the border between ours and the SLM is known within the clocks' uncertainty.
        assert parts["acquisition"] >= 1e3 * simulated_rig.EXPOSURE_S
        assert parts["extraction"] >= 1e3 * simulated_rig.EXTRACTION_S
        assert parts["slm"] >= 1e3 * simulated_rig.SLM_S - uncertainty
        # An answer is ordered upon after its inference, which is part of ours.
        assert parts["ours"] + uncertainty >= parts["inference"] > 0
    assert "light to pulse" in done.stdout
    assert "SLM" in done.stdout


@pytest.mark.parametrize("address", ["x", "127.0.0.1:", "0", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(RigError, match="expected PORT or HOST:PORT"):
        await_rig(address, say=lambda line: None)


def test_a_taken_loop_port_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(RigError, match="cannot be listened on"):
        await_rig(str(taken.getsockname()[1]), say=lambda line: None)
