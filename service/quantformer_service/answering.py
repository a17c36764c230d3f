"""From a captured question and its slot to an ANSWER: shapes, validity, lineage and flags."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantformer.bundle import Bundle
from quantformer_client import wire
from quantformer_service.inference import Slot
from quantformer_service.questions import Question, covered
from quantformer_service.session import Session

_STIMULATED, _NOT_VALID = np.uint8(wire.Validity.STIMULATED), np.uint8(0xFF & ~wire.Validity.VALID)
_TO_COME = np.empty((0, 0), np.float32)
_F0_OUT_OF_RANGE = np.uint8(wire.Validity.F0_OUT_OF_RANGE)


class Answering:
    """Makes the answers of one bundle."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle, self._ends = bytes.fromhex(bundle.hash), bundle.interval_ends
        self._response_frames, self._baseline_frames = bundle.recipe.response_frames, bundle.recipe.baseline_frames
        self._flags = {phase: wire.Flags(0) if covered(bundle, phase) else wire.Flags.OUT_OF_PHASE for phase in wire.Phase}

    def draft(self, question: Question, *, session: int = 0, epoch: int = 0) -> wire.Draft:
        """The answer of a captured question, all of it but what inference finds."""
        assert question.onset_frame is not None
        assert question.onset_s is not None
        flags = self._flags[question.phase]
        if question.degraded:
            flags |= wire.Flags.DEGRADED
        if question.hypothetical:
            flags |= wire.Flags.HYPOTHETICAL
        answer = wire.Answer(
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
            submitted_ns=0,
            done_ns=0,
            published_ns=0,
            deadline_ns=question.deadline_ns,
            bundle=self._bundle,
            rois=question.subjects.numbers,
            validity=question.subjects.usable,
            probability=_TO_COME,
            told_s=question.told_s,
            uncertainty_s=question.uncertainty_s,
            display_latency_s=question.display_latency_s,
            source=question.source,
            flags=flags,
        )
        draft = answer.draft(
            response_frames=self._response_frames if question.forecast else 0,
            baseline_frames=self._baseline_frames if question.baseline else 0,
            session=session,
            epoch=epoch,
        )
        if draft.answer.ends is not None:
            draft.answer.ends[:] = self._ends
        return draft

    @staticmethod
    def lay_out(draft: wire.Draft, slot: Slot) -> None:
        """Let inference, which is at work on ``slot``, write its forecast into the draft itself."""
        answer = draft.answer
        if answer.response is not None and answer.scale is not None:
            slot.places = answer.response.reshape(-1, answer.response.shape[-1]), answer.scale.reshape(-1)

    def fill(self, draft: wire.Draft, question: Question, slot: Slot) -> None:
        """Write into the answer what inference found, and has not written there itself."""
        answer = draft.answer
        count, n = answer.probability.shape
        answer.validity[:] = _validity(question, slot)
        answer.probability[:] = slot.probability.reshape(count, n)
        if not slot.in_place:
            for place, found in ((answer.response, slot.response), (answer.scale, slot.scale)):
                if place is not None:
                    assert found is not None, "a forecast was asked for, and inference made none"
                    place[:] = found.reshape(place.shape)
        if answer.baseline is not None:
            answer.baseline[:] = slot.baseline[question.rois]


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
