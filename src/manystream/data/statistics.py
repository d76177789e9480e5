"""Mean and standard deviation of a stream's pixels, whatever images they are in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np

from manystream.data.streams import StreamSpec


@dataclass(frozen=True)
class StreamStatistics:
    """Mean and population standard deviation of a stream, per channel, in stored units.

    Raises:
        ValueError: if the lengths differ or a standard deviation is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(value > 0 for value in self.std):
            raise ValueError(
                f"mean={self.mean} and std={self.std}: expected one mean and one positive "
                "standard deviation per channel; use 1 for a constant channel"
            )


def image_moments(pixels: np.ndarray, spec: StreamSpec) -> np.ndarray:
    """Return count, mean and sum of squared deviations of an image's channels, (3, C), float64.

    Pixels are (H, W, C). In a ``"depth"`` stream only readings count: finite and above 0.
    """
    moments = []
    for values in np.moveaxis(pixels, -1, 0).reshape(pixels.shape[-1], -1).astype(np.float64):
        if spec.kind == "depth":
            values = values[np.isfinite(values) & (values > 0)]
        mean = values.mean() if values.size else 0.0
        moments.append((values.size, mean, np.square(values - mean).sum()))
    return np.array(moments, np.float64).T


def pooled(moments: Iterable[np.ndarray], num_channels: int) -> StreamStatistics:
    """Return the statistics of all images' pixels together, from the moments of each.

    The mean is 0 and the deviation 1 where nothing was counted; a constant's deviation is 1.
    """
    count, mean, m2 = reduce(_merge, moments, np.zeros((3, num_channels)))
    std = np.sqrt(m2 / np.maximum(count, 1))
    # Exactly 0 for a constant: float64 sums of up to 2**29 equal float32 values do not round.
    std[std == 0] = 1
    return StreamStatistics(tuple(mean.tolist()), tuple(std.tolist()))


def _merge(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Join the moments of two sets of pixels, (3, C) each.

    Source: Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983, eq. 2.1.
    """
    (count_a, mean_a, m2_a), (count_b, mean_b, m2_b) = a, b
    count, delta = count_a + count_b, mean_b - mean_a
    weight = count_b / np.maximum(count, 1)
    return np.stack([count, mean_a + delta * weight, m2_a + m2_b + delta**2 * count_a * weight])
