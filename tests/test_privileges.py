"""What the engine asks of the system: granted and so in force, or refused with a reason that helps."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zmq
from engine_process import Client, EngineProcess, running, wait_until
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundle import NEURONS

from quantformer.errors import UsageError
from quantformer_client import wire
from quantformer_service.privileges import INFERENCE_PRIORITY, LOOP_PRIORITY, cpus

LATENCY = Path("/dev/cpu_dma_latency")
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has these")


@given(numbers=st.lists(st.integers(0, 300), unique=True, max_size=8))
def test_a_list_of_cpus_is_read_in_its_order(numbers: list[int]) -> None:
    assert cpus(",".join(map(str, numbers))) == numbers


def test_ranges_of_cpus() -> None:
    assert cpus("2, 4-6,0") == [2, 4, 5, 6, 0]


@pytest.mark.parametrize("text", ["x", "1,", "-1", "3-1", "1,1", "0-3,2", "1-2-3", "1;2", "²", "-"])
def test_what_is_no_list_of_cpus(text: str) -> None:
    if text == "1,":
        assert cpus(text) == [1]
        return
    with pytest.raises(UsageError, match="pin_cpus: found"):
        cpus(text)


def status(engine: EngineProcess, thread: str, key: str) -> str:
    """A line of the kernel's facts about one thread."""
    lines = Path(f"/proc/{engine.process.pid}/task/{thread}/status").read_text().splitlines()
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(key + ":"))


def told(engine: EngineProcess) -> dict[str, str]:
    """What the engine says of it, which is the same wherever it is asked."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    client = Client(engine.endpoints["zmq"], context)
    try:
        welcome, known = client.ask(wire.Hello(), wire.Welcome), client.ask(wire.GetStatus(), wire.Status)
        client.open(list(NEURONS))
        client.ask(wire.Close(), wire.Closed)
    finally:
        client.close()
        context.destroy(0)
    assert welcome.privileges == known.privileges == engine.facts["privileges"]
    return welcome.privileges


def latency_us() -> int:
    """How long leaving an idle state may take, in us, as the kernel has it from all who asked."""
    return int.from_bytes(LATENCY.read_bytes()[:4], sys.byteorder, signed=True)


def keeps_awake(process: int) -> bool:
    """Whether a process holds the kernel's file open."""
    held = []
    for one in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            held.append(str(one.readlink()))
    return str(LATENCY) in held


def test_nothing_is_asked_for_unless_a_setting_says_so(tiny_bundle_path: Path) -> None:
    with running(tiny_bundle_path, stay_awake="off") as engine:
        assert set(told(engine).values()) == {"not asked"}
        assert not keeps_awake(engine.process.pid)
        assert engine.end() == 0


@linux
def test_what_is_granted_is_in_force_and_what_is_refused_says_why(tiny_bundle_path: Path) -> None:
    there = sorted(os.sched_getaffinity(0))
    pinned = ",".join(map(str, there[:2]))
    asked = {"pin_cpus": pinned, "realtime": "on", "lock_memory": "on"}
    with running(tiny_bundle_path, **asked) as engine:
        outcomes = told(engine)
        main = str(engine.process.pid)
        assert outcomes["pin_cpus"] == f"granted: loop on {there[0]}, inference on {there[:2][-1]}"
        assert status(engine, main, "Cpus_allowed_list") == str(there[0])
        threads = [path.name for path in Path(f"/proc/{main}/task").iterdir() if path.name != main]
        assert str(there[:2][-1]) in {status(engine, one, "Cpus_allowed_list") for one in threads}
        if outcomes["realtime"].startswith("granted"):
            assert os.sched_getscheduler(int(main)) == os.SCHED_FIFO
            assert os.sched_getparam(int(main)).sched_priority == LOOP_PRIORITY
            assert INFERENCE_PRIORITY in {os.sched_getparam(int(one)).sched_priority for one in threads}
            # What brings the loop its messages does not wait for inference.
            sockets = [one for one in threads if status(engine, one, "Name").startswith("ZMQbg/IO")]
            assert sockets
            assert "loop and sockets" in outcomes["realtime"]
            assert {os.sched_getparam(int(one)).sched_priority for one in sockets} == {LOOP_PRIORITY}
        else:
            assert outcomes["realtime"].startswith("refused: ")
            assert "CAP_SYS_NICE" in outcomes["realtime"]
            assert os.sched_getscheduler(int(main)) == os.SCHED_OTHER
        locked = int(status(engine, main, "VmLck").split()[0])
        if outcomes["lock_memory"].startswith("granted"):
            assert locked > 10_000
        else:
            assert outcomes["lock_memory"].startswith("refused: ")
            assert "CAP_IPC_LOCK" in outcomes["lock_memory"]
            assert locked == 0
        assert engine.end() == 0


