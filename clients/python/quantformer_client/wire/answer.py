"""ANSWER: what the model expects of each ROI for each alternative stimulus, with the lineage of the numbers."""

from __future__ import annotations

import math
import struct
from enum import IntEnum, IntFlag
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from quantformer_client.errors import ErrorCode, WireError
from quantformer_client.wire.header import (
    HEADER_BYTES,
    MAJOR,
    MAX_MESSAGE,
    Flags,
    Header,
    MessageType,
    PayloadFormat,
    pack_header,
)

#: Most bytes of an ANSWER's payload.
MAX_ANSWER = MAX_MESSAGE - HEADER_BYTES


class Asked(IntEnum):
    """How the question was asked."""

    ANNOUNCED = 1
    NOW = 2
    STANDING = 3


class Phase(IntEnum):
    """In which phase of the experiment the onset frame lies."""

    SPONTANEOUS = 0
    ONSET = 1
    STIMULUS = 2
    BLANK = 3
    BETWEEN = 4


class Source(IntEnum):
    """Where the time of an announced onset came from."""

    NONE = 0
    SOFTWARE = 1
    PHOTODIODE = 2
    DAQ = 3


class Validity(IntFlag):
    """Bits about one ROI; only VALID with nothing else from INVALID_F0 on may be acted upon."""

    VALID = 1
    KNOWN = 2
    #: F0 is at or below the ROI's smallest usable one, or the window holds a NaN.
    INVALID_F0 = 4
    #: Light was delivered to it and its transient has not decayed.
    STIMULATED = 8
    #: F0 lies outside the range that training saw of this neuron.
    F0_OUT_OF_RANGE = 16


#: bytes of this block, alternatives, response frames, baseline frames, question, onset frame, first and last frame
#: read, lead, frames held, asked, phase, bytes of labels, onset time in s, ns: received, window ready, submitted, done,
#: published, deadline; bundle's SHA-256.
_LINEAGE = struct.Struct("<HHHHQQQQHHBBxxIxxxxdqqqqqq32s")
#: What version 1.1 added behind it: onset as told, its uncertainty and the display's latency in s, source.
_TOLD = struct.Struct("<dddBxxxxxxx")
LINEAGE_BYTES = _LINEAGE.size + _TOLD.size
#: Where `stamp_published` writes: flags and sent in the header; submitted, done and published in the lineage.
_FLAGS, _NS, _STAMPS = struct.Struct("<I"), struct.Struct("<q"), struct.Struct("<qqq")
_FLAGS_AT, _SENT_AT, _REQUEST_AT, _STAMPS_AT = 20, 56, 24, HEADER_BYTES + 80
_LABELS = msgspec.json.Decoder(list[str])
_U4, _U1, _F4 = np.dtype("<u4"), np.dtype("u1"), np.dtype("<f4")


