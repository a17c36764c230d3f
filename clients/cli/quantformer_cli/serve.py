"""`quantformer serve --bundle DIR`: the real-time service, until a signal ends it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from quantformer.errors import UsageError
from quantformer_cli.main import Parser, Subparsers, add_settings, add_verb


def add_parser(subparsers: Subparsers[Parser]) -> Parser:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "serve",
        about="Run the real-time service: an engine and a gateway, as processes that are restarted when they die. Prints\n"
        "one line an endpoint on stdout when all are ready. SIGINT or SIGTERM ends it within --shutdown-s (exit status\n"
        "130 or 143), a second one at once.",
        example="quantformer serve --bundle bundles/mouse-7 --http-port 8080",
    )
    add_settings(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Check what can be checked, then supervise."""
    from importlib.util import find_spec

    from quantformer_service.supervisor import Supervisor

    settings = args.resolved.settings
    if not settings.bundle:
        raise UsageError("no bundle was given: 'quantformer serve --bundle DIR', or bundle = \"DIR\" in quantformer.toml")
    for package in ("fastapi", "uvicorn", "websockets", "onnxruntime", "safetensors"):  # a missing extra, before any starts
        # Looked for only: importing them would take a second, which the processes need anew.
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    # The processes verify the bundle, and end with its fault as theirs; verifying it here too would only delay them.
    return Supervisor(settings, on_ready=_report).run()


def _report(facts: Mapping[str, Mapping[str, Any]]) -> None:
    for name, process in facts.items():
        for endpoint, address in process.get("endpoints", {}).items():
            print(f"ready: {endpoint.ljust(6)} {address}  ({name})", flush=True)
