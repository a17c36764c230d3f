"""What OPEN declares, checked against itself and the bundle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantformer.bundle import Bundle, NeuronRows
from quantformer.errors import DataError
from quantformer.signal import needs_interpolation
from quantformer_client import wire
from quantformer_client.wire import ErrorCode
from quantformer_service.refusal import Refusal

#: Frames a second beyond which a declared rate is a mistake.
HIGHEST_HZ = 1000.0
#: Stands in for the id of a ROI whose match is too poor; no bundle knows it.
_UNMATCHED = "\0unmatched"


@dataclass(frozen=True, kw_only=True, eq=False)
class Declared:
    """OPEN after its checks: the rows of the bundle, the range of F0 that training saw and the neuropil ``factor`` float32
    ``(rois,)``, whether the rate is ``interpolated``, the hash that FRAMEs may carry, and the ``index`` of each ROI id.
    """

    opened: wire.Open
    neurons: NeuronRows
    f0_lowest: NDArray[np.float64]
    f0_highest: NDArray[np.float64]
    factor: NDArray[np.float32]
    interpolated: bool
    roi_hash: int
    index: Mapping[str, int]


def declare(opened: wire.Open, bundle: Bundle) -> Declared:
    """Check what OPEN declares against itself and the bundle.

    Raises:
        Refusal: doubled ids, lists of the wrong length, a rate that cannot be used, unknown neurons.
    """
    rois, signal = opened.rois, opened.signal
    if len(set(rois)) != len(rois):
        twice = next(name for name, count in Counter(rois).items() if count > 1)
        raise Refusal(ErrorCode.BAD_SESSION, f"ROI id {twice!r} occurs twice; ids must be unique")
    for name, given in (("match_confidence", opened.match_confidence), ("neuropil_factor", signal.neuropil_factor)):
        if isinstance(given, list) and len(given) != len(rois):
            raise Refusal(ErrorCode.BAD_SESSION, f"{name} has {len(given)} values for {len(rois)} ROIs; give one a ROI")
    try:
        interpolated = needs_interpolation(opened.rate_hz, accept_slow=opened.accept_slow)
    except DataError as error:
        raise Refusal(ErrorCode.BAD_SESSION, str(error)) from error
    if opened.rate_hz > HIGHEST_HZ:
        raise Refusal(ErrorCode.BAD_SESSION, f"{opened.rate_hz} Hz; at most {HIGHEST_HZ:g} frames a second are taken")
    ids = list(rois)
    if opened.match_confidence is not None:
        poor = [confidence < opened.minimum_confidence for confidence in opened.match_confidence]
        if any(poor) and opened.unknown == "refuse":
            names = [name for name, bad in zip(rois, poor, strict=True) if bad]
            raise Refusal(
                ErrorCode.UNKNOWN_NEURON,
                f"{len(names)} ROIs match with less than {opened.minimum_confidence:g}: {', '.join(names[:5])}; "
                "leave them out, or ask for unknown ones to be marked",
            )
        ids = [_UNMATCHED if bad else name for name, bad in zip(rois, poor, strict=True)]
    try:
        neurons = bundle.neurons(ids, unknown=opened.unknown)
    except DataError as error:
        raise Refusal(ErrorCode.UNKNOWN_NEURON, str(error)) from error
    lowest, highest = np.ascontiguousarray(neurons.f0_range.T)
    factor = np.broadcast_to(np.asarray(signal.neuropil_factor, np.float32), (len(rois),))
    return Declared(
        opened=opened,
        neurons=neurons,
        f0_lowest=lowest,
        f0_highest=highest,
        factor=factor,
        interpolated=interpolated,
        roi_hash=wire.roi_map_hash(rois),
        index={name: row for row, name in enumerate(rois)},
    )
