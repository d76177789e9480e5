"""Batch norm, ReLU and max-pool: what lies between is never written, forward or backward."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from manystream.functional.kernels.arithmetic import (
    as_stored,
    coefficients,
    finish_gradients,
    input_gradient,
    normed,
)
from manystream.functional.kernels.registry import operation
from manystream.functional.kernels.strips import Strip
from manystream.functional.kernels.tiles import (
    as_matrix,
    is_last_program,
    store_partials,
    tickets,
)

_NOTHING = tl.constexpr(255)
"""Index of a window in which ReLU cut everything."""


_FORWARD, _BACKWARD = 4096, 2048
"""Values of a strip.

Measured on an H200 with a map of (115, 64, 112, 112) in bfloat16, in µs: forward 78 and 83, finding
the largest 240 and 169, the gradient 234 and 221, and with two warps 174. Reading the map once
takes 44.
"""


@triton.jit
def _largest(
    x,
    sample,
    top,
    left,
    sign,
    in_tile,
    column,
    height,
    width,
    columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KERNEL: tl.constexpr,
):
    """Find what of each window becomes largest after the norm, and its position in the window.

    A norm keeps the order of a channel's values, or turns it round: ``sign`` says which.
    """
    best = tl.full((ROWS, COLUMNS), float("-inf"), tl.float32)
    found = tl.full((ROWS, COLUMNS), _NOTHING, tl.int32)
    for down in tl.static_range(KERNEL):
        start = x + (sample.to(tl.int64) * height + top + down) * width * columns
        row = top + down + tl.zeros_like(left)
        in_rows = (row >= 0) & (row < height)
        for right in tl.static_range(KERNEL):
            col = left + right
            inside = in_rows & (col >= 0) & (col < width)
            where = start + col[:, None] * columns + column[None, :]
            value = tl.load(where, mask=inside[:, None] & in_tile, other=0.0).to(tl.float32)
            value = tl.where(inside[:, None], value * sign[None, :], float("-inf"))
            found = tl.where(value > best, down * KERNEL + right, found)
            best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
    return tl.where(in_tile, best * sign[None, :], 0.0), found


@triton.jit
def _pool_kernel(
    x,
    mean,
    var,
    weight,
    bias,
    y,
    columns,
    height,
    width,
    out_height,
    out_width,
    eps,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    RELU: tl.constexpr,
):
    sample, out_row = tl.program_id(0) // out_height, tl.program_id(0) % out_height
    out_col = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    in_columns = column < columns
    in_tile = (out_col < out_width)[:, None] & in_columns[None, :]
    average, scale, shift = coefficients(mean, var, weight, bias, eps, column, in_columns)
    top, left = out_row * STRIDE - PADDING, out_col * STRIDE - PADDING
    source, _ = _largest(
        x,
        sample,
        top,
        left,
        tl.where(scale < 0, -1.0, 1.0),
        in_tile,
        column,
        height,
        width,
        columns,
        ROWS,
        COLUMNS,
        KERNEL,
    )
    value = normed(source, average, scale, shift)
    if RELU:
        value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
    start = y + tl.program_id(0).to(tl.int64) * out_width * columns
    tl.store(start + out_col[:, None] * columns + column[None, :], value, mask=in_tile)


@triton.jit(do_not_specialize=["strips", "strips_each"])
def _pool_reduce_kernel(
    grad,
    x,
    mean,
    var,
    weight,
    bias,
    index,
    partial,
    ticket,
    grad_weight,
    grad_bias,
    strips,
    columns,
    height,
    width,
    out_height,
    out_width,
    eps,
    strips_each,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    RELU: tl.constexpr,
):
    """Find each window's largest again, write where it is, and sum for the gradients."""
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_columns = column < columns
    average, scale, shift = coefficients(mean, var, weight, bias, eps, column, in_columns)
    sign = tl.where(scale < 0, -1.0, 1.0)
    first = tl.zeros((ROWS, COLUMNS), tl.float32)
    second = tl.zeros((ROWS, COLUMNS), tl.float32)
    strips_across = tl.cdiv(out_width, ROWS)
    for strip in range(program * strips_each, tl.minimum((program + 1) * strips_each, strips)):
        line = strip // strips_across
        out_col = strip % strips_across * ROWS + tl.arange(0, ROWS)
        in_tile = (out_col < out_width)[:, None] & in_columns[None, :]
        sample, out_row = line // out_height, line % out_height
        source, found = _largest(
            x,
            sample,
            out_row * STRIDE - PADDING,
            out_col * STRIDE - PADDING,
            sign,
            in_tile,
            column,
            height,
            width,
            columns,
            ROWS,
            COLUMNS,
            KERNEL,
        )
        if RELU:
            after = as_stored(normed(source, average, scale, shift), x)
            found = tl.where(after > 0, found, _NOTHING)
        offset = line.to(tl.int64) * out_width * columns
        where = out_col[:, None] * columns + column[None, :]
        tl.store(index + offset + where, found.to(tl.uint8), mask=in_tile)
        upstream = tl.load(grad + offset + where, mask=in_tile, other=0.0).to(tl.float32)
        passes = in_tile & (found != _NOTHING)
        first += tl.where(passes, upstream, 0.0)
        second += tl.where(passes, upstream * (source - average[None, :]), 0.0)
    store_partials(partial, program, num_programs, column, in_columns, columns, first, second)

    if is_last_program(ticket + tl.program_id(1), num_programs):
        finish_gradients(
            partial,
            var,
            grad_weight,
            grad_bias,
            eps,
            column,
            in_columns,
            num_programs,
            columns,
            COLUMNS,
        )


