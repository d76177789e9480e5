"""Integration: the streams' raw outputs, mixed and added to the integrated pathway in place."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from manystream.functional import remat
from manystream.functional.conv import compute_dtype
from manystream.functional.mixing import LinearMix, Mix, ScalarMix, Start, integrate, integrated


def linear_integrate(
    raw: Sequence[Tensor],
    weights: Sequence[Tensor],
    rows: Sequence[slice | Tensor],
    num_samples: int,
    integrated: Tensor | None = None,
    integrated_weight: Tensor | None = None,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
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
        stride: stride of W_z, the one of the streams' convolution; one number, or down and across.
        rebuild: whether the output may be rebuilt from its inputs instead of kept, see
            :mod:`manystream.functional.remat`.

    Returns:
        Shape (B, C', H, W), channels-last.

    Raises:
        ValueError: if shapes do not fit each other.
        RuntimeError: if differentiated twice.

    Source:
        Linear integration, DESIGN section 2, row ``li_net3``.

    Example:
        >>> raw = [torch.ones(2, 1, 1, 1), torch.ones(1, 1, 1, 1)]
        >>> kernels = [torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0)]
        >>> linear_integrate(raw, kernels, [slice(0, 2), slice(1, 2)], 2).flatten()
        tensor([2., 5.])
    """
    z = () if integrated is None or integrated_weight is None else (integrated, integrated_weight)
    return integrate_through(
        LinearMix(), raw, weights, rows, num_samples, z, bias, stride, rebuild=rebuild
    )[0]


def scalar_integrate(
    raw: Sequence[Tensor],
    scalars: Sequence[Tensor],
    rows: Sequence[slice | Tensor],
    num_samples: int,
    integrated: Tensor | None = None,
    integrated_weight: Tensor | None = None,
    integrated_scalar: Tensor | None = None,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
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
        stride: stride of W_z, the one of the streams' convolution; one number, or down and across.
        rebuild: whether the output may be rebuilt from its inputs instead of kept, see
            :mod:`manystream.functional.remat`.

    Returns:
        Shape (B, C, H, W), channels-last.

    Raises:
        ValueError: if shapes do not fit each other.
        RuntimeError: if differentiated twice.

    Source:
        Direct mixing, DESIGN section 2, row ``direct_mixing_conv``.

    Example:
        >>> raw = [torch.ones(2, 1, 1, 1), torch.ones(1, 1, 1, 1)]
        >>> scalars = [torch.tensor([2.0]), torch.tensor([3.0])]
        >>> scalar_integrate(raw, scalars, [slice(0, 2), slice(1, 2)], 2).flatten()
        tensor([2., 5.])
    """
    z: tuple[Tensor, ...] = ()
    if integrated is not None and integrated_weight is not None:
        z = (integrated, scaled_kernel(integrated_weight, integrated_scalar))
    return integrate_through(
        ScalarMix(), raw, scalars, rows, num_samples, z, bias, stride, rebuild=rebuild
    )[0]


def scaled_kernel(weight: Tensor, scalar: Tensor | None) -> Tensor:
    """``γ W_z``: scaling the kernel is cheaper than scaling a map."""
    if scalar is None:
        return weight
    scaled = weight * scalar
    if weight.requires_grad and scalar.requires_grad:  # only then does autograd watch over both
        remat.register(scaled, torch.mul, weight, scalar)
    return scaled


def integrate_through(
    mix: Mix,
    raw: Sequence[Tensor],
    parameters: Sequence[Tensor],
    rows: Sequence[slice | Tensor],
    num_samples: int,
    z: tuple[Tensor, ...] = (),
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    *,
    rebuild: bool = False,
    norm_alone: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Integrate by any rule, and hand the raw outputs on to what else reads them.

    A raw output has two readers, the integration and its stream's norm. Where the norm reads what
    is handed on here, the backward pass adds both gradients in one matrix product.

    Args:
        mix: the rule.
        raw: the streams' convolution outputs, shape (B_m, C, H, W).
        parameters: the rule's, one per stream.
        rows: where each stream's rows stand in the batch: a slice, or an index of shape (B_m,).
        num_samples: batch size B.
        z: the integrated input and its kernel, or empty.
        bias: shape (C',).
        stride: stride of the integrated input's kernel.
        rebuild: whether the output may be rebuilt from its inputs instead of kept, see
            :mod:`manystream.functional.remat`.
        norm_alone: promises that nobody but one norm, whose backward pass gives a new tensor, ever
            sees what is handed on. Its gradient is then written into: one map less is held.

    Returns:
        The integrated output, shape (B, C', H, W), and the raw outputs.

    Raises:
        ValueError: if shapes do not fit each other.
    """
    stride = (stride, stride) if isinstance(stride, int) else stride
    _check_maps(raw, rows, num_samples, z, stride)
    dtype = compute_dtype(raw[0])
    raw = [x.to(dtype) for x in raw]
    start = Start(num_samples, mix.out_channels(raw[0], parameters[0]), stride)
    mix = mix.for_maps(raw, rows)
    out, *handed_on = integrate(
        start, mix, tuple(rows), norm_alone, bias, *(z or (None, None)), *raw, *parameters
    )
    if rebuild and out.requires_grad:
        kept_bias = None if bias is None else bias.detach().clone()  # it may change before backward
        again = partial(_again, start, mix, tuple(rows), kept_bias)
        remat.register(out, again, *raw, *parameters, *z)
    return out, tuple(handed_on)


def _again(
    start: Start,
    mix: Mix,
    rows: tuple[slice | Tensor, ...],
    bias: Tensor | None,
    *sources: Tensor,
) -> Tensor:
    """Integrate once more; the sources are raw outputs, parameters, and what z holds."""
    num_streams = len(rows)
    raw, parameters, z = (
        sources[:num_streams],
        sources[num_streams : 2 * num_streams],
        sources[2 * num_streams :],
    )
    return integrated(start, mix, rows, raw, parameters, bias, *z)


def _check_maps(
    raw: Sequence[Tensor],
    rows: Sequence[slice | Tensor],
    num_samples: int,
    z: tuple[Tensor, ...],
    stride: tuple[int, int],
) -> None:
    """Refuse what in-place operations would broadcast, resize or read past without a word."""
    for m, (x, place) in enumerate(zip(raw, rows, strict=True)):
        count = len(range(num_samples)[place]) if isinstance(place, slice) else len(place)
        if x.dim() != 4 or len(x) != count or x.shape[1:] != raw[0].shape[1:]:
            raise ValueError(
                f"raw[{m}] has shape {tuple(x.shape)}; expected {count} rows by rows[{m}], and "
                f"channels, height and width as raw[0], {tuple(raw[0].shape[1:])}"
            )
    if not z:
        return
    height, width = (-(-side // step) for side, step in zip(z[0].shape[2:], stride, strict=True))
    if len(z[0]) != num_samples or raw[0].shape[2:] != (height, width):
        raise ValueError(
            f"the integrated input has shape {tuple(z[0].shape)} and its kernel stride {stride}, "
            f"which gives {len(z[0])} samples of {height} by {width}; expected {num_samples} of "
            f"{' by '.join(map(str, raw[0].shape[2:]))} as the streams' raw outputs: give both the "
            "same stride, and pad the streams so that they keep as many pixels"
        )
