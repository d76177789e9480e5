"""Scaled streams added to the integrated map in one pass, and one pass back per stream."""

from __future__ import annotations

from collections.abc import Sequence

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
    share,
    tickets,
)

MOST_STREAMS = 4


@triton.jit
def _added(value, raw, scalar, start, count, row, in_columns, column, columns):
    """Add a stream's tile where its rows, ``start`` and on, meet it."""
    own = row - start
    mask = ((own >= 0) & (own < count))[:, None] & in_columns[None, :]
    where = own.to(tl.int64)[:, None] * columns + column[None, :]
    return value + tl.load(scalar).to(tl.float32) * tl.load(raw + where, mask=mask, other=0.0)


_VARYING = ["rows"] + [f"{name}{m}" for m in range(MOST_STREAMS) for name in ("start", "count")]


@triton.jit(do_not_specialize=_VARYING)
def _add_kernel(
    out,
    raw0,
    raw1,
    raw2,
    raw3,
    scalar0,
    scalar1,
    scalar2,
    scalar3,
    start0,
    start1,
    start2,
    start3,
    count0,
    count1,
    count2,
    count3,
    rows,
    columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STREAMS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_columns = column < columns
    mask = (row < rows)[:, None] & in_columns[None, :]
    where = row.to(tl.int64)[:, None] * columns + column[None, :]
    value = tl.load(out + where, mask=mask, other=0.0).to(tl.float32)
    value = _added(value, raw0, scalar0, start0, count0, row, in_columns, column, columns)
    if STREAMS > 1:
        value = _added(value, raw1, scalar1, start1, count1, row, in_columns, column, columns)
    if STREAMS > 2:
        value = _added(value, raw2, scalar2, start2, count2, row, in_columns, column, columns)
    if STREAMS > 3:
        value = _added(value, raw3, scalar3, start3, count3, row, in_columns, column, columns)
    tl.store(out + where, value, mask=mask)


@triton.jit(do_not_specialize=["numel", "tiles_each"])
def _backward_kernel(
    grad,
    raw,
    scalar,
    other,
    grad_raw,
    partial,
    ticket,
    grad_scalar,
    numel,
    tiles_each,
    TILE: tl.constexpr,
    OTHER: tl.constexpr,
):
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    factor = tl.load(scalar).to(tl.float32)
    product = tl.zeros((TILE,), tl.float32)
    for tile in tl.range(program * tiles_each, (program + 1) * tiles_each, num_stages=STAGES):
        where = tile * tl.full((), TILE, tl.int64) + tl.arange(0, TILE)
        mask = where < numel
        upstream = tl.load(grad + where, mask=mask, other=0.0).to(tl.float32)
        product += upstream * tl.load(raw + where, mask=mask, other=0.0).to(tl.float32)
        value = upstream * factor
        if OTHER:
            value += tl.load(other + where, mask=mask, other=0.0).to(tl.float32)
        tl.store(grad_raw + where, value, mask=mask)
    tl.store(partial + program, tl.sum(product, axis=0))
    if is_last_program(ticket, num_programs):
        total = tl.zeros((PARTIALS,), tl.float32)
        for start in range(0, num_programs, PARTIALS):
            index = start + tl.arange(0, PARTIALS)
            mask = index < num_programs
            total += tl.load(partial + index, mask=mask, other=0.0, cache_modifier=".cg")
        tl.store(grad_scalar, tl.sum(total, axis=0))


@operation(
    "(Tensor(a!) out, Tensor[] raw, Tensor[] scalars, int[] starts) -> ()",
    shapes=lambda *_: None,
)
def add_scaled(
    out: Tensor, raw: Sequence[Tensor], scalars: Sequence[Tensor], starts: Sequence[int]
) -> None:
    """Compute ``out[start : start + len(raw_m)] += scalar_m * raw_m`` for up to four streams."""
    matrix = as_matrix(out)
    positions = out.shape[2:].numel()
    tiles = Tiles.of(*matrix.shape)
    filler = [0] * (MOST_STREAMS - len(raw))
    maps = [as_matrix(x) for x in raw]
    _add_kernel[(tiles.down, tiles.across)](
        matrix,
        *maps,
        *(matrix for _ in filler),
        *scalars,
        *(scalars[0] for _ in filler),
        *(start * positions for start in starts),
        *filler,
        *(len(x) for x in maps),
        *filler,
        tiles.rows,
        tiles.columns,
        ROWS=tiles.block_rows,
        COLUMNS=tiles.block_columns,
        STREAMS=len(raw),
        num_warps=tiles.num_warps,
    )


@operation(
    "(Tensor grad, Tensor raw, Tensor scalar, Tensor? other) -> (Tensor, Tensor)",
    shapes=lambda grad, raw, scalar, other: (
        torch.empty_like(raw, memory_format=torch.channels_last),
        torch.empty_like(scalar),
    ),
)
def scaled_backward(
    grad: Tensor, raw: Tensor, scalar: Tensor, other: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return ``scalar * grad + other``, and the sum of ``grad * raw``; all of raw's shape."""
    upstream, matrix = as_matrix(grad), as_matrix(raw)
    grad_raw = torch.empty_like(raw, memory_format=torch.channels_last)
    grad_scalar = torch.empty_like(scalar)
    tile = 4096
    programs, each = share(-(-matrix.numel() // tile), 1)
    _backward_kernel[(programs,)](
        upstream,
        matrix,
        scalar,
        matrix if other is None else as_matrix(other),
        grad_raw,
        torch.empty(programs, device=raw.device),
        tickets(raw.device),
        grad_scalar,
        matrix.numel(),
        each,
        TILE=tile,
        OTHER=other is not None,
        num_warps=4,
    )
    return grad_raw, grad_scalar
