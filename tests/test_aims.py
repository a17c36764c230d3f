"""Figures beside their aims: what counts as met, what as not measured, and the Markdown of both."""

from __future__ import annotations

import msgspec
import numpy as np

from quantformer_cli.benchmark import aims
from quantformer_cli.benchmark.aims import Record, Row, Section
from quantformer_cli.benchmark.kills import Killed
from quantformer_cli.benchmark.plan import Condition
from quantformer_cli.benchmark.results import Machine, Result, figure
from quantformer_cli.benchmark.survival import Survival
from quantformer_cli.benchmark.usage import Usage

MACHINE = Machine(processor="p", cores=2, usable_cores=2, memory_gib=8.0, system="s", host="h", load_before=0.1)


def result(condition: Condition, *, us: float, count: int = 400, lost: int = 0, **memory: float) -> Result:
    """A measurement in which everything took so long."""
    one = figure([np.full(count, round(us * 1e3), np.int64)])
    assert one is not None
    names = ("overhead", "beside_inference", "inference", "corrected", "engine", "round_trip")
    use = Usage(cpu_share=0.1, memory_first_mib=50.0, memory_most_mib=200.0,
                **{"memory_last_mib": 100.0, "memory_settled_mib": 100.0, **memory})  # fmt: skip
    return Result(
        condition=condition, kind="standing", sent=count, received=count - lost, lost=lost, asked=count, answers=count,
        figures=dict.fromkeys(names, one), usage={"engine": use, "gateway": use},
    )  # fmt: skip


def row(rows: list[Row], what: str) -> Row:
    (found,) = [one for one in rows if what in one.what]
    return found


def test_an_aim_is_met_by_what_is_no_more_than_it_and_by_nothing_that_was_not_measured() -> None:
    assert Row(what="", value=0.25, aim=0.25).met is True
    assert Row(what="", value=0.26, aim=0.25).met is False
    assert Row(what="", value=None, aim=0.25).met is False
    assert Row(what="", value=None).met is None


def test_overhead_is_held_to_its_aims_and_a_lost_frame_to_none() -> None:
    good = aims.overhead_rows(result(Condition(), us=200.0), network="live", every_frame=True)
    assert all(one.met is not False for one in good)
    assert row(good, "overhead a frame, live, p50").value == 0.2
    bad = aims.overhead_rows(result(Condition(), us=40_000.0, lost=1), network="live", every_frame=True)
    assert {one.met for one in bad if one.aim is not None} == {False}
    other = aims.overhead_rows(result(Condition(), us=40_000.0), network="small", every_frame=False)
    assert row(other, "has the answer, small, p99").met is None
    few = aims.overhead_rows(result(Condition(), us=200.0, count=20), network="live", every_frame=True)
    assert row(few, "overhead a frame, live, p99").value is None


def test_what_failed_is_told_and_met_nothing() -> None:
    failed = Result(condition=Condition(), kind="standing", failed="it died")
    (only,) = aims.overhead_rows(failed, network="live", every_frame=True)
    assert "it died" in only.what
    assert only.met is False
    assert [one.met for one in aims.large_rows(failed)] == [False]
    assert [one.met for one in aims.growth_rows([failed])] == [False]


def test_disturbed_is_divided_by_quiet() -> None:
    quiet = result(Condition(), us=200.0)
    flooded = result(Condition(disturb="gateway"), us=400.0)
    failed = Result(condition=Condition(disturb="disk"), kind="standing", failed="no recorder")
    rows = aims.isolation_rows([quiet, flooded, failed], network="live")
    assert [one.value for one in rows] == [2.0, 2.0, 2.0, 2.0, None]
    assert not any(one.met for one in rows)


def test_memory_that_grows_by_more_than_one_percent_misses_the_aim() -> None:
    flat = result(Condition(), us=1.0, memory_last_mib=100.9)
    grown = result(Condition(), us=1.0, memory_last_mib=101.1)
    rows = aims.endurance_rows({"first": flat, "second": grown})
    assert row(rows, "first: memory of the engine at the end").met is True
    assert row(rows, "second: memory of the engine at the end").met is False
    assert row(rows, "all phases: memory of the gateway").met is False
    assert row(rows, "first: frames lost").met is True


def test_a_record_that_is_gone_misses_the_aim() -> None:
    killed = Killed(engine_ms=[900.0, 5100.0], recorder_ms=[700.0], epochs=3, orphaned=2, session_lost=1, opened=3, disarmed=3,
                    armed=3, sent=9)  # fmt: skip
    left = Survival(files=3, records=50, frames=30, torn=1, damages=[], acknowledged=40, missing={7: 2})
    rows = aims.kill_rows(killed, left)
    assert row(rows, "acknowledged records gone").value == 2
    assert row(rows, "places of damage").met is True
    assert row(rows, "no session_lost").value == 1
    assert row(rows, "engine killed until ready again, 2 times, longest").met is False
    assert row(rows, "engine killed until ready again, 2 times, p50").value == 3.0


def test_growth_is_to_be_linear_or_better() -> None:
    sizes = (1, 10, 100, 1000)
    linear = aims.growth_rows([result(Condition(neurons=size), us=100.0 + 2 * size) for size in sizes])
    assert {(one.value, one.met) for one in linear} == {(1.0, True)}
    squared = aims.growth_rows([result(Condition(neurons=size), us=100.0 + 2 * size**2) for size in sizes])
    assert {(one.value, one.met) for one in squared} == {(2.0, False)}


def test_the_markdown_has_a_line_a_row_and_a_trial_judges_nothing() -> None:
    rows = [Row(what="fast", value=0.1, unit="ms", aim=0.2), Row(what="slow | wide", value=2000.0, unit="ms", aim=0.2),
            Row(what="none", value=None, unit="s")]  # fmt: skip
    part = Section(part="p", title="Part", date_utc="then", load=(0.1, 0.2), how=["so"], rows=rows, files=["p.json"])
    record = Record(date_utc="then", command="c", machine=MACHINE, versions={"python": "3"}, scale=1.0, sections=[part])
    text = aims.markdown(record)
    assert "| fast | 0.1 ms | <= 0.2 ms | met |" in text
    assert "| slow \\| wide | 2000 ms | <= 0.2 ms | **not met** |" in text
    assert "| none | not measured |  |  |" in text
    trial = aims.markdown(msgspec.structs.replace(record, scale=0.01))
    assert "trial" in trial
    assert "met" not in trial.replace("measured", "")
    assert msgspec.json.decode(msgspec.json.encode(record), type=Record) == record
