"""From a raw image of any stream to a small picture and a line about what it shows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib import colormaps

from manystream.data.source import StreamSpec

_LONGEST_SIDE = 160
_NO_READING = (150, 150, 150)
# Single wild readings would leave everything else one color.
_PERCENTILES = (2, 98)


class Picture(NamedTuple):
    """A picture, shape (H, W, 3), uint8, and its caption."""

    pixels: np.ndarray
    caption: str


def picture(image: np.ndarray, spec: StreamSpec) -> Picture:
    """Make an image visible.

    Color stays as it is. Depth is color-mapped between the 2nd and 98th percentile of its readings,
    which the caption names with their unit; grey is no reading. Of other streams the first three
    channels, or the first, are stretched between their percentiles.

    Args:
        image: shape (H, W, C), as stored.
        spec: its stream.
    """
    small = _shrunk(image)
    if spec.kind == "depth":
        return _depth_picture(small[..., 0], spec)
    if spec.kind == "color" and image.dtype == np.uint8:
        return Picture(_three_channels(small), "")
    low, high = _range(small[np.isfinite(small)])
    return Picture(
        _three_channels(_stretched(small, low, high)), f"{_span(low, high)}, {spec.channels} ch."
    )


def _shrunk(image: np.ndarray) -> np.ndarray:
    step = -(-max(image.shape[:2]) // _LONGEST_SIDE)
    return image[::step, ::step]


def _depth_picture(depth: np.ndarray, spec: StreamSpec) -> Picture:
    valid = np.isfinite(depth) & (depth > 0)
    low, high = _range(depth[valid])
    mapped = colormaps["viridis"](_stretched(depth, low, high))[..., :3] * 255
    pixels = np.where(valid[..., None], mapped, _NO_READING).astype(np.uint8)
    if not valid.any():
        return Picture(pixels, "no reading")
    return Picture(pixels, f"{_span(low, high)} {spec.unit or 'as stored'}{_lost(valid)}")


def _lost(valid: np.ndarray) -> str:
    share = 1 - valid.mean()
    return f", {share:.0%} none" if share >= 0.005 else ""


def _range(values: np.ndarray) -> tuple[float, float]:
    if not values.size:
        return 0.0, 0.0
    low, high = np.percentile(values, _PERCENTILES)
    return float(low), float(high)


def _span(low: float, high: float) -> str:
    digits = 0 if high >= 100 else 2
    return f"{low:.{digits}f} to {high:.{digits}f}"


def _stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values as uint8, with ``low`` at 0 and ``high`` at 255."""
    clean = np.nan_to_num(values.astype(np.float32), nan=low, posinf=high, neginf=low)
    stretched = (clean - low) / (high - low) if high > low else np.full_like(clean, 0.5)
    return (stretched.clip(0, 1) * 255).astype(np.uint8)


def _three_channels(pixels: np.ndarray) -> np.ndarray:
    return pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, axis=-1)
