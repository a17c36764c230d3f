"""What a bench measures: conditions, of which the first is the base and every other one differs from it in one thing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import msgspec

from quantformer.errors import UsageError

Transport = Literal["zmq", "tcp", "websocket", "rest"]
#: ``none`` asks nothing but a probe: one ROI's probability, so that what a frame costs besides inference is seen.
Questions = Literal["standing", "announced", "both", "none"]
Detail = Literal["forecast", "probability"]
Disturb = Literal["quiet", "gateway", "subscriber", "churn", "disk"]
TRANSPORTS, QUESTIONS, DISTURBANCES = get_args(Transport), get_args(Questions), get_args(Disturb)[1:]
#: Most ROIs of a session and alternatives of a question on the wire, and most sessions of a service.
MOST_NEURONS, MOST_STIMULI, MOST_SESSIONS = 65_536, 256, 256


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """One load: ``sessions`` clients, each sending ``neurons`` ROIs a frame and asking about all of them and ``stimuli``
    alternatives, undisturbed (``quiet``) or not.
    """

    transport: Transport = "zmq"
    neurons: int = 241
    stimuli: int = 1
    sessions: int = 1
    questions: Questions = "standing"
    disturb: Disturb = "quiet"

    @property
    def label(self) -> str:
        """In words."""
        parts = [self.transport, f"N {self.neurons}", f"S {self.stimuli}", self.questions]
        parts += [f"{self.sessions} sessions"] if self.sessions > 1 else []
        parts += [f"disturbed: {self.disturb}"] if self.disturb != "quiet" else []
        return ", ".join(parts)


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How frames come and questions are asked. ``frames`` of each condition are shared out over ``rounds``, in which
    conditions take turns; onsets and probes ask about every ``every``-th frame; ``jitter`` is in periods.
    """

    rate_hz: float = 30.0
    jitter: float = 0.03
    frames: int = 3000
    rounds: int = 3
    every: int = 3
    detail: Detail = "forecast"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1.0 <= self.rate_hz <= 1000.0:
            raise UsageError(f"found a rate of {self.rate_hz:g} Hz, expected 1 to 1000")
        if not 0.0 <= self.jitter < 0.5:
            raise UsageError(f"found a jitter of {self.jitter:g} periods, expected 0 or more and less than 0.5")
        if min(self.frames, self.rounds, self.every) < 1:
            raise UsageError(
                f"found {self.frames} frames, {self.rounds} rounds, every {self.every}; expected 1 or more of each"
            )
        if self.frames < 2 * self.rounds:
            raise UsageError(
                f"{self.frames} frames in {self.rounds} rounds are too few; give --frames {2 * self.rounds} or more"
            )

    @property
    def frames_a_round(self) -> int:
        """Frames of one condition in one round, those of the warm-up apart."""
        return -(-self.frames // self.rounds)

    @property
    def warm_up(self) -> int:
        """Frames at the beginning of each round that are sent and not counted: half a second of them."""
        return round(self.rate_hz / 2)


def conditions(
    *,
    transports: Sequence[Transport],
    neurons: Sequence[int],
    stimuli: Sequence[int],
    sessions: Sequence[int],
    questions: Sequence[Questions],
    disturb: Sequence[Disturb] = (),
) -> list[Condition]:
    """The base, which is the first value of everything, then each further value alone.

    Raises:
        UsageError: a list is empty or a number out of range.
    """
    for name, values, most in (("--neurons", neurons, MOST_NEURONS), ("--stimuli", stimuli, MOST_STIMULI),
                               ("--streams", sessions, MOST_SESSIONS)):  # fmt: skip
        if not values or min(values) < 1 or max(values) > most:
            raise UsageError(f"{name}: found {list(values)}, expected numbers from 1 to {most}")
    base = Condition(
        transport=transports[0], neurons=neurons[0], stimuli=stimuli[0], sessions=sessions[0], questions=questions[0]
    )
    changes: list[dict[str, object]] = [{"transport": one} for one in transports[1:]]
    changes += [{"questions": one} for one in questions[1:]]
    changes += [{"neurons": one} for one in neurons[1:]]
    changes += [{"stimuli": one} for one in stimuli[1:]]
    changes += [{"sessions": one} for one in sessions[1:]]
    changes += [{"disturb": one} for one in disturb]
    found = [base, *(msgspec.structs.replace(base, **change) for change in changes)]
    return list(dict.fromkeys(found))
