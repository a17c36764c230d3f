"""What the demo found, once: as checks, as a JSON object, and as text."""

from __future__ import annotations

import math
import os
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quantformer_client.wire import Flags
from quantformer_training.comparison import MODEL, Comparison
from quantformer_training.machine import processor, software

if TYPE_CHECKING:
    from pathlib import Path

    from quantformer.bundle import Bundle
    from quantformer_cli.demo_recording import Plan
    from quantformer_cli.demo_scores import Scores
    from quantformer_cli.demo_stream import Streamed
    from quantformer_client.wire import Rule

#: A stream that falls this far behind its clock, in s, was not in real time.
REAL_TIME_SLACK_S = 1.0
#: Graceful end of the service after SIGINT.
_ENDED_WELL = 130


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that must really have happened."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """Everything about one run of the demo."""

    plan: Plan
    bundle: Bundle
    streamed: Streamed
    scores: Scores
    rules: tuple[Rule, ...]
    service_status: int | None
    fast: bool
    budget: str
    seed: int
    command: str
    seconds: Mapping[str, float]

    @property
    def frames_received(self) -> int:
        """Frames that the engine counted."""
        return self.streamed.counters.get("frames", 0)

    @property
    def late(self) -> int:
        """Answers to onsets that came after their deadline."""
        return sum(bool(heard.answer.flags & Flags.LATE) for heard in self.streamed.answers.values())

    @property
    def leads(self) -> dict[int, int]:
        """Answers to onsets by the frames that were not there yet."""
        return dict(sorted(Counter(heard.answer.lead for heard in self.streamed.answers.values()).items()))


def checks(outcome: Outcome) -> list[Check]:
    """Exit status 0 asks for all of them."""
    streamed, agreement = outcome.streamed, outcome.scores.agreement
    wanted = outcome.plan.stop - outcome.plan.start
    sent, received = streamed.played.sent, outcome.frames_received
    refused = {code: count for code, count in streamed.played.refused.items() if count}
    announced, answered = len(streamed.trials), len(streamed.answers)
    hashes = {heard.answer.bundle.hex() for heard in streamed.answers.values()}
    decided = streamed.trigger.fired + sum(streamed.trigger.refused.values())
    found = [
        Check(
            name="every frame of the held-out part was sent and received",
            passed=sent == received == wanted and not streamed.counters.get("gap_frames") and not refused,
            found=f"{wanted} frames, {sent} sent, {received} received, refused {refused or 'none'}",
        ),
        Check(
            name="every announced onset was answered, to the microscope and to the subscriber",
            passed=0 < announced == answered == streamed.subscribed,
            found=f"{announced} announced, {answered} answered, {streamed.subscribed} heard by the subscriber",
        ),
        Check(
            name="the answers are the exported bundle's, and what the trained model says offline",
            passed=hashes == {outcome.bundle.hash} and agreement.within,
            found=f"{agreement.rows} rows, largest difference {agreement.probability:.1e} in probability and "
            f"{agreement.response:.1e} in dF/F, {agreement.windows} windows called invalid",
        ),
        Check(
            name="the controller polled predictions and the trigger decided",
            passed=streamed.polls_answered > 0 and decided > 0,
            found=f"{streamed.polls_answered} of {streamed.polls} polls answered, {decided} decisions",
        ),
        Check(
            name="the service ended in order",
            passed=outcome.service_status == _ENDED_WELL,
            found=f"status {outcome.service_status}, expected {_ENDED_WELL}",
        ),
    ]
    if not outcome.fast:
        behind = streamed.played.behind_s
        found.append(
            Check(
                name="the frames kept their real-time clock",
                passed=behind <= REAL_TIME_SLACK_S,
                found=f"{streamed.played.seconds:.1f} s, at most {1000 * behind:.0f} ms behind",
            )
        )
    return found


def as_json(outcome: Outcome, *, report: Path) -> dict[str, Any]:
    """The summary for machines; an undefined score is null."""
    streamed, scores, plan = outcome.streamed, outcome.scores, outcome.plan
    all_checks = checks(outcome)
    summary = {
        "frames_sent": streamed.played.sent,
        "frames_received": outcome.frames_received,
        "frames_lost": streamed.played.sent - outcome.frames_received,
        "onsets": len(streamed.trials),
        "latency_ms": {
            **percentiles(streamed.latency_ms),
            "from": "last frame before the onset sent, to answer received by the subscriber",
            "standing": percentiles(streamed.standing_ms),
            "engine": percentiles(streamed.engine_ms),
        },
        **_scores(scores.streamed),
        "triggers": {"fired": streamed.trigger.fired, "refused": dict(streamed.trigger.refused)},
        "onsets_answered": len(streamed.answers),
        "onsets_late": outcome.late,
        "onsets_by_lead": {str(lead): count for lead, count in outcome.leads.items()},
        "differences": _differences(scores.streamed),
        "held_out": {**_scores(scores.held_out), "differences": _differences(scores.held_out)},
        "pseudo_onsets": {**_scores(scores.pseudo), "differences": _differences(scores.pseudo)},
        "leads": [asdict(found) for found in scores.leads],
        "interval": {"level": outcome.bundle.manifest.interval.level, "coverage": scores.coverage},
        "agreement": {**asdict(scores.agreement), "within": scores.agreement.within},
        "passed": all(check.passed for check in all_checks),
        "checks": [asdict(check) for check in all_checks],
        "data": {
            "origin": plan.recording.provenance.origin,
            "source": plan.recording.provenance.source,
            "about": plan.data,
            "chosen": plan.chosen,
            "neurons": plan.recording.neurons,
            "rate_hz": plan.recording.rate_hz,
            "fast": outcome.fast,
        },
        "bundle": {"path": str(outcome.bundle.path), "sha256": outcome.bundle.hash},
        "report": str(report),
        "seed": outcome.seed,
        "budget": outcome.budget,
        "command": outcome.command,
        "seconds": dict(outcome.seconds),
        "machine": machine(),
        "versions": versions(),
        "provider": streamed.status.provider,
    }
    cleaned: dict[str, Any] = _without_nan(summary)
    return cleaned


def percentiles(values: NDArray[np.float64]) -> dict[str, float]:
    """p50, p99 and max; NaN of nothing."""
    if not len(values):
        return dict.fromkeys(("p50", "p99", "max"), math.nan)
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50": float(p50), "p99": float(p99), "max": float(values.max())}


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {"system": f"{platform.system()} {platform.release()}", "processor": processor(), "cores": os.cpu_count()}


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    return software(("quantformer", "torch", "onnxruntime", "numpy", "scikit-learn", "pyzmq"))


def _scores(comparison: Comparison) -> dict[str, Any]:
    activation = {key: asdict(found) for key, found in comparison.activation.items()}
    forecast = {key: asdict(found) for key, found in comparison.forecast.items()}
    return {
        "activation": {**activation.pop(MODEL), "baselines": activation},
        "forecast": {**forecast.pop(MODEL), "baselines": forecast},
    }


def _differences(comparison: Comparison) -> dict[str, Any]:
    found = {key: {**asdict(one), "verdict": one.verdict} for key, one in comparison.differences.items()}
    gain = comparison.stimulus_gain
    if gain is not None:
        found["log_loss_against_no_stimulus"] = {**asdict(gain), "verdict": gain.verdict}
    return found


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value
