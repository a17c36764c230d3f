"""`quantformer status`: ask a running service how it is."""

from __future__ import annotations

import argparse
import json

from quantformer_cli.main import Parser, Subparsers, add_settings, add_verb


def add_parser(subparsers: Subparsers[Parser]) -> Parser:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "status",
        about="Ask a running service how it is, over REST. Exit status 0: ready; 1: it answers and is not ready; 4: nobody\n"
        "answers.",
        example="quantformer status --http-port 8080",
    )
    parser.add_argument("--json", action="store_true", help="print the service's own answer")
    add_settings(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the status, one fact a line."""
    from quantformer_client import Rest

    settings = args.resolved.settings
    with Rest(host=settings.host, port=settings.http_port, token=settings.token) as rest:
        status = rest.status()
    if args.json:
        print(json.dumps(status, indent=2))
    else:
        facts = {key: value for key, value in status.items() if not isinstance(value, dict | list)}
        for session in status.get("sessions", []):
            about = f"{session['subject']}, {session['rois']} ROIs, {session['state']}, trigger {session['trigger']}"
            facts[f"session {session['session']}"] = about
        if recording := status.get("recording"):
            told = f"{recording['file']}, {recording['acknowledged']} of {recording['records']} records on the disk"
            facts["recording"] = told + (f"; in trouble: {recording['trouble']}" if recording["trouble"] else "")
        width = max(map(len, facts))
        for key, value in facts.items():
            print(f"{key.ljust(width)}  {value}")
    return 0 if status["ready"] else 1
