"""How training samples are varied.

What is drawn at random is drawn on the host, sample by sample, and is the same for all streams;
what that does to the pixels of a batch is the same on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from manystream.data.options import Augmentation
from manystream.presence import upload

# The range of torchvision's RandomResizedCrop, relative to the image's own aspect ratio.
_ASPECT_RATIOS = (3 / 4, 4 / 3)
_HOLE_SIDE = (0.05, 0.25)
_SEEDS = 1 << 24  # Every one of them is exact in float32.

# Rec. 601 luma, as in torchvision's rgb_to_grayscale.
_LUMA = (0.299, 0.587, 0.114)
# Sebastiano Vigna's splitmix64, with its constants as signed numbers.
_GOLDEN = -7046029254386353131
_MIXERS = ((30, -4658895280553007687), (27, -7723592293110705685))
_LAST_SHIFT = 31


class Span(NamedTuple):
    """A stretch of one axis, in fractions of its length."""

    start: float
    stop: float


WHOLE = Span(0.0, 1.0)


@dataclass(frozen=True)
class DepthDraw:
    """What happens to a sample's depth.

    Attributes:
        scale: factor of every reading.
        noise: deviation of the logarithm of each reading's own factor.
        seed: of the noise, below 2²⁴.
        holes: rows and columns of rectangles without a reading, in the cropped image.
    """

    scale: float = 1.0
    noise: float = 0.0
    seed: int = 0
    holes: tuple[tuple[Span, Span], ...] = ()


@dataclass(frozen=True)
class Draw:
    """What was drawn for one sample; by default nothing changes.

    Attributes:
        rows, columns: the crop.
        flipped: whether left and right are swapped.
        color: factors of brightness, contrast and saturation; None leaves color as it is.
        depth: what happens to depth; None leaves it as it is.
    """

    rows: Span = WHOLE
    columns: Span = WHOLE
    flipped: bool = False
    color: tuple[float, float, float] | None = None
    depth: DepthDraw | None = None


def draw(
    augmentation: Augmentation, sizes: Sequence[tuple[int, int]], rng: np.random.Generator
) -> Draw:
    """Draw one sample's augmentation, for images of these heights and widths.

    The same number of values is drawn whichever streams are present. The crop lies on the pixel
    grid of the coarsest image, so streams whose resolutions are multiples of each other stay
    aligned to the pixel.
    """
    area = rng.uniform(*augmentation.scale)
    # Narrowed so that neither side is longer than the image's.
    low, high = max(_ASPECT_RATIOS[0], area), min(_ASPECT_RATIOS[1], 1 / area)
    ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
    rows = _draw_span(rng, min(1.0, math.sqrt(area / ratio)))
    columns = _draw_span(rng, min(1.0, math.sqrt(area * ratio)))
    flipped = bool(rng.random() < augmentation.flip)
    low, high = 1 - augmentation.color, 1 + augmentation.color
    brightness, contrast, saturation = rng.uniform(low, high, size=3).tolist()
    return Draw(
        _snap(rows, min(height for height, _ in sizes)),
        _snap(columns, min(width for _, width in sizes)),
        flipped,
        (brightness, contrast, saturation) if augmentation.color else None,
        _draw_depth(augmentation, rng),
    )


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the random numbers of one sample in one epoch, whichever worker draws them."""
    return np.random.default_rng((seed, epoch, index))


def frame_of(drawn: Draw, height: int, width: int) -> tuple[int, int, int, int, int]:
    """Return a drawn crop's top, bottom, left and right in pixels, and 1 if it is flipped."""
    return (*pixels(drawn.rows, height), *pixels(drawn.columns, width), int(drawn.flipped))


def pixels(span: Span, length: int) -> tuple[int, int]:
    """Return the first pixel of a span, and the one after its last; never none."""
    first = min(round(span.start * length), length - 1)
    return first, max(round(span.stop * length), first + 1)


def _draw_span(rng: np.random.Generator, length: float) -> Span:
    start = rng.uniform(0, 1 - length)
    return Span(start, start + length)


def _snap(span: Span, length: int) -> Span:
    first, last = pixels(span, length)
    return Span(first / length, last / length)


def _draw_depth(augmentation: Augmentation, rng: np.random.Generator) -> DepthDraw | None:
    if not (augmentation.depth_scale or augmentation.depth_noise or augmentation.depth_holes):
        return None
    scale = rng.uniform(1 - augmentation.depth_scale, 1 + augmentation.depth_scale)
    seed, number = int(rng.integers(_SEEDS)), rng.integers(augmentation.depth_holes + 1)
    holes = [[_draw_span(rng, rng.uniform(*_HOLE_SIDE)) for _ in range(2)] for _ in range(number)]
    return DepthDraw(scale, augmentation.depth_noise, seed, tuple((a, b) for a, b in holes))


