"""What a server says of one file, asked over HTTPS with the standard library: size, ETag, and how often to ask again.

Redirects from HTTPS lead to HTTPS only, and names that a server gives are never used. Proxies are those of the
environment (``HTTPS_PROXY``), certificates those of the system (``SSL_CERT_FILE`` names others).
"""

from __future__ import annotations

import http.client
import logging
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from typing import TypeVar
from urllib.parse import urlsplit

from quantformer import __version__
from quantformer.errors import UnavailableError, UsageError

#: A file of a session has some hundred megabytes; a server that claims more than this is not believed.
MOST_BYTES = 64 * 2**30
#: Answers after which the same question may fare better.
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
SOFTWARE = f"quantformer {__version__}"
T = TypeVar("T")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to try. Waits double from ``first_wait_s`` to ``longest_wait_s``; silence is what one read may take.

    ``attempts`` counts those in a row that brought less than a mebibyte.
    """

    attempts: int = 8
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    silence_s: float = 60.0


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One file as its server describes it. ``etag`` is None where it cannot identify the bytes (absent or weak).

    ``md5`` is the content's MD5 in hexadecimal where S3 tells it: the ETag of an object stored in one part.
    """

    url: str
    bytes: int
    etag: str | None
    md5: str | None


class RefusedError(UnavailableError):
    """The server answered with an error that will stay the same; ``status`` is its number."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class PassingError(Exception):
    """Something that another attempt may cure; ``wait_s`` is what the server asked for."""

    def __init__(self, message: str, *, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


def check_base_url(text: str) -> str:
    """The URL below which the files lie, ending in a slash.

    Raises:
        UsageError: it is no plain HTTP or HTTPS URL of a folder.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"{text!r} is no URL: {error}") from error
    plain = parts.scheme in ("https", "http") and parts.hostname and port != 0 and not parts.query and not parts.fragment
    if not plain or "@" in parts.netloc or not re.fullmatch(r"[!-~]+", text):
        raise UsageError(f"{text!r} is no base URL; expected https://HOST/FOLDER/ without user, query or fragment")
    return text if text.endswith("/") else text + "/"


def look(url: str, *, patience: Patience) -> RemoteFile:
    """Ask for size and ETag (HEAD), again where the trouble may pass.

    Raises:
        UnavailableError: the server cannot be reached, refuses, or claims an absurd size.
    """

    def once() -> RemoteFile:
        with answer(url, method="HEAD", headers={}, silence_s=patience.silence_s) as response:
            return described(url, response.headers)

    return patiently(once, url=url, patience=patience)


def fetch_bytes(url: str, *, most: int, patience: Patience) -> bytes:
    """A small file, whole, in memory.

    Raises:
        UnavailableError: it cannot be had, or has more than ``most`` bytes.
    """

    def once() -> bytes:
        with answer(url, method="GET", headers={}, silence_s=patience.silence_s) as response:
            expected = described(url, response.headers).bytes
            if expected > most:
                raise UnavailableError(f"{url} has {expected} bytes, expected at most {most}")
            try:
                body = response.read(expected)
            except (OSError, http.client.HTTPException) as error:
                raise PassingError(f"the connection broke: {error!r}") from error
            if len(body) != expected:
                raise PassingError(f"the connection ended after {len(body)} of {expected} bytes")
            return body

    return patiently(once, url=url, patience=patience)


def patiently(action: Callable[[], T], *, url: str, patience: Patience) -> T:
    """Do it, and again after a `PassingError` as often as ``patience`` allows; then raise `UnavailableError`."""
    for attempt in range(1, patience.attempts + 1):
        try:
            return action()
        except PassingError as error:
            if attempt == patience.attempts:
                raise UnavailableError(f"{url}: {error}; given up after {attempt} attempts") from error
            _LOG.warning("%s: %s; trying again", url, error)
            pause(error, failures=attempt, patience=patience)
    raise ValueError("Patience.attempts must be at least 1")


def pause(error: PassingError, *, failures: int, patience: Patience) -> None:
    """Wait before the next attempt: doubling, but as long as the server asked, within the longest wait."""
    doubled = patience.first_wait_s * 2.0 ** min(failures - 1, 30)
    time.sleep(min(max(doubled, error.wait_s), patience.longest_wait_s))


