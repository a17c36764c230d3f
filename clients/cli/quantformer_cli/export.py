"""`quantformer export`: a fitted model to the bundle that the service loads."""

from __future__ import annotations

import argparse
from pathlib import Path

from quantformer_cli.main import Parser, Subparsers, add_verb
from quantformer_cli.run_options import add_run_options, flags_of


def add_parser(subparsers: Subparsers[Parser]) -> Parser:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "export",
        about="Export a fitted model: the graph, proven against PyTorch on validation rows, forms of lower precision that lose\n"
        "next to nothing there, vectors and manifest.",
        example="quantformer export runs/v1 --out bundles/v1",
    )
    parser.add_argument("fitted", type=Path, nargs="?", metavar="DIR", help="made by 'quantformer finetune'")
    add_run_options(parser, out="the bundle; it must not exist yet", trains=False)
    return parser


def run(args: argparse.Namespace) -> int:
    """Export and verify; the run is written beside the bundle, which holds nothing but its own files."""
    from quantformer.errors import UsageError
    from quantformer_training.fitted_files import load_fitted
    from quantformer_training.packing import write_fitted
    from quantformer_training.run_config import ExportRun, read_run, require, write_run

    wanted = read_run(ExportRun, args.run, flags=flags_of(args, {"fitted": "fitted"}))
    require(wanted, "fitted", "out")
    out = Path(wanted.out)
    if out.exists():
        raise UsageError(f"{out} exists; a bundle is never written over: choose another place or remove it")
    manifest = write_fitted(load_fitted(Path(wanted.fitted)), out).manifest
    write_run(wanted, out.with_name(out.name + ".run.toml"))
    parity = max(manifest.parity.logit, manifest.parity.response)
    print(
        f"{args.out or out}: {len(manifest.neuron_ids)} neurons, {len(manifest.stimuli)} stimuli; the graph agrees with PyTorch "
        f"within {parity:.1e} on {manifest.parity.rows} rows"
    )
    for name, form in manifest.forms.items():
        print(f"{name}: {form}")
    return 0
