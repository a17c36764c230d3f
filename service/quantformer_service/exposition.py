"""Prometheus' text format (0.0.4) of what the engine published last and what the gateway counted; docs/monitoring.md."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from quantformer_client import wire
from quantformer_service.gpu import GpuState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_Labels = tuple[tuple[str, str], ...]
#: Each counter of the engine that has a family of its own: the family, its labels.
_COUNTERS: Mapping[str, tuple[str, _Labels]] = {
    "frames": ("frames_total", ()),
    "gaps": ("gaps_total", ()),
    "gap_frames": ("gap_frames_total", ()),
    "reordered_frames": ("reordered_frames_total", ()),
    "contaminated_frames": ("contaminated_frames_total", ()),
    "onset_questions": ("questions_total", (("asked", "onset"),)),
    "standing_questions": ("questions_total", (("asked", "standing"),)),
    "standing_dropped": ("standing_dropped_total", ()),
    "questions_failed": ("questions_failed_total", ()),
    "answers_onset": ("answers_total", (("asked", "onset"),)),
    "answers_standing": ("answers_total", (("asked", "standing"),)),
    "late_onset": ("answers_late_total", (("asked", "onset"),)),
    "late_standing": ("answers_late_total", (("asked", "standing"),)),
    "degraded": ("answers_degraded_total", ()),
    "out_of_phase": ("answers_out_of_phase_total", ()),
    "rois_valid": ("answered_rois_total", (("validity", "valid"),)),
    "rois_invalid": ("answered_rois_total", (("validity", "invalid_f0"),)),
    "rois_stimulated": ("answered_rois_total", (("validity", "stimulated"),)),
    "rois_unknown": ("answered_rois_total", (("validity", "unknown"),)),
    "triggers_fired": ("decisions_total", (("outcome", "fired"),)),
    "triggers_refused": ("decisions_total", (("outcome", "refused"),)),
}
#: Counters that repeat the sum of others.
_REPEATED = frozenset({"answers", "answers_late"})
_HELP = {
    "up": "1 while the engine is there, is ready, and has published within 6 s.",
    "engine_info": "What runs: software, bundle, execution provider, state.",
    "frames_total": "Frames taken.",
    "frames_refused_total": "Frames refused, by reason.",
    "gaps_total": "Jumps in frame numbers.",
    "gap_frames_total": "Frames that never came, or came after a newer one.",
    "reordered_frames_total": "Frames that came after a newer one and took their place.",
    "contaminated_frames_total": "Frames left out because light was delivered in them.",
    "questions_total": "Questions taken (onset) and asked of a frame (standing).",
    "standing_dropped_total": "Frames for which a standing question was passed over for a newer one.",
    "questions_failed_total": "Questions without an answer.",
    "answers_total": "Answers published.",
    "answers_late_total": "Answers after their deadline, or after the onset frame had come.",
    "answers_degraded_total": "Answers from windows that lack more than training saw.",
    "answers_out_of_phase_total": "Answers about a phase that training did not cover.",
    "answered_rois_total": "ROIs in answers, by what holds for them; one may be in several.",
    "decisions_total": "Decisions of the trigger.",
    "errors_total": "Messages refused, by code.",
    "events_total": "What else the engine counted.",
    "gateway_events_total": "What the gateway counted.",
    "ingest_seconds": "Time of a frame in the loop.",
    "rehearsal_seconds": "Time that the loop walked a frame's way for nothing, right before a frame.",
    "queue_seconds": "From a question's window being ready to its submission to inference.",
    "inference_seconds": "From submission to inference to its end.",
    "total_seconds": "Standing questions: from the last frame read coming in to the answer being published.",
    "overhead_seconds": "Standing questions: the total less the inference of the same frame.",
    "uptime_seconds": "Since the engine started.",
    "sessions": "Open sessions.",
    "armed": "Sessions whose trigger is armed.",
    "onsets_pending": "Onset questions that wait for frames.",
    "questions_waiting": "Questions that wait for inference.",
    "questions_under_way": "Questions in inference.",
    "inference_threads": "CPU threads of one question.",
    "recorder_waiting_bytes": "Recorded, and not safe on the disk yet.",
    "recorder_waiting_seconds": "Age of the oldest record that is not safe yet.",
    "recorder_lost": "Records lost since the engine started, because too much waited.",
    "recorder_trouble": "1 while what happens may be lost, and nothing may fire.",
    "gpu_clock_hertz": "Clock of the GPU's processors.",
    "gpu_clock_max_hertz": "The highest that it has.",
    "gpu_temperature_celsius": "Temperature of the GPU.",
    "gpu_power_watts": "Power that the GPU draws.",
    "gpu_memory_used_bytes": "Memory of the GPU in use, by all programs.",
    "gpu_throttled": "How many reasons hold its clocks down: heat, a cap on power.",
}
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_]")


def render(
    metrics: wire.Metrics | None, *, gateway: Mapping[str, int], gauges: Mapping[str, float] | None = None
) -> str:
    """The page. ``metrics`` None: the engine is not there, or silent. ``gauges`` are further ones, by name."""
    families: dict[str, tuple[str, list[str]]] = {}

    def add(name: str, kind: str, *samples: str) -> None:
        families.setdefault(name, (kind, []))[1].extend(samples)

    ready = metrics is not None and metrics.state == "ready"
    add("up", "gauge", _sample("up", (), int(ready)))
    if metrics is not None:
        about = ("engine", metrics.engine), ("bundle", metrics.bundle), ("provider", metrics.provider)
        add("engine_info", "gauge", _sample("engine_info", (*about, ("state", metrics.state)), 1))
        for name, count in sorted(metrics.counters.items()):
            if name not in _REPEATED:
                family, labels = _family(name)
                add(family, "counter", _sample(family, labels, count))
        for name, histogram in sorted(metrics.histograms.items()):
            add(f"{name}_seconds", "histogram", *_buckets(f"{name}_seconds", histogram))
    for name, value in sorted({**(metrics.gauges if metrics else {}), **(gauges or {})}.items()):
        family = _NOT_IN_NAMES.sub("_", name.removesuffix("_s") + "_seconds" if name.endswith("_s") else name)
        add(family, "gauge", _sample(family, (), value))
    for name, count in sorted(gateway.items()):
        add("gateway_events_total", "counter", _sample("gateway_events_total", (("event", name),), count))
    return "".join(_lines(families))


def gpu_gauges(state: GpuState | None) -> dict[str, float]:
    """What the GPU's sensors say, in base units; nothing where there is none."""
    if state is None:
        return {}
    told = {
        "gpu_clock_hertz": (state.clock_mhz, 1e6),
        "gpu_clock_max_hertz": (state.clock_max_mhz, 1e6),
        "gpu_temperature_celsius": (state.temperature_c, 1.0),
        "gpu_power_watts": (state.power_w, 1.0),
        "gpu_memory_used_bytes": (state.memory_used_bytes, 1.0),
        "gpu_throttled": (len(state.throttled), 1.0),
    }
    return {name: value * unit for name, (value, unit) in told.items() if value is not None}


