"""A convolution of few channels with stride 2, rewritten for hardware that wants many.

Two by two pixels become channels, and the kernel follows: a 7×7 convolution with stride 2 on
(3, H, W) is a 4×4 convolution with stride 1 on (12, H/2, W/2), with the same products and zeros
beside them. Channels are padded to what matrix units take at once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from manystream.functional import remat

_FEW = 4
_CHANNELS_AT_ONCE = 8


def has_few_channels(x: Tensor, weight: Tensor, stride: int, padding: int) -> bool:
    """Whether the rewriting applies and serves.

    It does on CUDA, for images that want no gradient and have even sides. For a 7×7 kernel of
    stride 2 and 3 and 1 channels in bfloat16, forward and gradient of the kernel took a third of
    the time on an H200.
    """
    kernel_size = weight.shape[-1]
    return (
        x.is_cuda
        and not x.requires_grad
        and x.shape[1] <= _FEW
        and stride == 2
        and kernel_size == weight.shape[-2]
        and padding <= kernel_size // 2
        and kernel_size > 2
        and x.shape[2] % 2 == 0
        and x.shape[3] % 2 == 0
        and x.shape[0] > 0
    )


def few_channels_conv2d(x: Tensor, weight: Tensor, padding: int, dtype: torch.dtype) -> Tensor:
    """``F.conv2d(x, weight, stride=2, padding=padding)`` in a dtype, by way of larger pixels.

    While recording, the rearranged images are made again in the backward pass, not kept.

    Args:
        x: shape (B, C, H, W), H and W even; needs no gradient.
        weight: shape (C', C, k, k).
        padding: zero padding.
        dtype: what to compute in.

    Returns:
        Shape (B, C', H', W').
    """
    kernel_size = weight.shape[-1]
    before = padding + padding % 2  # zeros before the image, so that windows begin at even pixels
    taps = (kernel_size + padding % 2 + 1) // 2
    sides = [(side + 2 * padding - kernel_size) // 2 + taps for side in x.shape[2:]]

    def rearrange(x: Tensor) -> Tensor:
        return _larger_pixels(x, before // 2, sides[0], sides[1], dtype)

    images = rearrange(x)
    remat.register(images, rearrange, x)
    kernel = _larger_taps(remat.cast(weight, dtype), padding % 2, taps, images.shape[1])
    return F.conv2d(images, kernel)


def _larger_pixels(x: Tensor, before: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """(B, C, H, W) as (B, 4C and more, height, width), zeros around and beside it."""
    batch, channels = x.shape[:2]
    padded = -(-4 * channels // _CHANNELS_AT_ONCE) * _CHANNELS_AT_ONCE
    images = torch.zeros((batch, height, width, padded), dtype=dtype, device=x.device)
    rows, columns = min(x.shape[2] // 2, height - before), min(x.shape[3] // 2, width - before)
    target = images[:, before : before + rows, before : before + columns, : 4 * channels]
    source = x.permute(0, 2, 3, 1)[:, : 2 * rows, : 2 * columns]
    source = source.reshape(batch, rows, 2, columns, 2, channels).permute(0, 1, 3, 2, 4, 5)
    target.unflatten(-1, (2, 2, channels)).copy_(source)
    return images.permute(0, 3, 1, 2)


def _larger_taps(weight: Tensor, before: int, taps: int, channels: int) -> Tensor:
    """(C', C, k, k) as (C', channels, taps, taps), to meet :func:`_larger_pixels`."""
    out_channels, in_channels, kernel_size, _ = weight.shape
    after = 2 * taps - kernel_size - before
    even = F.pad(weight, (before, after, before, after))
    even = even.reshape(out_channels, in_channels, taps, 2, taps, 2).permute(0, 3, 5, 1, 2, 4)
    kernel = even.reshape(out_channels, 4 * in_channels, taps, taps)
    kernel = F.pad(kernel, (0, 0, 0, 0, 0, channels - 4 * in_channels))
    return kernel.contiguous(memory_format=torch.channels_last)
