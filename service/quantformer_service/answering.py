"""From a computed slot to an ANSWER: shapes, validity, lineage and flags."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantformer.bundle import Bundle
from quantformer_client import wire
from quantformer_service.inference import Slot
from quantformer_service.questions import Question, covered
from quantformer_service.session import Session

_STIMULATED, _NOT_VALID = np.uint8(wire.Validity.STIMULATED), np.uint8(0xFF & ~wire.Validity.VALID)
_F0_OUT_OF_RANGE = np.uint8(wire.Validity.F0_OUT_OF_RANGE)


class Answering:
    """Makes the answers of one bundle."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bytes.fromhex(bundle.hash)
        self._flags = {phase: wire.Flags(0) if covered(bundle, phase) else wire.Flags.OUT_OF_PHASE for phase in wire.Phase}

    def answer(self, question: Question, slot: Slot) -> wire.Answer:
        """The answer, not published yet; its arrays may be views of the slot."""
        subjects, rois = question.subjects, question.rois
        assert question.onset_frame is not None
        assert question.onset_s is not None
        flags = self._flags[question.phase]
        if question.degraded:
            flags |= wire.Flags.DEGRADED
        if question.hypothetical:
            flags |= wire.Flags.HYPOTHETICAL
        count, n = len(question.stimuli.labels), len(rois)
        return wire.Answer(
            question=question.number,
            asked=question.asked,
            phase=question.phase,
            stimuli=question.stimuli.labels,
            onset_frame=question.onset_frame,
            onset_s=question.onset_s,
            first_frame=question.first_frame,
            last_frame=question.last_frame,
            last_frame_s=question.last_frame_s,
            lead=question.lead,
            held=question.held,
            received_ns=question.received_ns,
            window_ready_ns=question.window_ready_ns,
            submitted_ns=slot.submitted_ns,
            done_ns=slot.done_ns,
            published_ns=0,
            deadline_ns=question.deadline_ns,
            bundle=self._bundle,
            rois=subjects.numbers,
            validity=_validity(question, slot),
            probability=slot.probability.reshape(count, n),
            response=None if slot.response is None else slot.response.reshape(count, n, -1),
            low=None if slot.low is None else slot.low.reshape(count, n, -1),
            high=None if slot.high is None else slot.high.reshape(count, n, -1),
            baseline=slot.baseline[rois] if question.baseline else None,
            told_s=question.told_s,
            uncertainty_s=question.uncertainty_s,
            display_latency_s=question.display_latency_s,
            source=question.source,
            flags=flags,
        )


def _validity(question: Question, slot: Slot) -> NDArray[np.uint8]:
    subjects = question.subjects
    bits = subjects.usable
    if not slot.sound:
        bits = np.where(slot.usable[subjects.rois], bits, subjects.unusable)
        bits |= slot.outside[subjects.rois] * _F0_OUT_OF_RANGE
    if question.stimulated is not None:
        bits = np.where(question.stimulated, bits & _NOT_VALID | _STIMULATED, bits)
    return bits


def is_late(session: Session, question: Question, *, now_ns: int) -> bool:
    """Whether an answer published now comes after its deadline, or without one after the onset frame."""
    if question.deadline_ns:
        return now_ns > question.deadline_ns
    assert question.onset_frame is not None
    return session.window.last >= question.onset_frame
