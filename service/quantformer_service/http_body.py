"""Reading HTTP bodies: capped before they are read, decoded once, refused where they say something unknown."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Iterator
from typing import Annotated, TypeVar

import msgspec
import numpy as np
from msgspec import inspect
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request

from quantformer_client import wire
from quantformer_client.errors import WireError
from quantformer_service.http_errors import HttpRefusalError

Body = TypeVar("Body")
BINARY, JSON = "application/octet-stream", "application/json"


class JsonFrame(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One frame as JSON: a number a ROI, null where it has none."""

    number: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
    device_s: float
    fluorescence: list[float | None]
    neuropil: list[float | None] | None = None
    motion: tuple[float, float] | None = None


class Frames(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Frames of a session, in order."""

    frames: Annotated[list[JsonFrame], msgspec.Meta(min_length=1, max_length=4096)]


async def read_bytes(request: Request, *, limit: int, timeout_s: float) -> bytes:
    """The body, of at most ``limit`` bytes, which must have come within ``timeout_s``.

    Raises:
        HttpRefusalError: longer, slower, or the client left.
    """
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced) > limit:
        raise HttpRefusalError("oversized", f"a body of {announced[:32]} bytes, at most {limit} are read (--max-body-bytes)")
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise HttpRefusalError("oversized", f"a body of more than the {limit} bytes that are read (--max-body-bytes)")
    except TimeoutError:
        raise HttpRefusalError("request_timeout", f"the body did not come within {timeout_s:g} s; send it in one go") from None
    except ClientDisconnect:
        raise HttpRefusalError("request_timeout", "the client left before its body was whole") from None
    return bytes(body)


def content_type(request: Request) -> str:
    """The media type of the body, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def read_json(request: Request, data: bytes, kind: type[Body]) -> Body:
    """Decode a JSON body strictly; an empty one is ``{}``.

    Raises:
        HttpRefusalError: another media type, no JSON, or not what ``kind`` holds, with the place and the nearest field.
    """
    found = content_type(request)
    # A page of another site can send a body as text/plain without asking; as application/json it cannot.
    if found != JSON and (data or found):
        raise HttpRefusalError("unsupported_media_type", f"a body of type {found or 'none'!r}, expected {JSON}")
    try:
        value = msgspec.json.decode(data or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HttpRefusalError("bad_json", f"the body is not JSON: {error}") from None
    try:
        for path, name, fields in _unknown(value, inspect.type_info(kind), "$"):
            near = difflib.get_close_matches(name, fields, n=1, cutoff=0.0)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise HttpRefusalError("bad_payload", f"{path} has no field {name[:64]!r}{hint}")
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError, OverflowError) as error:
        raise HttpRefusalError("bad_payload", f"{error}; see /v1/openapi.json") from None


def _unknown(value: object, kind: inspect.Type, path: str) -> Iterator[tuple[str, str, list[str]]]:
    """Fields of ``value`` that ``kind`` does not have, with where they are. The wire ignores such fields, so that newer
    clients work; a person who writes JSON by hand wants to hear of a slip.
    """
    if isinstance(kind, inspect.Metadata):
        yield from _unknown(value, kind.type, path)
    elif isinstance(kind, inspect.UnionType):
        for one in kind.types:
            yield from _unknown(value, one, path)
    elif isinstance(kind, inspect.ListType) and isinstance(value, list):
        for number, item in enumerate(value):
            yield from _unknown(item, kind.item_type, f"{path}[{number}]")
    elif isinstance(kind, inspect.StructType) and isinstance(value, dict):
        fields = {field.encode_name: field.type for field in kind.fields}
        for name, item in value.items():
            if name in fields:
                yield from _unknown(item, fields[name], f"{path}.{name}")
            else:
                yield path, name, list(fields)


def read_frames(request: Request, data: bytes) -> Iterator[wire.Frame]:
    """The frames of a body: JSON, or the wire's FRAME messages each behind its length, as over TCP.

    Raises:
        HttpRefusalError: another media type, or bytes that are not frames.
    """
    if content_type(request) != BINARY:
        for one in read_json(request, data, Frames).frames:
            yield _frame(one)
        return
    stream = wire.MessageStream()
    try:
        for message in stream.feed(data):
            body = wire.decode(message).body
            if not isinstance(body, wire.Frame):
                raise HttpRefusalError("unexpected", f"a {type(body).__name__} message among frames; expected FRAME only")
            # Over HTTP nobody speaks a newer minor version: bytes beyond the arrays are another type than float32.
            if len(message) != (wanted := len(body.encode())):
                raise HttpRefusalError(
                    "bad_payload", f"FRAME {body.number} has {len(message)} bytes, expected {wanted}; send float32, one a ROI"
                )
            yield body
    except WireError as error:
        raise HttpRefusalError(error.code, str(error)) from None
    if stream.pending or not data:
        raise HttpRefusalError(
            "truncated", f"the body ends {stream.pending} bytes into a message; send FRAME messages, each behind its u32 length"
        )


def _frame(one: JsonFrame) -> wire.Frame:
    return wire.Frame(
        number=one.number,
        device_s=one.device_s,
        fluorescence=_floats(one.fluorescence),
        neuropil=None if one.neuropil is None else _floats(one.neuropil),
        motion=one.motion,
    )


def _floats(values: list[float | None]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which the engine treats like NaN
        return np.array(values, dtype=np.float32)  # None becomes NaN
