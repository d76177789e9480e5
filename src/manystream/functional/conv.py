"""A stream's convolution, for a forward pass that keeps little."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from manystream.functional import remat
from manystream.functional.few_channels import few_channels_conv2d, has_few_channels


def compute_dtype(x: Tensor) -> torch.dtype:
    """What a convolution of x computes in: autocast's type where it is on."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def conv2d(
    x: Tensor,
    weight: Tensor,
    stride: int = 1,
    padding: int = 0,
    *,
    rebuild: bool = False,
) -> Tensor:
    """``F.conv2d`` that keeps no copy of its kernel in autocast's type while recording.

    Args:
        x: shape (B, C, H, W).
        weight: shape (C', C, k, k).
        stride: step of the kernel.
        padding: zero padding.
        rebuild: whether the output may be rebuilt from x instead of kept, see
            :mod:`manystream.functional.remat`.

    Returns:
        Shape (B, C', H', W').
    """
    few = has_few_channels(x, weight)
    if not few and not remat.is_recording():
        return F.conv2d(x, weight, None, stride, padding)
    dtype = compute_dtype(x)

    def compute(x: Tensor, weight: Tensor) -> Tensor:
        if few:
            return few_channels_conv2d(x, weight, stride, padding, dtype)
        return F.conv2d(x.to(dtype), remat.cast(weight, dtype), None, stride, padding)

    y = compute(x, weight)
    if rebuild:
        remat.register(y, compute, x, weight)
    return y
