"""The trigger as pure logic: whatever happens, it fires only when everything holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from quantformer_client import wire
from quantformer_client.wire import ErrorCode
from quantformer_service.refusal import Refusal
from quantformer_service.trigger import REMEMBERED, Disarmed, Reason, Trigger, TriggerState

ROIS = ("a", "b", "c", "d")
SECOND = 1_000_000_000
GOOD = int(wire.Validity.VALID | wire.Validity.KNOWN)
NOW = 100 * SECOND


def answer(
    probability: list[float] | None = None,
    *,
    validity: list[int] | None = None,
    rois: list[int] | None = None,
    flags: int = 0,
    received_ns: int = NOW - SECOND // 100,
    asked: wire.Asked = wire.Asked.STANDING,
    stimuli: tuple[str, ...] = ("grating",),
) -> wire.Answer:
    values = np.array([probability or [0.9, 0.9, 0.1, 0.1]] * len(stimuli), np.float32)
    return wire.Answer(
        question=1,
        asked=asked,
        phase=wire.Phase.BETWEEN,
        stimuli=stimuli,
        onset_frame=100,
        onset_s=3.0,
        first_frame=4,
        last_frame=99,
        last_frame_s=2.97,
        lead=0,
        held=0,
        received_ns=received_ns,
        window_ready_ns=received_ns,
        submitted_ns=received_ns,
        done_ns=received_ns,
        published_ns=received_ns,
        deadline_ns=0,
        bundle=bytes(32),
        rois=np.array(rois if rois is not None else range(values.shape[1]), np.uint32),
        validity=np.array(validity or [GOOD] * values.shape[1], np.uint8),
        probability=values,
        flags=wire.Flags(flags),
    )


def a_rule(**changes: object) -> wire.Rule:
    fields: dict[str, object] = {"rule": "r", "rois": ["a"], "threshold": 0.5, "refractory_s": 1.0, "max_age_s": 0.2}
    return wire.Rule(**{**fields, **changes})  # type: ignore[arg-type]


def armed(*rules: wire.Rule) -> Trigger:
    trigger = Trigger(ROIS)
    for one in rules or (a_rule(),):
        trigger.set_rule(one)
    trigger.arm(lease_s=60.0, now_ns=NOW)
    return trigger


def only(trigger: Trigger, given_answer: wire.Answer, *, now_ns: int = NOW) -> str:
    (decision,) = trigger.decide(given_answer, now_ns=now_ns)
    assert decision.fired == (decision.reason == "fired")
    return decision.reason


@pytest.mark.parametrize(
    ("given_answer", "reason"),
    [
        (answer(), Reason.FIRED),
        (answer(flags=wire.Flags.LATE), Reason.LATE),
        (answer(received_ns=NOW - SECOND // 4), Reason.STALE),
        (answer(received_ns=NOW + 1), Reason.STALE),
        (answer(flags=wire.Flags.DEGRADED), Reason.DEGRADED),
        (answer(flags=wire.Flags.OUT_OF_PHASE), Reason.OUT_OF_PHASE),
        (answer([0.9, 0.9], rois=[1, 2]), Reason.NOT_ASKED),
        (answer(validity=[1, GOOD, GOOD, GOOD]), Reason.UNKNOWN_NEURON),
        (answer(validity=[GOOD - 1 + int(wire.Validity.STIMULATED), GOOD, GOOD, GOOD]), Reason.STIMULATED),
        (answer(validity=[GOOD - 1 + int(wire.Validity.INVALID_F0), GOOD, GOOD, GOOD]), Reason.INVALID_F0),
        (answer([0.49, 0.9, 0.9, 0.9]), Reason.BELOW_THRESHOLD),
        (answer([float("nan"), 0.9, 0.9, 0.9]), Reason.INVALID_F0),
        (answer([0.1, 0.1, 0.1, 0.1], flags=wire.Flags.LATE | wire.Flags.DEGRADED), Reason.LATE),
    ],
)
def test_each_reason(given_answer: wire.Answer, reason: Reason) -> None:
    trigger = armed()
    assert only(trigger, given_answer) == reason
    assert trigger.fired == (reason == Reason.FIRED)
    assert sum(trigger.refused.values()) == (reason != Reason.FIRED)


def test_the_state_says_what_disarmed_it_last() -> None:
    trigger = Trigger(ROIS, lease=lambda: 41)
    assert trigger.describe(now_ns=NOW).reason == ""
    trigger.disarm()
    assert trigger.describe(now_ns=NOW).reason == "asked"
    trigger.arm(lease_s=1.0, now_ns=NOW)
    assert (trigger.describe(now_ns=NOW).lease, trigger.describe(now_ns=NOW).reason) == (41, "")
    assert trigger.expire(now_ns=NOW + SECOND)
    assert trigger.describe(now_ns=NOW).reason == "lease"
    trigger.disarm(Disarmed.RECORDER)
    assert trigger.describe(now_ns=NOW).reason == "recorder"
    trigger.stop()
    assert trigger.describe(now_ns=NOW).reason == ""


def test_an_ensemble_needs_k_usable_neurons_over_the_threshold() -> None:
    trigger = armed(a_rule(rois=["a", "b", "c"], at_least=2, refractory_s=0.0))
    decisions = trigger.decide(answer([0.9, 0.6, 0.2, 0.9]), now_ns=NOW)
    assert (decisions[0].reason, decisions[0].rois) == ("fired", ["a", "b"])
    assert decisions[0].value == pytest.approx(0.6)
    assert only(trigger, answer([0.9, 0.4, 0.2, 0.9])) == "below_threshold"
    assert only(trigger, answer([0.9, 0.9, 0.2, 0.9], validity=[GOOD, 1, GOOD, GOOD])) == "below_threshold"
    assert only(trigger, answer([0.9, 0.9, 0.9, 0.9], validity=[GOOD, 1, 1, GOOD])) == "unknown_neuron"


def test_a_rule_looks_at_its_stimulus_and_its_kind_of_question() -> None:
    trigger = armed(a_rule(stimulus="second", asked="onset"))
    assert trigger.decide(answer(), now_ns=NOW) == []
    assert trigger.decide(answer(asked=wire.Asked.ANNOUNCED), now_ns=NOW) == []
    two = answer(asked=wire.Asked.ANNOUNCED, stimuli=("first", "second"))
    two = replace(two, probability=np.array([[0.1] * 4, [0.8] * 4], np.float32))
    assert only(trigger, two) == "fired"


def test_refractory_lease_and_stop() -> None:
    trigger = armed()
    assert only(trigger, answer()) == "fired"
    assert only(trigger, answer()) == "refractory"
    later = NOW + SECOND
    assert only(trigger, answer(received_ns=later), now_ns=later) == "fired"
    lease = trigger.describe(now_ns=NOW).lease
    trigger.heartbeat(lease, now_ns=NOW + 59 * SECOND)
    late = NOW + 118 * SECOND
    assert not trigger.expire(now_ns=late)
    assert trigger.expire(now_ns=NOW + 119 * SECOND)
    assert only(trigger, answer(received_ns=late), now_ns=NOW + 119 * SECOND) == "disarmed"
    with pytest.raises(Refusal) as raised:
        trigger.heartbeat(lease, now_ns=late)
    assert raised.value.code == ErrorCode.NOT_ARMED
    trigger.arm(lease_s=1.0, now_ns=late)
    trigger.stop()
    assert only(trigger, answer(received_ns=late), now_ns=late) == "stopped"
    with pytest.raises(Refusal) as raised:
        trigger.arm(lease_s=1.0, now_ns=late)
    assert raised.value.code == ErrorCode.STOPPED
    trigger.disarm()
    trigger.arm(lease_s=1.0, now_ns=late)
    assert trigger.state == TriggerState.ARMED


def test_a_lease_of_another_is_not_renewed() -> None:
    trigger = armed()
    first = trigger.describe(now_ns=NOW).lease
    trigger.arm(lease_s=1.0, now_ns=NOW)
    with pytest.raises(Refusal):
        trigger.heartbeat(first, now_ns=NOW)


def test_replacing_a_rule_does_not_cut_its_refractory_period() -> None:
    trigger = armed()
    assert only(trigger, answer()) == "fired"
    trigger.set_rule(a_rule(threshold=0.4))
    assert only(trigger, answer()) == "refractory"


def test_removing_a_rule_and_setting_it_again_does_not_cut_its_refractory_period() -> None:
    trigger = armed()
    assert only(trigger, answer()) == "fired"
    trigger.remove_rule("r")
    # Whatever else is set, fires and goes meanwhile, within what is remembered.
    for number in range(REMEMBERED - 1):
        trigger.set_rule(a_rule(rule=f"other {number}"))
        assert only(trigger, answer()) == "fired"
        trigger.remove_rule(f"other {number}")
    trigger.set_rule(a_rule())
    assert only(trigger, answer()) == "refractory"
    trigger.set_rule(a_rule(rule="one more"))
    assert [decision.reason for decision in trigger.decide(answer(), now_ns=NOW)] == ["refractory", "fired"]
    assert len(trigger._fired_ns) == REMEMBERED


def test_a_removed_rule_that_fired_lately_is_remembered_however_long_ago_it_fired_first() -> None:
    trigger = armed(a_rule(refractory_s=0.0))
    assert only(trigger, answer()) == "fired"
    for number in range(REMEMBERED - 1):
        trigger.set_rule(a_rule(rule=f"other {number}"))
        assert "fired" in [decision.reason for decision in trigger.decide(answer(), now_ns=NOW) if decision.rule != "r"]
        trigger.remove_rule(f"other {number}")
    trigger.remove_rule("r")
    trigger.set_rule(a_rule(rule="one more"))
    assert only(trigger, answer()) == "fired"
    trigger.remove_rule("one more")
    trigger.set_rule(a_rule())
    assert only(trigger, answer()) == "refractory"


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (a_rule(rois=["z"]), ErrorCode.UNKNOWN_ROI),
        (a_rule(at_least=2), ErrorCode.BAD_RULE),
        (a_rule(rois=["a", "a"]), ErrorCode.BAD_RULE),
        (a_rule(rois=["long" * 60] * 3000), ErrorCode.BAD_RULE),
    ],
)
def test_a_rule_that_cannot_hold_is_refused(bad: wire.Rule, code: ErrorCode) -> None:
    with pytest.raises(Refusal) as raised:
        Trigger((*ROIS, "long" * 60)).set_rule(bad)
    assert raised.value.code == code
    with pytest.raises(Refusal) as raised:
        Trigger(ROIS).remove_rule("r")
    assert raised.value.code == ErrorCode.UNKNOWN_RULE


@given(
    probability=st.lists(st.floats(0, 1, width=32) | st.just(float("nan")), min_size=4, max_size=4),
    validity=st.lists(st.integers(0, 31), min_size=4, max_size=4),
    flags=st.sampled_from([0, 0, 0, 16, 32, 64]),
    age_s=st.floats(-0.1, 0.4),
    at_least=st.integers(1, 3),
)
def test_firing_implies_every_condition(
    probability: list[float], validity: list[int], flags: int, age_s: float, at_least: int
) -> None:
    trigger = armed(a_rule(rois=["a", "b", "c"], at_least=at_least))
    received = NOW - int(age_s * SECOND)
    reason = only(trigger, answer(probability, validity=validity, flags=flags, received_ns=received))
    over = sum(validity[k] & GOOD == GOOD and probability[k] >= 0.5 for k in range(3))
    holds = over >= at_least and not flags and 0 <= NOW - received <= 0.2 * SECOND
    assert (reason == "fired") == holds


class Machine(RuleBasedStateMachine):
    """Random commands and answers against a model of what must be true."""

    def __init__(self) -> None:
        super().__init__()
        self.trigger = Trigger(ROIS)
        self.trigger.set_rule(a_rule())
        self.now = NOW
        self.until = 0
        self.stopped = False
        self.last_fired: int | None = None

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)

    @rule(lease=st.floats(0.1, 5))
    def arm(self, lease: float) -> None:
        if self.stopped:
            with pytest.raises(Refusal):
                self.trigger.arm(lease_s=lease, now_ns=self.now)
        else:
            self.trigger.arm(lease_s=lease, now_ns=self.now)
            self.until, self.lease = self.now + int(lease * SECOND), int(lease * SECOND)

    @precondition(lambda self: self.now < self.until)
    @rule()
    def beat(self) -> None:
        self.trigger.heartbeat(self.trigger.describe(now_ns=self.now).lease, now_ns=self.now)
        self.until = self.now + self.lease

    @rule()
    def disarm(self) -> None:
        self.trigger.disarm()
        self.until, self.stopped = 0, False

    @rule()
    def stop(self) -> None:
        self.trigger.stop()
        self.until, self.stopped = 0, True

    @rule()
    def see(self) -> None:
        fired = self.trigger.decide(answer(received_ns=self.now), now_ns=self.now)[0].fired
        rested = self.last_fired is None or self.now - self.last_fired >= SECOND
        assert fired == (self.now < self.until and rested)
        if fired:
            self.last_fired = self.now

    @invariant()
    def never_armed_without_a_lease(self) -> None:
        self.trigger.expire(now_ns=self.now)
        assert (self.trigger.state == TriggerState.ARMED) == (self.now < self.until)


TestMachine = Machine.TestCase
