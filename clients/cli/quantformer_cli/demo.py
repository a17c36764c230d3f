"""`quantformer demo`: from a recording to a live, triggering forecast, with a report."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from quantformer.errors import QuantformerError, UsageError
from quantformer_cli.main import Parser, Subparsers, add_verb

if TYPE_CHECKING:
    from rich.console import Console

    from quantformer_cli.demo_recording import Plan
    from quantformer_cli.demo_stream import Broadcast
    from quantformer_training.fit import FitConfig, Fitted

REPORT = Path("reports/demo.html")
RUNS = Path("runs")
#: Neurons of the onset rule's ensemble, and the seconds that a rule rests after it fired.
ENSEMBLE, REFRACTORY_S, STANDING_REFRACTORY_S = 5, 1.0, 5.0


def add_parser(subparsers: Subparsers[Parser]) -> Parser:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "demo",
        about="Train on a simulated mouse (or a recording), export the bundle, start the real service on it, stream a held-out\n"
        "part as a fake microscope, poll and trigger (dry run) as a controller, and write a report. Exit status 0 only if\n"
        "all of it really happened. Without arguments it takes less than 4 minutes on two cores.",
        example="quantformer demo --recording v1_gratings.npz --fast --report reports/v1.html",
    )
    parser.add_argument("--recording", type=Path, metavar="FILE", help="a real recording with stimuli (else a simulated mouse)")
    parser.add_argument("--pretrained", type=Path, metavar="DIR", help="auto-encoder made by 'quantformer pretrain'")
    parser.add_argument("--fast", action="store_true", help="stream without real-time pacing, and all of the held-out part")
    parser.add_argument(
        "--budget",
        choices=("smoke", "quick", "full"),
        help="how long to train: smoke, seconds, shows the way through and no skill; quick, about a minute (default); full, "
        "minutes (default with --recording)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of mouse and training (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary as JSON")
    parser.add_argument("--report", type=Path, default=REPORT, metavar="FILE", help=f"the report (default: {REPORT})")
    return parser


def run(args: argparse.Namespace) -> int:
    """Take every step, print the summary, and say whether all of it happened."""
    if args.seed < 0:
        raise UsageError(f"--seed is {args.seed}; a whole number from 0 up was expected")
    from rich.console import Console

    from quantformer.bundle import load_bundle
    from quantformer_cli.demo_recording import recording_plan, simulated_plan
    from quantformer_cli.demo_report import build_report
    from quantformer_cli.demo_scores import score, train_baselines
    from quantformer_cli.demo_screen import Screen
    from quantformer_cli.demo_service import Service
    from quantformer_cli.demo_stream import stream
    from quantformer_cli.demo_summary import Outcome, as_json, checks
    from quantformer_cli.demo_text import print_summary
    from quantformer_training.packing import write_fitted
    from quantformer_training.report import write_report

    console = Console(stderr=True, soft_wrap=True)
    budget = args.budget or ("quick" if args.recording is None else "full")
    steps = _Steps(console)
    with steps.step("data", "opening the recording" if args.recording else "simulating a mouse"):
        if args.recording is None:
            plan = simulated_plan(seed=args.seed, fast=args.fast, smoke=budget == "smoke")
        else:
            plan = recording_plan(args.recording)
    console.print(f"  {plan.data}; {plan.chosen}", highlight=False)
    with steps.step("training", f"training, {budget} budget"):
        fitted = _train(plan, config=_config(budget, seed=args.seed), pretrained=args.pretrained, console=console)
    folder = _run_folder()
    with steps.step("bundle", f"exporting and verifying {folder / 'bundle'}"):
        write_fitted(fitted, folder / "bundle")
        bundle = load_bundle(folder / "bundle")
    with steps.step("baselines", "fitting the simple baselines"):
        trained = train_baselines(fitted)
    broadcast = _broadcast(plan, fitted, fast=args.fast)
    pace = "flat out" if args.fast else "in real time"
    with (
        steps.step("stream", f"starting the service and streaming {broadcast.stop - broadcast.start} frames {pace}"),
        Service(folder / "bundle", log=folder / "service.log") as service,
        Screen(console) as screen,
    ):
        streamed = stream(broadcast, ports=service.ports, show=screen.show)
    if not streamed.answers:
        raise QuantformerError(f"no onset was answered; {folder / 'service.log'} says more")
    with steps.step("scores", "scoring"):
        scores = score(fitted, trained=trained, answers=streamed.answers, seconds=_seconds(broadcast))
    outcome = Outcome(
        plan=plan,
        bundle=bundle,
        streamed=streamed,
        scores=scores,
        rules=broadcast.rules,
        service_status=service.status,
        fast=args.fast,
        budget=budget,
        seed=args.seed,
        command=shlex.join(["quantformer", *sys.argv[1:]]),
        seconds=steps.seconds,
    )
    found = checks(outcome)
    write_report(args.report, build_report(outcome, fitted, checks=found))
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(as_json(outcome, report=args.report), indent=2) + "\n", encoding="utf-8")
    print_summary(outcome, checks=found, report=args.report)
    return 0 if all(check.passed for check in found) else 1


class _Steps:
    """Headings on stderr, and how long each step took."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str, doing: str) -> Iterator[None]:
        """Announce a step and time it."""
        self._console.print(f"[bold]{doing}[/]", highlight=False)
        start = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - start
        self._console.print(f"  {self.seconds[name]:.1f} s", style="dim", highlight=False)


