"""A convolution of images with few channels, as the first one of a stream is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from manystream.functional.kernels import dispatch

_FEW = 4
_LARGEST_KERNEL = 8
"""With four channels a line of its window is 32 values; more would not fit a multiprocessor."""


def has_few_channels(x: Tensor, weight: Tensor) -> bool:
    """Tell whether :func:`few_channels_conv2d` takes x and serves: images that want no gradient."""
    fits = x.shape[1] <= _FEW and weight.shape[-1] <= _LARGEST_KERNEL
    return fits and not x.requires_grad and dispatch.available(x)


def few_channels_conv2d(
    x: Tensor, weight: Tensor, stride: int, padding: int, dtype: torch.dtype
) -> Tensor:
    """Return ``F.conv2d(x, weight, None, stride, padding)`` in a dtype, by kernels of our own.

    Nothing but x is kept; the kernel must stay as it is until the backward pass, as elsewhere.

    Args:
        x: shape (B, C, H, W); needs no gradient.
        weight: shape (C', C, k, k).
        stride: step of the kernel.
        padding: zero padding.
        dtype: what to compute in.

    Returns:
        Shape (B, C', H', W'), channels-last.

    Raises:
        RuntimeError: if differentiated twice.
    """
    y: Tensor = _FewChannelsConv.apply(x, weight, stride, padding, dtype)
    return y


class _FewChannelsConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int, dtype: torch.dtype
    ) -> Tensor:
        from manystream.functional.kernels.few_channels import few_channels_conv

        ctx.save_for_backward(x, weight)  # what min rebuilds from is watched over in every mode
        ctx.how = weight.shape[-1], stride, padding
        ctx.weight_dtype = weight.dtype
        y: Tensor = few_channels_conv(x, weight.to(dtype), stride, padding)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from manystream.functional.kernels.few_channels import few_channels_conv_backward

        x, _ = ctx.saved_tensors
        grad_weight = few_channels_conv_backward(grad, x, *ctx.how).to(ctx.weight_dtype)
        return None, grad_weight, None, None, None
