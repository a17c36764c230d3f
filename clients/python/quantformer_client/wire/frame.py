"""FRAME: the fluorescence of all ROIs at one moment, as contiguous float32."""

from __future__ import annotations

from typing import ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from quantformer_client.errors import ErrorCode, WireError
from quantformer_client.wire.header import (
    ID_LIMIT,
    MAX_ROIS,
    MINOR,
    Flags,
    Header,
    MessageType,
    PayloadFormat,
    pack_header,
)

#: Greatest device time in s, forward or back.
LATEST_S = 1e12
#: Made once, flags as plain numbers: no message is written and read as often, each time by a core that has forgotten how.
_F4 = np.dtype("<f4")
_HAS_NEUROPIL, _HAS_MOTION = int(Flags.HAS_NEUROPIL), int(Flags.HAS_MOTION)


class Frame(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One frame: ``fluorescence`` and ``neuropil`` float32 ``(rois,)``, ``device_s`` seconds on the microscope's clock,
    ``motion`` the shift (dx, dy) in pixels that was corrected. ``roi_hash`` 0 leaves the order of the ROIs unchecked.

    Decoded arrays are read-only views of the received bytes.
    """

    message_type: ClassVar[MessageType] = MessageType.FRAME
    number: int
    device_s: float
    fluorescence: NDArray[np.float32]
    neuropil: NDArray[np.float32] | None = None
    motion: tuple[float, float] | None = None
    roi_hash: int = 0

    def encode(self, *, session: int = 0, request: int = 0, epoch: int = 0, sent_ns: int = 0) -> bytes:
        """The whole message; the arguments are the fields of `Header` that a frame does not know.

        Raises:
            WireError: the arrays disagree in shape, or are not one-dimensional.
        """
        fluorescence = np.ascontiguousarray(self.fluorescence, _F4)
        if fluorescence.ndim != 1 or not 0 < len(fluorescence) <= MAX_ROIS:
            raise WireError(
                ErrorCode.BAD_PAYLOAD,
                f"FRAME: fluorescence has shape {fluorescence.shape}, expected (rois,) with 1 to {MAX_ROIS} ROIs",
            )
        n, flags, motion = len(fluorescence), 0, b""
        payload_bytes, parts = 4 * n, [fluorescence.tobytes()]
        if self.neuropil is not None:
            neuropil = np.ascontiguousarray(self.neuropil, _F4)
            if neuropil.shape != fluorescence.shape:
                raise WireError(
                    ErrorCode.BAD_PAYLOAD,
                    f"FRAME: neuropil has shape {neuropil.shape}, fluorescence {fluorescence.shape}; give one value a ROI",
                )
            flags |= _HAS_NEUROPIL
            payload_bytes += 4 * n
            parts.append(neuropil.tobytes())
        if self.motion is not None:
            flags |= _HAS_MOTION
            motion = np.array(self.motion, _F4).tobytes()
            payload_bytes += len(motion)
        head = pack_header(
            MessageType.FRAME,
            PayloadFormat.FLOAT32,
            payload_bytes,
            session=session,
            flags=flags,
            request=request,
            epoch=epoch,
            frame=self.number,
            device_s=self.device_s,
            sent_ns=sent_ns,
            roi_hash=self.roi_hash,
            count=n,
        )
        return b"".join((head, *parts, motion))

    @classmethod
    def decode(cls, header: Header, payload: memoryview) -> Frame:
        """Read the payload; bytes after the announced arrays are ignored where the sender's minor version is newer.

        Raises:
            WireError: no ROI, no finite device time, or another number of bytes than ``count`` and the flags announce.
        """
        n, flags = header.count, header.flags
        neuropil_at = 4 * n
        motion_at = neuropil_at + (4 * n if flags & _HAS_NEUROPIL else 0)
        wanted = motion_at + (8 if flags & _HAS_MOTION else 0)
        # Of a sender of this version, more bytes are no addition but another dtype: float64 would read as nonsense.
        surplus = len(payload) > wanted and header.minor <= MINOR
        if n == 0 or len(payload) < wanted or surplus:
            raise WireError(
                ErrorCode.BAD_PAYLOAD,
                f"FRAME: {n} ROIs with flags {flags:#x} need {wanted} bytes (and at least one ROI), the payload has "
                f"{len(payload)}; send float32, one value a ROI",
            )
        if not abs(header.device_s) <= LATEST_S:
            raise WireError(
                ErrorCode.BAD_TIME,
                f"FRAME: device time {header.device_s}, expected seconds within {LATEST_S:g} of 0",
            )
        if header.frame >= ID_LIMIT:
            raise WireError(
                ErrorCode.BAD_PAYLOAD, f"FRAME: frame number {header.frame}, expected one below {ID_LIMIT} (2^53)"
            )
        values = np.frombuffer(payload, dtype=_F4, count=wanted // 4)
        return cls(
            number=header.frame,
            device_s=header.device_s,
            fluorescence=values if wanted == neuropil_at else values[:n],
            neuropil=values[n : 2 * n] if flags & _HAS_NEUROPIL else None,
            motion=(float(values[-2]), float(values[-1])) if flags & _HAS_MOTION else None,
            roi_hash=header.roi_hash,
        )
