"""Peak memory of scalar mixing, ours beside the two older ways.

32 samples, 128 channels, 52×68 pixels, two streams and an integrated input; the least there could
be is the output alone. Run: python benchmarks/scalar_mixing.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.results import Row, load, parser_of, save
from harness.tables import console, number, table_of
from manystream.functional import scalar_integrate
from manystream.memory import peak_bytes
from manystream.presence import Run

SHAPE = (32, 128, 52, 68)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Way = Callable[[list[Tensor], list[Tensor], Tensor, Tensor, Tensor], Tensor]

COLUMNS = {
    "precision": lambda row: str(row["dtype"]),
    "peak of the forward pass, MB": number("peak_bytes", ".1f", 1e-6),
    "against its output": lambda row: f"{row['peak_bytes'] / row['output_bytes']:.2f}",
}


def summed(raw: list[Tensor], alpha: list[Tensor], z: Tensor, w: Tensor, gamma: Tensor) -> Tensor:
    """Make a list of products, then their sum."""
    products = [a * x for a, x in zip(alpha, raw, strict=True)]
    return sum(products, start=gamma * F.conv2d(z, w))


def in_place(raw: list[Tensor], alpha: list[Tensor], z: Tensor, w: Tensor, gamma: Tensor) -> Tensor:
    """Add one product at a time in place."""
    out = F.conv2d(z, w).mul_(gamma)
    for a, x in zip(alpha, raw, strict=True):
        out += a * x
    return out


def ours(raw: list[Tensor], alpha: list[Tensor], z: Tensor, w: Tensor, gamma: Tensor) -> Tensor:
    """Mix in one operation."""
    everyone = slice(0, len(z))
    return scalar_integrate(raw, alpha, [[Run(everyone, everyone)]] * len(raw), len(z), z, w, gamma)


WAYS: dict[str, Way] = {"list and sum": summed, "in place": in_place, "ours": ours}


def main(words: Sequence[str] | None = None) -> None:
    """Measure every way in both precisions, and keep the result."""
    options = parser_of(__doc__, "scalar_mixing.json").parse_args(words)
    rows = load(options.show) if options.show else measure_all()
    console.print(table_of(rows, COLUMNS, name=lambda row: str(row["way"])))
    if not options.show:
        save(options.out, rows, options.commit)


def measure_all(shape: Sequence[int] = SHAPE) -> list[Row]:
    """Return a row for each way and precision."""
    return [
        {
            "dtype": str(dtype),
            "way": name,
            "peak_bytes": measure(way, dtype, shape),
            "output_bytes": torch.Size(shape).numel() * dtype.itemsize,
        }
        for dtype in (torch.float32, torch.bfloat16)
        for name, way in WAYS.items()
    ]


def measure(way: Way, dtype: torch.dtype, shape: Sequence[int]) -> int:
    """Return the peak of one forward pass with gradients, as in training."""

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, device=DEVICE, dtype=dtype)

    raw = [_map(noise(*shape)) for _ in range(2)]
    z = _map(noise(*shape))
    alpha = [torch.ones_like(noise(1)).requires_grad_() for _ in raw]
    gamma = torch.full_like(noise(), 0.2).requires_grad_()
    kernel = noise(shape[1], shape[1], 1, 1).requires_grad_()
    way(raw, alpha, z, kernel, gamma)
    return peak_bytes(lambda: way(raw, alpha, z, kernel, gamma), DEVICE)


def _map(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last).requires_grad_()


if __name__ == "__main__":
    main()
