"""Integration: the streams' raw outputs, mixed and added to the integrated pathway in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def linear_integrate(
    raw: Sequence[Tensor],
    weights: Sequence[Tensor],
    rows: Sequence[slice | Tensor],
    num_samples: int,
    integrated: Tensor | None = None,
    integrated_weight: Tensor | None = None,
    bias: Tensor | None = None,
    stride: int = 1,
) -> Tensor:
    r"""Mix every stream by a 1×1 convolution and add it at its samples.

    .. math:: z' = W_z * z + \sum_m \mathrm{place}_m(W_m * \mathrm{raw}_m) + b_z

    Contributions are accumulated where they belong by matrix products on the channels-last view:
    nothing is padded, no list of contributions exists, and where a stream's rows are a slice not
    even one contribution is held. Other memory layouts are copied to channels-last.

    Args:
        raw: the streams' convolution outputs, shape (B_m, C, H, W).
        weights: 1×1 kernels W_m, shape (C', C, 1, 1).
        rows: where each stream's rows stand in the batch: a slice, or an index of shape (B_m,).
        num_samples: batch size B.
        integrated: integrated input z, shape (B, C_z, H_z, W_z); None in the first layer.
        integrated_weight: 1×1 kernel W_z, shape (C', C_z, 1, 1).
        bias: b_z, shape (C',).
        stride: stride of W_z, the one of the streams' convolution.

    Returns:
        Shape (B, C', H, W), channels-last.

    Raises:
        RuntimeError: if differentiated twice.

    Source:
        Linear integration, DESIGN section 2, row ``li_net3``.

    Example:
        >>> raw = [torch.ones(2, 1, 1, 1), torch.ones(1, 1, 1, 1)]
        >>> kernels = [torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0)]
        >>> linear_integrate(raw, kernels, [slice(0, 2), slice(1, 2)], 2).flatten()
        tensor([2., 5.])
    """
    channels = weights[0].shape[0]
    out = _previous(integrated, integrated_weight, bias, stride, (num_samples, channels), raw[0])
    return _add_in_place(_AddMixed, out, rows, raw, weights)


def scalar_integrate(
    raw: Sequence[Tensor],
    scalars: Sequence[Tensor],
    rows: Sequence[slice | Tensor],
    num_samples: int,
    integrated: Tensor | None = None,
    integrated_weight: Tensor | None = None,
    integrated_scalar: Tensor | None = None,
    bias: Tensor | None = None,
    stride: int = 1,
) -> Tensor:
    r"""Scale every stream by one learned number and add it at its samples.

    .. math:: z' = \gamma W_z * z + \sum_m \mathrm{place}_m(\alpha_m \mathrm{raw}_m) + b_z

    The output is the only tensor of its size that the forward pass allocates: γ is folded into the
    kernel, and no product α·raw exists. The backward pass needs the raw outputs, which the
    streams' norms keep anyway.

    Args:
        raw: the streams' convolution outputs, shape (B_m, C, H, W).
        scalars: α_m, one element each.
        rows: where each stream's rows stand in the batch: a slice, or an index of shape (B_m,).
        num_samples: batch size B.
        integrated: integrated input z, shape (B, C_z, H_z, W_z); None in the first layer.
        integrated_weight: 1×1 kernel W_z, shape (C, C_z, 1, 1).
        integrated_scalar: γ, one element.
        bias: b_z, shape (C,).
        stride: stride of W_z, the one of the streams' convolution.

    Returns:
        Shape (B, C, H, W), channels-last.

    Raises:
        RuntimeError: if differentiated twice.

    Source:
        Direct mixing, DESIGN section 2, row ``direct_mixing_conv``.

    Example:
        >>> raw = [torch.ones(2, 1, 1, 1), torch.ones(1, 1, 1, 1)]
        >>> scalars = [torch.tensor([2.0]), torch.tensor([3.0])]
        >>> scalar_integrate(raw, scalars, [slice(0, 2), slice(1, 2)], 2).flatten()
        tensor([2., 5.])
    """
    if integrated_weight is not None and integrated_scalar is not None:
        integrated_weight = integrated_weight * integrated_scalar
    shape = (num_samples, raw[0].shape[1])
    out = _previous(integrated, integrated_weight, bias, stride, shape, raw[0])
    return _add_in_place(_AddScaled, out, rows, raw, scalars)


def _add_in_place(
    operation: type[torch.autograd.Function],
    out: Tensor,
    rows: Sequence[slice | Tensor],
    raw: Sequence[Tensor],
    parameters: Sequence[Tensor],
) -> Tensor:
    operands = [t.to(out.dtype) for t in (*raw, *parameters)]
    with torch.autocast(out.device.type, enabled=False):
        added: Tensor = operation.apply(out, tuple(rows), *operands)
    return added


def _previous(
    integrated: Tensor | None,
    integrated_weight: Tensor | None,
    bias: Tensor | None,
    stride: int,
    shape: tuple[int, int],
    raw: Tensor,
) -> Tensor:
    """The integrated input's share, which the streams are then added to."""
    if integrated is None or integrated_weight is None:
        return _start(raw, *shape, bias)
    out = F.conv2d(integrated, integrated_weight, bias, stride)
    return out.contiguous(memory_format=torch.channels_last)


def _start(raw: Tensor, num_samples: int, channels: int, bias: Tensor | None) -> Tensor:
    """Without an integrated input, the output starts from the bias, or from zero."""
    device = raw.device
    autocast = torch.is_autocast_enabled(device.type) and raw.dtype != torch.float64
    dtype = torch.get_autocast_dtype(device.type) if autocast else raw.dtype
    shape = (num_samples, channels, *raw.shape[2:])
    out = torch.empty(shape, dtype=dtype, device=device, memory_format=torch.channels_last)
    return out.zero_() if bias is None else out.copy_(bias.view(-1, 1, 1))


class _AddMixed(torch.autograd.Function):
    """``out[rows_m] += W_m * raw_m`` for every stream, in place in ``out``."""

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, rows: tuple[slice | Tensor, ...], *tensors: Tensor
    ) -> Tensor:
        ctx.rows = rows
        ctx.save_for_backward(*tensors)
        ctx.mark_dirty(out)
        raw, weights = tensors[: len(rows)], tensors[len(rows) :]
        for place, x, weight in zip(rows, raw, weights, strict=True):
            if len(x):
                _accumulate(out, place, x, weight.flatten(1))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        num_streams = len(ctx.rows)
        raw, weights = ctx.saved_tensors[:num_streams], ctx.saved_tensors[num_streams:]
        needed = ctx.needs_input_grad[2:]
        grad_raw: list[Tensor | None] = [None] * num_streams
        grad_weights: list[Tensor | None] = [None] * num_streams
        for m, place in enumerate(ctx.rows):
            placed = _as_matrix(grad[place])
            if needed[m]:
                grad_raw[m] = _as_images(placed @ weights[m].flatten(1), like=raw[m])
            if needed[num_streams + m]:
                grad_weights[m] = (placed.t() @ _as_matrix(raw[m])).view_as(weights[m])
        return (grad, None, *grad_raw, *grad_weights)


class _AddScaled(torch.autograd.Function):
    """``out[rows_m] += α_m raw_m`` for every stream, in place in ``out``."""

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, rows: tuple[slice | Tensor, ...], *tensors: Tensor
    ) -> Tensor:
        ctx.rows = rows
        ctx.save_for_backward(*tensors)
        ctx.mark_dirty(out)
        raw, scalars = tensors[: len(rows)], tensors[len(rows) :]
        for place, x, scalar in zip(rows, raw, scalars, strict=True):
            if isinstance(place, slice):
                out[place].addcmul_(x, scalar.view(()))
            else:
                out.index_add_(0, place, x * scalar)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        num_streams = len(ctx.rows)
        raw, scalars = ctx.saved_tensors[:num_streams], ctx.saved_tensors[num_streams:]
        needed = ctx.needs_input_grad[2:]
        grad_raw: list[Tensor | None] = [None] * num_streams
        grad_scalars: list[Tensor | None] = [None] * num_streams
        for m, place in enumerate(ctx.rows):
            placed = grad[place]
            if needed[m]:
                grad_raw[m] = placed * scalars[m]
            if needed[num_streams + m]:
                # A dot product of the flat maps: their product is never held.
                dot = torch.dot(_as_matrix(placed).flatten(), _as_matrix(raw[m]).flatten())
                grad_scalars[m] = dot.view_as(scalars[m])
        return (grad, None, *grad_raw, *grad_scalars)


def _accumulate(out: Tensor, place: slice | Tensor, raw: Tensor, weight: Tensor) -> None:
    matrix = _as_matrix(raw)
    if isinstance(place, slice):
        target = out[place].permute(0, 2, 3, 1).view(-1, out.shape[1])
        target.addmm_(matrix, weight.t())
    else:
        out.index_add_(0, place, _as_images(matrix @ weight.t(), like=raw))


def _as_matrix(images: Tensor) -> Tensor:
    """(B, C, H, W) as (B·H·W, C): a view where the images are channels-last."""
    return images.permute(0, 2, 3, 1).flatten(0, 2)


def _as_images(matrix: Tensor, like: Tensor) -> Tensor:
    """(B·H·W, C) as (B, C, H, W), a channels-last view; B, H and W are those of ``like``."""
    shape = (like.shape[0], *like.shape[2:], matrix.shape[1])
    return matrix.view(shape).permute(0, 3, 1, 2)
