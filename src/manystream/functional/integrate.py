"""Integration: the streams' raw outputs, mixed and added to the integrated pathway in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from manystream.functional import remat


def linear_integrate(
    raw: Sequence[Tensor],
    weights: Sequence[Tensor],
    rows: Sequence[slice | Tensor],
    num_samples: int,
    integrated: Tensor | None = None,
    integrated_weight: Tensor | None = None,
    bias: Tensor | None = None,
    stride: int = 1,
    *,
    rebuild: bool = False,
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
        rebuild: whether the output may be rebuilt from its inputs instead of kept, see
            :mod:`manystream.functional.remat`.

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
    previous = _Previous(integrated_weight, bias, stride, num_samples, weights[0].shape[0])
    return _integrate(_AddMixed, previous, integrated, rows, raw, weights, rebuild)


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
    *,
    rebuild: bool = False,
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
        rebuild: whether the output may be rebuilt from its inputs instead of kept, see
            :mod:`manystream.functional.remat`.

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
    previous = _Previous(integrated_weight, bias, stride, num_samples, raw[0].shape[1])
    return _integrate(_AddScaled, previous, integrated, rows, raw, scalars, rebuild)


@dataclass(frozen=True)
class _Previous:
    """The integrated input's share of the output, which the streams are then added to."""

    weight: Tensor | None
    bias: Tensor | None
    stride: int
    num_samples: int
    channels: int

    def __call__(self, integrated: Tensor | None, raw: Tensor) -> Tensor:
        if integrated is None or self.weight is None:
            return self._start(raw)
        out = F.conv2d(integrated, self.weight, self.bias, self.stride)
        return out.contiguous(memory_format=torch.channels_last)

    def _start(self, raw: Tensor) -> Tensor:
        """Without an integrated input, the output starts from the bias, or from zero."""
        shape = (self.num_samples, self.channels, *raw.shape[2:])
        out = torch.empty(
            shape, dtype=_dtype(raw), device=raw.device, memory_format=torch.channels_last
        )
        return out.zero_() if self.bias is None else out.copy_(self.bias.view(-1, 1, 1))

    def detached(self, dtype: torch.dtype) -> _Previous:
        """The same on plain tensors of that dtype, to run without gradients and autocast."""
        weight, bias = (
            None if t is None else t.detach().to(dtype) for t in (self.weight, self.bias)
        )
        return replace(self, weight=weight, bias=bias)


def _dtype(x: Tensor) -> torch.dtype:
    """What a convolution of x would compute in."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def _integrate(
    operation: type[_AddMixed] | type[_AddScaled],
    previous: _Previous,
    integrated: Tensor | None,
    rows: Sequence[slice | Tensor],
    raw: Sequence[Tensor],
    parameters: Sequence[Tensor],
    rebuild: bool,
) -> Tensor:
    rows = tuple(rows)
    start = previous(integrated, raw[0])
    cast_raw, cast = ([t.to(start.dtype) for t in ts] for ts in (raw, parameters))
    with torch.autocast(start.device.type, enabled=False):
        out: Tensor = operation.apply(start, rows, *cast_raw, *cast)
    if rebuild:
        plain, fixed = previous.detached(out.dtype), [t.detach() for t in cast]

        def compute(*sources: Tensor) -> Tensor:
            first = None if integrated_is_none else sources[-1].to(out_dtype)
            again = plain(first, sources[0])
            operation.add(again, rows, sources[: len(rows)], fixed)
            return again

        integrated_is_none, out_dtype = integrated is None, out.dtype
        remat.register(out, compute, *cast_raw, *([] if integrated is None else [integrated]))
    return out


class _AddMixed(torch.autograd.Function):
    """``out[rows_m] += W_m * raw_m`` for every stream, in place in ``out``."""

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, rows: tuple[slice | Tensor, ...], *tensors: Tensor
    ) -> Tensor:
        ctx.rows = rows
        ctx.save_for_backward(*tensors)
        ctx.mark_dirty(out)
        _AddMixed.add(out, rows, tensors[: len(rows)], tensors[len(rows) :])
        return out

    @staticmethod
    def add(
        out: Tensor,
        rows: tuple[slice | Tensor, ...],
        raw: Sequence[Tensor],
        weights: Sequence[Tensor],
    ) -> None:
        for place, x, weight in zip(rows, raw, weights, strict=True):
            if len(x):
                _accumulate(out, place, x, weight.flatten(1))

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
        _AddScaled.add(out, rows, tensors[: len(rows)], tensors[len(rows) :])
        return out

    @staticmethod
    def add(
        out: Tensor,
        rows: tuple[slice | Tensor, ...],
        raw: Sequence[Tensor],
        scalars: Sequence[Tensor],
    ) -> None:
        for place, x, scalar in zip(rows, raw, scalars, strict=True):
            if isinstance(place, slice):
                out[place].addcmul_(x, scalar.view(()))
            else:
                out.index_add_(0, place, x * scalar)

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
