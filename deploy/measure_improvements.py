"""Measure on test rows what each improvement over the paper is worth: QuantFormer whole, then with one thing taken away.

    python deploy/measure_improvements.py [--mice 3] [--seed 0] [--preset small] [--json FILE]

Simulated mice under drifting gratings, each in a process of its own on one thread, and networks trained, chosen and calibrated
as in a study (`contest`); each is asked once about the test rows. A difference is that of what is left less the whole, a mean
over mice: above zero in a loss, or below zero in r, what was taken away had helped. Its 95 % interval is over trials drawn anew
within each mouse, the same trials for both. How training turns out by chance is not in it: "another seed" shows that beside.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from taken_away import TAKEN_AWAY, Answered, Without, answered, likeliest
from threadpoolctl import threadpool_limits

from quantformer.manifest import Calibration
from quantformer_training.calibrate import probability
from quantformer_training.effort import EFFORTS, Effort
from quantformer_training.jobs import Job, Outcome, cores, run_all
from quantformer_training.machine import machine, software
from quantformer_training.pretrain import load_pretrained
from quantformer_training.pretrain_cohort import pretrain_cohort
from quantformer_training.run_data import RunData
from quantformer_training.simulated import MouseConfig, short_session
from quantformer_training.store import write_session
from quantformer_training.threads import one_thread

Floats = NDArray[np.float64]
#: Scores by name, as the table heads them.
SCORES = MappingProxyType({"log_loss": "log-loss", "brier": "Brier", "mse": "MSE, (dF/F)²", "r": "signed r"})
WHOLE = "nothing: the whole"
RESAMPLES = 2000
#: Models of the whole, of which the first is compared and all are averaged.
SEEDS = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """Of one mouse: by what was taken away the scores of every test row; the ``trial`` ``(rows,)`` of each row."""

    scores: Mapping[str, Mapping[str, Floats]]
    trial: NDArray[np.int64]
    cpu_s: float


def measure_mouse(*, number: int, seed: int, effort: Effort, neurons: int, presentations: int) -> Measured:
    """Every model of one mouse; a job of its own."""
    began = time.process_time()
    scores: dict[str, Mapping[str, Floats]] = {}

    def say(what: str) -> None:
        print(f"mouse {number}: {what}, {time.process_time() - began:.0f} s of CPU", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder, one_thread(), threadpool_limits(limits=1):
        session = short_session(MouseConfig(neurons=neurons, seed=seed + number), presentations=presentations)
        place, pretrained = Path(folder) / "session", Path(folder) / "pretrained"
        stored = write_session(session.recording, place)
        pretrain_cohort(sessions=(str(place),), effort=effort, out=str(pretrained), seed=seed)
        category = next(name for name in stored.stimuli.category if name != "spontaneous")
        data, teacher = RunData.read(stored, category=category, most=effort.most), load_pretrained(pretrained)
        say("pre-trained")

        def made(without: Without, *, seed: int = seed) -> Answered:
            return answered(data, teacher, config=effort.seeded(seed).finetuning, without=without)

        seeds = []
        for other in range(seed, seed + SEEDS):
            seeds.append(made(Without(), seed=other))
            say(f"the whole, seed {other}")
        whole = seeds[0]
        scores[WHOLE] = whole.scores()
        scores["expected decoding: the likeliest codes"] = whole.scores(response=likeliest(whole))
        unscaled = Calibration(temperature=1.0, bias=0.0)
        scores["calibration"] = whole.scores(chance=probability(whole.logit, unscaled))
        for title, without in TAKEN_AWAY.items():
            scores[title] = made(without).scores()
            say(f"without {title}")
        for further, one in enumerate(seeds[1:], start=1):
            scores[f"nothing: another seed, {further}"] = one.scores()
        scores[f"a single seed: the mean of {SEEDS}"] = whole.scores(
            chance=np.mean([one.chance for one in seeds], axis=0),
            response=np.mean([one.response for one in seeds], axis=0),
        )
    return Measured(scores=scores, trial=whole.rows.moment.numpy(), cpu_s=time.process_time() - began)


def measure(*, mice: int, seed: int, effort: Effort, neurons: int = 24, presentations: int = 240) -> list[Measured]:
    """Every mouse, side by side as far as there are cores.

    Raises:
        SystemExit: a mouse could not be measured.
    """
    jobs = [
        Job(
            name=f"mouse {number}",
            function=measure_mouse,
            arguments={
                "number": number, "seed": seed, "effort": effort, "neurons": neurons, "presentations": presentations
            },
        )
        for number in range(mice)
    ]  # fmt: skip

    def report(outcome: Outcome) -> None:
        print(f"{outcome.name}: {outcome.trace or f'{outcome.seconds:.0f} s'}", file=sys.stderr, flush=True)

    outcomes = run_all(jobs, processes=min(mice, cores()), report=report)
    if failed := [f"{one.name}: {one.failure}" for one in outcomes if one.failed]:
        raise SystemExit("; ".join(failed))
    return [one.value for one in outcomes]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A score without something, and its ``difference`` to the whole's with a 95 % interval: means over mice; ``by_mouse`` the
    differences themselves. ``unchanged`` where every row is as in the whole.
    """

    value: float
    difference: float
    low: float
    high: float
    by_mouse: tuple[float, ...]
    unchanged: bool


