"""`manystream bench memory`: memory modes and baselines side by side."""

from __future__ import annotations

from pathlib import Path

import torch

from manystream.classifier import create_model
from manystream.cli.options import BenchMemoryOptions
from manystream.cli.output import console, fresh_path, say
from manystream.memory.bench import (
    modes_and_baselines,
    plot,
    run_cases,
    save,
    table_of,
    with_ratios,
)
from manystream.memory.case import Case


def bench_memory(options: BenchMemoryOptions) -> None:
    """Measure every case, print the table, write numbers and plot."""
    out = fresh_path(options.out, "bench-memory")
    cases = modes_and_baselines(_case(options), _existing(options.baselines))
    rows = []
    with console.status("measuring") as status:
        for number, row in enumerate(run_cases(cases), start=1):
            rows.append(row)
            status.update(f"measured {row['name']}, {number} of {len(cases)}")
    rows = with_ratios(rows)
    save(out / "memory.json", rows)
    plot(out / "memory.png", rows)
    console.print(table_of(rows))
    say(f"numbers and plot are in {out}")


def _case(options: BenchMemoryOptions) -> Case:
    with torch.device("meta"):
        model = create_model(
            options.family,
            depth=options.depth,
            streams=options.streams,
            num_classes=2,
            width=options.width,
            dropout=options.dropout,
        )
    return Case(
        "fast",
        model.layout,
        batch_size=options.batch_size,
        image_size=options.image_size,
        blanked=options.blanked,
        precision=options.precision,
        device=options.device,
        steps=options.steps,
        timeline=True,
    )


def _existing(baselines: Path | None) -> Path | None:
    return baselines if baselines is not None and baselines.is_file() else None
