"""The streams' share of an integration, added in place; the autograd of both rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class AddMixed(torch.autograd.Function):
    """``out[rows_m] += W_m * raw_m`` for every stream, in place in ``out``."""

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, rows: tuple[slice | Tensor, ...], *tensors: Tensor
    ) -> Tensor:
        ctx.rows = rows
        ctx.save_for_backward(*tensors)
        ctx.mark_dirty(out)
        AddMixed.add(out, rows, tensors[: len(rows)], tensors[len(rows) :])
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


class AddScaled(torch.autograd.Function):
    """``out[rows_m] += α_m raw_m`` for every stream, in place in ``out``."""

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, rows: tuple[slice | Tensor, ...], *tensors: Tensor
    ) -> Tensor:
        ctx.rows = rows
        ctx.save_for_backward(*tensors)
        ctx.mark_dirty(out)
        AddScaled.add(out, rows, tensors[: len(rows)], tensors[len(rows) :])
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
