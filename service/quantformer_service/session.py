"""One microscope session: what it declared, its window, its questions and its trigger. No sockets and no clock in here.

::

    opened ──frame or start──> acquiring ──stop or abort──> stopped ──start──> acquiring
"""

from __future__ import annotations

import math
from collections import Counter
from enum import StrEnum
from typing import Literal

import numpy as np

from quantformer.bundle import Bundle
from quantformer.signal import subtract_neuropil
from quantformer_client import wire
from quantformer_client.wire import ErrorCode
from quantformer_service.capture import capture, frames_before
from quantformer_service.declaration import Declared
from quantformer_service.docket import Docket
from quantformer_service.engine_settings import SessionLimits
from quantformer_service.inference import Slot
from quantformer_service.questions import PhaseTracker, Question
from quantformer_service.refusal import Refusal
from quantformer_service.trigger import Trigger
from quantformer_service.window import Added, FrameWindow, Mark


class State(StrEnum):
    """Where a session stands."""

    OPENED = "opened"
    ACQUIRING = "acquiring"
    STOPPED = "stopped"


#: Most bytes of one session's window.
LARGEST_WINDOW = 1 << 30


class Session:
    """A session that OPEN made; see the module for its states.

    Raises:
        Refusal: its window would be too large.
    """

    def __init__(
        self, number: int, *, declared: Declared, bundle: Bundle, limits: SessionLimits, trigger: Trigger
    ) -> None:
        self.number, self.declared, self.trigger = number, declared, trigger
        self._bundle, self._limits = bundle, limits
        opened = declared.opened
        capacity = frames_before(bundle, declared) + math.ceil(limits.history_s * opened.rate_hz)
        if 8 * capacity * len(opened.rois) > LARGEST_WINDOW:
            raise Refusal(
                ErrorCode.BAD_SESSION,
                f"{len(opened.rois)} ROIs at {opened.rate_hz:g} Hz need a window of "
                f"{8 * capacity * len(opened.rois)} bytes, at most {LARGEST_WINDOW} are given; open with fewer ROIs",
            )
        self.window = FrameWindow(
            neurons=len(opened.rois),
            capacity=capacity,
            reorder_frames=limits.reorder_frames,
            period_s=1 / opened.rate_hz,
        )
        self.state = State.OPENED
        self.counters: Counter[str] = Counter()
        self.phases = PhaseTracker()
        self.docket = Docket(
            declared=declared,
            bundle=bundle,
            window=self.window,
            limits=limits,
            phases=self.phases,
            counters=self.counters,
        )
        self.used_ns = 0
        #: Counts acquisitions, so that an answer to a question of an earlier one can be told.
        self.acquisitions = 0
        self._stimulated_until_s = np.full(len(opened.rois), -math.inf)
        #: The latest of them: afterwards no ROI need be looked at.
        self._last_stimulated_s = -math.inf
        self._shift_s = {"start": 0.0, "middle": 0.5, "end": 1.0}[opened.signal.stamp] / opened.rate_hz
        self._offset, self._corrected = np.float32(opened.signal.offset), opened.signal.corrected
        #: Whether values are taken as they are sent.
        self._as_sent = self._corrected and not opened.signal.offset

    # --- frames and events --------------------------------------------------------------------------------------------

    def frame(self, frame: wire.Frame, *, received_ns: int) -> Added:
        """Take a frame.

        Raises:
            Refusal: it is not what the session declared, or the window does not take it.
        """
        if self.state == State.STOPPED:
            raise Refusal(
                ErrorCode.NOT_ACQUIRING, f"frame {frame.number} after acquisition stop; send ACQUISITION start first"
            )
        found, expected = len(frame.fluorescence), self.window.neurons
        if found != expected:
            raise Refusal(
                ErrorCode.WRONG_NEURON_COUNT,
                f"frame {frame.number} has {found} ROIs, the session opened with {expected}; "
                "open a new session for another set of ROIs",
            )
        if frame.roi_hash not in (0, self.declared.roi_hash):
            raise Refusal(
                ErrorCode.WRONG_ROI_MAP,
                f"frame {frame.number} carries ROI-map hash {frame.roi_hash:#x}, the session has "
                f"{self.declared.roi_hash:#x}; open a new session with the ROIs in the order that is sent",
            )
        corrected, offset, values = self._corrected, self._offset, frame.fluorescence
        if not corrected and frame.neuropil is None:
            raise Refusal(
                ErrorCode.MISSING_NEUROPIL,
                f"frame {frame.number} has no neuropil, the session declared fluorescence that is not corrected; "
                "send it, or open the session with corrected true",
            )
        if not self._as_sent:
            with np.errstate(all="ignore"):  # a client may send infinities; they end as an invalid neuron
                if offset:
                    values = values - offset
                if not corrected and frame.neuropil is not None:
                    neuropil = frame.neuropil - offset if offset else frame.neuropil
                    values = subtract_neuropil(values, neuropil=neuropil, factor=self.declared.factor)
        added = self.window.add(
            frame.number, device_s=frame.device_s - self._shift_s, values=values, received_ns=received_ns
        )
        self.state = State.ACQUIRING
        self.counters["frames"] += 1
        if added.gap:
            self.counters["gaps"] += 1
            self.counters["gap_frames"] += added.gap
        if added.reordered:
            self.counters["reordered_frames"] += 1
        else:
            self.docket.newest_changed()
        return added

    def acquisition(self, event: Literal["start", "abort", "stop"]) -> list[Question]:
        """Follow the microscope; returns pending questions that will have no window any more."""
        self.counters[f"acquisition_{event}"] += 1
        lost = self.docket.take_pending()
        self.docket.pause(event != "start")
        self.state = State.ACQUIRING if event == "start" else State.STOPPED
        if event in ("start", "abort"):
            self.acquisitions += 1
            self.window.reset()
            self.phases.reset()
            self._stimulated_until_s.fill(-math.inf)
            self._last_stimulated_s = -math.inf
        return lost

    def stimulation(self, event: wire.Stimulation) -> None:
        """Light was delivered: leave its frames out, and keep its ROIs invalid until their transient has decayed.

        Raises:
            Refusal: neither or both of frames and times, a stretch that ends before it begins, an unknown ROI.
        """
        by_frame = event.first_frame is not None and event.last_frame is not None
        by_time = event.start_s is not None and event.duration_s is not None
        if by_frame == by_time:
            raise Refusal(
                ErrorCode.BAD_QUESTION,
                "STIMULATION needs first_frame and last_frame, or start_s and duration_s, not both",
            )
        rois = self.docket.rows(event.rois)
        if by_frame:
            assert event.first_frame is not None
            assert event.last_frame is not None
            if event.last_frame < event.first_frame:
                raise Refusal(
                    ErrorCode.BAD_QUESTION,
                    f"STIMULATION of frames {event.first_frame} to {event.last_frame}; the last is before the first",
                )
            if self.window.empty:
                raise Refusal(
                    ErrorCode.WINDOW_NOT_READY,
                    "STIMULATION by frame number before the first frame has no time; give start_s and duration_s",
                )
            mark = Mark(first=event.first_frame, last=event.last_frame)
            end_s = self.window.stamp_of(event.last_frame) + self.window.period_s
        else:
            assert event.start_s is not None
            assert event.duration_s is not None
            end_s = event.start_s + event.duration_s
            mark = Mark(start_s=event.start_s, end_s=end_s)
        self.counters["stimulations"] += 1
        if event.blanked:
            self.counters["contaminated_frames"] += self.window.mark(mark)
        until_s = end_s + self._limits.stimulation_decay_s
        self._stimulated_until_s[rois] = np.maximum(self._stimulated_until_s[rois], until_s)
        self._last_stimulated_s = max(self._last_stimulated_s, until_s)

    # --- questions ----------------------------------------------------------------------------------------------------

    def capture(self, question: Question, slot: Slot) -> None:
        """Copy the question's window into a slot, and note its lineage, phase and stimulated ROIs.

        Raises:
            Refusal: the frames are not, or no longer, there.
        """
        capture(question, slot, window=self.window, declared=self.declared, bundle=self._bundle)
        question.acquisition = self.acquisitions
        if slot.anchor_s < self._last_stimulated_s:
            question.stimulated = slot.anchor_s < self._stimulated_until_s[question.rois]
        # What is only asked about begins nothing: its moment lies in the phase that what was told makes.
        supposed = question.asked == wire.Asked.STANDING or question.hypothetical
        question.phase = self.phases.at(slot.anchor_s) if supposed else wire.Phase.ONSET

    def next_frame_ns(self, now_ns: int) -> int | None:
        """When the next frame is expected to come in; None where none came for two periods, or none is to come."""
        if self.state != State.ACQUIRING or self.window.empty:
            return None
        last_ns, period_ns = self.window.received_ns(self.window.last), int(self.window.period_s * 1e9)
        return None if now_ns > last_ns + 2 * period_ns else last_ns + period_ns

    # --- what it is ---------------------------------------------------------------------------------------------------

    @property
    def phase(self) -> wire.Phase:
        """The phase that a standing question would be asked in."""
        return (
            wire.Phase.SPONTANEOUS if self.window.empty else self.phases.at(self.window.stamp_of(self.window.last + 1))
        )

    def describe(self) -> wire.Description:
        """What OPEN said, and where the session stands."""
        opened = self.declared.opened
        return wire.Description(
            subject=opened.subject,
            rois=opened.rois,
            known=self.declared.neurons.known.tolist(),
            rate_hz=opened.rate_hz,
            signal=opened.signal,
            interpolated=self.declared.interpolated,
            state=self.state.value,
            phase=self.phase.name.lower(),
            last_frame=max(self.window.last, 0),
            buffer_frames=self.window.capacity,
            standing=self.docket.standing,
            counters=dict(self.counters),
        )

    def status(self) -> wire.SessionStatus:
        """The session in STATUS."""
        return wire.SessionStatus(
            session=self.number,
            subject=self.declared.opened.subject,
            state=self.state.value,
            rois=self.window.neurons,
            rate_hz=self.declared.opened.rate_hz,
            last_frame=max(self.window.last, 0),
            trigger=self.trigger.state.value,
            counters=dict(self.counters),
        )
