"""`manystream bench memory`: memory modes and baselines side by side."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import torch
from rich.console import Console

from manystream.classifier import create_model
from manystream.cli.options import BenchMemoryOptions
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
    out = options.out or Path("runs") / f"bench-memory-{datetime.now():%Y%m%d-%H%M%S}"
    if out.exists():
        raise ValueError(f"--out {out} exists; name a folder that does not, nothing is overwritten")
    console = Console()
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
    console.print(f"numbers and plot are in {out}", markup=False, highlight=False, soft_wrap=True)


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
