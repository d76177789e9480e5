"""What a blanked row saves: bytes kept for backward, and convolution FLOPs.

Counts, not timings, so any machine gives the same figures. Run: python benchmarks/presence.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

import manystream as ms
from manystream.memory import kept_bytes
from manystream.memory.bench import save

RESULTS = Path(__file__).parent / "results" / "presence.json"
BATCH, SIZE = 20, 96
SHARES = (0.0, 0.2, 0.5)


def main() -> None:
    """Measure a ResNet-18 with two streams, and keep the result."""
    rows = [measure(share) for share in SHARES]
    full = rows[0]
    table = Table(
        "blanked", "rows left", "kept for backward", "ratio", "stream conv FLOPs", "ratio"
    )
    for row in rows:
        table.add_row(
            f"{row['blanked']:.0%}",
            f"{row['rows_left']:.0%}",
            f"{row['kept_bytes'] / 2**20:.1f} MiB",
            f"{row['kept_bytes'] / full['kept_bytes']:.3f}",
            f"{row['stream_flops'] / 1e9:.2f} G",
            f"{row['stream_flops'] / full['stream_flops']:.3f}",
        )
    Console().print(table)
    save(RESULTS, rows)
    print(RESULTS)


def measure(share: float) -> dict[str, float]:
    """Blank that share of the samples, each in one of two streams in turn."""
    model = ms.create_model(streams={"rgb": 3, "depth": 1}, num_classes=19).network
    images = [torch.randn(BATCH, channels, SIZE, SIZE) for channels in (3, 1)]
    present = torch.ones(BATCH, 2, dtype=torch.bool)
    touched = torch.arange(round(share * BATCH))
    present[touched, touched % 2] = False
    batch = model.to_batch(images, present)
    lives = [*model.parameters(), *model.buffers(), *batch.streams]
    with FlopCounterMode(display=False) as counter:
        kept = kept_bytes(lambda: model(batch), exclude=lives)
    flops = counter.get_flop_counts()
    return {
        "blanked": share,
        "rows_left": present.float().mean().item(),
        "kept_bytes": kept,
        "stream_flops": sum(
            sum(ops.values()) for name, ops in flops.items() if ".streams." in name
        ),
    }


if __name__ == "__main__":
    main()
