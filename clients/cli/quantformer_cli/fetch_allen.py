"""`quantformer fetch-allen`: the Allen recordings of the paper, or others, from the public bucket into a folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from quantformer_cli.main import FAILED, Parser, Subparsers, add_verb

if TYPE_CHECKING:
    from quantformer_training.allen_containers import AllenExperiment, Choice
    from quantformer_training.allen_fetch import FetchPlan, Outcome, PlannedFile

_TERMS = "https://alleninstitute.org/terms-of-use/, https://alleninstitute.org/citation-policy/"


def add_parser(subparsers: Subparsers[Parser]) -> Parser:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "fetch-allen",
        about="Fetch Allen Visual Coding two-photon recordings (NWB) from the Institute's public bucket: the eleven "
        "containers of the paper, or those chosen. Run it again to go on after a cut; what is there is not fetched twice.",
        example="quantformer fetch-allen --out allen",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the files and their manifest")
    chosen = parser.add_argument_group("which (default: the paper's eleven containers, 33 files)")

    def several(flag: str, kind: type[int] | type[str], *, metavar: str, text: str) -> None:
        chosen.add_argument(flag, type=kind, nargs="+", action="extend", default=[], metavar=metavar, help=text)

    several("--container", int, metavar="ID", text="experiment containers")
    several("--experiment", int, metavar="ID", text="single experiments")
    chosen.add_argument(
        "--session",
        choices=("A", "B", "C", "C2"),
        nargs="+",
        action="extend",
        default=[],
        help="A: drifting gratings; B: static gratings, natural scenes; C, which includes C2: sparse noise",
    )
    several("--cre-line", str, metavar="NAME", text="driver lines, for example Cux2-CreERT2")
    several("--area", str, metavar="NAME", text="visual areas: VISp, VISl, VISal, VISpm, VISam, VISrl")
    several("--depth-um", int, metavar="UM", text="imaging depths")
    parser.add_argument("--base-url", metavar="URL", help="another server with the same files (default: the public bucket)")
    parser.add_argument(
        "--list", type=Path, metavar="FILE", help="list of all experiments (default: DIR/ophys_experiments.json, else fetched)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be fetched and how large it is")
    parser.add_argument("--verify", action="store_true", help="fetch nothing: compare the files in DIR with its manifest")
    return parser


def run(args: argparse.Namespace) -> int:
    """Plan, fetch and say what became of every file; 1 where one failed."""
    from quantformer_training.allen_containers import Choice

    if args.verify:
        return _verify(args.out)
    choice = Choice(
        containers=tuple(args.container),
        experiments=tuple(args.experiment),
        sessions=tuple(args.session),
        cre_lines=tuple(args.cre_line),
        areas=tuple(args.area),
        depths_um=tuple(args.depth_um),
    )
    return _fetch(choice, args)


def _fetch(choice: Choice, args: argparse.Namespace) -> int:
    from rich.console import Console

    from quantformer_cli.fetch_progress import FetchProgress
    from quantformer_training.allen_containers import choose, read_experiments
    from quantformer_training.allen_fetch import BUCKET, fetch, list_experiments, plan

    base_url = args.base_url or BUCKET
    console = Console(stderr=True)
    listed = None
    if args.list is not None:
        listed = read_experiments(args.list)
    elif choice.needs_list:
        listed = list_experiments(args.out, base_url=base_url)
    experiments = choose(choice, listed=listed)
    with console.status("asking the server for sizes"):
        planned = plan(experiments, args.out, base_url=base_url)
    _say_plan(planned)
    if args.dry_run:
        return FAILED if _say_failures(planned.files) else 0
    with FetchProgress(console, planned) as progress:
        outcomes = fetch(planned, report=progress.report)
    _say_outcomes(outcomes, args.out)
    return FAILED if _say_failures(outcomes) else 0


def _verify(out: Path) -> int:
    from rich.console import Console

    from quantformer_training.allen_manifest import read_manifest, verify

    console = Console(stderr=True)
    with console.status("reading every file"):
        wrong = verify(out)
    entries = read_manifest(out)
    print(f"{len(entries) - len(wrong)} of {len(entries)} files in {out} are as its manifest says")
    for reason in wrong.values():
        print(f"wrong: {reason}", file=sys.stderr)
    return FAILED if wrong else 0


def _describe(experiment: AllenExperiment) -> str:
    parts = [
        f"session {experiment.session}" if experiment.session else "",
        f"container {experiment.container}" if experiment.container else "",
        experiment.cre_line or "",
        experiment.area or "",
        f"{experiment.depth_um} um" if experiment.depth_um else "",
    ]
    return ", ".join(part for part in parts if part)


def _say_plan(planned: FetchPlan) -> None:
    from quantformer_cli.fetch_progress import size_text

    for file in planned.missing:
        part = f", {size_text(file.have_bytes)} of it here" if file.have_bytes else ""
        print(f"{file.experiment.id}.nwb  {size_text(file.bytes)}{part}  {_describe(file.experiment)}".rstrip())
    there = sum(file.state in ("present", "found") for file in planned.files)
    print(f"{len(planned.missing)} files to fetch, {size_text(planned.needed_bytes)}; {there} are in {planned.out}", flush=True)


def _say_outcomes(outcomes: tuple[Outcome, ...], out: Path) -> None:
    from quantformer_cli.fetch_progress import size_text

    counts = {state: [one for one in outcomes if one.state == state] for state in ("fetched", "present", "found", "failed")}
    fetched = sum(one.bytes - one.resumed_bytes for one in counts["fetched"])
    parts = [f"{len(counts['fetched'])} fetched ({size_text(fetched)})", f"{len(counts['present'])} already there"]
    if counts["found"]:
        parts.append(f"{len(counts['found'])} found there and added to the manifest")
    if counts["failed"]:
        parts.append(f"{len(counts['failed'])} failed")
    print(f"{out}: {', '.join(parts)}. Terms of use, and how to cite: {_TERMS}", flush=True)


def _say_failures(files: tuple[PlannedFile, ...] | tuple[Outcome, ...]) -> bool:
    failed = [file for file in files if file.state == "failed"]
    for file in failed:
        reason = "".join(letter if letter.isprintable() else "?" for letter in " ".join(file.reason.split()))
        print(f"failed: {file.experiment.id}: {reason}", file=sys.stderr)
    return bool(failed)
