"""Measure neuron-trials a second that are drawn for training, with one thread and with several.

    python deploy/measure_drawing.py [--threads 1 2] [--rows 65536] [--rounds 5]

Epochs are drawn ahead on a thread as in training (`quantformer_training.ahead`), but nothing is learned from them, so that
nothing but drawing is measured. The numbers of threads take turns, so that a busy moment of the machine meets all of them.
docs/benchmarks.md says what was found.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from quantformer_training.ahead import drawn_ahead
from quantformer_training.examples import Examples
from quantformer_training.indexed import IndexedSource
from quantformer_training.machine import machine
from quantformer_training.threads import computing_with
from quantformer_training.throughput import made_sources

#: Epochs of a turn.
_EPOCHS = 3


def draw(source: IndexedSource, *, rows: int, threads: int) -> tuple[float, float]:
    """Rows a second by the clock, and a second of CPU time of all threads."""

    def drawn_of(epoch: int) -> Examples:
        return source.draw(rows, np.random.default_rng(epoch))

    count = 0
    with computing_with(threads):
        clock, cpu = time.perf_counter(), time.process_time()
        with drawn_ahead(drawn_of, epochs=_EPOCHS) as drawn:
            for epoch in range(_EPOCHS):
                count += len(drawn(epoch))
        return count / (time.perf_counter() - clock), count / (time.process_time() - cpu)


def main() -> None:
    """Print, for each number of threads, medians over rounds, and the rate against that of the first within a round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="default: 1 and 2")
    parser.add_argument("--rows", type=int, default=65_536, help="of an epoch (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    asked = parser.parse_args()
    found: dict[int, list[tuple[float, float]]] = {threads: [] for threads in asked.threads}
    with tempfile.TemporaryDirectory() as directory:
        source = made_sources(Path(directory), rows=3 * asked.rows)[1]["real"]
        for threads in found:  # the first of each is not counted: memory is fetched, traces are read
            draw(source, rows=asked.rows, threads=threads)
        load = os.getloadavg()[0]
        for _ in range(asked.rounds):
            for threads, rates in found.items():
                rates.append(draw(source, rows=asked.rows, threads=threads))
    print(f"{machine()}, load {load:.1f}; {min(asked.rows, len(source)):,} rows an epoch, {asked.rounds} rounds")
    first = found[asked.threads[0]]
    for threads, rates in found.items():
        gains = [rate / alone for (rate, _), (alone, _) in zip(rates, first, strict=True)]
        print(
            f"{threads} threads: {statistics.median(rate for rate, _ in rates):,.0f} rows a second by the clock, "
            f"{statistics.median(rate for _, rate in rates):,.0f} a second of CPU time; "
            f"{statistics.median(gains):.2f} x ({min(gains):.2f} to {max(gains):.2f})"
        )


if __name__ == "__main__":
    main()
