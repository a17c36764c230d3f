"""A bench on the terminal: what was measured, each condition's figures, where the time went, isolation and growth."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from quantformer_cli.benchmark.charts import STAGE_WORDS
from quantformer_cli.benchmark.compare import Ratio
from quantformer_cli.benchmark.growth import AXES, grown, isolation
from quantformer_cli.benchmark.results import FIGURES, Document, Figure, Result
from quantformer_cli.benchmark.stamps import STAGES

#: Columns where there is no terminal to ask.
_WIDTH = 150


def console() -> Console:
    """Standard output, wide enough for the tables."""
    return Console(width=None if Console().is_terminal else _WIDTH, highlight=False, soft_wrap=False)


def facts(document: Document) -> list[tuple[str, str]]:
    """What was measured on what, for people."""
    machine, service, pace = document.machine, document.service, document.pace
    versions = ", ".join(f"{name} {version}" for name, version in document.versions.items())
    whose = "started for this" if service.started else "was running"
    found = [
        ("date", document.date_utc),
        (
            "machine",
            f"{machine.processor}, {machine.usable_cores} of {machine.cores} cores, {machine.memory_gib:g} GiB, "
            f"{machine.system}; load {machine.load_before:g} before",
        ),
        ("versions", versions),
        ("service", f"{service.engine} at {service.address}, {whose}; {service.provider}, {service.threads} threads"),
        ("precision", service.precision),
        ("granted", service.granted_words),
        ("bundle", f"{service.preset}, SHA-256 {service.bundle[:16]}"),
        (
            "pace",
            f"{pace.rate_hz:g} Hz with {100 * pace.jitter:g} % jitter, {pace.frames} frames a condition in {pace.rounds} rounds, "
            f"onsets every {pace.every} frames, {pace.detail}, seed {pace.seed}",
        ),
        ("command", document.command),
    ]
    return [*found, ("GPU", document.gpu.words)] if document.gpu is not None else found


def print_document(document: Document, out: Console) -> None:
    """Everything."""
    grid = Table.grid(padding=(0, 2))
    for name, value in facts(document):
        grid.add_row(name, escape(value))
    out.print(grid)
    for one in document.results:
        out.print()
        _print_condition(one, out)
    _print_isolation(document.results, out)
    _print_growth(document.results, out)
    for note in document.notes:
        out.print(f"not measured: {note}", soft_wrap=True, markup=False)


def summary_line(result: Result) -> str:
    """Counts and use of the machine, in a line."""
    if result.failed:
        return f"failed: {result.failed}"
    parts = [f"{result.sent} frames sent, {result.lost} lost", f"{result.asked} asked about, {result.answers} answers"]
    parts.append(f"missed the next frame: {result.missed}, late for the engine: {result.late}")
    parts.append(
        f"skipped: {result.skipped}, unanswered: {result.unanswered}, without their last frames: {result.short}"
    )
    parts += [f"refused ({code}): {count}" for code, count in result.refused.items()]
    use = [f"{name} {one.cpu_share:.2f} cores, {one.memory_last_mib:.0f} MiB" for name, one in result.usage.items()]
    parts += use
    parts += [f"disturbance, {name}: {count:g}" for name, count in result.disturbed.items()]
    if result.clock != (0.0, 0.0):
        parts.append(f"clock offset {result.clock[0]:.0f} +- {result.clock[1]:.0f} us")
    return "; ".join(parts)


def cells(figure: Figure) -> list[str]:
    """p50, p99, p99.9, max and mean in ms; a dash where there are too few."""
    return [milliseconds(value) for value in (figure.p50, figure.p99, figure.p999, figure.max, figure.mean)]


def milliseconds(us: float | None) -> str:
    """With three places; a dash for None."""
    return "-" if us is None else f"{us / 1e3:.3f}"


def new_table(title: str, *columns: str) -> Table:
    """An empty table without a frame."""
    table = Table(title=escape(title), title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name)
    return table


def _print_condition(one: Result, out: Console) -> None:
    table = new_table(f"{one.condition.label}: {one.kind}", "ms")
    for name in ("p50", "p99", "p99.9", "max", "mean", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, words in FIGURES.items():
        if name in one.figures:
            table.add_row(words, *cells(one.figures[name]), str(one.figures[name].count))
    out.print(table)
    for name, means in one.stages.items():
        shares = ", ".join(f"{STAGE_WORDS[stage]} {means[stage]:.0f}" for stage in STAGES)
        out.print(f"{name} answers, mean us: {shares}", markup=False)
    out.print(summary_line(one), markup=False)


def _print_isolation(results: Sequence[Result], out: Console) -> None:
    rows = isolation(results)
    if not rows:
        return
    columns = ("disturbance", "figure", "quiet, ms", "disturbed, ms", "ratio")
    table = new_table("isolation: p99 against the quiet phases of the same run", *columns)
    for row in rows:
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        table.add_row(row.disturb, row.figure, milliseconds(row.quiet), milliseconds(row.disturbed), ratio)
    out.print()
    out.print(table)


def _print_growth(results: Sequence[Result], out: Console) -> None:
    table = new_table("growth: p50 against size; a power of 1 is linear", "along", "figure", "power", "ms at each size")
    for axis in AXES:
        for line in grown(results, axis=axis):
            table.add_row(axis, line.figure, line.words, ", ".join(f"{size:g}: {us / 1e3:.3f}" for size, us in line.points))
    if table.row_count:
        out.print()
        out.print(table)


def print_comparison(found: Sequence[Ratio], *, differ: Sequence[str], out: Console) -> None:
    """Ratios by figure, after over before."""
    for line in differ:
        out.print(f"not alike, {line}", markup=False)
    if differ:
        out.print("Ratios below are of more than the software.")
    table = new_table("after / before", "condition", "figure", "quantile", "before, ms", "after, ms", "ratio", "")
    for one in found:
        row = [
            one.label,
            one.figure,
            one.quantile,
            milliseconds(one.before),
            milliseconds(one.after),
            f"{one.ratio:.2f}",
        ]
        table.add_row(*map(escape, row), one.verdict)
    out.print(table)
