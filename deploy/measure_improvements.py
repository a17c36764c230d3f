"""Measure what each improvement over the paper is worth: QuantFormer whole, then with one thing taken away.

    python deploy/measure_improvements.py [--mice 3] [--seeds 3] [--seed 0] [--preset small] [--json FILE]
    python deploy/measure_improvements.py --recording FILE --first 53 --preset recording [--sizes paper live small]
    python deploy/measure_improvements.py --mice 1 --seed 77 --sizes paper --precisions float32 bf16

Simulated mice under drifting gratings, each in a process of its own on one thread, and networks trained, chosen and calibrated
as in a study (`contest`); each is asked once about the test rows. ``--recording`` takes a real session in their place, and
``--first`` only its first presentations, split in time: the rest is held back for a test. A score is the mean over models of
several seeds, and a difference that of what is left less the whole, a mean over mice: above zero in a loss, or below zero in
r, what was taken away had helped. Its 95 % interval is over trials drawn anew within each mouse, the same trials for both. How
training turns out by chance is not in it: "other seeds" shows that beside. ``--sizes`` compares networks of other sizes with the
first one named, each with an auto-encoder of its own, in place of taking anything away: the same rows and epochs. With
``--precisions`` each is fine-tuned on the CPU in each of these, from the same auto-encoder.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from taken_away import TAKEN_AWAY, Answered, Without, answered, in_precision, likeliest
from threadpoolctl import threadpool_limits

from quantformer.config import PRESETS, ModelConfig
from quantformer.manifest import Calibration
from quantformer.recording import Recording
from quantformer.signal import onset_frames
from quantformer_training.accelerator import PRECISIONS
from quantformer_training.calibrate import probability
from quantformer_training.effort import EFFORTS, Effort
from quantformer_training.jobs import Job, Outcome, cores, run_all
from quantformer_training.machine import machine, software
from quantformer_training.pretrain import Pretrained, load_pretrained
from quantformer_training.pretrain_cohort import pretrain_cohort
from quantformer_training.readers import open_recording
from quantformer_training.run_data import RunData
from quantformer_training.simulated import MouseConfig, short_session
from quantformer_training.store import write_session
from quantformer_training.threads import one_thread

Floats = NDArray[np.float64]
#: Scores by name, as the table heads them.
SCORES = MappingProxyType({"log_loss": "log-loss", "brier": "Brier", "mse": "MSE, (dF/F)²", "r": "signed r"})
WITH_ALL = Without()
WHOLE, OTHERS = "nothing: the whole", "nothing: other seeds"
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """A simulated mouse: its ``seed``, how many neurons it has and how many drifting gratings it is shown."""

    seed: int
    neurons: int
    presentations: int

    def recording(self) -> Recording:
        """What is recorded of it."""
        mouse = MouseConfig(neurons=self.neurons, seed=self.seed)
        return short_session(mouse, presentations=self.presentations).recording


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A file, and how many of its presentations are looked at, from the first on (None: all)."""

    path: Path
    first: int | None

    def recording(self) -> Recording:
        """Those presentations, and every frame before the next one.

        Raises:
            SystemExit: it has fewer.
        """
        whole = open_recording(self.path)
        if self.first is None or self.first == len(whole.stimuli):
            return whole
        if not 0 < self.first < len(whole.stimuli):
            raise SystemExit(f"{self.path} has {len(whole.stimuli)} presentations, --first asks for {self.first}")
        (stop,) = onset_frames(whole.timestamps_s, whole.stimuli.onset_s[self.first : self.first + 1])
        return whole.between(0, int(stop))


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """Of one mouse: by what was taken away the scores of every test row; the ``trial`` ``(rows,)`` of each row."""

    scores: Mapping[str, Mapping[str, Floats]]
    trial: NDArray[np.int64]
    cpu_s: float


