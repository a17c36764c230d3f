"""The trigger: from an answer to fire or not. Pure; time is passed in, in ns of one monotonic clock.

::

    disarmed ──arm──> armed ──lease runs out or disarm──> disarmed
        any ──stop──> stopped ──disarm──> disarmed

The output is a dry run: a decision says ``fired`` and nothing is driven. This is not a laser-safety interlock.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from quantformer_client import wire
from quantformer_client.wire import ErrorCode
from quantformer_service.refusal import Refusal

#: Most rules of a session.
MOST_RULES = 64
#: Rules, removed ones too, of which it is remembered when they fired.
REMEMBERED = 4 * MOST_RULES


class TriggerState(StrEnum):
    """Whether anything may fire."""

    DISARMED = "disarmed"
    ARMED = "armed"
    STOPPED = "stopped"


class Disarmed(StrEnum):
    """What disarmed a trigger last."""

    NOTHING = ""
    ASKED = "asked"
    LEASE = "lease"
    RECORDER = "recorder"
    STOPPING = "stopping"


class Reason(StrEnum):
    """Why a rule fired or did not; of several, the first in this order."""

    STOPPED = "stopped"
    DISARMED = "disarmed"
    LATE = "late"
    STALE = "stale"
    DEGRADED = "degraded"
    OUT_OF_PHASE = "out_of_phase"
    NOT_ASKED = "not_asked"
    STIMULATED = "stimulated"
    UNKNOWN_NEURON = "unknown_neuron"
    INVALID_F0 = "invalid_f0"
    BELOW_THRESHOLD = "below_threshold"
    REFRACTORY = "refractory"
    FIRED = "fired"


def new_lease() -> int:
    """A random number that every reader holds exactly; never 0."""
    return 1 + secrets.randbelow(wire.ID_LIMIT - 1)


class Trigger:
    """Rules, lease and refractory periods of one session with these ROI ids. ``lease`` makes the numbers of leases."""

    def __init__(self, rois: tuple[str, ...], *, lease: Callable[[], int] = new_lease) -> None:
        self._new_lease = lease
        self._rois = rois
        self._index = {name: row for row, name in enumerate(rois)}
        self._rules: dict[str, wire.Rule] = {}
        # Of removed rules too, so that one that is set again does not fire sooner; who fired last stands last.
        self._fired_ns: dict[str, int] = {}
        self._lease = 0
        self._lease_ns = 0
        self._until_ns = 0
        self.state, self.disarmed = TriggerState.DISARMED, Disarmed.NOTHING
        self.fired = 0
        self.refused: Counter[str] = Counter()

    def set_rule(self, rule: wire.Rule) -> None:
        """Add a rule, or replace the one of its name; replaced, or removed and set again, it keeps its refractory period.

        Raises:
            Refusal: unknown or doubled ROIs, more asked than named, or too many rules.
        """
        strangers = [name for name in rule.rois if name not in self._index]
        if strangers:
            raise Refusal(ErrorCode.UNKNOWN_ROI, f"rule {rule.rule!r}: ROI {strangers[0]!r} is not in the session")
        if rule.at_least > len(set(rule.rois)) or len(set(rule.rois)) != len(rule.rois):
            raise Refusal(
                ErrorCode.BAD_RULE,
                f"rule {rule.rule!r} asks for at least {rule.at_least} of {len(set(rule.rois))} different ROIs "
                f"({len(rule.rois)} named); name each once and ask for no more than there are",
            )
        if len(wire.encode(wire.SetRule(rule=rule))) > wire.MAX_CONTROL // 2:
            # Its decisions name ROIs too, and must fit a message.
            raise Refusal(ErrorCode.BAD_RULE, f"rule {rule.rule!r} names {len(rule.rois)} ROIs, too long; split it")
        if rule.rule not in self._rules and len(self._rules) >= MOST_RULES:
            raise Refusal(ErrorCode.BAD_RULE, f"{MOST_RULES} rules are set, the most there may be; remove one")
        self._rules[rule.rule] = rule

    def remove_rule(self, name: str) -> None:
        """Remove a rule.

        Raises:
            Refusal: there is none of that name.
        """
        if self._rules.pop(name, None) is None:
            known = ", ".join(self._rules) or "none"
            raise Refusal(ErrorCode.UNKNOWN_RULE, f"rule {name!r} is not there; the session has: {known}")

    @property
    def rules(self) -> list[wire.Rule]:
        """The rules, in the order in which they were set."""
        return list(self._rules.values())

    def arm(self, *, lease_s: float, now_ns: int) -> None:
        """Arm with a new lease; an older lease's number is worth nothing any more.

        Raises:
            Refusal: stopped; DISARM first.
        """
        if self.state == TriggerState.STOPPED:
            raise Refusal(ErrorCode.STOPPED, "the trigger is in emergency stop; send DISARM, then ARM")
        self.state, self.disarmed = TriggerState.ARMED, Disarmed.NOTHING
        self._lease = self._new_lease()
        self._lease_ns = int(lease_s * 1e9)
        self._until_ns = now_ns + self._lease_ns

    def heartbeat(self, lease: int, *, now_ns: int) -> None:
        """Renew the lease.

        Raises:
            Refusal: not armed (any more), or by another lease.
        """
        self.expire(now_ns=now_ns)
        if self.state != TriggerState.ARMED or lease != self._lease:
            raise Refusal(ErrorCode.NOT_ARMED, f"the trigger is {self.state} or armed by another lease; send ARM again")
        self._until_ns = now_ns + self._lease_ns

    def disarm(self, reason: Disarmed = Disarmed.ASKED) -> None:
        """Disarm, also out of an emergency stop."""
        self.state, self.disarmed, self._lease = TriggerState.DISARMED, reason, 0

    def stop(self) -> None:
        """Emergency stop."""
        self.state, self.disarmed, self._lease = TriggerState.STOPPED, Disarmed.NOTHING, 0

    def expire(self, *, now_ns: int) -> bool:
        """Disarm if the lease has run out; True when it just did."""
        if self.state == TriggerState.ARMED and now_ns >= self._until_ns:
            self.disarm(Disarmed.LEASE)
            return True
        return False

    @property
    def expires_ns(self) -> int | None:
        """When the lease runs out; None where there is none."""
        return self._until_ns if self.state == TriggerState.ARMED else None

    def describe(self, *, now_ns: int) -> wire.Trigger:
        """The state as a message."""
        armed = self.state == TriggerState.ARMED
        return wire.Trigger(
            state=self.state.value,
            lease=self._lease,
            lease_left_s=max(0.0, (self._until_ns - now_ns) / 1e9) if armed else 0.0,
            fired=self.fired,
            refused=dict(self.refused),
            reason=self.disarmed.value,
        )

    def decide(self, answer: wire.Answer, *, now_ns: int) -> list[wire.Decision]:
        """One decision for each rule that looks at this kind of answer and at one of its stimuli."""
        self.expire(now_ns=now_ns)
        asked = "standing" if answer.asked == wire.Asked.STANDING else "onset"
        decisions = []
        for rule in self._rules.values():
            if rule.asked not in ("any", asked) or (rule.stimulus is not None and rule.stimulus not in answer.stimuli):
                continue
            decisions.append(self._decide(rule, answer, now_ns=now_ns))
        return decisions

    def _decide(self, rule: wire.Rule, answer: wire.Answer, *, now_ns: int) -> wire.Decision:
        age_ns = now_ns - answer.received_ns
        alternative = 0 if rule.stimulus is None else answer.stimuli.index(rule.stimulus)
        column = {int(roi): place for place, roi in enumerate(answer.rois)}
        places = [column[self._index[name]] for name in rule.rois if self._index[name] in column]
        bits = answer.validity[places]
        good = wire.Validity.VALID | wire.Validity.KNOWN
        sure = np.isfinite(answer.probability[alternative])
        usable = [place for place, bit in zip(places, bits, strict=True) if bit & good == good and sure[place]]
        probability = answer.probability[alternative, usable]
        value = None
        if len(usable) >= rule.at_least:
            value = float(np.sort(probability)[-rule.at_least])
        lacking = self._lacking(bits) if len(places) >= rule.at_least else Reason.NOT_ASKED
        last_ns = self._fired_ns.get(rule.rule)
        checks = (
            (Reason.STOPPED, self.state != TriggerState.STOPPED),
            (Reason.DISARMED, self.state == TriggerState.ARMED),
            (Reason.LATE, not answer.flags & wire.Flags.LATE),
            (Reason.STALE, 0 <= age_ns <= rule.max_age_s * 1e9),
            (Reason.DEGRADED, not answer.flags & wire.Flags.DEGRADED),
            (Reason.OUT_OF_PHASE, not answer.flags & wire.Flags.OUT_OF_PHASE),
            (lacking, value is not None),
            (Reason.BELOW_THRESHOLD, value is not None and value >= rule.threshold),
            (Reason.REFRACTORY, last_ns is None or now_ns - last_ns >= rule.refractory_s * 1e9),
        )
        reason = next((reason for reason, passed in checks if not passed), Reason.FIRED)
        if reason == Reason.FIRED:
            self._remember(rule.rule, now_ns)
            self.fired += 1
        else:
            self.refused[reason.value] += 1
        above = [
            self._rois[answer.rois[place]]
            for place in usable
            if answer.probability[alternative, place] >= rule.threshold
        ]
        return wire.Decision(
            rule=rule.rule,
            fired=reason == Reason.FIRED,
            reason=reason.value,
            question=answer.question,
            onset_frame=answer.onset_frame,
            last_frame=answer.last_frame,
            threshold=rule.threshold,
            at_least=rule.at_least,
            output="dry-run",
            rois=above,
            value=value,
            age_s=age_ns / 1e9,
            received_ns=answer.received_ns,
            done_ns=answer.done_ns,
            decided_ns=now_ns,
        )

    def _remember(self, name: str, now_ns: int) -> None:
        """When a rule fired; of removed ones that which fired longest ago is forgotten first."""
        self._fired_ns.pop(name, None)
        self._fired_ns[name] = now_ns
        if len(self._fired_ns) > REMEMBERED:
            del self._fired_ns[next(one for one in self._fired_ns if one not in self._rules)]

    @staticmethod
    def _lacking(bits: NDArray[np.uint8]) -> Reason:
        """Why too few ROIs are usable: the first of the reasons that holds for one of them."""
        if (bits & np.uint8(wire.Validity.STIMULATED)).any():
            return Reason.STIMULATED
        if not (bits & np.uint8(wire.Validity.KNOWN)).all():
            return Reason.UNKNOWN_NEURON
        return Reason.INVALID_F0