@linux
def test_cores_are_kept_awake_while_frames_come_and_may_sleep_a_while_after(tiny_bundle_path: Path) -> None:
    with running(tiny_bundle_path) as engine:
        outcome = told(engine)["stay_awake"]
        if not outcome.startswith("granted: while frames come"):
            assert outcome.startswith("refused: ")
            assert not keeps_awake(engine.process.pid)
            pytest.skip(outcome)
        assert keeps_awake(engine.process.pid), "from the start on, for what is measured then"
        assert latency_us() <= (0 if "haltpoll" in outcome else 2)
        wait_until(lambda: not keeps_awake(engine.process.pid))
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        client = Client(engine.endpoints["zmq"], context)
        try:
            client.open(list(NEURONS))
            client.frames(np.ones((1, len(NEURONS)), np.float32))
            wait_until(lambda: keeps_awake(engine.process.pid))
        finally:
            client.close()
            context.destroy(0)
        assert engine.end() == 0


@linux
def test_cpus_that_are_not_there_are_refused_and_the_engine_runs_on(tiny_bundle_path: Path) -> None:
    missing = max(os.sched_getaffinity(0)) + 1
    with running(tiny_bundle_path, pin_cpus=f"0,{missing}") as engine:
        outcome = told(engine)["pin_cpus"]
        assert outcome.startswith("refused: ")
        assert str(missing) in outcome
        assert engine.end() == 0


def test_a_list_that_is_none_ends_the_engine_with_its_reason(tiny_bundle_path: Path) -> None:
    engine = EngineProcess(tiny_bundle_path, pin_cpus="first")
    assert engine.process.wait(60) == 2
    engine.kill()
    assert "pin_cpus: found 'first'" in engine.facts["failed"]


def test_elsewhere_every_wish_is_refused_with_the_systems_name() -> None:
    """In an interpreter that is told it runs on another system."""
    program = (
        "import sys; sys.platform = 'darwin'\n"
        "from quantformer_service.engine_settings import EngineSettings\n"
        "from quantformer_service.privileges import Privileges\n"
        "from quantformer_service.awake import Awake\n"
        "asked = Privileges(EngineSettings(pin_cpus='0', realtime='on'))\n"
        "asked.before_inference(); print({**asked.when_ready(), 'stay_awake': Awake(asked=True).outcome})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    refused = "refused: not on this system (darwin); Linux only"
    wanted = {"pin_cpus": refused, "realtime": refused, "lock_memory": "not asked", "stay_awake": refused}
    assert done.stdout.strip() == str(wanted)


@linux
def test_a_user_without_the_right_is_told_how_to_get_it() -> None:
    """In an interpreter that becomes nobody where it is somebody who may."""
    if not LATENCY.exists():
        pytest.skip("this kernel, or container, has no idle states to choose from")
    if os.geteuid() and os.access(LATENCY, os.W_OK):
        pytest.skip("this user has the right, and may not become another")
    program = (
        "import os\n"
        "from quantformer_service.awake import Awake\n"
        "os.geteuid() or os.setuid(65534)\n"
        "asked = Awake(asked=True)\n"
        "asked.follow(1, now_ns=0); print(asked.outcome)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("refused: /dev/cpu_dma_latency: Permission denied")
    assert "udev" in done.stdout
