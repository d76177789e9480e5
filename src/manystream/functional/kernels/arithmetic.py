"""What a norm does to a tile, forward and backward, inside of kernels."""

from __future__ import annotations

import triton
import triton.language as tl

from manystream.functional.kernels.tiles import PARTIALS, sum_partials


@triton.jit
def inverse_std(var, eps, column, in_columns):
    """Return 1 / √(var + eps) of some channels."""
    return tl.rsqrt(tl.load(var + column, mask=in_columns, other=1.0) + eps)


@triton.jit
def coefficients(mean, var, weight, bias, eps, column, in_columns):
    """Return a norm's mean, scale and shift of some channels, in float32."""
    average = tl.load(mean + column, mask=in_columns, other=0.0)
    scale = inverse_std(var, eps, column, in_columns)
    scale *= tl.load(weight + column, mask=in_columns, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=in_columns, other=0.0).to(tl.float32)
    return average, scale, shift


@triton.jit
def normed(value, average, scale, shift):
    """Normalise a tile."""
    return (value - average[None, :]) * scale[None, :] + shift[None, :]


@triton.jit
def as_stored(value, pointer):
    """Return what is read back after storing there, in float32."""
    return value.to(pointer.dtype.element_ty).to(tl.float32)


@triton.jit
def finish_gradients(
    partial,
    var,
    grad_weight,
    grad_bias,
    eps,
    column,
    in_columns,
    num_programs,
    columns,
    COLUMNS: tl.constexpr,
):
    """Return the gradients of weight and bias from every program's sums."""
    total, product = sum_partials(
        partial, num_programs, column, in_columns, columns, PARTIALS, COLUMNS
    )
    scale = inverse_std(var, eps, column, in_columns)
    tl.store(grad_bias + column, total, mask=in_columns)
    tl.store(grad_weight + column, product * scale, mask=in_columns)


@triton.jit
def input_gradient(
    upstream,
    value,
    mean,
    var,
    weight,
    grad_weight,
    grad_bias,
    eps,
    column,
    in_columns,
    rows,
    TRAINING: tl.constexpr,
):
    """Return the gradient of a norm's input from that of its output, for one tile in float32."""
    scale = inverse_std(var, eps, column, in_columns)
    gain = scale * tl.load(weight + column, mask=in_columns, other=0.0).to(tl.float32)
    if TRAINING:
        average = tl.load(mean + column, mask=in_columns, other=0.0)
        along = tl.load(grad_weight + column, mask=in_columns, other=0.0) * scale / rows
        constant = tl.load(grad_bias + column, mask=in_columns, other=0.0) / rows
        upstream -= constant[None, :] + (value - average[None, :]) * along[None, :]
    return upstream * gain[None, :]
