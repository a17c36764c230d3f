"""The life of the whole service: start, deaths of its parts, signals, its parent's death."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from running_service import PATIENCE_S, RunningService, command, feed, free_ports, traces, until
from websockets.sync.client import connect

from quantformer_client import Controller, Rest, ServiceError, SessionLostError, Stimulus, UnreachableError, Watch


@pytest.fixture
def service(tiny_bundle_path: Path, tmp_path: Path) -> Iterator[RunningService]:
    with RunningService(tiny_bundle_path, folder=tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def shared(tiny_bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """One service for the tests that leave it as they found it."""
    with RunningService(tiny_bundle_path, folder=tmp_path_factory.mktemp("life")) as running:
        yield running


def test_ready_is_printed_once_everything_answers(shared: RunningService) -> None:
    assert [line.split()[1] for line in shared.lines] == ["zmq", "pub", "tcp", "rest", "stream"]
    assert f"tcp://127.0.0.1:{shared.zmq}" in shared.lines[0]
    with shared.rest() as rest:
        assert rest.ready()["ready"]
    done = command("status", "--json", "--http-port", str(shared.http))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "ready"
    modules = {"engine", "gateway", "predictor"}
    assert len({shared.child(module).pid for module in modules}) == 3


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="a system without SCHED_BATCH")
def test_nothing_but_the_engine_takes_a_core_by_waking_up(tiny_bundle_path: Path, tmp_path: Path) -> None:
    with RunningService(tiny_bundle_path, folder=tmp_path, record=tmp_path) as service:
        for module, niceness in {"engine": 0, "recorder": 0, "gateway": 12, "predictor": 19}.items():
            child = service.child(module)
            assert os.sched_getscheduler(child.pid) == (os.SCHED_OTHER if module == "engine" else os.SCHED_BATCH), module
            found = policies(child)
            # The thread that sees the parent die was there before, and does nothing else.
            assert found.count(os.SCHED_OTHER) == len(found) if module == "engine" else found.count(os.SCHED_OTHER) <= 1, found
            assert child.nice() == min(niceness + os.nice(0), 19), module


def policies(process: psutil.Process) -> list[int]:
    """How the system schedules each thread; those that end meanwhile are left out."""
    found = []
    for thread in process.threads():
        with contextlib.suppress(ProcessLookupError):
            found.append(os.sched_getscheduler(thread.id))
    return found


def test_a_killed_engine_comes_back_empty_and_everybody_hears_of_it(service: RunningService) -> None:
    with (
        service.microscope() as scope,
        service.rest() as rest,
        connect(f"ws://127.0.0.1:{service.http}/v1/stream", open_timeout=PATIENCE_S) as live,
    ):
        feed(scope, 100)
        epoch, session, engine = scope.connection.epoch, scope.session, service.child("engine")
        with service.controller(session) as controller:
            controller.arm(lease_s=60.0)
            until(lambda: metric(service, "quantformer_frames_total") == 100)
            engine.kill()
            # What the dead one counted is not told as if it were now.
            until(lambda: metric(service, "quantformer_up") == 0)
            assert metric(service, "quantformer_frames_total") is None
            told = json.loads(live.recv(timeout=PATIENCE_S))
            while told["type"] != "session_lost":
                told = json.loads(live.recv(timeout=PATIENCE_S))
            assert told["session"] is None
            until(lambda: rest.ready()["ready"])
            assert rest.status()["epoch"] != epoch
            assert rest.status()["sessions"] == []
            with pytest.raises(SessionLostError):
                rest.describe(session)
            with pytest.raises(SessionLostError):
                until(lambda: poll_trigger(controller))

        def lost() -> SessionLostError | None:
            try:
                scope.frame(number=100, device_s=100 / 30.0, fluorescence=traces(1)[0])
            except SessionLostError as error:
                return error
            except UnreachableError:
                return None
            return None

        assert until(lost).code == "session_lost"
        scope.reopen()
        assert scope.session != session
        feed(scope, 96)
        scope.onset("dir=045")
        assert scope.wait(PATIENCE_S) is not None
        assert rest.trigger(scope.session)["state"] == "disarmed"
        assert service.child("engine").pid != engine.pid
        until(lambda: metric(service, "quantformer_frames_total") == 96)


def metric(service: RunningService, name: str) -> float | None:
    """A sample of the page for Prometheus."""
    page = httpx.get(f"http://127.0.0.1:{service.http}/metrics", timeout=PATIENCE_S).text
    return next((float(line.split()[1]) for line in page.splitlines() if line.startswith(f"{name} ")), None)


def poll_trigger(controller: Controller) -> None:
    """The trigger's state, or nothing while the engine is away."""
    try:
        controller.trigger()
    except UnreachableError:
        return


