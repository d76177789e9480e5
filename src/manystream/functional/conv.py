"""A stream's convolution, for a forward pass that keeps little."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from manystream.functional import remat
from manystream.functional.few_channels import few_channels_conv2d, has_few_channels
from manystream.functional.maps import as_matrix

_ONEDNN_BLOCK = 16
"""Channels that oneDNN computes at once; its scratch memory is too small for fewer, see below."""


def compute_dtype(x: Tensor) -> torch.dtype:
    """Tell what a convolution of x computes in: autocast's type where it is on."""
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
    """Return ``F.conv2d`` that keeps no copy of its kernel in autocast's type while recording.

    Args:
        x: shape (B, C, H, W).
        weight: shape (C', C, k, k).
        stride: step of the kernel.
        padding: zero padding.
        rebuild: whether the output may be rebuilt from x instead of kept, see
            :mod:`manystream.functional.remat`; one that no gradient runs through is kept, since
            nothing else would keep x, or watch over it.

    Returns:
        Shape (B, C', H', W').
    """
    few, corrupting = has_few_channels(x, weight), _corrupts_the_heap(x, weight, stride)
    if not few and not corrupting and not remat.is_recording():
        return F.conv2d(x, weight, None, stride, padding)
    dtype = compute_dtype(x)
    if not few and not corrupting:
        x = x.to(dtype)  # a copy that is kept in any case; the output is rebuilt from it

    def compute(x: Tensor, weight: Tensor) -> Tensor:
        if few:
            return few_channels_conv2d(x, weight, stride, padding, dtype)
        if corrupting:
            y: Tensor = _SparseConv.apply(x, weight, stride, padding, dtype)
            return y
        return F.conv2d(x, remat.cast(weight, dtype), None, stride, padding)

    y = compute(x, weight)
    if rebuild and y.requires_grad:
        remat.register(y, compute, x, weight)
    return y


def _corrupts_the_heap(x: Tensor, weight: Tensor, stride: int) -> bool:
    """Tell whether oneDNN's backward of this convolution writes past its memory.

    With two or more threads, an odd batch of channels-last float32 images and fewer channels than
    its block, the kernel's gradient does, in torch 2.13 and 2.14: the process dies, then or later.
    Whatever is near to that goes another way, for which such small convolutions lose nothing.
    """
    few = weight.shape[1] < _ONEDNN_BLOCK and weight.shape[2] == weight.shape[3] == 1
    return few and stride > 1 and x.device.type == "cpu"


class _SparseConv(torch.autograd.Function):
    """A 1×1 convolution that steps over pixels; its gradients are matrix products of those seen."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x.to(dtype), weight.to(dtype), None, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        matrix, border = as_matrix(grad), [ctx.padding] * 4
        every = slice(None, None, ctx.stride)
        if ctx.needs_input_grad[0]:
            shape = (len(grad), *grad.shape[2:], x.shape[1])
            of_seen = torch.mm(matrix, weight.to(grad.dtype).flatten(1)).view(shape)
            padded = torch.zeros_like(F.pad(x, border), dtype=grad.dtype)
            padded[:, :, every, every] = of_seen.permute(0, 3, 1, 2)
            grad_x = F.pad(padded, [-side for side in border])
        if ctx.needs_input_grad[1]:
            seen = as_matrix(F.pad(x, border)[:, :, every, every].to(grad.dtype))
            grad_weight = torch.empty_like(weight, dtype=grad.dtype)  # in the strides DDP wants
            torch.mm(matrix.t(), seen, out=grad_weight.flatten(1))
        return grad_x, grad_weight, None, None, None
