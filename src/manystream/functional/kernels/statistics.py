"""Mean and variance of every channel of a channels-last map, in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from manystream.functional.kernels.registry import operation
from manystream.functional.kernels.tiles import (
    PARTIALS,
    STAGES,
    Tiles,
    as_matrix,
    is_last_program,
    place_of,
    store_partials,
    sum_partials,
    tickets,
)


@triton.jit(do_not_specialize=["rows", "tiles_each"])
def _statistics_kernel(
    x,
    partial,
    ticket,
    mean,
    variance,
    running_mean,
    running_var,
    num_batches_tracked,
    rows,
    columns,
    momentum,
    tiles_each,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    COUNT: tl.constexpr,
):
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_columns = column < columns
    # Sums of differences from any value of the channel lose nothing where the mean is large.
    shift = tl.load(x + column, mask=in_columns, other=0.0).to(tl.float32)
    first = tl.zeros((ROWS, COLUMNS), tl.float32)
    second = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tile in tl.range(program * tiles_each, (program + 1) * tiles_each, num_stages=STAGES):
        where, mask = place_of(tile, column, in_columns, rows, columns, ROWS)
        value = tl.load(x + where, mask=mask, other=0.0).to(tl.float32)
        value = tl.where(mask, value - shift[None, :], 0.0)
        first += value
        second += value * value
    store_partials(partial, program, num_programs, column, in_columns, columns, first, second)

    if is_last_program(ticket + tl.program_id(1), num_programs):
        total, squares = sum_partials(
            partial, num_programs, column, in_columns, columns, PARTIALS, COLUMNS
        )
        offset = total / rows
        var = tl.maximum(squares / rows - offset * offset, 0.0)
        average = shift + offset
        tl.store(mean + column, average, mask=in_columns)
        tl.store(variance + column, var, mask=in_columns)
        unbiased = var * (rows / (rows - 1.0))
        _move(running_mean + column, average, momentum, in_columns)
        _move(running_var + column, unbiased, momentum, in_columns)
        if COUNT and tl.program_id(1) == 0:
            tl.store(num_batches_tracked, tl.load(num_batches_tracked) + 1)


@triton.jit
def _move(running, value, momentum, mask):
    old = tl.load(running, mask=mask, other=0.0)
    tl.store(running, old + momentum * (value - old), mask=mask)


@operation(
    "(Tensor x, Tensor(a!) running_mean, Tensor(b!) running_var, Tensor(c!)? num_batches_tracked,"
    " float momentum) -> (Tensor mean, Tensor var)",
    shapes=lambda x, running_mean, running_var, *_: (
        torch.empty_like(running_mean),
        torch.empty_like(running_var),
    ),
)
def batch_statistics(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor | None,
    momentum: float,
) -> tuple[Tensor, Tensor]:
    """Return the mean and biased variance per channel, each (C,); moves the running statistics."""
    matrix = as_matrix(x)
    tiles = Tiles.of(*matrix.shape)
    programs, each = tiles.share()
    mean, var = torch.empty_like(running_mean), torch.empty_like(running_var)
    partial = torch.empty((2, programs, tiles.columns), device=x.device)
    _statistics_kernel[(programs, tiles.across)](
        matrix,
        partial,
        tickets(x.device),
        mean,
        var,
        running_mean,
        running_var,
        running_mean if num_batches_tracked is None else num_batches_tracked,
        tiles.rows,
        tiles.columns,
        momentum,
        each,
        ROWS=tiles.block_rows,
        COLUMNS=tiles.block_columns,
        COUNT=num_batches_tracked is not None,
        num_warps=tiles.num_warps,
    )
    return mean, var
