"""Fetching into a folder, as a library and by the real command: manifest, failures, the disk, interruptions."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from allen_list import allen_record
from bucket_server import BucketServer, Fault, hdf5_like
from rich.console import Console
from running_service import PATIENCE_S, clean_environment, command, until

from quantformer import __version__
from quantformer.errors import DataError, UnavailableError, UsageError
from quantformer_cli.fetch_progress import FetchProgress
from quantformer_training.allen_containers import AllenExperiment, Choice, choose
from quantformer_training.allen_fetch import FetchPlan, Outcome, fetch, list_experiments, plan
from quantformer_training.allen_manifest import NAME, read_manifest, verify, write_manifest
from quantformer_training.remote_file import Patience

PATIENCE = Patience(attempts=3, first_wait_s=0.0, longest_wait_s=0.0, silence_s=20.0)
MOUSE = choose(Choice(containers=(511510667,)))
A, B, C = (one.id for one in MOUSE)
LARGE = 1_000_000


def path_of(experiment: int) -> str:
    return f"ophys_experiment_data/{experiment}.nwb"


@pytest.fixture
def bucket() -> Iterator[BucketServer]:
    with BucketServer() as server:
        for seed, experiment in enumerate((A, B, C)):
            server.files[path_of(experiment)] = hdf5_like(50_000 + seed, seed=seed)
        yield server


def plan_of(bucket: BucketServer, out: Path, experiments: tuple[AllenExperiment, ...] = MOUSE) -> FetchPlan:
    return plan(experiments, out, base_url=bucket.url, patience=PATIENCE)


def fetch_all(bucket: BucketServer, out: Path) -> tuple[Outcome, ...]:
    return fetch(plan_of(bucket, out), patience=PATIENCE)


def states(outcomes: tuple[Outcome, ...]) -> list[str]:
    return [one.state for one in outcomes]


def test_files_and_their_manifest(bucket: BucketServer, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    planned = plan_of(bucket, out)
    assert planned.needed_bytes == 150_003
    told: list[tuple[int, int]] = []
    outcomes = fetch(planned, patience=PATIENCE, report=lambda file, done: told.append((file.experiment.id, done)))
    assert states(outcomes) == ["fetched"] * 3
    assert told[0][0] == A
    assert told[-1] == (C, 50_002)
    assert {path.name for path in out.iterdir()} == {f"{A}.nwb", f"{B}.nwb", f"{C}.nwb", NAME}
    written = json.loads((out / NAME).read_text(encoding="utf-8"))
    assert (written["format"], written["schema"]) == ("quantformer-allen-manifest", 1)
    first = written["files"][1]
    content = bucket.files[path_of(A)]
    date = datetime.fromisoformat(first.pop("date"))
    assert abs((datetime.now(UTC) - date).total_seconds()) < 3600
    assert first == {
        "experiment": A,
        "url": f"{bucket.url}ophys_experiment_data/{A}.nwb",
        "bytes": 50_000,
        "sha256": hashlib.sha256(content).hexdigest(),
        "etag": f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"',
        "checked": "md5",
        "software": f"quantformer {__version__}",
        "container": 511510667,
        "session": "A",
        "cre_line": None,
        "area": None,
        "depth_um": None,
    }


def test_a_second_run_asks_nothing(bucket: BucketServer, tmp_path: Path) -> None:
    fetch_all(bucket, tmp_path)
    bucket.requests.clear()
    outcomes = fetch_all(bucket, tmp_path)
    assert states(outcomes) == ["present"] * 3
    assert bucket.requests == []


@pytest.mark.parametrize("damage", ["shorter", "gone"])
def test_a_file_that_is_not_as_the_manifest_says_is_fetched_again(
    bucket: BucketServer, tmp_path: Path, damage: str
) -> None:
    fetch_all(bucket, tmp_path)
    target = tmp_path / f"{B}.nwb"
    if damage == "gone":
        target.unlink()
    else:
        target.write_bytes(target.read_bytes()[:-1])
    assert states(fetch_all(bucket, tmp_path)) == ["present", "fetched", "present"]
    assert target.read_bytes() == bucket.files[path_of(B)]


def test_one_that_fails_does_not_keep_the_others(bucket: BucketServer, tmp_path: Path) -> None:
    del bucket.files[path_of(A)]
    bucket.faults[path_of(B)] = [Fault(status=403)]
    outcomes = fetch_all(bucket, tmp_path)
    assert states(outcomes) == ["failed", "failed", "fetched"]
    assert "404 Not Found" in outcomes[0].reason
    assert "403" in outcomes[1].reason
    assert list(read_manifest(tmp_path)) == [C]


def test_after_a_failure_less_patience_is_left(bucket: BucketServer, tmp_path: Path) -> None:
    bucket.faults = {f"HEAD {path_of(one)}": [Fault(status=503)] * 10 for one in (A, B, C)}
    planned = plan_of(bucket, tmp_path)
    assert [file.state for file in planned.files] == ["failed"] * 3
    assert len(bucket.requests) == 3 + 2 + 2


def test_a_full_disk_is_seen_before_the_first_byte(
    bucket: BucketServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The one figure that a test cannot arrange on a machine's real disk: the files would fit, the margin would not.
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 999 * 10**6, 10**6))
    planned = plan_of(bucket, tmp_path)
    with pytest.raises(UnavailableError, match=r"0\.00 GB free, fetching 3 files needs 0\.07 GB"):
        fetch(planned, patience=PATIENCE)
    assert bucket.gets() == []


def test_what_is_left_of_an_earlier_attempt_needs_no_room(bucket: BucketServer, tmp_path: Path) -> None:
    bucket.faults[path_of(A)] = [Fault(cut_after=30_000)] + [Fault(status=500)] * 3
    assert states(fetch_all(bucket, tmp_path)) == ["failed", "fetched", "fetched"]
    planned = plan_of(bucket, tmp_path)
    assert (planned.needed_bytes, planned.missing[0].have_bytes) == (20_000, 30_000)
    outcomes = fetch(planned, patience=PATIENCE)
    assert (outcomes[0].state, outcomes[0].resumed_bytes) == ("fetched", 30_000)


def test_a_file_that_somebody_put_there_is_taken_if_it_is_the_one(bucket: BucketServer, tmp_path: Path) -> None:
    (tmp_path / f"{A}.nwb").write_bytes(bucket.files[path_of(A)])
    (tmp_path / f"{B}.nwb").write_bytes(bucket.files[path_of(B)][:-1])
    (tmp_path / f"{C}.nwb").write_bytes(bucket.files[path_of(C)][:-1] + b"!")
    outcomes = fetch_all(bucket, tmp_path)
    assert states(outcomes) == ["found", "failed", "failed"]
    assert "is there with 50000 bytes, the server's has 50001; move it away" in outcomes[1].reason
    assert "has the MD5" in outcomes[2].reason
    assert (tmp_path / f"{B}.nwb").stat().st_size == 50_000
    assert bucket.gets() == []
    assert list(read_manifest(tmp_path)) == [A]
    bucket.of_s3 = False
    bucket.files[path_of(C)] = b"x" * 50_002
    (tmp_path / f"{C}.nwb").write_bytes(b"x" * 50_002)
    assert "begins with b'xxxxxxxx'" in fetch_all(bucket, tmp_path)[2].reason


def test_every_file_is_compared_with_its_digest(bucket: BucketServer, tmp_path: Path) -> None:
    fetch_all(bucket, tmp_path)
    assert verify(tmp_path) == {}
    for experiment, content in ((A, b"short"), (B, bucket.files[path_of(B)][:-1] + b"!")):
        (tmp_path / f"{experiment}.nwb").write_bytes(content)
    (tmp_path / f"{C}.nwb").unlink()
    wrong = verify(tmp_path)
    assert set(wrong) == {A, B, C}
    assert "has 5 bytes, the manifest says 50000" in wrong[A]
    assert "has the SHA-256" in wrong[B]
    assert "cannot be read: No such file" in wrong[C]
    with pytest.raises(DataError, match=r"has no allen-manifest\.json"):
        verify(tmp_path / "none")


def damaged(change: dict[str, Any]) -> Any:
    def damage(written: dict[str, Any]) -> bytes:
        written["files"][0].update(change)
        return json.dumps(written).encode()

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda written: b"{", "is not JSON"),
        (lambda written: b"[]", "is no quantformer-allen-manifest"),
        (lambda written: json.dumps(written | {"files": 5}).encode(), "is no quantformer-allen-manifest"),
        (lambda written: json.dumps(written | {"schema": 2}).encode(), "has the schema 2, this version reads 1"),
        (lambda written: json.dumps(written | {"files": [{}]}).encode(), "file 0 has other keys than experiment, url"),
        (damaged({"bytes": "5"}), "bytes is '5', expected int"),
        (damaged({"bytes": True}), "bytes is 'True', expected int"),
        (damaged({"experiment": "../../etc/passwd"}), "experiment is '../../etc/passwd', expected int"),
        (damaged({"sha256": "0" * 63}), "is no such thing"),
        (damaged({"session": 5}), r"session is '5', expected str \| None"),
    ],
)
def test_a_manifest_that_is_none_is_refused(bucket: BucketServer, tmp_path: Path, damage: Any, said: str) -> None:
    fetch_all(bucket, tmp_path)
    path = tmp_path / NAME
    path.write_bytes(damage(json.loads(path.read_bytes())))
    with pytest.raises(DataError, match=said):
        plan_of(bucket, tmp_path)


def test_a_manifest_that_cannot_be_written(bucket: BucketServer, tmp_path: Path) -> None:
    fetch_all(bucket, tmp_path)
    entries = read_manifest(tmp_path)
    with pytest.raises(UnavailableError, match="cannot be written"):
        write_manifest(tmp_path / "nowhere", entries)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UnavailableError, match="cannot be made"):
        plan_of(bucket, tmp_path / "file" / "below")


def test_the_list_is_fetched_once(bucket: BucketServer, tmp_path: Path) -> None:
    bucket.files["ophys_experiments.json"] = b"<html>"
    with pytest.raises(DataError, match="is not JSON"):
        list_experiments(tmp_path, base_url=bucket.url, patience=PATIENCE)
    record = allen_record(600, container=60, session="A", cre="Rorb-IRES2-Cre", area="VISl", depth=275)
    bucket.files["ophys_experiments.json"] = json.dumps([record]).encode()
    first = list_experiments(tmp_path, base_url=bucket.url, patience=PATIENCE)
    bucket.requests.clear()
    assert list_experiments(tmp_path, base_url=bucket.url, patience=PATIENCE) == first
    assert first[0].cre_line == "Rorb-IRES2-Cre"
    assert bucket.requests == []


def test_a_base_url_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no base URL"):
        plan(MOUSE, tmp_path, base_url="bucket")


def test_the_command_fetches_says_so_and_the_second_time_does_nothing(bucket: BucketServer, tmp_path: Path) -> None:
    line = ("fetch-allen", "--out", str(tmp_path), "--container", "511510667", "--base-url", bucket.url)
    shown = command(*line, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "3 files to fetch, 0.2 MB" in shown.stdout
    assert f"{A}.nwb  0.1 MB  session A, container 511510667" in shown.stdout
    assert bucket.gets() == []
    done = command(*line)
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 fetched (0.2 MB), 0 already there" in done.stdout
    bucket.requests.clear()
    assert "0 fetched (0.0 MB), 3 already there" in command(*line).stdout
    assert bucket.requests == []
    verified = command("fetch-allen", "--out", str(tmp_path), "--verify")
    assert (verified.returncode, verified.stdout) == (0, f"3 of 3 files in {tmp_path} are as its manifest says\n")


def test_the_command_reports_what_failed_with_status_1(bucket: BucketServer, tmp_path: Path) -> None:
    del bucket.files[path_of(A)]
    line = ("fetch-allen", "--out", str(tmp_path), "--container", "511510667", "--base-url", bucket.url)
    done = command(*line)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"failed: {A}: {bucket.url}{path_of(A)}: the server answered 404 Not Found"]
    assert "2 fetched" in done.stdout
    (tmp_path / f"{B}.nwb").write_bytes(b"")
    verified = command("fetch-allen", "--out", str(tmp_path), "--verify")
    assert verified.returncode == 1
    assert "1 of 2 files" in verified.stdout
    assert "has 0 bytes, the manifest says 50001" in verified.stderr


def test_the_command_chooses_by_description(bucket: BucketServer, tmp_path: Path) -> None:
    records = [
        allen_record(A, container=511510667, session="A", cre="Cux2-CreERT2", area="VISp", depth=275),
        allen_record(B, container=511510667, session="B", cre="Rorb-IRES2-Cre", area="VISp", depth=275),
    ]
    bucket.files["ophys_experiments.json"] = json.dumps(records).encode()
    line = ("fetch-allen", "--out", str(tmp_path), "--area", "VISp", "--depth-um", "275", "--base-url", bucket.url)
    done = command(*line, "--cre-line", "Rorb-IRES2-Cre")
    assert done.returncode == 0, done.stderr
    entry = read_manifest(tmp_path)[B]
    assert (entry.cre_line, entry.area, entry.depth_um, entry.session) == ("Rorb-IRES2-Cre", "VISp", 275, "B")
    absent = command(*line, "--cre-line", "Sst")
    assert absent.returncode == 2
    assert "cre line Sst (there are Cux2-CreERT2, Rorb-IRES2-Cre)" in absent.stderr


def test_progress_without_a_terminal_is_lines_with_the_time_left(
    bucket: BucketServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = plan_of(bucket, tmp_path)
    with FetchProgress(Console(stderr=True, force_terminal=False), planned, line_s=0.0) as progress:
        progress.report(planned.missing[0], 0)
        progress.report(planned.missing[0], 20_000)
        fetch(planned, patience=PATIENCE, report=progress.report)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"{A}.nwb (1 of 3): 0.0 MB of 0.2 MB, 0.0 MB/s, stalled"
    assert re.fullmatch(rf"{A}\.nwb \(1 of 3\): 0\.0 MB of 0\.2 MB, [0-9.]+ [MG]B/s, [0-9]+ minutes left", lines[1])
    assert lines[-1].startswith(f"{C}.nwb (3 of 3): 0.2 MB of 0.2 MB")


def test_progress_on_a_terminal_is_one_bar(bucket: BucketServer, tmp_path: Path) -> None:
    planned = plan_of(bucket, tmp_path)
    screen = io.StringIO()
    with FetchProgress(Console(file=screen, force_terminal=True, width=120), planned) as progress:
        fetch(planned, patience=PATIENCE, report=progress.report)
    shown = screen.getvalue()
    assert f"{C}.nwb (3 of 3)" in shown
    assert "150.0/150.0 kB" in shown
    assert "0:00:00" in shown


class Stopped(NamedTuple):
    number: int
    status: int


@pytest.mark.parametrize("stop", [Stopped(signal.SIGINT, 130), Stopped(signal.SIGKILL, -signal.SIGKILL)])
def test_an_interrupted_command_goes_on_where_it_was(tmp_path: Path, stop: Stopped) -> None:
    content = hdf5_like(LARGE)
    environment = clean_environment()
    with BucketServer() as bucket:
        bucket.files[path_of(A)] = content
        bucket.faults[path_of(A)] = [Fault(stall_after=LARGE // 2)]
        line = ["fetch-allen", "--out", str(tmp_path), "--experiment", str(A), "--base-url", bucket.url]
        running = subprocess.Popen(
            [sys.executable, "-m", "quantformer_cli.main", *line],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        partial = tmp_path / f"{A}.nwb.partial"
        try:
            until(lambda: partial.is_file() and partial.stat().st_size > LARGE // 3)
            second = command(*line)
            assert second.returncode == 4
            assert f"another process is fetching into {tmp_path}" in second.stderr
            os.kill(running.pid, stop.number)
            _, errors = running.communicate(timeout=PATIENCE_S)
        finally:
            running.kill()
            running.wait(timeout=PATIENCE_S)
        assert running.returncode == stop.status, errors
        assert "Traceback" not in errors
        left = partial.stat().st_size
        assert content.startswith(partial.read_bytes())
        assert not (tmp_path / f"{A}.nwb").exists()
        done = command(*line)
        assert done.returncode == 0, done.stderr
        assert bucket.gets()[-1].range == f"bytes={left}-"
    assert (tmp_path / f"{A}.nwb").read_bytes() == content
    assert f"{left / 1e6:.1f} MB of it here" in done.stdout
