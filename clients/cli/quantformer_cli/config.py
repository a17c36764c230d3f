"""`quantformer config show`: every setting, its unit and where its value came from."""

from __future__ import annotations

import argparse
import json

from quantformer_cli.main import Parser, Subparsers, add_settings, add_verb
from quantformer_service.settings import Row, table


def add_parser(subparsers: Subparsers[Parser]) -> Parser:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "config",
        about="Show every setting: value, unit, and whether a flag, the environment, a file or the default set it.",
        example="QUANTFORMER_HTTP_PORT=8080 quantformer config show",
    )
    parser.add_argument("action", choices=["show"], help="show: print every setting")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of a table")
    form.add_argument("--markdown", action="store_true", help="print the table of docs/settings.md")
    add_settings(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    values, sources = vars(args.resolved.settings), args.resolved.sources
    rows = table()
    if args.markdown:
        print(markdown(rows))
        return 0
    shown = {row.name: "***" if row.secret and values[row.name] else values[row.name] for row in rows}
    if args.json:
        found = {row.name: {"value": shown[row.name], "unit": row.unit, "source": sources[row.name]} for row in rows}
        print(json.dumps(found, indent=2))
        return 0
    cells = [("SETTING", "VALUE", "UNIT", "FROM")]
    cells += [(row.name, str(shown[row.name]) or '""', row.unit or "-", sources[row.name]) for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(3)]
    for line in cells:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[3]]))
    return 0


def markdown(rows: tuple[Row, ...]) -> str:
    """The settings as the table of ``docs/settings.md``."""
    lines = ["| setting | flag | environment | default | unit | must be | meaning |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        default = f"`{row.default}`" if row.default != "" else "empty"
        names = f"| `{row.name}` | `{row.flag}` | `{row.environment}` "
        lines.append(names + f"| {default} | {row.unit or '-'} | {row.expects} | {row.help} |")
    return "\n".join(lines)
