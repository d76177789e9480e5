"""Integration as one autograd operation: where it starts from, and the rule that adds streams."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from manystream.functional.kernels import choice

Place = slice | Tensor
"""Where a stream's rows stand in the batch."""


@dataclass(eq=False)
class Start:
    """The integrated input's share ``W_z * z + b_z``, which the streams are then added to.

    Attributes:
        num_samples: batch size B.
        channels: channels C' of the integrated output.
        stride: stride of W_z, down and across.
    """

    num_samples: int
    channels: int
    stride: tuple[int, int]

    def __call__(
        self, raw: Tensor, bias: Tensor | None, z: Tensor | None, weight: Tensor | None
    ) -> Tensor:
        """A new channels-last map in the dtype and of the sides of a raw output."""
        size = (self.num_samples, self.channels, *raw.shape[2:])
        out = torch.empty(
            size, dtype=raw.dtype, device=raw.device, memory_format=torch.channels_last
        )
        if z is None or weight is None:
            return out.zero_() if bias is None else out.copy_(bias.view(-1, 1, 1))
        matrix, kernel = self._read(z, out.dtype), weight.to(out.dtype).flatten(1).t()
        if bias is None:
            torch.mm(matrix, kernel, out=_as_matrix(out))
        else:
            torch.addmm(bias.to(out.dtype), matrix, kernel, out=_as_matrix(out))
        return out

    def gradients(
        self, grad: Tensor, z: Tensor, weight: Tensor, needed: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of z and W_z, as far as they are needed."""
        kernel, grad_z, grad_weight = weight.to(grad.dtype), None, None
        if needed[1]:
            grad_weight = _kernel_gradient(grad, self._read(z, grad.dtype), kernel)
        if needed[0]:
            shape = (*grad.shape[:1], z.shape[1], *grad.shape[2:])
            grad_z = _as_images(torch.mm(_as_matrix(grad), kernel.flatten(1)), shape)
            if self.stride != (1, 1):
                seen = grad_z
                grad_z = torch.zeros_like(z, dtype=grad.dtype, memory_format=torch.channels_last)
                self._seen(grad_z).copy_(seen)
        return grad_z, grad_weight

    def _read(self, z: Tensor, dtype: torch.dtype) -> Tensor:
        return _as_matrix(self._seen(z).to(dtype))

    def _seen(self, z: Tensor) -> Tensor:
        """The pixels that a 1×1 kernel of this stride meets."""
        down, across = self.stride
        return z if self.stride == (1, 1) else z[:, :, ::down, ::across]


class Mix(ABC):
    """How streams enter the integrated map, and the gradients of that."""

    @abstractmethod
    def out_channels(self, raw: Tensor, parameter: Tensor) -> int:
        """Channels of the integrated output."""

    @abstractmethod
    def add(self, out: Tensor, place: Place, raw: Tensor, parameter: Tensor) -> None:
        """``out[place] += mix(raw)``, in place."""

    @abstractmethod
    def raw_gradient(
        self, placed: Tensor, parameter: Tensor, other: Tensor | None, owned: bool
    ) -> Tensor:
        """From the gradient of the rows to that of the raw output.

        ``other`` is the gradient that the raw output has from elsewhere; it is added, in place
        only where it is owned: nobody else may hold it.
        """

    @abstractmethod
    def parameter_gradient(self, placed: Tensor, raw: Tensor, parameter: Tensor) -> Tensor:
        """From the gradient of the rows, shape of ``raw``, to that of the parameter."""

    def for_maps(self, raw: Sequence[Tensor], places: Sequence[Place]) -> Mix:
        """The same rule by the kernels that serve best for such raw outputs."""
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
        owned: bool,
        needed: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of a raw output and of its parameter, as far as they are needed."""
        grad_parameter = self.parameter_gradient(placed, raw, parameter) if needed[1] else None
        grad_raw = self.raw_gradient(placed, parameter, other, owned) if needed[0] else None
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
            shape = (len(raw), *out.shape[1:])
            out.index_add_(0, place, _as_images(torch.mm(matrix, kernel), shape))

    def raw_gradient(
        self, placed: Tensor, weight: Tensor, other: Tensor | None, owned: bool
    ) -> Tensor:
        matrix, kernel = _as_matrix(placed), weight.flatten(1)
        if other is not None and other.is_contiguous(memory_format=torch.channels_last):
            if owned:
                _as_matrix(other).addmm_(matrix, kernel)
                return other
            return _as_images(torch.addmm(_as_matrix(other), matrix, kernel), other.shape)
        shape = (len(placed), kernel.shape[1], *placed.shape[2:])
        grad = _as_images(torch.mm(matrix, kernel), shape)
        return grad if other is None else grad.add_(other)

    def parameter_gradient(self, placed: Tensor, raw: Tensor, weight: Tensor) -> Tensor:
        return _kernel_gradient(placed, _as_matrix(raw), weight)


class ScalarMix(Mix):
    """``α raw``, α one number."""

    def out_channels(self, raw: Tensor, scalar: Tensor) -> int:
        return raw.shape[1]

    def add(self, out: Tensor, place: Place, raw: Tensor, scalar: Tensor) -> None:
        if isinstance(place, slice):
            out[place].addcmul_(raw, scalar.view(()))
        else:
            out.index_add_(0, place, raw * scalar)

    def raw_gradient(
        self, placed: Tensor, scalar: Tensor, other: Tensor | None, owned: bool
    ) -> Tensor:
        if other is None:
            return placed * scalar
        out = other if owned else torch.empty_like(other)
        return torch.addcmul(other, placed, scalar.view(()), out=out)

    def parameter_gradient(self, placed: Tensor, raw: Tensor, scalar: Tensor) -> Tensor:
        # A dot product of the flat maps: their product is never held.
        return torch.dot(_as_matrix(placed).flatten(), _as_matrix(raw).flatten()).view_as(scalar)

    def for_maps(self, raw: Sequence[Tensor], places: Sequence[Place]) -> Mix:
        runs = all(isinstance(place, slice) for place in places)
        return FusedScalarMix() if runs and any(map(choice.fused, raw)) else self


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
        owned: bool,
        needed: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        from manystream.functional.kernels.scalar_mix import scaled_backward

        if not len(raw):
            return super().gradients(placed, raw, parameter, other, owned, needed)
        grad_raw, grad_scalar = scaled_backward(placed, raw, parameter, other)
        return grad_raw, grad_scalar


def integrated(
    start: Start,
    mix: Mix,
    rows: Sequence[Place],
    raw: Sequence[Tensor],
    parameters: Sequence[Tensor],
    bias: Tensor | None,
    z: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """The integrated map, shape (B, C', H, W), in the dtype of the raw outputs."""
    out = start(raw[0], bias, z, weight)
    mix.add_all(out, rows, raw, [p.to(out.dtype) for p in parameters])
    return out


class _Integrate(torch.autograd.Function):
    """:func:`integrated` with gradients; takes what it takes, the tensors last and flat.

    Gives out, and the raw outputs again: the gradients that these have from elsewhere come here.
    Where ``owned``, nobody else holds these, and they are written into. Parameters are kept as they
    are, and cast anew in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        start: Start,
        mix: Mix,
        rows: tuple[Place, ...],
        owned: bool,
        bias: Tensor | None,
        z: Tensor | None,
        weight: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.start, ctx.mix, ctx.rows, ctx.owned = start, mix, rows, owned
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(z, weight, *tensors)
        ctx.set_materialize_grads(False)
        raw, parameters = tensors[: len(rows)], tensors[len(rows) :]
        return integrated(start, mix, rows, raw, parameters, bias, z, weight), *raw

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> tuple[Any, ...]:
        num_streams = len(ctx.rows)
        if grad is None:  # nobody reads the integrated output
            return (*[None] * 7, *others, *[None] * num_streams)
        z, weight, *tensors = ctx.saved_tensors
        needs_bias, *needs_z = ctx.needs_input_grad[4:7]
        grad_bias = grad.sum((0, 2, 3)).to(ctx.bias_dtype) if needs_bias else None
        needed = ctx.needs_input_grad[7:]
        grads: list[Tensor | None] = [*others, *[None] * num_streams]
        for m, place in enumerate(ctx.rows):
            raw, parameter = tensors[m], tensors[num_streams + m]
            grads[m], grads[num_streams + m] = ctx.mix.gradients(
                grad[place],
                raw,
                parameter.to(grad.dtype),
                others[m],
                ctx.owned,
                (needed[m], needed[num_streams + m]),
            )
        of_z = (None, None) if z is None else ctx.start.gradients(grad, z, weight, needs_z)
        return (None, None, None, None, grad_bias, *of_z, *grads)


integrate: Callable[..., tuple[Tensor, ...]] = torch.compiler.disable(_Integrate.apply)
"""Outside of what is compiled: torch 2.11 fails to trace what hands its inputs on."""


def _kernel_gradient(grad: Tensor, read: Tensor, kernel: Tensor) -> Tensor:
    """Gradient of a 1×1 kernel that read a matrix, in the kernel's own strides: DDP wants these."""
    result = torch.empty_like(kernel)
    torch.mm(_as_matrix(grad).t(), read, out=result.flatten(1))
    return result


def _as_matrix(images: Tensor) -> Tensor:
    """(B, C, H, W) as (B·H·W, C): a view where the images are channels-last."""
    return images.permute(0, 2, 3, 1).flatten(0, 2)


def _as_images(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """(B·H·W, C) as (B, C, H, W), a channels-last view."""
    batch, channels, height, width = shape
    return matrix.view(batch, height, width, channels).permute(0, 3, 1, 2)
