"""Will inference hold the frame rate: asked as the service asks, about these neurons and stimuli, with each number of threads."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from quantformer_cli.benchmark.bare import Bare
from quantformer_cli.benchmark.histogram import Histogram
from quantformer_cli.benchmark.worker import Worker
from quantformer_cli.diagnosis.check import Check, advice, bad, ok
from quantformer_training.jobs import cores

#: What a frame costs beside inference, in ms: the wire, the window, the answer; and a share for every thousand neurons.
MARGIN_MS, MARGIN_A_THOUSAND_MS = 2.0, 0.5
#: Runs at least, so that the slowest twentieth is known.
_RUNS = 60
#: Fewer threads are taken where they cost at most this much more.
_AS_GOOD = 1.05


class Timed(msgspec.Struct, frozen=True, kw_only=True):
    """Runs with so many threads, in ms."""

    threads: int
    p50: float
    p95: float
    slowest: float
    runs: int


def candidates(provider: str) -> list[int]:
    """Numbers of threads worth trying: powers of two up to the usable cores."""
    if provider == "cuda":
        return [1]
    found = [1]
    while 2 * found[-1] <= cores():
        found.append(2 * found[-1])
    return found


def time_runs(
    *,
    bundle: Path,
    provider: Literal["auto", "cpu", "cuda"],
    precision: Literal["float32", "auto", "int8", "float16"],
    threads: list[int],
    rois: list[str],
    stimuli: list[str],
    rate_hz: float,
    say: Callable[[str], None],
) -> tuple[list[Timed], str]:
    """Runs paced at the frame rate, with each number of threads in turn; and the provider that ran.

    Raises:
        WorkerError: a run failed: the provider is not there, or the bundle cannot be loaded.
    """
    found, ran = [], ""
    with tempfile.TemporaryDirectory(prefix="quantformer-doctor-") as folder:
        for count in threads:
            say(f"inference with {count} thread{'s' if count > 1 else ''}")
            out = Path(folder) / "bare.npz"
            work = Bare(
                bundle=str(bundle.resolve()),
                provider=provider,
                precision=precision,
                threads=count,
                rois=rois,
                stimuli=stimuli,
                probe=False,
                lanes=True,
                rate_hz=rate_hz,
                jitter=0.03,
                frames=_RUNS,
                seed=0,
                out=str(out),
            )
            with Worker("quantformer_cli.benchmark.bare", work) as worker:
                worker.wait_ready()
                worker.go()
                ran = worker.result(within_s=120.0)["provider"]
            with np.load(out, allow_pickle=False) as arrays:
                found.append(summarise(count, arrays["took_ns"]))
    return found, ran


def summarise(threads: int, took_ns: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Timed:
    """Runs in ns as `Timed`."""
    seen = Histogram()
    seen.record(took_ns)
    p50, p95 = ((seen.quantile(q) or seen.largest) / 1e6 for q in (0.5, 0.95))
    return Timed(threads=threads, p50=p50, p95=p95, slowest=seen.largest / 1e6, runs=seen.total)


def check_rate(timed: list[Timed], *, neurons: int, stimuli: int, rate_hz: float, threads: int) -> Check:
    """Whether every frame can be answered before the next; ``threads`` are those that are set."""
    quickest = min(one.p95 for one in timed)
    best = next(one for one in timed if one.p95 <= _AS_GOOD * quickest)
    period_ms = 1e3 / rate_hz
    margin_ms = MARGIN_MS + MARGIN_A_THOUSAND_MS * neurons / 1000
    told = ", ".join(f"{one.threads}: {one.p50:.2f} / {one.p95:.2f} / {one.slowest:.2f}" for one in timed)
    found = (
        f"{neurons} neurons x {stimuli}: inference p50 / p95 / slowest in ms by threads: {told}; a frame lasts "
        f"{period_ms:.1f} ms, {margin_ms:.1f} ms of it kept for everything else"
    )
    name = "inference"
    # 0: the service measures by itself, and takes the quickest.
    use = "" if threads in (0, best.threads) else f"set --threads {best.threads}"
    if best.p95 + margin_ms > period_ms:
        rows = int(neurons * (period_ms - margin_ms) / best.p95)
        every = -(-(best.p95 + margin_ms) // period_ms)
        fewer = f"ask about {rows} neurons at most ('rois'), or fewer stimuli" if rows > 0 else "lower the frame rate"
        cure = f"about one frame in {every:.0f} would be answered. " + (f"{use}; " if use else "")
        cure += f"{fewer}, or serve a smaller model or on a GPU"
        return bad(name, found, cure)
    if use:
        return advice(name, found, f"{use}, the quickest here")
    if best.slowest + margin_ms > period_ms:
        return advice(
            name, found, "the slowest run would miss its frame: end other programs, pin cores (docs/latency.md)"
        )
    return ok(name, found)


def check_provider(ran: str, asked: str) -> Check:
    """Whether the asked provider is the one that runs."""
    if asked not in ("auto", ran):
        return bad(
            "provider",
            f"{ran} runs, {asked} was asked for",
            "check the driver and the CUDA libraries, or set --provider cpu",
        )
    return ok("provider", f"{ran}, asked for: {asked}")