@dataclass(frozen=True, kw_only=True)
class Laboratory:
    """Where the models of one mouse are trained: ``seeds`` of each, from ``seed`` on."""

    name: str
    data: RunData
    effort: Effort
    session: Path
    seed: int
    seeds: int
    began: float

    def pretrained(self, model: ModelConfig) -> Pretrained:
        """An auto-encoder of this size."""
        out = self.session.with_name(f"pretrained-{model.d}-{model.layers}-{model.heads}")
        effort = replace(self.effort, model=model)
        pretrain_cohort(sessions=(str(self.session),), effort=effort, out=str(out), seed=self.seed)
        self.say(f"pre-trained, d = {model.d}, {model.layers} layers")
        return load_pretrained(out)

    def models(
        self, title: str, pretrained: Pretrained, *, without: Without = WITH_ALL, later: int = 0
    ) -> list[Answered]:
        """One of each seed, or of as many seeds ``later``."""
        first = self.seed + later * self.seeds
        made = [
            answered(self.data, pretrained, config=self.effort.seeded(seed).finetuning, without=without)
            for seed in range(first, first + self.seeds)
        ]
        self.say(title)
        return made

    def say(self, what: str) -> None:
        """Progress goes to stderr."""
        print(f"{self.name}: {what}, {time.process_time() - self.began:.0f} s of CPU", file=sys.stderr, flush=True)


def measure_mouse(
    *,
    name: str,
    mouse: Simulated | Recorded,
    seed: int,
    seeds: int,
    effort: Effort,
    sizes: tuple[str, ...],
    precisions: tuple[str, ...],
) -> Measured:
    """Every model of one mouse; a job of its own."""
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder, one_thread(), threadpool_limits(limits=1):
        session = write_session(mouse.recording(), Path(folder) / "session")
        category = next(one for one in session.stimuli.category if one != "spontaneous")
        data = RunData.read(session, category=category, most=effort.most)
        trial = data.sources(1.0).test.at_lead(0).moment.numpy()
        laboratory = Laboratory(
            name=name, data=data, effort=effort, session=Path(folder) / "session", seed=seed, seeds=seeds, began=began
        )
        scores = of_sizes(laboratory, sizes, precisions) if sizes else without_each(laboratory)
    return Measured(scores=scores, trial=trial, cpu_s=time.process_time() - began)


def of_sizes(
    laboratory: Laboratory, sizes: Sequence[str], precisions: Sequence[str]
) -> dict[str, dict[str, Floats]]:
    """Scores of networks of the sizes of these presets, fine-tuned in each of these precisions."""
    scores = {}
    for size in sizes:
        pretrained = laboratory.pretrained(PRESETS[size])
        for precision in precisions:
            title = f"size {size}, {precision}"
            models = laboratory.models(title, pretrained, without=in_precision(precision))
            scores[title] = averaged(one.scores() for one in models)
    return scores


def without_each(laboratory: Laboratory) -> dict[str, dict[str, Floats]]:
    """Scores of the whole, with one thing taken away, of other seeds, and of the whole models' mean answers."""
    pretrained, unscaled = laboratory.pretrained(laboratory.effort.model), Calibration(temperature=1.0, bias=0.0)
    whole = laboratory.models(WHOLE, pretrained)
    scores = {
        WHOLE: averaged(one.scores() for one in whole),
        "expected decoding: the likeliest codes": averaged(one.scores(response=likeliest(one)) for one in whole),
        "calibration": averaged(one.scores(chance=probability(one.logit, unscaled)) for one in whole),
    }
    for title, without in TAKEN_AWAY.items():
        scores[title] = averaged(one.scores() for one in laboratory.models(title, pretrained, without=without))
    scores[OTHERS] = averaged(one.scores() for one in laboratory.models(OTHERS, pretrained, later=1))
    chance, response = (np.mean([getattr(one, name) for one in whole], axis=0) for name in ("chance", "response"))
    scores[f"single seeds: {len(whole)} in one"] = whole[0].scores(chance=chance, response=response)
    return scores


def averaged(scores: Iterable[Mapping[str, Floats]]) -> dict[str, Floats]:
    """Of every row its mean score over models; of one that a model has none of (r of a constant trace), over the others."""
    every = list(scores)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        return {name: np.nanmean([one[name] for one in every], axis=0) for name in SCORES}