def _config(budget: str, *, seed: int) -> FitConfig:
    from dataclasses import replace

    from quantformer_training.fit import FitConfig

    if budget == "full":
        return FitConfig.full(seed=seed)
    quick = FitConfig.quick(seed=seed)
    if budget == "quick":
        return quick
    tasks = quick.finetuning
    return replace(
        quick,
        own_windows=300,
        pretraining=replace(quick.pretraining, epochs=1),
        finetuning=replace(
            tasks,
            activation=replace(tasks.activation, epochs=1),
            forecast=replace(tasks.forecast, epochs=1),
            rows_per_epoch=500,
        ),
    )


def _train(plan: Plan, *, config: FitConfig, pretrained: Path | None, console: Console) -> Fitted:
    from quantformer_cli.demo_progress import TrainingProgress
    from quantformer_training.fit import fit
    from quantformer_training.threads import one_thread

    with one_thread(), TrainingProgress(console) as progress:
        return fit(plan.recording, split=plan.split, config=config, report=progress.report, pretrained=pretrained)


def _run_folder() -> Path:
    """A new folder for this run's bundle and the service's log."""
    folder = RUNS / f"demo-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    folder.mkdir(parents=True)
    return folder


def _broadcast(plan: Plan, fitted: Fitted, *, fast: bool) -> Broadcast:
    """Stream the held-out onsets; watch the neurons that training saw respond most, with the bundle's threshold."""
    import numpy as np

    from quantformer_cli.demo_stream import Broadcast
    from quantformer_client.wire import Rule

    recipe, train, test = fitted.reader.recipe, fitted.real["train"], fitted.real["test"].moments
    rate = train.active.sum(0) / np.maximum(train.valid.sum(0), 1)
    order = np.argsort(-rate, kind="stable")
    names = [plan.recording.neuron_ids[neuron] for neuron in order[:ENSEMBLE]]
    threshold = fitted.calibrated.thresholds["default"]
    responses = [name for name, active in zip(train.moments.stimulus_id, train.active[:, order[0]], strict=True) if active]
    # A refractory period is wall-clock time, which means nothing when the stream runs flat out.
    rest_s = (0.0, 0.0) if fast else (REFRACTORY_S, STANDING_REFRACTORY_S)
    inside = (test.frame >= plan.start + recipe.baseline_frames) & (test.frame + recipe.response_frames <= plan.stop)
    return Broadcast(
        recording=plan.recording,
        start=plan.start,
        stop=plan.stop,
        fast=fast,
        trials=test.trial[inside],
        rules=(
            Rule(rule="onset", rois=names, threshold=threshold, asked="onset", refractory_s=rest_s[0]),
            Rule(rule="standing", rois=names[:1], threshold=threshold, asked="standing", refractory_s=rest_s[1]),
        ),
        candidate=max(sorted(set(responses)), key=responses.count) if responses else train.moments.stimulus_id[0],
    )


def _seconds(broadcast: Broadcast) -> float:
    return (broadcast.stop - broadcast.start) / broadcast.recording.rate_hz
