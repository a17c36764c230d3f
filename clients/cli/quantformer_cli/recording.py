"""`quantformer recording verify|info FILE...`: is a recorded session whole, and what is in it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantformer_cli.main import Parser, Subparsers, add_verb

if TYPE_CHECKING:
    from quantformer_service.recording_file import Survey
    from quantformer_service.recording_summary import Summary


def add_parser(subparsers: Subparsers[Parser]) -> Parser:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "recording",
        about="Verify recorded sessions, byte by byte, or show what they hold. A torn tail is what a kill or a loss of power\n"
        "leaves, and is fine; damage is not: exit status 3.",
        example="quantformer recording verify recordings/*.qfrec",
    )
    parser.add_argument("action", choices=["verify", "info"], help="what to do")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="files that the recorder wrote")
    parser.add_argument("--json", action="store_true", help="print JSON, one object a file")
    return parser


def run(args: argparse.Namespace) -> int:
    """Verify or show each file; 3 if one is damaged."""
    damaged = False
    for path in args.files:
        damaged |= _verify(path, as_json=args.json) if args.action == "verify" else _info(path, as_json=args.json)
    return 3 if damaged else 0


def _verify(path: Path, *, as_json: bool) -> bool:
    from quantformer_service.recording_file import RecordingReader

    with RecordingReader(path) as reader:
        survey = reader.survey()
    if as_json:
        facts = {"file": str(path), "records": survey.records, "first": survey.first, "last": survey.last}
        facts |= {"ending": survey.ending.value, "torn_bytes": survey.torn_bytes}
        print(json.dumps(facts | {"damages": [str(one) for one in survey.damages]}))
    else:
        print(f"{path}: {_condition(survey)}")
        for one in survey.damages:
            print(f"  {one}")
    return bool(survey.damages)


def _condition(survey: Survey | Summary) -> str:
    """How whole a file is, in words."""
    ends = {
        "closed": "closed",
        "cut": "without its end: being written, or its writer was killed between two records",
        "torn": f"a torn tail of {survey.torn_bytes} bytes: its writer was killed inside a record",
    }[survey.ending.value]
    condition = f"DAMAGED in {len(survey.damages)} places" if survey.damages else "whole"
    return f"{condition}, records {survey.first} to {survey.last}, {ends}"


def _info(path: Path, *, as_json: bool) -> bool:
    from quantformer_service.recording_summary import summarize

    summary = summarize(path)
    if as_json:
        print(json.dumps(_facts(summary), indent=2))
        return bool(summary.damages)
    print(path)
    rows = [("condition", _condition(summary))]
    if summary.header is not None:
        began = datetime.fromtimestamp(summary.header.unix_ns / 1e9, UTC).isoformat(timespec="seconds")
        rows.append(("began", f"{began}, epoch {summary.header.epoch}, {summary.span_s:.1f} s"))
    if summary.made_with is not None:
        made = summary.made_with
        rows.append(("bundle", made.bundle))
        version = made.packages.get("quantformer", "?")
        rows.append(("made with", f"quantformer {version}, wire {made.wire}, {made.provider}, {made.processor}"))
    rows.append(("records", _counts(summary.records)))
    rows.append(("bytes", _counts(summary.kind_bytes)))
    if summary.refused:
        rows.append(("refused", _counts(summary.refused)))
    if summary.lost:
        rows.append(("lost", f"{summary.lost} records"))
    if summary.unreadable:
        rows.append(("unreadable", f"{summary.unreadable} records"))
    for number, session in summary.sessions.items():
        what = f"{session.subject or 'begun in an earlier file'}, {session.rois} ROIs at {session.rate_hz:g} Hz"
        rows.append((f"session {number}", what + (f", {session.ended}" if session.ended else "")))
        rows.append(("  frames", f"{session.frames}, {session.gaps} gaps, {session.missing_frames} never came"))
        rows.append(("  inputs", _counts(session.inputs)))
        rows.append(("  asked", f"{_counts(session.asked)}; standing ones dropped for {session.dropped} frames"))
        rows.append(("  answers", _counts(session.answers)))
        if session.failed:
            rows.append(("  failed", _counts(session.failed)))
        rows.append(("  decisions", _counts(session.decisions)))
    rows += [("damage", str(one)) for one in summary.damages]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"  {name.ljust(width)}  {value}")
    return bool(summary.damages)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


def _facts(summary: Summary) -> dict[str, Any]:
    import msgspec

    facts: dict[str, Any] = msgspec.to_builtins(
        {
            name: getattr(summary, name)
            for name in (
                "header", "made_with", "records", "kind_bytes", "first", "last", "span_s", "refused", "lost",
                "unreadable", "ending", "torn_bytes",
            )
        }
    )  # fmt: skip
    facts["file"] = str(summary.path)
    facts["damages"] = [str(one) for one in summary.damages]
    facts["sessions"] = {
        str(number): {name: value for name, value in vars(session).items() if not name.startswith("_")}
        for number, session in summary.sessions.items()
    }
    return facts