def _lines(families: Mapping[str, tuple[str, list[str]]]) -> Iterator[str]:
    for name, (kind, samples) in families.items():
        yield f"# HELP quantformer_{name} {_HELP.get(name, 'As the engine tells it.')}\n"
        yield f"# TYPE quantformer_{name} {kind}\n"
        yield from samples


def _family(counter: str) -> tuple[str, _Labels]:
    if counter in _COUNTERS:
        return _COUNTERS[counter]
    for prefix, family in (("error_", "errors_total"), ("refused_", "frames_refused_total")):
        if counter.startswith(prefix):
            return family, (("code", counter.removeprefix(prefix)),)
    return "events_total", (("event", counter),)


def _buckets(name: str, histogram: wire.Histogram) -> Iterator[str]:
    below = 0
    for bound, count in zip([*map(repr, histogram.bounds_s), "+Inf"], histogram.counts, strict=False):
        below += count
        yield _sample(f"{name}_bucket", (("le", bound),), below)
    yield _sample(f"{name}_sum", (), histogram.sum_s)
    yield _sample(f"{name}_count", (), below)


def _sample(name: str, labels: _Labels, value: float) -> str:
    inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
    return f"quantformer_{name}{{{inside}}} {value!r}\n" if inside else f"quantformer_{name} {value!r}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
