"""Fetch Allen Visual Coding recordings from the public bucket into a folder, file after file, and keep its manifest.

    planned = plan(choose(Choice(sessions=("A",))), out, base_url=BUCKET)
    outcomes = fetch(planned)

`plan` asks the server for every size first, so that the disk is known to suffice before the first byte arrives. One file
that fails does not keep the others; run it again to go on where it ended.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from quantformer.errors import DataError, QuantformerError, UnavailableError
from quantformer_training.allen_containers import MOST_LIST_BYTES, AllenExperiment, read_experiments
from quantformer_training.allen_manifest import ManifestEntry, file_name, read_manifest, write_manifest
from quantformer_training.download import arrived, check_room, digests, download
from quantformer_training.hdf5 import SIGNATURE
from quantformer_training.remote_file import SOFTWARE, Patience, RemoteFile, check_base_url, fetch_bytes, look

#: The public bucket's folder of the two-photon Visual Coding data; below it lie the files named here.
BUCKET = "https://allen-brain-observatory.s3.us-west-2.amazonaws.com/visual-coding-2p/"
DATA = "ophys_experiment_data/{id}.nwb"
LIST = "ophys_experiments.json"
#: ``present``: as the manifest says. ``found``: put there by someone, of the server's size. ``missing``: to be fetched.
State = Literal["present", "found", "missing", "failed"]


@dataclass(frozen=True, kw_only=True)
class PlannedFile:
    """What is to be done about one experiment. ``remote`` is known of files found and missing, ``reason`` of failed."""

    experiment: AllenExperiment
    state: State
    bytes: int = 0
    have_bytes: int = 0
    remote: RemoteFile | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class FetchPlan:
    """Every experiment asked for, and the folder ``out`` that it goes to."""

    out: Path
    files: tuple[PlannedFile, ...]

    @property
    def missing(self) -> tuple[PlannedFile, ...]:
        """Those that have to be fetched, in part at least."""
        return tuple(file for file in self.files if file.state == "missing")

    @property
    def needed_bytes(self) -> int:
        """What will arrive: parts of an earlier attempt are not counted."""
        return sum(file.bytes - file.have_bytes for file in self.missing)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one experiment; ``reason`` says why it failed."""

    experiment: AllenExperiment
    state: Literal["fetched", "present", "found", "failed"]
    bytes: int = 0
    resumed_bytes: int = 0
    reason: str = ""


def list_experiments(
    out: Path, *, base_url: str = BUCKET, patience: Patience | None = None
) -> tuple[AllenExperiment, ...]:
    """The list of all experiments; kept in ``out`` as ``ophys_experiments.json`` and read from there the next time.

    Raises:
        UnavailableError: the server or the disk gave up.
        DataError: what is there is no such list.
    """
    kept = out / LIST
    if kept.is_file():
        return read_experiments(kept)
    text = fetch_bytes(check_base_url(base_url) + LIST, most=MOST_LIST_BYTES, patience=patience or Patience())
    listed = read_experiments(text)
    aside = out / f".{LIST}.partial"
    try:
        out.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(text)
        aside.replace(kept)
    except OSError as error:
        raise UnavailableError(f"{kept} cannot be written: {error.strerror or error}") from error
    return listed


def plan(
    experiments: Sequence[AllenExperiment],
    out: Path,
    *,
    base_url: str = BUCKET,
    patience: Patience | None = None,
    report: Callable[[AllenExperiment], None] = lambda experiment: None,
) -> FetchPlan:
    """See what is there and ask the server (HEAD) about what is not; nothing is asked about files of the manifest.

    Raises:
        UsageError: ``base_url`` is none.
        UnavailableError: ``out`` cannot be made.
        DataError: the manifest in ``out`` cannot be read.
    """
    base_url = check_base_url(base_url)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnavailableError(f"{out} cannot be made: {error.strerror or error}") from error
    manifest = read_manifest(out)
    files: list[PlannedFile] = []
    for experiment in experiments:
        report(experiment)
        left = _left(patience or Patience(attempts=4), after=files[-1] if files else None)
        files.append(_plan_one(experiment, out, entry=manifest.get(experiment.id), base_url=base_url, patience=left))
    return FetchPlan(out=out, files=tuple(files))


