"""The demo's summary as text on stdout."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from quantformer_cli.demo_summary import Check, Outcome, percentiles
from quantformer_training.comparison import Comparison
from quantformer_training.comparison_tables import HEADLINE, difference_cells, number

#: Columns where there is no terminal to ask.
_WIDTH = 120


def print_summary(outcome: Outcome, *, checks: list[Check], report: Path) -> None:
    """Facts, headline figures against the best simple baselines, and what did not happen."""
    console = Console(width=None if Console().is_terminal else _WIDTH, highlight=False, soft_wrap=False)
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(outcome):
        facts.add_row(name, value)
    console.print(facts)
    scores = outcome.scores
    console.print(_headline(scores.streamed, title=f"answers to the {len(outcome.streamed.answers)} streamed onsets"))
    if scores.held_out.trials > scores.streamed.trials:
        console.print(_headline(scores.held_out, title=f"the same model offline, all {scores.held_out.trials} held-out onsets"))
    console.print(_headline(scores.pseudo, title=f"pseudo-onsets: {scores.pseudo.trials} moments at which nothing begins"))
    console.print("An interval that contains zero reads “not distinguishable”. The best baseline is chosen on these very rows.")
    console.print(f"report: {report}", soft_wrap=True)
    for check in checks:
        if not check.passed:
            console.print(f"DID NOT HAPPEN: {check.name}: {check.found}", soft_wrap=True)
    if all(check.passed for check in checks):
        console.print(f"all {len(checks)} checks passed")


def _facts(outcome: Outcome) -> list[tuple[str, str]]:
    streamed, plan = outcome.streamed, outcome.plan
    played, received = streamed.played, outcome.frames_received
    pace = "flat out" if outcome.fast else f"real time, {plan.recording.rate_hz:.1f} Hz"
    leads = ", ".join(f"{lead} in {count}" for lead, count in outcome.leads.items())
    refused = ", ".join(f"{reason} {count}" for reason, count in sorted(streamed.trigger.refused.items())) or "none"
    gain = outcome.scores.held_out.stimulus_gain
    facts = [
        ("data", f"{plan.data}; {plan.chosen}"),
        ("bundle", f"{outcome.bundle.path}, SHA-256 {outcome.bundle.hash[:16]}"),
        ("frames", f"{played.sent} sent, {received} received, {played.sent - received} lost; {pace}, {played.seconds:.1f} s"),
        (
            "onsets",
            f"{len(streamed.trials)} announced, {len(streamed.answers)} answered, {outcome.late} late; "
            f"frames withheld: {leads}",
        ),
        ("latency, ms", f"{_three(percentiles(streamed.latency_ms))}: last frame before the onset sent, to forecast heard"),
        ("", f"{_three(percentiles(streamed.engine_ms))}: in the engine, window ready to answer published"),
        ("", f"{_three(percentiles(streamed.standing_ms))}: standing question, {len(streamed.standing_ms)} answers"),
        ("triggers", f"{streamed.trigger.fired} fired (dry run), refused: {refused}"),
    ]
    if gain is not None:
        delta, interval, verdict, _ = difference_cells(gain)
        facts.append(
            ("stimulus", f"log-loss {delta} ({interval}) against the same model not told the stimulus: {verdict}")
        )
    return facts


def _three(values: dict[str, float]) -> str:
    return f"p50 {number(values['p50'], 1)}, p99 {number(values['p99'], 1)}, max {number(values['max'], 1)}"


def _headline(comparison: Comparison, *, title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in ("", "model", "baseline", "which", "difference, 95 % interval", "verdict"):
        table.add_column(name, no_wrap=True)
    for key, name in HEADLINE.items():
        found = comparison.differences[key]
        delta, interval, verdict, _ = difference_cells(found)
        table.add_row(
            name.partition(",")[0],
            number(found.candidate, 4),
            number(found.reference, 4),
            found.against.replace("_", " "),
            f"{delta} ({interval})",
            verdict,
        )
    return table
