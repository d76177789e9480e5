"""Changes of pixels' values, sample by sample in a batch, the same on every device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from manystream.data.augmentation import DepthDraw, Span
from manystream.presence import upload

# Rec. 601 luma, as in torchvision's rgb_to_grayscale.
_LUMA = (0.299, 0.587, 0.114)
# Sebastiano Vigna's splitmix64, with its constants as signed numbers.
_GOLDEN = -7046029254386353131
_MIXERS = ((30, -4658895280553007687), (27, -7723592293110705685))
_LAST_SHIFT = 31


def jitter_color(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply brightness, then contrast, then saturation; values stay within 0 and 255.

    Contrast blends with the image's mean grey, saturation with each pixel's grey.

    Args:
        images: shape (B, C, H, W), floating point.
        factors: of brightness, contrast and saturation, shape (B, 3).
    """
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
    images = (images * brightness).clamp_(0, 255)
    mean = _grey(images).mean(dim=(1, 2, 3), keepdim=True)
    # As lerp has it, which is three times as slow where one number meets an image.
    images = images.sub_(mean).mul_(contrast).add_(mean).clamp_(0, 255)
    return torch.lerp(_grey(images), images, saturation).clamp_(0, 255)


def disturb_depth(depth: Tensor, draws: Sequence[DepthDraw | None], stream: int) -> Tensor:
    """Scale depth, make it noisy and take readings away; what is no reading stays none.

    Args:
        depth: shape (B, C, H, W), floating point; a reading is above 0, and 0 in the holes.
        draws: what happens to each of the B samples.
        stream: number of the stream, so that two depth cameras have noise of their own.
    """
    drawn = [DepthDraw() if d is None else d for d in draws]
    depth = depth * _column([d.scale for d in drawn], depth)
    if any(d.noise > 0 for d in drawn):
        noise = normal_noise([d.seed for d in drawn], stream, depth)
        depth = depth * (noise * _column([d.noise for d in drawn], depth)).exp()
    return _with_holes(depth, [d.holes for d in drawn])


def normal_noise(seeds: Sequence[int], stream: int, like: Tensor) -> Tensor:
    """Nearly normal numbers that depend on seed, stream and pixel alone, not on the device.

    The sum of four uniform 16-bit numbers: mean 0, deviation 1, never beyond 3.47.

    Args:
        seeds: one for each of B samples, below 2²⁴.
        stream: number of the stream.
        like: gives the shape (B, C, H, W), the dtype and the device.
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
    """Whether a pixel's centre is in a span; from (B, K, 2) to (B, K, length)."""
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
