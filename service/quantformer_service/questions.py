"""Questions on their way to an answer, and the phase of the experiment that they fall in."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from quantformer.bundle import Bundle
from quantformer.errors import DataError
from quantformer.vocabulary import NOTHING
from quantformer_client import wire
from quantformer_client.wire import ErrorCode
from quantformer_service.batch import cost_of
from quantformer_service.refusal import Refusal
from quantformer_service.stream import Peer

#: An onset may be announced this long ahead, in seconds.
HORIZON_S = 10.0
#: Seconds after the end of a stimulus during which the phase is *between*; afterwards it is *spontaneous*.
BETWEEN_S = 10.0
#: The bundle's names of each phase.
_PHASE_NAMES = {
    wire.Phase.ONSET: {"onset"},
    wire.Phase.STIMULUS: {"stimulus", "ongoing"},
    wire.Phase.BLANK: {"blank"},
    wire.Phase.BETWEEN: {"between"},
    wire.Phase.SPONTANEOUS: {"spontaneous"},
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Alternatives:
    """The stimuli that a question compares: labels, vectors ``(s, 2, d)``, and whether all of them are blanks."""

    labels: tuple[str, ...]
    vectors: NDArray[np.float32]
    blank: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Subjects:
    """The ROIs ``(n,)`` that a question asks about, and what of its answer no frame changes.

    ``rois`` int64 index the session's ROIs, ``numbers`` are the same as an ANSWER names them. ``usable`` and ``unusable`` are
    their validity where F0 can be used and where it cannot. Row ``b`` of the graph asks about ``row_neuron[b]`` and
    ``row_stimulus[b]``.
    """

    rois: NDArray[np.int64]
    numbers: NDArray[np.uint32]
    usable: NDArray[np.uint8]
    unusable: NDArray[np.uint8]
    row_neuron: NDArray[np.int64]
    row_stimulus: NDArray[np.int64]

    @classmethod
    def of(cls, rois: NDArray[np.int64], *, known: NDArray[np.bool_], stimuli: int) -> Subjects:
        """These ROIs of a session whose ``known`` ones are those of the bundle, each asked about with so many stimuli."""
        bits = known[rois] * np.uint8(wire.Validity.KNOWN)
        return cls(
            rois=rois,
            numbers=rois.astype(np.uint32),
            usable=bits | np.uint8(wire.Validity.VALID),
            unusable=bits | np.uint8(wire.Validity.INVALID_F0),
            row_neuron=np.tile(rois, stimuli),
            row_stimulus=np.repeat(np.arange(stimuli), len(rois)),
        )

    @property
    def rows(self) -> int:
        """Rows of the graph: ROIs x stimuli."""
        return len(self.row_neuron)


class Question(msgspec.Struct, kw_only=True, eq=False):
    """One question. Exactly one of ``onset_frame`` and ``onset_s`` is set until it is due, then ``onset_frame`` is.
    ``peer`` and ``request`` say where the answer goes (None: nowhere).
    """

    number: int
    asked: wire.Asked
    stimuli: Alternatives
    subjects: Subjects
    forecast: bool
    baseline: bool
    onset_frame: int | None = None
    onset_s: float | None = None
    deadline_ns: int = 0
    expires_ns: int = 0
    peer: Peer | None = None
    request: int = 0
    #: As ONSET told it: the time before the display's latency was added, where it came from, how far it may be off.
    told_s: float = math.nan
    uncertainty_s: float = 0.0
    display_latency_s: float = 0.0
    source: wire.Source = wire.Source.NONE
    hypothetical: bool = False
    window_ready_ns: int = 0
    #: Filled at capture.
    acquisition: int = 0
    first_frame: int = 0
    last_frame: int = 0
    last_frame_s: float = math.nan
    received_ns: int = 0
    lead: int = 0
    held: int = 0
    degraded: bool = False
    phase: wire.Phase = wire.Phase.ONSET
    #: Which ROIs light was delivered to and their transient has not decayed; None: none of them.
    stimulated: NDArray[np.bool_] | None = None
    #: Its answer, as far as it is written while inference is at work.
    draft: wire.Draft | None = None

    @property
    def rois(self) -> NDArray[np.int64]:
        """Indices of the session's ROIs ``(n,)``."""
        return self.subjects.rois

    @property
    def cost(self) -> int:
        """What it takes inference, as `cost_of` counts: ROIs x stimuli, fewer without a forecast."""
        return cost_of(self.subjects.rows, forecast=self.forecast)


def alternatives(bundle: Bundle, stimuli: list[wire.Stimulus]) -> Alternatives:
    """Look the stimuli of a question up in the bundle.

    Raises:
        Refusal: a stimulus, category or feature that the bundle does not know, or neither or both of id and category.
    """
    vectors, blanks = [], []
    for stimulus in stimuli:
        if (stimulus.stimulus_id is None) == (stimulus.category is None):
            raise Refusal(
                ErrorCode.BAD_QUESTION, f"{stimulus} has both or neither of stimulus_id and category; give one of them"
            )
        try:
            if stimulus.stimulus_id is not None:
                vectors.append(bundle.stimulus(stimulus.stimulus_id))
                spec = bundle.manifest.stimuli[stimulus.stimulus_id]
                category, features = spec.category, spec.features
            else:
                category, features = stimulus.category or "", stimulus.features
                vectors.append(bundle.stimulus_from_features(category=category, features=features))
        except DataError as error:
            raise Refusal(ErrorCode.UNKNOWN_STIMULUS, str(error)) from error
        blanks.append(category == NOTHING or features.get("blank", 0.0) == 1.0)
    labels = tuple(stimulus.label for stimulus in stimuli)
    return Alternatives(labels=labels, vectors=np.stack(vectors), blank=all(blanks))


def covered(bundle: Bundle, phase: wire.Phase) -> bool:
    """Whether training covered a phase."""
    return bool(_PHASE_NAMES[phase] & bundle.phases)


class PhaseTracker:
    """Which stimuli were announced, and so in which phase a moment lies. Times in s on the microscope's clock."""

    def __init__(self) -> None:
        self._spans: deque[tuple[float, float, bool]] = deque(maxlen=64)

    def reset(self) -> None:
        """Forget every stimulus."""
        self._spans.clear()

    def began(self, start_s: float, *, duration_s: float, blank: bool) -> None:
        """A stimulus begins, or will."""
        self._spans.append((start_s, start_s + duration_s, blank))

    def at(self, moment_s: float) -> wire.Phase:
        """The phase of a moment at which nothing is announced to begin."""
        phase = wire.Phase.SPONTANEOUS
        for start, end, blank in reversed(self._spans):
            if start <= moment_s < end:
                return wire.Phase.BLANK if blank else wire.Phase.STIMULUS
            if end <= moment_s < end + BETWEEN_S:
                phase = wire.Phase.BETWEEN
        return phase