def test_a_killed_gateway_comes_back_and_the_stream_goes_on_meanwhile(shared: RunningService) -> None:
    with shared.microscope() as scope, shared.rest() as rest:
        feed(scope, 50)
        shared.child("gateway").kill()
        feed(scope, 50, first=50)
        scope.onset("dir=045")
        assert scope.wait(PATIENCE_S) is not None
        assert not scope.refused

        def back() -> dict[str, object] | None:
            try:
                return rest.describe(scope.session) if rest.ready()["ready"] else None
            except UnreachableError:
                return None

        assert until(back)["last_frame"] == 99


def test_a_killed_predictor_comes_back(shared: RunningService) -> None:
    with shared.rest() as rest:
        shared.child("predictor").kill()

        def predicted() -> dict[str, object] | None:
            try:
                return rest.predict(
                    neurons=["n000"], stimuli=[Stimulus(stimulus_id="dir=045")], fluorescence=[[100.0] * 96]
                )
            except ServiceError as error:
                assert error.code in ("predict_failed", "not_ready")  # noqa: PT017 - until it is back
                return None

        assert until(predicted)["valid"] == [True]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_disarms_answers_what_is_pending_and_ends(
    service: RunningService, number: signal.Signals, status: int
) -> None:
    scope = service.microscope()
    with scope.connection, service.controller(scope.session) as controller, controller.watch() as watch:
        feed(scope, 96)
        controller.arm(lease_s=60.0)
        # Announced for a moment whose frames will never come: the end must answer it from those that are there.
        question = scope.onset("dir=045", onset_frame=100)
        processes = [service.child(module) for module in ("engine", "gateway", "predictor")]
        # Read to the last, as a microscope does with every frame: an unread message would keep the way open.
        assert scope.wait(0.0) is None
        service.process.send_signal(number)
        answer = until(lambda: scope.wait(0.0))
        assert service.process.wait(PATIENCE_S) == status
        assert not psutil.wait_procs(processes, timeout=PATIENCE_S)[1]
        assert answer.question == question
        assert answer.lead == 4
        with pytest.raises(SessionLostError):
            wait_for_the_end(watch)


def wait_for_the_end(watch: Watch) -> None:
    """Read everything that was published until the engine says that it stops."""
    while watch.next(PATIENCE_S) is not None:
        pass


def test_the_death_of_the_supervisor_ends_everything(service: RunningService) -> None:
    processes = [service.child(module) for module in ("engine", "gateway", "predictor")]
    service.process.kill()
    service.process.wait(PATIENCE_S)
    gone, alive = psutil.wait_procs(processes, timeout=PATIENCE_S)
    assert len(gone) == 3
    assert not alive


@pytest.mark.parametrize("name", ["http_port", "zmq_port", "pub_port", "tcp_port"])
def test_a_busy_port_is_an_error_that_names_port_and_flag(tiny_bundle_path: Path, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder, free_ports(3) as others:
        busy = holder.getsockname()[1]
        names = ["http_port", "zmq_port", "pub_port", "tcp_port"]
        names.remove(name)
        ports = {name: busy, **dict(zip(names, others, strict=True))}
        flags = [part for key, port in ports.items() for part in ("--" + key.replace("_", "-"), str(port))]
        done = command("serve", "--bundle", str(tiny_bundle_path), *flags)
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert f"port {busy} on 127.0.0.1" in lines[0]
    assert f"--{name.replace('_', '-')}" in lines[0]


def test_the_service_and_its_clients_speak_ipv6(tiny_bundle_path: Path, tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with (
        RunningService(tiny_bundle_path, folder=tmp_path, host="::1") as service,
        Rest(host="::1", port=service.http) as rest,
        service.microscope(host="::1") as scope,
        service.microscope(host="::1", port=service.tcp, over="tcp") as by_tcp,
        Watch(host="::1", port=service.pub) as watch,
    ):
        assert {one["session"] for one in rest.status()["sessions"]} == {scope.session, by_tcp.session}
        feed(scope, 96)

        def seen() -> bool:
            scope.onset("dir=045")
            return watch.next(0.2) is not None

        until(seen)


def test_a_provider_that_is_not_there_is_status_4(tiny_bundle_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has the provider that the test wants to miss")
    with free_ports(4) as ports:
        names = ("--http-port", "--zmq-port", "--pub-port", "--tcp-port")
        flags = [part for pair in zip(names, map(str, ports), strict=True) for part in pair]
        done = command("serve", "--bundle", str(tiny_bundle_path), "--provider", "cuda", *flags)
    assert done.returncode == 4, done.stderr
    assert "provider cuda was asked for" in done.stderr
    assert done.stdout == ""


def test_the_service_loads_no_torch(shared: RunningService) -> None:
    """In its own processes, by what they have mapped: no file of torch."""
    with shared.rest() as rest:
        assert rest.ready()["ready"]
    for module in ("engine", "gateway", "predictor"):
        mapped = {entry.path for entry in shared.child(module).memory_maps()}
        assert any("onnxruntime" in path for path in mapped) == (module != "gateway"), module
        assert not any("/torch/" in path for path in mapped), module