class Answer(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """``rois`` u32 ``(n,)`` index the session's ROIs; ``validity`` u8 ``(n,)`` are bits of `Validity`; ``probability``
    float32 ``(s, n)``, calibrated; ``response`` float32 ``(s, n, response_frames)`` dF/F, None where only probabilities were
    asked, as are ``scale`` float32 ``(s, n)`` dF/F and ``ends`` float32 ``(2, response_frames)``, of which `low` and `high` are
    made; ``baseline`` float32 ``(n, baseline_frames)`` dF/F, the network's input, where asked.

    ``lead`` counts the frames right before the onset frame that were not there; ``held`` those of the window, lead
    included, that were not observed. Stamps are the engine's monotonic ns. Arrays are read-only views once decoded.

    ``onset_s`` is the onset that was used, ``told_s`` the time that ONSET told (NaN: none), before ``display_latency_s``
    was added; ``source`` and ``uncertainty_s`` say where the told time came from, and how far it may be off.
    """

    message_type: ClassVar[MessageType] = MessageType.ANSWER
    question: int
    asked: Asked
    phase: Phase
    stimuli: tuple[str, ...]
    onset_frame: int
    onset_s: float
    first_frame: int
    last_frame: int
    last_frame_s: float
    lead: int
    held: int
    received_ns: int
    window_ready_ns: int
    submitted_ns: int
    done_ns: int
    published_ns: int
    deadline_ns: int
    bundle: bytes
    rois: NDArray[np.uint32]
    validity: NDArray[np.uint8]
    probability: NDArray[np.float32]
    response: NDArray[np.float32] | None = None
    scale: NDArray[np.float32] | None = None
    ends: NDArray[np.float32] | None = None
    baseline: NDArray[np.float32] | None = None
    told_s: float = math.nan
    uncertainty_s: float = 0.0
    display_latency_s: float = 0.0
    source: Source = Source.NONE
    flags: Flags = Flags(0)

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Which ROIs may be acted upon ``(n,)``."""
        return (self.validity & np.uint8(Validity.VALID)).astype(np.bool_)

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which ROIs the bundle knows ``(n,)``."""
        return (self.validity & np.uint8(Validity.KNOWN)).astype(np.bool_)

    @property
    def low(self) -> NDArray[np.float32] | None:
        """Lower end of the forecast's interval ``(s, n, response_frames)`` in dF/F, made anew at each access; None where no
        forecast was asked, or it is an answer of wire version 1, of which the interval is not read.
        """
        return self._end(0)

    @property
    def high(self) -> NDArray[np.float32] | None:
        """Its upper end, likewise."""
        return self._end(1)

    def _end(self, which: int) -> NDArray[np.float32] | None:
        if self.response is None or self.scale is None or self.ends is None:
            return None
        end: NDArray[np.float32] = self.scale[..., None] * self.ends[which]
        end += self.response
        return end

    def encode(self, **header: Any) -> bytes:
        """The whole message; ``header`` are further fields of `Header` (session, request, epoch, sent_ns).

        Raises:
            WireError: the arrays disagree, or the message would be longer than `MAX_MESSAGE`.
        """
        draft = self.draft(
            response_frames=0 if self.response is None else self.response.shape[2],
            baseline_frames=0 if self.baseline is None else self.baseline.shape[1],
            **header,
        )
        for name in ("validity", "probability", "response", "scale", "ends", "baseline"):
            given, place = getattr(self, name), getattr(draft.answer, name)
            if place is None and given is None:
                continue
            if place is None or given is None or given.shape != place.shape:
                found, wanted = (None if one is None else one.shape for one in (given, place))
                raise WireError(ErrorCode.BAD_PAYLOAD, f"ANSWER: {name} has shape {found}, expected {wanted}")
            place[...] = given
        return bytes(draft.message)

    def draft(self, *, response_frames: int, baseline_frames: int, **header: Any) -> Draft:
        """The message laid out, with all in it but the arrays about ROIs, whose number and alternatives are this answer's;
        0 frames where no forecast or baseline is to come. ``header`` is as for `encode`.

        Raises:
            WireError: the message would be longer than `MAX_MESSAGE`.
        """
        n, s, steps, frames = len(self.rois), len(self.stimuli), response_frames, baseline_frames
        labels = msgspec.json.encode(self.stimuli)
        payload_bytes = answer_bytes(rois=n, stimuli=s, response_frames=steps, baseline_frames=frames) + len(labels)
        if payload_bytes > MAX_ANSWER:
            raise WireError(
                ErrorCode.OVERSIZED, f"ANSWER: {payload_bytes} bytes; ask for fewer ROIs, stimuli or less detail"
            )
        message = bytearray(HEADER_BYTES + payload_bytes)
        message[:HEADER_BYTES] = pack_header(
            MessageType.ANSWER,
            PayloadFormat.ANSWER,
            payload_bytes,
            flags=self.flags,
            frame=self.last_frame,
            device_s=self.last_frame_s,
            count=n,
            **header,
        )
        _LINEAGE.pack_into(
            message,
            HEADER_BYTES,
            LINEAGE_BYTES,
            s,
            steps,
            frames,
            self.question,
            self.onset_frame,
            self.first_frame,
            self.last_frame,
            self.lead,
            self.held,
            self.asked,
            self.phase,
            len(labels),
            self.onset_s,
            self.received_ns,
            self.window_ready_ns,
            self.submitted_ns,
            self.done_ns,
            self.published_ns,
            self.deadline_ns,
            self.bundle,
        )
        told = self.told_s, self.uncertainty_s, self.display_latency_s, self.source
        _TOLD.pack_into(message, HEADER_BYTES + _LINEAGE.size, *told)
        message[len(message) - len(labels) :] = labels
        rois, arrays = _arrays(message, HEADER_BYTES + LINEAGE_BYTES, n=n, s=s, steps=steps, frames=frames, major=MAJOR)
        rois[:] = self.rois
        return Draft(message=message, answer=msgspec.structs.replace(self, **arrays))

    @classmethod
    def decode(cls, header: Header, payload: memoryview) -> Answer:
        """Read the payload; unknown fields after the lineage and bytes after the labels are ignored.

        Raises:
            WireError: the lengths announced and those found disagree, or the labels are not a list of texts.
        """
        if len(payload) < _LINEAGE.size:
            raise WireError(
                ErrorCode.BAD_PAYLOAD, f"ANSWER: payload of {len(payload)} bytes, at least {_LINEAGE.size} needed"
            )
        (
            lineage_bytes,
            s,
            steps,
            frames,
            question,
            onset_frame,
            first_frame,
            last_frame,
            lead,
            held,
            asked,
            phase,
            labels_bytes,
            onset_s,
            received_ns,
            window_ready_ns,
            submitted_ns,
            done_ns,
            published_ns,
            deadline_ns,
            bundle,
        ) = _LINEAGE.unpack_from(payload)
        n = header.count
        wanted = answer_bytes(rois=n, stimuli=s, response_frames=steps, baseline_frames=frames, major=header.major)
        wanted += lineage_bytes - LINEAGE_BYTES + labels_bytes
        if lineage_bytes < _LINEAGE.size or len(payload) < wanted:
            raise WireError(ErrorCode.BAD_PAYLOAD, f"ANSWER: {wanted} bytes announced, the payload has {len(payload)}")
        # An engine of version 1.0 has the shorter table.
        told = _TOLD.unpack_from(payload, _LINEAGE.size) if lineage_bytes >= LINEAGE_BYTES else _UNTOLD
        told_s, uncertainty_s, display_latency_s, source_number = told
        how, where, source = _ASKED.get(asked), _PHASES.get(phase), _SOURCES.get(source_number)
        if how is None or where is None or source is None:
            raise WireError(
                ErrorCode.BAD_PAYLOAD,
                f"ANSWER: asked {asked}, phase {phase} and source {source_number}; see wire.md for the numbers",
            )
        rois, arrays = _arrays(payload, lineage_bytes, n=n, s=s, steps=steps, frames=frames, major=header.major)
        labels_at = wanted - labels_bytes
        try:
            labels = _LABELS.decode(payload[labels_at : labels_at + labels_bytes])
        except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
            raise WireError(ErrorCode.BAD_PAYLOAD, f"ANSWER: the labels are not a list of texts: {error}") from error
        if len(labels) != s:
            raise WireError(ErrorCode.BAD_PAYLOAD, f"ANSWER: {len(labels)} labels for {s} stimuli")
        return cls(
            question=question,
            asked=how,
            phase=where,
            stimuli=tuple(labels),
            onset_frame=onset_frame,
            onset_s=onset_s,
            first_frame=first_frame,
            last_frame=last_frame,
            last_frame_s=header.device_s,
            lead=lead,
            held=held,
            received_ns=received_ns,
            window_ready_ns=window_ready_ns,
            submitted_ns=submitted_ns,
            done_ns=done_ns,
            published_ns=published_ns,
            deadline_ns=deadline_ns,
            bundle=bundle,
            rois=rois,
            **arrays,
            told_s=told_s,
            uncertainty_s=uncertainty_s,
            display_latency_s=display_latency_s,
            source=source,
            flags=_FLAG_SETS[header.flags] if header.flags < len(_FLAG_SETS) else Flags(header.flags),
        )


class Draft(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A message as `Answer.draft` laid it out; the arrays of ``answer`` but ``rois`` are places in it, to be written into.
    Then `stamp_published` makes it whole.
    """

    message: bytearray
    answer: Answer


def _arrays(
    buffer: bytearray | memoryview, at: int, *, n: int, s: int, steps: int, frames: int, major: int
) -> tuple[NDArray[np.uint32], dict[str, Any]]:
    """The arrays of a message that begin at a byte of it, as views: ``rois``, and the others by name."""
    rois = np.ndarray((n,), _U4, buffer, at)
    at += 4 * n
    arrays: dict[str, Any] = {"validity": np.ndarray((n,), _U1, buffer, at)}
    # Four-byte numbers follow the validity bytes: they begin at a multiple of 4.
    at += n + -n % 4
    after = at + 4 * s * n
    arrays["probability"] = np.ndarray((s, n), _F4, buffer, at)
    arrays["response"] = arrays["scale"] = arrays["ends"] = arrays["baseline"] = None
    if steps:
        arrays["response"] = np.ndarray((s, n, steps), _F4, buffer, after)
        if major > 1:
            scale_at = after + 4 * s * n * steps
            arrays["scale"] = np.ndarray((s, n), _F4, buffer, scale_at)
            arrays["ends"] = np.ndarray((2, steps), _F4, buffer, scale_at + 4 * s * n)
    if frames:
        after += forecast_bytes(rois=n, stimuli=s, response_frames=steps, major=major)
        arrays["baseline"] = np.ndarray((n, frames), _F4, buffer, after)
    return rois, arrays


# Looked up: to make a member of its number takes longer than the rest of reading an answer.
_ASKED: dict[int, Asked] = {int(one): one for one in Asked}
_PHASES: dict[int, Phase] = {int(one): one for one in Phase}
_SOURCES: dict[int, Source] = {int(one): one for one in Source}
_FLAG_SETS = tuple(Flags(bits) for bits in range(2 * max(Flags)))
_UNTOLD = (math.nan, 0.0, 0.0, int(Source.NONE))


def stamp_published(message: bytearray, *, submitted_ns: int, done_ns: int, published_ns: int, flags: Flags) -> None:
    """Write into an encoded ANSWER, as the last thing before it is sent, its last three stamps and its flags.

    The time that encoding takes is so part of what the stamps tell.
    """
    _FLAGS.pack_into(message, _FLAGS_AT, flags)
    _NS.pack_into(message, _SENT_AT, published_ns)
    _STAMPS.pack_into(message, _STAMPS_AT, submitted_ns, done_ns, published_ns)


def readdress(message: bytearray, *, request: int, sent_ns: int | None = None) -> None:
    """Make an encoded message the reply to another request."""
    struct.pack_into("<Q", message, _REQUEST_AT, request)
    if sent_ns is not None:
        _NS.pack_into(message, _SENT_AT, sent_ns)


def answer_bytes(*, rois: int, stimuli: int, response_frames: int, baseline_frames: int, major: int = MAJOR) -> int:
    """Bytes of an ANSWER's payload without its labels."""
    forecast = forecast_bytes(rois=rois, stimuli=stimuli, response_frames=response_frames, major=major)
    return LINEAGE_BYTES + 5 * rois + -rois % 4 + 4 * rois * (stimuli + baseline_frames) + forecast


def forecast_bytes(*, rois: int, stimuli: int, response_frames: int, major: int = MAJOR) -> int:
    """Bytes of the forecast in it, which follows the probabilities: ``response``, ``scale`` and ``ends``; in version 1, which
    told both ends of every ROI's interval, three times the response.
    """
    response = 4 * stimuli * rois * response_frames
    if major == 1 or not response_frames:
        return 3 * response
    return response + 4 * stimuli * rois + 8 * response_frames
