"""Measure neuron-trials a second in pre-training and fine-tuning at the paper's size, beside their ceiling.

    python deploy/measure_training.py [--device cuda] [--precision bf16] [--batch 256 1024] [--threads 1] [--json FILE]

The ceiling is the network's own matrix products run alone, forward and backward, after each epoch of the real training
(`quantformer_training.throughput`). On the CPU the default is one thread and both precisions; where torch sees a GPU, it
is measured too. docs/benchmarks.md says what was found.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from quantformer.config import PRESETS
from quantformer_training.throughput import Throughput, measure

#: Batch sizes, batches an epoch, and epochs where nothing else is asked. A GPU needs larger ones to be busy.
BATCHES = {"cpu": (256,), "cuda": (8192,)}
STEPS = {"cpu": 2, "cuda": 24}


def machine(device: str) -> str:
    """What computes, in words."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def table(found: list[Throughput]) -> Table:
    """One row a task, device, precision and batch size."""
    made = Table(title="Neuron-trials a second at the paper's size")
    names = (
        "device",
        "precision",
        "threads",
        "batch",
        "task",
        "steps",
        "with drawing",
        "drawn",
        "ceiling",
        "share",
        "CPU",
    )
    for name in names:
        made.add_column(name, justify="left" if name in ("device", "precision", "task") else "right")
    for one in found:
        made.add_row(
            one.device, one.precision, str(one.threads), str(one.batch), one.task, f"{one.steps:,.0f}",
            f"{one.whole:,.0f}", "" if one.drawn is None else f"{one.drawn:,.0f}", f"{one.ceiling:,.0f}", f"{one.share:.0%}",
            "" if one.cpu_share is None else f"{one.cpu_share:.0%}",
        )  # fmt: skip
    return made


def main() -> None:
    """Measure and print; with ``--json`` also write every figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--device", nargs="+", choices=("cpu", "cuda"), help="default: cpu, and cuda where there is one"
    )
    parser.add_argument("--precision", nargs="+", choices=("float32", "bf16"), default=["float32", "bf16"])
    parser.add_argument(
        "--batch", nargs="+", type=int, help="neuron-trials a step (default: 256; on cuda 8192)"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="torch's on the CPU, and the most that draw rows (default %(default)s)"
    )
    parser.add_argument(
        "--epochs", type=int, default=3, help="measured; as many run between them (default %(default)s)"
    )
    parser.add_argument("--preset", choices=tuple(PRESETS), default="paper")
    parser.add_argument("--json", type=Path, help="file to write")
    asked = parser.parse_args()
    console = Console()
    found: list[Throughput] = []
    for device in asked.device or (["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]):
        console.print(f"{device}: {machine(device)}, torch {torch.__version__}")
        for precision in asked.precision:
            for batch in asked.batch or BATCHES[device]:
                found += measure(
                    PRESETS[asked.preset], device=device, precision=precision, threads=asked.threads, batch=batch,
                    steps=STEPS[device], epochs=asked.epochs,
                )  # fmt: skip
    if not torch.cuda.is_available():
        console.print("GPU: not measured, torch sees none")
    console.print(table(found))
    console.print(
        "with drawing: what training reaches with its rows drawn ahead on a thread; drawn: what drawing gives on its own; "
        "share: of the ceiling, median over epochs, by the clock; CPU: the same by CPU time, which other work disturbs less"
    )
    if asked.json:
        asked.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