@contextmanager
def answer(
    url: str, *, method: str, headers: dict[str, str], silence_s: float
) -> Iterator[http.client.HTTPResponse]:
    """The server's successful answer, its body unread.

    Raises:
        PassingError: no connection, or an answer that may be another next time.
        RefusedError: an answer that will stay the same.
        UnavailableError: a redirect away from HTTPS, a certificate that is not trusted, an encoded body.
    """
    sent = {"User-Agent": SOFTWARE.replace(" ", "/"), "Accept-Encoding": "identity", **headers}
    request = urllib.request.Request(url, method=method, headers=sent)
    try:
        response = _opener().open(request, timeout=silence_s)
    except urllib.error.HTTPError as error:
        with error:
            told = f"the server answered {error.code} {error.reason}"
            if error.code in PASSING:
                raise PassingError(told, wait_s=_retry_after(error.headers)) from error
            raise RefusedError(f"{url}: {told}", status=error.code) from error
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise UnavailableError(
                f"{url}: the server's certificate is not trusted ({reason.verify_message}); "
                "SSL_CERT_FILE names a file of trusted certificates"
            ) from error
        raise PassingError(f"no answer: {reason or repr(error)}") from error
    with response:
        coding = response.headers.get("Content-Encoding", "identity")
        if coding != "identity":
            raise UnavailableError(f"{url} comes in the coding {coding[:40]!r}, which was not asked for")
        yield response


def described(url: str, headers: Message) -> RemoteFile:
    """The file that an answer with its whole body is about.

    Raises:
        UnavailableError: it states no length, or an absurd one.
    """
    length = headers.get("Content-Length", "")
    if not re.fullmatch(r"[0-9]{1,18}", length):
        raise UnavailableError(f"{url}: the server states no length of the file (Content-Length: {length[:40]!r})")
    if not 0 < int(length) <= MOST_BYTES:
        raise UnavailableError(f"{url}: the server claims {length} bytes, expected 1 to {MOST_BYTES}")
    etag = strong_etag(headers)
    # An ETag is the MD5 on S3 only, and there not of objects in several parts ("...-12") or under a key of their own.
    encrypted = headers.get("x-amz-server-side-encryption", "AES256") != "AES256"
    customer = headers.get("x-amz-server-side-encryption-customer-algorithm") is not None
    of_s3 = headers.get("x-amz-request-id") is not None and not encrypted and not customer
    digest = re.fullmatch(r'"([0-9a-f]{32})"', etag or "") if of_s3 else None
    return RemoteFile(url=url, bytes=int(length), etag=etag, md5=digest[1] if digest else None)


def strong_etag(headers: Message) -> str | None:
    """The ETag, quotes included, where it stands for exactly these bytes (RFC 9110, 8.8.3)."""
    found = headers.get("ETag", "")
    return found if re.fullmatch(r'"[!#-~]{1,200}"', found) else None


def _retry_after(headers: Message) -> float:
    found = headers.get("Retry-After", "")
    return float(found) if re.fullmatch(r"[0-9]{1,6}", found) else 0.0


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a few redirects, keeping method and headers; from HTTPS to HTTPS only."""

    max_redirections = 5
    max_repeats = 2

    def redirect_request(
        self, req: urllib.request.Request, fp: object, code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request:
        """The next request, or an `UnavailableError` where it would leave HTTPS."""
        scheme = urlsplit(newurl).scheme
        if scheme != "https" and not (scheme == "http" and req.type == "http"):
            raise UnavailableError(f"{req.full_url} redirects to {newurl[:200]!r}; only HTTPS is followed")
        return urllib.request.Request(newurl, method=req.get_method(), headers=dict(req.header_items()))


class _Https(urllib.request.AbstractHTTPHandler):
    """HTTPS with the certificates of the system, which are read only when something is asked of it."""

    https_request = urllib.request.AbstractHTTPHandler.do_request_

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Send a request; urllib calls this."""
        return self.do_open(http.client.HTTPSConnection, req, context=ssl.create_default_context())


def _opener() -> urllib.request.OpenerDirector:
    """HTTP and HTTPS alone: urllib's own opener would also follow to ftp:, and open file: and data:."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        _Https(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _SafeRedirects(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener
