"""The demo as a user runs it: the whole way in one command, and no process left behind however it ends."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from running_service import clean_environment, until

PATIENCE_S = 600.0
#: Dozens of torch and OpenMP threads on a busy machine only wait for each other.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, kw_only=True)
class Ran:
    status: int
    stdout: str
    stderr: str
    folder: Path
    summary: dict[str, Any]

    @property
    def page(self) -> str:
        return (self.folder / "reports" / "demo.html").read_text(encoding="utf-8")


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    with (folder / "stderr.txt").open("w") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", "quantformer_cli.main", "demo", *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=folder,
            env=clean_environment(**ONE_THREAD),
        )


def run(folder: Path, *arguments: str) -> Ran:
    process = start(folder, *arguments, "--json", "summary.json")
    stdout, _ = process.communicate(timeout=PATIENCE_S)
    summary = folder / "summary.json"
    return Ran(
        status=process.returncode,
        stdout=stdout,
        stderr=(folder / "stderr.txt").read_text(),
        folder=folder,
        summary=json.loads(summary.read_text()) if summary.exists() else {},
    )


def processes_in(folder: Path) -> list[int]:
    """Every process that works in ``folder``: the demo, and what it started."""
    found = []
    for process in psutil.process_iter():
        try:
            mine = process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            continue
        if mine:
            found.append(process.pid)
    return found


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run(tmp_path_factory.mktemp("demo"), "--budget", "smoke", "--fast")


def until_streaming(folder: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not any("gateway is ready" in log.read_text() for log in folder.glob("runs/*/service.log")):
        assert process.poll() is None, "the demo ended before it streamed"
        assert time.monotonic() < end, "the demo did not come to stream"
        time.sleep(0.05)


@pytest.mark.slow
def test_the_whole_way_is_taken_and_said(simulated: Ran) -> None:
    assert simulated.status == 0, simulated.stdout + simulated.stderr
    summary = simulated.summary
    assert summary["frames_sent"] == summary["frames_received"] > 2000
    assert summary["frames_lost"] == 0
    assert summary["onsets"] == summary["onsets_answered"] == 24
    assert 0 < summary["latency_ms"]["p50"] <= summary["latency_ms"]["p99"] <= summary["latency_ms"]["max"]
    assert summary["triggers"]["fired"] + sum(summary["triggers"]["refused"].values()) >= 24
    assert summary["data"]["origin"] == "simulated"
    assert summary["passed"]
    assert all(check["passed"] for check in summary["checks"])


@pytest.mark.slow
def test_the_summary_for_machines_has_the_scores_of_model_and_baselines(simulated: Ran) -> None:
    activation, forecast = simulated.summary["activation"], simulated.summary["forecast"]
    assert set(activation["baselines"]) == {"base_rate", "neuron_stimulus_rate", "last_frames", "boosted_trees", "logistic"}
    assert set(forecast["baselines"]) == {"zero", "last_value", "neuron_mean", "neuron_stimulus_mean", "ridge"}
    for scores in (activation, activation["baselines"]["logistic"]):
        assert all(0 <= scores[name] <= 1 for name in ("auroc", "auroc_within_neuron", "brier"))
        assert scores["log_loss"] > 0
    for scores in (forecast, forecast["baselines"]["ridge"]):
        assert scores["mse"] > 0
        assert -1 <= scores["r"] <= 1
    verdicts = {difference["verdict"] for difference in simulated.summary["differences"].values()}
    assert verdicts <= {"ahead", "behind", "not distinguishable"}
    assert [lead["lead"] for lead in simulated.summary["leads"]] == [0, 3, 5, 10]
    assert simulated.summary["pseudo_onsets"]["activation"]["rows"] > 100


@pytest.mark.slow
def test_the_bundle_that_was_served_is_there_and_whole(simulated: Ran) -> None:
    from quantformer.bundle import load_bundle

    (folder,) = simulated.folder.glob("runs/demo-*")
    assert load_bundle(folder / "bundle").hash == simulated.summary["bundle"]["sha256"]
    assert "gateway is ready" in (folder / "service.log").read_text()


@pytest.mark.slow
def test_the_report_needs_nothing_else_and_names_its_data(simulated: Ran) -> None:
    sources: list[str] = []

    class Page(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag not in ("script", "link", "iframe", "object")
            sources.extend(value or "" for name, value in attrs if name in ("src", "href", "srcset"))

    page = simulated.page
    Page().feed(page)
    assert len(sources) == 4
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert not re.search(r"https?://", re.sub(r'"data:[^"]*"', "", page))
    assert "The data are simulated" in page
    assert simulated.summary["bundle"]["sha256"] in page


@pytest.mark.slow
def test_results_are_on_stdout_and_progress_on_stderr_without_colour(simulated: Ran) -> None:
    assert "checks passed" in simulated.stdout
    assert "frames" in simulated.stdout
    assert "epoch 1/1" in simulated.stderr
    assert "epoch" not in simulated.stdout
    assert "\x1b" not in simulated.stdout + simulated.stderr
    assert "Traceback" not in simulated.stderr


@pytest.mark.slow
def test_a_real_recording_goes_the_same_way(shared_data: Path, tmp_path: Path) -> None:
    found = run(tmp_path, "--recording", str(shared_data / "v1_gratings_24rois.npz"), "--fast", "--budget", "smoke")
    assert found.status == 0, found.stdout + found.stderr
    assert found.summary["data"]["origin"] == "measured"
    assert found.summary["onsets"] == 27
    assert found.summary["activation"]["rows"] == 540
    # The figures of the data's own page, for the same trials, split and label.
    baselines = found.summary["activation"]["baselines"]
    assert baselines["base_rate"]["auroc"] == pytest.approx(0.764, abs=0.01)
    assert baselines["logistic"]["auroc_within_neuron"] == pytest.approx(0.746, abs=0.05)
    assert found.summary["forecast"]["baselines"]["neuron_mean"]["r"] == pytest.approx(0.156, abs=0.01)


@pytest.mark.slow
def test_an_interrupt_ends_the_service_too(tmp_path: Path) -> None:
    process = start(tmp_path, "--budget", "smoke")
    try:
        until_streaming(tmp_path, process)
        assert len(processes_in(tmp_path)) >= 4
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        until(lambda: not processes_in(tmp_path))
        assert "interrupted" in (tmp_path / "stderr.txt").read_text()
    finally:
        process.kill()
        process.communicate()


def test_a_recording_without_stimuli_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "quiet.npz", dff=np.ones((3, 300), np.float32), rate_hz=30.0)
    found = run(tmp_path, "--recording", "quiet.npz")
    assert found.status == 3
    assert found.stdout == ""
    assert "it needs a stimulus table" in found.stderr


def test_a_negative_seed_is_a_mistake_of_usage(tmp_path: Path) -> None:
    found = run(tmp_path, "--seed", "-1")
    assert found.status == 2
    assert "--seed is -1" in found.stderr
