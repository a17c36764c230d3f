"""Jobs on a local Ray of two cores: values, failures, bounded new starts, and nothing left running."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import job_functions
import psutil
import pytest

from quantformer.errors import MissingExtraError, UnavailableError
from quantformer_training.jobs import Job, Outcome, run_all

ray = pytest.importorskip("ray")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # The machines of a cluster have the code installed; these functions are in the tests.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    yield
    assert not ray.is_initialized()


@pytest.mark.slow
@pytest.mark.usefixtures("alone")
def test_a_local_ray_gives_values_failures_and_bounded_new_starts(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    jobs = [
        Job(name="double", function=job_functions.double, arguments={"number": 4}),
        Job(name="raises", function=job_functions.fail, arguments={"text": "no neurons"}),
        Job(name="killed", function=job_functions.die, arguments={"name": "SIGKILL"}),
        Job(name="lost once", function=job_functions.die_first, arguments={"path": str(tmp_path / "mark")}),
        Job(name="not to be sent", function=job_functions.double, arguments={"number": threading.Lock()}),
        Job(name="threads", function=job_functions.process_and_threads),
    ]
    reported: list[Outcome] = []
    found = {outcome.name: outcome for outcome in run_all(jobs, workers="ray", processes=2, report=reported.append)}
    assert found["double"].value == 8
    assert found["raises"].failure == "ValueError: no neurons"
    assert found["killed"].failure.startswith("its process or machine was lost, 2 new starts included")
    assert found["lost once"].value == "second start"
    assert "pickled" in found["not to be sent"].failure
    assert found["threads"].value[0] != os.getpid()
    assert found["threads"].value[1:] == ("1", 1)
    assert list(found) == [job.name for job in jobs]
    assert len(reported) == len(jobs)
    assert signal.getsignal(signal.SIGTERM) is before
    names = [child.name() for child in psutil.Process().children(recursive=True)]
    assert not any("raylet" in name or "gcs_server" in name for name in names)


def test_a_cluster_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    job = Job(name="double", function=job_functions.double, arguments={"number": 4})
    with pytest.raises(UnavailableError, match=r"RAY_ADDRESS=127\.0\.0\.1:9"):
        run_all([job], workers="ray", processes=1, report=lambda outcome: None)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    job = Job(name="double", function=job_functions.double, arguments={"number": 4})
    with pytest.raises(MissingExtraError, match=r"quantformer\[ray\]"):
        run_all([job], workers="ray", processes=1, report=lambda outcome: None)
