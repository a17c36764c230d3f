"""From a session's window to a slot: which frames a question reads, and what is known of them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from quantformer.bundle import Bundle
from quantformer_client.wire import ErrorCode
from quantformer_service.declaration import Declared
from quantformer_service.inference import Slot
from quantformer_service.questions import Question
from quantformer_service.refusal import Refusal
from quantformer_service.window import FrameWindow

#: Longest stretch of frames in a window, and most of them, that may be missing before an answer counts as degraded:
#: what training saw. The lead is counted apart.
LONGEST_GAP, MOST_MISSING = 8, 10
#: Relative difference of declared and measured rate beyond which answers count as degraded.
RATE_TOLERANCE = 0.05


def frames_before(bundle: Bundle, declared: Declared) -> int:
    """Frames before an onset that its window reads."""
    recipe = bundle.recipe
    if not declared.interpolated:
        return recipe.baseline_frames
    return math.ceil(recipe.baseline_frames / recipe.rate_hz * declared.opened.rate_hz) + 2


def check_reach(window: FrameWindow, *, onset: int, declared: Declared, bundle: Bundle) -> None:
    """Refuse an onset frame whose window begins before the frames held.

    Raises:
        Refusal: it does; the code says whether waiting helps.
    """
    # Interpolation needs no fixed number of frames; `capture` looks at their stamps.
    first = onset - (2 if declared.interpolated else frames_before(bundle, declared))
    if first >= window.oldest:
        return
    found = (
        f"the window of onset frame {onset} begins at frame {first}, frames are held from {window.oldest} on, "
        f"the last is {window.last}"
    )
    if onset > window.last:
        raise Refusal(ErrorCode.WINDOW_NOT_READY, f"{found}; wait until enough frames have been received")
    raise Refusal(ErrorCode.ONSET_BEFORE_BUFFER, f"{found}; ask sooner after the onset")


def capture(question: Question, slot: Slot, *, window: FrameWindow, declared: Declared, bundle: Bundle) -> None:
    """Copy the question's window into a slot, and note its lineage.

    Frames right before the onset that are not there yet (the lead) hold the last value and count as not observed, as the
    trials of training do it.

    Raises:
        Refusal: the frames are not, or no longer, there.
    """
    if window.empty:
        raise Refusal(ErrorCode.WINDOW_NOT_READY, "the acquisition ended before the question could be answered")
    if question.onset_frame is None:
        assert question.onset_s is not None
        question.onset_frame = window.frame_at(question.onset_s)
    onset = question.onset_frame
    anchor_s = window.stamp_of(onset)
    if question.onset_s is None:
        question.onset_s = anchor_s
    check_reach(window, onset=onset, declared=declared, bundle=bundle)
    first, stop = onset - frames_before(bundle, declared), min(onset, window.last + 1)
    if declared.interpolated:
        first = max(first, window.oldest)
    kept, lead = stop - first, onset - stop
    if kept < 2:
        raise Refusal(
            ErrorCode.WINDOW_NOT_READY, f"the last frame is {window.last}, the onset frame {onset}: nothing to read"
        )
    values, stamps, observed = window.view(first, stop)
    if declared.interpolated:
        _check_stamps(stamps[observed], anchor_s=anchor_s, bundle=bundle)
    rows = kept if declared.interpolated else kept + lead
    room = slot.room(rows, window.neurons)
    room[:kept] = values
    if rows > kept:
        room[kept:] = values[-1]
    slot.stamps = stamps.copy()
    slot.observed = observed.copy() if rows == kept else np.append(observed, np.zeros(lead, np.bool_))
    slot.interpolated, slot.anchor_s = declared.interpolated, anchor_s
    slot.neuron = declared.neurons.vectors
    slot.f0_minimum, slot.usual_f0 = declared.neurons.f0_minimum, declared.neurons.usual_f0
    slot.population = declared.neurons.population
    slot.f0_lowest, slot.f0_highest = declared.f0_lowest, declared.f0_highest
    slot.stimulus = question.stimuli.vectors
    slot.row_neuron, slot.row_stimulus = question.subjects.row_neuron, question.subjects.row_stimulus
    slot.forecast, slot.keep_baseline, slot.question = question.forecast, question.baseline, question
    slot.places = None
    question.first_frame, question.last_frame = first, stop - 1
    question.last_frame_s = window.stamp_of(stop - 1)
    question.received_ns = window.received_ns(stop - 1)
    question.lead = lead
    missing = kept - int(np.count_nonzero(observed))
    question.held = missing + lead
    rate_is_off = abs(window.period_s * declared.opened.rate_hz - 1) > RATE_TOLERANCE
    full_of_holes = missing > MOST_MISSING or (missing > LONGEST_GAP and _longest_gap(observed) > LONGEST_GAP)
    question.degraded = rate_is_off or lead > bundle.manifest.longest_lead or full_of_holes


def _check_stamps(stamps: NDArray[np.float64], *, anchor_s: float, bundle: Bundle) -> None:
    grid_s = anchor_s - bundle.recipe.baseline_frames / bundle.recipe.rate_hz
    if len(stamps) < 2 or stamps[0] > grid_s:
        found = f"{stamps[0]:.3f} s" if len(stamps) else "nowhere"
        raise Refusal(
            ErrorCode.WINDOW_NOT_READY,
            f"the window begins at {grid_s:.3f} s, the clean frames at {found}; wait until enough have been received",
        )


def _longest_gap(observed: NDArray[np.bool_]) -> int:
    """The longest stretch of frames that were not observed."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], observed, [True]]).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max())
