"""What stamps say, on made-up stamps whose answer is known; histograms against exact quantiles; plans and schedules."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantformer.errors import UsageError
from quantformer_cli.benchmark.charts import growth_exponent
from quantformer_cli.benchmark.growth import beyond_fixed
from quantformer_cli.benchmark.histogram import LONGEST_NS, Histogram
from quantformer_cli.benchmark.plan import Condition, Pace, conditions
from quantformer_cli.benchmark.results import figure
from quantformer_cli.benchmark.schedule import schedule_ns
from quantformer_cli.benchmark.stamps import STAGES, Heard, Sent, corrected, durations, stage_means

MS = 1_000_000
NS = st.integers(0, LONGEST_NS)


def heard(frame: list[int], got_ns: NDArray[np.int64] | list[int], **stamps: list[int]) -> Heard:
    zeros = [0] * len(frame)
    names = ("received_ns", "window_ready_ns", "submitted_ns", "done_ns", "published_ns")
    columns = {name: np.array(stamps.get(name, zeros), np.int64) for name in names}
    return Heard(
        frame=np.array(frame),
        about=np.array(frame),
        got_ns=np.asarray(got_ns, np.int64),
        late=np.zeros(len(frame), np.bool_),
        **columns,
    )


# --- histograms -------------------------------------------------------------------------------------------------------


@given(st.lists(NS, min_size=1, max_size=300), st.floats(0.0, 1.0), st.sampled_from([6, 11]))
def test_a_quantile_is_the_exact_one_or_the_end_of_its_bucket(values: list[int], q: float, bits: int) -> None:
    histogram = Histogram(bits=bits)
    histogram.record(np.array(values))
    found = histogram.quantile(q)
    if found is None:
        assert len(values) * (1 - q) < 1
        return
    exact = sorted(values)[max(1, math.ceil(q * len(values) - 1e-9)) - 1]
    assert exact <= found <= max(exact, exact * (1 + 2 ** (1 - bits)))
    assert found == exact or exact >= 1 << bits
    assert found <= histogram.largest == max(values)


@given(st.lists(NS, max_size=60), st.lists(NS, max_size=60))
def test_two_histograms_hold_what_one_would(first: list[int], second: list[int]) -> None:
    apart, together = [Histogram(), Histogram()], Histogram()
    for histogram, values in zip(apart, (first, second), strict=True):
        histogram.record(np.array(values, np.int64))
    together.record(np.array(first + second, np.int64))
    assert (apart[0].counts + apart[1].counts == together.counts).all()
    assert sum(count for _, count in together.pairs()) == together.total == len(first) + len(second)


@given(st.lists(NS, min_size=1, max_size=60))
def test_a_bucket_begins_at_or_below_what_it_holds(values: list[int]) -> None:
    histogram = Histogram(bits=6)
    histogram.record(np.array(values))
    pairs = histogram.pairs()
    starts = [low for low, _ in pairs]
    assert starts == sorted(starts)
    for value in values:
        low = max(start for start in starts if start <= value)
        assert value - low <= value / 32


def test_what_is_out_of_range_is_counted_at_the_ends() -> None:
    histogram = Histogram()
    histogram.record(np.array([-5, LONGEST_NS + 7, 3]))
    assert (histogram.smallest, histogram.largest, histogram.total) == (0, LONGEST_NS, 3)


def test_too_few_say_nothing_about_the_tail() -> None:
    for count, q, said in [(99, 0.99, False), (100, 0.99, True), (999, 0.999, False), (1000, 0.999, True)]:
        histogram = Histogram()
        histogram.record(np.arange(count))
        assert (histogram.quantile(q) is not None) is said
    found = figure([np.arange(1000) * 1000, np.arange(500) * 1000])
    assert found is not None
    assert (found.count, found.max) == (1500, 999.0)
    assert [one.count for one in found.rounds] == [1000, 500]
    assert found.rounds[1].max == 499.0
    assert figure([np.zeros(0, np.int64)]) is None


# --- stages -----------------------------------------------------------------------------------------------------------


def test_each_stage_and_what_is_made_of_them_a_frame() -> None:
    sent = Sent(due_ns=np.array([0, 33 * MS]), sent_ns=np.array([1 * MS, 33 * MS]))
    # The engine's clock is 1000 ms ahead.
    answers = heard(
        [0, 1],
        [20 * MS, 60 * MS],
        received_ns=[1003 * MS, 1034 * MS],
        window_ready_ns=[1004 * MS, 1034 * MS],
        submitted_ns=[1006 * MS, 1035 * MS],
        done_ns=[1014 * MS, 1055 * MS],
        published_ns=[1017 * MS, 1056 * MS],
    )
    found = {name: (values // MS).tolist() for name, values in durations(sent, answers, offset_ns=1000 * MS).items()}
    assert found == {
        "slip": [1, 0],
        "wire_in": [2, 1],
        "window": [1, 0],
        "queue": [2, 1],
        "inference": [8, 20],
        "publish": [3, 1],
        "wire_out": [3, 4],
        "engine": [14, 22],
        "overhead": [6, 2],
        "round_trip": [19, 27],
        "beside_inference": [11, 7],
    }


@given(
    st.lists(st.lists(st.integers(0, 10**9), min_size=8, max_size=8), min_size=1, max_size=20),
    st.integers(-(10**12), 10**12),
)
def test_stages_add_up_to_the_whole_way(rows: list[list[int]], offset_ns: int) -> None:
    steps = np.cumsum(np.array(rows), axis=1).T
    due, sent, received, ready, submitted, done, published, got = steps
    ours = Sent(due_ns=due, sent_ns=sent)
    names = ("received_ns", "window_ready_ns", "submitted_ns", "done_ns", "published_ns")
    engine = dict(zip(names, (received, ready, submitted, done, published), strict=True))
    count = len(rows)
    answers = Heard(
        frame=np.arange(count),
        about=np.arange(count),
        got_ns=got,
        late=np.zeros(count, np.bool_),
        **{name: values + offset_ns for name, values in engine.items()},
    )
    found = durations(ours, answers, offset_ns=offset_ns)
    assert (sum(found[stage] for stage in STAGES) == got - due).all()
    assert (found["overhead"] + found["inference"] == found["engine"]).all()
    for means in stage_means(found).values():
        assert set(means) == set(STAGES)
    whole = stage_means({name: found[name][:1] for name in found})["typical"]
    assert sum(whole.values()) == pytest.approx((got - due)[0] / 1e3)


def test_overhead_is_taken_a_frame_before_its_quantiles() -> None:
    """Two kinds of frames: the difference of the quantiles would be 0, the overhead of every frame is 4 or 6 ms."""
    total, inference = np.array([10, 20] * 50), np.array([4, 16] * 50)
    sent = Sent(due_ns=np.zeros(100, np.int64), sent_ns=np.zeros(100, np.int64))
    answers = heard(list(range(100)), [0] * 100, done_ns=(inference * MS).tolist(), published_ns=(total * MS).tolist())
    overhead = figure([durations(sent, answers, offset_ns=0)["overhead"]])
    assert overhead is not None
    assert (overhead.p50, overhead.max) == (pytest.approx(4000, rel=1e-3), 6000)


# --- coordinated omission ---------------------------------------------------------------------------------------------


def test_a_stall_is_seen_by_every_frame_that_was_due_in_it() -> None:
    """100 frames, 10 ms apart, each answered 1 ms after it is sent; the sender is stuck for a second at frame 50."""
    due = np.arange(100) * 10 * MS
    sent = due.copy()
    sent[50:] = np.maximum(due[50:], 50 * 10 * MS + 1000 * MS)
    # What was due in the stall leaves at once when it is over.
    ours = Sent(due_ns=due, sent_ns=sent)
    answers = heard(list(range(100)), sent + 1 * MS)
    raw = durations(ours, answers, offset_ns=0)["round_trip"]
    assert raw.max() == 1 * MS  # what a sender that trusts its own stamps would report
    found = corrected(
        ours, answers, asked=np.arange(100), latest_wins=True, end_ns=int(sent[-1]) + 5 * MS, period_ns=10 * MS
    )
    assert found.latency_ns[50] == 1001 * MS
    assert (np.diff(found.latency_ns[50:]) == -10 * MS).all()
    assert (found.latency_ns[:50] == 1 * MS).all()
    assert found.missed == 50
    assert (found.skipped, found.unanswered) == (0, 0)


def test_a_skipped_frame_waits_for_the_next_answer_and_an_unanswered_one_for_the_end() -> None:
    due = np.arange(5) * 10 * MS
    ours = Sent(due_ns=due, sent_ns=due)
    # Frame 1 has no answer of its own, frame 4 none at all; the answers of 2 and 3 come out of order.
    answers = heard([0, 2, 3], [4 * MS, 36 * MS, 33 * MS])
    found = corrected(ours, answers, asked=np.arange(5), latest_wins=True, end_ns=100 * MS, period_ns=10 * MS)
    assert (found.latency_ns // MS).tolist() == [4, 23, 13, 3, 60]
    assert (found.skipped, found.unanswered, found.missed) == (2, 1, 3)
    some = corrected(ours, answers, asked=np.array([0, 3]), latest_wins=True, end_ns=100 * MS, period_ns=10 * MS)
    assert (some.latency_ns // MS).tolist() == [4, 3]
    assert (some.skipped, some.unanswered, some.missed) == (0, 0, 0)


def test_an_onset_has_its_own_answer_or_none_even_without_its_last_frame() -> None:
    due = np.arange(5) * 10 * MS
    ours = Sent(due_ns=due, sent_ns=due)
    # The onset after frame 1 was answered when frame 0 alone was there; nobody answered the one after frame 2.
    answers = heard([0, 4], [12 * MS, 45 * MS])
    answers = Heard(**{**vars(answers), "about": np.array([1, 4])})
    found = corrected(ours, answers, asked=np.array([1, 2, 4]), latest_wins=False, end_ns=100 * MS, period_ns=10 * MS)
    assert (found.latency_ns // MS).tolist() == [2, 80, 5]
    assert (found.skipped, found.unanswered, found.missed) == (1, 1, 1)
    assert (durations(ours, answers, offset_ns=0)["round_trip"] // MS).tolist() == [12, 5]


# --- the plan ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 400), st.floats(1, 1000), st.floats(0, 0.499), st.integers(0, 9))
def test_a_schedule_is_absolute_and_keeps_the_order(frames: int, rate_hz: float, jitter: float, seed: int) -> None:
    due = schedule_ns(frames=frames, rate_hz=rate_hz, jitter=jitter, seed=seed)
    assert (np.diff(due) > 0).all()
    assert due[0] >= 0
    # Jitter of one frame moves no other: every one stays within it of its own place.
    places = (np.arange(frames) + jitter) * 1e9 / rate_hz
    assert (np.abs(due - places) <= jitter * 1e9 / rate_hz + 1).all()
    assert (due == schedule_ns(frames=frames, rate_hz=rate_hz, jitter=jitter, seed=seed)).all()


def test_jitter_that_would_reorder_is_refused() -> None:
    with pytest.raises(UsageError, match=r"less than 0\.5"):
        schedule_ns(frames=3, rate_hz=30.0, jitter=0.5, seed=0)


def test_every_condition_differs_from_the_base_in_one_thing() -> None:
    found = conditions(
        transports=["zmq", "rest"], neurons=[241, 1, 1000], stimuli=[1, 8], sessions=[1, 3],
        questions=["standing", "none"], disturb=["churn"],
    )  # fmt: skip
    assert found[0] == Condition(neurons=241)
    fields = ("transport", "neurons", "stimuli", "sessions", "questions", "disturb")
    assert [sum(getattr(one, name) != getattr(found[0], name) for name in fields) for one in found[1:]] == [1] * 7
    assert len(set(found)) == 8
    assert len(conditions(transports=["zmq"], neurons=[1, 1], stimuli=[1], sessions=[1], questions=["none"])) == 1
    with pytest.raises(UsageError, match="--neurons"):
        conditions(transports=["zmq"], neurons=[0], stimuli=[1], sessions=[1], questions=["none"])


@pytest.mark.parametrize(
    "wrong", [{"rate_hz": 0.5}, {"jitter": 0.7}, {"frames": 0}, {"frames": 5, "rounds": 3}, {"every": 0}]
)
def test_a_pace_that_cannot_be_kept_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Pace(**wrong)  # type: ignore[arg-type]


def test_growth_is_the_power_of_the_size() -> None:
    assert growth_exponent([(1, 5.0), (10, 50.0), (100, 500.0)]) == pytest.approx(1.0)
    assert growth_exponent([(10, 9.0), (20, 9.0)]) == pytest.approx(0.0)
    assert growth_exponent([(10, 2.0), (20, 8.0)]) == pytest.approx(2.0)
    assert growth_exponent([(10, 2.0)]) is None


SIZES = (1, 10, 100, 241, 1000, 3000, 10_000, 20_000)


@pytest.mark.parametrize("power", [0.8, 1.0, 1.5])
def test_growth_beyond_a_fixed_cost_is_told_from_it(power: float) -> None:
    points = [(float(size), 300.0 + 2.0 * size**power) for size in SIZES]
    found = beyond_fixed(points)
    assert found is not None
    assert (found.fixed_us, found.factor_us, found.power) == (
        pytest.approx(300.0), pytest.approx(2.0), pytest.approx(power),
    )  # fmt: skip
    assert found.error < 1e-9
    # As a whole it grows less: that is what the fixed cost hides.
    whole = growth_exponent(points)
    assert whole is not None
    assert whole < power


def test_growth_that_is_noise_is_no_growth() -> None:
    rng = np.random.default_rng(0)
    found = beyond_fixed([(float(size), 300.0 * rng.normal(1.0, 0.03)) for size in SIZES])
    assert found is not None
    assert (found.power, found.factor_us) == (0.0, 0.0)
    assert found.fixed_us == pytest.approx(300.0, rel=0.05)
    assert beyond_fixed([(1.0, 3.0), (2.0, 4.0), (3.0, 5.0)]) is None


@pytest.mark.parametrize("seed", range(8))
def test_no_fit_has_a_negative_part(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = beyond_fixed([(float(size), float(10 ** rng.uniform(0.0, 6.0))) for size in SIZES[: rng.integers(4, 9)]])
    assert found is not None
    assert found.fixed_us >= 0
    assert found.factor_us >= 0
    assert 0 <= found.error <= 1
