"""`quantformer replay FILE...`: ask a recording's questions again, and compare every answer and decision."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from quantformer.errors import UsageError
from quantformer_cli.main import Parser, Subparsers, add_verb

if TYPE_CHECKING:
    from quantformer_service.replay import Replayed, Tally


def add_parser(subparsers: Subparsers[Parser]) -> Parser:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "replay",
        about="Ask every question of a recording again, of the frames that it was asked of, and compare every answer and\n"
        "decision: bit for bit where the arithmetic is the recorded one, else within 1e-4. Exit status 0 only if all\n"
        "agree, 1 if not. Files of one run of the engine belong together: give all of them.",
        example="quantformer replay recordings/20260801T101500.000Z-*.qfrec --bundle bundles/mouse-7",
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="files that the recorder wrote")
    parser.add_argument("--bundle", dest="set_bundle", metavar="DIR", help="the bundle that was served")
    parser.add_argument(
        "--provider",
        dest="set_provider",
        metavar="NAME",
        help="execution provider (default: the recorded one, else the CPU)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    """Replay, print, and judge."""
    from quantformer.bundle import load_bundle
    from quantformer_service.replay import replay

    settings = args.resolved.settings
    if not settings.bundle:
        raise UsageError(
            "no bundle was given: 'quantformer replay FILE --bundle DIR'; 'quantformer recording info FILE' shows its hash"
        )
    outcomes = replay(args.files, load_bundle(settings.bundle), provider=settings.provider)
    if args.json:
        print(json.dumps([dataclasses.asdict(one) | {"agrees": one.agrees} for one in outcomes], indent=2))
    else:
        for one in outcomes:
            _show(one)
    return 0 if all(one.agrees for one in outcomes) else 1


def _show(replayed: Replayed) -> None:
    how = "within 1e-4 (" + "; ".join(replayed.unlike) + ")" if replayed.unlike else "bit for bit"
    rows = [
        ("epoch", f"{replayed.epoch}, {replayed.records} records" + (", a torn tail" if replayed.torn else "")),
        ("compared", how),
        ("fed", f"{replayed.frames} frames in {replayed.sessions} sessions"),
        ("answers", _tally(replayed.answers)),
        ("failures", _tally(replayed.failures)),
        ("decisions", _tally(replayed.decisions)),
        ("dropped", f"standing questions skipped for {replayed.dropped} frames, then as now"),
    ]
    if replayed.lost:
        rows.append(("lost", f"{replayed.lost} records: nothing is known of the sessions that were open then"))
    rows += [("different", what) for what in replayed.differences]
    rows.append(("verdict", "all agree" if replayed.agrees else "NOT all agree"))
    for name, value in rows:
        print(f"{name.ljust(10)} {value}")


def _tally(tally: Tally) -> str:
    text = f"{tally.equal} equal, {tally.within} within tolerance, {tally.different} different"
    return text + "".join(f", {count} not asked again ({why})" for why, count in sorted(tally.not_asked.items()))
