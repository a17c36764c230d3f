"""`quantformer evaluate`: a recording's forecasts against every simple baseline, over seeds and rolling-origin folds."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from quantformer.errors import UsageError
from quantformer_cli.main import Parser, Subparsers, add_verb

if TYPE_CHECKING:
    from quantformer_training.study import Scored, Study


def add_parser(subparsers: Subparsers[Parser]) -> Parser:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "evaluate",
        about="Train on the first presentations of a recording, test on the rest, and compare with every simple baseline.",
        example="quantformer evaluate v1_gratings_24rois.npz --pretrained runs/cascade --train 53 --seeds 5 --folds 3",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the recording; it needs a stimulus table")
    parser.add_argument("--pretrained", type=Path, metavar="DIR", help="made by 'quantformer pretrain'")
    parser.add_argument("--train", type=int, metavar="N", help="presentations that train (default two thirds)")
    parser.add_argument(
        "--seeds", type=int, default=5, metavar="N", help="models to train on the main split (default 5)"
    )
    parser.add_argument("--folds", type=int, default=3, metavar="N", help="rolling-origin folds (default 3; 0: none)")
    parser.add_argument("--fold-seeds", type=int, default=2, metavar="N", help="models a fold, averaged (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure as JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    """Fit, score, print Markdown."""
    from rich.console import Console

    from quantformer.signal import SignalRecipe
    from quantformer_cli.demo_progress import TrainingProgress
    from quantformer_training.fit import FitConfig
    from quantformer_training.readers import open_recording
    from quantformer_training.splits import split_by_time
    from quantformer_training.study import study

    if args.seeds < 1 or args.folds < 0 or args.fold_seeds < 1:
        raise UsageError("--seeds and --fold-seeds want at least 1, --folds at least 0")
    recording, recipe = open_recording(args.file), SignalRecipe()
    presentations = len(recording.stimuli)
    train = args.train or presentations * 2 // 3
    # Folds end where the main test part begins or later: each trains on more of the recording and tests on what follows.
    block = (presentations - presentations // 2) // max(args.folds, 1)
    folds = [
        split_by_time(recording, recipe=recipe, train_trials=presentations // 2 + number * block, test_trials=block)
        for number in range(args.folds)
    ]
    with TrainingProgress(Console(stderr=True)) as progress:
        found = study(
            recording,
            split=split_by_time(recording, recipe=recipe, train_trials=train),
            folds=folds,
            config=lambda seed: FitConfig.full(seed=seed),
            seeds=range(args.seeds),
            fold_seeds=range(args.fold_seeds),
            report=progress.report,
            pretrained=args.pretrained,
        )
    print(
        f"{recording.provenance.origin} recording {args.file.name}, {recording.neurons} neurons, {train} of {presentations} "
        f"presentations train; {args.seeds} seeds; {platform.machine()}, Python {platform.python_version()}\n"
    )
    for where in ("onsets", "pseudo_onsets"):
        print(markdown(found, where))
    if args.json:
        args.json.write_text(json.dumps(as_json(found), indent=1) + "\n")
    return 0


def markdown(found: Study, where: str) -> str:
    """One table: a row a metric and model, with the paired difference to the best simple baseline."""
    from quantformer_training.comparison_tables import HEADLINE, difference_cells, number, title_of

    title = "Real onsets" if where == "onsets" else "Pseudo-onsets (nothing begins there)"
    lines = [
        f"### {title}",
        "",
        "| figure | model | QuantFormer | best simple baseline | difference | 95 % interval | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, name in HEADLINE.items():
        for scored in (*found.models, *found.folds):
            difference = getattr(scored, where).differences[key]
            delta, interval, verdict, better = difference_cells(difference)
            best = f"{number(difference.reference, 4)} ({title_of(difference.against)})"
            lines.append(
                f"| {name}, {better} is better | {scored.name} | {number(difference.candidate, 4)} | {best} | {delta} "
                f"| {interval} | {verdict} |"
            )
    return "\n".join([*lines, ""])


def as_json(found: Study) -> list[dict[str, object]]:
    """Every paired difference, flat."""

    def entries(scored: Scored) -> list[dict[str, object]]:
        return [
            {"model": scored.name, "where": where, "verdict": difference.verdict, **vars(difference)}
            for where in ("onsets", "pseudo_onsets")
            for difference in getattr(scored, where).differences.values()
        ]

    return [entry for scored in (*found.models, *found.folds) for entry in entries(scored)]
