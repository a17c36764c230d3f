"""One file from a server that cuts, lies, forgets ranges and changes its mind: whole and right, or a clear error."""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from bucket_server import SIGNATURE, BucketServer, Fault, hdf5_like
from hypothesis import given, settings
from hypothesis import strategies as st

from quantformer.errors import DataError, UnavailableError, UsageError
from quantformer_training.download import arrived, check_room, download, partial_path
from quantformer_training.remote_file import MOST_BYTES, Patience, check_base_url, fetch_bytes, look

PATIENCE = Patience(attempts=4, first_wait_s=0.0, longest_wait_s=0.0, silence_s=20.0)
CONTENT = hdf5_like(300_000)
OTHER = hdf5_like(len(CONTENT), seed=9)
HALF = len(CONTENT) // 2


@pytest.fixture
def bucket() -> Iterator[BucketServer]:
    with BucketServer() as server:
        server.files["a"] = CONTENT
        yield server


def get(bucket: BucketServer, target: Path, *, patience: Patience = PATIENCE) -> str:
    """Look, download, and return how much an earlier attempt had left and what was compared."""
    remote = look(bucket.url + "a", patience=patience)
    got = download(remote, target, signature=SIGNATURE, patience=patience)
    assert got.sha256 == hashlib.sha256(target.read_bytes()).hexdigest()
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    return f"{got.resumed_bytes} {got.checked}"


def test_a_whole_file_with_its_progress(bucket: BucketServer, tmp_path: Path) -> None:
    told: list[int] = []
    remote = look(bucket.url + "a", patience=PATIENCE)
    got = download(remote, tmp_path / "x", signature=SIGNATURE, patience=PATIENCE, report=told.append)
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert (got.bytes, got.checked, got.resumed_bytes) == (len(CONTENT), "md5", 0)
    assert told == sorted(told)
    assert told[-1] == len(CONTENT)


