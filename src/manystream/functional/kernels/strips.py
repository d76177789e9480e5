"""How a channels-last map is cut into strips of one line, for what looks at neighbouring pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from manystream.functional.kernels.tiles import block_columns, share


@dataclass(frozen=True)
class Strip:
    """How a channels-last map is cut into strips of pixels of one line.

    Attributes:
        lines: lines of all images.
        width: pixels of a line.
        columns: channels.
        block: pixels of a strip, a power of two.
        block_columns: channels of a strip, a power of two.
    """

    lines: int
    width: int
    columns: int
    block: int
    block_columns: int

    @staticmethod
    def of(shape: torch.Size, numel: int) -> Strip:
        """Strips of about ``numel`` values of a map of (B, C, H, W)."""
        batch, columns, height, width = shape
        across = block_columns(columns)
        block = min(triton.next_power_of_2(width), numel // across)
        return Strip(batch * height, width, columns, block, across)

    @property
    def across(self) -> int:
        """Strips that share their pixels, each with some of the channels."""
        return -(-self.columns // self.block_columns)

    @property
    def number(self) -> int:
        """Strips of some channels."""
        return self.lines * -(-self.width // self.block)

    @property
    def grid(self) -> tuple[int, int, int]:
        """A program for each strip."""
        return self.lines, -(-self.width // self.block), self.across

    @property
    def blocks(self) -> dict[str, int]:
        """What a kernel has to know."""
        return {"ROWS": self.block, "COLUMNS": self.block_columns}

    def share(self) -> tuple[int, int]:
        """Programs of a reduction for some channels, and strips that each takes."""
        return share(self.number, self.across)
