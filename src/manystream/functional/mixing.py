"""The streams' share of an integration, added in place: one autograd operation, two rules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from manystream.functional.kernels import choice

Place = slice | Tensor
"""Where a stream's rows stand in the batch."""


class Mix(ABC):
    """How streams enter the integrated map, and the gradients of that."""

    @abstractmethod
    def out_channels(self, raw: Tensor, parameter: Tensor) -> int:
        """Channels of the integrated output."""

    @abstractmethod
    def add(self, out: Tensor, place: Place, raw: Tensor, parameter: Tensor) -> None:
        """``out[place] += mix(raw)``, in place."""

    @abstractmethod
    def raw_gradient(self, placed: Tensor, parameter: Tensor, other: Tensor | None) -> Tensor:
        """From the gradient of the rows to that of the raw output.

        ``other`` is the gradient that the raw output has from elsewhere; it is added, in place
        where its layout allows.
        """

    @abstractmethod
    def parameter_gradient(self, placed: Tensor, raw: Tensor, parameter: Tensor) -> Tensor:
        """From the gradient of the rows, shape of ``raw``, to that of the parameter."""

    def for_map(self, out: Tensor, places: Sequence[Place]) -> Mix:
        """The same rule by the kernels that serve best where such a map is added to."""
        return self

    def add_all(
        self,
        out: Tensor,
        places: Sequence[Place],
        raw: Sequence[Tensor],
        parameters: Sequence[Tensor],
    ) -> None:
        """Add every stream's contribution at its rows of ``out``, in place."""
        for place, x, parameter in zip(places, raw, parameters, strict=True):
            self.add(out, place, x, parameter)

    def gradients(
        self,
        placed: Tensor,
        raw: Tensor,
        parameter: Tensor,
        other: Tensor | None,
        needed: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of a raw output and of its parameter, as far as they are needed."""
        grad_parameter = self.parameter_gradient(placed, raw, parameter) if needed[1] else None
        grad_raw = self.raw_gradient(placed, parameter, other) if needed[0] else None
        return grad_raw, grad_parameter


class LinearMix(Mix):
    """``W * raw``, W a 1×1 kernel: a matrix product on the channels-last view."""

    def out_channels(self, raw: Tensor, weight: Tensor) -> int:
        return weight.shape[0]

    def add(self, out: Tensor, place: Place, raw: Tensor, weight: Tensor) -> None:
        if not len(raw):
            return
        matrix, kernel = _as_matrix(raw), weight.flatten(1).t()
        if isinstance(place, slice):
            out[place].permute(0, 2, 3, 1).view(-1, out.shape[1]).addmm_(matrix, kernel)
        else:
            out.index_add_(0, place, _as_images(matrix @ kernel, like=raw))

    def raw_gradient(self, placed: Tensor, weight: Tensor, other: Tensor | None) -> Tensor:
        matrix, kernel = _as_matrix(placed), weight.flatten(1)
        if other is not None and other.is_contiguous(memory_format=torch.channels_last):
            _as_matrix(other).addmm_(matrix, kernel)
            return other
        grad = _as_images(matrix @ kernel, like=placed)
        return grad if other is None else grad.add_(other)

    def parameter_gradient(self, placed: Tensor, raw: Tensor, weight: Tensor) -> Tensor:
        return (_as_matrix(placed).t() @ _as_matrix(raw)).view_as(weight)


class ScalarMix(Mix):
    """``α raw``, α one number."""

    def out_channels(self, raw: Tensor, scalar: Tensor) -> int:
        return raw.shape[1]

    def add(self, out: Tensor, place: Place, raw: Tensor, scalar: Tensor) -> None:
        if isinstance(place, slice):
            out[place].addcmul_(raw, scalar.view(()))
        else:
            out.index_add_(0, place, raw * scalar)

    def raw_gradient(self, placed: Tensor, scalar: Tensor, other: Tensor | None) -> Tensor:
        return placed * scalar if other is None else other.addcmul_(placed, scalar.view(()))

    def parameter_gradient(self, placed: Tensor, raw: Tensor, scalar: Tensor) -> Tensor:
        # A dot product of the flat maps: their product is never held.
        return torch.dot(_as_matrix(placed).flatten(), _as_matrix(raw).flatten()).view_as(scalar)

    def for_map(self, out: Tensor, places: Sequence[Place]) -> Mix:
        runs = all(isinstance(place, slice) for place in places)
        return FusedScalarMix() if runs and choice.fused(out) else self


class FusedScalarMix(ScalarMix):
    """``α raw`` by kernels that read every map once; rows are slices."""

    def add_all(
        self,
        out: Tensor,
        places: Sequence[Place],
        raw: Sequence[Tensor],
        parameters: Sequence[Tensor],
    ) -> None:
        from manystream.functional.kernels.scalar_mix import MOST_STREAMS, add_scaled

        starts = [place.start for place in places if isinstance(place, slice)]
        for first in range(0, len(raw), MOST_STREAMS):
            some = slice(first, first + MOST_STREAMS)
            add_scaled(out, list(raw[some]), list(parameters[some]), starts[some])

    def gradients(
        self,
        placed: Tensor,
        raw: Tensor,
        parameter: Tensor,
        other: Tensor | None,
        needed: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        from manystream.functional.kernels.scalar_mix import scaled_backward

        if not len(raw):
            return super().gradients(placed, raw, parameter, other, needed)
        grad_raw, grad_scalar = scaled_backward(placed, raw, parameter, other)
        return grad_raw, grad_scalar


class AddStreams(torch.autograd.Function):
    """``mix.add_all`` with gradients; takes out, mix, rows, raw outputs and parameters.

    Gives out, and the raw outputs again: the gradients that these have from elsewhere come here.
    """

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, mix: Mix, rows: tuple[slice | Tensor, ...], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.mix, ctx.rows = mix, rows
        ctx.save_for_backward(*tensors)
        ctx.mark_dirty(out)
        ctx.set_materialize_grads(False)
        raw, parameters = tensors[: len(rows)], tensors[len(rows) :]
        mix.add_all(out, rows, raw, parameters)
        return out, *raw

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> tuple[Any, ...]:
        num_streams = len(ctx.rows)
        if grad is None:  # nobody reads the integrated output
            return (None, None, None, *others, *[None] * num_streams)
        needed = ctx.needs_input_grad[3:]
        grads: list[Tensor | None] = [*others, *[None] * num_streams]
        for m, place in enumerate(ctx.rows):
            raw, parameter = ctx.saved_tensors[m], ctx.saved_tensors[num_streams + m]
            placed = grad[place]
            wanted = needed[m], needed[num_streams + m]
            own = ctx.mix.gradients(placed, raw, parameter, others[m], wanted)
            grads[m], grads[num_streams + m] = own
        return (grad, None, None, *grads)


def _as_matrix(images: Tensor) -> Tensor:
    """(B, C, H, W) as (B·H·W, C): a view where the images are channels-last."""
    return images.permute(0, 2, 3, 1).flatten(0, 2)


def _as_images(matrix: Tensor, like: Tensor) -> Tensor:
    """(B·H·W, C) as (B, C, H, W), a channels-last view; B, H and W are those of ``like``."""
    shape = (like.shape[0], *like.shape[2:], matrix.shape[1])
    return matrix.view(shape).permute(0, 3, 1, 2)