def test_a_cut_is_resumed_where_it_happened(bucket: BucketServer, tmp_path: Path) -> None:
    bucket.faults["a"] = [Fault(cut_after=HALF), Fault(cut_after=100)]
    get(bucket, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT
    etag = f'"{hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()}"'
    assert [(one.range, one.if_range) for one in bucket.gets()] == [
        (None, None), (f"bytes={HALF}-", etag), (f"bytes={HALF + 100}-", etag),
    ]  # fmt: skip


def test_a_later_call_goes_on_with_what_an_earlier_one_left(bucket: BucketServer, tmp_path: Path) -> None:
    bucket.faults["a"] = [Fault(cut_after=HALF)] + [Fault(status=503)] * 4
    with pytest.raises(UnavailableError, match=r"503 Service Unavailable; given up after 4 attempts"):
        get(bucket, tmp_path / "x")
    assert partial_path(tmp_path / "x").read_bytes() == CONTENT[:HALF]
    assert not (tmp_path / "x").exists()
    assert get(bucket, tmp_path / "x") == f"{HALF} md5"
    assert bucket.gets()[-1].range == f"bytes={HALF}-"


def test_progress_renews_patience(bucket: BucketServer, tmp_path: Path) -> None:
    bucket.files["a"] = hdf5_like(7_000_000)
    bucket.faults["a"] = [Fault(cut_after=1_100_000) for _ in range(6)]
    get(bucket, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == bucket.files["a"]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_an_answer_that_passes_is_asked_again(bucket: BucketServer, tmp_path: Path, status: int) -> None:
    bucket.faults = {"a": [Fault(status=status, headers={"Retry-After": "7"})] * 2, "HEAD a": [Fault(status=status)]}
    get(bucket, tmp_path / "x")
    assert len(bucket.gets()) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_an_answer_that_stays_is_not(bucket: BucketServer, tmp_path: Path, status: int) -> None:
    bucket.faults["a"] = [Fault(status=status)]
    with pytest.raises(UnavailableError, match=f"a: the server answered {status}"):
        get(bucket, tmp_path / "x")
    assert len(bucket.gets()) == 1


def test_a_silent_server_is_left_and_asked_again(bucket: BucketServer, tmp_path: Path) -> None:
    bucket.faults["a"] = [Fault(stall_after=HALF)]
    patience = Patience(attempts=4, first_wait_s=0.0, longest_wait_s=0.0, silence_s=0.5)
    get(bucket, tmp_path / "x", patience=patience)
    assert bucket.gets()[1].range == f"bytes={HALF}-"


def test_a_server_without_ranges_sends_all_of_it_again(bucket: BucketServer, tmp_path: Path) -> None:
    bucket.faults["a"] = [Fault(cut_after=HALF), Fault(ignore_range=True)]
    get(bucket, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_a_strong_etag_nothing_is_resumed(bucket: BucketServer, tmp_path: Path, etag: str) -> None:
    none = {"ETag": etag}
    bucket.faults = {"a": [Fault(headers=none, cut_after=HALF), Fault(headers=none)], "HEAD a": [Fault(headers=none)]}
    assert get(bucket, tmp_path / "x") == "0 size"
    assert [one.range for one in bucket.gets()] == [None, None]


def test_without_an_etag_even_a_full_part_is_not_taken(bucket: BucketServer, tmp_path: Path) -> None:
    bucket.of_s3 = False
    none = {"ETag": ""}
    bucket.faults = {"a": [Fault(headers=none)], "HEAD a": [Fault(headers=none)]}
    partial_path(tmp_path / "x").write_bytes(OTHER)
    note = {"url": bucket.url + "a", "bytes": len(OTHER), "etag": None}
    (tmp_path / "x.partial.json").write_text(json.dumps(note), encoding="utf-8")
    get(bucket, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT


@pytest.mark.parametrize("size", [len(CONTENT), len(CONTENT) + 50_000, HALF + 100, 70_000])
def test_another_file_halfway_is_fetched_from_its_beginning(bucket: BucketServer, tmp_path: Path, size: int) -> None:
    other = hdf5_like(size, seed=1)
    bucket.faults["a"] = [Fault(cut_after=HALF, then=lambda: bucket.files.update(a=other))]
    assert get(bucket, tmp_path / "x") == "0 md5"
    assert (tmp_path / "x").read_bytes() == other


def test_a_part_of_another_file_is_not_continued(bucket: BucketServer, tmp_path: Path) -> None:
    bucket.faults["a"] = [Fault(cut_after=HALF), Fault(status=404)]
    with pytest.raises(UnavailableError, match="404"):
        get(bucket, tmp_path / "x")
    bucket.files["a"] = hdf5_like(len(CONTENT), seed=2)
    assert get(bucket, tmp_path / "x") == "0 md5"
    assert (tmp_path / "x").read_bytes() == bucket.files["a"]


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b'{"url": 1}'])
def test_a_part_whose_note_says_nothing_is_not_continued(bucket: BucketServer, tmp_path: Path, note: bytes) -> None:
    remote = look(bucket.url + "a", patience=PATIENCE)
    partial_path(tmp_path / "x").write_bytes(b"old" * 100)
    (tmp_path / "x.partial.json").write_bytes(note)
    assert arrived(remote, tmp_path / "x") == 0
    get(bucket, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "lie",
    [
        Fault(headers={"Content-Range": f"bytes {HALF}-{len(CONTENT)}/{len(CONTENT) + 1}"}, body=OTHER),
        Fault(headers={"Content-Range": f"bytes 5-{len(CONTENT) - 1}/{len(CONTENT)}"}, body=OTHER),
        Fault(headers={"Content-Range": "bytes 1-2"}, body=OTHER),
        Fault(headers={"Content-Range": ""}, body=OTHER),
        Fault(headers={"ETag": '"other"'}, body=OTHER),
        Fault(status=416),
    ],
)
def test_a_wrong_range_is_not_believed(bucket: BucketServer, tmp_path: Path, lie: Fault) -> None:
    bucket.of_s3 = False  # no digest would tell afterwards
    bucket.faults["a"] = [Fault(cut_after=HALF), lie]
    get(bucket, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_a_part_longer_than_its_file_is_not_continued(bucket: BucketServer, tmp_path: Path) -> None:
    bucket.of_s3 = False
    bucket.faults["a"] = [Fault(cut_after=HALF), Fault(status=404)]
    with pytest.raises(UnavailableError, match="404"):
        get(bucket, tmp_path / "x")
    partial_path(tmp_path / "x").write_bytes(OTHER + b"more")
    get(bucket, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_a_body_shorter_than_its_length_is_never_taken_for_whole(bucket: BucketServer, tmp_path: Path) -> None:
    bucket.faults["a"] = [Fault(cut_after=HALF, ignore_range=True) for _ in range(20)]
    with pytest.raises(UnavailableError, match=f"ended after {HALF} of {len(CONTENT)} bytes; given up after 4"):
        get(bucket, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_body_longer_than_its_length_ends_there(bucket: BucketServer, tmp_path: Path) -> None:
    bucket.faults["a"] = [Fault(body=CONTENT + b"more" * 1000)]
    get(bucket, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_two_lengths_of_one_file_are_refused(bucket: BucketServer, tmp_path: Path) -> None:
    bucket.faults["a"] = [Fault(headers={"Content-Length": "200000"})] * 4
    with pytest.raises(UnavailableError, match="announced 300000 bytes and now sends 200000"):
        get(bucket, tmp_path / "x")


@pytest.mark.parametrize("length", ["0", "-5", "1e3", "", str(MOST_BYTES + 1), "9" * 18, "9" * 40])
def test_an_absurd_length_is_not_believed(bucket: BucketServer, length: str) -> None:
    bucket.faults["HEAD a"] = [Fault(headers={"Content-Length": length})]
    with pytest.raises(UnavailableError, match=r"claims [0-9]+ bytes, expected 1 to|states no length"):
        look(bucket.url + "a", patience=PATIENCE)


def test_wrong_bytes_of_the_right_number_are_fetched_again_once(bucket: BucketServer, tmp_path: Path) -> None:
    spoilt = CONTENT[:-1] + b"!"
    bucket.faults["a"] = [Fault(body=spoilt)]
    get(bucket, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT
    bucket.faults["a"] = [Fault(body=spoilt)] * 2
    with pytest.raises(DataError, match=r"have the MD5 [0-9a-f]{32}, the server's have [0-9a-f]{32}, twice"):
        get(bucket, tmp_path / "y")
    assert not list(tmp_path.glob("y*"))


def test_an_etag_is_a_digest_on_s3_only(bucket: BucketServer, tmp_path: Path) -> None:
    bucket.of_s3 = False
    assert get(bucket, tmp_path / "x") == "0 size"
    bucket.of_s3 = True
    several = {"ETag": '"0123456789abcdef0123456789abcdef-7"'}
    keyed = {"ETag": '"0123456789abcdef0123456789abcdef"', "x-amz-server-side-encryption": "aws:kms"}
    for headers in (several, keyed):
        bucket.faults = {"HEAD a": [Fault(headers=headers)], "a": [Fault(headers=headers)]}
        assert get(bucket, tmp_path / "x") == "0 size"


def test_a_page_in_place_of_a_recording_is_refused(bucket: BucketServer, tmp_path: Path) -> None:
    bucket.files["a"] = b"<html>please log in</html>"
    with pytest.raises(DataError, match=r"begins with b'<html>pl', expected b'\\x89HDF"):
        get(bucket, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_body_in_a_coding_is_refused(bucket: BucketServer) -> None:
    bucket.faults["HEAD a"] = [Fault(headers={"Content-Encoding": "gzip"})]
    with pytest.raises(UnavailableError, match="comes in the coding 'gzip'"):
        look(bucket.url + "a", patience=PATIENCE)


def test_a_disk_that_takes_no_more_keeps_what_it_has(bucket: BucketServer, tmp_path: Path) -> None:
    # The kernel's limit on the size of a file makes write() fail as a full disk does, with another number.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, hard))
    try:
        with pytest.raises(UnavailableError, match=r"x\.partial cannot be written: File too large"):
            get(bucket, tmp_path / "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    left = arrived(look(bucket.url + "a", patience=PATIENCE), tmp_path / "x")
    assert 0 < left <= HALF
    assert get(bucket, tmp_path / "x") == f"{left} md5"


def test_room_is_what_the_disk_has(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    check_room(tmp_path, needed=1, what="a byte")
    with pytest.raises(UnavailableError, match=r"GB free, too much needs .* GB; free some"):
        check_room(tmp_path, needed=2 * free, what="too much")


@settings(max_examples=40)
@given(
    size=st.integers(9, 400_000),
    cuts=st.lists(
        st.builds(Fault, cut_after=st.integers(0, 400_000), ignore_range=st.booleans(), status=st.sampled_from([0, 0, 503])),
        max_size=6,
    ),
)
def test_whatever_is_cut_the_file_is_whole(size: int, cuts: list[Fault]) -> None:
    with BucketServer() as bucket, tempfile.TemporaryDirectory() as folder:
        bucket.files["a"] = hdf5_like(size)
        bucket.faults["a"] = cuts
        patience = Patience(attempts=8, first_wait_s=0.0, longest_wait_s=0.0, silence_s=20.0)
        get(bucket, Path(folder) / "x", patience=patience)
        assert (Path(folder) / "x").read_bytes() == bucket.files["a"]


def test_nobody_there(tmp_path: Path) -> None:
    with BucketServer() as gone:
        url = gone.url
    with pytest.raises(UnavailableError, match=r"no answer: .*; given up after 4 attempts"):
        look(url + "a", patience=PATIENCE)


def test_a_small_file_in_memory(bucket: BucketServer) -> None:
    bucket.files["list"] = b"[1, 2]"
    bucket.faults["list"] = [Fault(cut_after=3), Fault(status=502)]
    assert fetch_bytes(bucket.url + "list", most=6, patience=PATIENCE) == b"[1, 2]"
    with pytest.raises(UnavailableError, match="has 6 bytes, expected at most 5"):
        fetch_bytes(bucket.url + "list", most=5, patience=PATIENCE)


def test_redirects_among_equals_are_followed_with_range_and_method(bucket: BucketServer, tmp_path: Path) -> None:
    there = {"Location": bucket.url + "elsewhere/../../../name"}
    bucket.files["elsewhere/../../../name"] = CONTENT
    bucket.faults = {
        "a": [Fault(status=307, headers=there) for _ in range(2)],
        "HEAD a": [Fault(status=302, headers=there)],
        "elsewhere/../../../name": [Fault(cut_after=HALF)],
    }
    get(bucket, tmp_path / "x")
    assert [(one.method, one.range) for one in bucket.requests if one.path != "a"] == [
        ("HEAD", None), ("GET", None), ("GET", f"bytes={HALF}-"),
    ]  # fmt: skip
    # What the redirect calls it has no say in where it goes.
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/a", "data:,a"])
def test_redirects_to_other_schemes_are_not(bucket: BucketServer, location: str) -> None:
    bucket.faults["HEAD a"] = [Fault(status=302, headers={"Location": location})]
    with pytest.raises(UnavailableError, match=r"only HTTPS is followed|the server answered 302"):
        look(bucket.url + "a", patience=PATIENCE)


def test_redirects_in_a_circle_end(bucket: BucketServer) -> None:
    bucket.faults["HEAD a"] = [Fault(status=302, headers={"Location": bucket.url + "a"}) for _ in range(50)]
    with pytest.raises(UnavailableError, match="the server answered 302"):
        look(bucket.url + "a", patience=PATIENCE)
    assert len(bucket.requests) < 10


def test_https_is_trusted_by_certificate_and_never_left(
    bucket: BucketServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with BucketServer(tls=context) as secure:
        secure.files["a"] = CONTENT
        with pytest.raises(UnavailableError, match=r"certificate is not trusted .*SSL_CERT_FILE"):
            look(secure.url + "a", patience=PATIENCE)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        folder = tmp_path / "files"
        folder.mkdir()
        get(secure, folder / "x")
        assert (folder / "x").read_bytes() == CONTENT
        secure.faults["HEAD a"] = [Fault(status=302, headers={"Location": bucket.url + "a"})]
        with pytest.raises(UnavailableError, match=r"redirects to 'http://.*only HTTPS is followed"):
            look(secure.url + "a", patience=PATIENCE)
    assert bucket.requests == []


@pytest.mark.parametrize(
    "text", ["", "ftp://a/", "file:///a", "https://", "//a/b", "https://me:secret@a/", "https://a/?x=1", "https://a/#x",
             "https://a b/", "https://a/\n", "https://a:99999/", "https://[::1/"],
)  # fmt: skip
def test_what_is_no_base_url(text: str) -> None:
    with pytest.raises(UsageError, match="URL"):
        check_base_url(text)


def test_base_urls_end_in_a_slash() -> None:
    assert check_base_url("https://a/b") == check_base_url("https://a/b/") == "https://a/b/"
    assert check_base_url("http://[::1]:80") == "http://[::1]:80/"


def test_the_note_beside_a_part_says_whose_it_is(bucket: BucketServer, tmp_path: Path) -> None:
    bucket.faults["a"] = [Fault(cut_after=HALF), Fault(status=404)]
    with pytest.raises(UnavailableError):
        get(bucket, tmp_path / "x")
    note = json.loads((tmp_path / "x.partial.json").read_text(encoding="utf-8"))
    assert (note["url"], note["bytes"]) == (bucket.url + "a", len(CONTENT))
