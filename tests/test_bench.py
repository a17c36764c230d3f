"""`quantformer bench` on the real service, in short phases: everything is counted, nothing is timed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import psutil
import pytest
from running_service import PATIENCE_S, ROIS, RunningService, clean_environment, command, until

from quantformer.bundle import load_bundle
from quantformer.config import LEVEL_QUANTITIES
from quantformer_cli.benchmark.bare import Bare, graph_run
from quantformer_cli.benchmark.compare import differences, ratios
from quantformer_cli.benchmark.growth import grown, isolation
from quantformer_cli.benchmark.measure import Bench, Target, clock_offset, machine
from quantformer_cli.benchmark.page import render
from quantformer_cli.benchmark.plan import Condition, Pace
from quantformer_cli.benchmark.results import Document, Result, Service, read_document, write_document
from quantformer_cli.benchmark.usage import Meter, service_processes, service_root

GRATINGS = tuple(f"dir={angle:03d}" for angle in range(0, 360, 45))
#: Two rounds of a second each, half of it warm-up.
PACE = Pace(rate_hz=60.0, frames=60, rounds=2, every=4, jitter=0.1)


@pytest.fixture(scope="module")
def service(tiny_bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    recordings = tmp_path_factory.mktemp("recordings")
    with RunningService(tiny_bundle_path, folder=tmp_path_factory.mktemp("service"), record=recordings) as running:
        yield running


@pytest.fixture(scope="module")
def target(service: RunningService, tiny_bundle_path: Path) -> Target:
    return Target(
        host="127.0.0.1",
        http_port=service.http,
        zmq_port=service.zmq,
        pub_port=service.pub,
        tcp_port=service.tcp,
        token="",
        neuron_ids=ROIS,
        stimulus_ids=GRATINGS,
        baseline_frames=96,
        provider="cpu",
        threads=1,
        bundle=tiny_bundle_path,
        root=service.process.pid,
    )


def measure(target: Target, conditions: list[Condition], *, pace: Pace = PACE) -> tuple[list[Result], list[str]]:
    bench = Bench(target, pace, say=lambda line: None)
    return bench.measure(conditions), bench.notes


def check_counts(one: Result, *, pace: Pace, streams: int = 1) -> None:
    """Whatever the machine does meanwhile, these hold."""
    assert one.failed == ""
    every = 1 if one.kind == "standing" else pace.every
    a_round = pace.frames_a_round + pace.warm_up
    assert one.sent >= streams * pace.rounds * a_round
    assert one.lost == 0
    assert one.refused == {}
    assert 0 < one.answers <= one.asked <= streams * pace.rounds * -(-a_round // every)
    assert one.answers + one.skipped == one.asked
    assert one.unanswered <= one.skipped
    assert one.short <= one.answers
    assert one.figures["corrected"].count == one.asked
    for name in ("overhead", "round_trip", "beside_inference", "inference", "slip", "wire_in", "queue", "publish"):
        figure = one.figures[name]
        assert figure.count == one.answers
        assert sum(count for _, count in figure.counts) == figure.count
        assert len(figure.rounds) == pace.rounds
        assert figure.max == max(found.max for found in figure.rounds)
    # Clocks are one: nothing arrives before it was sent, and no frame is sent before it is due.
    for name in ("slip", "wire_in", "window", "queue", "inference", "publish", "wire_out"):
        assert one.figures[name].mean >= 0
    assert one.stages["slowest"]["inference"] > 0
    assert one.usage["engine"].memory_most_mib > 10
    assert one.usage["engine"].memory_settled_mib is not None
    assert 10 < one.usage["engine"].memory_settled_mib <= one.usage["engine"].memory_most_mib
    assert one.usage["engine"].cpu_share > 0


def test_both_kinds_of_questions_against_bare_inference(target: Target) -> None:
    condition = Condition(neurons=15, stimuli=2, questions="both")
    results, notes = measure(target, [condition])
    assert [one.kind for one in results] == ["standing", "announced"]
    for one in results:
        check_counts(one, pace=PACE)
        assert one.figures["bare"].count == PACE.frames
        assert one.figures["bare"].mean > 0
        assert {"engine", "gateway", "client"} <= set(one.usage)
    assert notes == []


@pytest.mark.parametrize(("forecast", "outputs"), [(True, 3), (False, 1)])
def test_bare_inference_computes_what_was_asked_for(forecast: bool, outputs: int, tiny_bundle_path: Path) -> None:
    bundle = load_bundle(tiny_bundle_path)
    work = Bare(
        bundle=str(tiny_bundle_path), provider="cpu", threads=1, rois=["n000"], stimuli=["dir=000"], probe=False,
        forecast=forecast, rate_hz=30.0, jitter=0.0, frames=1, seed=0, out="",
    )  # fmt: skip
    inputs: dict[str, Any] = {
        "baseline": np.zeros((1, 96), np.float32), "level": np.zeros((1, LEVEL_QUANTITIES), np.float32),
        "neuron": bundle.neurons(["n000"], unknown="refuse").vectors, "stimulus": bundle.stimulus("dir=000")[None],
        "row_neuron": np.zeros(1, np.int64), "row_stimulus": np.zeros(1, np.int64),
    }  # fmt: skip
    run, provider = graph_run(work, bundle, inputs)
    answers: Any = run()
    assert (len(answers), provider) == (outputs, "cpu")


@pytest.mark.parametrize("transport", ["tcp", "websocket", "rest"])
def test_every_transport_answers_both_kinds(target: Target, transport: Any) -> None:
    results, _ = measure(target, [Condition(transport=transport, neurons=12, questions="both")])
    for one in results:
        check_counts(one, pace=PACE)
        assert one.figures["bare"].count == PACE.frames


def test_the_cost_of_a_frame_beside_inference_is_probed_with_one_roi(target: Target) -> None:
    (one,), _ = measure(target, [Condition(neurons=40, questions="none")])
    assert one.kind == "probe"
    check_counts(one, pace=PACE)
    # As often as a question is asked.
    assert one.figures["bare"].count == PACE.rounds * -(-PACE.frames_a_round // PACE.every)


def test_sessions_at_once_and_growth(target: Target) -> None:
    results, _ = measure(target, [Condition(neurons=12), Condition(neurons=12, sessions=2)])
    check_counts(results[0], pace=PACE)
    check_counts(results[1], pace=PACE, streams=2)
    assert {"client 1", "client 2"} <= set(results[1].usage)
    lines = {line.figure: line for line in grown(results, axis="sessions")}
    assert [size for size, _ in lines["overhead"].points] == [1, 2]
    assert grown(results, axis="neurons") == []


@pytest.mark.slow
def test_disturbances_happen_and_are_held_against_quiet_phases(target: Target, service: RunningService) -> None:
    kinds = ("gateway", "subscriber", "churn", "disk")
    results, _ = measure(target, [Condition(neurons=12), *(Condition(neurons=12, disturb=kind) for kind in kinds)])
    _, gateway, subscriber, churn, disk = results
    for one in results:
        assert one.failed == ""
        assert one.lost == 0
    assert gateway.disturbed["answered"] > 0
    assert gateway.disturbed["errors"] == 0
    assert subscriber.disturbed == {"subscribers": PACE.rounds}
    assert churn.disturbed["connections"] > 0
    assert disk.disturbed["seconds"] > 0
    # It goes on: a stopped process would not end, and the service's end would wait for it.
    assert service_processes(service.process.pid)["recorder"].status() != psutil.STATUS_STOPPED
    rows = isolation(results)
    assert {row.disturb for row in rows} == {f"{kind}, standing" for kind in kinds}


def test_a_condition_that_the_service_refuses_fails_alone(target: Target) -> None:
    results, _ = measure(target, [Condition(neurons=17), Condition(neurons=300, stimuli=256)])
    assert results[0].failed == ""
    assert "rows" in results[1].failed
    assert results[1].figures == {}


def test_processes_of_the_service_are_found_by_its_port(service: RunningService) -> None:
    assert service_root(service.zmq) == service.process.pid
    assert service_root(1) is None
    found = service_processes(service.process.pid)
    assert {"engine", "gateway"} <= set(found)
    with Meter(found) as meter:
        pass
    assert set(meter.usage()) == set(found)


def test_the_offset_of_one_clock_to_itself_is_within_its_uncertainty(target: Target) -> None:
    offset_ns, uncertainty_ns = clock_offset(target)
    assert abs(offset_ns) <= uncertainty_ns


# --- the document -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def document(target: Target) -> Document:
    results, notes = measure(target, [Condition(neurons=6), Condition(neurons=12)])
    failed = Result(condition=Condition(neurons=7, disturb="disk"), kind="standing", failed="<no> recorder & co")
    return Document(
        date_utc="2026-01-01T00:00:00+00:00",
        command="quantformer bench",
        machine=machine(),
        versions={"python": "3"},
        service=Service(
            engine="quantformer",
            bundle="ab" * 32,
            provider="cpu",
            threads=1,
            preset="tiny",
            started=True,
            address="x:1",
        ),
        pace=PACE,
        results=[*results, failed],
        notes=[*notes, "GPU: none"],
    )


class Page(HTMLParser):
    """Every tag opened is closed, and what the page would fetch."""

    VOID = ("meta", "path", "circle", "rect")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_fetches_nothing(document: Document) -> None:
    text = render(document)
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.fetched == []
    assert "script" not in page.seen
    assert "url(" not in text
    assert "default-src 'none'" in text
    assert text.count("<svg") >= 2 * 2 + 1  # a histogram and stages each, and growth along neurons
    assert "prefers-color-scheme: dark" in text
    assert "&lt;no&gt; recorder &amp; co" in text
    assert "nan" not in re.sub(r"<[^>]*>", "", text).lower().split()


def test_a_document_is_read_back_and_compared(document: Document, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_document(file, document)
    again = read_document(file)
    assert again == document
    found = ratios(document, again)
    assert found
    assert all(one.ratio == 1.0 for one in found)
    assert all(one.verdict in ("", "within the rounds' spread") for one in found)
    assert differences(document, again) == []


def test_slower_and_elsewhere_are_told(document: Document, tmp_path: Path) -> None:
    raw = msgspec.to_builtins(document)
    raw["machine"]["processor"] = "another"
    raw["service"]["granted"] = ["realtime", "stay_awake"]
    for result in raw["results"]:
        for figure in result["figures"].values():
            for row in (figure, *figure["rounds"]):
                row.update(
                    {name: row[name] and 3 * row[name] + 1e6 for name in ("p50", "p99", "p999", "max") if name in row}
                )
    slower = msgspec.convert(raw, Document)
    assert differences(document, slower) == [
        f"processor: {document.machine.processor} before, another after",
        "granted by the system: nothing before, realtime, stay_awake after",
    ]
    p50 = [one for one in ratios(document, slower) if one.quantile == "p50"]
    assert p50
    assert {one.verdict for one in p50} == {"slower"}
    for name, one in (("a", document), ("b", slower)):
        write_document(tmp_path / name, one)
    done = command("bench", "--compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert done.returncode == 0, done.stderr
    assert "not alike, processor" in done.stdout
    assert "slower" in done.stdout


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'{"format": "quantformer-bench", "schema": 99}', b'{"format": "quantformer-bench", "schema": 1}'],
)
def test_a_file_of_another_kind_is_status_3(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(content)
    done = command("bench", "--compare", str(file), str(file))
    assert done.returncode == 3
    assert str(file) in done.stderr


# --- the command ------------------------------------------------------------------------------------------------------


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "quantformer_cli.main", "bench", *arguments],
        capture_output=True, text=True, cwd=folder, env=clean_environment(), timeout=4 * PATIENCE_S, check=False,
    )  # fmt: skip


def test_it_starts_a_service_measures_it_and_leaves_nothing_behind(tiny_bundle_path: Path, tmp_path: Path) -> None:
    done = bench(
        tmp_path, "--bundle", str(tiny_bundle_path), "--neurons", "12,24", "--questions", "standing,none", "--frames", "40",
        "--rounds", "2", "--rate", "60", "--seed", "3", "--threads", "1", "--pin-cpus", "0", "--json", "out.json", "--html",
        "out.html",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = read_document(tmp_path / "out.json")
    assert [(one.condition.neurons, one.kind) for one in found.results] == [
        (12, "standing"),
        (12, "probe"),
        (24, "standing"),
    ]
    assert all(one.failed == "" and one.lost == 0 for one in found.results)
    assert found.service.started
    assert found.service.bundle == load_bundle(tiny_bundle_path).hash
    # Asked for nowhere but on Linux, and granted only where CPU 0 may be used.
    linux = sys.platform == "linux" and 0 in os.sched_getaffinity(0)
    assert set(found.service.granted) - {"stay_awake"} == ({"pin_cpus"} if linux else set())
    may = sys.platform == "linux" and os.access("/dev/cpu_dma_latency", os.W_OK)
    assert "stay_awake" not in found.service.granted or may
    assert found.pace.seed == 3
    assert "bench --bundle" in found.command
    assert "overhead a frame" in done.stdout
    assert "growth" in done.stdout
    assert (tmp_path / "out.html").read_text().startswith("<!DOCTYPE html>")
    until(lambda: not [one for one in psutil.process_iter() if _in(one, tmp_path)])


def _in(process: psutil.Process, folder: Path) -> bool:
    """Whether a process, like everything that the command starts, has its working directory there."""
    try:
        return Path(process.cwd()) == folder
    except (psutil.Error, OSError):
        return False


def test_it_measures_a_service_that_runs(service: RunningService, tmp_path: Path) -> None:
    ports = ["--http-port", str(service.http), "--zmq-port", str(service.zmq), "--pub-port", str(service.pub)]
    done = bench(
        tmp_path, "--connect", *ports, "--tcp-port", str(service.tcp), "--neurons", "12", "--frames", "40", "--rounds", "1",
        "--rate", "60", "--json", "out.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = read_document(tmp_path / "out.json")
    assert not found.service.started
    assert set(found.service.granted) <= {"stay_awake"}
    page = httpx.get(f"http://127.0.0.1:{service.http}/metrics", trust_env=False).text
    (threads,) = re.findall(r"^quantformer_inference_threads (\d+)", page, flags=re.MULTILINE)
    assert found.service.threads == int(threads)
    assert any("bare session.run is not measured" in note for note in found.notes)
    assert "engine" in found.results[0].usage
    assert service.process.poll() is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "there is nothing to measure"),
        (["--connect", "--neurons", "many"], "--neurons: found 'many'"),
        (["--connect", "--transport", "pigeon"], "--transport: found 'pigeon'"),
        (["--connect", "--jitter", "0.9"], "jitter"),
        (["--connect", "--json", "nowhere/x.json"], "is not a directory"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(arguments: list[str], says: str) -> None:
    done = command("bench", *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_nobody_at_that_port_is_status_4() -> None:
    done = command("bench", "--connect", "--http-port", "1")
    assert done.returncode == 4
    assert "quantformer serve" in done.stderr


def test_arrays_of_workers_hold_no_objects(tmp_path: Path) -> None:
    """What a worker leaves is read without pickle; an array of objects is refused."""
    np.savez(tmp_path / "x.npz", took_ns=np.array([{}], object))
    with np.load(tmp_path / "x.npz", allow_pickle=False) as arrays, pytest.raises(ValueError, match="pickle"):
        arrays["took_ns"]