def effects(found: Sequence[Measured], *, seed: int) -> dict[str, dict[str, Effect]]:
    """By what was taken away, and by score."""
    titles = list(found[0].scores)
    drawn: list[NDArray[np.int64]] = []
    for number, one in enumerate(found):
        trials = len(np.unique(one.trial))
        drawn.append(np.random.default_rng((seed, number)).integers(0, trials, (RESAMPLES, trials)))
    made: dict[str, dict[str, Effect]] = {title: {} for title in titles}
    for name in SCORES:
        # The rows themselves first, then the resamples: (mice, titles, 1 + RESAMPLES).
        means = np.stack([_means(one, name, drawn=of_mouse) for one, of_mouse in zip(found, drawn, strict=True)])
        differences = means - means[:, titles.index(WHOLE), None]
        for k, title in enumerate(titles):
            low, high = np.percentile(differences[:, k, 1:].mean(0), [2.5, 97.5])
            made[title][name] = Effect(
                value=float(means[:, k, 0].mean()),
                difference=float(differences[:, k, 0].mean()),
                low=float(low),
                high=float(high),
                by_mouse=tuple(differences[:, k, 0].tolist()),
                unchanged=all(
                    np.array_equal(one.scores[title][name], one.scores[WHOLE][name], equal_nan=True) for one in found
                ),
            )
    return made


def _means(one: Measured, name: str, *, drawn: NDArray[np.int64]) -> Floats:
    """A score's mean over the rows, and over those of the drawn trials ``(RESAMPLES, trials)``, where it is defined."""
    score = np.stack([scores[name] for scores in one.scores.values()])
    defined = ~np.isnan(score)
    trials, which = np.unique(one.trial, return_inverse=True)
    # Sums a trial: rows are many, trials few.
    sums, counts = (
        np.stack([np.bincount(which, of_one, len(trials)) for of_one in values])
        for values in (np.where(defined, score, 0.0), defined.astype(np.float64))
    )
    every = np.concatenate([np.arange(len(trials))[None], drawn])
    means: Floats = np.stack([row[every].sum(1) / count[every].sum(1) for row, count in zip(sums, counts, strict=True)])
    return means


def table(made: Mapping[str, Mapping[str, Effect]]) -> str:
    """A Markdown table, a row for each thing taken away."""
    heads = ["taken away", *(cell for head in SCORES.values() for cell in (head, "difference (95 % interval)"))]
    lines = [heads, ["---"] * len(heads)]
    for title, by_score in made.items():
        cells = [title]
        for one in by_score.values():
            told = f"{one.difference:+.4f} ({one.low:+.4f} to {one.high:+.4f})"
            cells += [f"{one.value:.4f}", "" if title == WHOLE else "unchanged" if one.unchanged else told]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def document(
    found: Sequence[Measured], *, made: Mapping[str, Mapping[str, Effect]], preset: str, seed: int
) -> dict[str, object]:
    """How the figures were made, and every one of them: what ``--json`` writes."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine(),
        "versions": software(),
        "preset": preset,
        "seed": seed,
        "test_trials": [len(np.unique(one.trial)) for one in found],
        "test_rows": [len(one.trial) for one in found],
        "cpu_seconds": [round(one.cpu_s) for one in found],
        "taken_away": {title: {name: asdict(one) for name, one in by.items()} for title, by in made.items()},
    }


def main() -> None:
    """Measure and print; with ``--json`` also write every figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mice", type=int, default=3, help="simulated mice (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first mouse and of training (default %(default)s)")
    parser.add_argument(
        "--preset", choices=tuple(EFFORTS), default="small", help="how much is spent (default %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="file to write")
    asked = parser.parse_args()
    if asked.mice < 1:
        parser.error(f"--mice is {asked.mice}; at least one is needed")
    found = measure(mice=asked.mice, seed=asked.seed, effort=EFFORTS[asked.preset])
    made = effects(found, seed=asked.seed)
    told = document(found, made=made, preset=asked.preset, seed=asked.seed)
    print("; ".join(f"{name} {value}" for name, value in told.items() if name != "taken_away") + "\n")
    print(table(made))
    if asked.json:
        asked.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
