r"""Integration: every stream's raw output, mixed and added to the integrated pathway in place.

.. math:: z' = \mathrm{prev}(z) + \sum_m \mathrm{place}_m(\mathrm{mix}_m(\mathrm{raw}_m)) + b_z

Maps are read as matrices of (rows · positions, channels), a view of a channels-last map of any
rank. A stream's rows enter the integrated pathway run by run, see :class:`manystream.presence.Run`:
nothing is padded, gathered or scattered, and no list of contributions exists.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from manystream.functional import remat
from manystream.functional.conv import compute_dtype
from manystream.functional.kernels import dispatch
from manystream.functional.maps import as_matrix, empty_maps, is_channels_last
from manystream.presence import Run

Placement = Sequence[Sequence[Run]]
"""For each stream, the runs of its rows, such that the first of them hold each row once."""


def linear_integrate(
    raw: Sequence[Tensor],
    weights: Sequence[Tensor],
    placement: Placement,
    num_views: int,
    integrated: Tensor | None = None,
    integrated_weight: Tensor | None = None,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    *,
    rebuild: bool = False,
) -> Tensor:
    r"""Mix every stream by a 1×1 convolution and add it at its views.

    .. math:: z' = W_z * z + \sum_m \mathrm{place}_m(W_m * \mathrm{raw}_m) + b_z

    Args:
        raw: the streams' convolution outputs, shape (B_m, C, ...).
        weights: 1×1 kernels W_m, shape (C', C, 1, …).
        placement: for each stream, the runs of rows and the views that they enter.
        num_views: number of views V.
        integrated: integrated input z, shape (V, C_z, ...); None in the first layer.
        integrated_weight: 1×1 kernel W_z, shape (C', C_z, 1, …).
        bias: b_z, shape (C',).
        stride: stride of W_z, the one of the streams' convolution: one number, or one a side.
        rebuild: whether the output may be rebuilt from its inputs instead of kept, see
            :mod:`manystream.functional.remat`.

    Returns:
        Shape (V, C', ...), channels-last.

    Raises:
        ValueError: if shapes do not fit each other.
        RuntimeError: if differentiated twice.

    Example:
        >>> raw = [torch.ones(2, 1, 1, 1), torch.ones(1, 1, 1, 1)]
        >>> kernels = [torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0)]
        >>> placement = [[Run(slice(0, 2), slice(0, 2))], [Run(slice(0, 1), slice(1, 2))]]
        >>> linear_integrate(raw, kernels, placement, 2).flatten()
        tensor([2., 5.])
    """
    previous = _previous(integrated, integrated_weight)
    return integrate(
        LINEAR, raw, weights, placement, num_views, *previous, bias, stride, rebuild=rebuild
    )[0]


def scalar_integrate(
    raw: Sequence[Tensor],
    scalars: Sequence[Tensor],
    placement: Placement,
    num_views: int,
    integrated: Tensor | None = None,
    integrated_weight: Tensor | None = None,
    integrated_scalar: Tensor | None = None,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    *,
    rebuild: bool = False,
) -> Tensor:
    r"""Scale every stream by one learned number and add it at its views.

    .. math:: z' = \gamma W_z * z + \sum_m \mathrm{place}_m(\alpha_m \mathrm{raw}_m) + b_z

    The output is the only tensor of its size that the forward pass allocates: γ is folded into the
    kernel, and no product α·raw exists.

    Args:
        raw: the streams' convolution outputs, shape (B_m, C, ...).
        scalars: α_m, one element each.
        placement: for each stream, the runs of rows and the views that they enter.
        num_views: number of views V.
        integrated: integrated input z, shape (V, C_z, ...); None in the first layer.
        integrated_weight: 1×1 kernel W_z, shape (C, C_z, 1, …).
        integrated_scalar: γ, one element.
        bias: b_z, shape (C,).
        stride: stride of W_z, the one of the streams' convolution: one number, or one a side.
        rebuild: as in :func:`linear_integrate`.

    Returns:
        Shape (V, C, ...), channels-last.

    Raises:
        ValueError: if shapes do not fit each other.
        RuntimeError: if differentiated twice.

    Example:
        >>> raw = [torch.ones(2, 1, 1, 1), torch.ones(1, 1, 1, 1)]
        >>> scalars = [torch.tensor([2.0]), torch.tensor([3.0])]
        >>> placement = [[Run(slice(0, 2), slice(0, 2))], [Run(slice(0, 1), slice(1, 2))]]
        >>> scalar_integrate(raw, scalars, placement, 2).flatten()
        tensor([2., 5.])
    """
    if integrated_weight is not None:
        integrated_weight = scaled_kernel(integrated_weight, integrated_scalar)
    previous = _previous(integrated, integrated_weight)
    return integrate(
        SCALAR, raw, scalars, placement, num_views, *previous, bias, stride, rebuild=rebuild
    )[0]


def scaled_kernel(weight: Tensor, scalar: Tensor | None) -> Tensor:
    """Return ``γ W_z``: scaling the kernel is cheaper than scaling a map."""
    if scalar is None:
        return weight
    scaled = weight * scalar
    if weight.requires_grad and scalar.requires_grad:  # only then does autograd watch over both
        remat.register(scaled, torch.mul, weight, scalar)
    return scaled


def _previous(z: Tensor | None, weight: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if z is None or weight is None else (z, weight)


class Mix(ABC):
    """How a stream's rows enter the integrated map, and the gradients of that, on matrices."""

    @abstractmethod
    def out_channels(self, raw: Tensor, parameter: Tensor) -> int:
        """Channels of the integrated output."""

    @abstractmethod
    def add_(self, out: Tensor, raw: Tensor, parameter: Tensor, *, first: bool = False) -> None:
        """Compute ``out += mix(raw)``, or ``=`` where ``out`` holds nothing yet."""

    def adding(
        self, raw: Tensor, parameter: Tensor, *, often: bool
    ) -> tuple[Callable[..., None], Tensor]:
        """Give what adds a stream, and to what: the rows may be mixed before they enter often."""
        return self.add_, raw

    @abstractmethod
    def raw_gradient_(
        self, into: Tensor, grad: Tensor, parameter: Tensor, other: Tensor | None
    ) -> None:
        """Compute ``into = mixᵀ(grad) + other``; ``other`` may be ``into``."""

    @abstractmethod
    def parameter_gradient_(self, into: Tensor, grad: Tensor, raw: Tensor, *, first: bool) -> None:
        """Compute ``into += ∂(mix(raw) · grad) / ∂parameter``, or ``=`` at the first run."""

    def add_all_(
        self,
        out: Tensor,
        placement: Placement,
        raw: Sequence[Tensor],
        parameters: Sequence[Tensor],
        *,
        empty: bool,
    ) -> None:
        """Add every stream's rows at their views of ``out``, a map; it may hold nothing yet."""
        matrix, positions = as_matrix(out), _positions(out)
        written = [not empty] * len(out)
        for runs, x, parameter in zip(placement, raw, parameters, strict=True):
            add, rows_of_x = self.adding(as_matrix(x), parameter, often=_repeat(runs, len(x)))
            for run in runs:
                for first, (rows, views) in _by_writing(run, written):
                    into = matrix[_times(views, positions)]
                    add(into, rows_of_x[_times(rows, positions)], parameter, first=first)
        every = slice(0, len(out))
        for nothing, (_, views) in _by_writing(Run(every, every), written):
            if nothing:  # no stream enters them
                out[views] = 0

    def gradients(
        self,
        grad: Tensor,
        runs: Sequence[Run],
        raw: Tensor,
        parameter: Tensor,
        other: Tensor | None,
        needed: tuple[bool, bool],
        owned: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of a raw output and of its parameter, as far as they are needed.

        A row that enters several views has the sum of their gradients, taken first and once: that
        moves less memory than a product for each view.

        Args:
            grad: gradient of the integrated map.
            runs: of this stream.
            raw: its raw output.
            parameter: the rule's.
            other: the gradient that the raw output has from its other reader.
            needed: which of the two are.
            owned: whether ``other`` may be written into.
        """
        if _repeat(runs, len(raw)):
            grad, runs = _summed(grad, runs, len(raw)), [Run(*[slice(0, len(raw))] * 2)]
        upstream, positions = as_matrix(grad), _positions(grad)
        parts = [(_times(rows, positions), _times(views, positions)) for rows, views in runs]
        grad_parameter = None
        if needed[1]:
            grad_parameter = torch.empty_like(parameter) if parts else torch.zeros_like(parameter)
            read = as_matrix(raw)
            for number, (rows, views) in enumerate(parts):
                self.parameter_gradient_(
                    grad_parameter, upstream[views], read[rows], first=number == 0
                )
        if not needed[0]:
            return None, grad_parameter
        if not parts:
            return torch.zeros_like(raw) if other is None else other, grad_parameter
        if owned and other is not None and is_channels_last(other):
            grad_raw = other
        else:
            grad_raw = empty_maps(raw.shape, grad)
        into, added = as_matrix(grad_raw), None if other is None else as_matrix(other)
        for rows, views in parts:
            self.raw_gradient_(
                into[rows], upstream[views], parameter, None if added is None else added[rows]
            )
        return grad_raw, grad_parameter

    def for_maps(self, raw: Sequence[Tensor]) -> Mix:
        """Return the same rule by the kernels that serve best for such raw outputs."""
        return self


class LinearMix(Mix):
    """``W * raw``, W a 1×1 kernel: a matrix product."""

    def out_channels(self, raw: Tensor, weight: Tensor) -> int:
        return weight.shape[0]

    def add_(self, out: Tensor, raw: Tensor, weight: Tensor, *, first: bool = False) -> None:
        if first:
            torch.mm(raw, weight.flatten(1).t(), out=out)
        else:
            out.addmm_(raw, weight.flatten(1).t())

    def adding(
        self, raw: Tensor, weight: Tensor, *, often: bool
    ) -> tuple[Callable[..., None], Tensor]:
        # A product anew for each view moves less memory, which is what a GPU waits for.
        if often and not raw.is_cuda:
            return _add_, raw @ weight.flatten(1).t()
        return self.add_, raw

    def raw_gradient_(
        self, into: Tensor, grad: Tensor, weight: Tensor, other: Tensor | None
    ) -> None:
        if other is None:
            torch.mm(grad, weight.flatten(1), out=into)
        else:
            torch.addmm(other, grad, weight.flatten(1), out=into)

    def parameter_gradient_(self, into: Tensor, grad: Tensor, raw: Tensor, *, first: bool) -> None:
        if first:
            torch.mm(grad.t(), raw, out=into.flatten(1))
        else:
            into.flatten(1).addmm_(grad.t(), raw)


class ScalarMix(Mix):
    """``α raw``, α one number."""

    def out_channels(self, raw: Tensor, scalar: Tensor) -> int:
        return raw.shape[1]

    def add_(self, out: Tensor, raw: Tensor, scalar: Tensor, *, first: bool = False) -> None:
        if first:
            torch.mul(raw, scalar.view(()), out=out)
        else:
            out.addcmul_(raw, scalar.view(()))

    def raw_gradient_(
        self, into: Tensor, grad: Tensor, scalar: Tensor, other: Tensor | None
    ) -> None:
        if other is None:
            torch.mul(grad, scalar.view(()), out=into)
        else:
            torch.addcmul(other, grad, scalar.view(()), out=into)

    def parameter_gradient_(self, into: Tensor, grad: Tensor, raw: Tensor, *, first: bool) -> None:
        # A dot product of the flat maps: their product is never held.
        found = torch.dot(grad.flatten(), raw.flatten())
        if first:
            into.copy_(found)
        else:
            into.add_(found)

    def for_maps(self, raw: Sequence[Tensor]) -> Mix:
        return FUSED_SCALAR if any(map(dispatch.fused, raw)) else self


class FusedScalarMix(ScalarMix):
    """``α raw`` by kernels that read every map once."""

    def add_all_(
        self,
        out: Tensor,
        placement: Placement,
        raw: Sequence[Tensor],
        parameters: Sequence[Tensor],
        *,
        empty: bool,
    ) -> None:
        from manystream.functional.kernels.scalar_mix import MOST_STREAMS, add_scaled

        if empty:
            out.zero_()
        entering = [
            (x[rows], scalar, views.start)
            for runs, x, scalar in zip(placement, raw, parameters, strict=True)
            for rows, views in runs
        ]
        for first in range(0, len(entering), MOST_STREAMS):
            add_scaled(out, *map(list, zip(*entering[first : first + MOST_STREAMS], strict=True)))

    def gradients(
        self,
        grad: Tensor,
        runs: Sequence[Run],
        raw: Tensor,
        parameter: Tensor,
        other: Tensor | None,
        needed: tuple[bool, bool],
        owned: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        from manystream.functional.kernels.scalar_mix import scaled_backward

        if len(runs) != 1:
            return super().gradients(grad, runs, raw, parameter, other, needed, owned)
        grad_raw, grad_scalar = scaled_backward(grad[runs[0].views], raw, parameter, other)
        return grad_raw, grad_scalar


LINEAR, SCALAR, FUSED_SCALAR = LinearMix(), ScalarMix(), FusedScalarMix()


def integrate(
    mix: Mix,
    raw: Sequence[Tensor],
    parameters: Sequence[Tensor],
    placement: Placement,
    num_views: int,
    z: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    *,
    rebuild: bool = False,
    owned: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Integrate by any mix as one autograd operation, and hand the raw outputs on.

    A raw output has two readers, the integration and its stream's norm. Where the norm reads what
    is handed on here, the backward pass adds both gradients in one matrix product.

    Args:
        mix: how the streams enter.
        raw: the streams' convolution outputs, shape (B_m, C, ...).
        parameters: the mix's, one per stream.
        placement: for each stream, the runs of rows and the views that they enter.
        num_views: number of views V.
        z: the integrated input, shape (V, C_z, ...); None in the first layer.
        weight: its 1×1 kernel W_z, shape (C', C_z, 1, …).
        bias: shape (C',).
        stride: stride of W_z: one number, or one a side.
        rebuild: whether the output may be rebuilt from its inputs instead of kept, see
            :mod:`manystream.functional.remat`.
        owned: whether nobody else holds the gradients of what is handed on, so that they may be
            written into. An ``add``, a hook and an identity give out a gradient that others hold.

    Returns:
        The integrated output, shape (V, C', ...), and the raw outputs.

    Raises:
        ValueError: if shapes do not fit each other.
    """
    num_sides = raw[0].dim() - 2
    stride = (stride,) * num_sides if isinstance(stride, int) else tuple(stride)
    _check(raw, placement, num_views, z, stride)
    dtype = compute_dtype(raw[0])
    raw = [x.to(dtype) for x in raw]
    how = _How(mix.for_maps(raw), tuple(placement), num_views, stride, owned)
    out, *handed_on = _Integrate.apply(how, bias, z, weight, *raw, *parameters)
    if rebuild and out.requires_grad:
        previous = () if z is None or weight is None else (z, weight)
        kept_bias = None if bias is None else bias.detach().clone()  # it may change before backward
        again = partial(_again, how, kept_bias)
        remat.register(out, again, *raw, *parameters, *previous)
    return out, tuple(handed_on)


@dataclass(frozen=True, eq=False)
class _How:
    """All that an integration needs beside its tensors."""

    mix: Mix
    placement: Placement
    num_views: int
    stride: tuple[int, ...]
    owned: bool

    def integrated(
        self,
        raw: Sequence[Tensor],
        parameters: Sequence[Tensor],
        bias: Tensor | None,
        z: Tensor | None,
        weight: Tensor | None,
    ) -> Tensor:
        """Return the integrated map, in the dtype of the raw outputs."""
        channels = self.mix.out_channels(raw[0], parameters[0])
        out = empty_maps((self.num_views, channels, *raw[0].shape[2:]), raw[0])
        empty = not self._start_(out, bias, z, weight)
        self.mix.add_all_(
            out, self.placement, raw, [p.to(out.dtype) for p in parameters], empty=empty
        )
        return out

    def _start_(
        self, out: Tensor, bias: Tensor | None, z: Tensor | None, weight: Tensor | None
    ) -> bool:
        """Compute ``out = W_z * z + b_z``, to which streams are added; false if it is nothing."""
        matrix = as_matrix(out)
        if z is None or weight is None:
            if bias is not None:
                matrix.copy_(bias)
            return bias is not None
        read, kernel = as_matrix(self._seen(z).to(out.dtype)), weight.to(out.dtype).flatten(1).t()
        if bias is None:
            torch.mm(read, kernel, out=matrix)
        else:
            torch.addmm(bias.to(out.dtype), read, kernel, out=matrix)
        return True

    def previous_gradients(
        self, grad: Tensor, z: Tensor, weight: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of z and W_z, as far as they are needed."""
        upstream, kernel, grad_z, grad_weight = as_matrix(grad), weight.to(grad.dtype), None, None
        if needed[1]:  # in the kernel's own strides: DDP wants these
            grad_weight = torch.empty_like(kernel)
            read = as_matrix(self._seen(z).to(grad.dtype))
            torch.mm(upstream.t(), read, out=grad_weight.flatten(1))
        if needed[0]:
            grad_z = empty_maps((len(grad), z.shape[1], *grad.shape[2:]), grad)
            torch.mm(upstream, kernel.flatten(1), out=as_matrix(grad_z))
            if any(step > 1 for step in self.stride):
                seen, grad_z = grad_z, empty_maps(z.shape, grad).zero_()
                self._seen(grad_z).copy_(seen)
        return grad_z, grad_weight

    def _seen(self, z: Tensor) -> Tensor:
        """Return the positions that a 1×1 kernel of this stride meets."""
        if all(step == 1 for step in self.stride):
            return z
        return z[(slice(None), slice(None), *(slice(None, None, step) for step in self.stride))]


class _Integrate(torch.autograd.Function):
    """Gives the integrated map, and the raw outputs again, whose other gradients come here.

    Parameters are kept as they are, and cast anew in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        how: _How,
        bias: Tensor | None,
        z: Tensor | None,
        weight: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        num_streams = len(how.placement)
        ctx.how, ctx.bias_dtype = how, None if bias is None else bias.dtype
        ctx.save_for_backward(z, weight, *tensors)
        ctx.set_materialize_grads(False)
        raw, parameters = tensors[:num_streams], tensors[num_streams:]
        return how.integrated(raw, parameters, bias, z, weight), *raw

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> tuple[Any, ...]:
        how, num_streams = ctx.how, len(ctx.how.placement)
        if grad is None:  # nobody reads the integrated output
            return (*[None] * 4, *others, *[None] * num_streams)
        z, weight, *tensors = ctx.saved_tensors
        needs_bias, *needs_z = ctx.needs_input_grad[1:4]
        grad_bias = as_matrix(grad).sum(0).to(ctx.bias_dtype) if needs_bias else None
        needed = ctx.needs_input_grad[4:]
        grads: list[Tensor | None] = [None] * (2 * num_streams)
        for m, runs in enumerate(how.placement):
            n = num_streams + m
            grads[m], grads[n] = how.mix.gradients(
                *(grad, runs, tensors[m], tensors[n].to(grad.dtype), others[m]),
                *((needed[m], needed[n]), how.owned),
            )
        of_z = (None, None) if z is None else how.previous_gradients(grad, z, weight, needs_z)
        return (None, grad_bias, *of_z, *grads)


def _again(how: _How, bias: Tensor | None, *sources: Tensor) -> Tensor:
    """Integrate once more; the sources are raw outputs, parameters, and what z holds."""
    n = len(how.placement)
    raw, parameters, previous = sources[:n], sources[n : 2 * n], sources[2 * n :]
    return how.integrated(raw, parameters, bias, *(previous or (None, None)))


def _add_(out: Tensor, mixed: Tensor, parameter: Tensor, *, first: bool = False) -> None:
    """Add rows that are mixed already."""
    if first:
        out.copy_(mixed)
    else:
        out.add_(mixed)


def _repeat(runs: Sequence[Run], num_rows: int) -> bool:
    """Tell whether a row enters more than one view."""
    return sum(_length(rows) for rows, _ in runs) > num_rows


def _by_writing(run: Run, written: list[bool]) -> Iterator[tuple[bool, Run]]:
    """Split a run into parts whose views hold nothing yet, and others; then all hold something."""
    (rows, views), start = run, run.views.start
    for holds, part in groupby(written[views]):
        stop = start + len(list(part))
        shift = rows.start - views.start
        yield not holds, Run(slice(start + shift, stop + shift), slice(start, stop))
        start = stop
    written[views] = [True] * (views.stop - views.start)


def _summed(grad: Tensor, runs: Sequence[Run], num_rows: int) -> Tensor:
    """Return the gradient of a stream's rows from that of the views, always added in one order."""
    total = empty_maps((num_rows, *grad.shape[1:]), grad)
    untouched, (first, second, *_) = num_rows, runs
    if first.rows == second.rows == slice(0, num_rows):  # both at once, as in complete batches
        torch.add(grad[first.views], grad[second.views], out=total)
        untouched, runs = 0, runs[2:]
    for rows, views in runs:
        if untouched > 0:  # the first runs hold each row once
            total[rows] = grad[views]
        else:
            total[rows] += grad[views]
        untouched -= _length(rows)
    return total


def _check(
    raw: Sequence[Tensor],
    placement: Placement,
    num_views: int,
    z: Tensor | None,
    stride: tuple[int, ...],
) -> None:
    """Refuse what in-place operations would broadcast, resize or read past without a word."""
    sides = raw[0].shape[2:]
    for m, (x, runs) in enumerate(zip(raw, placement, strict=True)):
        count = max((rows.stop for rows, _ in runs), default=0)
        last = max((views.stop for _, views in runs), default=0)
        if len(x) != count or x.shape[1:] != raw[0].shape[1:] or last > num_views:
            raise ValueError(
                f"raw[{m}] has shape {tuple(x.shape)} and enters {last} of {num_views} views; "
                f"expected {count} rows by its placement, with channels and sides as raw[0], "
                f"{tuple(raw[0].shape[1:])}"
            )
    if z is None:
        return
    seen = tuple(-(-side // step) for side, step in zip(z.shape[2:], stride, strict=True))
    if len(z) != num_views or sides != seen:
        raise ValueError(
            f"the integrated input has shape {tuple(z.shape)} and its kernel stride {stride}, "
            f"which gives {len(z)} views of {seen}; expected {num_views} of {tuple(sides)} as the "
            "streams' raw outputs: give both the same stride, and pad the streams so that they "
            "keep as many positions"
        )


def _length(run: slice) -> int:
    return int(run.stop - run.start)


def _positions(maps: Tensor) -> int:
    return maps.shape[2:].numel()


def _times(run: slice, positions: int) -> slice:
    """Return the lines of a matrix that rows of a map are."""
    return slice(run.start * positions, run.stop * positions)