def _plan_one(
    experiment: AllenExperiment, out: Path, *, entry: ManifestEntry | None, base_url: str, patience: Patience
) -> PlannedFile:
    target = out / file_name(experiment.id)
    size = target.stat().st_size if target.is_file() else None
    if entry is not None and size == entry.bytes:
        return PlannedFile(experiment=experiment, state="present", bytes=entry.bytes)
    try:
        remote = look(base_url + DATA.format(id=experiment.id), patience=patience)
    except QuantformerError as error:
        return PlannedFile(experiment=experiment, state="failed", reason=str(error))
    if size == remote.bytes:
        return PlannedFile(experiment=experiment, state="found", bytes=size, remote=remote)
    if size is not None and entry is None:
        reason = f"{target} is there with {size} bytes, the server's has {remote.bytes}; move it away to fetch it"
        return PlannedFile(experiment=experiment, state="failed", reason=reason)
    have = arrived(remote, target)
    return PlannedFile(experiment=experiment, state="missing", bytes=remote.bytes, have_bytes=have, remote=remote)


def fetch(
    planned: FetchPlan,
    *,
    patience: Patience | None = None,
    report: Callable[[PlannedFile, int], None] = lambda file, done: None,
) -> tuple[Outcome, ...]:
    """Carry the plan out; ``report`` is told how many bytes of a file there are. Every experiment has an outcome.

    Raises:
        UnavailableError: the disk is too small for all of it (nothing is fetched then) or refuses the manifest, or
            another process fetches into the same folder.
        DataError: the manifest cannot be read.
    """
    with _alone(planned.out):
        if planned.missing:
            check_room(planned.out, needed=planned.needed_bytes, what=f"fetching {len(planned.missing)} files")
        return _carry_out(planned, patience=patience or Patience(), report=report)


def _carry_out(
    planned: FetchPlan, *, patience: Patience, report: Callable[[PlannedFile, int], None]
) -> tuple[Outcome, ...]:
    manifest = read_manifest(planned.out)
    outcomes: list[Outcome] = []
    for file in planned.files:
        if file.remote is None:
            state: Literal["present", "failed"] = "present" if file.state == "present" else "failed"
            outcomes.append(Outcome(experiment=file.experiment, state=state, bytes=file.bytes, reason=file.reason))
            continue
        left = _left(patience, after=outcomes[-1] if outcomes else None)
        try:
            entry, outcome = _fetch_one(file, file.remote, planned.out, patience=left, report=report)
        except (QuantformerError, OSError) as error:
            outcomes.append(Outcome(experiment=file.experiment, state="failed", reason=str(error)))
            continue
        manifest[entry.experiment] = entry
        write_manifest(planned.out, manifest)
        outcomes.append(outcome)
    return tuple(outcomes)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second fetch out of the folder: two would write into one part. Where nothing can be locked, nothing is."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems lock no folders
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UnavailableError(f"another process is fetching into {folder}; let it end, or end it") from None
        yield
    finally:
        os.close(handle)


def _left(patience: Patience, *, after: PlannedFile | Outcome | None) -> Patience:
    """Less patience after a failure: where the network is gone, 33 files are not waited for one by one."""
    failed = after is not None and after.state == "failed"
    return replace(patience, attempts=min(patience.attempts, 2)) if failed else patience


def _fetch_one(
    file: PlannedFile,
    remote: RemoteFile,
    out: Path,
    *,
    patience: Patience,
    report: Callable[[PlannedFile, int], None],
) -> tuple[ManifestEntry, Outcome]:
    experiment, target = file.experiment, out / file_name(file.experiment.id)
    if file.state == "found":
        sha256, etag, checked, size, resumed = *_adopt(remote, target), remote.bytes, 0
    else:
        got = download(
            remote, target, signature=SIGNATURE, patience=patience, report=lambda done: report(file, done)
        )
        sha256, etag, checked, size, resumed = got.sha256, got.etag, got.checked, got.bytes, got.resumed_bytes
    entry = ManifestEntry(
        experiment=experiment.id,
        url=remote.url,
        bytes=size,
        sha256=sha256,
        etag=etag,
        checked=checked,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        software=SOFTWARE,
        container=experiment.container,
        session=experiment.session,
        cre_line=experiment.cre_line,
        area=experiment.area,
        depth_um=experiment.depth_um,
    )
    state: Literal["found", "fetched"] = "found" if file.state == "found" else "fetched"
    return entry, Outcome(experiment=experiment, state=state, bytes=size, resumed_bytes=resumed)


def _adopt(remote: RemoteFile, target: Path) -> tuple[str, str | None, str]:
    """SHA-256, ETag and what was compared, of a file that somebody else put there."""
    sha256, md5 = digests(target)
    if remote.md5 not in (None, md5):
        raise DataError(f"{target} has the MD5 {md5}, the server's has {remote.md5}; move it away to fetch it")
    with target.open("rb") as file:
        begins = file.read(len(SIGNATURE))
    if begins != SIGNATURE:
        raise DataError(f"{target} begins with {begins!r}, expected {SIGNATURE!r}; move it away to fetch it")
    return sha256, remote.etag, "md5" if remote.md5 else "size"
