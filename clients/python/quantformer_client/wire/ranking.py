"""Which of several stimuli an ensemble is expected to answer most: an ANSWER with alternatives, as a ranked list."""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np

from quantformer_client.wire.answer import Answer, Validity


class Ranked(msgspec.Struct, frozen=True, kw_only=True):
    """One stimulus, over the ``rois`` that are known and valid: the mean probability of an active response, and the mean
    forecast ``area`` in dF/F x s from the onset on (None: no forecast was asked). Both are None without such a ROI.
    """

    stimulus: str
    probability: float | None
    area: float | None
    rois: int


def ranking(answer: Answer, *, rate_hz: float, by: Literal["probability", "area"] = "probability") -> list[Ranked]:
    """The stimuli of ``answer``, the one that drives its ROIs most first; ``rate_hz`` is that of the forecast's frames.

    Only ROIs that are known and valid count, as for the trigger's rules. Without one, the order is that of the question.

    Raises:
        ValueError: ranked by area, and the answer holds no forecast.
    """
    if by == "area" and answer.response is None:
        raise ValueError("the answer holds probabilities only; ask with detail='forecast' to rank by area")
    wanted = np.uint8(Validity.VALID | Validity.KNOWN)
    usable = (answer.validity & wanted) == wanted
    count = int(usable.sum())
    found = [
        Ranked(
            stimulus=label,
            probability=float(answer.probability[place, usable].mean(dtype=np.float64)) if count else None,
            area=float(answer.response[place, usable].sum(axis=-1, dtype=np.float64).mean()) / rate_hz
            if count and answer.response is not None
            else None,
            rois=count,
        )
        for place, label in enumerate(answer.stimuli)
    ]
    return sorted(found, key=lambda one: -(getattr(one, by) or 0.0)) if count else found
