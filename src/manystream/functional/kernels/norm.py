"""Norm, residual and ReLU in one pass forward and two backward, on channels-last maps."""

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
from manystream.functional.kernels.tiles import (
    STAGES,
    Tiles,
    as_matrix,
    is_last_program,
    place_of,
    store_partials,
    tickets,
)


@triton.jit(do_not_specialize=["rows"])
def _apply_kernel(
    x,
    residual,
    mean,
    var,
    weight,
    bias,
    y,
    rows,
    columns,
    eps,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
):
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_columns = column < columns
    where, mask = place_of(tl.program_id(0), column, in_columns, rows, columns, ROWS)
    average, scale, shift = coefficients(mean, var, weight, bias, eps, column, in_columns)
    value = tl.load(x + where, mask=mask, other=0.0).to(tl.float32)
    value = normed(value, average, scale, shift)
    if RESIDUAL:
        value += tl.load(residual + where, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(y + where, value, mask=mask)


@triton.jit(do_not_specialize=["rows", "tiles_each"])
def _reduce_kernel(
    grad,
    x,
    y,
    mean,
    var,
    weight,
    bias,
    partial,
    ticket,
    grad_weight,
    grad_bias,
    cut,
    rows,
    columns,
    eps,
    tiles_each,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RELU: tl.constexpr,
    FROM_Y: tl.constexpr,
):
    """Sums for the gradients; where ReLU cut is read from y, and then written as ``cut``."""
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_columns = column < columns
    average, scale, shift = coefficients(mean, var, weight, bias, eps, column, in_columns)
    first = tl.zeros((ROWS, COLUMNS), tl.float32)
    second = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tile in tl.range(program * tiles_each, (program + 1) * tiles_each, num_stages=STAGES):
        where, mask = place_of(tile, column, in_columns, rows, columns, ROWS)
        upstream = tl.load(grad + where, mask=mask, other=0.0)
        value = tl.load(x + where, mask=mask, other=0.0).to(tl.float32)
        if FROM_Y:
            kept = tl.load(y + where, mask=mask, other=0.0).to(tl.float32) > 0
            upstream = tl.where(kept, upstream, 0.0)
            tl.store(cut + where, upstream, mask=mask)
        elif RELU:
            before = normed(value, average, scale, shift)
            upstream = tl.where(as_stored(before, x) > 0, upstream, 0.0)
        upstream = upstream.to(tl.float32)
        first += upstream
        second += upstream * (value - average[None, :])
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


@triton.jit(do_not_specialize=["rows"])
def _gradient_kernel(
    grad,
    x,
    mean,
    var,
    weight,
    bias,
    grad_weight,
    grad_bias,
    grad_x,
    rows,
    columns,
    eps,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RELU: tl.constexpr,
    TRAINING: tl.constexpr,
):
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_columns = column < columns
    where, mask = place_of(tl.program_id(0), column, in_columns, rows, columns, ROWS)
    upstream = tl.load(grad + where, mask=mask, other=0.0)
    value = tl.load(x + where, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        average, scale, shift = coefficients(mean, var, weight, bias, eps, column, in_columns)
        before = normed(value, average, scale, shift)
        upstream = tl.where(as_stored(before, x) > 0, upstream, 0.0)
    result = input_gradient(
        upstream.to(tl.float32),
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
        TRAINING,
    )
    tl.store(grad_x + where, result, mask=mask)


@operation(
    "(Tensor x, Tensor? residual, Tensor mean, Tensor var, Tensor weight, Tensor bias,"
    " float eps, bool relu, Tensor(a!) y) -> ()",
    shapes=lambda *_: None,
)
def norm_relu(
    x: Tensor,
    residual: Tensor | None,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    relu: bool,
    y: Tensor,
) -> None:
    """Compute ``y = relu((x - mean) / √(var + eps) * weight + bias + residual)``."""
    matrix = as_matrix(x)
    tiles = Tiles.of(*matrix.shape)
    _apply_kernel[(tiles.down, tiles.across)](
        matrix,
        matrix if residual is None else as_matrix(residual),
        mean,
        var,
        weight,
        bias,
        y,
        tiles.rows,
        tiles.columns,
        eps,
        ROWS=tiles.block_rows,
        COLUMNS=tiles.block_columns,
        RESIDUAL=residual is not None,
        RELU=relu,
        num_warps=tiles.num_warps,
    )


@operation(
    "(Tensor grad, Tensor x, Tensor? y, Tensor mean, Tensor var, Tensor weight, Tensor bias,"
    " float eps, bool relu, bool training, Tensor(a!) grad_x, Tensor(b!)? cut)"
    " -> (Tensor, Tensor)",
    shapes=lambda grad, x, y, mean, *_: (torch.empty_like(mean), torch.empty_like(mean)),
)
def norm_relu_backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor | None,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    relu: bool,
    training: bool,
    grad_x: Tensor,
    cut: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Write the gradient of x, and give those of weight and bias.

    Where ReLU cut is rebuilt from x; or read from y, and then the upstream gradient after that cut,
    which is the residual's, is written as ``cut``.
    """
    upstream, matrix = as_matrix(grad), as_matrix(x)
    from_y = relu and y is not None
    passed = upstream if cut is None else cut
    tiles = Tiles.of(*matrix.shape)
    programs, each = tiles.share()
    grad_weight, grad_bias = torch.empty_like(mean), torch.empty_like(mean)
    partial = torch.empty((2, programs, tiles.columns), device=x.device)
    blocks = {"ROWS": tiles.block_rows, "COLUMNS": tiles.block_columns}
    _reduce_kernel[(programs, tiles.across)](
        upstream,
        matrix,
        as_matrix(y) if y is not None else matrix,
        mean,
        var,
        weight,
        bias,
        partial,
        tickets(x.device),
        grad_weight,
        grad_bias,
        passed,
        tiles.rows,
        tiles.columns,
        eps,
        each,
        **blocks,
        RELU=relu,
        FROM_Y=from_y,
        num_warps=tiles.num_warps,
    )
    _gradient_kernel[(tiles.down, tiles.across)](
        passed,
        matrix,
        mean,
        var,
        weight,
        bias,
        grad_weight,
        grad_bias,
        grad_x,
        tiles.rows,
        tiles.columns,
        eps,
        **blocks,
        RELU=relu and not from_y,
        TRAINING=training,
        num_warps=tiles.num_warps,
    )
    return grad_weight, grad_bias
