"""Describe the images of a stimulus by a few numbers, so that a model can relate images it has seen to new ones.

An image is cut into 4 x 7 blocks (rows x columns; on the Allen screen about 24 x 17 degrees each). ``image_0`` to ``image_27``
are the blocks' mean luminance, ``image_28`` to ``image_55`` the standard deviation of the pixels in them, row by row. Both
are in units of the standard deviation of all pixels of the stack, the mean from the mean of all: this needs no knowledge
of the stack's grey levels, and for sparse noise the two are the spots' balance and number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantformer.errors import RecordingError

ROWS, COLUMNS = 4, 7
#: Far more than any stack holds (9,000 images; 918 x 1174 pixels): what a damaged file may not make us allocate.
MOST_IMAGES, MOST_PIXELS = 2**17, 2**25
NAMES = tuple(f"image_{index}" for index in range(2 * ROWS * COLUMNS))


def image_features(stack: Any, *, where: str) -> NDArray[np.float64]:
    """Features ``(images, 56)`` of a stack ``(images, height, width)``, an array or an HDF5 dataset, read one by one.

    Raises:
        RecordingError: the stack has another shape, images smaller than 4 x 7 or none, or pixels that are not finite numbers.
    """
    if (
        len(stack.shape) != 3
        or stack.shape[0] < 1
        or stack.shape[1] < ROWS
        or stack.shape[2] < COLUMNS
        or stack.dtype.kind not in "biuf"
    ):
        raise RecordingError(
            f"{where} holds {stack.dtype} {tuple(stack.shape)}, expected numbers (images, height, width) "
            f"of at least one image and {ROWS} x {COLUMNS} pixels"
        )
    images, height, width = stack.shape
    if images > MOST_IMAGES or height * width > MOST_PIXELS:
        raise RecordingError(f"{where} claims {images} images of {height} x {width}, more than are read")
    top = np.arange(ROWS) * height // ROWS
    left = np.arange(COLUMNS) * width // COLUMNS
    pixels = np.outer(np.diff(top, append=height), np.diff(left, append=width)).astype(np.float64)
    total = np.empty((images, ROWS, COLUMNS))
    squares = np.empty((images, ROWS, COLUMNS))
    with np.errstate(over="ignore", invalid="ignore"):  # what does not stay finite is refused below
        for index in range(images):
            image = np.asarray(stack[index], dtype=np.float64)
            total[index] = np.add.reduceat(np.add.reduceat(image, top, axis=0), left, axis=1)
            squares[index] = np.add.reduceat(np.add.reduceat(image * image, top, axis=0), left, axis=1)
    if not np.isfinite(squares).all():
        raise RecordingError(f"{where} has pixels that are not finite numbers")
    mean = total.sum() / (images * height * width)
    spread = float(np.sqrt(max(squares.sum() / (images * height * width) - mean**2, 0.0)))
    block_mean = total / pixels
    block_spread = np.sqrt(np.maximum(squares / pixels - block_mean**2, 0.0))
    # A stack of equal images says nothing; its features are zero, not the quotient of two rounding errors.
    scale = 1.0 / spread if spread > 1e-6 * max(abs(mean), 1e-12) else 0.0
    return np.concatenate([(block_mean - mean) * scale, block_spread * scale], axis=1).reshape(images, -1)