def measure(
    mice: Mapping[str, Simulated | Recorded],
    *,
    seed: int,
    seeds: int,
    effort: Effort,
    sizes: tuple[str, ...] = (),
    precisions: tuple[str, ...] = PRECISIONS[:1],
) -> list[Measured]:
    """Every mouse, side by side as far as there are cores.

    Raises:
        SystemExit: a mouse could not be measured.
    """
    jobs = [
        Job(
            name=name,
            function=measure_mouse,
            arguments={
                "name": name, "mouse": mouse, "seed": seed, "seeds": seeds, "effort": effort, "sizes": sizes,
                "precisions": precisions,
            },
        )
        for name, mouse in mice.items()
    ]

    def report(outcome: Outcome) -> None:
        print(f"{outcome.name}: {outcome.trace or f'{outcome.seconds:.0f} s'}", file=sys.stderr, flush=True)

    outcomes = run_all(jobs, processes=min(len(jobs), cores()), report=report)
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
    """By what was taken away, and by score; the first is what the others are compared with."""
    titles = list(found[0].scores)
    drawn: list[NDArray[np.int64]] = []
    for number, one in enumerate(found):
        trials = len(np.unique(one.trial))
        drawn.append(np.random.default_rng((seed, number)).integers(0, trials, (RESAMPLES, trials)))
    made: dict[str, dict[str, Effect]] = {title: {} for title in titles}
    for name in SCORES:
        # The rows themselves first, then the resamples: (mice, titles, 1 + RESAMPLES).
        means = np.stack([_means(one, name, drawn=of_mouse) for one, of_mouse in zip(found, drawn, strict=True)])
        differences = means - means[:, :1]
        for k, title in enumerate(titles):
            low, high = np.percentile(differences[:, k, 1:].mean(0), [2.5, 97.5])
            made[title][name] = Effect(
                value=float(means[:, k, 0].mean()),
                difference=float(differences[:, k, 0].mean()),
                low=float(low),
                high=float(high),
                by_mouse=tuple(differences[:, k, 0].tolist()),
                unchanged=all(
                    np.array_equal(one.scores[title][name], one.scores[titles[0]][name], equal_nan=True)
                    for one in found
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
            cells += [f"{one.value:.4f}", "" if title == next(iter(made)) else "unchanged" if one.unchanged else told]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def document(
    found: Sequence[Measured], *, made: Mapping[str, Mapping[str, Effect]], preset: str, seed: int, seeds: int
) -> dict[str, object]:
    """How the figures were made, and every one of them: what ``--json`` writes."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine(),
        "versions": software(),
        "preset": preset,
        "seed": seed,
        "seeds": seeds,
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
    parser.add_argument("--seeds", type=int, default=3, help="models that a score is the mean of (default %(default)s)")
    parser.add_argument("--recording", type=Path, help="a session to measure in place of simulated mice")
    parser.add_argument("--first", type=int, help="so many of its presentations")
    parser.add_argument(
        "--sizes", nargs="+", choices=tuple(PRESETS), default=(), help="networks to compare with the first instead"
    )
    parser.add_argument(
        "--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS[:1], help="in which --sizes are fine-tuned"
    )
    asked = parser.parse_args()
    if asked.mice < 1 or asked.seeds < 1:
        parser.error(f"--mice is {asked.mice} and --seeds {asked.seeds}; at least one of each is needed")
    if asked.first is not None and asked.recording is None:
        parser.error("--first is of a --recording")
    if tuple(asked.precisions) != PRECISIONS[:1] and not asked.sizes:
        parser.error("--precisions is of --sizes")
    mice: dict[str, Simulated | Recorded] = (
        {asked.recording.name: Recorded(path=asked.recording, first=asked.first)}
        if asked.recording is not None
        else {
            f"mouse {number}": Simulated(seed=asked.seed + number, neurons=24, presentations=240)
            for number in range(asked.mice)
        }
    )
    effort, sizes = EFFORTS[asked.preset], tuple(asked.sizes)
    found = measure(
        mice, seed=asked.seed, seeds=asked.seeds, effort=effort, sizes=sizes, precisions=tuple(asked.precisions)
    )
    made = effects(found, seed=asked.seed)
    told = document(found, made=made, preset=asked.preset, seed=asked.seed, seeds=asked.seeds)
    print("; ".join(f"{name} {value}" for name, value in told.items() if name != "taken_away") + "\n")
    print(table(made))
    if asked.json:
        asked.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
