"""Write the README's file tree, one line a file, from what git tracks and what each file says of itself.

    python deploy/readme_tree.py

A module's line is the first sentence of its docstring, a page's is its title. Other files, and folders shown as one line,
have theirs below.
A file without a line is an error: say in a sentence what it is.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- tree -->\n```\n", "```\n<!-- /tree -->"
WIDTH = 124
#: A full stop between sentences, not the one of an abbreviation or a product.
SENTENCE_END = re.compile(r"(?<=[\w)\]])\. (?=[A-Z])")

#: What cannot speak for itself. A folder, with its slash, stands for all that is in it.
LINES = {
    ".ci/": "what continuous integration runs",
    "clients/golden/": "messages, byte for byte, that every implementation of the wire must read",
    "clients/wire.md": "the wire, byte by byte",
    "deploy/constraints-gpu.txt": "pinned CUDA libraries of the gpu image",
    "deploy/install.sh": "the image's installation",
    "deploy/prometheus.yml": "what Prometheus watches",
    "deploy/requirements-allen.txt": "the environment of allensdk, for make test-allen",
    "tests/": "one file a module; real sockets, files and processes",
    "docs/architecture.md": "the way of the data, the rooms and who may import whom, the rules, the graph",
    "docs/growth.svg": "how cost grows with neurons, stimuli and sessions, as measured",
    "docs/forecast.svg": "the picture above: what quantformer demo draws of eight neurons",
    "docs/metrics.md": "every score with its formula",
    "docs/settings.md": "every setting with its flag, variable, default and unit",
    ".dockerignore": "what the image's build may read",
    "CHANGELOG.md": "what changed",
    "CONTRIBUTING.md": "how to work on it, on one page",
    "Dockerfile": "the image, for CPU or GPU",
    "LICENSE": "BSD-3-Clause",
    "Makefile": "demo, test, check, bench, clean",
    "README.md": "this page",
    "constraints.txt": "pinned versions of every package",
    "docker-compose.yml": "the service on a GPU, and Prometheus",
    "pyproject.toml": "packages, extras, tools and the floor plan's contracts",
}
#: Not worth a reader's line.
UNSAID = {".gitignore", "py.typed"}
#: Rooms in the order of the data's way, then the rest, then files at the top.
ROOMS = ("model", "training", "service", "clients", "deploy", "docs", "tests", ".ci")


class UndescribedError(Exception):
    """A tracked file has no line, or a line has no file."""


def tracked() -> list[str]:
    """Paths that git tracks and that are there, with forward slashes."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).exists()]


def describe(name: str) -> str:
    """The line of one file or folder.

    Raises:
        UndescribedError: it says nothing of itself and has no line in `LINES`.
    """
    if name in LINES:
        return LINES[name]
    if name.endswith(".py"):
        said = ast.get_docstring(ast.parse((ROOT / name).read_text(encoding="utf-8")))
        if said:
            paragraph = said.split("\n\n")[0].replace("\n", " ").replace("`", "")
            return SENTENCE_END.split(paragraph)[0].rstrip(".")
    if name.endswith(".md"):
        title = (ROOT / name).read_text(encoding="utf-8").partition("\n")[0]
        if title.startswith("# "):
            return title.removeprefix("# ").strip().lower()
    raise UndescribedError(f"{name} has no line: give it a docstring, or a line in deploy/readme_tree.py")


def entries(names: list[str]) -> dict[str, str]:
    """Shown path to its line: files, and the folders that stand for theirs, in the order of the tree."""
    folders = tuple(line for line in LINES if line.endswith("/"))
    shown: dict[str, str] = {}
    for name in sorted(names, key=place):
        if Path(name).name in UNSAID:
            continue
        path = next((folder for folder in folders if name.startswith(folder)), name)
        shown.setdefault(path, describe(path))
    if stale := set(LINES) - set(shown):
        raise UndescribedError(f"deploy/readme_tree.py describes {sorted(stale)}, which git does not track")
    return shown


def place(path: str) -> tuple[int, str]:
    """Where a path stands in the tree."""
    room, slash, _ = path.partition("/")
    return (ROOMS.index(room) if room in ROOMS else len(ROOMS) + (not slash), path)


def render(shown: dict[str, str]) -> str:
    """The tree as text: a folder's name once, its files indented under it."""
    rows: list[tuple[str, str]] = []
    above: tuple[str, ...] = ()
    for path, line in shown.items():
        *parents, leaf = path.rstrip("/").split("/")
        for depth, parent in enumerate(parents):
            if above[: depth + 1] != tuple(parents[: depth + 1]):
                rows.append(("  " * depth + parent + "/", ""))
        above = tuple(parents)
        rows.append(("  " * len(parents) + leaf + ("/" if path.endswith("/") else ""), line))
    width = max(len(left) for left, _ in rows) + 2
    return "".join(shorten(f"{left.ljust(width)}{line}".rstrip()) + "\n" for left, line in rows)


def shorten(row: str) -> str:
    """A row that fits, cut at a word."""
    return row if len(row) <= WIDTH else row[: WIDTH - 2].rsplit(" ", 1)[0].rstrip(",;:") + " …"


def replace_tree(readme: str, tree: str) -> str:
    """The README with this tree in place of its own."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UndescribedError(f"README.md: found no {BEGIN!r} ... {END!r}, expected the tree between them")
    return before + BEGIN + tree + END + after


def main() -> int:
    """Write it."""
    readme = ROOT / "README.md"
    try:
        text = replace_tree(readme.read_text(encoding="utf-8"), render(entries(tracked())))
    except UndescribedError as error:
        print(f"readme_tree: {error}", file=sys.stderr)
        return 1
    readme.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
