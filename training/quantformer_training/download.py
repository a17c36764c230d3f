"""One large file from an HTTPS server to a path: resumed after a cut, checked, then moved into place.

What has arrived lies in ``NAME.partial``, and beside it ``NAME.partial.json`` says of which file (URL, size, ETag) it is a
part. A later attempt, also of another process, asks for the rest only (``Range`` with ``If-Range``); a server that has
another file by then, or knows no ranges, sends the whole and it begins anew.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from quantformer.errors import DataError, UnavailableError
from quantformer_training.remote_file import (
    PassingError,
    Patience,
    RefusedError,
    RemoteFile,
    answer,
    described,
    look,
    pause,
    strong_etag,
)

CHUNK = 2**18
#: An attempt that brought this much is no failure, however it ended.
PROGRESS_BYTES = 2**20
#: Left free on the disk beyond the files themselves.
MARGIN_BYTES = 64 * 2**20
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Download:
    """A finished file: its size, SHA-256, ETag, how much of it an earlier attempt had left, and what was compared.

    ``checked`` is ``md5`` where the server told the content's MD5, else ``size``.
    """

    bytes: int
    sha256: str
    etag: str | None
    resumed_bytes: int
    checked: str


def partial_path(target: Path) -> Path:
    """Where the part that has arrived of ``target`` is kept."""
    return target.with_name(target.name + ".partial")


def arrived(remote: RemoteFile, target: Path) -> int:
    """Bytes of ``remote`` that an earlier attempt left beside ``target``; 0 where they belong to another file."""
    partial, note = partial_path(target), _note_path(target)
    try:
        size = partial.stat().st_size
        known = json.loads(note.read_bytes()[:10_000])
    except (OSError, ValueError):
        return 0
    same = remote.etag is not None and known == {"url": remote.url, "bytes": remote.bytes, "etag": remote.etag}
    return size if same and size <= remote.bytes else 0


def check_room(folder: Path, *, needed: int, what: str) -> None:
    """Raise `UnavailableError` unless the disk of ``folder`` has ``needed`` bytes and a margin free."""
    free = shutil.disk_usage(folder).free
    if needed + MARGIN_BYTES > free:
        raise UnavailableError(
            f"{folder} has {free / 1e9:.2f} GB free, {what} needs {(needed + MARGIN_BYTES) / 1e9:.2f} GB; "
            "free some or choose fewer files or another folder"
        )


def download(
    remote: RemoteFile,
    target: Path,
    *,
    signature: bytes,
    patience: Patience,
    report: Callable[[int], None] = lambda done: None,
) -> Download:
    """Fetch ``remote`` to ``target``; ``report`` is told how many bytes there are, fewer again after a new beginning.

    Whatever ends this early, the interrupt key included, leaves a part from which the next call goes on.

    Raises:
        UnavailableError: the server or the disk gave up.
        DataError: the bytes are not those that the server announced, or do not begin with ``signature``.
    """
    resumed = arrived(remote, target)
    spoilt = failures = 0
    while True:
        begun = arrived(remote, target)
        try:
            sha256 = _receive(remote, target, patience=patience, report=report)
            break
        except _ChangedError as change:
            _LOG.warning("%s changed on the server; it is fetched from its beginning", remote.url)
            remote, resumed, error = change.remote, 0, PassingError(f"the file changed while it was fetched: {change}")
        except PassingError as passing:
            error = passing
        except _SpoiltError as wrong:
            spoilt += 1
            _forget(target)
            if spoilt > 1:
                raise DataError(f"{remote.url}: {wrong}, twice") from wrong
            error, resumed = PassingError(str(wrong)), 0
        gained = arrived(remote, target) - begun
        failures = 1 if gained >= PROGRESS_BYTES else failures + 1
        if failures >= patience.attempts:
            raise UnavailableError(f"{remote.url}: {error}; given up after {failures} attempts") from error
        _LOG.warning("%s: %s; trying again", target.name, error)
        pause(error, failures=failures, patience=patience)
    with partial_path(target).open("rb") as file:
        begins = file.read(len(signature))
    if begins != signature:
        _forget(target)
        raise DataError(f"{remote.url} begins with {begins!r}, expected {signature!r}: no file of the kind asked for")
    try:
        partial_path(target).replace(target)
    except OSError as error:
        raise UnavailableError(f"{target} cannot be written: {error.strerror or error}") from error
    _forget(target)
    checked = "md5" if remote.md5 else "size"
    return Download(bytes=remote.bytes, sha256=sha256, etag=remote.etag, resumed_bytes=resumed, checked=checked)


def digests(path: Path) -> tuple[str, str]:
    """SHA-256 and MD5 of a file's bytes, in hexadecimal."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            sha256.update(chunk)
            md5.update(chunk)
    return sha256.hexdigest(), md5.hexdigest()


