"""Measure what `import quantformer_client` costs beside importing the packages that it is made of.

    python deploy/measure_import.py [--repeats 20]

Each import runs in an interpreter of its own, the two kinds by turns so that a busy moment of the machine meets both.
The target is 1.5 (docs/benchmarks.md). The clock starts inside the interpreter: its own start-up is in neither.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

FOUR = "numpy, zmq, httpx, msgspec"
CLIENT = "quantformer_client"
#: All that a script with a camera and a controller asks for; `quantformer_client` alone imports its modules when named.
CLIENT_USED = "quantformer_client; from quantformer_client import *"


def milliseconds(imported: str) -> float:
    """Time of ``import {imported}`` in a fresh interpreter, in ms."""
    program = f"import time\nstart = time.perf_counter()\nimport {imported}\nprint(1e3 * (time.perf_counter() - start))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    return float(done.stdout)


def main() -> None:
    """Print both medians with their quartiles and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20, help="interpreters of each kind (default %(default)s)")
    repeats = parser.parse_args().repeats
    taken: dict[str, list[float]] = {FOUR: [], CLIENT: [], CLIENT_USED: []}
    for imported in taken:  # the first of each fills the disk cache and is not counted
        milliseconds(imported)
    for _ in range(repeats):
        for imported, times in taken.items():
            times.append(milliseconds(imported))
    reference = statistics.median(taken[FOUR])
    for imported, times in taken.items():
        low, middle, high = statistics.quantiles(times, n=4)
        print(f"import {imported}: median {middle:.0f} ms (quartiles {low:.0f} - {high:.0f}), {middle / reference:.2f} x")


if __name__ == "__main__":
    main()
