"""The streams' share of an integration, added in place: one autograd operation, two rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Mix(Protocol):
    """How one stream's raw output enters, and the gradients of that."""

    def add(self, out: Tensor, place: slice | Tensor, raw: Tensor, parameter: Tensor) -> None:
        """``out[place] += mix(raw)``, in place."""

    def raw_gradient(self, placed: Tensor, raw: Tensor, parameter: Tensor) -> Tensor:
        """From the gradient of the rows, shape of ``raw``, to that of the raw output."""

    def parameter_gradient(self, placed: Tensor, raw: Tensor, parameter: Tensor) -> Tensor:
        """From the gradient of the rows, shape of ``raw``, to that of the parameter."""


class LinearMix:
    """``W * raw``, W a 1×1 kernel: a matrix product on the channels-last view."""

    def add(self, out: Tensor, place: slice | Tensor, raw: Tensor, weight: Tensor) -> None:
        if not len(raw):
            return
        matrix, kernel = _as_matrix(raw), weight.flatten(1).t()
        if isinstance(place, slice):
            out[place].permute(0, 2, 3, 1).view(-1, out.shape[1]).addmm_(matrix, kernel)
        else:
            out.index_add_(0, place, _as_images(matrix @ kernel, like=raw))

    def raw_gradient(self, placed: Tensor, raw: Tensor, weight: Tensor) -> Tensor:
        return _as_images(_as_matrix(placed) @ weight.flatten(1), like=raw)

    def parameter_gradient(self, placed: Tensor, raw: Tensor, weight: Tensor) -> Tensor:
        return (_as_matrix(placed).t() @ _as_matrix(raw)).view_as(weight)


class ScalarMix:
    """``α raw``, α one number."""

    def add(self, out: Tensor, place: slice | Tensor, raw: Tensor, scalar: Tensor) -> None:
        if isinstance(place, slice):
            out[place].addcmul_(raw, scalar.view(()))
        else:
            out.index_add_(0, place, raw * scalar)

    def raw_gradient(self, placed: Tensor, raw: Tensor, scalar: Tensor) -> Tensor:
        return placed * scalar

    def parameter_gradient(self, placed: Tensor, raw: Tensor, scalar: Tensor) -> Tensor:
        # A dot product of the flat maps: their product is never held.
        return torch.dot(_as_matrix(placed).flatten(), _as_matrix(raw).flatten()).view_as(scalar)


def add_streams(
    mix: Mix,
    out: Tensor,
    rows: Sequence[slice | Tensor],
    raw: Sequence[Tensor],
    parameters: Sequence[Tensor],
) -> None:
    """Add every stream's contribution at its rows of ``out``, in place."""
    for place, x, parameter in zip(rows, raw, parameters, strict=True):
        mix.add(out, place, x, parameter)


class AddStreams(torch.autograd.Function):
    """:func:`add_streams` with gradients; takes out, mix, rows, raw outputs and parameters."""

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, mix: Mix, rows: tuple[slice | Tensor, ...], *tensors: Tensor
    ) -> Tensor:
        ctx.mix, ctx.rows = mix, rows
        ctx.save_for_backward(*tensors)
        ctx.mark_dirty(out)
        add_streams(mix, out, rows, tensors[: len(rows)], tensors[len(rows) :])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        num_streams = len(ctx.rows)
        needed = ctx.needs_input_grad[3:]
        grads: list[Tensor | None] = [None] * (2 * num_streams)
        for m, place in enumerate(ctx.rows):
            raw, parameter = ctx.saved_tensors[m], ctx.saved_tensors[num_streams + m]
            placed = grad[place]
            if needed[m]:
                grads[m] = ctx.mix.raw_gradient(placed, raw, parameter)
            if needed[num_streams + m]:
                grads[num_streams + m] = ctx.mix.parameter_gradient(placed, raw, parameter)
        return (grad, None, None, *grads)


def _as_matrix(images: Tensor) -> Tensor:
    """(B, C, H, W) as (B·H·W, C): a view where the images are channels-last."""
    return images.permute(0, 2, 3, 1).flatten(0, 2)


def _as_images(matrix: Tensor, like: Tensor) -> Tensor:
    """(B·H·W, C) as (B, C, H, W), a channels-last view; B, H and W are those of ``like``."""
    shape = (like.shape[0], *like.shape[2:], matrix.shape[1])
    return matrix.view(shape).permute(0, 3, 1, 2)
