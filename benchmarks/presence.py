"""What a blanked row saves: bytes kept for backward, and convolution FLOPs.

Counts, not timings, so any machine gives the same figures. Run: python benchmarks/presence.py
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.cases import Case, blanked_in_turn, network_of
from harness.results import Row, load, parser_of, save
from harness.tables import console, number, table_of
from manystream.memory import kept_bytes

CASE = Case(batch_size=20, image_size=(96, 96), device="cpu")
SHARES = (0.0, 0.2, 0.5)


def main(words: Sequence[str] | None = None) -> None:
    """Measure a ResNet-18 with two streams, and keep the result."""
    options = parser_of(__doc__, "presence.json").parse_args(words)
    rows = load(options.show) if options.show else [measure(CASE, share) for share in SHARES]
    full = rows[0]
    columns = {
        "rows left": number("rows_left", ".0%"),
        "kept for backward, MiB": number("kept_bytes", ".1f", 2**-20),
        "against all": number("kept_bytes", ".3f", 1 / full["kept_bytes"]),
        "stream conv GFLOPs": number("stream_flops", ".2f", 1e-9),
        "of all": number("stream_flops", ".3f", 1 / full["stream_flops"]),
    }
    console.print(table_of(rows, columns, name=lambda row: f"{row['blanked']:.0%} blanked"))
    if not options.show:
        save(options.out, rows, options.commit)


def measure(case: Case, share: float) -> Row:
    """Blank that share of the samples, each in one of the streams in turn."""
    network = network_of(case)
    images = [torch.randn(case.batch_size, c, *case.image_size) for c in case.streams.values()]
    present = blanked_in_turn(case.batch_size, len(images), share)
    batch = network.to_batch(images, present)
    lives = [*network.parameters(), *network.buffers(), *batch.streams]
    with FlopCounterMode(display=False) as counter:
        kept = kept_bytes(lambda: network(batch), exclude=lives)
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
