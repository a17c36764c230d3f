"""`quantformer reproduce`: the paper's tables and figures, and ours, on the simulator or on recordings."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from pathlib import Path

from quantformer.errors import UsageError
from quantformer_cli.main import Parser, Subparsers, add_verb

SIMULATED = "simulated"
#: Mice that are simulated where nothing else is said.
MICE = 3


def add_parser(subparsers: Subparsers[Parser]) -> Parser:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "reproduce",
        about="Train, compare and ablate for the tables asked for, write them with the paper's figures beside ours. What is "
        "finished stays: the same command again makes only what is missing.",
        example="quantformer reproduce all --data simulated --preset small --mice 3",
    )
    parser.add_argument(
        "tables", nargs="+", metavar="TABLE",
        help="ours, table1, table2, table3, table4, tableA2, tableA3, tableA4, figures or all",
    )  # fmt: skip
    parser.add_argument(
        "--data", nargs="+", required=True, metavar="PATH",
        help="'simulated', or recordings with stimuli: npz files, suite2p folders, Allen NWB files or folders of them",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("reproduction"), metavar="DIR", help="default ./reproduction")
    parser.add_argument(
        "--preset", default="small", choices=("small", "recording", "paper"), help="what is spent (default small)"
    )
    parser.add_argument("--mice", type=int, metavar="N", help=f"simulated mice (default {MICE}; the paper has 11)")
    parser.add_argument("--neurons", type=int, metavar="N", help="neurons a simulated mouse (default: the preset's)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of every random choice (default 0)")
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="how many seeds, from --seed on, every run is made with (default 1)"
    )
    parser.add_argument(
        "--brainlm", type=Path, metavar="DIR",
        help="folder of BrainLM's published weights (CC BY-NC-ND 4.0, not part of this project), fine-tuned as one more row",
    )  # fmt: skip
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"),
        help="where networks train: cuda is a GPU, auto takes it where torch sees one on this machine (default auto)",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", default="local", choices=("local", "ray"), help="where runs are made (default local processes)"
    )
    parser.add_argument("--processes", type=int, metavar="N", help="runs at once (default: one a core)")
    return parser


def run(args: argparse.Namespace) -> int:
    """Make what is missing, write everything, say where."""
    from quantformer_training.reproduce.names import asked_tables

    tables = asked_tables(args.tables)
    simulated = args.data == [SIMULATED]
    if not simulated and (SIMULATED in args.data or args.mice is not None or args.neurons is not None):
        raise UsageError("--data takes either 'simulated', with --mice and --neurons, or recordings, without them")
    if args.seed < 0 or args.seeds < 1 or (args.processes is not None and args.processes < 1):
        raise UsageError(
            f"--seed {args.seed}, --seeds {args.seeds} and --processes {args.processes}: "
            "a seed is 0 or more, seeds and processes 1 or more"
        )
    from quantformer_cli.reproduce_progress import ReproduceProgress
    from quantformer_training.accelerator import device_here
    from quantformer_training.cohort import recorded_cohort, simulated_cohort
    from quantformer_training.effort import EFFORTS
    from quantformer_training.jobs import cores
    from quantformer_training.reproduce.ceiling_plan import CEILING_PLANS
    from quantformer_training.reproduce.execute import Execution
    from quantformer_training.reproduce.plan import EXTENTS
    from quantformer_training.reproduce.reproduction import reproduce

    # Before mice are simulated, which takes minutes. Whether a cluster's machines have a GPU, each run finds there.
    device = args.device if (args.jobs, args.device) == ("ray", "cuda") else device_here(args.device)
    if args.brainlm is not None:
        from quantformer_training.networks.brainlm_checkpoint import load_brainlm

        load_brainlm(args.brainlm)
    effort = EFFORTS[args.preset]
    if args.neurons is not None:
        effort = replace(effort, neurons=args.neurons)
    recordings = args.out / "recordings"
    with ReproduceProgress() as progress:
        if simulated:
            mice = MICE if args.mice is None else args.mice
            cohort = simulated_cohort(recordings, mice=mice, neurons=effort.neurons, seed=args.seed, say=progress.say)
            facts = [
                ("simulated", f"{mice} mice of {effort.neurons} neurons, three sessions of the Allen schedule each")
            ]
        else:
            cohort = recorded_cohort([Path(name) for name in args.data], recordings, say=progress.say)
            facts = [("recordings", ", ".join(session.provenance.source for session in cohort.sessions))]
        for name, reason in cohort.left_out.items():
            progress.say(f"left out {name}: {reason}")
        made = reproduce(
            tables,
            execution=Execution(
                cohort=cohort,
                recordings=recordings.resolve(),
                out=args.out.resolve(),
                extent=EXTENTS[args.preset],
                seed=args.seed,
                workers=args.jobs,
                processes=args.processes or cores(),
                device=device,
                brainlm=None if args.brainlm is None else args.brainlm.resolve(),
            ),
            effort=effort,
            command=_command(args),
            facts=facts,
            ceiling=CEILING_PLANS[args.preset] if simulated else None,
            seeds=args.seeds,
            report=progress.report,
        )
    print(
        f"{args.out / made.files[0].name}: {made.runs} runs, {made.made} made now, {made.failed} left out; "
        f"tables in {args.out / 'tables'}, the same in {args.out / made.files[1].name}"
    )
    return 0


def _command(args: argparse.Namespace) -> str:
    """How to do it again; paths as they were given."""
    words = [
        "quantformer",
        "reproduce",
        *args.tables,
        "--data",
        *args.data,
        "--preset",
        args.preset,
        "--seed",
        str(args.seed),
    ]
    told = {"seeds": args.seeds if args.seeds > 1 else None} | {
        name: getattr(args, name) for name in ("mice", "neurons", "brainlm")
    }
    for flag, value in told.items():
        words += [] if value is None else [f"--{flag}", str(value)]
    return shlex.join([*words, "--out", str(args.out)])
