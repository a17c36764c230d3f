"""`quantformer evaluate`: forecasts against every simple baseline, of a fitted model or over seeds and rolling-origin folds."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from quantformer.errors import UsageError
from quantformer_cli.main import Parser, Subparsers, add_verb
from quantformer_cli.run_options import add_run_options, flags_of, shown

if TYPE_CHECKING:
    from quantformer_training.run_config import EvaluateRun
    from quantformer_training.study import Scored, Study


def add_parser(subparsers: Subparsers[Parser]) -> Parser:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "evaluate",
        about="Score a fitted model on its test part; or train on the first presentations of a recording and test on the rest.\n"
        "Either way against every simple baseline.",
        example="quantformer evaluate v1_gratings_24rois.npz --pretrained runs/cascade --train 53 --seeds 5 --folds 3",
    )
    parser.add_argument(
        "file", type=Path, nargs="?", metavar="FILE", help="a recording with stimuli, or a directory made by 'finetune'"
    )
    parser.add_argument("--pretrained", type=Path, metavar="DIR", help="made by 'quantformer pretrain'")
    parser.add_argument("--train", type=int, metavar="N", help="presentations that train (default two thirds)")
    parser.add_argument("--seeds", type=int, metavar="N", help="models to train on the main split (default 5)")
    parser.add_argument("--folds", type=int, metavar="N", help="rolling-origin folds (default 3; 0: none)")
    parser.add_argument("--fold-seeds", type=int, metavar="N", help="models a fold, averaged (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure as JSON")
    add_run_options(parser, out="where tables, figures, log and run.toml are kept (else nowhere)")
    return parser


def run(args: argparse.Namespace) -> int:
    """Score, print Markdown, and keep it where a place was given."""
    from quantformer_training.fitted_files import is_fitted
    from quantformer_training.run_config import RUN_FILE, EvaluateRun, read_run, write_run

    kind = "fitted" if args.file is not None and is_fitted(args.file) else "recording"
    own = ("pretrained", "train", "seeds", "folds", "fold_seeds")
    wanted = read_run(EvaluateRun, args.run, flags=flags_of(args, {"file": kind, **{name: name for name in own}}))
    if bool(wanted.fitted) == bool(wanted.recording):
        raise UsageError(
            f"fitted is {wanted.fitted!r} and recording {wanted.recording!r}; give one of them: a directory made by "
            "'quantformer finetune', or a recording to train on"
        )
    out = Path(wanted.out) if wanted.out else None
    if out is not None:
        write_run(wanted, out / RUN_FILE)
    found, told = _of_fitted(wanted) if wanted.fitted else _of_recording(wanted, out=out)
    tables = [f"{told}\n", *(markdown(found, where) for where in ("onsets", "pseudo_onsets"))]
    print("\n".join(tables))
    figures = json.dumps(as_json(found), indent=1) + "\n"
    if out is not None:
        (out / "tables.md").write_text("\n".join(tables), encoding="utf-8")
        (out / "figures.json").write_text(figures)
    if args.json:
        args.json.write_text(figures)
    return 0


def _of_fitted(wanted: EvaluateRun) -> tuple[Study, str]:
    """The fitted model's test part, and what it is."""
    from quantformer_training.fitted_files import load_fitted
    from quantformer_training.study import Study, scored
    from quantformer_training.threads import computing_with

    directory = Path(wanted.fitted)
    with computing_with(wanted.machine.threads):
        fitted = load_fitted(directory)
        found = Study(models=(scored(fitted, name=f"seed {fitted.config.seed}"),), folds=())
    recording = fitted.reader.recording
    tested = len(fitted.real["test"].moments)
    return found, (
        f"fitted model {directory.name} of the {recording.provenance.origin} recording "
        f"{Path(recording.provenance.source).name}, {recording.neurons} neurons, {tested} presentations test"
    )


def _of_recording(wanted: EvaluateRun, *, out: Path | None) -> tuple[Study, str]:
    """Models trained on a recording, and what they are."""
    from quantformer.signal import SignalRecipe
    from quantformer_training.accelerator import Accelerator
    from quantformer_training.fitted_files import RecordingFile
    from quantformer_training.splits import split_by_time
    from quantformer_training.study import study

    file = RecordingFile(path=wanted.recording, stimuli=wanted.stimuli, rate_hz=wanted.rate_hz)
    recording, recipe = file.open(), SignalRecipe()
    presentations = len(recording.stimuli)
    train = wanted.train or presentations * 2 // 3
    # Folds end where the main test part begins or later: each trains on more of the recording and tests on what follows.
    block = (presentations - presentations // 2) // max(wanted.folds, 1)
    folds = [
        split_by_time(recording, recipe=recipe, train_trials=presentations // 2 + number * block, test_trials=block)
        for number in range(wanted.folds)
    ]
    with shown(Accelerator(), out=out, tensorboard=False, threads=wanted.machine.threads) as report:
        found = study(
            recording,
            split=split_by_time(recording, recipe=recipe, train_trials=train),
            folds=folds,
            config=wanted.config,
            seeds=range(wanted.seeds),
            fold_seeds=range(wanted.fold_seeds),
            report=report,
            pretrained=Path(wanted.pretrained) if wanted.pretrained else None,
        )
    return found, (
        f"{recording.provenance.origin} recording {Path(wanted.recording).name}, {recording.neurons} neurons, {train} of "
        f"{presentations} presentations train; {wanted.seeds} seeds; {platform.machine()}, Python {platform.python_version()}"
    )


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
