"""`quantformer pretrain`: a masked auto-encoder from recordings that need no labels."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from quantformer_cli.main import Parser, Subparsers, add_verb
from quantformer_cli.run_options import add_run_options, flags_of, shown

if TYPE_CHECKING:
    from quantformer_training.pretrain import Windows
    from quantformer_training.run_config import PretrainRun


def add_parser(subparsers: Subparsers[Parser]) -> Parser:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "pretrain",
        about="Pre-train on recordings; labels are not needed. The last tenth of the recordings validates.",
        example="quantformer pretrain cascade_mouse_v1_30hz.h5 --out runs/cascade",
    )
    parser.add_argument(
        "files", type=Path, nargs="*", metavar="FILE", help="recordings, of any format that inspect reads"
    )
    parser.add_argument("--rate-hz", type=float, metavar="HZ", help="frame rate, for files that do not state it")
    parser.add_argument("--windows", type=int, metavar="N", help="windows to learn from (default 32000)")
    parser.add_argument("--epochs", type=int, metavar="N", help="most epochs (default 12)")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of every random choice (default 0)")
    add_run_options(parser, out="where the pre-trained model, the log and run.toml are written", devices=True)
    return parser


def run(args: argparse.Namespace) -> int:
    """Pre-train and save; the checkpoint in the output directory resumes an interrupted run."""
    from quantformer.config import PRESETS
    from quantformer_training.pretrain import pretrain, save_pretrained
    from quantformer_training.run_config import RUN_FILE, PretrainRun, read_run, require, write_run

    names = {"files": "recordings", "epochs": "loop.epochs", **{name: name for name in ("rate_hz", "windows", "seed")}}
    wanted = read_run(PretrainRun, args.run, flags=flags_of(args, names))
    require(wanted, "recordings", "out")
    out, machine = Path(wanted.out), wanted.machine.accelerator()
    train, validation, told = _windows(wanted)
    if machine.rank == 0:
        write_run(wanted, out / RUN_FILE)
    with shown(machine, out=out, tensorboard=wanted.tensorboard, threads=wanted.machine.threads) as report:
        made = pretrain(
            train=train,
            validation=validation,
            config=PRESETS[wanted.preset],
            loop=wanted.loop,
            report=report,
            batch=wanted.batch,
            checkpoint=out / "checkpoint.pt",
            accelerator=machine,
            checkpoint_s=wanted.machine.checkpoint_s,
        )
    if machine.rank == 0:
        save_pretrained(made, out)
        print(f"{args.out or out}: {len(train.dff)} windows, validation loss {made.result.best_validation:.4f}, {told}")
    return 0


def _windows(wanted: PretrainRun) -> tuple[Windows, Windows, str]:
    """Windows to learn from and to validate on, and what they are."""
    from quantformer.errors import RecordingError
    from quantformer.labels import LabelRule
    from quantformer.signal import SignalRecipe
    from quantformer_training.pretrain import Windows, random_windows, whole
    from quantformer_training.readers import open_recordings

    recipe, rule = SignalRecipe(), LabelRule()
    recordings = [made for path in wanted.recordings for made in open_recordings(Path(path), rate_hz=wanted.rate_hz)]
    usable = [recording for recording in recordings if recording.frames > recipe.window_frames + 1]
    if not usable:
        raise RecordingError(
            f"none of {len(recordings)} recordings is longer than a window of {recipe.window_frames} frames; give longer ones"
        )
    share = max(1, wanted.windows // len(usable))
    parts = [
        random_windows(
            recording,
            split=whole(recording),
            part="train",
            count=share,
            recipe=recipe,
            rule=rule,
            seed=wanted.seed + number,
        )
        for number, recording in enumerate(usable)
    ]
    # Whole recordings validate, so that no validation window overlaps a training window.
    held = max(1, len(parts) // 10) if len(parts) > 1 else 0
    train = Windows.joined(parts[: len(parts) - held])
    validation = Windows.joined(parts[len(parts) - held :]) if held else train
    told = f"{len(parts) - held} recordings learned from, validated on {held or 'the same'}"
    return train, validation, f"{told}, {len(recordings) - len(usable)} too short"
