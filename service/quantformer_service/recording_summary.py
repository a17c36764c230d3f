"""What is in a recording: its sessions, frames, questions, answers, decisions, and how whole it is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from quantformer.errors import RecordingError
from quantformer_client import wire
from quantformer_service.provenance import Provenance, read_provenance
from quantformer_service.recorded_answer import restore
from quantformer_service.recording_file import Damage, Ending, FileHeader, Kind, Record, RecordingReader
from quantformer_service.tap import Told


@dataclass(kw_only=True)
class SessionSummary:
    """One session. ``gaps`` counts jumps in frame numbers, ``missing_frames`` those that never came; ``asked`` how often
    inference was begun, by kind of question; ``dropped`` the frames that a standing question was skipped for.
    """

    subject: str = ""
    rois: int = 0
    rate_hz: float = 0.0
    ended: str = ""
    frames: int = 0
    gaps: int = 0
    missing_frames: int = 0
    inputs: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    dropped: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    decisions: Counter[str] = field(default_factory=Counter)
    _last: int = -1
    _standing: dict[int, int] = field(default_factory=dict)

    def frame(self, number: int) -> None:
        """A frame of that number."""
        self.frames += 1
        if number > self._last:
            missing = number - self._last - 1 if self._last >= 0 else 0
            self.gaps += missing > 0
            self.missing_frames += missing
            self._last = number
        else:
            self.missing_frames -= 1

    def acquisition(self, event: str) -> None:
        """Frame numbers begin anew, but after a stop."""
        if event != "stop":
            self._last = -1
            self._standing.clear()

    def ask(self, question: int, *, kind: str) -> None:
        """A question was asked for the frame after the newest."""
        self.asked[kind] += 1
        if kind == "standing":
            before = self._standing.get(question)
            self._standing[question] = self._last
            if before is not None:
                self.dropped += max(0, self._last - before - 1)


@dataclass(kw_only=True)
class Summary:
    """All of a file. ``span_s`` is from its first record to its last, ``kind_bytes`` what each kind takes on the disk."""

    path: Path
    header: FileHeader | None
    made_with: Provenance | None
    records: Counter[str] = field(default_factory=Counter)
    kind_bytes: Counter[str] = field(default_factory=Counter)
    first: int = 0
    last: int = 0
    span_s: float = 0.0
    refused: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    unreadable: int = 0
    sessions: dict[int, SessionSummary] = field(default_factory=dict)
    ending: Ending = Ending.CUT
    torn_bytes: int = 0
    damages: list[Damage] = field(default_factory=list)


def summarize(path: Path) -> Summary:
    """Read all of a file, past damage.

    Raises:
        RecordingError: it is no recording.
    """
    with RecordingReader(path) as reader:
        summary = Summary(path=path, header=reader.header, made_with=None)
        began_ns: int | None = None
        for found in reader.scan():
            if isinstance(found, Damage):
                summary.damages.append(found)
                continue
            began_ns = found.stamp_ns if began_ns is None else began_ns
            summary.span_s = max(summary.span_s, (found.stamp_ns - began_ns) / 1e9)
            _count(summary, found)
        summary.ending, summary.torn_bytes = reader.ending, reader.torn_bytes
        return summary


def _count(summary: Summary, record: Record) -> None:
    name = Kind(record.kind).name.lower() if record.kind in _KINDS else f"kind {record.kind}"
    summary.records[name] += 1
    summary.kind_bytes[name] += len(record.payload)
    if record.kind not in (Kind.START, Kind.END):
        summary.first = summary.first or record.sequence
        summary.last = record.sequence
    try:
        _read(summary, record)
    except (wire.WireError, msgspec.MsgspecError, RecordingError, RecursionError, UnicodeError):
        summary.unreadable += 1


def _read(summary: Summary, record: Record) -> None:
    kind = record.kind
    if kind == Kind.START:
        summary.made_with = read_provenance(record.payload)
    elif kind == Kind.REFUSED:
        summary.refused[msgspec.json.decode(record.payload, type=Told).code] += 1
    elif kind == Kind.LOST:
        summary.lost += record.id
    elif kind not in _KINDS or kind == Kind.END:
        return
    elif record.session == 0:
        # STOP of every session, and the engine's own BYE.
        return
    else:
        _read_session(summary.sessions.setdefault(record.session, SessionSummary()), record)


def _read_session(session: SessionSummary, record: Record) -> None:
    if record.kind == Kind.INPUT:
        message = wire.decode(record.payload, oldest=wire.OLDEST_READ)
        body = message.body
        if isinstance(body, wire.Frame):
            session.frame(body.number)
            return
        session.inputs[message.header.type.name.lower()] += 1
        if isinstance(body, wire.Open):
            session.subject, session.rois, session.rate_hz = body.subject, len(body.rois), body.rate_hz
        elif isinstance(body, wire.Acquisition):
            session.acquisition(body.event)
        elif isinstance(body, wire.Close):
            session.ended = "closed"
    elif record.kind == Kind.ASKED:
        session.ask(record.id, kind="standing" if record.detail == wire.Asked.STANDING else "onset")
    elif record.kind == Kind.FAILED:
        session.failed[msgspec.json.decode(record.payload, type=Told).code] += 1
    elif record.kind == Kind.OUTPUT:
        body = wire.decode(record.payload, oldest=wire.OLDEST_READ).body
        if isinstance(body, wire.Decision):
            session.decisions[body.reason] += 1
        elif isinstance(body, wire.SessionLost):
            session.ended = body.reason
    else:
        if record.kind == Kind.STANDING_ANSWER:
            message = restore(record.payload).message
        else:
            message = wire.decode(record.payload, oldest=wire.OLDEST_READ)
        if isinstance(message.body, wire.Answer):
            session.answers["standing" if message.body.asked == wire.Asked.STANDING else "onset"] += 1


_KINDS = frozenset(Kind)
