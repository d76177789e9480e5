"""Integration: the streams' raw outputs, mixed and added to the integrated pathway in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from manystream.functional import remat
from manystream.functional._mixing import AddMixed, AddScaled


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
    return _integrate(AddMixed, previous, integrated, rows, raw, weights, rebuild)


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
    return _integrate(AddScaled, previous, integrated, rows, raw, scalars, rebuild)


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
    operation: type[AddMixed] | type[AddScaled],
    previous: _Previous,
    integrated: Tensor | None,
    rows: Sequence[slice | Tensor],
    raw: Sequence[Tensor],
    parameters: Sequence[Tensor],
    rebuild: bool,
) -> Tensor:
    start = previous(integrated, raw[0])
    raw, parameters = ([t.to(start.dtype) for t in ts] for ts in (raw, parameters))
    with torch.autocast(start.device.type, enabled=False):
        out: Tensor = operation.apply(start, tuple(rows), *raw, *parameters)
    if rebuild:
        fixed = [t.detach() for t in parameters]
        again = partial(_again, operation, previous.detached(out.dtype), tuple(rows), fixed)
        remat.register(out, again, *raw, *([] if integrated is None else [integrated]))
    return out


def _again(
    operation: type[AddMixed] | type[AddScaled],
    previous: _Previous,
    rows: tuple[slice | Tensor, ...],
    parameters: Sequence[Tensor],
    *sources: Tensor,
) -> Tensor:
    """Integrate once more, without gradients; the sources are the raw outputs and maybe z."""
    raw, integrated = sources[: len(rows)], sources[len(rows) :]
    out = previous(integrated[0].to(raw[0].dtype) if integrated else None, raw[0])
    operation.add(out, rows, raw, parameters)
    return out
