"""Crop, flip and resize a whole batch on any device, each sample with a box of its own.

A bilinear resize is a product with one matrix for rows and one for columns, so a batch of different
crops is two batched products, and no sample waits for another. kornia's crops were not taken: they
draw on generators of their own, which would tie what is drawn to the device, and do not antialias.
"""

from __future__ import annotations

import torch
from torch import Tensor


def crop_resize(images: Tensor, boxes: Tensor, flipped: Tensor, size: tuple[int, int]) -> Tensor:
    """Antialiased bilinear resize of each image's box.

    Equal, to rounding, to cutting the box out and calling ``torch.nn.functional.interpolate`` with
    ``mode="bilinear", antialias=True``.

    Args:
        images: shape (B, C, H, W), floating point.
        boxes: top, bottom, left and right in pixels, shape (B, 4).
        flipped: whether left and right are swapped, shape (B,), bool.
        size: height and width of the result.

    Returns:
        Shape (B, C, *size).
    """
    top, bottom, left, right = boxes.to(images.dtype).unbind(1)
    by_row = _weights(top, bottom, images.shape[2], size[0])
    by_column = _weights(left, right, images.shape[3], size[1])
    by_column = torch.where(flipped[:, None, None], by_column.flip(1), by_column)
    num_samples, channels, height, _ = images.shape
    shrunk = images.flatten(1, 2) @ by_column.mT
    return by_row[:, None] @ shrunk.view(num_samples, channels, height, size[1])


def crop_nearest(images: Tensor, boxes: Tensor, flipped: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize each image's box to the nearest pixels, as ``mode="nearest-exact"`` does.

    Args:
        images: shape (B, H, W, C), any dtype that can be indexed.
        boxes: top, bottom, left and right in pixels, shape (B, 4).
        flipped: whether left and right are swapped, shape (B,), bool.
        size: height and width of the result.

    Returns:
        Shape (B, *size, C).
    """
    top, bottom, left, right = boxes.unbind(1)
    rows = top[:, None] + _nearest(bottom - top, size[0])
    columns = left[:, None] + _nearest(right - left, size[1])
    columns = torch.where(flipped[:, None], columns.flip(1), columns)
    sample = torch.arange(len(images), device=images.device)[:, None, None]
    return images[sample, rows[:, :, None], columns[:, None, :]]


def _weights(first: Tensor, last: Tensor, length: int, size: int) -> Tensor:
    """What each pixel of an axis gives to each pixel of the result, shape (B, size, length).

    A triangle as wide as two pixels of the coarser grid, cut off at the box and summing to 1.
    """
    scale = ((last - first) / size)[:, None, None]
    reach = scale.clamp(min=1.0)
    centres = first[:, None, None] + scale * (_count(size, first)[:, None] + 0.5)
    source = _count(length, first) + 0.5
    weights = (1 - (source - centres).abs() / reach).clamp_(min=0)
    inside = (source > first[:, None, None]) & (source < last[:, None, None])
    weights = weights * inside
    return weights / weights.sum(dim=2, keepdim=True)


def _nearest(lengths: Tensor, size: int) -> Tensor:
    """Pixel of an axis of each length that is nearest to each pixel of the result, (B, size)."""
    scale = (lengths.float() / size)[:, None]
    nearest = ((_count(size, scale) + 0.5) * scale).floor().long()
    return nearest.minimum(lengths[:, None].long() - 1)


def _count(length: int, like: Tensor) -> Tensor:
    return torch.arange(length, dtype=like.dtype, device=like.device)