@triton.jit(do_not_specialize=["pixels"])
def _pool_gradient_kernel(
    grad,
    index,
    x,
    mean,
    var,
    weight,
    grad_weight,
    grad_bias,
    grad_x,
    pixels,
    columns,
    height,
    width,
    out_height,
    out_width,
    eps,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    TRAINING: tl.constexpr,
):
    """Let every pixel ask the windows it lies in whether it was their largest."""
    sample, row = tl.program_id(0) // height, tl.program_id(0) % height
    col = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    in_columns = column < columns
    in_tile = (col < width)[:, None] & in_columns[None, :]
    upstream = tl.zeros((ROWS, COLUMNS), tl.float32)
    WINDOWS: tl.constexpr = (KERNEL + STRIDE - 1) // STRIDE
    for up in tl.static_range(WINDOWS):
        out_row = (row + PADDING) // STRIDE - up
        down = row + PADDING - out_row * STRIDE
        if (out_row >= 0) & (out_row < out_height) & (down < KERNEL):
            offset = (sample.to(tl.int64) * out_height + out_row) * out_width * columns
            for back in tl.static_range(WINDOWS):
                out_col = (col + PADDING) // STRIDE - back
                right = col + PADDING - out_col * STRIDE
                fits = (out_col >= 0) & (out_col < out_width) & (right < KERNEL)
                mask = fits[:, None] & in_tile
                where = out_col[:, None] * columns + column[None, :]
                found = tl.load(index + offset + where, mask=mask, other=255).to(tl.int32)
                value = tl.load(grad + offset + where, mask=mask, other=0.0).to(tl.float32)
                mine = found == (down * KERNEL + right)[:, None]
                upstream += tl.where(mine, value, 0.0)
    offset = tl.program_id(0).to(tl.int64) * width * columns
    where = offset + col[:, None] * columns + column[None, :]
    value = tl.load(x + where, mask=in_tile, other=0.0).to(tl.float32)
    result = input_gradient(
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
        pixels,
        TRAINING,
    )
    tl.store(grad_x + where, result, mask=in_tile)


@operation(
    "(Tensor x, Tensor mean, Tensor var, Tensor weight, Tensor bias, float eps,"
    " bool relu, int kernel_size, int stride, int padding, Tensor(a!) y) -> ()",
    shapes=lambda *_: None,
)
def norm_relu_pool(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    relu: bool,
    kernel_size: int,
    stride: int,
    padding: int,
    y: Tensor,
) -> None:
    """Compute ``y = max_pool(relu((x - mean) / √(var + eps) * weight + bias))``."""
    strip = Strip.of(y.shape, _FORWARD)
    _pool_kernel[strip.grid](
        as_matrix(x),
        mean,
        var,
        weight,
        bias,
        y,
        y.shape[1],
        *x.shape[2:],
        *y.shape[2:],
        eps,
        **strip.blocks,
        KERNEL=kernel_size,
        STRIDE=stride,
        PADDING=padding,
        RELU=relu,
    )


@operation(
    "(Tensor grad, Tensor x, Tensor mean, Tensor var, Tensor weight, Tensor bias, float eps,"
    " bool relu, bool training, int kernel_size, int stride, int padding, Tensor(a!) grad_x)"
    " -> (Tensor, Tensor)",
    shapes=lambda grad, x, mean, *_: (torch.empty_like(mean), torch.empty_like(mean)),
)
def norm_relu_pool_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    relu: bool,
    training: bool,
    kernel_size: int,
    stride: int,
    padding: int,
    grad_x: Tensor,
) -> tuple[Tensor, Tensor]:
    """Write the gradient of x, and give those of weight and bias.

    Of each window one byte is held meanwhile.
    """
    upstream, matrix = as_matrix(grad), as_matrix(x)
    pooled, full = Strip.of(grad.shape, _BACKWARD), Strip.of(x.shape, _BACKWARD)
    programs, each = pooled.share()
    index = torch.empty(upstream.shape, dtype=torch.uint8, device=x.device)
    partial = torch.empty((2, programs, matrix.shape[1]), device=x.device)
    grad_weight, grad_bias = torch.empty_like(mean), torch.empty_like(mean)
    sizes = (matrix.shape[1], *x.shape[2:], *grad.shape[2:], eps)
    window = {"KERNEL": kernel_size, "STRIDE": stride, "PADDING": padding}
    _pool_reduce_kernel[(programs, pooled.across)](
        upstream,
        matrix,
        mean,
        var,
        weight,
        bias,
        index,
        partial,
        tickets(x.device),
        grad_weight,
        grad_bias,
        pooled.number,
        *sizes,
        each,
        **pooled.blocks,
        **window,
        RELU=relu,
    )
    _pool_gradient_kernel[full.grid](
        upstream,
        index,
        matrix,
        mean,
        var,
        weight,
        grad_weight,
        grad_bias,
        grad_x,
        matrix.shape[0],
        *sizes,
        **full.blocks,
        **window,
        TRAINING=training,
        num_warps=2,
    )
    return grad_weight, grad_bias
