"""`quantformer pretrain`: a masked auto-encoder from recordings that need no labels."""

from __future__ import annotations

import argparse
from pathlib import Path

from quantformer_cli.main import Parser, Subparsers, add_verb


def add_parser(subparsers: Subparsers[Parser]) -> Parser:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "pretrain",
        about="Pre-train on recordings; labels are not needed. The last tenth of the windows validates.",
        example="quantformer pretrain cascade_mouse_v1_30hz.h5 --out runs/cascade",
    )
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="recordings, of any format that inspect reads"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the pre-trained model is written")
    parser.add_argument("--rate-hz", type=float, metavar="HZ", help="frame rate, for files that do not state it")
    parser.add_argument(
        "--windows", type=int, default=32_000, metavar="N", help="windows to learn from (default 32000)"
    )
    parser.add_argument("--epochs", type=int, default=12, metavar="N", help="most epochs (default 12)")
    parser.add_argument(
        "--preset", default="small", choices=("small", "paper"), help="size of the network (default small)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of every random choice (default 0)")
    return parser


def run(args: argparse.Namespace) -> int:
    """Pre-train and save; the checkpoint in the output directory resumes an interrupted run."""
    from rich.console import Console

    from quantformer.config import PRESETS
    from quantformer.labels import LabelRule
    from quantformer.signal import SignalRecipe
    from quantformer_cli.demo_progress import TrainingProgress
    from quantformer_training.loop import LoopConfig
    from quantformer_training.pretrain import Windows, pretrain, random_windows, save_pretrained, whole
    from quantformer_training.readers import open_recordings

    recipe, rule = SignalRecipe(), LabelRule()
    recordings = [found for path in args.files for found in open_recordings(path, rate_hz=args.rate_hz)]
    usable = [recording for recording in recordings if recording.frames > recipe.window_frames + 1]
    share = max(1, args.windows // max(len(usable), 1))
    parts = [
        random_windows(
            recording,
            split=whole(recording),
            part="train",
            count=share,
            recipe=recipe,
            rule=rule,
            seed=args.seed + number,
        )
        for number, recording in enumerate(usable)
    ]
    # Whole recordings validate, so that no validation window overlaps a training window.
    held = max(1, len(parts) // 10) if len(parts) > 1 else 0
    train = Windows.joined(parts[: len(parts) - held])
    validation = Windows.joined(parts[len(parts) - held :]) if held else train
    with TrainingProgress(Console(stderr=True)) as progress:
        made = pretrain(
            train=train,
            validation=validation,
            config=PRESETS[args.preset],
            loop=LoopConfig(epochs=args.epochs, learning_rate=1e-3, seed=args.seed),
            report=progress.report,
            batch=128,
            checkpoint=args.out / "checkpoint.pt",
        )
    save_pretrained(made, args.out)
    print(
        f"{args.out}: {len(train.dff)} windows of {len(parts) - held} recordings, validation loss "
        f"{made.result.best_validation:.4f} on {held or 'the same'} recordings, {len(recordings) - len(usable)} too short"
    )
    return 0
