"""`quantformer finetune`: one recording and a pre-trained auto-encoder to a fitted model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from quantformer_cli.main import Parser, Subparsers, add_verb
from quantformer_cli.run_options import add_run_options, flags_of, shown

if TYPE_CHECKING:
    from quantformer.recording import Recording
    from quantformer_training.run_config import FinetuneRun
    from quantformer_training.splits import Split


def add_parser(subparsers: Subparsers[Parser]) -> Parser:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "finetune",
        about="Train both tasks on the first presentations of a recording, choose and calibrate on the last 30 % of them, and\n"
        "keep the fitted model; the rest is for 'quantformer evaluate', 'quantformer export' makes the bundle.",
        example="quantformer finetune v1_gratings.npz --pretrained runs/cascade --train 53 --out runs/v1",
    )
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE", help="the recording")
    parser.add_argument("--stimuli", type=Path, metavar="CSV", help="presentations, where the recording brings none")
    parser.add_argument("--rate-hz", type=float, metavar="HZ", help="frame rate, for files that do not state it")
    parser.add_argument(
        "--pretrained", type=Path, metavar="DIR", help="made by 'quantformer pretrain' (else the recording's own windows)"
    )
    parser.add_argument(
        "--teacher", type=Path, action="append", default=[], metavar="DIR",
        help="a fitted model of the same presentations to learn from as well; may be given several times",
    )  # fmt: skip
    parser.add_argument("--train", type=int, metavar="N", help="presentations that train (default two thirds)")
    parser.add_argument("--category", metavar="NAME", help="split by this category's three sub-sessions instead")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of every random choice (default 0)")
    add_run_options(parser, out="where the fitted model, the log and run.toml are written", devices=True)
    return parser


def run(args: argparse.Namespace) -> int:
    """Train and save; the checkpoints in the output directory resume an interrupted run."""
    from quantformer_training.fit import fit
    from quantformer_training.fitted_files import RecordingFile, load_teachers, save_fitted
    from quantformer_training.readers import open_recordings
    from quantformer_training.run_config import RUN_FILE, FinetuneRun, read_run, require, write_run

    own = ("stimuli", "rate_hz", "pretrained", "train", "category", "seed")
    names = {"file": "recording", "teacher": "teachers", **{name: name for name in own}}
    wanted = read_run(FinetuneRun, args.run, flags=flags_of(args, names))
    require(wanted, "recording", "out")
    file = RecordingFile(path=wanted.recording, stimuli=wanted.stimuli, rate_hz=wanted.rate_hz)
    out, recording, machine = Path(wanted.out), file.open(), wanted.machine.accelerator()
    split = split_of(recording, wanted)
    teachers = load_teachers([Path(path) for path in wanted.teachers], recording=file, split=split)
    if machine.rank == 0:
        write_run(wanted, out / RUN_FILE)
    with shown(machine, out=out, tensorboard=wanted.tensorboard, threads=wanted.machine.threads) as report:
        fitted = fit(
            recording,
            split=split,
            config=wanted.fit,
            report=report,
            unlabelled=[made for path in wanted.unlabelled for made in open_recordings(Path(path))],
            pretrained=Path(wanted.pretrained) if wanted.pretrained else None,
            checkpoints=out / "checkpoints",
            accelerator=machine,
            teachers=teachers,
        )
    if machine.rank > 0:
        return 0
    save_fitted(fitted, out, recording=file)
    skill = fitted.calibrated.skill_by_lead[0]
    within = "undefined" if skill.auroc_within_neuron is None else f"{skill.auroc_within_neuron:.3f}"
    print(
        f"{args.out or out}: {recording.neurons} neurons of {Path(wanted.recording).name}; on validation log-loss "
        f"{skill.log_loss:.4f}, AUROC within neurons {within}, squared error {skill.mse:.5f}"
    )
    return 0


def split_of(recording: Recording, wanted: FinetuneRun) -> Split:
    """The split that a run asks for."""
    from quantformer.errors import UsageError
    from quantformer.signal import SignalRecipe
    from quantformer_training.splits import split_by_sub_session, split_by_time

    if wanted.category and wanted.train:
        raise UsageError("train and category are two ways to split; give one of them")
    if wanted.category:
        return split_by_sub_session(recording, recipe=SignalRecipe(), category=wanted.category)
    train = wanted.train or len(recording.stimuli) * 2 // 3
    return split_by_time(recording, recipe=SignalRecipe(), train_trials=train)
