"""From a computed slot to an ANSWER: shapes, validity, lineage and flags."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantformer.bundle import Bundle
from quantformer_client import wire
from quantformer_service.inference import Slot
from quantformer_service.questions import Question, covered
from quantformer_service.session import Session

_ZERO, _VALID, _KNOWN = np.uint8(0), np.uint8(wire.Validity.VALID), np.uint8(wire.Validity.KNOWN)
_INVALID_F0, _STIMULATED = np.uint8(wire.Validity.INVALID_F0), np.uint8(wire.Validity.STIMULATED)
_F0_OUT_OF_RANGE = np.uint8(wire.Validity.F0_OUT_OF_RANGE)


class Answering:
    """Makes the answers of one bundle."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bytes.fromhex(bundle.hash)
        self._covered = {phase: covered(bundle, phase) for phase in wire.Phase}

    def answer(self, session: Session, question: Question, slot: Slot) -> wire.Answer:
        """The answer, not published yet; its arrays may be views of the slot."""
        neurons, rois = session.declared.neurons, question.rois
        usable, f0 = slot.usable[rois], slot.f0[rois]
        low, high = neurons.f0_range[rois].T
        bits: NDArray[np.uint8] = np.where(usable, _ZERO, _INVALID_F0)
        bits |= np.where(neurons.known[rois], _KNOWN, _ZERO)
        bits |= np.where(usable & ~question.stimulated, _VALID, _ZERO)
        bits |= np.where(question.stimulated, _STIMULATED, _ZERO)
        with np.errstate(invalid="ignore"):
            bits |= np.where(usable & ((f0 < low) | (f0 > high)), _F0_OUT_OF_RANGE, _ZERO)
        assert question.onset_frame is not None
        assert question.onset_s is not None
        flags = wire.Flags(0)
        if question.degraded:
            flags |= wire.Flags.DEGRADED
        if not self._covered[question.phase]:
            flags |= wire.Flags.OUT_OF_PHASE
        if question.hypothetical:
            flags |= wire.Flags.HYPOTHETICAL
        count, n = len(question.stimuli.labels), len(rois)
        shaped = {
            name: None if array is None else array.reshape(count, n, -1)
            for name, array in (("response", slot.response), ("low", slot.low), ("high", slot.high))
        }
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
            rois=rois.astype(np.uint32),
            validity=bits,
            probability=slot.probability.reshape(count, n),
            **shaped,
            baseline=slot.baseline[rois] if question.baseline else None,
            told_s=question.told_s,
            uncertainty_s=question.uncertainty_s,
            display_latency_s=question.display_latency_s,
            source=question.source,
            flags=flags,
        )


def is_late(session: Session, question: Question, *, now_ns: int) -> bool:
    """Whether an answer published now comes after its deadline, or without one after the onset frame."""
    if question.deadline_ns:
        return now_ns > question.deadline_ns
    assert question.onset_frame is not None
    return session.window.last >= question.onset_frame