def jitter_color(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply brightness, then contrast, then saturation; values stay within 0 and 255.

    Contrast blends with the image's mean grey, saturation with each pixel's grey. Images are
    (B, C, H, W), floating point; the factors of the three, (B, 3).
    """
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
    images = (images * brightness).clamp_(0, 255)
    mean = _grey(images).mean(dim=(1, 2, 3), keepdim=True)
    # As lerp has it, which is three times as slow where one number meets an image.
    images = images.sub_(mean).mul_(contrast).add_(mean).clamp_(0, 255)
    return torch.lerp(_grey(images), images, saturation).clamp_(0, 255)


def disturb_depth(depth: Tensor, draws: Sequence[DepthDraw | None], stream: int) -> Tensor:
    """Scale depth, make it noisy and take readings away; what is no reading stays none.

    Depth is (B, C, H, W), floating point; a reading is above 0, and 0 in the holes. The number of
    the stream gives two depth cameras noise of their own.
    """
    drawn = [DepthDraw() if d is None else d for d in draws]
    depth = depth * _column([d.scale for d in drawn], depth)
    if any(d.noise > 0 for d in drawn):
        noise = normal_noise([d.seed for d in drawn], stream, depth)
        depth = depth * (noise * _column([d.noise for d in drawn], depth)).exp()
    return _with_holes(depth, [d.holes for d in drawn])


def normal_noise(seeds: Sequence[int], stream: int, like: Tensor) -> Tensor:
    """Draw nearly normal numbers that depend on seed, stream and pixel alone, not on the device.

    The sum of four uniform 16-bit numbers: mean 0, deviation 1, never beyond 3.47. Seeds, one for
    each of B samples, are below 2²⁴; shape (B, C, H, W), dtype and device are those of ``like``.
    """
    first = upload(torch.tensor([(stream << 56) + (seed << 32) for seed in seeds]), like.device)
    bits = first[:, None] + torch.arange(like[0].numel(), device=like.device)
    bits = bits * _GOLDEN
    for shift, factor in _MIXERS:
        bits = (bits ^ _shifted(bits, shift)) * factor  # Products wrap around.
    bits = bits ^ _shifted(bits, _LAST_SHIFT)
    total = torch.stack([(bits >> shift) & 0xFFFF for shift in (0, 16, 32, 48)]).sum(dim=0)
    deviation = math.sqrt(4 * (65536**2 - 1) / 12)
    return ((total - 2 * 65535).to(like.dtype) / deviation).view_as(like)


def _shifted(numbers: Tensor, by: int) -> Tensor:
    """Shift right and fill with zeros, which torch's shift of signed numbers does not do."""
    return (numbers >> by) & ((1 << (64 - by)) - 1)


def _with_holes(depth: Tensor, holes: Sequence[Sequence[tuple[Span, Span]]]) -> Tensor:
    if not any(holes):
        return depth
    height, width = depth.shape[2:]
    most = max(map(len, holes))
    # Every sample has as many; those it lacks are empty.
    none = (Span(0.0, 0.0), Span(0.0, 0.0))
    filled = [[*of_sample, *[none] * (most - len(of_sample))] for of_sample in holes]
    edges = upload(torch.tensor(filled, dtype=torch.float32), depth.device)  # (B, K, 2, 2)
    inside = (
        _inside(edges[:, :, 0], height)[..., :, None] & _inside(edges[:, :, 1], width)[..., None, :]
    )
    return depth.masked_fill(inside.any(dim=1)[:, None], 0.0)


def _inside(spans: Tensor, length: int) -> Tensor:
    """Tell whether a pixel's centre is in a span; from (B, K, 2) to (B, K, length)."""
    centres = (torch.arange(length, device=spans.device) + 0.5) / length
    return (centres >= spans[..., :1]) & (centres < spans[..., 1:])


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return upload(torch.tensor(values, dtype=like.dtype), like.device).view(-1, 1, 1, 1)


def _grey(images: Tensor) -> Tensor:
    channels = images.shape[1]
    weights = _LUMA if channels == len(_LUMA) else (1 / channels,) * channels
    # One product and two sums in place: a matrix product would not be the same on every device.
    grey = images[:, :1] * weights[0]
    for channel in range(1, channels):
        grey.add_(images[:, channel : channel + 1], alpha=weights[channel])
    return grey
