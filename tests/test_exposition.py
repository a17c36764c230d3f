"""The page for Prometheus: well formed, cumulative, and true to what the engine published."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantformer_client import wire
from quantformer_service.exposition import _COUNTERS, _HELP, render
from quantformer_service.meter import BOUNDS_NS, Meter, Timing

DOC = (Path(__file__).resolve().parents[1] / "docs" / "monitoring.md").read_text(encoding="utf-8")
_SAMPLE = re.compile(r'^(quantformer_[a-zA-Z0-9_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)+)\})? (\S+)$')


def metrics(**fields: object) -> wire.Metrics:
    given_ = {
        "state": "ready",
        "engine": "quantformer 0.1.0",
        "bundle": "ab" * 32,
        "provider": "cpu",
        "counters": {
            "frames": 3,
            "error_bad_time": 2,
            "refused_bad_time": 2,
            "late_standing": 1,
            "answers": 9,
            "odd": 4,
        },
        "gauges": {"uptime_s": 1.5, "sessions": 2.0},
        "histograms": Meter().histograms(),
        **fields,
    }
    return wire.Metrics(**given_)  # type: ignore[arg-type]  # of these types


def samples(page: str) -> dict[str, float]:
    """Every sample, by name and labels; fails on a line that is none, on a family without HELP and TYPE, or split up."""
    found: dict[str, float] = {}
    family, seen, kind = "", set[str](), ""
    for line in page.splitlines():
        if line.startswith("# HELP "):
            family = line.split(" ", 3)[2]
            assert family not in seen, f"{family} is there twice"
            assert line.split(" ", 3)[3]
            seen.add(family)
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == family
            assert kind in {"counter", "gauge", "histogram"}
        else:
            match = _SAMPLE.match(line)
            assert match, line
            name = match[1]
            if kind == "histogram":
                name = re.sub("_(bucket|sum|count)$", "", name)
            assert name == family
            key = match[1] + ("" if match[2] is None else "{" + match[2] + "}")
            assert key not in found, f"{key} is there twice"
            found[key] = float(match[3])
    assert page.endswith("\n")
    return found


def test_counters_gauges_and_states() -> None:
    found = samples(render(metrics(), gateway={"refused_busy": 5}, gauges={"gpu_temperature_celsius": 61.0}))
    assert found["quantformer_up"] == 1
    assert found["quantformer_frames_total"] == 3
    assert found['quantformer_errors_total{code="bad_time"}'] == 2
    assert found['quantformer_frames_refused_total{code="bad_time"}'] == 2
    assert found['quantformer_answers_late_total{asked="standing"}'] == 1
    assert found['quantformer_events_total{event="odd"}'] == 4
    assert found["quantformer_uptime_seconds"] == 1.5
    assert found["quantformer_gpu_temperature_celsius"] == 61
    assert found['quantformer_gateway_events_total{event="refused_busy"}'] == 5
    about = 'engine="quantformer 0.1.0",bundle="' + "ab" * 32 + '",provider="cpu",state="ready"'
    assert found[f"quantformer_engine_info{{{about}}}"] == 1
    assert not any("answers{" in name or name.endswith('"answers"}') for name in found)


def test_without_an_engine_it_is_down_and_nothing_old_is_told() -> None:
    found = samples(render(None, gateway={"engine_losses": 1}))
    assert found == {"quantformer_up": 0, 'quantformer_gateway_events_total{event="engine_losses"}': 1}
    assert samples(render(metrics(state="stopping"), gateway={}))["quantformer_up"] == 0


@given(text=st.text(max_size=40))
def test_any_text_of_the_engine_stays_inside_its_label(text: str) -> None:
    page = render(metrics(engine=text, counters={f"error_{text}": 1}), gateway={})
    if "\r" not in text and all(
        line == line.strip("\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029") for line in page.split("\n")
    ):
        assert page.count("\n") == len([line for line in page.split("\n") if line])
    assert sum(line.startswith("quantformer_engine_info{") for line in page.split("\n")) == 1


@given(took=st.lists(st.integers(0, 3_000_000_000), max_size=60))
def test_buckets_are_cumulative_and_end_with_the_count(took: list[int]) -> None:
    timing = Timing()
    for one in took:
        timing.add(one)
    found = samples(render(metrics(histograms={"overhead": timing.snapshot()}), gateway={}))
    buckets = [(name, value) for name, value in found.items() if name.startswith("quantformer_overhead_seconds_bucket")]
    for bound, (name, value) in zip([*BOUNDS_NS, math.inf], buckets, strict=True):
        assert value == sum(one <= bound for one in took), name
    assert found["quantformer_overhead_seconds_count"] == len(took)
    assert found["quantformer_overhead_seconds_sum"] == pytest.approx(sum(took) / 1e9)


def test_every_family_has_its_help_and_is_documented() -> None:
    families = {family for family, _ in _COUNTERS.values()} | {f"{name}_seconds" for name in Meter().histograms()}
    assert families <= set(_HELP)
    for family in _HELP:
        assert f"`quantformer_{family}`" in DOC, f"docs/monitoring.md lacks quantformer_{family}"
