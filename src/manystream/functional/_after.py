"""What follows a norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Pool(NamedTuple):
    """A max-pool: side, step and padding of its window."""

    kernel_size: int
    stride: int
    padding: int


@dataclass(frozen=True)
class After:
    """What follows a norm: ReLU or not, then a max-pool or not."""

    relu: bool = True
    pool: Pool | None = None


RELU = After()

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""Of x, residual, weight and bias."""
