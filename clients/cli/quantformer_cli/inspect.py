"""`quantformer inspect FILE`: what is in a recording."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from quantformer_cli.main import Parser, Subparsers, add_verb

if TYPE_CHECKING:
    from quantformer.recording import Recording
    from quantformer_training.summary import CategorySummary, RecordingSummary


def add_parser(subparsers: Subparsers[Parser]) -> Parser:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "inspect",
        about="Print what is in a recording: an .npz or .npy file, a suite2p folder or an Allen NWB file.",
        example="quantformer inspect suite2p/plane0 --stimuli gratings.csv",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the recording's file or folder")
    parser.add_argument("--stimuli", type=Path, metavar="CSV", help="presentations, for a recording that has none")
    parser.add_argument("--rate-hz", type=float, metavar="HZ", help="frame rate, for a file that does not state it")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    return parser


def run(args: argparse.Namespace) -> int:
    """Read the recording and print its summary."""
    from quantformer_training.readers import open_recordings
    from quantformer_training.summary import summarise

    recordings = open_recordings(args.file, stimuli=args.stimuli, rate_hz=args.rate_hz)
    if len(recordings) > 1:
        show_many(recordings, as_json=args.json)
        return 0
    summary = summarise(recordings[0])
    if args.json:
        print(json.dumps(summary.as_dict(), indent=2))
    else:
        show(summary)
    return 0


def show(summary: RecordingSummary) -> None:
    """Print the summary, one fact a line, then one line a stimulus category."""
    factor = summary.neuropil_factor
    neuropil = "none" if factor is None else f"subtracted, factor {_span(*factor)}"
    not_finite = (
        f"{summary.not_finite} samples in {summary.neurons_not_finite} neurons" if summary.not_finite else "none"
    )
    f0 = summary.f0
    spread = (
        "fewer than 60 frames" if f0 is None else f"{f0.median:.4g} ({f0.percentile_5:.4g} to {f0.percentile_95:.4g})"
    )
    rows = [
        ("frames", f"{summary.frames}, {summary.duration_s:.1f} s"),
        ("neurons", f"{summary.neurons}"),
        ("rate", f"{summary.rate_hz:.4g} Hz, {summary.used}"),
        ("intervals", f"{summary.shortest_interval_ms:.2f} to {summary.longest_interval_ms:.2f} ms"),
        ("signal", summary.signal),
        ("neuropil", neuropil),
        ("running speed", "yes" if summary.running_speed else "none"),
        ("not finite", not_finite),
        ("F0 a neuron", f"{spread}, median and 5 % to 95 % of neurons"),
        (
            "F0 unusable",
            "-" if f0 is None else f"{100 * f0.not_positive:.2g} % of stretches of 60 frames are at or below zero",
        ),
        ("origin", f"{summary.origin}, {summary.source}, subject {summary.subject}"),
        *summary.facts.items(),
        *((category.category, _presentations(category)) for category in summary.stimuli),
    ]
    if not summary.stimuli:
        rows.append(("stimuli", "none"))
    _print_aligned(rows)


def show_many(recordings: list[Recording], *, as_json: bool) -> None:
    """Print how many recordings, neurons and hours a collection holds, by data set."""
    sets: dict[str, list[Recording]] = {}
    for recording in recordings:
        sets.setdefault(recording.provenance.facts.get("dataset", "-"), []).append(recording)
    counts = {
        name: {
            "recordings": len(members),
            "neurons": len({neuron for member in members for neuron in member.neuron_ids}),
            "hours": round(sum(member.duration_s for member in members) / 3600, 3),
        }
        for name, members in sets.items()
    }
    if as_json:
        print(json.dumps({"recordings": len(recordings), "datasets": counts}, indent=2))
        return
    rows = [("recordings", f"{len(recordings)}, for pre-training; no stimuli")]
    rows += [
        (name, f"{count['recordings']} recordings of {count['neurons']} neurons, {count['hours']:.2f} h")
        for name, count in counts.items()
    ]
    _print_aligned(rows)


def _presentations(category: CategorySummary) -> str:
    shortest, longest = category.shortest_duration_s, category.longest_duration_s
    parts = [
        f"{category.presentations} presentations of {category.ids} ids",
        f"{category.median_duration_s:.3g} s ({shortest:.3g} to {longest:.3g})",
    ]
    if category.sub_sessions:
        parts.append(f"sub-sessions of {', '.join(map(str, category.sub_sessions))}")
    if category.blanks:
        parts.append(f"{category.blanks} blank")
    images = [name for name in category.features if name.startswith("image_")]
    others = [name for name in category.features if name not in images]
    names = others + ([f"image_0 .. image_{len(images) - 1}"] if images else [])
    return ", ".join([*parts, f"features {', '.join(names)}" if names else "no features"])


def _span(low: float, high: float) -> str:
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _print_aligned(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        line = f"{name.ljust(width)}  {value}"
        # Names and facts come from the file, and must not steer the terminal.
        print("".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line))
