"""From a source's image to a row of a prepared array: resized if asked, in its own dtype."""

from __future__ import annotations

import numpy as np

from manystream.data.preprocessing import resize
from manystream.data.source import StreamSpec

Size = tuple[int, int]
"""Height and width in pixels."""


def fit_row(image: np.ndarray, spec: StreamSpec, size: Size | None) -> np.ndarray:
    """Resize an image as training would, and keep its dtype; whole numbers are rounded.

    Args:
        image: shape (H, W, C).
        spec: its stream.
        size: None keeps the image as it is.

    Returns:
        Shape (*size, C), contiguous.
    """
    return np.ascontiguousarray(image) if size is None else resize(image, spec, size)
