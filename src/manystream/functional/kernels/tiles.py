"""How a channels-last map is cut into tiles, and how programs of one launch meet at its end.

A map of (B, C, H, W) in channels-last is a matrix of B·H·W rows and C columns. A program works on
tiles of ``block_rows`` by ``block_columns`` of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 4096
_WIDEST = 64
_PROGRAMS = 2 * 132
"""Programs of a reduction, two for each multiprocessor of an H100 or H200.

Measured there with maps of (28, 64, 56, 56) and (115, 64, 112, 112) in bfloat16, statistics and
backward in µs: tiles of 4096 and 264 programs 10 and 22, 53 and 244; 528 programs 14 and 25, 54 and
249; tiles of 8192 12 and 25, 52 and 276; without pipelining 12 and 24, 89 and 278. Reading the
larger map once takes 44.
"""

STAGES = tl.constexpr(3)
"""Tiles that a reduction has under way at once."""

PARTIALS = tl.constexpr(128)
"""Programs whose sums the last one adds up at once."""


@dataclass(frozen=True)
class Tiles:
    """A matrix cut into tiles.

    Attributes:
        rows: rows of the matrix.
        columns: its columns.
        block_rows: rows of a tile, a power of two.
        block_columns: columns of a tile, a power of two.
    """

    rows: int
    columns: int
    block_rows: int
    block_columns: int
    num_warps = 4

    @staticmethod
    def of(rows: int, columns: int) -> Tiles:
        """Tiles of a matrix."""
        width = block_columns(columns)
        return Tiles(rows, columns, _TILE // width, width)

    @property
    def down(self) -> int:
        """Tiles that lie below each other."""
        return -(-self.rows // self.block_rows)

    @property
    def across(self) -> int:
        """Tiles that lie side by side."""
        return -(-self.columns // self.block_columns)

    def share(self) -> tuple[int, int]:
        """Programs of a reduction for some columns, and tiles that each takes."""
        return share(self.down, self.across)


def block_columns(columns: int) -> int:
    """Columns of a tile or strip of a map with so many channels."""
    return int(min(triton.next_power_of_2(columns), _WIDEST))


def share(down: int, across: int) -> tuple[int, int]:
    """Share ``down`` pieces of work, each ``across`` times, among programs.

    Returns:
        Programs, for each of the ``across``, and the most pieces that one takes.
    """
    each = -(-down * across // _PROGRAMS)
    return -(-down // each), each


@triton.jit
def place_of(tile, column, in_columns, rows, columns, ROWS: tl.constexpr):
    """Tell where the values of a tile among those below each other lie, and which exist."""
    row = tile * ROWS + tl.arange(0, ROWS)
    mask = (row < rows)[:, None] & in_columns[None, :]
    return row.to(tl.int64)[:, None] * columns + column[None, :], mask


@triton.jit
def is_last_program(ticket, num_programs):
    """Tell whether all other programs that count by this ticket have written their sums."""
    tl.debug_barrier()
    drawn = tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu")
    last = drawn == num_programs - 1
    if last:
        tl.store(ticket, 0)
    return last


@triton.jit
def store_partials(partial, program, num_programs, column, in_columns, columns, first, second):
    """Write a program's two sums over its tiles."""
    where = partial + program * columns + column
    tl.store(where, tl.sum(first, axis=0), mask=in_columns)
    tl.store(where + num_programs * columns, tl.sum(second, axis=0), mask=in_columns)


@triton.jit
def sum_partials(
    partial, num_programs, column, in_columns, columns, BLOCK: tl.constexpr, COLUMNS: tl.constexpr
):
    """Add up what all programs wrote, in a fixed order."""
    first = tl.zeros((COLUMNS,), tl.float32)
    second = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, num_programs, BLOCK):
        program = start + tl.arange(0, BLOCK)
        mask = (program < num_programs)[:, None] & in_columns[None, :]
        where = partial + program[:, None] * columns + column[None, :]
        # Past the first-level cache, which may not know what other multiprocessors wrote.
        one = tl.load(where, mask=mask, other=0.0, cache_modifier=".cg")
        where += num_programs * columns
        other = tl.load(where, mask=mask, other=0.0, cache_modifier=".cg")
        first += tl.sum(one, axis=0)
        second += tl.sum(other, axis=0)
    return first, second


def as_matrix(images: Tensor) -> Tensor:
    """Read (B, C, H, W) as (B·H·W, C), a view of a channels-last map and a copy of another."""
    # One image in another layout would come as a view with its columns apart.
    return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1]).contiguous()


_tickets: dict[tuple[torch.device, int], Tensor] = {}
_TICKETS = 1024


def tickets(device: torch.device) -> Tensor:
    """Zeros to count programs by, int32; kernels leave them zero. Each CUDA stream has its own."""
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    key = (device, stream)
    if key not in _tickets:
        zeros = torch.zeros(_TICKETS, dtype=torch.int32, device=device)
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return zeros  # the graph clears and owns them
        _tickets[key] = zeros
    return _tickets[key]
