"""Peak memory of scalar mixing, ours beside the two older ways.

32 samples, 128 channels, 52×68 pixels, two streams and an integrated input. The floor is the
output alone. Run: python benchmarks/scalar_mixing.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from manystream.functional import scalar_integrate
from manystream.memory import peak_bytes
from manystream.memory.bench import save

RESULTS = Path(__file__).parent / "results" / "scalar_mixing.json"
BATCH, CHANNELS, HEIGHT, WIDTH = 32, 128, 52, 68
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Way = Callable[[list[Tensor], list[Tensor], Tensor, Tensor, Tensor], Tensor]


def summed(raw: list[Tensor], alpha: list[Tensor], z: Tensor, w: Tensor, gamma: Tensor) -> Tensor:
    """A list of products, then their sum."""
    products = [a * x for a, x in zip(alpha, raw, strict=True)]
    return sum(products, start=gamma * F.conv2d(z, w))


def in_place(raw: list[Tensor], alpha: list[Tensor], z: Tensor, w: Tensor, gamma: Tensor) -> Tensor:
    """One product at a time, added in place."""
    out = F.conv2d(z, w).mul_(gamma)
    for a, x in zip(alpha, raw, strict=True):
        out += a * x
    return out


def ours(raw: list[Tensor], alpha: list[Tensor], z: Tensor, w: Tensor, gamma: Tensor) -> Tensor:
    """One operation."""
    everyone = slice(0, BATCH)
    return scalar_integrate(raw, alpha, [everyone] * len(raw), BATCH, z, w, gamma)


def main() -> None:
    """Measure every way in both precisions, and keep the result."""
    ways: dict[str, Way] = {"list and sum": summed, "in place": in_place, "ours": ours}
    rows: list[dict[str, Any]] = []
    for dtype in (torch.float32, torch.bfloat16):
        floor = BATCH * CHANNELS * HEIGHT * WIDTH * dtype.itemsize
        for name, way in ways.items():
            peak = measure(way, dtype)
            rows.append(
                {"dtype": str(dtype), "way": name, "peak_bytes": peak, "floor_bytes": floor}
            )
    table = Table("precision", "way", "peak of the forward pass", "ratio to its output")
    for row in rows:
        peak, floor = row["peak_bytes"], row["floor_bytes"]
        table.add_row(row["dtype"], row["way"], f"{peak / 1e6:.1f} MB", f"{peak / floor:.2f}")
    Console().print(table)
    save(RESULTS, rows)
    print(RESULTS)


def measure(way: Way, dtype: torch.dtype) -> int:
    """Peak of one forward pass with gradients, as in training."""
    shape = (BATCH, CHANNELS, HEIGHT, WIDTH)
    raw = [_map(shape, dtype).requires_grad_() for _ in range(2)]
    z = _map(shape, dtype).requires_grad_()
    alpha = [torch.ones(1, device=DEVICE, dtype=dtype, requires_grad=True) for _ in raw]
    gamma = torch.tensor(0.2, device=DEVICE, dtype=dtype, requires_grad=True)
    kernel = torch.randn(CHANNELS, CHANNELS, 1, 1, device=DEVICE, dtype=dtype, requires_grad=True)
    way(raw, alpha, z, kernel, gamma)
    return peak_bytes(lambda: way(raw, alpha, z, kernel, gamma), DEVICE)


def _map(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    images = torch.randn(shape, device=DEVICE, dtype=dtype)
    return images.contiguous(memory_format=torch.channels_last)


if __name__ == "__main__":
    main()
