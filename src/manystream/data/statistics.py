"""Mean and standard deviation of a stream's pixels, exact however the images are grouped."""

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


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and sum of squared deviations of each channel, shape (C,) each, float64."""

    count: np.ndarray
    mean: np.ndarray
    m2: np.ndarray

    def statistics(self) -> StreamStatistics:
        """Return mean and deviation: 0 and 1 where nothing was counted; 1 for a constant's."""
        std = np.sqrt(self.m2 / np.maximum(self.count, 1))
        # Exactly 0 for a constant: float64 sums of up to 2**29 equal float32 values do not round.
        std[std == 0] = 1
        return StreamStatistics(tuple(self.mean.tolist()), tuple(std.tolist()))


def image_moments(pixels: np.ndarray, spec: StreamSpec) -> Moments:
    """Sum up one image; in a ``"depth"`` stream only readings count: finite and above 0.

    Args:
        pixels: shape (H, W, C).
        spec: the image's stream.
    """
    channels = np.moveaxis(pixels, -1, 0).reshape(pixels.shape[-1], -1).astype(np.float64)
    counted = [_readings(values) if spec.kind == "depth" else values for values in channels]
    return Moments(*np.array([_channel_moments(values) for values in counted]).T)


def merge_moments(parts: Iterable[Moments], num_channels: int) -> Moments:
    """Join the moments of all parts' pixels together; counts are 0 if there is no part.

    Source: Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983, eq. 2.1.
    """
    return reduce(_merge, parts, Moments(*np.zeros((3, num_channels))))


def _readings(values: np.ndarray) -> np.ndarray:
    valid = np.isfinite(values) & (values > 0)
    return np.asarray(values[valid])


def _channel_moments(values: np.ndarray) -> tuple[float, float, float]:
    if values.size == 0:
        return 0.0, 0.0, 0.0
    mean = values.mean()
    return float(values.size), float(mean), float(np.square(values - mean).sum())


def _merge(a: Moments, b: Moments) -> Moments:
    count = a.count + b.count
    weight = b.count / np.maximum(count, 1)
    delta = b.mean - a.mean
    return Moments(count, a.mean + delta * weight, a.m2 + b.m2 + delta**2 * a.count * weight)