class _ChangedError(Exception):
    """The server has another file now: ``remote``."""

    def __init__(self, remote: RemoteFile) -> None:
        super().__init__(f"{remote.bytes} bytes, ETag {remote.etag}")
        self.remote = remote


class _SpoiltError(Exception):
    """All bytes are here and they are wrong."""


def _note_path(target: Path) -> Path:
    return target.with_name(target.name + ".partial.json")


def _forget(target: Path) -> None:
    for path in (partial_path(target), _note_path(target)):
        with suppress(FileNotFoundError):
            path.unlink()


def _receive(remote: RemoteFile, target: Path, *, patience: Patience, report: Callable[[int], None]) -> str:
    """Bring ``NAME.partial`` to its full size and compare it; returns its SHA-256."""
    offset = arrived(remote, target)
    if offset < remote.bytes:
        _request(remote, target, offset=offset, patience=patience, report=report)
    report(remote.bytes)
    sha256, md5 = digests(partial_path(target))
    if remote.md5 not in (None, md5):
        raise _SpoiltError(f"the bytes that arrived have the MD5 {md5}, the server's have {remote.md5}")
    return sha256


def _request(
    remote: RemoteFile, target: Path, *, offset: int, patience: Patience, report: Callable[[int], None]
) -> None:
    headers = {"Range": f"bytes={offset}-", "If-Range": remote.etag} if offset and remote.etag else {}
    try:
        with answer(remote.url, method="GET", headers=headers, silence_s=patience.silence_s) as response:
            if response.status == http.client.PARTIAL_CONTENT:
                _check_range(response, remote, offset=offset, target=target)
            elif response.status == http.client.OK:
                offset = 0
                now = described(remote.url, response.headers)
                if (now.bytes, now.etag) != (remote.bytes, remote.etag):
                    _forget(target)
                    if now.etag == remote.etag:
                        raise PassingError(f"the server announced {remote.bytes} bytes and now sends {now.bytes}")
                    check_room(target.parent, needed=now.bytes, what=target.name)
                    raise _ChangedError(now)
            else:
                raise UnavailableError(f"{remote.url}: the server answered {response.status} to a request for the file")
            _write(response, remote, target, offset=offset, report=report)
    except RefusedError as error:
        if error.status != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        _forget(target)
        raise _ChangedError(look(remote.url, patience=patience)) from error


def _check_range(response: http.client.HTTPResponse, remote: RemoteFile, *, offset: int, target: Path) -> None:
    told = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})", told)
    expected = (offset, remote.bytes - 1, remote.bytes)
    if found is None or tuple(map(int, found.groups())) != expected:
        _forget(target)
        raise PassingError(f"the server sends the range {told[:80]!r}, expected bytes {offset}- of {remote.bytes}")
    if strong_etag(response.headers) not in (None, remote.etag):
        _forget(target)
        raise PassingError("the server sends the rest of another file")


def _write(
    response: http.client.HTTPResponse, remote: RemoteFile, target: Path, *, offset: int, report: Callable[[int], None]
) -> None:
    note = {"url": remote.url, "bytes": remote.bytes, "etag": remote.etag}
    try:
        if not offset:
            # The part first: a note alone is harmless, a new note beside an old part would not be.
            partial_path(target).write_bytes(b"")
            _note_path(target).write_text(json.dumps(note), encoding="utf-8")
        with partial_path(target).open("r+b") as file:
            file.seek(offset)
            while offset < remote.bytes:
                try:
                    chunk = response.read1(min(CHUNK, remote.bytes - offset))
                except (OSError, http.client.HTTPException) as error:
                    raise PassingError(f"the connection broke after {offset} of {remote.bytes} bytes: {error}") from error
                if not chunk:
                    raise PassingError(f"the connection ended after {offset} of {remote.bytes} bytes")
                file.write(chunk)
                offset += len(chunk)
                report(offset)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        full = "; free some space and run the same again" if error.errno == errno.ENOSPC else ""
        raise UnavailableError(f"{partial_path(target)} cannot be written: {error.strerror or error}{full}") from error
