"""The questions of one session: those that wait for frames, those that stand, and the answers kept for polls."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantformer.bundle import Bundle
from quantformer_client import wire
from quantformer_client.wire import ErrorCode
from quantformer_service.batch import cost_of
from quantformer_service.capture import check_reach, frames_before
from quantformer_service.declaration import Declared
from quantformer_service.engine_settings import SessionLimits
from quantformer_service.questions import HORIZON_S, Alternatives, PhaseTracker, Question, Subjects, alternatives
from quantformer_service.refusal import Refusal
from quantformer_service.stream import Peer
from quantformer_service.window import FrameWindow

#: Answers to onset questions that are kept for POLL, besides the latest of each standing question.
_ANSWERS_KEPT = 8
#: Should frames stop, a question without a deadline is answered from what is there this many s after its onset.
_PATIENCE_S = 1.0


@dataclass(kw_only=True, eq=False)
class Standing:
    """A standing question. It ``waits`` while it has not been asked for the newest frame; ``turn`` is when it was asked
    last, in questions of its session.
    """

    number: int
    stimuli: Alternatives
    subjects: Subjects
    forecast: bool
    baseline: bool
    waits: bool = False
    turn: int = 0

    @property
    def cost(self) -> int:
        """What it takes inference, as `cost_of` counts."""
        return cost_of(self.subjects.rows, forecast=self.forecast)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """An answer that was published: its question, and its bytes. Not its arrays, whose memory inference uses again."""

    question: int
    message: bytearray


class Docket:
    """Questions about ``window``; counts go to ``counters``. ``phases`` hears of every onset that is told."""

    def __init__(
        self,
        *,
        declared: Declared,
        bundle: Bundle,
        window: FrameWindow,
        limits: SessionLimits,
        phases: PhaseTracker,
        counters: Counter[str],
    ) -> None:
        self._declared, self._bundle, self._window, self._limits = declared, bundle, window, limits
        self._phases, self._counters = phases, counters
        self._frames_before = frames_before(bundle, declared)
        self._standing: dict[int, Standing] = {}
        self._answers: deque[Kept] = deque(maxlen=_ANSWERS_KEPT)
        self._latest: dict[int, Kept] = {}
        self._newest: Kept | None = None
        self._turns, self._paused = 0, False
        self.pending: list[Question] = []

    @property
    def standing(self) -> list[int]:
        """Ids of the standing questions."""
        return list(self._standing)

    @property
    def asks(self) -> bool:
        """Whether a standing question is set, or an onset question pending."""
        return bool(self._standing or self.pending)

    def ask(self, onset: wire.Onset, *, number: int, peer: Peer | None, request: int, now_ns: int) -> None:
        """Take an onset question; it is pending until `due` returns it.

        Raises:
            Refusal: it contradicts itself, names what is not known, or lies where there is or will be no window.
        """
        if onset.onset_frame is not None and onset.onset_s is not None:
            raise Refusal(
                ErrorCode.BAD_QUESTION, "ONSET has both onset_frame and onset_s; give one, or neither for now"
            )
        if len(self.pending) >= self._limits.pending:
            raise Refusal(
                ErrorCode.QUEUE_FULL, f"{len(self.pending)} onset questions are pending already; wait for their answers"
            )
        stimuli, subjects = self._asked(onset)
        window, frame = self._window, onset.onset_frame
        if window.empty:
            raise Refusal(ErrorCode.WINDOW_NOT_READY, "no frame has been received; send frames, then ask")
        onset_s = None if onset.onset_s is None else onset.onset_s + onset.display_latency_s
        now = frame is None and onset_s is None
        if now:
            frame = window.last + 1
        moment_s = window.stamp_of(frame) if frame is not None else onset_s
        assert moment_s is not None
        ahead_s = moment_s - window.last_s
        # Both: a frame number far ahead must not reach float arithmetic alone.
        if ahead_s > HORIZON_S or (frame is not None and frame > window.last + HORIZON_S / window.period_s):
            raise Refusal(
                ErrorCode.ONSET_TOO_FAR,
                f"the onset lies {ahead_s:.2f} s after the last frame; at most {HORIZON_S:g} s are taken: ask later",
            )
        onset_frame = frame if frame is not None else window.frame_at(moment_s)
        check_reach(window, onset=onset_frame, declared=self._declared, bundle=self._bundle)
        deadline_ns = 0 if onset.within_s is None else now_ns + int(onset.within_s * 1e9)
        duration_s = onset.duration_s
        if duration_s is None:
            duration_s = self._bundle.recipe.response_frames / self._bundle.recipe.rate_hz
        if not onset.hypothetical:
            self._phases.began(moment_s, duration_s=duration_s, blank=stimuli.blank)
        self.pending.append(
            Question(
                number=number,
                asked=wire.Asked.NOW if now else wire.Asked.ANNOUNCED,
                stimuli=stimuli,
                subjects=subjects,
                forecast=onset.detail == "forecast",
                baseline=onset.baseline,
                onset_frame=frame,
                onset_s=onset_s,
                deadline_ns=deadline_ns,
                expires_ns=deadline_ns or now_ns + int((max(0.0, ahead_s) + _PATIENCE_S) * 1e9),
                peer=peer,
                request=request,
                told_s=math.nan if onset.onset_s is None else onset.onset_s,
                uncertainty_s=onset.uncertainty_s,
                display_latency_s=onset.display_latency_s,
                source=wire.Source.NONE if now else wire.Source[onset.source.upper()],
                hypothetical=onset.hypothetical,
            )
        )
        self._counters["onset_questions"] += 1

    def stand(self, asked: wire.Standing, *, number: int) -> None:
        """Take a standing question.

        Raises:
            Refusal: too many of them, or it names what is not known.
        """
        if len(self._standing) >= self._limits.standing:
            raise Refusal(
                ErrorCode.QUEUE_FULL,
                f"{len(self._standing)} standing questions are set, the most there may be; clear one",
            )
        stimuli, subjects = self._asked(asked)
        self._standing[number] = Standing(
            number=number,
            stimuli=stimuli,
            subjects=subjects,
            forecast=asked.detail == "forecast",
            baseline=asked.baseline,
            waits=self._full and not self._paused,
            turn=self._turns,
        )

    def clear(self, number: int) -> None:
        """End a standing question.

        Raises:
            Refusal: there is none of that number.
        """
        ended = self._standing.pop(number, None)
        if ended is None:
            raise Refusal(ErrorCode.UNKNOWN_QUESTION, f"standing question {number} is not there; DESCRIBE lists them")
        if ended.waits:
            self._counters["standing_dropped"] += 1
        self._latest.pop(number, None)

    def newest_changed(self) -> None:
        """A newer frame is there: each standing question waits for it, and counts as dropped for the one before if it was
        not asked for that.
        """
        if self._standing and self._full:
            for standing in self._standing.values():
                if standing.waits:
                    self._counters["standing_dropped"] += 1
                standing.waits = True

    def pause(self, paused: bool) -> None:
        """The acquisition ended (``paused``) or began; what waited for the newest frame is dropped for it."""
        self._paused = paused
        for standing in self._standing.values():
            if standing.waits:
                self._counters["standing_dropped"] += 1
            standing.waits = False

    @property
    def _full(self) -> bool:
        """Whether a question for the frame after the newest has a window to read."""
        window = self._window
        return not window.empty and window.last + 1 - self._frames_before >= window.oldest

    def take_pending(self) -> list[Question]:
        """All pending questions, which are so no more."""
        taken, self.pending = self.pending, []
        return taken

    def due(self, *, now_ns: int, expected_ns: Callable[[int], int]) -> list[Question]:
        """Take out the pending questions that wait for nothing more, first come first.

        A question is due when the frame before its onset is there, or when the time that an answer of its rows is expected
        to take (``expected_ns``) is all that is left until its deadline.
        """
        ready: list[Question] = []
        waiting: list[Question] = []
        for question in self.pending:
            if question.onset_frame is not None:
                arrived = self._window.last >= question.onset_frame - 1
            else:
                assert question.onset_s is not None
                arrived = self._window.ready_at(question.onset_s)
            begins = arrived or now_ns >= question.expires_ns - expected_ns(question.cost)
            (ready if begins else waiting).append(question)
        self.pending = waiting
        for question in ready:
            question.window_ready_ns = now_ns
        return ready

    def next_begin_ns(self, expected_ns: Callable[[int], int]) -> int | None:
        """The earliest moment at which a pending question must be begun, frames or not; None if none is pending."""
        if not self.pending:
            return None
        return min(question.expires_ns - expected_ns(question.cost) for question in self.pending)

    def next_standing(self, *, now_ns: int, fits: Callable[[int], bool] = lambda _rows: True) -> Question | None:
        """The standing question that has waited longest, as a question for the frame after the newest; None if none waits.

        One of so many rows that it does not fit (``fits``) before something else goes on waiting.
        """
        waiting = [one for one in self._standing.values() if one.waits and fits(one.cost)]
        if not waiting:
            return None
        return self._stood(min(waiting, key=lambda one: one.turn), now_ns=now_ns)

    def take(self, number: int, *, now_ns: int) -> Question | None:
        """A question by its number, as `due` or `next_standing` gave it when it was recorded; None if there is none."""
        for question in self.pending:
            if question.number == number:
                self.pending.remove(question)
                question.window_ready_ns = now_ns
                return question
        standing = self._standing.get(number)
        return None if standing is None else self._stood(standing, now_ns=now_ns)

    def _stood(self, standing: Standing, *, now_ns: int) -> Question:
        """A standing question as one about the frame after the newest."""
        self._turns += 1
        standing.waits, standing.turn = False, self._turns
        self._counters["standing_questions"] += 1
        return Question(
            number=standing.number,
            asked=wire.Asked.STANDING,
            stimuli=standing.stimuli,
            subjects=standing.subjects,
            forecast=standing.forecast,
            baseline=standing.baseline,
            onset_frame=self._window.last + 1,
            window_ready_ns=now_ns,
        )

    def keep(self, answer: wire.Answer, message: bytearray) -> None:
        """Remember an answer, as the bytes that were published, for `poll`."""
        kept = Kept(question=answer.question, message=message)
        self._newest = kept
        if answer.asked != wire.Asked.STANDING:
            self._answers.append(kept)
        elif answer.question in self._standing:
            self._latest[answer.question] = kept

    def poll(self, number: int) -> bytearray:
        """The bytes of the latest answer to one question, or to any (0), to be addressed.

        Raises:
            Refusal: there is none.
        """
        found = self._newest if number == 0 else self._latest.get(number)
        if found is None:
            found = next((kept for kept in reversed(self._answers) if kept.question == number), None)
        if found is not None:
            return bytearray(found.message)
        if number == 0 or number in self._standing or any(one.number == number for one in self.pending):
            raise Refusal(ErrorCode.NO_ANSWER_YET, f"question {number} (0: any) has no answer yet; poll again")
        raise Refusal(
            ErrorCode.UNKNOWN_QUESTION,
            f"question {number} is not standing or pending, and not among the last {_ANSWERS_KEPT} answered",
        )

    def rows(self, rois: list[str] | None) -> NDArray[np.int64]:
        """Indices of ROI ids, of all where None.

        Raises:
            Refusal: an id is not in the session, or is named twice.
        """
        index = self._declared.index
        if rois is None:
            return np.arange(len(index))
        strangers = [name for name in rois if name not in index]
        if strangers:
            raise Refusal(
                ErrorCode.UNKNOWN_ROI,
                f"ROI {strangers[0]!r} is not in the session ({len(strangers)} of {len(rois)} asked); DESCRIBE lists them",
            )
        if len(set(rois)) != len(rois):
            raise Refusal(ErrorCode.BAD_QUESTION, "a ROI is named twice; name each once")
        return np.array([index[name] for name in rois], np.int64)

    def _asked(self, asked: wire.Onset | wire.Standing) -> tuple[Alternatives, Subjects]:
        rois = self.rows(asked.rois)
        stimuli = alternatives(self._bundle, asked.stimuli)
        count, recipe = len(rois) * len(stimuli.labels), self._bundle.recipe
        size = wire.answer_bytes(
            rois=len(rois),
            stimuli=len(stimuli.labels),
            response_frames=recipe.response_frames if asked.detail == "forecast" else 0,
            baseline_frames=recipe.baseline_frames if asked.baseline else 0,
        )
        # What the labels and the header may add is far below one JSON payload.
        most = wire.MAX_MESSAGE - wire.MAX_CONTROL
        if count > self._limits.question_rows or size > most:
            raise Refusal(
                ErrorCode.BAD_QUESTION,
                f"{len(rois)} ROIs x {len(stimuli.labels)} stimuli make {count} rows and an answer of {size} bytes; "
                f"at most {self._limits.question_rows} rows and {most} bytes are taken: ask for less",
            )
        return stimuli, Subjects.of(rois, known=self._declared.neurons.known, stimuli=len(stimuli.labels))
