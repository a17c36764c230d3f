"""`quantformer bundle verify|show|extend DIR`: is a bundle whole, what is in it, and new neurons for it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from quantformer.errors import UsageError
from quantformer_cli.main import Parser, Subparsers, add_verb

if TYPE_CHECKING:
    from quantformer.bundle import Bundle


def add_parser(subparsers: Subparsers[Parser]) -> Parser:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "bundle",
        about="Verify that a bundle is whole and unaltered, show what it holds, or add neurons to it without training.",
        example="quantformer bundle verify bundles/mouse-7",
    )
    parser.add_argument("action", choices=["verify", "show", "extend"], help="what to do")
    parser.add_argument("directory", type=Path, metavar="DIR", help="the bundle's directory")
    parser.add_argument("--json", action="store_true", help="show: print the manifest itself")
    parser.add_argument("--recording", type=Path, metavar="FILE", help="extend: presentations to the new neurons")
    parser.add_argument("--out", type=Path, metavar="DIR", help="extend: where the extended bundle is written")
    return parser


def run(args: argparse.Namespace) -> int:
    """Load the bundle, which verifies it, and say what was found."""
    from quantformer.bundle import load_bundle

    bundle = load_bundle(args.directory)
    if args.action == "extend":
        return run_extend(bundle, recording=args.recording, out=args.out)
    if args.action == "verify":
        print(f"{args.directory}: whole, bundle {bundle.hash}")
    elif args.json:
        print(json.dumps(json.loads((args.directory / "manifest.json").read_bytes()), indent=2))
    else:
        show(bundle)
    return 0


def run_extend(bundle: Bundle, *, recording: Path | None, out: Path | None) -> int:
    """Add the neurons of a recording; the bundle's ONNX file stays byte for byte what it was."""
    if recording is None or out is None:
        raise UsageError("bundle extend wants --recording FILE and --out DIR")
    from quantformer_training.extending import extend
    from quantformer_training.readers import open_recording

    extended = extend(bundle, open_recording(recording), path=out)
    print(
        f"{out}: bundle {extended.hash}, {len(extended.manifest.neuron_ids)} neurons, "
        f"{len(extended.manifest.neuron_ids) - len(bundle.manifest.neuron_ids)} of them new and not validated"
    )
    return 0


def show(bundle: Bundle) -> None:
    """Print the manifest's main facts, one a line."""
    manifest, recipe = bundle.manifest, bundle.recipe
    rows = [
        ("bundle", bundle.hash),
        ("made", f"{manifest.created_utc} by {manifest.software}, schema {manifest.schema}"),
        ("model", f"{manifest.preset}, d {manifest.d}, {manifest.codes} codes, {manifest.precision}"),
        ("neurons", f"{len(manifest.neuron_ids)}: {_some(manifest.neuron_ids)}"),
        ("stimuli", f"{len(manifest.stimuli)}: {_some(tuple(manifest.stimuli))}"),
        ("window", f"{recipe.baseline_frames} frames before, {recipe.response_frames} after, at {recipe.rate_hz:g} Hz"),
        ("active", f"{manifest.label.definition} mean dF/F of {manifest.label.threshold:g} or more"),
        ("phases", ", ".join(sorted(bundle.phases))),
        ("longest lead", f"{manifest.longest_lead} frames"),
        *(
            (f"skill, lead {one.lead}", f"log-loss {one.log_loss:.4f}, MSE {one.mse:.4f} (validation)")
            for one in manifest.skill_by_lead
        ),
        *((f"form {name}", str(form)) for name, form in sorted(manifest.forms.items())),
        *((f"metric {name}", f"{value:.4g}") for name, value in sorted(manifest.metrics.items())),
        *((f"provenance {key}", value) for key, value in sorted(manifest.provenance.items())),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name.ljust(width)}  {value}")


def _some(names: tuple[str, ...], most: int = 6) -> str:
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")
