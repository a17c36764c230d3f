"""What the verbs of training share: the run file, the options that override it, and how a run is shown and logged."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from quantformer_cli.main import Parser

if TYPE_CHECKING:
    from quantformer_training.accelerator import Accelerator
    from quantformer_training.loop import Report


def add_run_options(parser: Parser, *, out: str, trains: bool = True, devices: bool = False) -> None:
    """``--run``, ``--out`` and, for a verb that trains, preset and threads; ``devices`` where it may train anywhere.

    Those not given are None.
    """
    parser.add_argument("--run", type=Path, metavar="FILE", help="TOML file of the run: docs/running.md; options override it")
    parser.add_argument("--out", type=Path, metavar="DIR", help=out)
    if not trains:
        return
    parser.add_argument("--preset", choices=("small", "live", "paper"), help="size and schedule of the network (default small)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads a process on the CPU (default 1)")
    if not devices:
        return
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where the network trains (default cpu)")
    parser.add_argument("--precision", choices=("float32", "bf16"), help="of matrix products (default float32)")
    parser.add_argument("--processes", type=int, metavar="N", help="processes, one a GPU on cuda (default 1)")


def flags_of(args: argparse.Namespace, names: Mapping[str, str]) -> dict[str, object]:
    """The options that were given, by the keys of the run file that they override; ``names`` maps the verb's own."""
    common = {"out": "out", "preset": "preset"}
    common |= {name: f"machine.{name}" for name in ("device", "precision", "processes", "threads")}
    found = {key: getattr(args, name, None) for name, key in (common | dict(names)).items()}
    return {key: value for key, value in found.items() if value is not None and value != []}


@contextmanager
def shown(machine: Accelerator, *, out: Path | None, tensorboard: bool, threads: int) -> Iterator[Report]:
    """A report that draws progress on stderr and logs to ``out``; training inside computes with ``threads`` threads."""
    from rich.console import Console

    from quantformer_cli.demo_progress import TrainingProgress
    from quantformer_training.threads import computing_with
    from quantformer_training.training_log import TrainingLog

    with ExitStack() as stack:
        stack.enter_context(computing_with(threads))
        if machine.rank > 0:
            # The first process alone is asked to report.
            yield lambda progress: None
            return
        report: Report = stack.enter_context(TrainingProgress(Console(stderr=True))).report
        if out is not None:
            report = stack.enter_context(TrainingLog(out, tensorboard=tensorboard, then=report)).report
        yield report
